"""Tests of arguments, as rules write them: proven inside, proven outside, or neither.

True: the value is surely what the test names. False: surely not. None: nobody can say (``"50"`` where numbers are
compared, NaN, an object, a command line that cannot be read). A restrictive policy counts unless the answer is
False, an allow only when it is True; so one test serves both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import NamedTuple

from cra_middleware.atlas.argument_tests import (
    ArgumentTest,
    Commands,
    Comparison,
    Matches,
    OneOf,
    PathGlob,
    Scalar,
    Within,
)
from cra_middleware.atlas.schemas import compile_schema
from cra_middleware.atlas.words import test_in_words
from cra_middleware.carp.commands import commands_test
from cra_middleware.carp.matchers import Arguments, Matcher
from cra_middleware.carp.paths import glob_test, within_test

ValueTest = Callable[[object], bool | None]
_SHOWN = 80


class Told(NamedTuple):
    """One argument, what a test wants of it, what it saw, and what it said."""

    wants: str
    saw: str
    answer: bool | None


def arguments_matcher(tests: Mapping[str, ArgumentTest], declared: frozenset[str], project: str | None) -> Matcher:
    """Compile tests for an action whose schema declares the arguments ``declared``.

    All must hold. An argument that is missing cannot be judged when the action declares it; when it does not, the
    tests are about something else.

    Raises:
        ValueError: when a test speaks of ``$PROJECT`` and there is none.
    """
    compiled = [(name, value_test(test, project)) for name, test in tests.items()]

    def match(arguments: Arguments) -> bool | None:
        unknown = False
        for name, test in compiled:
            missing = None if name in declared else False
            answer = _answer(test, arguments[name]) if name in arguments else missing
            if answer is False:
                return False
            unknown = unknown or answer is None
        return None if unknown else True

    return match


def tell_argument(
    name: str, test: ArgumentTest, arguments: Arguments, declared: frozenset[str], project: str | None
) -> Told:
    """What one test says about a call, in words."""
    if name not in arguments:
        return Told(test_in_words(test), "nothing", None if name in declared else False)
    value = arguments[name]
    return Told(test_in_words(test), shown_value(value), _answer(value_test(test, project), value))


def value_test(test: ArgumentTest, project: str | None) -> ValueTest:
    """One test as a closure.

    Raises:
        ValueError: when it speaks of ``$PROJECT`` and there is none.
    """
    match test:
        case OneOf():
            return _one_of(test.values)
        case Comparison():
            return _comparison(test)
        case Matches():
            return _matches(test)
        case Within():
            return within_test(test.folder, project)
        case PathGlob():
            return glob_test(test.patterns, project)
        case Commands():
            return commands_test(test.patterns)


def shown_value(value: object) -> str:
    """A value for a person: short, and nothing in it steers a terminal."""
    if not (value is None or isinstance(value, (str, int, float, bool, list, dict))):
        return f"an object of type {type(value).__name__[:40]}"
    try:
        text = ascii(value) if isinstance(value, (str, list, dict)) else str(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a circle
        return f"a {type(value).__name__} too long to show"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _answer(test: ValueTest, value: object) -> bool | None:
    try:
        return test(value)
    except Exception:  # noqa: BLE001  a hostile value may raise anything in a comparison: nobody can say
        return None


def _one_of(values: tuple[Scalar, ...]) -> ValueTest:
    def test(value: object) -> bool | None:
        unknown = False
        for wanted in values:
            same = _same(value, wanted)
            if same:
                return True
            unknown = unknown or same is None
        return None if unknown else False

    return test


def _same(value: object, wanted: Scalar) -> bool | None:
    """Kinds are never mixed: a tool may well take ``"1"`` or 1 for true."""
    if value is None or wanted is None:
        return value is wanted if _kind(value) is not None else None
    kind = _kind(value)
    if kind is None or kind != _kind(wanted):
        return None
    return bool(value == wanted)


def _kind(value: object) -> str | None:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, str):
        return "string"
    if isinstance(value, (int, float, Decimal)):
        return "number" if math.isfinite(value) else None
    return None


def _comparison(test: Comparison) -> ValueTest:
    exact, rounded = test.threshold, float(test.threshold)
    compare: dict[str, Callable[[int | float | Decimal, int | float | Decimal], bool]] = {
        "<": lambda value, limit: value < limit,
        "<=": lambda value, limit: value <= limit,
        ">": lambda value, limit: value > limit,
        ">=": lambda value, limit: value >= limit,
    }
    holds = compare[test.sign]

    def answer(value: object) -> bool | None:
        if isinstance(value, bool):
            return None
        if isinstance(value, float):  # as it is written: 0.1 is not more than 0.1
            return holds(value, rounded) if math.isfinite(value) else None
        if isinstance(value, int):
            return holds(value, exact)
        if isinstance(value, Decimal):
            return holds(value, exact) if value.is_finite() else None
        return None

    return answer


def _matches(test: Matches) -> ValueTest:
    validator = compile_schema(test.schema)

    def answer(value: object) -> bool | None:
        return bool(validator.is_valid(value)) if isinstance(value, str) else None

    return answer
