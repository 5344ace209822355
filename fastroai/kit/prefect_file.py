"""What a project's prefect.yaml deploys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ProjectError

PREFECT_YAML = "prefect.yaml"


@dataclass(frozen=True, slots=True)
class Deployment:
    """A deployment of prefect.yaml.

    Attributes:
        name: Without the flow's, which may be that of several.
        entrypoint: `path/file.py:flow` or `module.flow`; None: it has none, as where an image has
            it.
        pool: The work pool; None: Prefect's default.
    """

    name: str
    entrypoint: str | None
    pool: str | None

    @property
    def flow(self) -> str:
        """The flow as the entrypoint names it, which by Prefect's custom is with dashes."""
        return (self.entrypoint or "").rpartition(":")[2].replace("_", "-")


def read_deployments(folder: Path) -> list[Deployment] | None:
    """The deployments of a project; None: it has no prefect.yaml.

    Raises:
        ProjectError: It can't be read.
    """
    import yaml  # type: ignore[import-untyped]  # only here: the help of a command needs none

    path = folder / PREFECT_YAML
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ProjectError(f"{PREFECT_YAML} can't be read: {error}") from error
    listed = content.get("deployments") if isinstance(content, Mapping) else None
    if not isinstance(listed, list) or not all(isinstance(one, Mapping) for one in listed):
        raise ProjectError(
            f"{PREFECT_YAML} has no list of deployments. See the one that `fastroai init NAME` "
            "writes."
        )
    return list(map(_deployment, listed))


def _deployment(entry: Mapping[str, Any]) -> Deployment:
    pool = entry.get("work_pool") or {}
    name = pool.get("name") if isinstance(pool, Mapping) else None
    return Deployment(str(entry.get("name")), entry.get("entrypoint"), name)


def pools_of(deployments: list[Deployment]) -> list[str]:
    """The work pools that they name, each once."""
    return list(dict.fromkeys(filter(None, (one.pool for one in deployments))))


def in_environment(deployments: list[Deployment], environment: str) -> list[Deployment]:
    """Those of an environment, or all where none has its name."""
    return [one for one in deployments if one.name == environment] or deployments


def missing_files(folder: Path, deployments: list[Deployment]) -> Iterator[str]:
    """Entrypoints whose file is not there."""
    for one in deployments:
        file, colon, _ = (one.entrypoint or "").rpartition(":")
        if colon and not (folder / file).is_file():
            yield str(one.entrypoint)
