"""run_step(): the only place where a step's code is executed, the same under every engine."""

from __future__ import annotations

from ..agent.failures import is_permanent
from ..pipelines.context import StepContext
from ..pipelines.plan import PlannedStep
from .protocol import StepRecord
from .run import Run


async def run_step(run: Run, node: PlannedStep, attempt: int = 1) -> StepRecord:
    """Execute one attempt of a step.

    Only the outputs of declared dependencies are handed to it. What it spends is in the run's ledger whatever happens.

    Raises:
        BaseException: What the step raised, unchanged.
    """
    step_run = run.step_run(node.step_id)
    step_run.begin_attempt(attempt)
    outputs = {step_id: run.outputs[step_id] for step_id in node.dependencies}
    context = StepContext(node.step_id, run.inputs, run.deps, outputs, run.tracer, node.config, step_run=step_run)
    async with run.span(f"step.{node.step_id}"):
        output = await node.step.execute(context)
    run.outputs[node.step_id] = output
    return run.record(node, output)


def may_retry(run: Run, node: PlannedStep, error: BaseException) -> bool:
    """Whether another attempt of a step could end better than with this error."""
    return not (is_permanent(error) or run.step_run(node.step_id).is_final(error))


def timeout_message(node: PlannedStep, attempt: int) -> str:
    """What a step's deadline says when it has passed."""
    return (
        f"Step '{node.step_id}' timed out after {node.config.timeout}s (attempt {attempt}/{node.config.retries + 1}). "
        "Its `timeout` bounds one attempt."
    )
