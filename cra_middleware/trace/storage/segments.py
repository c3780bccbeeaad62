"""The files of one session: which there are, how they are named, and how they are read as one log.

    <session_id>.trace.jsonl              from event 0
    <session_id>.<sequence>.trace.jsonl   from that event on: a later segment
    <session_id>.durable                  how many events have reached the disk, while the session is not sealed
    <file>.<offset>.torn                  bytes that were moved out of a file, never deleted
    <file>.<offset>.torn.<sequence>       and out of the later segment that began at that event

A segment counts up to where the next one begins. What a failed disk left behind that place stands again in the next.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import islice, pairwise, zip_longest
from pathlib import Path
from typing import NamedTuple

from cra_middleware._ids import UUID_TEXT
from cra_middleware.errors import SinkError
from cra_middleware.trace.profiles import MAX_LINE_BYTES
from cra_middleware.trace.storage.files import failed, sync_folder, without_links

SUFFIX = ".trace.jsonl"
DURABLE = ".durable"
_NAME = re.compile(rf"({UUID_TEXT.pattern})(?:\.([1-9][0-9]{{0,15}}))?{re.escape(SUFFIX)}", re.ASCII)
_MAX_PASSED_OVER = 1 << 30


class Segment(NamedTuple):
    """One file of a session."""

    path: Path
    session_id: str
    first: int
    """The sequence of its first event."""


class Rotation(NamedTuple):
    """When a session goes on in a new file."""

    max_bytes: int
    max_age_seconds: float


def segment(folder: Path, session_id: str, first: int) -> Segment:
    """The file that holds a session's events from ``first`` on."""
    return Segment(folder / (f"{session_id}.{first}{SUFFIX}" if first else f"{session_id}{SUFFIX}"), session_id, first)


def segment_at(path: Path) -> Segment | None:
    """What a file's name promises, or None when it promises nothing."""
    match = _NAME.fullmatch(path.name)
    return None if match is None else Segment(path, match[1], int(match[2] or 0))


def segments_in(folder: Path) -> dict[str, list[Segment]]:
    """The sessions in a folder, oldest id first, each with its files in order.

    Raises:
        SinkError: when the folder cannot be read.
    """
    sessions: dict[str, list[Segment]] = {}
    for known in _segments(folder, ""):
        sessions.setdefault(known.session_id, []).append(known)
    return sessions


def segments_of(folder: Path, session_id: str) -> list[Segment]:
    """One session's files, in order.

    Raises:
        SinkError: when the folder cannot be read.
    """
    return _segments(folder, session_id)


def _segments(folder: Path, beginning: str) -> list[Segment]:
    """What a folder holds under names that begin so, by session and first event."""
    try:
        names = [name for name in os.listdir(folder) if name.startswith(beginning)]  # there may be 100,000 others
    except OSError as error:
        raise failed(f"{folder} cannot be read", error) from error
    found = [known for name in names if (known := segment_at(folder / name)) is not None]
    return sorted(found, key=lambda item: (item.session_id, item.first))


def read_segments(segments: list[Segment]) -> Iterator[bytes]:
    """The lines of a session, over all of its files; a torn line stands for the lines that one of them lacks.

    Raises:
        SinkError: when a file cannot be read.
    """
    for known, following in zip_longest(segments, segments[1:]):
        left = None if following is None else following.first - known.first
        for line in _lines_in(known, left):
            yield line
            left = left and left - 1
        if left:
            yield b""


def sizes_before_last(segments: list[Segment]) -> list[int]:
    """How many bytes of each file count, but for the last one, of which all do.

    Raises:
        SinkError: as ``read_segments``.
    """
    pairs = pairwise(segments)
    return [sum(map(len, _lines_in(known, following.first - known.first))) for known, following in pairs]


def _lines_in(known: Segment, most: int | None) -> Iterator[bytes]:
    if not known.path.is_file():  # a pipe or a device planted there would never end
        raise SinkError(f"{known.path} is not a plain file; move it away")
    return read_lines(known.path, most)


def remove_behind(known: Segment) -> None:
    """Remove the files that begin behind this one's first event: what they hold stands again in it.

    Raises:
        OSError: when one cannot be removed.
        SinkError: when the folder cannot be read.
    """
    folder = known.path.parent
    later = [item for item in segments_of(folder, known.session_id) if item.first > known.first]
    for item in reversed(later):
        os.unlink(item.path)
    if later:
        sync_folder(folder)  # a name that came back would hide what follows in the file that stands for it


def read_lines(path: Path, most: int | None = None) -> Iterator[bytes]:
    """The lines of a trace file, at most ``most`` of them, split on the newline byte only.

    A line longer than ``MAX_LINE_BYTES`` comes as its first part, one byte too long, and the rest is passed
    over: no file can make a reader take up more memory than that. A line without an end (a device) ends it all.

    Raises:
        SinkError: when the file cannot be read.
    """
    lines = _read_lines(path)
    return lines if most is None else islice(lines, most)


def _read_lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                whole = len(line) <= MAX_LINE_BYTES or line.endswith(b"\n")
                yield line
                passed_over = 0
                while not whole:
                    rest = file.readline(1 << 20)
                    whole = not rest or rest.endswith(b"\n")
                    passed_over += len(rest)
                    if passed_over > _MAX_PASSED_OVER:
                        return
    except OSError as error:
        raise failed(f"{path} cannot be read", error) from error


def durable_events(folder: Path, session_id: str) -> int | None:
    """How many events of a session have reached the disk, as its side file says; None when there is none.

    An empty one is what a session has before its first event is durable.

    Raises:
        SinkError: when it cannot be read, or holds something else.
    """
    path = folder / f"{session_id}{DURABLE}"
    try:
        with open(path, "rb", opener=without_links) as file:
            text = file.read(64).strip(b"\0\n")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise failed(f"{path} cannot be read", error) from error
    if text and not text.isdigit():
        raise SinkError(f"{path} does not hold a number of events; move it away and look at the trace with `cra trace`")
    return int(text or b"0")


def durable_text(events: int) -> bytes:
    """What the side file holds: always as long, so that one sector is overwritten."""
    return b"%020d\n" % events
