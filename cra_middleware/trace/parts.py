"""A large file, verified in parts by several processes: each part's events by themselves, then that the parts join.

This only ever says yes. Where anything is not as it should be, or cannot be told from parts, the answer is None, and
whoever asked verifies the file from its beginning, which finds the place and the words for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cra_middleware.trace.chain import BEFORE, MAX_OPEN, Problem, Recovery, Start, Verdict, Verifier
from cra_middleware.trace.entry import event_leaf
from cra_middleware.trace.event import GENESIS
from cra_middleware.trace.profiles import MAX_LINE_BYTES, MalformedError, choose, read

PART_BYTES = 16 * 1024 * 1024


class Part(NamedTuple):
    """What was found in one part."""

    session_id: str
    begin: Start
    end: Start
    open_calls: dict[str, str]
    begun_before: dict[str, str]
    ids: tuple[str, str]
    """The smallest and the largest event_id."""
    calls: tuple[str, str]
    """The smallest and the largest execution_id that was requested."""
    is_sealed: bool
    recovered: Recovery | None
    leaves: bytes
    """The leaf hashes of its events, when they were wanted."""
    bytes: int


def verify_part(path: str, begin: int, end: int, wants_leaves: bool) -> Part | None:
    """Verify the lines that begin at or behind byte ``begin`` and before byte ``end`` of a file."""
    chain: Verifier | None = None
    first: Start | None = None
    leaves: list[bytes] = []
    size = 0
    for line in _lines(Path(path), begin, end):
        size += len(line)
        if chain is None:
            first = _start(line)
            if first is None:
                return None
            chain = Verifier("cra", None, first)
        event = chain.add(line[:-1]) if line.endswith(b"\n") and len(line) <= MAX_LINE_BYTES else None
        if event is None or isinstance(event, Problem):
            return None
        if wants_leaves:
            leaves.append(event_leaf(event.event_hash))
    if chain is None or chain.last is None or first is None:
        return None
    verdict = chain.verdict()
    return Part(
        chain.last.session_id,
        first,
        chain.end,
        chain.open_calls,
        chain.begun_before,
        (chain.smallest_id, chain.largest_id),
        (chain.smallest_call, chain.largest_call),
        verdict.sealed,
        verdict.recovered,
        b"".join(leaves),
        size,
    )


class Joined:
    """Parts of one session, one after the other; ``add`` says whether the next one goes on where the last ended."""

    def __init__(self, session_id: str | None) -> None:
        self._session_id = session_id
        self._end = Start(0, GENESIS)
        self._open: dict[str, str] = {}
        self._largest_id = ""
        self._largest_call = ""
        self._is_sealed = False
        self._recovered: Recovery | None = None

    def add(self, part: Part) -> bool:
        """Take the next part; False when it does not go on, or parts cannot tell."""
        self._session_id = self._session_id or part.session_id
        if part.session_id != self._session_id or part.begin != self._end or self._is_sealed:
            return False
        if len(self._open) + part.end.sequence - part.begin.sequence > MAX_OPEN:
            return False  # perhaps too many calls without an outcome
        if part.ids[0] <= self._largest_id or (part.calls[0] and part.calls[0] <= self._largest_call):
            return False  # perhaps one that occurred before
        for call, kind in part.begun_before.items():
            if self._open.pop(call, None) != BEFORE[kind]:
                return False
        self._open.update(part.open_calls)
        self._end, self._is_sealed = part.end, part.is_sealed
        self._largest_id, self._largest_call = part.ids[1], max(self._largest_call, part.calls[1])
        if part.recovered is not None:
            before = self._recovered.bytes if self._recovered else 0
            self._recovered = Recovery(before + part.recovered.bytes, part.recovered.sha256)
        return True

    def verdict(self) -> Verdict:
        """What the parts add up to."""
        return Verdict(
            session_id=self._session_id,
            profile="cra",
            events=self._end.sequence,
            intact=True,
            sealed=self._is_sealed,
            recovered=self._recovered,
            head_hash=self._end.previous_event_hash,
        )


def _start(line: bytes) -> Start | None:
    """What the first line of a part claims to follow; the part before it has to agree."""
    try:
        if choose(line.removesuffix(b"\n")) != "cra":
            return None
        event = read(line.removesuffix(b"\n"), "cra").event
    except MalformedError:
        return None
    return Start(event.sequence, event.previous_event_hash)


def _lines(path: Path, begin: int, end: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        place = begin
        if begin:
            file.seek(begin - 1)  # the line before may end just there
            place += len(file.readline(MAX_LINE_BYTES + 1)) - 1
        while place < end and (line := file.readline(MAX_LINE_BYTES + 1)):
            yield line
            place += len(line)
