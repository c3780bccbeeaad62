"""Reading canonical arguments back: what the tags of ``_canonical`` stand for.

A runtime at a server sends arguments in the form that the trace has. What a tag stands for is then decided as where
the value itself is, and the digest is the same. Of some kinds only the tag is left: such a value is one that no
condition can judge, as an object is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation

import orjson

from cra_middleware._canonical import digest, normalise
from cra_middleware.carp.call import ToolCall

_ESCAPE = re.compile(r"\\(?:\\|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})")
_ESCAPED = re.compile(rf"(?:[^\\]|{_ESCAPE.pattern})*", re.DOTALL).fullmatch
_AS_TEXT = ("datetime", "date", "time", "path")
"""Kinds that conditions see as their text."""
_LOST = ("bytes", "timedelta", "set", "opaque")
"""Kinds of which the tag does not hold the value."""


class Lost:
    """Stands for a value of which only the tag is left. It is no text, no number, and equal to nothing."""

    __slots__ = ("tag",)

    def __init__(self, tag: str) -> None:
        self.tag = tag

    def __repr__(self) -> str:
        return f"<{self.tag[:80]}>"


def untagged(value: object, lost: Callable[[str], object] = Lost) -> object:
    """What a canonical value stands for; ``lost`` says what a tag without its value is.

    Raises:
        ValueError: when a text looks like a tag, and is none.
    """
    if isinstance(value, Mapping):
        return {key: untagged(item, lost) for key, item in value.items()}
    if isinstance(value, list):
        return [untagged(item, lost) for item in value]
    if not isinstance(value, str) or not value.startswith("cra:"):
        return value
    kind, _, text = value[4:].partition(":")
    try:
        match kind:
            case "str":
                return text
            case "int":
                return int(text)
            case "float":
                return float(text)
            case "decimal":
                return Decimal(text)
            case "text":
                return _unescaped(text)
            case _ if kind in _AS_TEXT:
                return text
    except (ValueError, InvalidOperation):  # a number of thousands of digits is there as its digest
        return lost(value)
    if kind in _LOST:
        return lost(value)
    raise ValueError("a text begins as a tag, and is none")


def read_tags(call: ToolCall) -> ToolCall:
    """The call whose arguments came as JSON in canonical form, as where it was made: same values, same digest.

    One whose arguments are not in that form gets a ``problem``.
    """
    if call.problem is not None:
        return call
    try:
        values = {key: untagged(value) for key, value in call.arguments.items()}
        text = orjson.dumps(_kept(call.arguments), option=orjson.OPT_SORT_KEYS)
    except (ValueError, RecursionError) as error:
        return call._replace(problem=str(error) or type(error).__name__)
    return call._replace(arguments=values, text=text, digest=digest(text), live=None)


def has_lost(call: ToolCall) -> bool:
    """Whether the value of an argument, or of something in one, is not there."""
    return any(_has_lost(value) for value in call.arguments.values())


def _has_lost(value: object) -> bool:
    if isinstance(value, Mapping):
        return any(_has_lost(item) for item in value.values())
    return any(_has_lost(item) for item in value) if isinstance(value, list) else isinstance(value, Lost)


def _kept(value: object) -> object:
    """The same, in the safe profile; a tag stays what it is."""
    if isinstance(value, Mapping):
        return {key: _kept(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_kept(item) for item in value]
    if isinstance(value, str) and value.startswith("cra:"):
        return value
    return normalise(value)


def _unescaped(text: str) -> str:
    """A text with half letters in it, as ``_canonical`` escapes it."""
    if not text.isascii() or _ESCAPED(text) is None:
        raise ValueError("not escaped so")
    return _ESCAPE.sub(lambda found: "\\" if found[0] == "\\\\" else chr(int(found[0][2:], 16)), text)
