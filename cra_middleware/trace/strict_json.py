"""JSON that can be read in one way only: UTF-8, no key twice, no NaN, no ``-0``."""

from __future__ import annotations

import json


class StrictJSONError(ValueError):
    """The bytes are no such JSON object; the message says why."""


class NotJSONError(StrictJSONError):
    """They are not JSON at all, or nested too deeply."""


def read_object(data: bytes) -> dict[str, object]:
    """The one JSON object in ``data``.

    Raises:
        NotJSONError: when it is not JSON, or nested too deeply.
        StrictJSONError: when it is no object, or holds what can be read in two ways.
    """
    try:
        # decoded here, because json.loads would also take UTF-16, a byte order mark and broken UTF-8
        value: object = json.loads(
            data.decode(), object_pairs_hook=_unique, parse_constant=_no_constant, parse_int=_whole
        )
    except StrictJSONError:
        raise
    except (ValueError, RecursionError) as error:
        raise NotJSONError("not JSON, or nested too deeply") from error
    if not isinstance(value, dict):
        raise StrictJSONError("not a JSON object")
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise StrictJSONError("a key occurs twice")
    return dict(pairs)


def _no_constant(name: str) -> object:
    raise StrictJSONError(f"{name} is not JSON")


def _whole(text: str) -> int:
    if text == "-0":  # would be hashed as 0
        raise StrictJSONError("-0 is no integer")
    return int(text)
