"""Verify trace files: the reading side of the public face."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cra_middleware.errors import SinkError
from cra_middleware.trace.chain import Start, Verdict, verify_lines
from cra_middleware.trace.event import GENESIS, Event
from cra_middleware.trace.profiles import MalformedError, Profile, choose, read
from cra_middleware.trace.storage.segments import Segment, read_lines, read_segments, segment_at, segments_of


@dataclass(frozen=True, slots=True)
class FileReport:
    """The verdicts on the sessions of one file."""

    path: str
    sessions: tuple[Verdict, ...]

    @property
    def intact(self) -> bool:
        """Whether every session in the file is."""
        return all(verdict.intact for verdict in self.sessions)

    @property
    def sealed(self) -> bool:
        """Whether every session in the file was ended."""
        return all(verdict.sealed for verdict in self.sessions)


def verify(path: str | Path, progress: Callable[[int], None] | None = None) -> FileReport:
    """Verify a trace file, reading it line by line.

    A file named ``<uuid>.trace.jsonl`` must hold that session, and goes on in the session's later files beside it; one
    of those is verified from its own first event on. Any other name promises nothing.

    Args:
        path: the file.
        progress: told the number of bytes read, line by line.

    Raises:
        SinkError: when the file cannot be read.
    """
    path = Path(path)
    known = segment_at(path)
    session_id = None if known is None else known.session_id
    return FileReport(str(path), verify_lines(_counted(trace_lines(path), progress), session_id, _start(known)))


def trace_lines(path: Path) -> Iterator[bytes]:
    """The lines of a trace: those of a file, and where it is a session's, of the session's later files.

    Raises:
        SinkError: when the file cannot be read.
    """
    known = segment_at(path)
    if known is None or not path.is_file():
        return read_lines(path)
    files = [item for item in segments_of(path.parent, known.session_id) if item.first >= known.first]
    return read_segments(files)


def read_events(path: str | Path) -> Iterator[Event]:
    """The events of a trace that was verified, one after the other.

    Raises:
        SinkError: when the file cannot be read, or does not hold what was verified.
    """
    profile: Profile | None = None
    for line in trace_lines(Path(path)):
        text = line.removesuffix(b"\n")
        try:
            profile = profile or choose(text)
            yield read(text, profile).event
        except MalformedError as error:
            raise SinkError(f"{path} is not what it was a moment ago: {error}") from error


def _start(known: Segment | None) -> Start | None:
    """Where a later file of a session begins: what comes before it is as its first event says."""
    if known is None or known.first == 0:
        return None
    with suppress(MalformedError, StopIteration):
        first = read(next(read_lines(known.path)).removesuffix(b"\n"), "cra").event
        return Start(known.first, first.previous_event_hash)
    return Start(known.first, GENESIS)


def _counted(lines: Iterator[bytes], progress: Callable[[int], None] | None) -> Iterator[bytes]:
    for line in lines:
        if progress is not None:
            progress(len(line))
        yield line
