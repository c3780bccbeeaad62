"""Going on with a chain that an earlier process began.

The log is verified again, forward from its first event, and cut at the first place that is damaged: what lies
behind it is moved to a quarantine, and its size and SHA-256 are recorded as the next event. A crash damages only
what had not reached the disk. So damage before that place is not ours to mend, and an event that is complete and
does not verify never is: somebody changed it, and the session is refused. Where nobody noted what had reached the
disk, whole events behind the damage count as proof that it had.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cra_middleware._clock import parse_us
from cra_middleware.errors import ChainBroken
from cra_middleware.trace.chain import Problem, Verifier
from cra_middleware.trace.event import Event
from cra_middleware.trace.let_run import Untold
from cra_middleware.trace.profiles import MalformedError, read
from cra_middleware.trace.shared import Position
from cra_middleware.trace.sink import SessionLog, Torn

POLICY_CHANGED = "policy_changed"
"""The ``error_code`` of a session that goes on under other policies."""


@dataclass(frozen=True, slots=True)
class Reopened:
    """A verified chain, ready to be continued."""

    first: Event
    request: Event | None
    """The first ``carp.request.received``: the session's own, with its facts and its risk tier. Later ones may be of
    somebody who supposes other facts."""
    actions: int
    """How many tools ran."""
    end: Position
    torn: Torn | None
    untold: Untold = field(default_factory=Untold)
    """Calls that were let run, and whose outcome is not there."""
    resolved: Event | None = None
    """The last ``carp.resolution.completed``, when the policies were never changed."""


def reopen(log: SessionLog, session_id: str) -> Reopened:
    """Verify ``log`` and cut off a torn tail.

    Raises:
        ChainBroken: when the session was ended, is empty, or is damaged in a way that no crash explains.
        SinkError: when the log cannot be read, or its tail cannot be moved.
    """
    chain = Verifier("cra", session_id)
    durable = log.noted_durable
    offset, actions = 0, 0
    first: Event | None = None
    request: Event | None = None
    resolved: Event | None = None
    is_changed = False
    untold = Untold()
    problem: Problem | None = None
    for line in log.lines():
        if problem is not None:
            if durable is None:
                _refuse_events_behind(line, problem, session_id)
            continue
        outcome = chain.add(line[:-1]) if line.endswith(b"\n") else chain.fail("truncated", "torn")
        if isinstance(outcome, Problem):
            problem = outcome
            _refuse_changed(line, problem, session_id, durable)
            continue
        offset += len(line)
        first = first or outcome
        if outcome.event_type == "carp.request.received":
            request = request or outcome
        elif outcome.event_type == "carp.resolution.completed":
            resolved = outcome
        elif outcome.event_type == "error.occurred":
            is_changed |= outcome.payload.get("error_code") == POLICY_CHANGED
        else:
            untold.add(outcome)
        actions += outcome.event_type in ("action.executed", "action.failed")
    last = chain.last
    if first is None or last is None:
        raise ChainBroken(f"session {session_id} has no whole event; start a new session")
    if last.event_type == "session.ended":
        raise ChainBroken(f"session {session_id} was ended; nothing may follow. Start a new session")
    if durable is not None and last.sequence + 1 < durable:
        raise ChainBroken(
            f"session {session_id} ends with event {last.sequence}, and {durable} events had reached the disk: its end "
            "was removed. It is left as it is; look at it with `cra trace verify`"
        )
    torn = log.set_aside(offset)
    end = Position(last.sequence + 1, offset, last.event_hash, parse_us(last.timestamp))
    known = None if is_changed else resolved
    return Reopened(first, request, actions, end, torn if torn.size else None, untold, known)


def _refuse_changed(line: bytes, problem: Problem, session_id: str, durable: int | None) -> None:
    if _is_event(line) or (durable is not None and problem.sequence < durable):
        raise ChainBroken(
            f"session {session_id} was changed at event {problem.sequence}: {problem.message}. "
            "It is left as it is; look at it with `cra trace verify`"
        )


def _refuse_events_behind(line: bytes, problem: Problem, session_id: str) -> None:
    if _is_event(line):
        raise ChainBroken(
            f"session {session_id} is damaged at event {problem.sequence}, with whole events behind it: no torn "
            "end looks like that. It is left as it is; look at it with `cra trace verify`"
        )


def _is_event(line: bytes) -> bool:
    if not line.endswith(b"\n"):
        return False
    try:
        read(line[:-1], "cra")
    except MalformedError:
        return False
    return True
