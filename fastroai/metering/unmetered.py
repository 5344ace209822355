"""Notices requests to providers that no meter has seen: of SDKs that a step uses by itself."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, Final
from urllib.parse import urlsplit

from ..pricing.calculator import named_provider
from ..pricing.price_list import is_listed_host
from .batches import submits_now
from .http_attempts import current_send
from .scope import current_scope
from .sending_methods import MARK

logger = logging.getLogger("fastroai.metering")

_CLIENTS: Final = (
    ("httpx", "AsyncClient", "send"),
    ("httpx", "Client", "send"),
    ("httpx2", "AsyncClient", "send"),
    ("httpx2", "Client", "send"),
    ("botocore.httpsession", "URLLib3Session", "send"),
    ("requests", "Session", "send"),
)
"""What SDKs send with, and the method that takes the request as its first argument."""

_FREE: Final = re.compile(
    r"/(files|uploads|moderations|cancel|count_tokens|input_tokens|tokenize)$"
    r"|:(countTokens|computeTokens)$|/count-tokens(:rawPredict)?$"
)
"""Ends of paths that no provider bills for."""


def notice_unmetered() -> None:
    """Have a run know of each request that its steps send to a provider past all meters.

    Only of the clients that are imported by now; called when the first scope opens.
    """
    for module, name, method in _CLIENTS:
        client = getattr(sys.modules.get(module), name, None)
        send = getattr(client, method, None)
        if send is not None and not hasattr(send, MARK):
            setattr(client, method, _noticing(send))


def _noticing(send: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(send)
    def sent(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        if current_send() is None and request.method == "POST":
            _notice(str(request.url))
        return send(self, request, *args, **kwargs)

    setattr(sent, MARK, True)
    return sent


def _notice(url: str) -> None:
    scope = current_scope()
    if scope is None or submits_now():
        return
    parts = urlsplit(url)
    if _FREE.search(parts.path) or not _is_providers(
        f"{parts.scheme}://{parts.netloc}{parts.path}"
    ):
        return
    step_id, host = scope.attribution.step_id, parts.hostname or url
    if scope.ledger.notice(step_id, host) == 1:
        logger.warning(
            "Step %r sends requests to %s that are not in the books: ask its models through "
            "pydantic-ai or FastroAgent. The run's result counts them as `unmetered`.",
            step_id,
            host,
        )


def _is_providers(url: str) -> bool:
    return _is_listed(url) or named_provider(url) is not None


@lru_cache(maxsize=1024)
def _is_listed(url: str) -> bool:
    return is_listed_host(url)
