"""A call is frozen before it is decided: one text, one digest, a view that nobody else can change."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from hashlib import sha256
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from cra_middleware._canonical import canonical
from cra_middleware.carp.call import UNWRITABLE, ToolCall

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**53) - 2, -(2**53) + 2),
    st.integers(2**53 - 2, 2**53 + 2),
    st.floats(),
    st.sampled_from([0.0, -0.0, 1e-4, 9.9e-5, 1e16, 9.999e15, 1e15, 5e-324]),
    st.text(max_size=8),
    st.sampled_from(["cra:", "cra:int:5", "CRA:", "\n", "\x00", "\u2028", "é", "\\", '"', "null", "1e5"]),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab_", max_size=3), inner, max_size=3)
)
NAMES = st.text("abzAZ_09é .-", max_size=4)


class Colour(Enum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


class Text(str):
    """What many libraries hand out instead of text."""


class Number(float):
    pass


class Refund(BaseModel):
    order: str
    amount: Decimal
    inner: list[Colour] = []


@dataclass
class Point:
    x: int
    tags: set[str] = field(default_factory=set)


class Hostile(Mapping[str, object]):
    """Raises when it is looked at."""

    def __getitem__(self, key: str) -> object:
        raise LookupError("secret")

    def __iter__(self) -> Iterator[str]:
        raise LookupError("secret")

    def __len__(self) -> int:
        return 1


def freeze(**arguments: Any) -> ToolCall:
    return ToolCall.freeze("a.b", "tool", arguments)


@given(st.dictionaries(NAMES, SCALARS, max_size=4))
def test_the_fast_path_writes_what_the_slow_one_does(arguments: dict[str, Any]) -> None:
    """Plain scalars get the same text and digest as the walk over any value would give them."""
    call = ToolCall.freeze("a.b", "tool", arguments)
    assert call.problem is None
    assert call.text == canonical(arguments)
    assert call.digest == sha256(call.text).hexdigest()
    nested = ToolCall.freeze("a.b", "tool", {"x": arguments})
    assert nested.text == b'{"x":' + call.text + b"}"


@given(st.dictionaries(NAMES, VALUES, max_size=4))
def test_order_of_arguments_does_not_count(arguments: dict[str, Any]) -> None:
    """The digest is the same in whatever order arguments come."""
    other = ToolCall.freeze("a.b", "tool", dict(reversed(arguments.items())))
    call = ToolCall.freeze("a.b", "tool", arguments)
    assert (call.text, call.digest) == (other.text, other.digest)
    assert json.loads(call.text).keys() == arguments.keys()


@given(
    st.dictionaries(st.text("ab", max_size=2), VALUES, max_size=3),
    st.dictionaries(st.text("ab", max_size=2), VALUES, max_size=3),
)
def test_different_arguments_differ(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Two calls have one digest only when their canonical texts are one."""
    first, second = ToolCall.freeze("a.b", "t", one), ToolCall.freeze("a.b", "t", other)
    assert (first.digest == second.digest) is (canonical(one) == canonical(other))


@pytest.mark.parametrize(
    ("value", "text", "view"),
    [
        (5, "5", 5),
        (True, "true", True),
        (None, "null", None),
        (0.5, "0.5", 0.5),
        (-0.0, "0.0", 0.0),
        (5.0, "5.0", 5.0),
        (-0.5, "-0.5", -0.5),
        (1e-4, "0.0001", 1e-4),
        (9.9e-5, '"cra:float:9.9e-05"', 9.9e-5),
        (9e15, "9000000000000000.0", 9e15),
        (1e16, '"cra:float:1e+16"', 1e16),
        (2**53 - 1, "9007199254740991", 2**53 - 1),
        (2**53, '"cra:int:9007199254740992"', 2**53),
        (float("inf"), '"cra:float:inf"', float("inf")),
        ("cra:x", '"cra:str:cra:x"', "cra:x"),
        (Text("x"), '"x"', "x"),
        (Number(5), "5.0", 5.0),
        (Level.HIGH, "3", 3),
        (Colour.RED, '"red"', "red"),
        (Decimal("1.50"), '"cra:decimal:1.50"', Decimal("1.50")),
        (date(2026, 1, 5), '"cra:date:2026-01-05"', "2026-01-05"),
        (time(9, 30), '"cra:time:09:30:00"', "09:30:00"),
        (
            datetime(2026, 1, 5, tzinfo=timezone.utc),
            '"cra:datetime:2026-01-05T00:00:00+00:00"',
            "2026-01-05T00:00:00+00:00",
        ),
        (timedelta(seconds=1), None, timedelta(seconds=1)),
        (UUID(int=5), '"00000000-0000-0000-0000-000000000005"', "00000000-0000-0000-0000-000000000005"),
        (PurePosixPath("a/../b"), '"cra:path:a/../b"', "a/../b"),
        ((1, (2,)), "[1,[2]]", [1, [2]]),
        (MappingProxyType({"a": 1}), '{"a":1}', {"a": 1}),
        (
            Refund(order="A", amount=Decimal(5), inner=[Colour.RED]),
            '{"amount":"cra:decimal:5","inner":["red"],"order":"A"}',
            {"order": "A", "amount": Decimal(5), "inner": ["red"]},
        ),
        (Point(1), None, {"x": 1, "tags": []}),
        ([Point(1, {"t"})], None, [{"x": 1, "tags": ["t"]}]),
        (Point, None, Point),
    ],
)
def test_what_is_written_and_what_is_seen(value: Any, text: str | None, view: Any) -> None:
    """The text is canonical; conditions see the value itself, models and dataclasses as fields, times as text."""
    call = freeze(a=value)
    if text is not None:
        assert call.text.decode() == '{"a":' + text + "}"
    assert call.arguments == {"a": view}
    seen = call.arguments["a"]
    assert type(seen) is type(view)
    assert call.problem is None


def test_the_view_is_a_copy() -> None:
    """Nothing that the caller does to its own objects changes what conditions see, or the text."""
    inner: dict[str, Any] = {"b": [1]}
    given_arguments: dict[str, Any] = {"a": inner, "c": {"d": {"e"}}}
    call = ToolCall.freeze("a.b", "tool", given_arguments)
    text = call.text
    inner["b"].append(2)
    given_arguments["c"]["d"].add("f")
    given_arguments["new"] = 1
    assert call.arguments == {"a": {"b": [1]}, "c": {"d": ["e"]}}
    assert call.text == text
    scalars = {"a": 1}
    frozen = ToolCall.freeze("a.b", "tool", scalars)
    scalars["a"] = 2
    assert frozen.arguments == {"a": 1}


def test_changed() -> None:
    """Changed is what no longer has the text that was decided; an equal object is not changed, a scalar never."""
    items = [1]
    call = freeze(items=items)
    assert not call.changed()
    items.append(2)
    assert call.changed()
    items.pop()
    assert not call.changed()
    model = Refund(order="A", amount=Decimal(5))
    call = freeze(nested={"deep": [model]})
    model.amount = Decimal("5.0")
    assert call.changed()
    assert freeze(a=1, b="x").live is None
    assert not freeze(a=1, b="x").changed()


def test_changed_into_something_unreadable() -> None:
    """What can no longer be written down, or raises when it is read, is changed."""
    items: list[Any] = [1]
    call = freeze(items=items)
    items.append({1: 2})
    assert call.changed()
    items[1] = Hostile()
    assert call.changed()
    items[1] = items
    assert call.changed()


def _circular() -> list[Any]:
    items: list[Any] = []
    items.append(items)
    return items


def _deep(levels: int) -> Any:
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"a": {1: 2}}, "a key is a int, not a string"),
        ({1: 2}, "a key is a int, not a string"),
        ({None: 2}, "a key is a NoneType, not a string"),
        ({'a"b': 1}, "a key holds a quote"),
        ({"a\nb": "x"}, "a key holds a quote"),
        ({"a": {"\ud800": 1}}, "a key holds a quote"),
        ({"a": _circular()}, "nested "),
        ({"a": _deep(300)}, "nested "),
        ({"a": _deep(100_000)}, "nested "),
        ({"a": Hostile()}, "raised LookupError"),
    ],
    ids=lambda value: value if isinstance(value, str) else "arguments",
)
def test_problems(arguments: Any, problem: str) -> None:
    """What cannot be written down becomes the call's problem: freezing never raises, and tells no value."""
    call = ToolCall.freeze("a.b", "tool", arguments, "id", "name")
    assert problem in (call.problem or "")
    assert "secret" not in (call.problem or "")
    assert (call.text, call.live, call.arguments) == (UNWRITABLE, None, {})
    assert call.digest == sha256(UNWRITABLE).hexdigest()
    assert (call.tool_call_id, call.agent_name) == ("id", "name")
    assert not call.changed()


def test_who_calls_is_kept() -> None:
    """A frozen call carries its names, on the fast path and on the slow one."""
    for arguments in ({"a": 1}, {"a": []}):
        call = ToolCall.freeze("a.b", "tool", arguments, "id", "name")
        assert call[:2] == ("a.b", "tool")
        assert (call.tool_call_id, call.agent_name) == ("id", "name")


def test_surrogates_are_written_escaped() -> None:
    """Text that no encoder can write is no problem; it gets a text of its own."""
    call = freeze(a="\ud800", b="cra:text:\\ud800")
    assert call.problem is None
    assert json.loads(call.text) == {"a": "cra:text:\\ud800", "b": "cra:str:cra:text:\\ud800"}
