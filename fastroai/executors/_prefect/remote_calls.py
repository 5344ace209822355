"""Calls of one step, as a run hands them to its task runner and waits for what comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any

import anyio.to_thread
from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext, TaskRunContext
from prefect.results import ResultStore

from ...errors import FastroAIError, RemoteItemError
from .error_texts import mask_secrets
from .remote_orders import Answer, Packed, unpack
from .remote_work import bare_flow, work_on
from .step_task import literal_name

LINGER = 0.03
"""Seconds that an item waits for others to be sent with it."""
MOST_ITEMS = 25
"""How many items go as one task run: enough for its cost to be small beside theirs."""


@dataclass(eq=False)
class RemoteCalls:
    """Hands calls of one step to the task runner of a flow run.

    Attributes:
        flow: The flow run.
        submitting: Held meanwhile: a runner starts its cluster when it is first given something.
        gathers: Whether several calls go together.
    """

    step_id: str
    flow: FlowRunContext
    submitting: asyncio.Lock
    gathers: bool
    _waiting: list[tuple[Packed, asyncio.Future[Packed]]] = field(default_factory=list)
    _order: Packed | None = None
    _lingering: asyncio.TimerHandle | None = None
    _carrying: set[asyncio.Task[None]] = field(default_factory=set)

    async def send(self, order: Packed, call: Packed) -> Answer:
        """Have a call worked on, and give what came of it.

        Raises:
            RemoteItemError: Nobody could work on it.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Packed] = loop.create_future()
        self._order = order
        self._waiting.append((call, answer))
        if not self.gathers or len(self._waiting) >= MOST_ITEMS:
            self._carry()
        elif self._lingering is None:
            self._lingering = loop.call_later(LINGER, self._carry)
        found: Answer = unpack(await answer)
        return found

    def _carry(self) -> None:
        """Send what has gathered."""
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None
        together, self._waiting = self._waiting, []
        task = asyncio.create_task(self._carried(together), name="fastroai-remote")
        self._carrying.add(task)
        task.add_done_callback(self._carrying.discard)

        def given_up(_: asyncio.Future[Packed]) -> None:
            if all(answer.done() for _, answer in together):
                task.cancel()

        for _, answer in together:
            answer.add_done_callback(given_up)

    async def _carried(self, together: list[tuple[Packed, asyncio.Future[Packed]]]) -> None:
        try:
            answers = await self._worked_on([call for call, _ in together])
        except Exception as error:
            for _, answer in together:
                if not answer.done():
                    answer.set_exception(error)
            return
        for (_, answer), content in zip(together, answers, strict=True):
            if not answer.done():
                answer.set_result(content)

    async def _worked_on(self, calls: list[Packed]) -> list[Packed]:
        """
        Raises:
            PipelineValidationError: The worker has other code, or not the run's ledger.
            RemoteItemError: The task run did not end well: its worker died, or the code is not
                there.
        """
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        async with self.submitting:
            submit = self._submitting({"order": self._order, "calls": calls})
            future: Any = await anyio.to_thread.run_sync(copy_context().run, submit)
        try:
            future.add_done_callback(lambda _: loop.call_soon_threadsafe(ended.set))
            await ended.wait()
            answers: list[Packed] = await anyio.to_thread.run_sync(future.result)
        except asyncio.CancelledError:
            with suppress(Exception):  # what has begun goes on, and asks nothing more
                future.wrapped_future.cancel()
            raise
        except FastroAIError:
            raise
        except Exception as error:
            mask_secrets(error)
            raise RemoteItemError(
                type(error).__name__,
                f"{error} (a worker of the task runner had step '{self.step_id}' and was lost, or "
                "does not have this version of the code and its packages)",
            ) from error
        return answers

    def _submitting(self, parameters: dict[str, Any]) -> Callable[[], Any]:
        task = Task(
            work_on,
            name=f"{self.step_id} (worker)",
            task_run_name=literal_name(f"{self.step_id} (worker)"),
            cache_policy=NO_CACHE,
            persist_result=False,
            retries=0,
        )
        # The flow and the task that are active here hold a run's live objects, and go with it.
        update = {
            "flow": bare_flow,
            "parameters": {},
            "result_store": ResultStore(cache_result_in_memory=True),
        }
        flow = self.flow.model_copy(update=update)

        def submit() -> Any:
            active: Any = TaskRunContext.__var__
            active.set(None)
            with flow:
                return self.flow.task_runner.submit(task, parameters)

        return submit
