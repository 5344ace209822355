"""How far a mapped step is, as one progress artifact that moves while it runs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from uuid import UUID

import anyio
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate

from ...ledger.recorder import RequestRecorder
from ...pipelines.map_state import MapProgress
from ...redaction import redact
from .artifacts import ArtifactWriter, plain_usd
from .step_task import StepTask

logger = logging.getLogger("fastroai.executors")

SECONDS = 2.0
"""Between two looks at how far the step is."""


@dataclass(eq=False)
class ProgressArtifact:
    """One artifact of type `progress`: created once, then changed.

    It never fails a run, and holds none up for longer than the time for an artifact.
    """

    artifacts: ArtifactWriter
    key: str
    progress: MapProgress
    recorder: RequestRecorder
    flow_run_id: UUID
    step: StepTask
    _id: UUID | None = None
    _shown: str = ""

    @asynccontextmanager
    async def followed(self) -> AsyncIterator[None]:
        """Show the progress while this is open, and where it ended."""
        following = asyncio.create_task(self._follow(), name="fastroai-progress")
        try:
            yield
        finally:
            following.cancel()
            await asyncio.wait({following})
            with anyio.move_on_after(self.artifacts.timeout, shield=True):
                await self._show()

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(SECONDS)
            await self._show()

    async def _show(self) -> None:
        description = self._description()
        if description == self._shown:
            return
        percent = round((self.progress.share or 0.0) * 100, 1)
        client = self.artifacts.client
        try:
            if self._id is None:
                artifact = await client.create_artifact(
                    ArtifactCreate(
                        key=self.key,
                        type="progress",
                        description=description,
                        data=percent,
                        flow_run_id=self.flow_run_id,
                        task_run_id=self.step.task_run_id,
                    )
                )
                self._id = artifact.id
            else:
                change = ArtifactUpdate(data=percent, description=description)
                await client.update_artifact(self._id, change)
            self._shown = description
        except Exception as error:
            message = redact(repr(error))
            logger.debug("The progress of %r could not be shown: %s", self.key, message)

    def _description(self) -> str:
        progress, step_id = self.progress, self.progress.step_id
        parts = [f"**{step_id}**: {progress.in_words()}"]
        if spent := self.recorder.spent_usd(step_id):
            parts.append(f"${plain_usd(spent)}")
        if left := progress.left_in_words(time.monotonic()):
            parts.append(left)
        return " · ".join(parts)
