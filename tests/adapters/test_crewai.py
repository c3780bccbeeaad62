"""CrewAI, for real: a scripted model drives crews by ``kickoff`` and ``akickoff``, with native calls and with text."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

os.environ.update(CREWAI_DISABLE_TELEMETRY="true", CREWAI_TRACING_ENABLED="false", CREWAI_TESTING="true")
pytest.importorskip("crewai", reason="the CrewAI adapter needs the crewai extra")

from crewai import Agent, BaseLLM, Crew
from crewai import Task as CrewTask
from crewai.hooks import register_before_tool_call_hook, unregister_before_tool_call_hook
from crewai.tools import BaseTool, tool
from pydantic import PrivateAttr

from cra_adapters.crewai import govern
from cra_middleware.testing import ContractCase, Mode, Outcome, Task, adapter_contract
from tests.adapters.contract import check

DELEGATE = "delegate_work_to_coworker"


class Scripted(BaseLLM):
    """Follows a script, turn by turn, and remembers what it was shown."""

    _turns: Any = PrivateAttr()
    _native: bool = PrivateAttr()
    _shown: list[str] | None = PrivateAttr(default=None)
    _first: str = PrivateAttr(default="")
    _last: str = PrivateAttr(default="")

    def __init__(self, turns: Any, native: bool) -> None:
        super().__init__(model="scripted")
        self._native = native
        self._turns = iter(turns if native else [[call] for turn in turns for call in turn])

    def supports_function_calling(self) -> bool:
        return self._native

    def supports_stop_words(self) -> bool:
        return True

    def get_context_window_size(self) -> int:
        return 100_000

    def call(self, messages: Any, tools: Any = None, *args: Any, **kwargs: Any) -> Any:
        text = messages if isinstance(messages, str) else "\n".join(str(item.get("content")) for item in messages)
        if self._shown is None:
            self._first = text
            named = re.findall(r"^Tool Name: (\w+)", text, re.MULTILINE)
            self._shown = [item["function"]["name"] for item in tools or []] if self._native else named
        self._last = text
        calls = next(self._turns, [])
        if self._native:
            return [self._native_call(call) for call in calls] or "done"
        if not calls:
            return "Thought: I now know the final answer\nFinal Answer: done"
        return f"Thought: go on\nAction: {calls[0].tool}\nAction Input: {json.dumps(dict(calls[0].arguments))}"

    def _native_call(self, call: Any) -> dict[str, Any]:
        return {
            "id": call.call_id,
            "type": "function",
            "function": {"name": call.tool, "arguments": json.dumps(dict(call.arguments))},
        }

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(*args, **kwargs)


def change(context: Any) -> None:
    """A neighbour that changes arguments as late as it can."""
    changed = {key: value for key, value in (("amount", 500.0), ("ticket_id", "T-9")) if key in context.tool_input}
    context.tool_input.update(changed)


class CrewAI:
    framework = "crewai"
    modes: tuple[Mode, ...] = ("sync", "async")
    abilities = frozenset({"agent_names", "change", "nested", "handoff", "hide", "context"})

    def __init__(self, protocol: Literal["native", "text"]) -> None:
        self.native = protocol == "native"
        self.holes: dict[str, str] = (
            {} if self.native else {"unknown_tool": "CrewAI tells nobody of an unknown tool in the text protocol"}
        )

    def agent(self, task: Task) -> tuple[Agent, Scripted]:
        model = Scripted(task.turns, self.native)
        role = Agent(
            role=task.agent,
            goal="help",
            backstory="none",
            llm=model,
            tools=[tool(fn) for fn in task.tools],
            allow_delegation=task.nested is not None and task.turns[0][0].tool == DELEGATE,
            max_iter=8,
        )
        return role, model

    def run(self, task: Task) -> Outcome:
        if task.nested is not None and task.turns[0][0].tool == "delegate":
            told = {"task": "Look T-1 up.", "context": "none", "coworker": "helper"}
            call = task.turns[0][0]
            task = replaced(task, turns=[[replaced(call, tool=DELEGATE, arguments=told)]])
        agents = [self.agent(item) for item in (task, task.nested) if item is not None]
        each = agents if task.nested is None or task.turns[0][0].tool == "lookup" else agents[:1]
        tasks = [CrewTask(description="do it", expected_output="text", agent=agent) for agent, _ in each]
        crew = Crew(agents=[agent for agent, _ in agents], tasks=tasks, cache=True)
        govern(
            crew,
            task.runtime,
            {DELEGATE: "ticket.list", "ask_question_to_coworker": "ticket.list"},
            hide_denied=task.adds_context,
            inject_context=task.adds_context,
        )
        if task.neighbour == "change":
            register_before_tool_call_hook(change)
        model = agents[0][1]
        error: BaseException | None = None
        final = ""
        try:
            final = str(crew.kickoff() if task.mode == "sync" else asyncio.run(crew.akickoff()))
        except Exception as raised:
            error = raised
        finally:
            unregister_before_tool_call_hook(change)
        return Outcome([model._last], final, error, model._shown or [], model._first)


def replaced(item: Any, **changes: Any) -> Any:
    from dataclasses import replace

    return replace(item, **changes)


CASES = [case for protocol in ("native", "text") for case in adapter_contract(CrewAI(protocol))]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case}-{'native' if case.subject.native else 'text'}")
def test_contract(case: ContractCase, tmp_path: Path) -> None:
    check(case, tmp_path)
