"""Cache keys: when a stored step result may be used instead of running the step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal
from uuid import uuid4

from prefect.cache_policies import NO_CACHE, CachePolicy
from prefect.context import FlowRunContext, TaskRunContext

from ...errors import PipelineValidationError
from ...pipelines.canonical import digest

Scope = Literal["run", "inputs"]


@dataclass(frozen=True, slots=True)
class StepIdentity:
    """What tells one execution of a step from another; every part of it is in the cache key.

    It is also the only parameter of a step's task, so that Prefect's own policies (`INPUTS`, …) key on the same.

    Attributes:
        pipeline: Two pipelines may have steps of the same name.
        step_id: Tasks of one factory share their source, so Prefect can't tell them apart.
        fingerprint: Another prompt, model or code gives another answer.
        inputs: Digest of the run's input; every step may read all of it.
        dependencies: Digests of the outputs the step can read, by step id.
    """

    pipeline: str
    step_id: str
    fingerprint: str
    inputs: str
    dependencies: dict[str, str]

    def as_parameter(self) -> dict[str, Any]:
        """Plain JSON, which hashes the same everywhere."""
        return {
            "pipeline": self.pipeline,
            "step_id": self.step_id,
            "fingerprint": self.fingerprint,
            "inputs": self.inputs,
            "dependencies": self.dependencies,
        }


def digest_or_unique(value: Any) -> str:
    """A value's digest, or for one that has none a text that is never seen again, so that it never hits."""
    try:
        return digest(value)
    except (TypeError, ValueError):
        return f"unidentified-{uuid4()}"


@dataclass
class StepCachePolicy(CachePolicy):
    """Reuses a step's result for the same identity: everywhere, or within the run and its retries."""

    scope: Scope = "run"

    def compute_key(
        self, task_ctx: TaskRunContext, inputs: dict[str, Any], flow_parameters: dict[str, Any], **kwargs: Any
    ) -> str | None:
        """SHA-256 over the identity and, within a run, what stays the same when the run is tried again."""
        key = {"format": 1, "identity": inputs["identity"]}
        if self.scope == "run":
            key["run"] = run_scope()
        return digest(key)


_run_key: ContextVar[str | None] = ContextVar("fastroai_run_key", default=None)


@contextmanager
def run_keyed(run_key: str | None) -> Iterator[None]:
    """Have the results of this run found again by the key that its caller gave it, if any."""
    token = _run_key.set(run_key)
    try:
        yield
    finally:
        _run_key.reset(token)


def run_scope() -> str:
    """What the executions of one run have in common.

    The key that the caller gave it, in any flow run. Without one: a retried flow run keeps its id. A subflow gets a new
    one when its parent is tried again, but the task run that stands for it in the parent stays the same.
    """
    run_key = _run_key.get()
    if run_key is not None:
        return f"key:{run_key}"
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return str(uuid4())
    return str(context.flow_run.parent_task_run_id or context.flow_run.id)


def resolve_cache_policy(choice: Any) -> CachePolicy:
    """The policy for `StepConfig.cache_policy`.

    Raises:
        PipelineValidationError: It is neither one of the three names nor a Prefect `CachePolicy`.
    """
    if choice is None or choice == "run":
        return StepCachePolicy(scope="run")
    if isinstance(choice, CachePolicy):
        return choice
    if choice == "inputs":
        return StepCachePolicy(scope="inputs")
    if choice == "off":
        return NO_CACHE
    raise PipelineValidationError(
        f"cache_policy={choice!r} is unknown: give 'run', 'inputs', 'off' or a Prefect CachePolicy."
    )
