"""The books of the running code's requests."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from ..ledger.entries import Attribution
from ..ledger.recorder import RequestRecorder
from ..ledger.store import configured_store
from ..replay.journal import Journal

UNATTRIBUTED = Attribution()


@dataclass(frozen=True, slots=True)
class DispatchScope:
    """Where the requests of agent calls are booked."""

    ledger: RequestRecorder
    attribution: Attribution
    journal: Journal | None = None
    """Where answers are recorded for further attempts; None: nowhere."""
    run: object | None = None
    """The `RunBooks` that the ledger is of, for a `StepContext` made by hand; None: of no run."""


# Ambient, because the code between a run and its requests is the user's: it calls agents by itself.
_scope: ContextVar[DispatchScope | None] = ContextVar("fastroai_dispatch_scope", default=None)


_booked_agents: list[bool] = []
"""Whether agents that a step runs by itself are booked; empty until the first scope opens. Of the
process, as the method of pydantic-ai that is replaced for it.
"""


class dispatch_scope:  # noqa: N801  # used like a function: `with dispatch_scope(ledger):`
    """Book every request of the agent calls made inside the block, nested and failed ones too, to a
    ledger.
    """

    # Not a generator: every step of a pipeline opens one.
    __slots__ = ("_scope", "_token")

    def __init__(
        self,
        ledger: RequestRecorder,
        attribution: Attribution = UNATTRIBUTED,
        journal: Journal | None = None,
        run: object | None = None,
    ) -> None:
        self._scope = DispatchScope(ledger, attribution, journal, run)

    def __enter__(self) -> DispatchScope:
        if not _booked_agents:
            # Only here: it replaces a method of pydantic-ai, and imports what imports this module.
            from .instrumentation import book_all_agents

            _booked_agents.append(book_all_agents())
        self._token = _scope.set(self._scope)
        return self._scope

    def __exit__(self, *exc_info: object) -> None:
        _scope.reset(self._token)


def current_scope() -> DispatchScope | None:
    """The innermost scope of the running task, or None outside of any."""
    return _scope.get()


async def scope_outside_of_runs() -> DispatchScope:
    """Where an agent that is called by itself is booked: in the ledger of `FASTROAI_LEDGER_URL`, if
    that is set, as the settings are now: such a call is an entry of its own.

    Raises:
        LedgerUnavailableError: It can't be used, and must be.
        SettingsError: A variable has a value it may not have.
    """
    from ..settings import load_settings  # only here: pydantic-settings takes its time to import

    settings = load_settings()
    recorder = RequestRecorder(
        await configured_store(settings), refuses_unpriced=settings.unpriced == "fail"
    )
    return DispatchScope(recorder, UNATTRIBUTED)
