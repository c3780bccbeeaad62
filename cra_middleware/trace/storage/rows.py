"""A log as rows, for the stores that keep one row a line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from cra_middleware.trace.query import place_of


class Row(NamedTuple):
    """One line, and where it belongs."""

    place: int
    """The offset of its first byte in the session's log."""
    sequence: int | None
    """None when the line is no event."""
    event_type: str | None
    line: bytes


def rows_of(offset: int, data: bytes) -> list[Row]:
    """The lines of ``data``, which begins at byte ``offset``; the last may be torn."""
    rows, begin = [], 0
    while begin < len(data):
        end = data.find(b"\n", begin) + 1 or len(data)
        line = data[begin:end]
        known = place_of(line) if line.endswith(b"\n") else None
        sequence, event_type = (None, None) if known is None else known
        rows.append(Row(offset + begin, sequence, event_type, line))
        begin = end
    return rows


def lines_of(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Rows as lines again: a torn row and what was written behind it are one line."""
    torn = b""
    for piece in pieces:
        whole = torn + piece
        if whole.endswith(b"\n"):
            yield whole
            torn = b""
        else:
            torn = whole
    if torn:
        yield torn
