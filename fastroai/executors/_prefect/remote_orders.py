"""What goes to the process in which a task runner has a step run, and what comes back from it."""

from __future__ import annotations

import functools
import io
import pickle
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from importlib import import_module
from typing import Any

import cloudpickle  # type: ignore[import-untyped]  # it has no types

from ...budgets import Budget
from ...errors import PipelineValidationError, RemoteItemError
from ...leases.table import LeaseRequest
from ...ledger.entries import Attribution, LedgerEntry
from ...pipelines.decorators import FunctionStep
from ...pipelines.map_state import Item
from ...settings import FastroAISettings
from .run_scope import RunScope


@dataclass(frozen=True, slots=True)
class Packed:
    """A pickled value that nobody looks into on its way: neither Prefect nor a log."""

    content: bytes

    def __repr__(self) -> str:
        return f"<{len(self.content)} bytes>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """How a step that may ask models books and records its requests.

    Attributes:
        ledger_url: Where they are booked, which must be the ledger of the run.
        claims: Of the leases that the run holds.
        began: When it was created: what was booked since counts for its budgets.
        config: The pipeline's configuration, whose budgets hold, like the `further_budgets`.
        journal: Identity of the step's journal; None: nothing is recorded.
        recorded_for: The run whose stored answers may be used; None: none are stored.
        storage: Where these are, packed.
    """

    ledger_url: str
    claims: tuple[LeaseRequest, ...]
    began: datetime
    config: Packed
    further_budgets: tuple[Budget, ...]
    journal: str | None
    recorded_for: RunScope | None
    storage: Packed


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What all calls of one step have in common; code and values are packed one by one, so that
    who can't pack one can say which it is.

    Attributes:
        fingerprint: Of the step's code, where that is imported and not sent.
        over: What it is mapped over, whose elements come with the calls.
        inputs: The run's input by key; `outputs`: of the steps that it depends on.
        factory: Makes its deps.
        asking: None: it computes, and asks no model.
        host: The machine that the run is on.
    """

    step_id: str
    node: Packed
    fingerprint: str | None
    over: str | None
    inputs: Mapping[str, Packed]
    outputs: Mapping[str, Packed]
    factory: Packed
    identity: Attribution
    settings: FastroAISettings
    asking: Asking | None
    host: str = field(default_factory=socket.gethostname)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One attempt of a step, or of one of its items.

    Attributes:
        entries: What was booked to it before.
        records: What its journal knows.
    """

    attempt: int
    item: Item | None
    entries: tuple[LedgerEntry, ...]
    records: Mapping[str, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of a call.

    Attributes:
        output: None: it failed.
        is_final: Whether its error must not lead to another attempt.
        reads: Keys of the run's input that it has asked for.
        unmetered: By host, how many requests went past all meters.
    """

    output: Packed | None
    error: Packed | None
    is_final: bool
    entries: tuple[LedgerEntry, ...]
    records: Mapping[str, bytes]
    reads: frozenset[str]
    unmetered: Mapping[str, int]
    tool_calls: int
    processing_time_ms: int


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # it has no types
    def reducer_override(self, value: Any) -> Any:
        # The function below a @step is found nowhere by its own name.
        if isinstance(value, FunctionStep) and (place := place_of(value)) is not None:
            return found_at, place
        if isinstance(value, BaseException):
            return _reduced(value)
        return super().reducer_override(value)


def _reduced(error: BaseException) -> tuple[Any, ...]:
    """An error as it is where it can be sent, else its text."""
    with suppress(Exception):
        # Past what Dask registers, which takes the traceback along: most are too deep for a pickle.
        reduced: Any = error.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        make, given, *_ = unpack(pack(reduced))
        if type(make(*given)) is type(error):
            return tuple(reduced)
    return RemoteItemError, (type(error).__qualname__, str(error))


def pack(value: object) -> Packed:
    """
    Raises:
        Exception: Whatever who can't be pickled raises.
    """
    buffer = io.BytesIO()
    _Pickler(buffer, pickle.HIGHEST_PROTOCOL).dump(value)
    return Packed(buffer.getvalue())


def unpack(packed: Packed) -> Any:
    """
    Raises:
        Exception: What it is made of can't be imported here, or does not fit.
    """
    # It comes from the process that runs our code, by the connection of the task runner.
    return pickle.loads(packed.content)


def pack_for(step_id: str, what: str, value: object) -> Packed:
    """
    Raises:
        PipelineValidationError: It can't go to another process. Names it and what to do.
    """
    try:
        return pack(value)
    except Exception as error:
        raise PipelineValidationError(
            f"Step '{step_id}' can't be sent to a worker of the task runner: {what} can't be "
            f"pickled ({error}). Have live objects made by a deps factory there, or keep the step "
            "where the run is with remote=False in its StepConfig."
        ) from error


def place_of(step: object) -> tuple[str, str] | None:
    """Module and name by which other processes find a step; None: it has to be sent."""
    module, name = getattr(step, "__module__", None), getattr(step, "__qualname__", None)
    if isinstance(module, str) and isinstance(name, str) and module != "__main__":
        with suppress(ImportError, AttributeError):
            return (module, name) if found_at(module, name) is step else None
    return None


def found_at(module: str, name: str) -> Any:
    """
    Raises:
        ImportError: There is no such module here.
        AttributeError: It has nothing of this name.
    """
    return functools.reduce(getattr, name.split("."), import_module(module))
