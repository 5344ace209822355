"""Checks that ask nobody: versions, the project's files, the models of its pipelines."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from pydantic_ai.models import Model
from pydantic_ai.usage import RequestUsage

from ..agent.models import make_model
from ..errors import SettingsError, UnknownModelPriceError
from ..metering.pricer import Pricer
from ..pipelines.asked_models import asked_models
from ..pipelines.pipeline import Pipeline
from ..pricing.calculator import CostCalculator
from ..pricing.price_file import with_readable_prices
from ..settings import FastroAISettings
from .finding import Check, Finding
from .prefect_file import PREFECT_YAML, Deployment, missing_files, read_deployments

AnyPipeline = Pipeline[Any, Any, Any]
Load = Callable[[str], AnyPipeline | None]
"""Imports what an entrypoint names; None: it is no pipeline's flow."""

DISTRIBUTION = "fastroai"
VERSIONS, PROJECT = Check("versions"), Check("project")
PRICES, CREDENTIALS = Check("prices"), Check("credentials")

_KEY = re.compile(r"Set the `(\w+)` environment variable")


def check_versions() -> Iterator[Finding]:
    """Whether Python and the packages here are those that fastroai allows."""
    try:
        metadata = distribution(DISTRIBUTION)
    except PackageNotFoundError:
        yield VERSIONS.warning(
            "fastroai is imported from a folder, so nothing says which versions it allows.",
            "Install it: pip install fastroai",
        )
        return
    wrong = list(wrong_versions(metadata.requires or ()))
    python = metadata.metadata["Requires-Python"]
    if python and platform.python_version() not in SpecifierSet(python):
        wrong.append((f"Python {platform.python_version()}", f"python{python}"))
    for found, allowed in wrong:
        yield VERSIONS.failed(
            f"{found} is installed, and fastroai allows {allowed}.",
            f"pip install '{allowed}'" if "python" not in allowed else f"Use {allowed}.",
        )
    if not wrong:
        yield VERSIONS.ok(f"fastroai {metadata.version} on Python {platform.python_version()}")


def wrong_versions(requirements: Iterable[str]) -> Iterator[tuple[str, str]]:
    """What is installed, and what is required instead of it."""
    for line in requirements:
        required = Requirement(line)
        if required.marker is not None and not required.marker.evaluate({"extra": ""}):
            continue
        allowed = f"{required.name}{required.specifier}"
        try:
            found = version(required.name)
        except PackageNotFoundError:
            yield f"No {required.name}", allowed
            continue
        if not required.specifier.contains(found, prereleases=True):
            yield f"{required.name} {found}", allowed


def check_project(folder: Path, findings: list[Finding]) -> list[Deployment]:
    """What prefect.yaml deploys of what is there."""
    deployments: list[Deployment] = []
    with PROJECT.noting(findings, f"Correct {PREFECT_YAML}."):
        found = read_deployments(folder)
        if found is None:
            findings.append(PROJECT.skipped(f"There is no {PREFECT_YAML} in {folder}."))
        deployments = found or []
    absent = set(missing_files(folder, deployments))
    findings += [
        PROJECT.failed(
            f"{PREFECT_YAML} deploys {missing!r}, and there is no such file.",
            f"Correct the entrypoint in {PREFECT_YAML}, or add the file.",
        )
        for missing in sorted(absent)
    ]
    return [one for one in deployments if one.entrypoint not in absent]


def check_pipelines(
    deployments: Iterable[Deployment], load: Load, findings: list[Finding]
) -> list[AnyPipeline]:
    """The pipelines of deployments, each once, as far as they can be imported."""
    # In a module instead of a file, Prefect looks for it by itself.
    named = {one.entrypoint for one in deployments if one.entrypoint}
    entrypoints = sorted(entrypoint for entrypoint in named if ":" in entrypoint)
    found, failed = _imported(entrypoints, load)
    pipelines = list({id(pipeline): pipeline for pipeline in found}.values())
    if entrypoints and not failed:
        names = ", ".join(one.name for one in pipelines) or "none"
        findings.append(PROJECT.ok(f"{PREFECT_YAML} can be read; pipelines: {names}"))
    findings += failed
    return pipelines


def _imported(entrypoints: Iterable[str], load: Load) -> tuple[list[AnyPipeline], list[Finding]]:
    """The pipelines at these, and what is wrong with those that can't be imported."""
    found: list[AnyPipeline | None] = []
    failed: list[Finding] = []
    for entrypoint in entrypoints:
        try:
            found.append(load(entrypoint))
        except Exception as error:  # whatever a module does when it is imported
            what = f"{entrypoint} can't be imported. {type(error).__name__}: {error}"
            failed.append(PROJECT.failed(what, "Correct what it names, so that it can be."))
    return [pipeline for pipeline in found if pipeline is not None], failed


def models_of(pipelines: Iterable[AnyPipeline], settings: FastroAISettings) -> list[str]:
    """The names of the models that are asked, as far as code and settings tell."""
    names = {
        name
        for pipeline in pipelines
        for node in pipeline.plan.steps.values()
        for asked in [asked_models(node.step)]
        if not asked.is_simulated
        for name in asked.names
    }
    if settings.model is not None and ":" in settings.model:
        names.add(settings.model)
    return sorted(names)


def check_models(names: Iterable[str], settings: FastroAISettings) -> Iterator[Finding]:
    """Whether each model has a key here, and a known price."""
    try:
        with_readable_prices(settings)
    except SettingsError as error:
        yield PRICES.failed(str(error))
        return
    names = list(names)
    if not names:
        yield PRICES.skipped("No model is named that is paid for.")
        yield CREDENTIALS.skipped("No model is named that needs a key.")
    made: dict[str, Model | None] = {}
    for name in names:
        made[name] = None
        try:
            made[name] = make_model(name)
        except Exception as error:  # each provider has its own
            yield _unusable(name, error)
        else:
            yield CREDENTIALS.ok(f"{name}: what it needs is set.")
    yield from check_prices(made, settings)


def _unusable(name: str, error: Exception) -> Finding:
    missing = _KEY.search(str(error))
    if missing is None:
        return CREDENTIALS.failed(f"{name} can't be used: {error}", "Correct the model's name.")
    return CREDENTIALS.failed(
        f"{missing[1]} is not set, and {name} needs it.",
        f"Set {missing[1]} in the environment of whatever runs the pipelines, also of workers.",
    )


def check_prices(
    models: Mapping[str, Model | None], settings: FastroAISettings
) -> Iterator[Finding]:
    """Whether models have prices; of those that can't be made here, by their names."""
    calculator = CostCalculator()
    pricer = Pricer(calculator)
    for name, model in models.items():
        try:
            if model is None:
                calculator.price(RequestUsage(), name)
            else:
                pricer.require_price(model)
        except (UnknownModelPriceError, SettingsError):
            refused = settings.unpriced == "fail"
            effect = "refused" if refused else "sent and booked as unpriced, not as $0"
            found = f"No price of {name} is known: requests are {effect}."
            remedy = "Correct its name, or give its rates in the file of FASTROAI_PRICES."
            yield PRICES.failed(found, remedy) if refused else PRICES.warning(found, remedy)
        else:
            yield PRICES.ok(f"{name} has a price.")
