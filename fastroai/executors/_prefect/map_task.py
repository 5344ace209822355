"""A mapped step of a run as one Prefect task, whose items are records beside the results."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from prefect import Task
from prefect.cache_policies import NO_CACHE, CachePolicy
from prefect.client.schemas.objects import State
from prefect.transactions import BaseTransaction

from ...errors import PipelineValidationError
from ...pipelines.config import StepConfig, expiration
from ...pipelines.map_state import Item, MapState
from ...pipelines.mapped import MappedStep
from ...pipelines.plan import PlannedStep
from ...replay.chunked_records import GATHERING_SECONDS, ChunkedRecords
from ...serialization.canonical_json import digest
from ...settings import CachePolicyName
from ..protocol import StepRecord
from .caching import StepIdentity, digest_or_unique, former_identities
from .kept_items import ItemsOf, KeptItems, place_of
from .results import StoredStep
from .run_scope import active_flow_run
from .run_storage import StepStorage
from .step_task import FIELD_OF_OPTION, RunOfTasks, StepTask, literal_name

OF_ITEMS = FIELD_OF_OPTION | {"timeout_seconds": "timeout"}
"""Options of `prefect.task` that hold for each item, and which field of its configuration says the
same.
"""
ITEM_SECONDS = 0.2
"""For how long finished items are gathered whose answers are recorded."""


def gathering_seconds(records_requests: bool) -> float:
    """For how long finished items are gathered."""
    # What is answered is recorded already: to lose an item costs its code, and no request.
    return ITEM_SECONDS if records_requests else GATHERING_SECONDS


class MapTask(StepTask):
    """A mapped step of one run: its task is run always, and finds out what is to be done of it.

    Attributes:
        spread: Has its items worked on by other runs; None: they are not.
    """

    spread: Callable[[MapTask, MapState, KeptItems], None] | None = None

    def __init__(
        self, run: RunOfTasks, node: PlannedStep, storage: StepStorage, records_requests: bool
    ) -> None:
        defaults = run.defaults
        whole = {option: value for option, value in defaults.items() if option not in OF_ITEMS}
        of_items = node._replace(config=with_options(node.config, defaults))
        super().__init__(replace(run, defaults=whole), of_items, storage, False)
        self._records_requests_of_items = records_requests

    async def execute(self, identity: dict[str, Any]) -> StoredStep | State[Any] | None:
        """See `StepTask.execute`."""
        try:
            self._prepare()
        except BaseException as error:
            self.error = error
            # What is mapped over it waits already.
            self.session.map_state(self.node.step_id).outputs.end(error)
            raise
        return await super().execute(identity)

    def _prepare(self) -> None:
        """Have the step find its finished items, and keep those that it finishes."""
        assert isinstance(self.node.step, MappedStep)
        shared = self.session.map_state(self.node.step_id)
        if self.node.step.task_runs == "each":
            shared.around = self._as_task_run
        policy = self._policy()
        if policy == "off" or self.node.config.persist_result is False:
            return
        scope, store, step_id = self.scope, self.storage.store, self.node.step_id
        flow_run = active_flow_run()
        run = scope.text if policy == "run" else None
        is_empty = policy == "run" and not scope.may_have_results
        gathering = gathering_seconds(self._records_requests_of_items)
        folders = []
        for identity in self._identities():
            base = digest([identity, run])
            records = ChunkedRecords(store, base[:32], step_id, is_empty, gathering)
            folders.append(ItemsOf(base, records))
        requests = None
        if self._records_requests_of_items:
            base = digest([scope.text, self.session.name, step_id, self.node.config.cache_scope])
            records = ChunkedRecords(store, base[:32], is_empty=not scope.may_have_results)
            requests = ItemsOf(base, records)
        kept = shared.store = KeptItems(
            folders,
            requests,
            inputs=self.session.inputs,
            source=self._source,
            expiration=expiration(self.node.config),
            place=place_of(store, flow_run.id, step_id) if flow_run is not None else None,
        )
        if self.spread is not None:
            self.spread(self, shared, kept)

    async def _as_task_run(self, item: Item, run: Callable[[], Awaitable[None]]) -> None:
        """Run an item as a task run of its own, which shows where it is and how it ended."""
        failures: list[BaseException] = []

        async def run_item() -> None:
            try:
                await run()
            except BaseException as error:
                failures.append(error)
                raise

        task: Any = Task(
            run_item,
            name=self.node.step_id,
            task_run_name=literal_name(f"{self.node.step_id}[{item.key}]"),
            cache_policy=NO_CACHE,
            persist_result=False,
        )
        # Prefect would roll back all items of the step's transaction with the one that failed. This
        # runs in a context of its own.
        active: Any = BaseTransaction.__var__
        active.set(None)
        state = await task(return_state=True)
        if failures:
            raise failures[0]
        if not state.is_completed():
            raise RuntimeError(f"Prefect ended the task of item {item.key!r} as {state!r}")

    def stored_form(self, record: StepRecord) -> tuple[dict[str, Any], str]:
        """See `StepTask.stored_form`: nothing is stored but its items."""
        outputs = self.session.map_state(self.node.step_id).outputs
        return {}, outputs.digest() or digest_or_unique(object())

    def _policy(self) -> CachePolicyName:
        """
        Raises:
            PipelineValidationError: It is one of Prefect's, which knows no items.
        """
        choice = self.node.config.cache_policy
        if isinstance(choice, CachePolicy):
            raise PipelineValidationError(
                f"Step '{self.node.step_id}' has cache_policy={choice!r}: the items of a mapped "
                "step are reused by 'run' or 'inputs', or not with 'off'."
            )
        policy: CachePolicyName = choice or self.session.settings.cache_policy
        return policy

    def _identities(self) -> list[dict[str, Any]]:
        """What all items of the step have in common: as it is now, and by its former names."""
        assert self.identity is not None
        known = [self.identity, *former_identities(self.identity, self.session.plan)]
        return [self._of_items(identity) for identity in known]

    def _of_items(self, identity: StepIdentity) -> dict[str, Any]:
        # Each item has its own content; what else it has read of the input, its record says.
        fields = dict(vars(identity)) | {"inputs": "as read"}
        over = self._over()
        source = self.session.plan.steps.get(over)
        left_out = (over, None if source is None else source.config.formerly)
        fields["dependencies"] = {
            step_id: text
            for step_id, text in identity.dependencies.items()
            if step_id not in left_out
        }
        return fields

    def _over(self) -> str:
        assert isinstance(self.node.step, MappedStep)
        return self.node.step.over

    def _source(self) -> Any:
        """All that is mapped over."""
        outputs, over = self.session.outputs, self._over()
        if over in outputs:
            return outputs[over]
        # What is still to come can't be told from anything else.
        return object() if self.node.streams_from is not None else self.session.inputs.get(over)


def with_options(config: StepConfig, options: Mapping[str, Any]) -> StepConfig:
    """A step's configuration with the executor's options of tasks where it gives none itself."""
    given: set[str] = config.__dict__.get("_given", set())
    changes: dict[str, Any] = {}
    for option, name in OF_ITEMS.items():
        if option in options and name not in given:
            changes[name] = options[option]
    if isinstance(changes.get("retry_delay"), int | float):
        changes["retry_delay"] = [changes["retry_delay"]]  # Prefect doubles none
    return replace(config, **changes)
