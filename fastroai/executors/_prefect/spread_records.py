"""Records by which a run gives items to other runs, and hears of those that failed."""

from __future__ import annotations

import builtins
import json
import re
import time
from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from typing import Any, ClassVar, Literal, Self, TypeVar
from uuid import UUID, uuid4

from pydantic import BaseModel, ConfigDict

from ...errors import CostBudgetExceededError, RemoteItemError, ResultStorageError, refusal_in
from ...ledger.entries import Attribution, LedgerEntry
from ...redaction import redact
from ...serialization.strict_json import loads_strictly
from ...storage.result_store import ITEMS, ResultStore
from .error_texts import mask_secrets

_NAME = re.compile(r"[0-9a-f]{32}-[0-9]{20}-[0-9a-f]{32}")


class SpreadRecord(BaseModel):
    """A record as JSON; fields that are plain JSON may hold text that pydantic does not encode."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    plain: ClassVar[frozenset[str]] = frozenset()

    def as_bytes(self) -> bytes:
        """The record as it is stored."""
        content = self.model_dump(mode="json", exclude=set(self.plain))
        content |= {name: getattr(self, name) for name in self.plain}
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()

    @classmethod
    def of(cls, content: bytes) -> Self:
        """
        Raises:
            ValueError: It is none.
        """
        return cls.model_validate(loads_strictly(content))


class SharedRecord(SpreadRecord):
    """What all chunks of one step of a run have in common.

    Attributes:
        flow_run: The run that waits for them.
        began: When that was created: what was booked since counts for budgets of items.
        fingerprint: Of the step's code, which must be the same where a chunk is worked on.
        attribution: Whom its requests are booked to.
        items: Under what finished items are found; `requests`: likewise what was answered.
        errors: Subject of the records of items that failed.
        dependencies: Outputs of the step's other dependencies, as their codecs write them.
        may_have_requests: Whether an earlier execution may have left answers.
    """

    plain = frozenset({"dependencies"})

    format: Literal[1] = 1
    flow_run: UUID
    began: datetime
    step_id: str
    fingerprint: str
    attribution: Attribution
    items: str
    requests: str | None
    errors: str
    dependencies: dict[str, Any]
    may_have_requests: bool


class ChunkRecord(SpreadRecord):
    """Some items, in as many keys, digests, positions and values.

    Attributes:
        shared: Name of the `SharedRecord`.
        values: As the codec of what is mapped over writes them. None: they are in the run's input,
            at their positions.
    """

    plain = frozenset({"keys", "values"})

    format: Literal[1] = 1
    shared: str
    keys: list[str]
    digests: list[str]
    positions: list[int]
    values: list[Any] | None


class _Refusal(BaseModel):
    """Of a budget; its fields are the constructor's arguments."""

    model_config = ConfigDict(from_attributes=True)

    step_id: str | None
    scope: str | None
    name: str | None
    limit: Decimal | None
    spent: Decimal | None
    held: Decimal | None
    unknown: Decimal | None
    at_limit: str
    reason: str | None
    raise_with: str | None


class FailureRecord(SpreadRecord):
    """How an item failed, and what was spent on it."""

    error_type: str
    message: str
    refusal: _Refusal | None = None
    budget: int = 0
    actual: int = 0
    entries: tuple[LedgerEntry, ...] = ()

    @classmethod
    def made_of(cls, error: BaseException, entries: tuple[LedgerEntry, ...]) -> FailureRecord:
        """Of what an item raised; secrets in its text are masked."""
        mask_secrets(error)
        refusal = refusal_in(error)
        return cls(
            error_type=type(error).__qualname__,
            message=redact(str(error)).encode(errors="replace").decode(),
            refusal=None if refusal is None else _Refusal.model_validate(refusal),
            budget=refusal.budget_microcents if refusal is not None else 0,
            actual=refusal.actual_microcents if refusal is not None else 0,
            entries=entries,
        )

    def error(self) -> Exception:
        """What the item raised: a budget's refusal and Python's own errors as they were, of others
        the text.
        """
        if self.refusal is not None:
            return CostBudgetExceededError(self.budget, self.actual, **dict(self.refusal))
        known = getattr(builtins, self.error_type, None)
        if isinstance(known, type) and issubclass(known, Exception):
            with suppress(Exception):  # it takes other arguments
                error: Exception = known(self.message)
                if str(error) == self.message:
                    return error
        return RemoteItemError(self.error_type, self.message)


RecordT = TypeVar("RecordT", bound=SpreadRecord)


async def write_record(store: ResultStore, subject: str, record: SpreadRecord) -> str:
    """Store a record beside the items; gives its name."""
    name = f"{subject}-{time.time_ns():020d}-{uuid4().hex}"
    await store.write(f"{ITEMS}/{name}", record.as_bytes(), None)
    return name


async def read_record(store: ResultStore, name: object, kind: type[RecordT]) -> RecordT:
    """A record by its name, which may come from anybody who may start a flow run: only the folder
    of items is looked into, and only a sealed record believed.

    Raises:
        ResultStorageError: There is none.
    """
    try:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError("it is no name of a record")
        return kind.of(await store.read(f"{ITEMS}/{name}"))
    except Exception as error:
        raise ResultStorageError(
            f"The items that this run is to work on can't be read from {store.described} by the "
            f"name {name!r}: {error}. Workers need the FASTROAI_RESULT_STORAGE, the "
            "FASTROAI_RESULT_SECRET and the version of the run that spreads its items."
        ) from error
