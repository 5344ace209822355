"""Secrets in the texts of errors, which Prefect stores in states and logs with their causes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ...redaction import redact


def mask_secrets(error: BaseException) -> None:
    """Mask the secrets in an error's texts, and in those of its causes, in place.

    The error stays the same object; other values that it carries, such as a response, are kept.
    """
    for each in _chain(error):
        each.args = tuple(_masked(value) for value in each.args)
        for name, value in vars(each).items():
            masked = _masked(value)
            if masked is not value:
                setattr(each, name, masked)


def _chain(error: BaseException) -> Iterator[BaseException]:
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


def _masked(value: object) -> object:
    """The same object where nothing was masked."""
    if isinstance(value, str):
        text = redact(value)
        return value if text == value else text
    masked: object = value
    if type(value) is list or type(value) is tuple:
        masked = type(value)(_masked(item) for item in value)
    elif isinstance(value, Mapping) and type(value) is dict:
        masked = {key: _masked(item) for key, item in value.items()}
    return value if masked == value else masked
