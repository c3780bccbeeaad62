"""Verdicts in words for people, and as JSON for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cra_middleware.cli.output import Part
from cra_middleware.evidence.reports import SessionReport
from cra_middleware.trace.chain import Verdict


def in_words(session: SessionReport, lacking: Sequence[str] = ()) -> Iterator[Part]:
    """One session's verdict, with what was required and is lacking."""
    style = "bold red" if not session.intact else "bold green" if session.sealed else "bold yellow"
    yield (str(session), style)
    verdict = session.verdict
    events = session.total_events if verdict is None else verdict.events
    count = f"{events} event{'' if events == 1 else 's'}"
    facts = [count if verdict is None or verdict.intact else f"{count} verified"]
    if verdict is not None and verdict.profile != "cra":
        facts.append(f"profile {verdict.profile}")
    if len(session.paths) > 1:
        facts.append(f"{len(session.paths)} files")
    name = session.session_id
    if session.paths and name is not None and not any(name in path for path in session.paths):
        facts.append(f"session {name}")
    if session.intact:
        facts += [f"required: {word}" for word in lacking]
    yield f" ({', '.join(facts)})"


def session_json(session: SessionReport) -> dict[str, object]:
    """One session's verdict."""
    verdict = session.verdict
    error = None if verdict is None else verdict.error
    fields: dict[str, object] = {
        "session_id": session.session_id,
        "events": 0 if verdict is None else verdict.events,
        "profile": "cra" if verdict is None else verdict.profile,
        "intact": session.intact,
        "sealed": session.sealed,
        "signed_events": session.signed_events,
        "witnessed_events": session.witnessed_events,
        "problems": list(session.problems),
        "error": error and {"kind": error.kind, "sequence": error.sequence, "message": error.message},
    }
    if session.pruned_events:
        fields["pruned_events"] = session.pruned_events
    if len(session.paths) > 1:
        fields["paths"] = list(session.paths)
    if verdict is not None and verdict.recovered is not None:
        fields["recovered"] = {"bytes": verdict.recovered.bytes, "sha256": verdict.recovered.sha256}
    return fields


def report_of(path: str, verdict: Verdict) -> SessionReport:
    """What a verdict alone says."""
    return SessionReport(verdict.session_id, (path,), verdict, verdict.events)
