"""deployments/bootstrap.yaml: what a project needs on a Prefect server besides its deployments."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from ..environment import process_environment
from ..errors import ProjectError
from .prefect_file import pools_of, read_deployments

if TYPE_CHECKING:
    from ..executors.prefect import Essentials

BOOTSTRAP_YAML = "deployments/bootstrap.yaml"


class _Pool(BaseModel):
    model_config = ConfigDict(extra="forbid")

    type: str = "process"
    defaults: dict[str, Any] = Field(default_factory=dict)
    secrets: dict[str, str] = Field(default_factory=dict)


class _Content(BaseModel):
    model_config = ConfigDict(extra="forbid")

    work_pools: dict[str, _Pool] = Field(default_factory=dict)
    variables: dict[str, Any] = Field(default_factory=dict)
    concurrency_limits: dict[str, NonNegativeInt] = Field(default_factory=dict)
    secrets: dict[str, str] = Field(default_factory=dict)


def read_essentials(folder: Path) -> Essentials:
    """What a project's bootstrap.yaml names, with the work pools of its prefect.yaml, and the
    secrets' values as far as they are in the environment.

    Raises:
        ProjectError: One of both files can't be read.
    """
    from ..executors.prefect import Essentials, WantedPool

    content = _read(folder / BOOTSTRAP_YAML)
    environment = process_environment()
    named = dict.fromkeys(pools_of(read_deployments(folder) or []), WantedPool())
    described = {name: WantedPool(**dict(pool)) for name, pool in content.work_pools.items()}
    return Essentials(
        pools=named | described,
        variables=content.variables,
        limits=content.concurrency_limits,
        secrets=content.secrets,
        values={name: environment[name] for name in content.secrets if environment.get(name)},
    )


def _read(path: Path) -> _Content:
    import yaml  # type: ignore[import-untyped]  # only here: the help of a command needs none

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        # An empty heading means none.
        given = {k: v for k, v in (found or {}).items() if v is not None}
        return _Content.model_validate(given)
    except FileNotFoundError:
        return _Content()
    except (OSError, UnicodeDecodeError, AttributeError, yaml.YAMLError) as error:
        raise ProjectError(f"{BOOTSTRAP_YAML} can't be read: {error}") from error
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()
        )
        raise ProjectError(f"{BOOTSTRAP_YAML}: {problems}") from error
