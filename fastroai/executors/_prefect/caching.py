"""Cache keys: decide when a stored result is used instead of running the step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any
from uuid import uuid4

from prefect.cache_policies import NO_CACHE, CachePolicy
from prefect.context import TaskRunContext

from ...errors import PipelineValidationError
from ...pipelines.plan import ExecutionPlan
from ...serialization.canonical_json import digest
from ...settings import CachePolicyName
from .run_scope import UNIDENTIFIED, RunScope

KEY_FORMAT = 2
"""Raised whenever what a key is made of changes, so that keys of older versions are never met by
accident.
"""


@dataclass(frozen=True)
class StepIdentity:
    """What tells one execution of a step from another, whenever and wherever it is run.

    Its fields are also the only parameter of a step's task, so that Prefect's own policies
    (`INPUTS`, …) key on the same. They are plain JSON, which hashes the same everywhere.

    Attributes:
        pipeline: Two pipelines may have steps of the same name.
        step_id: Tasks of one factory share their source, so Prefect can't tell them apart.
        fingerprint: Another prompt, model, tool, output type or code gives another answer.
        inputs: Digest of the run's input; every step may read all of it. Under a run key it does
            not count as a whole, but each value of it that the step had read.
        dependencies: Digests of the outputs the step can read, by step id: what a step made of them
            depends on them.
        scope: `cache_scope`; tells apart what live deps decide (a tenant's database), which are
            never part of a key.
    """

    pipeline: str
    step_id: str
    fingerprint: str
    inputs: str
    dependencies: dict[str, str]
    scope: str | None = None


@dataclass(frozen=True)
class CacheKey:
    """Under what a step's result is stored; every field is in the digest.

    Attributes:
        identity: Fields of a `StepIdentity`: the same step of the same input gives the same result.
        run: With `"run"`, what the executions of one run have in common, so that another run does
            not reuse the result; None with `"inputs"`.
        format: What a digest is made of, so that a version that makes it of something else does not
            meet older ones.
    """

    identity: dict[str, Any]
    run: str | None
    format: int = KEY_FORMAT

    def digest(self) -> str:
        """SHA-256 of all fields as canonical JSON, in hex."""
        return digest(vars(self))


def former_identities(identity: StepIdentity, plan: ExecutionPlan) -> Iterator[StepIdentity]:
    """What an execution was before its pipeline, its step or those it depends on were renamed."""
    names = {id_: node.config.formerly or id_ for id_, node in plan.steps.items()}
    former = dataclasses.replace(
        identity,
        step_id=names[identity.step_id],
        dependencies={names[id_]: value for id_, value in identity.dependencies.items()},
    )
    pipelines = dict.fromkeys((identity.pipeline, plan.config.formerly or identity.pipeline))
    for pipeline, named in product(pipelines, (identity, former)):
        candidate = dataclasses.replace(named, pipeline=pipeline)
        if candidate != identity:
            yield candidate


def digest_of_input(inputs: Mapping[str, Any], key: str) -> str:
    """What tells one value of a run's input from another."""
    return digest_or_unique(inputs[key]) if key in inputs else "absent"


def digest_or_unique(value: Any) -> str:
    """A value's digest, or for one that has none a text that is never seen again, so that it never
    hits.
    """
    try:
        return digest(value)
    except (TypeError, ValueError, RecursionError):
        return f"{UNIDENTIFIED}{uuid4()}"


@dataclass
class StepCachePolicy(CachePolicy):
    """Reuses one step's result for the same identity: within a run and its retries, or
    everywhere.
    """

    run: RunScope | None = None
    """None: everywhere."""
    found_under: str | None = None
    """The key of an earlier name under which the step's result is stored."""

    def compute_key(
        self,
        task_ctx: TaskRunContext,
        inputs: dict[str, Any],
        flow_parameters: dict[str, Any],
        **kwargs: Any,
    ) -> str | None:
        """The digest of the step's `CacheKey`."""
        return self.found_under or self.key_of(inputs["identity"]).digest()

    def key_of(self, identity: dict[str, Any]) -> CacheKey:
        """Under what the result of an execution is stored."""
        if self.run is None:
            return CacheKey(identity, None)
        if self.run.is_keyed:
            # The same piece of work may go on with another input: the record says which values the
            # step had read.
            identity = identity | {"inputs": "as read"}
        return CacheKey(identity, self.run.text)


def resolve_cache_policy(choice: Any, default: CachePolicyName, run: RunScope) -> CachePolicy:
    """The policy for `StepConfig.cache_policy` in a run; None is the default.

    Raises:
        PipelineValidationError: It is neither one of the three names nor a Prefect `CachePolicy`.
    """
    if isinstance(choice, CachePolicy):
        return choice
    name = default if choice is None else choice
    if name == "off":
        return NO_CACHE
    if name in ("run", "inputs"):
        return StepCachePolicy(run=run if name == "run" else None)
    raise PipelineValidationError(
        f"cache_policy={choice!r} is unknown: give 'run', 'inputs', 'off' or a Prefect CachePolicy."
    )
