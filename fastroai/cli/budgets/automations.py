"""`fastroai budgets automations`: have Prefect act when a budget is reached."""

from __future__ import annotations

import asyncio
import json as json_
import sys
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ..exit_codes import UsageError
from ..on_server import on_server

if TYPE_CHECKING:
    from ...executors.prefect import AutomationChange


def install(
    *,
    webhook: str | None = None,
    cancel: Annotated[bool, Parameter(negative="")] = False,
    pause: Annotated[bool, Parameter(negative="")] = False,
    deployment: str | None = None,
    prune: Annotated[bool, Parameter(negative="")] = False,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Have Prefect's server act when a budget is reached.

    Args:
        webhook: URL that is sent JSON for each warning, refusal and pause; or the name of a Webhook
            block of Prefect.
        cancel: Cancel a run once a request of it was refused.
        pause: Pause its deployment then, so that no schedule starts another run.
        deployment: Only for runs of this deployment, FLOW/DEPLOYMENT.
        prune: Remove those that are not asked for.
        dry_run: Only say what would be changed.
        json: Write JSON.
    """
    if not (webhook or cancel or pause or prune):
        raise UsageError("Specify what is to be done: --webhook URL, --cancel or --pause.")
    if deployment is not None and "/" not in deployment:
        raise UsageError(f"deployment={deployment!r}: give flow/deployment, as 'digest/daily'.")
    changes: list[AutomationChange] = []

    def tell(change: AutomationChange) -> None:
        changes.append(change)
        if not json:
            sys.stdout.write(f"{change}\n")

    def installing() -> Coroutine[Any, Any, None]:
        from ...executors.prefect import WantedAutomations, install_automations

        wanted = WantedAutomations(
            webhook=webhook, cancel=cancel, pause=pause, deployment=deployment
        )
        return install_automations(wanted, tell, prune=prune, dry_run=dry_run)

    asyncio.run(on_server(installing()))
    if json:
        said = [{"action": change.action, "name": change.name} for change in changes]
        sys.stdout.write(json_.dumps({"changes": said}, indent=2) + "\n")
    elif not changes:
        sys.stdout.write("Nothing to change.\n")
