"""What a server has besides deployments: work pools, variables, limits, secrets; made where it is
missing, changed where it differs, and otherwise left alone.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from prefect.blocks.system import Secret
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import (
    GlobalConcurrencyLimitCreate,
    GlobalConcurrencyLimitUpdate,
    VariableCreate,
    VariableUpdate,
    WorkPoolCreate,
    WorkPoolUpdate,
)
from prefect.exceptions import ObjectNotFound

from ...errors import ProjectError
from .pool_templates import WantedPool, completed, new_template


@dataclass(frozen=True, slots=True)
class Essentials:
    """What is to be there.

    Attributes:
        pools: Work pools by name. One that is there keeps its type and what is not said of it.
        variables: Prefect's variables, by name.
        limits: Slots of global concurrency limits, by name.
        secrets: Names of Secret blocks, by the variable of the runs' environment that has the
            value.
        values: Values of secrets, by that variable; one that is not here has to be on the server.
    """

    pools: Mapping[str, WantedPool] = field(default_factory=dict)
    variables: Mapping[str, Any] = field(default_factory=dict)
    limits: Mapping[str, int] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Change:
    """What is missing on a server, or is otherwise than it is to be.

    Attributes:
        action: `create` or `change`.
        what: The kind and the name, never a value.
        make: Does it.
    """

    action: str
    what: str
    make: Callable[[], Awaitable[object]] = field(repr=False)

    def __str__(self) -> str:
        return f"{self.action} {self.what}"


async def bootstrap(
    wanted: Essentials, tell: Callable[[Change], object], *, dry_run: bool = False
) -> None:
    """Have on the server what is wanted, and say of each change that it is about to be made.

    Raises:
        ProjectError: The value of a secret is neither here nor on the server; nothing was changed.
    """
    async with get_client() as client:
        # All of them before the first is made: what can't be done is found out then.
        changes = [
            change
            for find in (_secrets, _variables, _limits, _pools)
            async for change in find(client, wanted)
        ]
        for change in changes:
            tell(change)
            if not dry_run:
                await change.make()


async def _secrets(client: PrefectClient, wanted: Essentials) -> AsyncIterator[Change]:
    for variable, name in wanted.secrets.items():
        known = await _known_secret(name)
        value = wanted.values.get(variable)
        if value is None and known is None:
            raise ProjectError(
                f"The Secret block {name!r} does not exist, and {variable} is not set, whose value "
                f"it is to have. Set {variable} for this command."
            )
        if value is not None and value != known:
            action = "create" if known is None else "change"
            yield Change(action, f"Secret block {name!r}", _saving(name, value))


def _saving(name: str, value: str) -> Callable[[], Awaitable[object]]:
    async def save() -> None:
        await Secret(value=value).asave(name, overwrite=True)

    return save


async def _known_secret(name: str) -> str | None:
    try:
        block: Any = await Secret.aload(name)
        return str(block.get())
    except ValueError:  # Prefect's way to say that there is none
        return None


async def _variables(client: PrefectClient, wanted: Essentials) -> AsyncIterator[Change]:
    for name, value in wanted.variables.items():
        known = await client.read_variable_by_name(name)
        what = f"variable {name!r}"
        if known is None:
            new = VariableCreate(name=name, value=value)
            yield Change("create", what, partial(client.create_variable, new))
        elif known.value != value:
            update = VariableUpdate(name=name, value=value)
            yield Change("change", what, partial(client.update_variable, update))


async def _limits(client: PrefectClient, wanted: Essentials) -> AsyncIterator[Change]:
    for name, slots in wanted.limits.items():
        what = f"concurrency limit {name!r}"
        try:
            known = await client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            new = GlobalConcurrencyLimitCreate(name=name, limit=slots)
            yield Change("create", what, partial(client.create_global_concurrency_limit, new))
            continue
        if known.limit != slots:
            update = GlobalConcurrencyLimitUpdate(limit=slots)
            make = partial(client.update_global_concurrency_limit, name, update)
            yield Change("change", what, make)


async def _pools(client: PrefectClient, wanted: Essentials) -> AsyncIterator[Change]:
    for name, pool in wanted.pools.items():
        what = f"work pool {name!r}"
        try:
            known = await client.read_work_pool(name)
        except ObjectNotFound:
            begun = await new_template(name, pool)
            template = completed(name, begun, pool, wanted.secrets)
            new = WorkPoolCreate(name=name, type=pool.type, base_job_template=template)
            yield Change("create", what, partial(client.create_work_pool, new))
            continue
        if pool.type != known.type and (pool.defaults or pool.secrets):
            raise ProjectError(
                f"Work pool {name!r} is of type {known.type!r}, not {pool.type!r}, and a pool's "
                "type can't be changed. Use another name, or delete the pool."
            )
        as_known = replace(pool, type=known.type)
        template = completed(name, known.base_job_template, as_known, wanted.secrets)
        if template != known.base_job_template:
            update = WorkPoolUpdate(base_job_template=template)
            yield Change("change", what, partial(client.update_work_pool, name, update))
