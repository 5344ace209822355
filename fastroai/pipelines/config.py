"""Configuration of steps and pipelines, and how its layers merge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from datetime import timedelta
from numbers import Integral, Real
from typing import Any, Literal, get_args

from ..budgets import Budget, budgets_given
from ..pricing.money import microcents_to_usd
from ..retries import Backoff

OnError = Literal["fail", "continue"]
Durable = Literal["step", "request"]

LONGEST_EXPIRATION = timedelta(days=36_500)


class _RemembersGiven(type):
    """Notes which fields a config was constructed with, so that an explicit default differs from an
    unset one.
    """

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        config = super().__call__(*args, **kwargs)
        # No field: two configs that say the same are equal, however they were written.
        # Its classes are dataclasses.
        positional = (f.name for f in fields(cls))  # type: ignore[arg-type]
        config.__dict__["_given"] = {
            *(name for name, _ in zip(positional, args, strict=False)),
            *kwargs,
        }
        return config


@dataclass
class StepConfig(metaclass=_RemembersGiven):
    """How one step is run.

    A field that is not given inherits from the next layer: `step_configs` of the pipeline, then the
    step's own `config`, then the pipeline's `config`, then the defaults below. A given field wins,
    also when it is given as its default (`retries=0`, `timeout=None`). `dataclasses.replace` gives
    every field.

    Attributes:
        timeout: Seconds that one attempt of the step may take; its Prefect task then ends
            `TimedOut`. None or 0: no limit.
        retries: Attempts after the first. Agent calls that succeeded in a failed attempt are
            replayed, not sent again.
        retry_delay: Seconds before a further attempt: a number is doubled for each further one; a
            list is used as it is, its last value repeated.
        cost_budget: Spend of this step, in 1e-6 USD, from which on it may send nothing more; on a
            `PipelineConfig`, of the run. It is a `Budget` of strength `settled`.
        budget: The same as a `Budget`, or a list of them, all of which hold: exact amounts, and
            how strict it is. On a `PipelineConfig`, of the run; it is not inherited.
        optional: Whether the run goes on without the step where a budget with `at_limit="skip"`
            refuses a request of it.
        persist_result: Whether Prefect keeps the step's result. True: an output that can't be
            stored fails the step. None: keep it where it can be stored, and warn where not.
        result_storage: Where Prefect keeps it: as `FASTROAI_RESULT_STORAGE`, or a Prefect block.
            None: as the executor does.
        cache_policy: When Prefect may reuse it: `"run"` (within the same flow run, also when it is
            retried), `"inputs"` (whenever pipeline, step, code, inputs and dependency outputs are
            the same), `"off"`, or a Prefect `CachePolicy`. None: as the executor, else as
            `FASTROAI_CACHE_POLICY`.
        cache_expiration: How long a stored result may be reused, from when it was stored: seconds,
            or a `timedelta`. None: for ever.
        cache_scope: A text that is part of the cache key, so that results are shared only where it
            is the same: a tenant, an environment, a version. The run's input is part of the key
            anyway, live deps never are.
        durable: What is not paid for again when the step is tried again. `"request"`: each answered
            model request and each tool call that returned. `"step"`: nothing within it, only the
            finished step. None: as the executor, which says `"request"`.
        remote: Whether a `PrefectExecutor` with a `task_runner` has that run the step, in another
            process. True: yes, and it may ask models there. False: it is run where the run is.
            None: plain functions go, to compute, and all else stays. Without a task runner it says
            nothing.
        formerly: The step's id before it was renamed; on a `PipelineConfig`, the pipeline's name.
            Results that were stored under it are found. It is not inherited, and no step of the
            pipeline has it now.

    `persist_result`, `result_storage`, `formerly` and those that begin with `cache_` have no effect
    in memory.

    Raises:
        ValueError: A value is of another type, a number is negative or not finite, `retry_delay` is
            an empty list, `durable` or a cache policy's name is unknown, an expiration is not
            positive or longer than 100 years, or a scope or a former name is not a text or empty.
    """

    timeout: float | None = None
    retries: int = 0
    retry_delay: float | list[float] = 1.0
    cost_budget: int | None = None
    persist_result: bool | None = None
    result_storage: Any = None
    cache_policy: Any = None
    durable: Durable | None = None
    cache_expiration: float | timedelta | None = None
    cache_scope: str | None = None
    budget: Budget | Sequence[Budget] | None = None
    optional: bool = False
    remote: bool | None = None
    formerly: str | None = None

    def __post_init__(self) -> None:
        check_config(self)

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        given = self.__dict__.get("_given")
        if given is not None:
            given.add(name)


@dataclass
class PipelineConfig(StepConfig):
    """How a pipeline is run; its `StepConfig` fields are what its steps inherit.

    Attributes:
        trace: Whether the run opens spans and hands its tracer to the steps.
        on_error: `"fail"`: the first failure cancels what runs and ends the run. `"continue"`:
            dependents of a failed step are skipped, the rest runs, and the result carries the
            errors.
        max_concurrency: How many steps may run at once. None: no limit.
        cost_budget: Spend of the whole run in 1e-6 USD, from which on nothing more is sent: that
            of all its steps, their attempts, and earlier executions of the same run.
        cheaper_model: What takes a request at the limit of a budget with `at_limit="downgrade"`,
            if the agent names none.

    Raises:
        ValueError: As for `StepConfig`; `on_error` is unknown, or `max_concurrency` is below 1.
    """

    trace: bool = True
    on_error: OnError = "fail"
    max_concurrency: int | None = None
    cheaper_model: Any = None


_LAYERED = tuple(f.name for f in fields(StepConfig))


def check_config(config: StepConfig) -> None:
    """Refuse values that no engine could honour.

    Raises:
        ValueError: Names the field, the value and what is allowed.
    """
    for name, holds, advice in _RULES:
        value = getattr(config, name, _DEFAULTS[name])  # a step's config has not all of them
        if value is not _DEFAULTS[name] and not holds(value):
            raise ValueError(f"{name}={value!r}: {advice}.")
    budgets_given(config.budget)
    _check_cache(config)


def _is_amount(value: object) -> bool:
    # To Python, True is the number 1; as an amount, it is a mistake.
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    return is_number and 0 <= value < float("inf")  # type: ignore[operator]  # a number by now


def _is_delay(value: object) -> bool:
    delays = value if isinstance(value, list) else [value]
    return bool(delays) and all(map(_is_amount, delays))


def _is_count(value: object) -> bool:
    return isinstance(value, Integral) and _is_amount(value)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _is_choice(value: object) -> bool:
    return isinstance(value, bool)


# Of each field what holds for its values, and what else to give.
_RULES: tuple[tuple[str, Callable[[object], bool], str], ...] = (
    ("timeout", _is_amount, "give seconds >= 0, or None for no limit"),
    ("retries", _is_count, "give a whole number >= 0"),
    ("retry_delay", _is_delay, "give seconds >= 0, or a list of them with at least one"),
    ("cost_budget", _is_count, "give a whole number >= 0 of 1e-6 USD, or None for no limit"),
    ("optional", _is_choice, "give True or False"),
    ("persist_result", _is_choice, "give True, False or None"),
    ("remote", _is_choice, "give True, False or None"),
    ("durable", get_args(Durable).__contains__, "choose 'request' or 'step'"),
    ("trace", _is_choice, "give True or False"),
    (
        "max_concurrency",
        lambda value: _is_count(value) and value != 0,
        "give a whole number >= 1, or None for no limit",
    ),
    ("on_error", get_args(OnError).__contains__, "choose 'fail' or 'continue'"),
    ("formerly", _is_text, "give the name before it was changed"),
    ("cache_scope", _is_text, "give a text that is not empty, for example a tenant's id"),
)
_DEFAULTS = {f.name: f.default for f in fields(PipelineConfig)}


def _check_cache(config: StepConfig) -> None:
    policy = config.cache_policy
    if isinstance(policy, str):
        # only here: pydantic-settings takes its time to import
        from ..settings import CachePolicyName

        if policy not in get_args(CachePolicyName):
            names = ", ".join(map(repr, get_args(CachePolicyName)))
            raise ValueError(
                f"cache_policy={policy!r} is unknown: give {names} or a Prefect CachePolicy."
            )
    expiration(config)


def expiration(config: StepConfig) -> timedelta | None:
    """How long a stored result may be reused.

    Raises:
        ValueError: `cache_expiration` is no time that could pass.
    """
    value = config.cache_expiration
    if value is None:
        return None
    # Compared before it is converted: a timedelta can't hold every number.
    if (
        isinstance(value, int | float)
        and type(value) is not bool
        and 0 < value <= LONGEST_EXPIRATION.total_seconds()
    ):
        value = timedelta(seconds=value)
    if isinstance(value, timedelta) and timedelta(0) < value <= LONGEST_EXPIRATION:
        return value
    raise ValueError(
        f"cache_expiration={value!r}: give seconds or a timedelta above 0 and up to 100 years, or "
        "None for no limit."
    )


def resolve_config(*layers: StepConfig | None) -> StepConfig:
    """Merge layers, the farthest first; each field comes from the nearest layer in which it was
    given.
    """
    values: dict[str, Any] = {}
    for layer in layers:
        if layer is not None:
            given: set[str] = layer.__dict__.get("_given", set())
            if isinstance(layer, PipelineConfig):
                given = given - {"formerly", "budget"}  # the pipeline's own
            values.update((name, getattr(layer, name)) for name in _LAYERED if name in given)
    return StepConfig(**values)


def budgets_of(config: StepConfig) -> tuple[Budget, ...]:
    """The budgets that a configuration says."""
    own = budgets_given(config.budget)
    if config.cost_budget is None:
        return own
    return (Budget(usd=microcents_to_usd(config.cost_budget)), *own)


def retry_delay(config: StepConfig, failed_attempt: int) -> float:
    """Seconds to wait after a failed attempt, counted from 1."""
    if isinstance(config.retry_delay, list):
        return config.retry_delay[min(failed_attempt, len(config.retry_delay)) - 1]
    return Backoff(config.retry_delay).after(failed_attempt)
