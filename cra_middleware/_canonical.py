"""One text for one value: the safe profile, its canonical bytes, and their digest.

JSON encoders disagree about large integers, extreme floats, NaN and broken text, so such values never
reach a log as they are. ``normalise`` turns each into a tagged string ``cra:<kind>:<text>``, and a user's
own string that starts with ``cra:`` into ``cra:str:<text>``, so that nothing can imitate a tag:

    int       outside ±(2^53-1)                     cra:int:9007199254740993
    float     not 0 and not 1e-4 <= |x| < 1e16      cra:float:1e-05, cra:float:nan      (-0.0 becomes 0.0)
    bytes     never their content                   cra:bytes:<sha256>
    str       with lone surrogates                  cra:text:<escaped>
    datetime, date, time, timedelta, Decimal, path  cra:datetime:…, cra:decimal:…, cra:path:…
    set       never in its own order                cra:set:<sha256 of the sorted members>
    anything else                                   cra:opaque:<module.qualname>

An Enum stands for its value, a UUID for its text, a dataclass or a pydantic model for its fields, a tuple
for a list. Canonical bytes are raw UTF-8, keys in code-point order, no white space.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from hashlib import sha256
from pathlib import PurePath
from uuid import UUID

import orjson
from pydantic import BaseModel

MAX_INTEGER = 2**53 - 1
MAX_DEPTH = 250
"""Levels of nesting; orjson itself stops at 254."""

_SORTED = orjson.OPT_SORT_KEYS
_STRICT = _SORTED | orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME
# What the bytes of an unsafe value can hold: a tag, an escape, NaN or infinity (printed as null), an
# exponent, a long integer, a tiny float, a negative zero. Where none occurs and the value is made of plain
# types only, the bytes are canonical.
_SUSPECT = re.compile(rb"cra:|\\|null|[0-9]e|[0-9]{16}|0\.0000|-0\.0").search
_SCALARS = frozenset((str, int, float, bool, type(None)))
_BAD_KEY = re.compile(r'["\\\x00-\x1f\ud800-\udfff]').search


class UnrepresentableError(ValueError):
    """A value cannot be written down; the message never holds the value itself."""


def canonical(value: object) -> bytes:
    """The canonical bytes of ``value``, normalised to the safe profile.

    Raises:
        UnrepresentableError: when a key is no string or holds a quote, backslash, control character or
            surrogate, when keys collide, when nesting is deeper than ``MAX_DEPTH`` (or circular), or when the
            value's own code fails.
    """
    try:
        try:
            text = orjson.dumps(value, option=_STRICT)
        except TypeError:  # orjson's own error; the walk below knows what to do with the value
            pass
        else:
            if _SUSPECT(text) is None and _is_plain(value, MAX_DEPTH):
                return text
        return orjson.dumps(normalise(value), option=_SORTED)
    except UnrepresentableError:
        raise
    except RecursionError:
        raise UnrepresentableError("nested too deeply for the stack, or circular") from None
    except Exception as error:  # noqa: BLE001  a value's own code (a property, a mapping's items) may raise anything
        raise UnrepresentableError(f"a value's own code raised {type(error).__name__}") from None


def _is_plain(value: object, levels: int) -> bool:
    """Whether ``value`` is made of JSON's own types, at most ``levels`` deep.

    orjson alone goes a little deeper than ``normalise``, and prints an ``orjson.Fragment`` as it is, new lines
    and all.
    """
    kind = type(value)
    if kind in _SCALARS:
        return True
    items: Iterable[object]
    if kind is dict:
        items = value.values()  # type: ignore[attr-defined]
    elif kind is list or kind is tuple:
        items = value  # type: ignore[assignment]
    else:
        return False
    if _SCALARS.issuperset(map(type, items)):
        return levels > 0 or not value
    return levels > 0 and all(_is_plain(item, levels - 1) for item in items)


def digest(text: bytes) -> str:
    """SHA-256 of canonical bytes, as 64 lower-case hex digits."""
    return sha256(text).hexdigest()


def json_string(text: str) -> str:
    """``text`` as canonical JSON, for a template."""
    return canonical(text).decode()


def normalise(value: object, depth: int = 0) -> object:
    """``value`` in the safe profile: None, bool, int, float, str, list and dict only.

    Raises:
        UnrepresentableError: as ``canonical``.
    """
    if depth > MAX_DEPTH:
        raise UnrepresentableError(f"nested deeper than {MAX_DEPTH} levels, or circular")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Enum):
        return normalise(value.value, depth + 1)
    if isinstance(value, str):
        return _text(str.__str__(value))
    if isinstance(value, int):
        number = int.__index__(value)
        return number if -MAX_INTEGER <= number <= MAX_INTEGER else f"cra:int:{_decimal(number)}"
    if isinstance(value, float):
        real = float.__float__(value)
        if real == 0.0:
            return 0.0
        return real if 1e-4 <= abs(real) < 1e16 else f"cra:float:{real!r}"
    if isinstance(value, Mapping):
        return _mapping(value, depth)
    if isinstance(value, UUID):
        return UUID.__str__(value)
    if isinstance(value, (list, tuple)):
        return [normalise(item, depth + 1) for item in value]
    if isinstance(value, BaseModel):
        return _mapping(dict(BaseModel.__iter__(value)), depth)  # a RootModel often iterates over its items
    if is_dataclass(value) and not isinstance(value, type):
        return _mapping({field.name: getattr(value, field.name) for field in fields(value)}, depth)
    if isinstance(value, (set, frozenset)):
        members = sorted(orjson.dumps(normalise(item, depth + 1), option=_SORTED) for item in value)
        return f"cra:set:{digest(b','.join(members))}"
    for kind, types, render in _TAGGED:
        if isinstance(value, types):
            return f"cra:{kind}:{render(value)}"
    cls = type(value)
    return f"cra:opaque:{_text(f'{cls.__module__}.{cls.__qualname__}')}"


# datetime is a date: the first row that fits counts.
_TAGGED: tuple[tuple[str, tuple[type, ...], Callable[..., str]], ...] = (
    ("bytes", (bytes, bytearray, memoryview), lambda value: digest(bytes(value))),
    ("datetime", (datetime,), datetime.isoformat),
    ("date", (date,), date.isoformat),
    ("time", (time,), time.isoformat),
    ("timedelta", (timedelta,), timedelta.__str__),
    ("decimal", (Decimal,), Decimal.__str__),
    ("path", (PurePath,), lambda value: str(_text(str(value)))),
)


def _decimal(number: int) -> str:
    # str() of a huge int raises (CPython limits it to 4,300 digits): a digest stands for such a number
    if number.bit_length() < 4096:
        return str(number)
    return "sha256-" + digest(number.to_bytes(number.bit_length() // 8 + 1, "big", signed=True))


def _text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        # a backslash of the text's own is doubled, so that it cannot stand for a character that is not there
        return "cra:text:" + text.replace("\\", "\\\\").encode("ascii", "backslashreplace").decode()
    return f"cra:str:{text}" if text.startswith("cra:") else text


def _mapping(value: Mapping[object, object], depth: int) -> dict[str, object]:
    result: dict[str, object] = {}
    for key, item in value.items():
        if not isinstance(key, str):
            raise UnrepresentableError(f"a key is a {type(key).__name__}, not a string")
        name = str.__str__(key)
        if _BAD_KEY(name):
            raise UnrepresentableError("a key holds a quote, backslash, control character or surrogate")
        if name in result:
            raise UnrepresentableError("two keys are the same text")
        result[name] = normalise(item, depth + 1)
    return result
