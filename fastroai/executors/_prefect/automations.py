"""Ready-made automations on the events of budgets, installed on Prefect's server."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal
from uuid import UUID

from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import PrefectClient, get_client
from prefect.events.actions import ActionTypes, CallWebhook, CancelFlowRun, PauseDeployment
from prefect.events.schemas.automations import Automation, AutomationCore, EventTrigger
from prefect.exceptions import ObjectNotFound
from pydantic import SecretStr

from ...errors import FastroAIError

NAMED: Final = "fastroai budgets"
"""How the names of all of them begin."""
EXCEEDED: Final = frozenset({"fastroai.budget.exceeded"})
TOLD: Final = EXCEEDED | {"fastroai.budget.warning", "fastroai.budget.paused"}
BODY: Final = """{
  "event": {{ event.event | tojson }},
  "occurred": {{ event.occurred | string | tojson }},
  "flow_run": {{ flow_run.name | default("") | tojson }},
  "budget": {{ event.payload | tojson }}
}"""
"""What a webhook is sent: JSON, with the event's payload as `budget`."""
_PAGE = 200

Action = Literal["create", "change", "remove"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedAutomations:
    """Which automations are wanted.

    Attributes:
        webhook: URL that is called for each event of a budget, or the name of a Webhook block.
        cancel: Whether a run is cancelled once a request of it was refused.
        pause: Whether its deployment is then paused, so that no schedule starts another run.
        deployment: Only for runs of this one, as `flow/deployment`. None: for all.
    """

    webhook: str | None = None
    cancel: bool = False
    pause: bool = False
    deployment: str | None = None

    def name_of(self, what: str) -> str:
        """The name of one of them, by which it is found again."""
        of = "" if self.deployment is None else f" of {self.deployment}"
        return f"{NAMED}{of}: {what}"

    @property
    def all_names(self) -> tuple[str, ...]:
        """The names of all that there can be for the deployment, or for all."""
        return tuple(map(self.name_of, ("notify", "cancel", "pause")))

    @property
    def block_name(self) -> str:
        """Of the Webhook block that holds a URL."""
        of = "" if self.deployment is None else f"-{self.deployment.lower()}"
        return re.sub(r"[^a-z0-9]+", "-", f"fastroai-budgets{of}")


@dataclass(frozen=True, slots=True)
class AutomationChange:
    """What is done for them to be there.

    Attributes:
        action: `create`, `change` or `remove`.
        name: Of the automation, or of the block with the URL of a webhook.
    """

    action: Action
    name: str

    def __str__(self) -> str:
        return f"{self.action} {self.name!r}"


async def install_automations(
    wanted: WantedAutomations,
    tell: Callable[[AutomationChange], object],
    *,
    prune: bool = False,
    dry_run: bool = False,
) -> None:
    """Have the automations that are wanted, and say of each change that it is about to be made.
    What is as it should be is left alone, and so is whether a person has switched one off.

    Args:
        prune: Remove the others of the same deployment, or of all.
        dry_run: Say what would be changed, and change nothing.

    Raises:
        FastroAIError: There is no such deployment or block; nothing was changed.
    """

    async with get_client() as client:
        async for change, work in _changes(client, wanted, prune):
            tell(change)
            if not dry_run:
                await work()


async def _changes(
    client: PrefectClient, wanted: WantedAutomations, prune: bool
) -> AsyncIterator[tuple[AutomationChange, Callable[[], Awaitable[object]]]]:
    """What is to be changed, and what changes it; each is done before the next is asked for, or
    none is.
    """
    deployment = await _deployment_id(client, wanted.deployment)
    block, url = await _block(client, wanted)
    if url is not None:
        change = AutomationChange(_to_have(block), wanted.block_name)
        yield change, partial(_save, wanted.block_name, url)
        block, _ = await _block(client, wanted)
    known = {automation.name: automation async for automation in _automations(client)}
    cores = {core.name: core for core in _automations_of(wanted, block, deployment)}
    for name, core in cores.items():
        before = known.get(name)
        if before is None or not _is_as(before, core):
            yield AutomationChange(_to_have(before), name), partial(_put, client, core, before)
    if prune:
        for name in sorted(set(wanted.all_names) & known.keys() - cores.keys()):
            delete = partial(client.delete_automation, known[name].id)
            yield AutomationChange("remove", name), delete


def _to_have(before: object) -> Action:
    return "create" if before is None else "change"


async def _put(client: PrefectClient, core: AutomationCore, before: Automation | None) -> None:
    if before is None:
        await client.create_automation(core)
    else:
        core.enabled = before.enabled
        await client.update_automation(before.id, core)


def _automations_of(
    wanted: WantedAutomations, block: UUID | None, deployment: UUID | None
) -> Iterable[AutomationCore]:
    """The automations that are wanted.

    Args:
        block: Of the webhook; None: it is not there yet, and nothing is to be changed.
    """
    if wanted.webhook is not None:
        call = CallWebhook(block_document_id=block or UUID(int=0), payload=BODY)
        description = "Tells a webhook of warnings, refusals and pauses at budgets."
        yield _automation(wanted.name_of("notify"), description, TOLD, call, deployment)
    if wanted.cancel:
        description = "Cancels a run once a budget refused a request of it."
        action = CancelFlowRun()
        yield _automation(wanted.name_of("cancel"), description, EXCEEDED, action, deployment)
    if wanted.pause:
        description = "Pauses the deployment of a run once a budget refused a request of it."
        paused = PauseDeployment(source="inferred")
        yield _automation(wanted.name_of("pause"), description, EXCEEDED, paused, deployment)


def _automation(
    name: str, description: str, events: frozenset[str], action: ActionTypes, of: UUID | None
) -> AutomationCore:
    # To pause what has no deployment would fail each time.
    needs_one = isinstance(action, PauseDeployment)
    related = {} if of is None and not needs_one else {"prefect.resource.role": "deployment"}
    if of is not None:
        related["prefect.resource.id"] = f"prefect.deployment.{of}"
    trigger = EventTrigger.model_validate(
        {
            "expect": events,
            "match": {"prefect.resource.id": "fastroai.budget.*"},
            "match_related": related,
        }
    )
    return AutomationCore(name=name, description=description, trigger=trigger, actions=[action])


def _is_as(before: Automation, wanted: AutomationCore) -> bool:
    """Whether an automation does what is wanted, on or off."""
    given = {"description", "trigger", "actions"}
    known = AutomationCore.model_validate(before.model_dump()).model_dump(include=given)
    asked = wanted.model_dump(include=given)
    # The server numbers them.
    for one in (known, asked):
        one["trigger"].pop("id", None)
    return known == asked


async def _automations(client: PrefectClient) -> AsyncIterator[Automation]:
    """Those on the server that we named."""
    offset = 0
    while True:
        body = {"limit": _PAGE, "offset": offset}
        answer = await client._client.post("/automations/filter", json=body)
        page = answer.raise_for_status().json()
        for found in page:
            if found["name"].startswith(NAMED):
                yield Automation.model_validate(found)
        if len(page) < _PAGE:
            return
        offset += _PAGE


async def _deployment_id(client: PrefectClient, name: str | None) -> UUID | None:
    if name is None:
        return None
    try:
        return (await client.read_deployment_by_name(name)).id
    except ObjectNotFound as error:
        raise FastroAIError(
            f"There is no deployment {name!r}: give flow/deployment. `prefect deployment ls` lists "
            "them."
        ) from error


async def _block(
    client: PrefectClient, wanted: WantedAutomations
) -> tuple[UUID | None, str | None]:
    """The block of the webhook, if there is one, and the URL that has yet to be saved in it."""
    if wanted.webhook is None:
        return None, None
    is_url = "://" in wanted.webhook
    name = wanted.block_name if is_url else wanted.webhook.rpartition("/")[2]
    try:
        found = await client.read_block_document_by_name(name, "webhook", include_secrets=True)
    except ObjectNotFound as error:
        if is_url:
            return None, wanted.webhook
        raise FastroAIError(
            f"There is no Webhook block {name!r}: give its name, or a URL. `prefect block ls` "
            "lists blocks."
        ) from error
    differs = is_url and found.data.get("url") != wanted.webhook
    return found.id, wanted.webhook if differs else None


async def _save(name: str, url: str) -> None:
    webhook = Webhook.model_validate(
        {"url": SecretStr(url), "headers": {"Content-Type": "application/json"}}
    )
    await webhook.asave(name, overwrite=True)
