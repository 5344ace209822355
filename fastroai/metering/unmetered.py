"""Notices requests to providers that no meter has seen: of SDKs that a step uses by itself."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable
from functools import lru_cache, wraps
from inspect import iscoroutinefunction
from typing import Any, Final
from urllib.parse import urlsplit

from ..pricing.calculator import named_provider
from ..pricing.price_list import is_listed_host
from ..replay.requests import members_asked
from .batch_submissions import submitted_by
from .http_attempts import current_send
from .own_requests import OwnRequest
from .scope import DispatchScope, current_scope
from .sending_methods import MARK

logger = logging.getLogger("fastroai.metering")

_Called = tuple[str, str]
"""The HTTP method and the URL of a call."""


def _of_request(client: Any, request: Any, *_: Any, **__: Any) -> _Called:
    return request.method, str(request.url)


def _of_aiohttp(client: Any, method: str, url: Any, **options: Any) -> _Called:
    return method.upper(), str(client._build_url(url))


def _of_aiohttp_socket(client: Any, url: Any, **options: Any) -> _Called:
    return "POST", _as_http(str(client._build_url(url)))


def _of_websocket(protocol: Any) -> _Called:
    uri = protocol.uri
    return "POST", _as_http(f"{'wss' if uri.secure else 'ws'}://{uri.host}:{uri.port}{uri.path}")


def _as_http(url: str) -> str:
    # A socket is opened by a GET; what it is opened for is as good as a POST.
    return re.sub("^ws", "http", url)


_CLIENTS: Final[tuple[tuple[str, str, str, Callable[..., _Called]], ...]] = (
    ("httpx", "AsyncClient", "send", _of_request),
    ("httpx", "Client", "send", _of_request),
    ("httpx2", "AsyncClient", "send", _of_request),
    ("httpx2", "Client", "send", _of_request),
    ("botocore.httpsession", "URLLib3Session", "send", _of_request),
    ("requests", "Session", "send", _of_request),
    ("aiohttp", "ClientSession", "_request", _of_aiohttp),
    ("aiohttp", "ClientSession", "_ws_connect", _of_aiohttp_socket),
    ("websockets.client", "ClientProtocol", "connect", _of_websocket),
)
"""What SDKs send with: module, class and method, and what is called by its arguments."""

_FREE: Final = re.compile(
    r"/(files|uploads|moderations|cancel|count_tokens|input_tokens|tokenize)$"
    r"|:(countTokens|computeTokens)$|/count-tokens(:rawPredict)?$"
)
"""Ends of paths that no provider bills for."""


def notice_unmetered() -> None:
    """Have a run know of each request that its steps send to a provider past all meters.

    Only of the clients that are imported by now; called when the first scope opens.
    """
    for module, name, method, called in _CLIENTS:
        client = getattr(sys.modules.get(module), name, None)
        send = getattr(client, method, None)
        if send is not None and not hasattr(send, MARK):
            noticing = _noticing if iscoroutinefunction(send) else _noticing_sync
            setattr(client, method, noticing(send, called))


def _noticing(send: Callable[..., Any], called: Callable[..., _Called]) -> Callable[..., Any]:
    @wraps(send)
    async def sent(*args: Any, **kwargs: Any) -> Any:
        if (own := _notice(called, args, kwargs)) is not None:
            await own.leave()
        return await send(*args, **kwargs)

    setattr(sent, MARK, True)
    return sent


def _noticing_sync(send: Callable[..., Any], called: Callable[..., _Called]) -> Callable[..., Any]:
    @wraps(send)
    def sent(*args: Any, **kwargs: Any) -> Any:
        _notice(called, args, kwargs)
        return send(*args, **kwargs)

    setattr(sent, MARK, True)
    return sent


def _notice(
    called: Callable[..., _Called], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> OwnRequest | None:
    """Note where something is posted to for no request that is booked.

    Returns:
        The request of a user's model that sends it, which is booked now; None: it is none's.
    """
    send, scope = current_send(), current_scope()
    # Prefect's client says something to its server with each step.
    is_prefects = type(args[0]).__module__.startswith("prefect.")
    if is_prefects or (send is None and scope is None):
        return None
    method, url = called(*args, **kwargs)
    if method != "POST":
        return None
    if send is not None:
        send.reached = True
        return None
    return _sender_of(url, scope)


def _sender_of(url: str, scope: DispatchScope | None) -> OwnRequest | None:
    """The request that a user's model sends to a URL; where nobody's, whoever reads the books is
    told.
    """
    asked = members_asked.get()
    own = asked if isinstance(asked, OwnRequest) else None
    if own is not None and own.goes_to(url):
        return own
    if not _is_billed(url):
        return None
    if own is None and scope is not None and submitted_by() is None:
        _warn(scope, urlsplit(url).hostname or url)
    return own


def _is_billed(url: str) -> bool:
    parts = urlsplit(url)
    if _FREE.search(parts.path):
        return False
    plain = f"{parts.scheme}://{parts.netloc}{parts.path}"
    return _is_listed(plain) or named_provider(plain) is not None


def _warn(scope: DispatchScope, host: str) -> None:
    step_id = scope.attribution.step_id
    if scope.ledger.notice(step_id, host) == 1:
        logger.warning(
            "Step %r sends requests to %s that are not in the books: ask its models through "
            "pydantic-ai or FastroAgent. The run's result counts them as `unmetered`.",
            step_id,
            host,
        )


@lru_cache(maxsize=1024)
def _is_listed(url: str) -> bool:
    return is_listed_host(url)
