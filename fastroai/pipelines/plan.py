"""ExecutionPlan: a pipeline checked, ordered, with every step's configuration resolved.

Pure, O(steps + edges).
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from itertools import filterfalse
from typing import NamedTuple

from ..budgets import Budget
from ..errors import PipelineValidationError
from .base import AnyStep
from .config import PipelineConfig, StepConfig, budgets_of, check_config, resolve_config
from .mapped import MappedStep

SHOWN_OF_A_CYCLE = 5
"""Steps of a long cycle that its message names, at either end."""


class PlannedStep(NamedTuple):
    """One node of a plan; a tuple, which is made sooner than a frozen dataclass.

    Attributes:
        config: How the step's code is run: of a mapped step, for each item.
        whole: How the step is run as one unit: a mapped one once, and without limits of its own.
        is_mapped: Whether it is a mapped step.
        streams_from: The mapped step whose outputs it is mapped over, one by one.
    """

    step_id: str
    step: AnyStep
    dependencies: tuple[str, ...]
    config: StepConfig
    whole: StepConfig
    is_mapped: bool = False
    streams_from: str | None = None


@dataclass(frozen=True)
class ExecutionPlan:
    """A validated, immutable plan.

    Attributes:
        steps: Nodes by step id, every step behind those it depends on.
        dependents: For each step id, the ids of the steps that depend on it.
        config: The pipeline's configuration.
        further_budgets: Of the run, besides those of the configuration.
    """

    steps: Mapping[str, PlannedStep]
    dependents: Mapping[str, tuple[str, ...]]
    config: PipelineConfig
    further_budgets: tuple[Budget, ...] = ()

    @cached_property
    def budgets(self) -> tuple[tuple[Budget, ...], Mapping[str, tuple[Budget, ...]]]:
        """Those of the run, and of its steps that have some of their own."""
        run = (*budgets_of(self.config), *self.further_budgets)
        steps: dict[str, tuple[Budget, ...]] = {}
        for step_id, node in self.steps.items():
            # What a step inherits is the run's.
            if own := tuple(budget for budget in budgets_of(node.config) if budget not in run):
                steps[step_id] = own
        return run, steps

    def with_budget(self, budget: Budget) -> ExecutionPlan:
        """The same plan with one more budget of the run."""
        return replace(self, further_budgets=(*self.further_budgets, budget))

    @cached_property
    def shape(self) -> str:
        """A text that is the same for all pipelines with steps of these ids."""
        return shape_of(self.steps)

    @property
    def terminal_steps(self) -> tuple[str, ...]:
        """The steps nothing depends on."""
        return tuple(step_id for step_id in self.steps if not self.dependents[step_id])

    @cached_property
    def fingerprints(self) -> Mapping[str, str]:
        """The identity of each step's code, taken once: what a step keeps on itself later is no
        part of it.
        """
        # only here: who caches nothing has no use for it
        from ..fingerprint.steps import fingerprint

        return {step_id: fingerprint(node.step) for step_id, node in self.steps.items()}

    @cached_property
    def version(self) -> str:
        """A text that changes with the code, the prompts and the shape of the pipeline."""
        from ..serialization.canonical_json import digest  # only here: as for the fingerprints

        parts = {
            step_id: [self.fingerprints[step_id], *node.dependencies]
            for step_id, node in self.steps.items()
        }
        return digest(parts)[:16]

    @cached_property
    def has_maps(self) -> bool:
        """Whether one of its steps is mapped."""
        return any(node.is_mapped for node in self.steps.values())

    @cached_property
    def is_renamed(self) -> bool:
        """Whether the pipeline or one of its steps had another name before."""
        formerly = [self.config.formerly, *(node.config.formerly for node in self.steps.values())]
        return any(formerly)

    @classmethod
    def build(
        cls,
        steps: Mapping[str, AnyStep],
        dependencies: Mapping[str, Sequence[str]] | None = None,
        config: PipelineConfig | None = None,
        step_configs: Mapping[str, StepConfig] | None = None,
    ) -> ExecutionPlan:
        """Check and order a pipeline.

        Raises:
            PipelineValidationError: No steps, something of the wrong type, an unknown step id, or a
                dependency cycle, which the message names.
        """
        _check_steps(steps)
        edges = _checked_dependencies(steps, dependencies if dependencies is not None else {})
        step_configs = step_configs if step_configs is not None else {}
        _check_config(config)
        _check_step_configs(steps, step_configs)
        inherited = resolve_config(config)
        planned, dependents = {}, _dependents(edges)
        for step_id in _ordered(edges, dependents):
            own = _own_configs(steps[step_id], step_configs.get(step_id))
            resolved = _resolved(step_id, steps, (config, *own)) if own else inherited
            planned[step_id] = _planned(step_id, steps, edges[step_id], resolved)
        base = config if config is not None else PipelineConfig()
        return cls(planned, dependents, base)


def _planned(
    step_id: str, steps: Mapping[str, AnyStep], dependencies: tuple[str, ...], config: StepConfig
) -> PlannedStep:
    step = steps[step_id]
    if not isinstance(step, MappedStep):
        return PlannedStep(step_id, step, dependencies, config, config)
    is_streamed = isinstance(steps.get(step.over), MappedStep)
    return PlannedStep(
        step_id,
        step,
        dependencies,
        config,
        whole=UNLIMITED,
        is_mapped=True,
        streams_from=step.over if is_streamed else None,
    )


UNLIMITED = StepConfig(
    timeout=None, retries=0, cost_budget=None, budget=None, persist_result=False, cache_policy="off"
)
"""How a mapped step is run as a whole: its items are what is retried, timed, limited and kept."""


def shape_of(step_ids: Iterable[str]) -> str:
    """A text that is the same for the same ids in any order."""
    from ..serialization.canonical_json import digest  # only here: as for the fingerprints

    return digest(sorted(step_ids))[:16]


def _check_steps(steps: object) -> None:
    if not isinstance(steps, Mapping):
        raise PipelineValidationError(
            f"steps must be a dict of step id to step, not {type(steps).__name__}."
        )
    if not steps:
        raise PipelineValidationError("A pipeline needs at least one step; steps is empty.")
    for step_id, step in steps.items():
        if not isinstance(step_id, str) or not step_id:
            raise PipelineValidationError(f"Step id {step_id!r} must be a non-empty string.")
        check_name("Step id", step_id)
        if isinstance(step, type) or not callable(getattr(step, "execute", None)):
            raise PipelineValidationError(
                f"Step '{step_id}' is {step!r}, which has no execute(context). "
                "Use an instance of a BaseStep, a function decorated with @step, or "
                "agent.as_step(prompt)."
            )


def check_name(what: str, name: str) -> None:
    """Refuse a name that can't be sent in a header or shown on one line.

    Raises:
        PipelineValidationError: It has control characters, line breaks or lone surrogates.
    """
    if name.isprintable():
        return  # as nearly all are
    bad = sorted({c for c in name if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")})
    if bad:
        raise PipelineValidationError(
            f"{what} {name!r} has characters that are not to be seen: {', '.join(map(repr, bad))}. "
            "Leave them out."
        )


def _checked_dependencies(
    steps: Mapping[str, AnyStep], dependencies: object
) -> dict[str, tuple[str, ...]]:
    if not isinstance(dependencies, Mapping):
        raise PipelineValidationError(
            "dependencies must be a dict of step id to a list of step ids, not "
            f"{type(dependencies).__name__}."
        )
    for step_id in filterfalse(steps.__contains__, dependencies):
        raise PipelineValidationError(
            f"Dependency for unknown step '{step_id}'. Known steps: {_names(steps)}."
        )
    edges: dict[str, tuple[str, ...]] = dict.fromkeys(steps, ())
    for step_id, needed in dependencies.items():
        edges[step_id] = _needed_by(step_id, needed, steps)
    for step_id, step in steps.items():
        # What a step is mapped over need not be said twice.
        if isinstance(step, MappedStep) and step.over in steps and step.over not in edges[step_id]:
            edges[step_id] += (step.over,)
    return edges


def _needed_by(step_id: str, needed: object, steps: Mapping[str, AnyStep]) -> tuple[str, ...]:
    if isinstance(needed, str) or not isinstance(needed, Sequence | frozenset | set):
        raise PipelineValidationError(
            f"Dependencies of step '{step_id}' must be a list of step ids, not {needed!r}."
        )
    for dependency in filterfalse(steps.__contains__, needed):
        raise PipelineValidationError(
            f"Step '{step_id}' depends on unknown step '{dependency}'. Known steps: "
            f"{_names(steps)}."
        )
    # Each once: the scheduler counts how many are missing.
    return tuple(dict.fromkeys(needed))


def _check_config(config: object) -> None:
    if config is None:
        return
    if not isinstance(config, PipelineConfig):
        raise PipelineValidationError(f"config must be a PipelineConfig, not {config!r}.")
    try:
        check_config(config)
    except ValueError as error:
        raise PipelineValidationError(f"Configuration of the pipeline: {error}") from error


def _check_step_configs(steps: Mapping[str, AnyStep], step_configs: object) -> None:
    if not isinstance(step_configs, Mapping):
        raise PipelineValidationError(
            f"step_configs must be a dict of step id to StepConfig, not {step_configs!r}."
        )
    for step_id, step_config in step_configs.items():
        if step_id not in steps:
            raise PipelineValidationError(
                f"step_configs names unknown step '{step_id}'. Known steps: {_names(steps)}."
            )
        if not isinstance(step_config, StepConfig):
            raise PipelineValidationError(
                f"step_configs['{step_id}'] must be a StepConfig, not {step_config!r}."
            )


def _own_configs(step: AnyStep, given: StepConfig | None) -> tuple[StepConfig, ...]:
    """The layers above the pipeline's of one step, the farthest first."""
    nearest = () if given is None else (given,)
    # A step of somebody's own may have a `config` that has nothing to do with ours.
    own = getattr(step, "config", None)
    return (own, *nearest) if isinstance(own, StepConfig) else nearest


def _resolved(
    step_id: str, steps: Mapping[str, AnyStep], layers: Iterable[StepConfig | None]
) -> StepConfig:
    try:
        resolved = resolve_config(*layers)
    except ValueError as error:
        raise PipelineValidationError(f"Configuration of step '{step_id}': {error}") from error
    if resolved.formerly in steps:
        raise PipelineValidationError(
            f"Step '{step_id}' has formerly={resolved.formerly!r}, which is the name of a step of "
            "this pipeline. Give the name that it had before, or leave formerly out."
        )
    return resolved


def _dependents(edges: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    found: defaultdict[str, list[str]] = defaultdict(list)
    for step_id, needed in edges.items():
        for dependency in needed:
            found[dependency].append(step_id)
    dependents: dict[str, tuple[str, ...]] = dict.fromkeys(edges, ())
    for step_id, ids in found.items():
        dependents[step_id] = tuple(ids)
    return dependents


def _ordered(
    edges: Mapping[str, tuple[str, ...]], dependents: Mapping[str, tuple[str, ...]]
) -> list[str]:
    """Every step behind those it depends on, else in the order in which the steps were given."""
    # The order is part of what fingerprints are made of: it is that of TopologicalSorter, for less.
    missing = {step_id: len(needed) for step_id, needed in edges.items()}
    order = [step_id for step_id, count in missing.items() if not count]
    for step_id in order:  # which grows meanwhile
        for dependent in dependents[step_id]:
            missing[dependent] -= 1
            if not missing[dependent]:
                order.append(dependent)
    if len(order) < len(edges):
        _refuse_cycle(edges)
    return order


def _refuse_cycle(edges: Mapping[str, tuple[str, ...]]) -> None:
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for step_id in edges:
        sorter.add(step_id)
    for step_id, needed in edges.items():
        sorter.add(step_id, *needed)
    try:
        sorter.prepare()
    except CycleError as error:
        cycle = error.args[1][::-1]
        raise PipelineValidationError(
            f"Dependencies form a cycle (each depends on the next): {_shortened(cycle)}. Remove "
            "one of them."
        ) from None


def _shortened(cycle: list[str]) -> str:
    if len(cycle) <= 2 * SHOWN_OF_A_CYCLE + 1:
        return " -> ".join(cycle)
    first, last = cycle[:SHOWN_OF_A_CYCLE], cycle[-SHOWN_OF_A_CYCLE:]
    return " -> ".join([*first, f"… ({len(cycle) - 1:,} steps in all)", *last])


def _names(steps: Mapping[str, AnyStep]) -> str:
    shown = list(steps)[:20]
    return ", ".join(map(repr, shown)) + (", …" if len(steps) > len(shown) else "")
