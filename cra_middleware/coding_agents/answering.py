"""From one event on stdin to what the agent is told. Whatever goes wrong here blocks."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from cra_middleware.coding_agents.events import After, Before, Ended, Event, Format, MalformedEventError, Said
from cra_middleware.coding_agents.formats import format_of
from cra_middleware.coding_agents.sittings import FOLDER, sit_down
from cra_middleware.errors import ApprovalRequired, CallRefused, CRAError
from cra_middleware.runtime import Runtime
from cra_middleware.sessions.local_session import LocalSession
from cra_middleware.trace.let_run import Told

MAX_EVENT_BYTES = 32 * 1024 * 1024
LOCK_SECONDS = 10.0
"""How long a call waits for the calls beside it."""
UNMATCHED = "unmatched_outcome"
LOST = ("LostOutcomeError", "nobody said how the tool came out, or whether it ran")


class Options(NamedTuple):
    """What the hook's command line says."""

    agent: str
    atlas: tuple[str, ...]
    trace: str
    approvals: str = ""
    """Left out: ``approvals.db`` in the trace folder."""
    project: str = ""
    """What ``$PROJECT`` stands for. Left out: the folder that the agent names in its environment, or the cwd."""


def answer(options: Options, data: bytes) -> Said:
    """What the agent is told about one event."""
    known = format_of(options.agent)
    event: Event | None = None
    try:
        event = known.parse(_read(data))
        reason = _handle(options, known, event)
    except MalformedEventError as error:
        reason = f"CRA: this is no event of {options.agent} that its hook knows ({error}), so nothing runs."
    except CRAError as error:
        reason = f"{_failed(event)}: {error}"
    except (OSError, ValueError, TypeError) as error:
        reason = f"{_failed(event)}: {type(error).__name__}: {error}"
    return known.passed(event) if event is not None and reason is None else known.blocked(reason or "", event)


def _failed(event: Event | None) -> str:
    if isinstance(event, Before):
        return f"CRA: nothing could be decided about {event.tool_name}, so it must not run. A person has to mend this"
    return "CRA: what was told could not be noted. A person has to mend this"


def _read(data: bytes) -> Mapping[str, object]:
    if len(data) > MAX_EVENT_BYTES:
        raise MalformedEventError(f"it is longer than {MAX_EVENT_BYTES} bytes")
    try:
        event = json.loads(data.decode(), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise MalformedEventError(f"it is no JSON: {str(error)[:200]}") from None
    if not isinstance(event, dict):
        raise MalformedEventError("it is no JSON object")
    return event


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object whose keys are told apart: of two values for one key, the tool might take the other."""
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("an object has one key twice")
    return made


def _handle(options: Options, known: Format, event: Event) -> str | None:
    """Why the tool must not run; None when it may, or when what was told is noted."""
    trace = Path(options.trace).absolute()
    approvals = Path(options.approvals or trace / "approvals.db").absolute()
    atlases = [Path(name).absolute() for name in options.atlas]
    project = Path(options.project or _project()).absolute()
    if isinstance(event, Before) and event.cwd is not None:
        os.chdir(event.cwd)  # a relative path is taken from where the tool runs
    (trace / FOLDER).mkdir(mode=0o700, parents=True, exist_ok=True)
    runtime = Runtime(atlases, trace=trace, approvals=approvals, counters=trace / "counters.db", project=project)
    with closing(runtime), sit_down(runtime, trace, options.agent, event.session_id, LOCK_SECONDS) as sitting:
        if isinstance(event, Ended):
            if sitting.is_known:
                session = sitting.session()
                for call in session.untold:
                    session.tell(call, Told(options.agent, LOST))
                sitting.end(session)
            return None
        session = sitting.session()
        try:
            if isinstance(event, After):
                _tell(session, options.agent, event)
                return None
            return _decide(runtime, session, known.FRAMEWORK, approvals, event)
        finally:
            session.detach()  # before the lock is given up


def _project() -> str:
    named = ("CLAUDE_PROJECT_DIR", "GEMINI_PROJECT_DIR", "CURSOR_PROJECT_DIR")
    return next((os.environ[name] for name in named if os.environ.get(name)), os.getcwd())


def _decide(runtime: Runtime, session: LocalSession, framework: str, approvals: Path, event: Before) -> str | None:
    target = runtime.target_for(event.tool_name, framework)
    call = target.call(event.tool_name, event.arguments, event.call_id)._replace(agent_name=event.subagent)
    try:
        session.let_run(call)
    except ApprovalRequired as waits:
        command = f"cra approvals approve {(waits.approval_id or '')[-8:]} --store {shlex.quote(str(approvals))}"
        return (
            f"CRA: {waits.reason.rstrip('.')}. It waits for a person, who answers on their own terminal: {command} "
            "- tell them, and do not answer it yourself. When it is approved, make exactly the same call again: it "
            "then runs once."
        )
    except CallRefused as refused:
        return f"CRA: {refused}"
    return None


def _tell(session: LocalSession, agent: str, event: After) -> None:
    """Record how a call ended; one that is not open is noted, and changes nothing."""
    same = (call for call in session.untold if (call.tool_call_id, call.tool_name) == (event.call_id, event.tool_name))
    call = next(same, None)
    if call is not None:
        error = None if event.error is None else (event.error, f"{agent} says that the tool did not end well")
        session.tell(call, Told(agent, error, event.duration_ms))
    elif not event.is_refusal:
        named = f"{event.tool_name[:80]!r}, {event.call_id[:80]!r}"
        session.note(UNMATCHED, f"{agent} told the outcome of a call that is not open: {named}")
