"""`fastroai doctor`: looks at a set-up, and says what does not work and what to do."""

from __future__ import annotations

from pathlib import Path

from ..errors import SettingsError
from ..settings import load_settings
from .finding import Check, Finding
from .local_checks import (
    Load,
    check_models,
    check_pipelines,
    check_project,
    check_versions,
    models_of,
)
from .service_checks import check_ledger, check_prefect, check_storage

SETTINGS = Check("settings")


async def examine(folder: Path, load: Load) -> list[Finding]:
    """Look at everything that a run of a project's pipelines needs.

    Nothing is sent to a model. Result storage is written to, and a ledger is made where there is
    none yet.

    Args:
        folder: The project's, which is also the working directory.
        load: Imports the pipelines that prefect.yaml names.
    """
    findings = list(check_versions())
    try:
        settings = load_settings()
    except SettingsError as error:
        findings.append(SETTINGS.failed(str(error)))
        findings.append(SETTINGS.skipped("Nothing else was looked at: it depends on them."))
        return findings
    findings.append(SETTINGS.ok(f"Executor {settings.executor}; all variables are valid."))
    deployments = check_project(folder, findings)
    pipelines = check_pipelines(deployments, load, findings)
    await check_prefect(settings, deployments, findings)
    await check_storage(settings, findings)
    await check_ledger(settings, findings)
    findings += check_models(models_of(pipelines, settings), settings)
    return findings
