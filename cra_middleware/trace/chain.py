"""Verification: is this chain whole, and what does its end say? Pure; reads one line at a time.

The order of checks is genesis, link, sequence, hash. In profile ``cra`` also: the payload's keys, that the
first event is ``session.started`` and nothing follows ``session.ended``, and that each call goes requested,
approved, one outcome. A verdict is never a bare "valid": dropped last lines leave a chain INTACT.

Memory does not grow with the chain. What is remembered is the calls that are still open, and the last
``REMEMBERED`` ids; our event ids grow, and one that is larger than all before it cannot have occurred before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Literal, NamedTuple

from cra_middleware.trace.event import GENESIS, Event
from cra_middleware.trace.payloads import payload_problem
from cra_middleware.trace.profiles import MAX_LINE_BYTES, MalformedError, Profile, choose, read

ErrorKind = Literal[
    "invalid_genesis", "chain_broken", "sequence_gap", "hash_mismatch", "malformed_event", "truncated", "forked"
]
BEFORE: dict[str, str | None] = {
    "action.requested": None,
    "action.approved": "action.requested",
    "action.denied": "action.requested",
    "action.executed": "action.approved",
    "action.failed": "action.approved",
}
"""The event of a call that comes before each of them."""
_LAST = ("action.denied", "action.executed", "action.failed")
REMEMBERED = 20_000
"""Ids that a repetition is found among, where it is not told by their order alone."""
MAX_OPEN = 100_000
"""Calls without an outcome whose beginning is remembered; a question that nobody answered leaves one for ever."""
RECOVERED = "torn_tail_recovered"
"""The ``error_code`` of the event that goes on after a torn tail was moved aside."""


@dataclass(frozen=True, slots=True)
class Problem:
    """The first thing wrong with a chain."""

    kind: ErrorKind
    sequence: int
    """Of the event at fault, counted by its place in the chain."""
    message: str


@dataclass(frozen=True, slots=True)
class Recovery:
    """A torn tail that was moved aside when the session was re-opened."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What can be said about one session's chain."""

    session_id: str | None
    profile: Profile
    events: int
    """How many events verified."""
    intact: bool
    sealed: bool
    error: Problem | None = None
    recovered: Recovery | None = None
    head_hash: str = GENESIS
    first_sequence: int = 0
    """Of the first event that was there to verify."""

    def __str__(self) -> str:
        if self.error is not None:
            return f"BROKEN at event {self.error.sequence}: {self.error.kind}: {self.error.message}"
        end = "SEALED" if self.sealed else "NOT SEALED: the end may be missing"
        mended = "" if self.recovered is None else f", RECOVERED ({self.recovered.bytes} torn bytes set aside)"
        begin = f" FROM EVENT {self.first_sequence}" if self.first_sequence else ""
        return f"INTACT{begin}, {end}{mended}"


class Start(NamedTuple):
    """Where a chain is taken up whose beginning is elsewhere."""

    sequence: int
    previous_event_hash: str


class _Recent:
    """The last ids that were met: two generations, so that forgetting costs nothing."""

    __slots__ = ("_new", "_old")

    def __init__(self) -> None:
        self._new: set[str] = set()
        self._old: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._new or name in self._old

    def add(self, name: str) -> None:
        self._new.add(name)
        if len(self._new) >= REMEMBERED:
            self._old, self._new = self._new, set()


class Verifier:
    """Checks one session's chain, event by event; ``add`` says what is wrong, and stays at the first fault."""

    def __init__(self, profile: Profile, expected_session: str | None = None, start: Start | None = None) -> None:
        self._profile: Profile = profile
        self._session = expected_session
        self._start = start or Start(0, GENESIS)
        self._count, self._head = self._start
        self._last: Event | None = None
        self._ids = _Recent()
        self._open: dict[str, str] = {}  # execution_id -> the last event of that call
        self._over = _Recent()
        self._has_forgotten = False
        self.begun_before: dict[str, str] = {}
        """Calls whose beginning is not in this chain, with the first event of them that is."""
        self.smallest_id, self.largest_id = "", ""
        self.smallest_call, self.largest_call = "", ""
        self._error: Problem | None = None
        self._recovered: Recovery | None = None

    @property
    def last(self) -> Event | None:
        """The last event that verified."""
        return self._last

    @property
    def end(self) -> Start:
        """Where the next event goes."""
        return Start(self._count, self._head)

    @property
    def open_calls(self) -> dict[str, str]:
        """Calls without an outcome so far, with the last event of each."""
        return self._open

    def add(self, line: bytes) -> Event | Problem:
        """Check one line (without newline); the event, or why it is not the next one of this chain."""
        if self._error is not None:
            return self._error
        try:
            item = read(line, self._profile)
        except MalformedError as error:
            return self.fail("malformed_event", str(error))
        event = item.event
        problem = self._check(event, item.computed_hash)
        if problem is not None:
            return problem
        self._count += 1
        self._head = event.event_hash
        self._last = event
        self._ids.add(event.event_id)
        if not self.smallest_id or event.event_id < self.smallest_id:
            self.smallest_id = event.event_id
        if event.event_id > self.largest_id:
            self.largest_id = event.event_id
        return event

    def fail(self, kind: ErrorKind, message: str) -> Problem:
        """Note the first fault; later ones follow from it."""
        if self._error is None:
            self._error = Problem(kind, self._count, message)
        return self._error

    def verdict(self) -> Verdict:
        """What the events so far add up to."""
        if self._last is None:
            self.fail("truncated", "there are no events")
        return Verdict(
            session_id=self._session,
            profile=self._profile,
            events=self._count - self._start.sequence,
            intact=self._error is None,
            sealed=self._error is None and self._last is not None and self._last.event_type == "session.ended",
            error=self._error,
            recovered=self._recovered,
            head_hash=self._head,
            first_sequence=self._start.sequence,
        )

    def _check(self, event: Event, computed: str) -> Problem | None:
        last = self._last
        if self._session is None:
            self._session = event.session_id
        if event.session_id != self._session:
            return self.fail("malformed_event", f"belongs to session {event.session_id}, not {self._session}")
        if last is None and self._start.sequence == 0 and event.previous_event_hash != GENESIS:
            return self.fail(
                "invalid_genesis", "the first event does not start from 64 zeros: earlier ones are missing"
            )
        if event.previous_event_hash != self._head:
            return self._broken_link(event, computed)
        if event.sequence != self._count:
            return self.fail("sequence_gap", f"sequence {event.sequence} where {self._count} belongs")
        if computed != event.event_hash:
            return self.fail("hash_mismatch", f"event {event.sequence} was changed after it was written")
        if event.event_id <= self.largest_id and event.event_id in self._ids:
            return self.fail("malformed_event", f"event_id {event.event_id} occurs twice")
        if self._profile == "cra":
            return self._order(event)
        return None

    def _broken_link(self, event: Event, computed: str) -> Problem:
        if event.event_id in self._ids:
            return self.fail("chain_broken", f"event {event.sequence} is repeated or was moved")
        if event.sequence < self._count and computed == event.event_hash:  # whole in itself, at a place that is taken
            return self.fail("forked", f"two events claim place {event.sequence}: two writers, or a rewrite")
        return self.fail(
            "chain_broken", f"event {event.sequence} does not follow: something was removed, moved or changed"
        )

    def _order(self, event: Event) -> Problem | None:
        last, kind, payload = self._last, event.event_type, event.payload
        problem = payload_problem(kind, payload)
        if problem is not None:
            return self.fail("malformed_event", problem)
        if (self._count == 0) != (kind == "session.started"):
            return self.fail("malformed_event", "session.started must be the first event, and only that")
        if last is not None and last.event_type == "session.ended":
            return self.fail("malformed_event", "an event after session.ended")
        if kind == "error.occurred" and payload["error_code"] == RECOVERED:
            self._recovered = _add(self._recovered, payload)
        call = payload.get("execution_id")
        if isinstance(call, str) and kind.startswith("action."):
            return self._call(call, kind)
        return None

    def _call(self, call: str, kind: str) -> Problem | None:
        before = self._open.get(call)
        is_new = before is None and call not in self._over
        if before != BEFORE[kind]:
            if not is_new or (self._start.sequence == 0 and not self._has_forgotten):
                return self.fail("malformed_event", f"{kind} is out of order for execution {call}")
            self.begun_before[call] = kind  # it was begun before the place where this chain is taken up
        elif before is None and not is_new:
            return self.fail("malformed_event", f"{kind} is out of order for execution {call}")
        elif before is None:
            self.largest_call = max(self.largest_call, call)
            self.smallest_call = min(self.smallest_call or call, call)
        if kind in _LAST:
            self._open.pop(call, None)
            self._over.add(call)
        else:
            self._open[call] = kind
            if len(self._open) > MAX_OPEN:
                self._open = dict(islice(self._open.items(), MAX_OPEN // 2, None))
                self._has_forgotten = True
        return None


def verify_lines(
    chunks: Iterable[bytes],
    file_session: str | None = None,
    start: Start | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> tuple[Verdict, ...]:
    """Verify the sessions of one log.

    Args:
        chunks: the log's lines as bytes, each with its newline; the last may lack it.
        file_session: the session that a file's own name promises, if it does.
        start: where the log begins, when that is not at its session's first event; profile ``cra`` only.
        on_event: hears of each event that verified.
    """
    profile: Profile | None = None
    chains: dict[str, Verifier] = {}
    current: Verifier | None = None
    for chunk in chunks:
        fits, whole = len(chunk) <= MAX_LINE_BYTES, chunk.endswith(b"\n")
        line = chunk.removesuffix(b"\n") if fits else b""  # what is too long is not even looked at
        if profile is None:
            profile = choose(line)
        if current is None or profile != "cra":
            current = _chain_of(line, profile, chains, current, file_session, start)
        if not fits:
            current.fail("malformed_event", f"a line is longer than {MAX_LINE_BYTES} bytes")
        elif not chunk:
            current.fail("truncated", "events are missing here: a file of this session was cut, or is gone")
        elif not whole:
            current.fail("truncated", f"the last line is torn ({len(line)} bytes): the writer died, or the end was cut")
        else:
            event = current.add(line)
            if on_event is not None and isinstance(event, Event):
                on_event(event)
    if not chains:
        return (Verifier(profile or "cra", file_session, start).verdict(),)
    return tuple(chain.verdict() for chain in chains.values())


def _chain_of(
    line: bytes,
    profile: Profile,
    chains: dict[str, Verifier],
    current: Verifier | None,
    file_session: str | None,
    start: Start | None,
) -> Verifier:
    """The chain that ``line`` belongs to.

    A line that cannot be read is the fault of the chain before it. Where that is the first line, nothing tells
    what the rest belongs to, and it is all one broken chain.
    """
    key = ""
    if profile != "cra" and key not in chains:
        try:
            key = read(line, profile).event.session_id
        except MalformedError:
            if current is not None:
                return current
    if key not in chains:
        chains[key] = Verifier(profile, file_session, start) if profile == "cra" else Verifier(profile)
    return chains[key]


def _add(before: Recovery | None, payload: object) -> Recovery | None:
    if not isinstance(payload, dict):
        return before
    count, sha = payload.get("bytes"), payload.get("sha256")
    if not isinstance(count, int) or not isinstance(sha, str):
        return before
    return Recovery(count + (before.bytes if before else 0), sha)
