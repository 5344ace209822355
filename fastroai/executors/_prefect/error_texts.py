"""Secrets in the texts of errors, which Prefect stores in states and logs with their causes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ...redaction import redact


def mask_secrets(error: BaseException) -> None:
    """Mask the secrets in an error's texts, and in those of its causes, in place.

    The error stays the same object; other values that it carries, such as a response, are kept.
    """
    for each in linked_errors(error):
        each.args = tuple(mask(value) for value in each.args)
        for name, value in vars(each).items():
            masked = mask(value)
            if masked is not value:
                setattr(each, name, masked)


def linked_errors(error: BaseException) -> Iterator[BaseException]:
    """An error with its causes and the members of groups, each once."""
    seen: dict[int, BaseException] = {}
    waiting = [error]
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen[id(each)] = each
        members = each.exceptions if isinstance(each, BaseExceptionGroup) else ()
        linked = (each.__cause__, each.__context__, *members)
        waiting += [other for other in linked if other is not None]
    yield from seen.values()


def mask(value: Any) -> object:
    """The same object where nothing was masked."""
    masked: object = value
    if isinstance(value, str):
        masked = redact(value)
    elif type(value) in (list, tuple):
        masked = type(value)(map(mask, value))
    elif type(value) is dict:
        masked = {key: mask(item) for key, item in value.items()}
    return value if masked == value else masked
