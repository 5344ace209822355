"""What a run that spreads the items of a mapped step gives to the runs that work on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from ...errors import ResultStorageError
from ...pipelines.map_state import Item
from ...pipelines.mapped import MappedStep
from ...pipelines.plan import PlannedStep
from ...serialization.canonical_json import digest
from ..session import RunSession
from ..step_codec import StepCodec
from .kept_items import KeptItems
from .spread_records import ChunkRecord, SharedRecord, SpreadRecord, write_record


@dataclass(eq=False)
class GivenRecords:
    """Records of chunks, and what all of a step have in common.

    Attributes:
        parent: The flow run that waits for the items.
        created: When that was created.
        errors: Subject of the records of items that failed.
    """

    session: RunSession
    node: PlannedStep
    kept: KeptItems
    parent: UUID
    created: datetime
    errors: str
    _shared: str | None = None
    _encoded: dict[str, Any] = field(default_factory=dict)

    @property
    def over(self) -> str:
        """What the step is mapped over."""
        assert isinstance(self.node.step, MappedStep)
        return self.node.step.over

    def problem_of(self, item: Item) -> ResultStorageError | None:
        """Why an item can't be given away; None: it can, and is encoded already."""
        if self.over not in self.session.plan.steps:
            return None  # it is in the run's input
        given_by = self.session.plan.steps[self.over]
        codec = StepCodec.of(self.over, given_by.step)
        try:
            # What an unmapped step declares is the type of the whole list.
            value = item.value if given_by.is_mapped else [item.value]
            self._encoded[item.key] = codec.encode(value)
        except ResultStorageError as error:
            problem = ResultStorageError(
                f"Item {item.key!r} of step '{self.node.step_id}' is a "
                f"{type(item.value).__qualname__}, which can't be handed to another process: step "
                f"'{self.over}' {codec.output.described}. Declare that it returns a list of a "
                "pydantic model, a dataclass or another type pydantic can read back."
            )
            problem.__cause__ = error
            return problem
        return None

    async def write(self, items: Sequence[Item]) -> str:
        """Store the record of items that have no problem; gives its name.

        Raises:
            ResultStorageError: An output that they depend on can't be handed to others.
        """
        if self._shared is None:
            self._shared = await self._written(self._shared_record())
        is_in_input = self.over not in self.session.plan.steps
        return await self._written(
            ChunkRecord(
                shared=self._shared,
                keys=[item.key for item in items],
                digests=[item.digest for item in items],
                positions=[item.position for item in items],
                values=None if is_in_input else [self._encoded.pop(item.key) for item in items],
            )
        )

    async def _written(self, record: SpreadRecord) -> str:
        # Not under the subject of the errors, whose records are read as chunks of some.
        subject = digest([self.errors, "given"])[:32]
        return await write_record(self.kept.folders[0].records.store, subject, record)

    def _shared_record(self) -> SharedRecord:
        session, requests = self.session, self.kept.requests
        dependencies = {
            step_id: StepCodec.of(step_id, session.plan.steps[step_id].step).encode(
                session.outputs[step_id]
            )
            for step_id in self.node.dependencies
            if step_id != self.over and step_id in session.outputs
        }
        return SharedRecord(
            flow_run=self.parent,
            began=self.created,
            step_id=self.node.step_id,
            fingerprint=session.plan.fingerprints[self.node.step_id],
            attribution=session.identity,
            items=self.kept.folders[0].base,
            requests=None if requests is None else requests.base,
            errors=self.errors,
            dependencies=dependencies,
            may_have_requests=requests is not None and not requests.records.is_empty,
        )
