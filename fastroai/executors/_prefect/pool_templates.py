"""Templates of work pools: what the workers of a pool start for each run, and which secrets that
has in its environment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from ...errors import ProjectError

Template = dict[str, Any]
PROCESS = "process"


@dataclass(frozen=True, slots=True)
class WantedPool:
    """A work pool that is to be there.

    Attributes:
        type: What its workers start: `process`, `docker`, `ecs`, `kubernetes` or another type that
            Prefect knows.
        defaults: Values of the type's job variables, which a deployment may replace.
        secrets: Of variables of the runs' environment, where their values are, outside of Prefect:
            for `ecs` the ARN of a secret or parameter, for `kubernetes` the name of a Secret that
            has a key of the variable's name.
    """

    type: str = PROCESS
    defaults: Mapping[str, Any] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)


def process_template() -> Template:
    """The template that a new work pool begins with whose workers run processes."""
    from prefect.workers.process import ProcessWorker

    template: Template = ProcessWorker.get_default_base_job_template()
    return template


async def new_template(name: str, pool: WantedPool) -> Template:
    """The template that a new work pool of a type begins with.

    Raises:
        ProjectError: Prefect does not know the type.
    """
    if pool.type == PROCESS:  # without a look at what else is installed
        return process_template()
    # Prefect's workers take a tenth of the time until a run begins, and runs have no use for them.
    from prefect.workers.utilities import get_default_base_job_template_for_infrastructure_type

    template = await get_default_base_job_template_for_infrastructure_type(pool.type)
    if template is None:
        raise ProjectError(
            f"Work pool {name!r}: Prefect knows no type {pool.type!r}. Install the package that "
            "has its worker, or see the names that `prefect work-pool create --help` lists."
        )
    return template


def completed(
    name: str, template: Mapping[str, Any], pool: WantedPool, blocks: Mapping[str, str]
) -> Template:
    """A pool's template with the defaults and the secrets that it is to have, otherwise as it is.

    Args:
        name: The pool's.
        template: As it is on the server, or new.
        pool: What it is to be.
        blocks: Names of Secret blocks by variable, for runs whose environment nobody else reads.

    Raises:
        ProjectError: The type has no such job variable, or no place for a secret.
    """
    made = deepcopy(dict(template))
    _set_defaults(name, made, pool)
    if pool.type in ("process", "docker"):
        if pool.secrets:
            raise ProjectError(
                f"Work pool {name!r} is of type {pool.type!r}: name its secrets under `secrets` of "
                "the file, where they are Secret blocks of Prefect."
            )
        return with_blocks(made, blocks)
    missing = sorted(set(blocks) - set(pool.secrets))
    place = _PLACES.get(pool.type)
    if missing or (pool.secrets and place is None):
        raise ProjectError(
            f"Work pool {name!r} is of type {pool.type!r}, whose jobs show their environment to "
            "everyone who may look at them, so that the value of a Secret block must not be there. "
            f"Name under its own `secrets` where the values of {', '.join(missing) or 'them'} are: "
            "for ecs an ARN of AWS Secrets Manager, for kubernetes a Secret; other types have no "
            "place for it here."
        )
    if place is not None and pool.secrets:
        place(made["job_configuration"], pool.secrets)
    return made


def _set_defaults(name: str, template: Template, pool: WantedPool) -> None:
    properties: dict[str, Any] = template.get("variables", {}).get("properties", {})
    unknown = sorted(set(pool.defaults) - set(properties))
    if unknown:
        raise ProjectError(
            f"Work pool {name!r}: the type {pool.type!r} has no job variable {unknown[0]!r}. It "
            f"has {', '.join(sorted(properties))}."
        )
    for variable, value in pool.defaults.items():
        properties[variable]["default"] = value


def _in_ecs_container(configuration: Template, secrets: Mapping[str, str]) -> None:
    """AWS hands the values to the container: neither Prefect nor a task's description has them."""
    container = configuration["task_definition"]["containerDefinitions"][0]
    known = {one["name"]: one["valueFrom"] for one in container.get("secrets", [])}
    container["secrets"] = [
        {"name": variable, "valueFrom": arn}
        for variable, arn in sorted({**known, **secrets}.items())
    ]


def _in_kubernetes_pod(configuration: Template, secrets: Mapping[str, str]) -> None:
    pod = configuration["job_manifest"]["spec"]["template"]["spec"]
    sources: list[Any] = pod["containers"][0].setdefault("envFrom", [])
    for name in sorted(set(secrets.values())):
        source = {"secretRef": {"name": name}}
        if source not in sources:
            sources.append(source)


_PLACES: dict[str, Callable[[Template, Mapping[str, str]], None]] = {
    "ecs": _in_ecs_container,
    "kubernetes": _in_kubernetes_pod,
}


def with_blocks(template: Template, secrets: Mapping[str, str]) -> Template:
    """A work pool's template whose runs have the values of Secret blocks in their environment.

    Only there: what prefect.yaml says of a block is put in its place when it is deployed, and the
    value then stands in the deployment. The template's is read by workers, for each run.
    """
    if not secrets:
        return template
    configuration = template.get("job_configuration") or {}
    variables = template.get("variables") or {}
    known = configuration.get("env")
    # In place of the text that stands for a deployment's own: workers put those beside a mapping's.
    environment = dict(known) if isinstance(known, Mapping) else {}
    # By way of a variable of the template, as a server lets none refer to a block by itself.
    environment |= {variable: f"{{{{ {variable} }}}}" for variable in secrets}
    properties = dict(variables.get("properties") or {}) | {
        variable: {
            "type": "string",
            "title": variable,
            "description": f"Of the runs' environment: the value of the Secret block {name!r}.",
            "default": f"{{{{ prefect.blocks.secret.{name} }}}}",
        }
        for variable, name in secrets.items()
    }
    return {
        **template,
        "job_configuration": {**configuration, "env": environment},
        "variables": {**variables, "properties": properties},
    }
