"""Result storage of a run's steps: probed before anything is spent, flushed at the end."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from prefect.filesystems import WritableFileSystem
from pydantic import PrivateAttr

from ...errors import ResultStorageError
from ...pipelines.plan import ExecutionPlan
from ...serialization.strict_json import loads_strictly
from ...settings import FastroAISettings
from ...storage.result_store import ResultStore
from ...storage.signing import Signer
from .blocks import open_storage_choice
from .caching import digest_of_input
from .results import SERIALIZER

logger = logging.getLogger("fastroai.executors")


class StepStorage(WritableFileSystem):
    """One step's results as Prefect reads and writes them; only a record that we sealed is
    believed.

    Prefect decodes a record by the serializer that the record names, so that one that somebody
    planted could run code. Here any other is as good as missing.
    """

    _block_type_name = "fastroai step results"

    store: Any
    step_id: str
    inputs: Any = None
    """Of a run with a key: a record is of this run only if the step had read the same values.

    None: its key says so.
    """
    is_empty: bool = False
    """Whether nothing can have been written for the step yet, so that the storage is not asked."""
    _checked: bytes | None = PrivateAttr(None)

    def _resolve_path(self, path: str) -> str:
        resolved: str = self.store.objects.resolve(path)
        return resolved

    async def read_path(self, path: str) -> bytes:
        """The record at a path.

        Raises:
            FileNotFoundError: Nothing is there.
            ValueError: What is there is no record of ours.
        """
        if self.is_empty:
            raise FileNotFoundError(path)
        # Prefect reads a record once to see that it is there, and once more to use it.
        record: bytes = await self.store.read(path, twice=True)
        if record is self._checked:
            return record
        found = loads_strictly(record)
        if (
            found["metadata"]["serializer"] != {"type": SERIALIZER}
            or type(found["result"]) is not str
        ):
            raise ValueError(f"{path!r} was not written as a step's result")
        if self.inputs is not None:
            reads = loads_strictly(found["result"])["reads"]
            if any(digest_of_input(self.inputs, key) != value for key, value in reads.items()):
                raise ValueError(f"{path!r} was made of another input")
        self._checked = record
        return record

    async def has(self, key: str) -> bool:
        """Whether there is a valid record.

        Raises:
            ResultStorageError: The storage can't be asked, so that nothing may be paid for again.
        """
        try:
            await self.read_path(str(self._resolve_path(key)))
        except (FileNotFoundError, ValueError):
            return False
        except Exception as error:
            raise ResultStorageError(f"Cannot read results at {key!r}: {error}") from error
        return True

    async def write_path(self, path: str, content: bytes) -> None:
        """Write a record; one that can't be written yet waits in the process."""
        self.is_empty = False
        # Prefect writes the error of a failed task, too; no run is the poorer without it.
        is_error = json.loads(content)["result"].startswith('{"error":')
        await self.store.write(path, content, None if is_error else self.step_id)


@dataclass(eq=False)
class RunStorage(AbstractAsyncContextManager["RunStorage", None]):
    """The storages of a run's steps, to be flushed when the context ends.

    Attributes:
        by_step: Each step's own.
        not_stored: When flushed: the steps whose results could not be stored, and why.
    """

    by_step: dict[str, StepStorage]
    not_stored: dict[str, str] = field(default_factory=dict)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Who cancels a run does not want to wait.
        wait = exc_type is None or issubclass(exc_type, Exception)
        for store in {id(step.store): step.store for step in self.by_step.values()}.values():
            for step_id, cause in (await store.flush(wait=wait)).items():
                self.not_stored[step_id] = f"{store.described}: {cause}"
        if self.not_stored:
            logger.error("%s", describe_losses(self.not_stored))


def describe_losses(not_stored: Mapping[str, str]) -> str:
    """What could not be stored, why, and what that means."""
    steps = ", ".join(map(repr, not_stored))
    causes = "; ".join(dict.fromkeys(not_stored.values()))
    return (
        f"Results that could not be stored, so that another run would pay for them again: {steps} "
        f"({causes})"
    )


async def open_storage(
    plan: ExecutionPlan,
    default: Any,
    settings: FastroAISettings,
    *,
    inputs: Mapping[str, Any] | None = None,
) -> RunStorage:
    """Each step's storage, every different one probed once.

    Args:
        plan: A step's own configuration of storage wins.
        default: Where results of the others go; None: as the settings say, or else where Prefect
            puts them.
        settings: Time limits, the secret, compression.
        inputs: Of a run with a key, which may go on with another input.

    Raises:
        ResultStorageError: One of them can't be used.
    """
    if default is None:
        default = settings.result_storage
    opened: dict[Any, ResultStore] = {}
    by_step: dict[str, StepStorage] = {}
    for step_id, node in plan.steps.items():
        choice = node.config.result_storage if node.config.result_storage is not None else default
        key = choice if isinstance(choice, str) else id(choice)
        if key not in opened:
            opened[key] = await open_store(choice, settings)
            await opened[key].probe()
        by_step[step_id] = StepStorage(store=opened[key], step_id=step_id, inputs=inputs)
    return RunStorage(by_step)


async def open_store(choice: object, settings: FastroAISettings) -> ResultStore:
    """The records in a storage, which is not asked yet whether it works.

    Raises:
        ResultStorageError: It is none.
    """
    objects, described = await open_storage_choice(choice, settings)
    return ResultStore(
        objects,
        Signer.of(settings),
        retry_seconds=settings.result_retry_seconds,
        described=described,
    )


async def probe_storage(settings: FastroAISettings) -> str:
    """Write, read and delete where the settings say that results are kept; gives that place's name.

    Raises:
        ResultStorageError: One of it fails.
    """
    store = await open_store(settings.result_storage, settings)
    await store.probe()
    return store.described
