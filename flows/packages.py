"""Metadata of installed packages: licence, licence text, changes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from email.message import Message
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from typing import cast

from pydantic import BaseModel

from fastroai.errors import FastroAIError

OURS = "fastroai"
LICENCE_TEXT_CHARACTERS = 12_000
ABOUT_CHARACTERS = 1_500
CHANGES_CHARACTERS = 6_000


class PackageError(FastroAIError):
    """Packages can't be reviewed. The message names them and the remedy; no model was asked."""


class Package(BaseModel):
    """One installed package, as its metadata describes it."""

    name: str
    version: str
    expression: str = ""
    """Its SPDX licence expression; empty where it has none."""
    licence: str = ""
    """Its free-text licence field, when that is a name and not the licence itself."""
    classifiers: list[str] = []
    """Names from its licence classifiers."""
    licence_text: str = ""
    summary: str = ""
    status: str = ""
    requires_python: str = ""
    about: str = ""
    """The beginning of its description."""
    changes: str = ""
    """The part of its description that lists changes; empty where there is none."""

    @property
    def declared(self) -> str:
        """The licence, from the most exact source there is; empty where nothing declares one.

        As its SPDX id where the name tells which one is meant, so that one licence has one name.
        """
        return self.expression or spdx_id(self.licence) or ", ".join(map(spdx_id, self.classifiers))


_SPDX_IDS = {
    "Apache-2.0": ("apache 2", "apache 2.0", "asl 2.0"),
    "BSD-2-Clause": ("bsd 2 clause", "2 clause bsd", "simplified bsd"),
    "BSD-3-Clause": ("bsd 3 clause", "3 clause bsd", "new bsd", "modified bsd"),
    "ISC": ("isc", "isc iscl"),
    "MIT": ("mit", "expat", "mit expat"),
    "MPL-2.0": ("mpl 2", "mpl 2.0", "mozilla public 2.0", "mozilla public 2.0 mpl 2.0"),
    "Unlicense": ("unlicense", "unlicense unlicense"),
    "Zlib": ("zlib", "zlib libpng"),
}
_IDS_BY_NAME = {name: spdx for spdx, names in _SPDX_IDS.items() for name in names}
_SAYS_NOTHING = {"the", "license", "licence", "software", "version", "v"}


def spdx_id(name: str) -> str:
    """The SPDX id of a licence's common name; the name itself where it does not tell which licence
    is meant.
    """
    words = re.findall(r"[a-z]+|\d+(?:\.\d+)*", name.lower())
    return _IDS_BY_NAME.get(" ".join(word for word in words if word not in _SAYS_NOTHING), name)


class Packages(BaseModel):
    """What is reviewed, and what is not."""

    found: list[Package]
    left_out: list[str]


def collect_packages(names: Sequence[str], everything: bool, max_packages: int) -> Packages:
    """Read the metadata of packages of this environment, in order of their names.

    Args:
        names: Packages to read. Empty: those fastroai depends on directly.
        everything: All installed packages instead.
        max_packages: How many are read at most; the others are listed as left out.

    Raises:
        PackageError: One of the names is not installed, or there is nothing to read.
    """
    left_out: list[str] = []
    if everything:
        names = [d.name for d in distributions() if d.name]
    elif names:
        _check_installed(names)
    else:
        names, left_out = _direct_dependencies()
    unique = sorted({_normal(name) for name in names})
    left_out += [f"{name}: beyond max_packages={max_packages}" for name in unique[max_packages:]]
    return Packages(
        found=[_read(distribution(name)) for name in unique[:max_packages]], left_out=left_out
    )


def _check_installed(names: Sequence[str]) -> None:
    installed = {_normal(d.name) for d in distributions() if d.name}
    missing = [name for name in names if _normal(name) not in installed]
    if not missing:
        return
    hints = [hint for name in missing for hint in get_close_matches(_normal(name), installed, n=1)]
    meant = f" Did you mean {', '.join(hints)}?" if hints else ""
    raise PackageError(
        f"Not installed in this environment: {', '.join(map(repr, missing))}.{meant} Install it, "
        "or correct `packages`."
    )


def _direct_dependencies() -> tuple[list[str], list[str]]:
    try:
        requirements = distribution(OURS).requires or []
    except PackageNotFoundError as error:
        raise PackageError(
            f"{OURS} itself is not installed here, so its dependencies are not known. Install it, "
            "or name `packages`."
        ) from error
    present, absent = [], []
    for requirement in requirements:
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        if "extra ==" in requirement:
            continue
        try:
            distribution(name)
            present.append(name)
        except PackageNotFoundError:
            absent.append(f"{name}: not installed")
    return present, absent


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _read(package: Distribution) -> Package:
    data = cast("Message", package.metadata)
    classifiers = [line.split(" :: ") for line in data.get_all("Classifier") or []]
    licence = (data.get("License") or "").strip()
    description = _plain(str(data.get("Description") or data.get_payload() or ""))
    return Package(
        name=package.name,
        version=package.version,
        expression=(data.get("License-Expression") or "").strip(),
        # Some put the whole licence there; its first line is seldom a name.
        licence=licence if len(licence) <= 80 and "\n" not in licence else "",
        classifiers=[
            parts[-1] for parts in classifiers if parts[0] == "License" and len(parts) > 2
        ],
        licence_text=_licence_text(package, licence),
        summary=data.get("Summary") or "",
        status=next((parts[-1] for parts in classifiers if parts[0] == "Development Status"), ""),
        requires_python=data.get("Requires-Python") or "",
        about=description[:ABOUT_CHARACTERS].strip(),
        changes=_changes(description),
    )


def _licence_text(package: Distribution, field: str) -> str:
    for file in package.files or ():
        if (
            re.search(r"(^|/)(licen[cs]e|copying)[^/]*$", str(file), re.IGNORECASE)
            and file.suffix != ".py"
        ):
            try:
                return file.read_text(encoding="utf-8")[:LICENCE_TEXT_CHARACTERS].strip()
            except (OSError, UnicodeDecodeError):
                continue
    return field[:LICENCE_TEXT_CHARACTERS] if "\n" in field else ""


def _plain(description: str) -> str:
    """Without what is for the eye only: badges, images, HTML tags, targets of links."""
    text = re.sub(r"<!--.*?-->|<[^<>]+>", "", description, flags=re.DOTALL)
    text = re.sub(
        r"^\.\. (\|[^|]*\| )?(image|figure|raw|_)\b.*(\n[ \t]+\S.*)*", "", text, flags=re.MULTILINE
    )
    text = re.sub(r"!\[[^\]]*\](\([^)]*\)|\[[^\]]*\])", "", text)
    text = re.sub(r"\[([^\]]*)\](\([^)\s]*\)|\[[^\]]*\])", r"\1", text)
    return re.sub(r"\n\s*\n\s*", "\n\n", text).strip()


def _changes(description: str) -> str:
    """From a heading such as "Changelog" on."""
    heading = re.search(
        r"^\W*(change ?log|changes|release notes|release history|what.s new|history)\W*$",
        description,
        re.I | re.M,
    )
    return description[heading.start() :][:CHANGES_CHARACTERS].strip() if heading else ""


FAMILIES = ("permissive", "weak copyleft", "strong copyleft", "network copyleft", "unknown")
"""From the least to the most demanding; `unknown` counts as the most."""

_PATTERNS = (
    ("network copyleft", r"\bAGPL|affero|\bSSPL"),
    ("weak copyleft", r"\bLGPL|lesser general|library general|\bMPL|mozilla|\bEPL|eclipse|\bCDDL"),
    ("strong copyleft", r"\bGPL|general public|\bEUPL|\bCECILL-2"),
    (
        "permissive",
        r"\bMIT\b|\bBSD|\b0BSD|\bApache|\bISC\b|\bPSF|\bPython|\bCNRI|\bZlib|\bUnlicense|\bCC0|"
        r"public domain|\bHPND"
        r"|\bBSL-1|\bblueoak|\bartistic",
    ),
)


def family_of(package: Package) -> str | None:
    """The licence family its metadata decides on; None where it names no licence that is known
    here.

    An SPDX expression is read as it is meant: the mildest of alternatives (`OR`), the most
    demanding of what applies together (`AND`). Several classifiers count as applying together.
    """
    if package.expression:
        return _family_of_expression(package.expression)
    if package.licence:
        return _family_of_expression(package.licence) or _family_of_all(package.classifiers)
    return _family_of_all(package.classifiers)


def _family_of_all(names: Sequence[str]) -> str | None:
    families = [family for name in names if (family := _family_of_name(name)) is not None]
    return max(families, key=FAMILIES.index) if families else None


def _family_of_name(name: str) -> str | None:
    return next(
        (family for family, pattern in _PATTERNS if re.search(pattern, name, re.IGNORECASE)), None
    )


def _family_of_expression(expression: str) -> str | None:
    if not re.search(r"\b(AND|OR)\b", expression):
        return _family_of_name(expression)
    tokens = iter([*re.findall(r"[()]|[^\s()]+", expression), ")"])
    family = _alternatives(tokens)
    return None if family == "unknown" else family


def _alternatives(tokens: Iterator[str]) -> str:
    """Read up to the closing parenthesis: `OR` binds less than `AND`, `WITH` names an exception to
    a licence.
    """
    alternatives: list[list[str]] = [[]]
    for token in tokens:
        if token == ")":
            break
        if token == "OR":
            alternatives.append([])
        elif token == "(":
            alternatives[-1].append(_alternatives(tokens))
        elif token == "WITH":
            next(tokens, None)
        elif token != "AND":
            alternatives[-1].append(_family_of_name(token) or "unknown")
    together = (max(families, key=FAMILIES.index) for families in alternatives if families)
    return min(together, key=FAMILIES.index, default="unknown")
