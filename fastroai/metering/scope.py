"""The books of the running code's requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass, field

from ..ledger.entries import Attribution
from ..ledger.recorder import RequestRecorder
from ..ledger.store import configured_store
from ..pricing.price_file import with_readable_prices
from ..rate_limits import limit_requests
from ..replay.journal import Journal

UNATTRIBUTED = Attribution()


@dataclass(slots=True, eq=False)
class DispatchScope:
    """Where the requests of agent calls are booked: of all that are made inside its `with` block,
    nested and failed ones too.

    Args:
        attribution: To whom, or what says so when it is first asked: most steps send nothing.

    Attributes:
        journal: Where answers are recorded for further attempts; None: nowhere.
        run: The `RunBooks` that the ledger is of, for a `StepContext` made by hand; None: of no
            run.
    """

    ledger: RequestRecorder
    _attribution: Attribution | Callable[[], Attribution] = UNATTRIBUTED
    journal: Journal | None = None
    run: object | None = None
    _token: Token[DispatchScope | CarriedScope | None] | None = field(default=None, init=False)

    # Not a generator: every step of a pipeline opens one.
    def __enter__(self) -> DispatchScope:
        if not _installed:
            # Only here: it replaces methods of others, and imports what imports this module.
            from .instrumentation import install

            _installed.append(install())
        self._token = _scope.set(self)
        return self

    def __exit__(self, *exc_info: object) -> None:
        assert self._token is not None, "entered before"
        _scope.reset(self._token)

    @property
    def attribution(self) -> Attribution:
        """To whom they are booked."""
        if not isinstance(self._attribution, Attribution):
            self._attribution = self._attribution()
        return self._attribution


@dataclass(frozen=True, slots=True)
class CarriedScope:
    """The scope in which a thread was started, for as long as its run goes on.

    A thread that outlives the run may serve another one: what it sends then belongs to no run.
    """

    origin: DispatchScope

    def scope(self) -> DispatchScope:
        """Where what the thread sends now is booked."""
        if getattr(self.origin.run, "is_over", False):
            return DispatchScope(self.origin.ledger.outside_of_run(), UNATTRIBUTED)
        return self.origin


# Ambient, because the code between a run and its requests is the user's: it calls agents by itself.
_scope: ContextVar[DispatchScope | CarriedScope | None] = ContextVar(
    "fastroai_dispatch_scope", default=None
)


_installed: list[bool] = []
"""Whether what a step sends by itself is booked; empty until the first scope opens. Of the process,
as the methods of pydantic-ai and of threads that are replaced for it.
"""


def current_scope() -> DispatchScope | None:
    """The innermost scope of the running task, or None outside of any."""
    scope = _scope.get()
    return scope.scope() if isinstance(scope, CarriedScope) else scope


@contextmanager
def carried(scope: CarriedScope | None) -> Iterator[None]:
    """Book what this thread sends meanwhile as the thread does that hands it the work."""
    token = _scope.set(scope)
    try:
        yield
    finally:
        _scope.reset(token)


async def scope_outside_of_runs() -> DispatchScope:
    """Where an agent that is called by itself is booked: in the ledger of `FASTROAI_LEDGER_URL`, if
    that is set, as the settings are now: such a call is an entry of its own.

    Raises:
        LedgerUnavailableError: It can't be used, and must be.
        SettingsError: A variable has a value it may not have, or `FASTROAI_PRICES` can't be read.
    """
    from ..settings import load_settings  # only here: pydantic-settings takes its time to import

    settings = with_readable_prices(load_settings())
    recorder = RequestRecorder(
        await configured_store(settings), refuses_unpriced=settings.unpriced == "fail"
    )
    limit_requests(settings, recorder.ledger_url)
    return DispatchScope(recorder, UNATTRIBUTED)
