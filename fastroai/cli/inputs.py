"""The input of a run, as the command line gives it: a file, and fields in front of it."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from ..errors import InputValidationError
from .exit_codes import UsageError, as_wrong_usage
from .loading import AnyPipeline

STDIN = "-"


def valid_input(
    pipeline: AnyPipeline, pairs: Sequence[str], file: str | None = None
) -> dict[str, Any]:
    """The fields of the input.

    Args:
        pairs: `key=value`, each in front of what the file says.
        file: A JSON or YAML file with an object of fields; `-`: JSON from stdin.

    Raises:
        UsageError: The pipeline does not take them, or the file can't be read.
    """
    fields = {} if file is None else read_fields(pipeline, file)
    fields |= dict(parse_input(pipeline, pair) for pair in pairs)
    try:
        # Also validated by the run; here, so that nothing is started for an input that can't be.
        pipeline.validate_input(fields)
    except InputValidationError as error:
        raise UsageError(str(error)) from error
    return fields


def read_fields(pipeline: AnyPipeline, file: str) -> dict[str, Any]:
    """The fields in a file.

    Raises:
        UsageError: It can't be read, is neither JSON nor YAML, holds no object, or has a field that
            the pipeline doesn't take.
    """
    where = f"--input {file!r}: "
    try:
        text = sys.stdin.read() if file == STDIN else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{where}can't be read: {error}") from error
    with as_wrong_usage(where=where):
        found = parsed(text, is_yaml=file.lower().endswith((".yaml", ".yml")))
    if not isinstance(found, Mapping):
        raise UsageError(f"{where}expected an object of fields, not {type(found).__name__}.")
    for key in found:
        field_of(pipeline, str(key))
    return dict(found)


def parsed(text: str, *, is_yaml: bool) -> object:
    """A JSON or YAML text.

    Raises:
        ValueError: It is none.
    """
    if not is_yaml:
        try:
            return json.loads(text)
        except ValueError as error:
            raise ValueError(f"is not JSON ({error}).") from error
    import yaml  # type: ignore[import-untyped]  # only for those who write it

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"is not YAML ({error}).") from error


def parse_input(pipeline: AnyPipeline, pair: str) -> tuple[str, Any]:
    """One field of the input; its value stays unvalidated."""
    key, separator, text = pair.partition("=")
    if not separator or not key:
        raise UsageError(f"Invalid input {pair!r}: expected key=value.")
    field = field_of(pipeline, key)
    value = parse_value(text, field)
    if field is not None and value == text and takes_only_a_list(field, text):
        written = json.dumps([part.strip() for part in text.split(",")], ensure_ascii=False)
        raise UsageError(
            f"Invalid input {pair!r}: {key!r} is a list. Write it as JSON: "
            f"{shlex.quote(f'{key}={written}')}"
        )
    return key, value


def field_of(pipeline: AnyPipeline, key: str) -> FieldInfo | None:
    """A field of the input's type; None where any input is taken."""
    model = pipeline.input_type
    if model is None:
        return None
    known = model.model_fields
    if key in known or model.model_config.get("extra") == "allow":
        return known.get(key)
    similar = get_close_matches(key, known, n=1)
    meant = f" Did you mean {similar[0]!r}?" if similar else ""
    raise UsageError(
        f"Pipeline {pipeline.name!r} has no input {key!r}.{meant} Its inputs: {', '.join(known)}."
    )


def parse_value(text: str, field: FieldInfo | None) -> Any:
    """JSON where it parses and the field takes it; otherwise the text itself, so that a name may be
    `2024`.
    """
    try:
        parsed = json.loads(text)
    except ValueError:
        return text
    if field is None or isinstance(parsed, str) or takes(field, parsed):
        return parsed
    return text if takes(field, text) else parsed


def takes_only_a_list(field: FieldInfo, text: str) -> bool:
    """Whether a text must be meant as one of several."""
    takes_lists = takes(field, [text]) or takes(field, text.split(","))
    return takes_lists and not takes(field, text)


def takes(field: FieldInfo, value: object) -> bool:
    """Whether a value is valid for a field."""
    # A type that is made here, which mypy can't follow.
    typed: Any = Annotated[field.annotation, field]
    accepts: TypeAdapter[Any] = TypeAdapter(typed)
    try:
        accepts.validate_python(value)
    except ValidationError:
        return False
    return True
