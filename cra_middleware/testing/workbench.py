"""One case at work: an Atlas, a runtime whose parts can be made to fail, the tools' bodies, and the evidence."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

from cra_middleware.approvals.approval import Approver
from cra_middleware.atlas.loader import Atlas
from cra_middleware.carp.quota import Counters
from cra_middleware.runtime import Runtime
from cra_middleware.testing.evidence_of_runs import Evidence
from cra_middleware.testing.scenario import Bodies, Mode, Outcome, Scripted, Subject, Task, Tool
from cra_middleware.testing.stand_ins import FailingSink
from cra_middleware.trace.sinks.jsonl import JsonlSink

ACTIONS = {
    "lookup": "ticket.get",
    "remove": "ticket.delete",
    "pay": "refund.create",
    "broken": "ticket.update",
    "flaky": "ticket.update",
    "notify": "message.send",
}
"""What the contract's tools stand for. ``delegate`` and ``helper`` (an agent as a tool) are ``ticket.list``."""

_AMOUNT = {"type": "object", "required": ["amount"]}
ATLAS: dict[str, Any] = {
    "atlas_version": "1.0",
    "atlas_id": "com.example.contract",
    "version": "1.0.0",
    "name": "Contract",
    "description": "What the tools of the contract may do",
    "actions": [
        {"action_id": "ticket.get", "name": "Look up", "description": "Look a ticket up"},
        {"action_id": "ticket.list", "name": "List", "description": "List tickets"},
        {"action_id": "ticket.update", "name": "Update", "description": "Update a ticket"},
        {"action_id": "ticket.delete", "name": "Delete", "description": "Delete a ticket"},
        {"action_id": "refund.create", "name": "Refund", "description": "Pay a refund"},
        {"action_id": "message.send", "name": "Notify", "description": "Tell people"},
    ],
    "policies": [
        {"policy_id": "allow-all", "type": "allow"},
        {
            "policy_id": "no-delete",
            "type": "deny",
            "actions": ["*.delete"],
            "parameters": {"reason": "Close it instead."},
        },
        {
            "policy_id": "big",
            "type": "deny",
            "actions": ["refund.*"],
            "parameters": {"reason": "Too much money."},
            "conditions": {"parameters": {**_AMOUNT, "properties": {"amount": {"exclusiveMinimum": 100}}}},
        },
        {
            "policy_id": "middle",
            "type": "require_approval",
            "actions": ["refund.*"],
            "conditions": {"parameters": {**_AMOUNT, "properties": {"amount": {"minimum": 50}}}},
        },
        {"policy_id": "told", "type": "require_approval", "actions": ["message.*"]},
        {
            "policy_id": "closed",
            "type": "deny",
            "actions": ["refund.*"],
            "parameters": {"reason": "This order is closed."},
            "conditions": {
                "parameters": {"type": "object", "required": ["order"], "properties": {"order": {"const": "T-1"}}}
            },
        },
        {
            "policy_id": "often",
            "type": "rate_limit",
            "actions": ["*"],
            "parameters": {"max_calls": 1000, "window_seconds": 60},
        },
    ],
    "context_blocks": [{"context_id": "tone", "content": "Be kind.", "inject_mode": "always"}],
    "adapters": {"any": {"tools": {**ACTIONS, "delegate": "ticket.list", "helper": "ticket.list"}}},
}


class Workbench:
    """Opened for one case; closing it checks the evidence."""

    holes: ClassVar[Mapping[str, str]] = {}
    """Cases, by name, that no adapter can meet with this kind of runtime, each with a sentence that says why."""

    def __init__(self, subject: Subject, mode: Mode, folder: Path) -> None:
        self.subject = subject
        self.mode: Mode = mode
        self.folder = folder
        self.bodies = Bodies(mode)
        self.sink = FailingSink(JsonlSink(folder / "traces"))
        self._numbers = itertools.count(1)
        self._runtime: Runtime | None = None

    def __enter__(self) -> Workbench:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sink.failing = False
        if self._runtime is not None:
            self._runtime.close()
        if error is None:
            self.evidence().holds_every_run(self.bodies.ran, ACTIONS)

    def runtime(
        self,
        *,
        approver: Approver | None = None,
        counters: Counters | None = None,
        approvals: bool = False,
        adapters: Mapping[str, Any] | None = None,
    ) -> Runtime:
        """A new runtime on the same folder, in place of the last one, which is closed: as after a restart."""
        if self._runtime is not None:
            self._runtime.close()
            self.sink = FailingSink(JsonlSink(self.folder / "traces"))
        atlas = ATLAS if adapters is None else {**ATLAS, "adapters": adapters}
        kept = self.folder / "approvals.db" if approvals else None
        self._runtime = Runtime(
            Atlas.from_dict(atlas), trace=self.sink, approver=approver, counters=counters, approvals=kept
        )
        return self._runtime

    def task(self, *turns: Sequence[tuple[str, dict[str, Any]]], **changes: Any) -> Task:
        """A task with these turns, and the tools that they name."""
        scripted = [[Scripted(name, args, f"call_{next(self._numbers)}") for name, args in turn] for turn in turns]
        wanted = dict.fromkeys(call.tool for turn in scripted for call in turn if call.tool in ACTIONS)
        tools: list[Tool] = self.bodies.tools(*(wanted or {"lookup": None}))
        made = Task(runtime=self._runtime or self.runtime(), turns=scripted, tools=tools, mode=self.mode)
        return replace(made, **changes)

    def run(self, *turns: Sequence[tuple[str, dict[str, Any]]], **changes: Any) -> Outcome:
        """Run such a task."""
        return self.subject.run(self.task(*turns, **changes))

    def evidence(self) -> Evidence:
        """What the traces say by now."""
        return Evidence(self.folder / "traces")

    def went_on(self, outcome: Outcome) -> None:
        """The run came to its end: nothing was raised, and the model had the last word.

        Raises:
            AssertionError: when it did not.
        """
        assert outcome.error is None, f"the run raised {outcome.error!r}"
        assert "done" in outcome.final, f"the model's last words were {outcome.final!r}"

    def was_told(self, outcome: Outcome, *words: str) -> None:
        """The model saw these words in what its calls gave.

        Raises:
            AssertionError: when it did not.
        """
        seen = "\n".join(outcome.seen)
        missing = [word for word in words if word not in seen]
        assert not missing, f"the model was not told {missing}, but {list(outcome.seen)}"
