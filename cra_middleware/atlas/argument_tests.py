"""What ``conditions.arguments`` (``when:`` in rules) may say about one argument, read and checked.

100, "gold", [1, 2]                  equal to it, or to one of them
"> 100"  ">= 0.5"  "< 3"  "<= 7"     a number compared
{within: $PROJECT}                   a path inside a folder
{glob: ["**/.env*", "~/.ssh/**"]}    a path that one of the patterns fits
{matches: "T-[0-9]+"}                the whole text fits a regular expression (linear-time engine)
{commands: [git status *, ls *]}     a shell line made of these commands only
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Literal, NamedTuple

from pydantic import JsonValue

from cra_middleware.atlas.schemas import schema_problem

Scalar = str | int | float | bool | None
Sign = Literal["<", "<=", ">", ">="]
PROJECT = "$PROJECT"

_COMPARISON = re.compile(r"(<=|>=|<|>)\s*(-?[0-9]+(?:\.[0-9]+)?)")
_FORMS = 'write a value, a list of values, "> 100", {within: DIR}, {glob: [...]}, {matches: REGEX} or {commands: [...]}'


class OneOf(NamedTuple):
    """Equal to one of these."""

    values: tuple[Scalar, ...]


class Comparison(NamedTuple):
    """A number on one side of a threshold."""

    sign: Sign
    threshold: Decimal


class Within(NamedTuple):
    """A path in this folder or below it."""

    folder: str


class PathGlob(NamedTuple):
    """A path that one of these patterns fits."""

    patterns: tuple[str, ...]


class Matches(NamedTuple):
    """A text that this regular expression fits as a whole."""

    pattern: str

    @property
    def schema(self) -> dict[str, JsonValue]:
        """The same as a JSON Schema, which the linear-time engine runs."""
        return {"type": "string", "pattern": rf"\A(?:{self.pattern})\z"}


class Commands(NamedTuple):
    """A shell line of which each command fits one of these patterns."""

    patterns: tuple[str, ...]


ArgumentTest = OneOf | Comparison | Within | PathGlob | Matches | Commands


def parse_argument_test(value: JsonValue) -> ArgumentTest:
    """Read one test.

    Raises:
        ValueError: when it is none; the message says what to write.
    """
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, dict):
        return _named(value)
    values = value if isinstance(value, list) else [value]
    if not values:
        raise ValueError("an empty list holds for nothing: name a value")
    scalars = [item for item in values if not isinstance(item, (list, dict))]
    if len(scalars) != len(values):
        raise ValueError("a list of values holds texts, numbers, true, false or null only")
    return OneOf(tuple(scalars))


def _text(text: str) -> ArgumentTest:
    found = _COMPARISON.fullmatch(text.strip())
    if found is not None:
        sign: Sign = found[1]  # type: ignore[assignment]
        return Comparison(sign, Decimal(found[2]))
    if text.strip()[:1] in ("<", ">", "=", "!"):
        raise ValueError(
            f'{text[:40]!r} compares nothing: write "> 100", or a list for the text itself: [{text[:40]!r}]'
        )
    return OneOf((text,))


def _named(test: dict[str, JsonValue]) -> ArgumentTest:
    if len(test) != 1:
        raise ValueError(f"one test at a time: {_FORMS}")
    ((name, value),) = test.items()
    match name:
        case "within":
            return Within(_folder(value))
        case "glob":
            return PathGlob(tuple(_pattern(text) for text in _texts(value, name)))
        case "matches":
            return _matches(value)
        case "commands":
            return Commands(tuple(" ".join(text.split()) for text in _texts(value, name)))
        case _:
            raise ValueError(f"{name[:40]!r} is no test: {_FORMS}")


def _texts(value: JsonValue, name: str) -> Sequence[str]:
    values = value if isinstance(value, list) else [value]
    flat = [text for item in values for text in (item if isinstance(item, list) else [item])]  # two anchors in one list
    texts = [item for item in flat if isinstance(item, str) and item.strip()]
    if not flat or len(texts) != len(flat):
        raise ValueError(f"{name} takes a text, or a list of texts")
    return texts


def _folder(value: JsonValue) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError("within takes one folder")
    if value in ("~", PROJECT) or value.startswith(("/", "~/", f"{PROJECT}/")):
        return value
    raise ValueError(f"within takes an absolute folder, ~/..., {PROJECT} or {PROJECT}/..., not {value[:80]!r}")


def _pattern(text: str) -> str:
    starts_well = text.startswith(("~/", f"{PROJECT}/")) or not text.startswith(("~", "$"))
    if "\0" in text or not starts_well or ".." in text.split("/"):
        raise ValueError(f"{text[:80]!r} is no pattern for paths: begin with /, ~/, {PROJECT}/, **/ or a name")
    return text


def _matches(value: JsonValue) -> Matches:
    if not isinstance(value, str):
        raise ValueError("matches takes one regular expression")
    # by itself first: an unbalanced `a)|(b` must not end the group that is put around it
    for schema in ({"type": "string", "pattern": value}, Matches(value).schema):
        if schema_problem(schema) is not None:
            raise ValueError("matches takes a regular expression without look-around and back-references")
    return Matches(value)
