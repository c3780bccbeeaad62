"""One value, one text: the fast path, the tags, and what cannot be written down."""

from __future__ import annotations

import inspect
import json
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag, IntEnum, StrEnum
from fractions import Fraction
from hashlib import sha256
from pathlib import PurePosixPath
from typing import Any, NamedTuple
from uuid import UUID

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, RootModel

from cra_middleware._canonical import (
    MAX_DEPTH,
    MAX_INTEGER,
    UnrepresentableError,
    canonical,
    digest,
    json_string,
    normalise,
)


class Colour(Enum):
    RED = "red"
    TAG = "cra:int:7"
    HUGE = 2**80
    NESTED = ({"b": 1, "a": 2},)


class Level(IntEnum):
    LOW = 1


class Word(StrEnum):
    YES = "yes"


class Bits(Flag):
    A = 1
    B = 2


@dataclass
class Point:
    y: float
    x: object = None


class Pair(NamedTuple):
    left: int
    right: str


class Model(BaseModel):
    model_config = ConfigDict(extra="allow")
    name: str = "n"


class Names(RootModel[list[str]]):
    """As pydantic's own pages write it: the model iterates over its items."""

    def __iter__(self) -> Iterator[str]:  # type: ignore[override]
        return iter(self.root)


class Text(str):
    __slots__ = ()


class Twin(str):
    """A string that is equal to nothing but itself."""

    __slots__ = ()
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


class Failing(Mapping[str, object]):
    def __getitem__(self, key: str) -> object:
        raise KeyError("secret")

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError("secret")

    def __len__(self) -> int:
        return 1


class FailingText:
    """Not known to anyone: never asked for its text."""

    def __str__(self) -> str:
        raise RuntimeError("secret")

    __repr__ = __str__


CHARACTERS = st.characters(exclude_categories=())  # lone surrogates too
TEXT = st.one_of(
    st.text(CHARACTERS),
    st.text(CHARACTERS).map("cra:{}".format),
    st.sampled_from(
        ["cra:", "cra:int:1", "cra:str:cra:", "cra:text:\\ud800", "null", "1e5", "0.00001", "\u2028", "\x7f"]
    ),
    st.text(st.sampled_from(["\\", "u", "d", "8", "0", "\ud800", "é", "x", "e", "9"])),
)
INTEGERS = st.one_of(
    st.integers(), st.integers(-(2**70), 2**70), st.sampled_from([MAX_INTEGER, MAX_INTEGER + 1, -MAX_INTEGER - 1])
)
FLOATS = st.one_of(st.floats(), st.floats(1e-5, 1e-3), st.floats(1e15, 1e17), st.sampled_from([-0.0, 1e-4, 1e16]))
SCALARS = st.one_of(st.none(), st.booleans(), INTEGERS, FLOATS, TEXT)
OTHERS = st.one_of(
    st.binary(max_size=8),
    st.binary(max_size=8).map(bytearray),
    st.datetimes(timezones=st.none() | st.just(timezone.utc)),
    st.dates(),
    st.times(),
    st.timedeltas(),
    st.decimals(),
    st.uuids(),
    st.fractions(),
    st.complex_numbers(),
    TEXT.filter(lambda text: "\0" not in text).map(PurePosixPath),
    st.sampled_from([*Colour, *Level, *Word, *Bits, Bits.A | Bits.B]),
    st.frozensets(SCALARS, max_size=3),
    TEXT.map(Text),
    st.sampled_from([orjson.Fragment(b'{"b":1, "a":\n1}'), orjson.Fragment(b"1"), Model, Point, Names(["ab", "cd"])]),
)
GOOD_KEYS = st.text(max_size=5).filter(lambda key: not any(c in '"\\' or c < " " for c in key))
KEYS = GOOD_KEYS | TEXT | st.integers() | st.none()


def values(keys: st.SearchStrategy[Any], leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4),
            st.lists(inner, max_size=3).map(tuple),
            st.dictionaries(keys, inner, max_size=4),
            st.dictionaries(keys, inner, max_size=3).map(OrderedDict),
            st.builds(Point, inner, inner),
            st.builds(Pair, inner, inner),
            st.dictionaries(GOOD_KEYS.filter(str.isidentifier), inner, max_size=2).map(
                lambda fields: Model.model_construct(**fields)
            ),
        ),
        max_leaves=12,
    )


ANYTHING = values(KEYS, SCALARS | OTHERS)
WRITABLE = values(GOOD_KEYS, SCALARS | OTHERS)


def walked(value: object) -> bytes:
    """What ``canonical`` says it gives, without its fast path."""
    return orjson.dumps(normalise(value), option=orjson.OPT_SORT_KEYS)


def outcome(write: Callable[[object], bytes], value: object) -> object:
    try:
        return write(value)
    except UnrepresentableError as error:
        return str(error)


@given(ANYTHING)
def test_the_fast_path_changes_nothing(value: object) -> None:
    """orjson's bytes are taken as they are only where the walk gives the same, and refused where it refuses."""
    assert outcome(canonical, value) == outcome(walked, value)


@given(st.lists(SCALARS | st.dictionaries(GOOD_KEYS, SCALARS, max_size=2), max_size=3))
def test_the_fast_path_changes_nothing_for_plain_values(value: object) -> None:
    """As above, where it is taken most often."""
    assert canonical(value) == walked(value)


@given(WRITABLE)
def test_every_encoder_agrees_on_the_text(value: object) -> None:
    """Read and written again, by orjson or by the standard library, canonical bytes stay the same bytes."""
    text = canonical(value)
    assert orjson.dumps(orjson.loads(text), option=orjson.OPT_SORT_KEYS) == text
    plain = json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert plain.encode() == text


def untagged(text: bytes) -> object:
    """The scalar behind its canonical text."""
    value = json.loads(text)
    if not isinstance(value, str) or not value.startswith("cra:"):
        return value
    kind, rest = value.removeprefix("cra:").split(":", 1)
    readers: dict[str, Callable[[str], object]] = {
        "str": str,
        "int": int,
        "float": float,
        "text": lambda escaped: escaped.encode("ascii").decode("unicode_escape"),
    }
    return readers[kind](rest)


@given(SCALARS)
def test_no_two_scalars_share_a_text(value: object) -> None:
    """The text can be read back to the very value, so two values cannot have the same (-0.0 is 0.0)."""
    found = untagged(canonical(value))
    assert type(found) is type(value)
    assert found == value or (found != found and value != value)


@given(SCALARS | OTHERS)
def test_no_string_imitates_a_tag(value: object) -> None:
    """The string that stands for a value is itself written differently."""
    stand_in = json.loads(canonical(value))
    if isinstance(stand_in, str) and stand_in.startswith("cra:"):
        assert canonical(stand_in) != canonical(value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Colour.RED, '"red"'),
        (Colour.TAG, '"cra:str:cra:int:7"'),
        (Colour.HUGE, f'"cra:int:{2**80}"'),
        (Colour.NESTED, '[{"a":2,"b":1}]'),
        (Level.LOW, "1"),
        (Word.YES, '"yes"'),
        (Bits.A | Bits.B, "3"),
        (UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
        (Point(1.5, [Point(2)]), '{"x":[{"x":null,"y":2}],"y":1.5}'),
        (Pair(1, "r"), '[1,"r"]'),
        (Model(name="m", extra={"k": (1,)}), '{"extra":{"k":[1]},"name":"m"}'),
        (Names(["ab", "c"]), '{"root":["ab","c"]}'),
        (Text("cra:x"), '"cra:str:cra:x"'),
        (OrderedDict(b=1, a=2), '{"a":2,"b":1}'),
        ({"é": 1, "z": 2, "\U0001f600": 3, "\uffff": 4}, '{"z":2,"é":1,"\uffff":4,"\U0001f600":3}'),
        (b"abc", f'"cra:bytes:{sha256(b"abc").hexdigest()}"'),
        (memoryview(b"a.b.c")[::2], f'"cra:bytes:{sha256(b"abc").hexdigest()}"'),
        ({2, 1}, f'"cra:set:{sha256(b"1,2").hexdigest()}"'),
        (frozenset({1, 2}), f'"cra:set:{sha256(b"1,2").hexdigest()}"'),
        (datetime(2026, 1, 5, 12, tzinfo=timezone.utc), '"cra:datetime:2026-01-05T12:00:00+00:00"'),
        (datetime(2026, 1, 5, 12), '"cra:datetime:2026-01-05T12:00:00"'),
        (date(2026, 1, 5), '"cra:date:2026-01-05"'),
        (time(12, 0, 1), '"cra:time:12:00:01"'),
        (timedelta(days=-1, microseconds=1), '"cra:timedelta:-1 day, 0:00:00.000001"'),
        (Decimal("1.50"), '"cra:decimal:1.50"'),
        (PurePosixPath("a/cra:b"), '"cra:path:a/cra:b"'),
        (PurePosixPath("\udcff"), r'"cra:path:cra:text:\\udcff"'),
        (Fraction(1, 3), '"cra:opaque:fractions.Fraction"'),
        (1j, '"cra:opaque:builtins.complex"'),
        (Model, '"cra:opaque:pydantic._internal._model_construction.ModelMetaclass"'),
        (FailingText(), '"cra:opaque:tests.test_canonical.FailingText"'),
        (orjson.Fragment(b"1\n2"), '"cra:opaque:orjson.Fragment"'),
        (float("nan"), '"cra:float:nan"'),
        (float("-inf"), '"cra:float:-inf"'),
        (-0.0, "0.0"),
        (9.999999999999999e-05, '"cra:float:9.999999999999999e-05"'),
        (MAX_INTEGER, str(MAX_INTEGER)),
        (-MAX_INTEGER - 1, f'"cra:int:{-MAX_INTEGER - 1}"'),
        ("\ud800\\ud800", r'"cra:text:\\ud800\\\\ud800"'),
        ("\u2028\x7f", '"\u2028\x7f"'),
    ],
)
def test_kinds(value: object, text: str) -> None:
    """Each kind of value has the text that the module's table promises, alone and inside a container."""
    assert canonical(value).decode() == text
    assert canonical({"k": [value]}).decode() == f'{{"k":[{text}]}}'


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (timedelta(days=999_999, microseconds=1), timedelta(days=999_999, microseconds=2)),
        ("\ud800\\ud800", "\\ud800\ud800"),
        ("\ud800é", "\ud800\\xe9"),
        (datetime(2026, 1, 5), datetime(2026, 1, 5, tzinfo=timezone.utc)),
        (PurePosixPath("\udcff"), PurePosixPath("cra:text:\\udcff")),
        ({1, 2}, [1, 2]),
        ({"1,2"}, {"1", "2"}),
        (1, 1.0),
        (1, True),
    ],
)
def test_lookalikes(left: object, right: object) -> None:
    """Values that are easily taken for each other have different texts."""
    assert canonical(left) != canonical(right)


def test_huge_integers() -> None:
    """A number too long for ``str`` is written as a short digest, its own."""
    huge = 10**10_000
    texts = {canonical({"n": number}) for number in (huge, huge + 1, -huge, 2**4096, -(2**4096))}
    assert len(texts) == 5
    assert all(text.startswith(b'{"n":"cra:int:sha256-') and len(text) < 100 for text in texts)


@pytest.mark.parametrize(
    "key", [1, None, b"k", 1.5, True, Level.LOW, ("a",), '"', "\\", "\0", "a\nb", "\x1f", "\ud800", "x\udfff"]
)
@pytest.mark.parametrize("wrap", [dict, OrderedDict], ids=["plain", "walked"])
def test_keys_that_are_refused(key: Any, wrap: type[dict[Any, Any]]) -> None:
    """A key must be a string that every encoder writes alike; which one was wrong is not told."""
    with pytest.raises(UnrepresentableError) as caught:
        canonical({"outer": [wrap({key: "secret"})]})
    assert "secret" not in str(caught.value)


def test_keys_that_become_equal() -> None:
    """Two keys that a mapping keeps apart, but that are the same text, are refused."""
    with pytest.raises(UnrepresentableError, match="same text"):
        canonical({Twin("a"): 1, Twin("a"): 2})
    assert canonical({Twin("a"): 1}) == b'{"a":1}'


@pytest.mark.parametrize(
    "wrap",
    [
        lambda inner: [inner],
        lambda inner: (inner,),
        lambda inner: {"k": inner},
        lambda inner: Point(1.5, inner),
        lambda inner: Model.model_construct(name=inner),
        lambda inner: OrderedDict(k=inner),
    ],
    ids=["list", "tuple", "dict", "dataclass", "model", "mapping"],
)
@pytest.mark.parametrize("leaf", [1, None, "cra:x", []])
def test_depth(wrap: Callable[[object], object], leaf: object) -> None:
    """The deepest nesting is the same for every container and for safe and unsafe values."""
    value: object = leaf
    for _ in range(MAX_DEPTH):
        value = wrap(value)
    text = canonical(value)
    assert orjson.dumps(orjson.loads(text), option=orjson.OPT_SORT_KEYS) == text
    for _ in range(8):  # orjson's own limit is a few levels on
        value = wrap(value)
        with pytest.raises(UnrepresentableError, match="nested"):
            canonical(value)


def test_circular() -> None:
    """A value that holds itself is refused, whatever it is made of."""
    ring: list[object] = []
    ring.append(ring)
    loop: dict[str, object] = {}
    loop["k"] = [loop]
    point = Point(1.0)
    point.x = {"k": point}
    for value in (ring, loop, point):
        with pytest.raises(UnrepresentableError, match="circular"):
            canonical(value)


def test_deep_in_the_stack() -> None:
    """Where the stack itself ends first, it is the same error."""

    def at(frames: int, value: object) -> bytes:
        return at(frames - 1, value) if frames else canonical(value)

    value: object = 1
    for _ in range(MAX_DEPTH - 1):
        value = [value]
    for leaf in (value, [value, b""]):
        with pytest.raises(UnrepresentableError, match="nested"):
            at(sys.getrecursionlimit() - len(inspect.stack()) - 100, leaf)


def _released() -> memoryview:
    view = memoryview(b"secret")
    view.release()
    return view


def _without_field() -> Point:
    point = Point(1.0)
    del point.y
    return point


@pytest.mark.parametrize("make", [Failing, _released, _without_field])
def test_values_that_fail_themselves(make: Callable[[], object]) -> None:
    """What a value's own code raises becomes our error, which does not repeat its words."""
    with pytest.raises(UnrepresentableError) as caught:
        canonical({"k": make()})
    assert "secret" not in str(caught.value)


@given(TEXT)
def test_json_string(text: str) -> None:
    """A template's quoted text is the canonical one, on one line."""
    assert json_string(text).encode() == walked(text)
    assert "\n" not in json_string(text)


def test_digest() -> None:
    """The digest of a text is its SHA-256."""
    assert digest(b"{}") == sha256(b"{}").hexdigest()
