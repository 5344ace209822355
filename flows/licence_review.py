"""Review of installed packages: licences checked against a policy, their duties, and recent
changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fastroai import FastroAgent, Pipeline, PipelineConfig, StepContext, step
from flows.item_keys import item_key
from flows.models import CONCURRENT_CALLS, choose_model
from flows.packages import Package, Packages, collect_packages, family_of

Family = Literal["permissive", "weak copyleft", "strong copyleft", "network copyleft", "unknown"]


class ReviewInput(BaseModel):
    """Which packages to review, and against what."""

    model_config = ConfigDict(extra="forbid")  # a misspelt field must not mean the default

    packages: list[str] = Field(
        default=[], description="Package names. Empty: those fastroai depends on directly."
    )
    everything: bool = Field(default=False, description="Review all installed packages instead.")
    allowed: list[Family] = Field(
        default=["permissive", "weak copyleft"],
        description="Licence families that the policy allows.",
        min_length=1,
    )
    max_packages: int = Field(
        default=50, ge=1, le=1000, description="How many packages are reviewed at most."
    )


class LicenceReading(BaseModel):
    """What a licence text amounts to."""

    family: Family = Field(description="Its family; `unknown` where the text does not say.")
    reason: str = Field(description="The words of the text that decide it.")


class Classified(BaseModel):
    """A package's licence and its family."""

    package: str
    licence: str
    family: Family
    basis: str
    """Where the family comes from: `metadata`, `model: <its reason>`, or `nothing declared`."""


class LicenceText(BaseModel):
    """A licence, and its text as one package ships it."""

    licence: str
    text: str


class Duties(BaseModel):
    """What a licence asks of those who use or pass on the software."""

    must: list[str] = Field(
        description="What one must do: keep, include, give notice. At most five.", max_length=8
    )
    risks: list[str] = Field(
        description=(
            "What it excludes or forbids: warranty, liability, names, endorsement. At most five."
        ),
        max_length=8,
    )


class DutiesOfLicence(Duties):
    """The duties of one licence and the packages under it."""

    licence: str
    packages: list[str]


class Upkeep(BaseModel):
    """How a package is kept up."""

    about: str = Field(description="What the package is for, in one sentence.")
    changes: list[str] = Field(
        description=(
            "What was changed, added or fixed lately, at most five; none where no changes are "
            "listed."
        ),
        max_length=8,
    )


class Verdict(BaseModel):
    """The review in short."""

    headline: str = Field(description="One sentence: may these packages be used under the policy?")
    advice: str = Field(description="What to do next, in two or three sentences.")


class ReviewedPackage(BaseModel):
    """One package of the review."""

    name: str
    version: str
    licence: str
    family: Family
    basis: str
    allowed: bool
    about: str
    changes: list[str]


class Review(BaseModel):
    """The result."""

    headline: str
    advice: str
    allowed: int
    """How many packages the policy allows."""
    not_allowed: list[str]
    packages: list[ReviewedPackage]
    duties: list[DutiesOfLicence]
    left_out: list[str]


_MODEL = choose_model()
_RULES = "Use only the text you are given, and keep its terms."

classifier = FastroAgent(
    model=_MODEL,
    name="classifier",
    output_type=LicenceReading,
    system_prompt=f"You tell which family a software licence belongs to. {_RULES}",
)
counsel = FastroAgent(
    model=_MODEL,
    name="counsel",
    output_type=Duties,
    system_prompt=f"You list what a licence asks for. {_RULES}",
)
maintainer = FastroAgent(
    model=_MODEL,
    name="maintainer",
    output_type=Upkeep,
    system_prompt=f"You say what a package is for and what changed in it. {_RULES}",
)
editor = FastroAgent(
    model=_MODEL,
    name="editor",
    output_type=Verdict,
    system_prompt=f"You conclude a review of licences. {_RULES}",
)


@step(retries=0)
def collect(context: StepContext[Any]) -> Packages:
    """Read the packages' metadata, in a thread; a name that is not installed ends the run here."""
    return collect_packages(
        context.get_input("packages"),
        context.get_input("everything"),
        context.get_input("max_packages"),
    )


@step
def packages(context: StepContext[Any]) -> list[Package]:
    """What is reviewed one by one."""
    return context.get_dependency("collect", Packages).found


@step(cache_policy="inputs")
async def classify(context: StepContext[Any]) -> Classified:
    """A package's licence family: from its metadata where that decides, else from the text of its
    licence.
    """
    package: Package = context.item
    family: Any = family_of(package)
    basis = "metadata"
    if family is None and package.licence_text:
        question = f"Which family is this licence of {package.name}?\n\n{package.licence_text}"
        reading = (await context.run(classifier, question)).output
        family, basis = reading.family, f"model: {reading.reason}"
    elif family is None:
        family, basis = "unknown", "nothing declared"
    return Classified(
        package=package.name, licence=package.declared or "not named", family=family, basis=basis
    )


@step
def licence_texts(context: StepContext[Any]) -> list[LicenceText]:
    """The text of each licence, once, as the first package under it ships it."""
    texts: dict[str, str] = {}
    for package in context.get_dependency("collect", Packages).found:
        if package.licence_text:
            texts.setdefault(_licence_of(package), package.licence_text)
    return [LicenceText(licence=licence, text=text) for licence, text in texts.items()]


def _licence_of(package: Package) -> str:
    return package.declared or f"licence of {package.name}"


@step(cache_policy="inputs")
async def read_duties(context: StepContext[Any]) -> Duties:
    """What a licence asks for."""
    licence: LicenceText = context.item
    task = f"List the duties and risks under {licence.licence}."
    return (await context.run(counsel, f"{task}\n\n{licence.text}")).output


@step(cache_policy="inputs")
async def describe(context: StepContext[Any]) -> Upkeep:
    """What a package is for, and its recent changes as far as its metadata lists them."""
    return (await context.run(maintainer, _metadata(context.item))).output


def _metadata(package: Package) -> str:
    facts = f"{package.name} {package.version}: {package.summary}"
    more = [facts, package.status and f"Status: {package.status}.", package.about, package.changes]
    task = f"Say what {package.name} is for and what changed in it."
    return "\n\n".join(part for part in (task, *more) if part)


@step(cache_policy="inputs")
async def review(context: StepContext[Any]) -> Review:
    """Join the parts, apply the policy, conclude."""
    packages = context.get_dependency("collect", Packages)
    families: Sequence[Classified] = context.get_dependency("licences")
    kept_up: Sequence[Upkeep] = context.get_dependency("upkeep")
    allowed: list[str] = context.get_input("allowed")
    reviewed = [
        ReviewedPackage(
            name=package.name,
            version=package.version,
            licence=licence.licence,
            family=licence.family,
            basis=licence.basis,
            allowed=licence.family in allowed,
            about=state.about,
            # Without a list of changes in its metadata, whatever the model says of changes is no
            # reading of one.
            changes=state.changes if package.changes else [],
        )
        for package, licence, state in zip(packages.found, families, kept_up, strict=True)
    ]
    refused = [f"{p.name} {p.version}: {p.licence} ({p.family})" for p in reviewed if not p.allowed]
    verdict = (await context.run(editor, _findings(allowed, reviewed, refused))).output
    return Review(
        headline=verdict.headline,
        advice=verdict.advice,
        allowed=len(reviewed) - len(refused),
        not_allowed=refused,
        packages=reviewed,
        duties=_duties(context, packages.found),
        left_out=packages.left_out,
    )


def _duties(context: StepContext[Any], packages: Sequence[Package]) -> list[DutiesOfLicence]:
    texts: list[LicenceText] = context.get_dependency("licence_texts")
    found: Sequence[Duties] = context.get_dependency("duties")
    under: dict[str, list[str]] = {}
    for package in packages:
        if package.licence_text:
            under.setdefault(_licence_of(package), []).append(package.name)
    return [
        DutiesOfLicence(
            licence=text.licence, packages=under[text.licence], must=duties.must, risks=duties.risks
        )
        for text, duties in zip(texts, found, strict=True)
    ]


def _findings(allowed: list[str], reviewed: list[ReviewedPackage], refused: list[str]) -> str:
    count = f"{len(reviewed) - len(refused)} of {len(reviewed)} packages"
    policy = (
        f"{count} may be used under the policy, which allows these licences: {', '.join(allowed)}."
    )
    verdicts = (
        "It refuses:\n" + "\n".join(f"- {line}" for line in refused)
        if refused
        else "It refuses none."
    )
    listed = "\n".join(
        f"- {p.name} {p.version} is under {p.licence}, which is {p.family}." for p in reviewed
    )
    return f"Conclude this review of licences.\n\n{policy}\n\n{verdicts}\n\n{listed}"


pipeline: Pipeline[None, ReviewInput, Review] = Pipeline(
    "licence-review",
    steps={
        "collect": collect,
        "packages": packages,
        "licence_texts": licence_texts,
        "licences": classify.map(over="packages", key="name", max_concurrency=CONCURRENT_CALLS),
        "duties": read_duties.map(
            over="licence_texts",
            key=lambda text: item_key(text.licence),
            max_concurrency=CONCURRENT_CALLS,
        ),
        "upkeep": describe.map(over="packages", key="name", max_concurrency=CONCURRENT_CALLS),
        "review": review,
    },
    dependencies={
        "packages": ["collect"],
        "licence_texts": ["collect"],
        "review": ["collect", "licence_texts", "licences", "duties", "upkeep"],
    },
    config=PipelineConfig(retries=2, retry_delay=2.0, timeout=600),
    input_type=ReviewInput,
)
