"""Verify trace files: the reading side of the public face."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cra_middleware._ids import is_id
from cra_middleware.errors import SinkError
from cra_middleware.trace.chain import Verdict, verify_lines
from cra_middleware.trace.event import Event
from cra_middleware.trace.profiles import MalformedError, Profile, choose, read
from cra_middleware.trace.sinks.segments import SUFFIX, read_lines


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

    A file named ``<uuid>.trace.jsonl`` must hold that session; any other name promises nothing.

    Args:
        path: the file.
        progress: told the number of bytes read, line by line.

    Raises:
        SinkError: when the file cannot be read.
    """
    path = Path(path)
    stem = path.name.removesuffix(SUFFIX)
    promised = stem if stem != path.name and is_id(stem) else None
    return FileReport(str(path), verify_lines(_counted(path, progress), promised))


def read_events(path: str | Path) -> Iterator[Event]:
    """The events of a file that was verified, one after the other.

    Raises:
        SinkError: when the file cannot be read, or does not hold what was verified.
    """
    profile: Profile | None = None
    for line in read_lines(Path(path)):
        text = line.removesuffix(b"\n")
        try:
            profile = profile or choose(text)
            yield read(text, profile).event
        except MalformedError as error:
            raise SinkError(f"{path} is not what it was a moment ago: {error}") from error


def _counted(path: Path, progress: Callable[[int], None] | None) -> Iterator[bytes]:
    for line in read_lines(path):
        if progress is not None:
            progress(len(line))
        yield line
