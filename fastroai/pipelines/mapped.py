"""MappedStep: a step that is run once for each element of a list or a stream."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import (
    AsyncGenerator,
    Callable,
    Mapping,
)
from contextlib import aclosing
from functools import partial
from typing import Any, Literal, get_args
from uuid import uuid4

from ..errors import MappedStepError, ResultStorageError, is_pause
from ..metering.retries import is_permanent
from ..replay.journal import Journal
from ..retries import retry
from ..serialization.canonical_json import digest
from .base import AnyStep, BaseStep
from .config import StepConfig, retry_delay
from .context import StepContext, booked_state
from .item_outputs import ItemOutputs, MappedOutputs, MappedResults
from .item_sources import ItemSource, source_of
from .map_state import Item, ItemRecord, MapProgress, MapState, watch
from .step_state import StepState

ItemKey = Callable[[Any], Any] | str
TaskRuns = Literal["none", "each"]

MAX_CONCURRENCY = 100
KEY_CHARACTERS = 16
"""Of an item's digest, which names it where nothing else does."""
LONGEST_KEY = 200


class MappedStep(BaseStep[Any, Any]):
    """A step that is run once for each element of what another step, or the run's input, gives.

    Made by `step.map(…)`. Its output is a `MappedOutputs`, which reads as a list; with
    `max_failures`, a `MappedResults` by the item's key.

    Args:
        step: What is run for each element: it reads `context.item` and `context.item_key`.
        over: Id of the step whose output is mapped over, which is then a dependency, or else a
            field of the run's input. It gives a list or tuple, another mapped step's outputs, or an
            iterator or asynchronous iterator, which is never held as a whole.
        key: A stable name for each element: a function of it, or the name of a field. None: a
            digest of its content. Elements of equal key and content are run once.
        max_concurrency: How many items are worked on at once.
        max_failures: How many items, or as a float below 1 which share of them, may fail without
            the step. 0: the first failure ends it, and what is finished is kept.
        task_runs: `"none"`: the step is one task run. `"each"`: each item is one of its own, too.

    Raises:
        ValueError: A value that can't be meant, or a step that is mapped already.
    """

    def __init__(
        self,
        step: AnyStep,
        over: str,
        *,
        key: ItemKey | None = None,
        max_concurrency: int = MAX_CONCURRENCY,
        max_failures: float = 0,
        task_runs: TaskRuns = "none",
    ) -> None:
        self.step = step
        self.over = over
        self.key = key
        self.max_concurrency = max_concurrency
        self.max_failures = max_failures
        self.task_runs = task_runs
        _check(self)
        config = getattr(step, "config", None)
        if isinstance(config, StepConfig):
            self.config = config

    async def execute(self, context: StepContext[Any]) -> Any:
        """Run the step for each element.

        Raises:
            MappedStepError: More items failed than may.
            TypeError: There is nothing to map over.
        """
        state = await booked_state(context)
        if state.mapped is None:
            state.mapped = MapState(MapProgress(context.step_id, waits=state.books.waiting))
        shared = state.mapped
        shared.progress.began = time.monotonic()
        watch(shared.progress)
        try:
            await _Mapping(self, context, state, shared).run()
        except BaseException as error:
            shared.outputs.end(error)
            raise
        finally:
            shared.progress.has_ended = True
        shared.outputs.end()
        return self.view(shared.outputs)

    def view(self, outputs: ItemOutputs) -> MappedOutputs[Any] | MappedResults[Any]:
        """Outputs as the step's dependents see them."""
        return MappedResults(outputs) if self.max_failures else MappedOutputs(outputs)

    def allowed_failures(self, items: int) -> int:
        """How many of so many items may fail."""
        if isinstance(self.max_failures, float):
            return int(self.max_failures * items)
        return self.max_failures

    def name_of(self, value: Any, content: str) -> str:
        """An element's key, given the digest of its content.

        Raises:
            ValueError: The key is not a short text or whole number, or has control characters.
        """
        if self.key is None:
            return content[:KEY_CHARACTERS]
        named = _field(value, self.key) if isinstance(self.key, str) else self.key(value)
        if type(named) is int:
            named = str(named)
        if (
            not isinstance(named, str)
            or not named.isprintable()
            or not 0 < len(named) <= LONGEST_KEY
        ):
            raise ValueError(
                f"key={named!r:.300}: give a text of 1 to {LONGEST_KEY} printable characters, or a "
                "whole number."
            )
        return named

    def __repr__(self) -> str:
        return f"<{self.step!r} mapped over {self.over!r}>"


def _check(mapped: MappedStep) -> None:
    if isinstance(mapped.step, MappedStep):
        raise ValueError(
            "A mapped step can't be mapped again: give a second step with over= the first one's id."
        )
    for name, may_be, wanted in _OPTIONS:
        if not may_be(value := getattr(mapped, name)):
            raise ValueError(f"{name}={value!r}: give {wanted}.")


_OPTIONS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    (
        "over",
        lambda over: isinstance(over, str) and over != "",
        "a step's id or a field of the input",
    ),
    (
        "key",
        lambda key: key is None or isinstance(key, str) or callable(key),
        "a function of the element, or a field's name",
    ),
    (
        "max_concurrency",
        lambda limit: type(limit) is int and limit >= 1,
        "a whole number >= 1",
    ),
    (
        "max_failures",
        # Of the types themselves: True is no number of failures.
        lambda most: (type(most) is int and most >= 0) or (type(most) is float and 0 <= most < 1),
        "a whole number >= 0, or a share from 0.0 to below 1.0",
    ),
    ("task_runs", lambda choice: choice in get_args(TaskRuns), "'none' or 'each'"),
)
"""What the options of a mapped step may be, and what is asked for where one is not."""


def _field(value: Any, name: str) -> Any:
    try:
        return value[name] if isinstance(value, Mapping) else getattr(value, name)
    except (KeyError, AttributeError) as error:
        raise ValueError(f"key={name!r}: {type(value).__name__} has no such field.") from error


class _Mapping:
    """One execution of a mapped step."""

    def __init__(
        self,
        mapped: MappedStep,
        context: StepContext[Any],
        state: StepState,
        shared: MapState,
    ) -> None:
        self._mapped = mapped
        self._context = context
        self._state = state
        self._shared = shared
        self._outputs, self._progress = shared.outputs, shared.progress
        self._contents: dict[str, str] = {}
        self._ends_with: BaseException | None = None

    async def run(self) -> None:
        """Run all items."""
        source = source_of(self._mapped.over, self._context)
        self._progress.total = source.total
        store = self._shared.store
        if store is not None:
            await store.open()
        try:
            await self._run_all(source)
        finally:
            if store is not None:
                await store.close()
        self._outputs.arrange(source.in_order(self._outputs.order))
        self._progress.total = len(self._contents)
        self._check_failures(self._progress.total)

    async def _run_all(self, source: ItemSource) -> None:
        slots = asyncio.Semaphore(self._shared.at_once or self._mapped.max_concurrency)
        try:
            # It cancels what runs, and waits for it, as soon as one of its tasks raises.
            async with asyncio.TaskGroup() as group:
                await self._start_all(source, group, slots)
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        if self._ends_with is not None:
            raise self._ends_with

    async def _start_all(
        self, source: ItemSource, group: asyncio.TaskGroup, slots: asyncio.Semaphore
    ) -> None:
        """Begin each item once there is a slot for it, until nothing more is to be begun."""

        def release(_: asyncio.Task[None]) -> None:
            slots.release()

        try:
            async with aclosing(self._items(source)) as items:
                async for item in items:
                    await slots.acquire()
                    if self._shared.store is not None:
                        await self._shared.store.room()
                    if self._ends_with is not None:
                        return
                    self._progress.started += 1
                    task = group.create_task(self._run_item(item))
                    task.add_done_callback(release)
        except Exception as error:
            # What runs is let finish: it is paid for, and will be found.
            self._ends_with = error

    async def _items(self, source: ItemSource) -> AsyncGenerator[Item]:
        """Each distinct element."""
        order = self._outputs.order
        async with aclosing(source.elements()) as elements:
            async for given, value in elements:
                content = _content_of(value)
                key = self._key_of(given, value, content)
                known = self._contents.setdefault(key, content)
                if known != content:
                    raise ValueError(
                        f"{self._element()} has the key {key!r}, as an earlier one of other "
                        "content has. Give a key that tells them apart."
                    )
                order.append(key)
                source.note(given, key)
                if known is content:
                    yield Item(key, value, content, len(order) - 1)

    def _key_of(self, given: str | None, value: Any, content: str) -> str:
        if given is not None and self._mapped.key is None:
            return given
        try:
            return self._mapped.name_of(value, content)
        except Exception as error:
            raise ValueError(f"{self._element()} has no key: {error}") from error

    def _element(self) -> str:
        """The element that is looked at, for messages."""
        position = len(self._outputs.order)
        return f"Step '{self._context.step_id}': element {position} of '{self._mapped.over}'"

    async def _run_item(self, item: Item) -> None:
        try:
            if self._shared.around is None:
                await self._complete(item)
            else:
                await self._shared.around(item, partial(self._complete, item))
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            self._fail(item, error)  # of the step's own making
        except Exception as error:
            self._fail(item, error)

    async def _complete(self, item: Item) -> None:
        """Give an item its output: what was kept of it, or what its code makes."""
        store = self._shared.store
        state = StepState(self._state.step_id, self._state.books, item=item.key)
        found = await store.find(item) if store is not None else None
        if found is None:
            output, encoded = await self._execute(item, state)
        else:
            output, encoded = self._replay(found, state)
        self._state.add_work_of(state)
        self._outputs.add(item.key, output, encoded)
        self._progress.done += 1

    def _replay(self, found: ItemRecord, state: StepState) -> tuple[Any, bytes]:
        codec = self._shared.codec
        assert codec is not None
        output = codec.decode(found.output)
        if found.is_fresh:
            self._state.books.recorder.adopt(found.entries)
            return output, _as_json(found.output)
        if found.entries:
            self._state.books.recorder.replay(found.entries, state.next_attribution())
        self._progress.replayed += 1
        return output, _as_json(found.output)

    async def _execute(self, item: Item, state: StepState) -> tuple[Any, bytes | None]:
        config = self._context.config
        attempts, store = config.retries + 1, self._shared.store
        if store is not None:
            state.journal = store.journal_of(item)
        if state.journal is None and attempts > 1 and config.durable != "step":
            state.journal = Journal(f"{self._state.step_id}[{item.key}]")

        if attempts == 1:  # without a loop, whose memory each of a thousand that wait would hold
            output = await self._attempt(item, state, 1)
        else:
            attempt = partial(self._attempt, item, state)
            output = await retry(attempt, partial(self._delay_after, state))
        if self._shared.codec is None:
            return output, None
        return output, await self._keep(item, state, output)

    def _delay_after(self, state: StepState, error: Exception, failures: int) -> float | None:
        config = self._context.config
        if failures > config.retries or state.is_final(error) or is_permanent(error):
            return None
        return retry_delay(config, failures)

    async def _attempt(self, item: Item, state: StepState, attempt: int) -> Any:
        state.begin_attempt(attempt)
        config = self._context.config
        of_item = self._context.for_item(item, state, self._mapped.over)
        with state.scope_of():
            if not config.timeout:
                return await self._mapped.step.execute(of_item)
            async with state.in_time(config):
                return await self._mapped.step.execute(of_item)

    async def _keep(self, item: Item, state: StepState, output: Any) -> bytes | None:
        """Have an item's output kept; in JSON.

        Raises:
            ResultStorageError: It can't be stored, and the step's configuration asks for it.
        """
        codec, store = self._shared.codec, self._shared.store
        assert codec is not None
        try:
            stored = codec.encode(output)
        except ResultStorageError:
            if store is not None and self._context.config.persist_result:
                raise
            return None
        if store is not None:
            entries = state.entries
            if entries:
                # What a record says was paid must not be unknown to the ledger after a crash.
                await self._state.books.recorder.flush()
            reads = {name: store.read_digest(name) for name in sorted(state.reads)}
            record = ItemRecord(output=stored, entries=entries, reads=reads, attempts=state.attempt)
            await store.keep(item, record)
        return _as_json(stored)

    def _fail(self, item: Item, error: BaseException) -> None:
        self._outputs.fail(item.key, error)
        self._progress.failed += 1
        if is_pause(error):
            # What runs is let finish: cancelled, it would be paid for now and once more later.
            self._ends_with = self._ends_with or self._failed(error)
            return
        if self._progress.total is not None:
            self._check_failures(self._progress.total)
        elif not isinstance(self._mapped.max_failures, float):
            self._check_failures(0)

    def _check_failures(self, total: int) -> None:
        """
        Raises:
            MappedStepError: More items failed than may.
        """
        if self._progress.failed > self._mapped.allowed_failures(total):
            raise self._failed(next(iter(self._outputs.errors.values())))

    def _failed(self, first: BaseException) -> MappedStepError:
        errors = dict(self._outputs.errors)
        return MappedStepError(self._state.step_id, first, errors, self._mapped.max_failures)


def _content_of(value: Any) -> str:
    try:
        return digest(value)
    except (TypeError, ValueError, RecursionError):
        return f"unidentified-{uuid4()}"


def _as_json(stored: Any) -> bytes:
    return json.dumps(stored, separators=(",", ":")).encode()
