"""What a contract's traces must say, whatever happened: each run of a tool has its decision and its outcome."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cra_middleware._canonical import canonical, digest
from cra_middleware.trace.event import Event
from cra_middleware.trace.profiles import read
from cra_middleware.verification import verify

FINAL = ("action.executed", "action.failed", "action.denied")
NOT_RUN = ("arguments_changed", "audit_unavailable", "not_run")
"""With which codes a call failed that was let run, and whose tool then did not: a runtime's, and a client's."""


class Evidence:
    """The events of every session in a folder, verified."""

    def __init__(self, folder: Path) -> None:
        """Read the folder.

        Raises:
            AssertionError: when a trace does not verify.
        """
        self.sessions: dict[str, list[Event]] = {}
        for file in sorted(folder.glob("*.trace.jsonl")):
            report = verify(file)
            assert report.intact, f"a trace does not verify: {report}"
            events = [read(line, "cra").event for line in file.read_bytes().split(b"\n")[:-1]]
            self.sessions[events[0].session_id] = events

    @property
    def events(self) -> list[Event]:
        """All of them, session by session."""
        return [event for events in self.sessions.values() for event in events]

    def of(self, event_type: str, action_id: str | None = None) -> list[dict[str, Any]]:
        """The payloads of one type, of one action."""
        return [
            dict(event.payload)
            for event in self.events
            if event.event_type == event_type and (action_id is None or event.payload.get("action_id") == action_id)
        ]

    def denials(self, action_id: str) -> list[str]:
        """The codes with which calls of an action were denied."""
        return [str(payload["code"]) for payload in self.of("action.denied", action_id)]

    def holds_every_run(self, ran: Sequence[tuple[str, dict[str, Any]]], actions: dict[str, str]) -> None:
        """Each run of a body has one request with its arguments' digest, one approval, and one outcome; and no body ran
        for a call that was let run and, as its outcome says, then did not.

        Raises:
            AssertionError: when one is missing, or says something else.
        """
        for execution, events in self._by_execution().items():
            types = [event.event_type for event in events]
            assert types.count("action.requested") == 1, f"{execution}: {types}"
            finals = [name for name in types if name in FINAL]
            assert len(finals) <= 1, f"{execution} ended twice: {types}"
            if "action.approved" in types:
                assert finals in (["action.executed"], ["action.failed"]), f"{execution} has no outcome: {types}"
        expected = Counter((actions[tool], digest(canonical(arguments))) for tool, arguments in ran)
        recorded = Counter(
            (str(events[0].payload["action_id"]), str(events[0].payload["parameters_hash"]))
            for events in self._by_execution().values()
            if any(event.event_type == "action.approved" for event in events)
            and not any(event.payload.get("error_code") in NOT_RUN for event in events)
            and events[0].payload["action_id"] in set(actions.values())
        )
        assert recorded == expected, f"the bodies ran with {expected}, and let run was {recorded}"

    def _by_execution(self) -> dict[str, list[Event]]:
        found: dict[str, list[Event]] = {}
        for event in self.events:
            execution = event.payload.get("execution_id")
            if isinstance(execution, str):
                found.setdefault(execution, []).append(event)
        return found
