"""Agents as people write them, with a server in between: LangChain, LangGraph's pause, and the page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("langchain", reason="the LangChain adapter needs the langchain extra")

from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import BaseTool, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from cra_adapters.langchain import CRAMiddleware
from cra_middleware import Runtime, governed
from cra_middleware.testing import Scripted
from tests.adapters.langchain_runs import Model
from tests.client.served import Served

ROOT = Path(__file__).resolve().parents[2]


def tools(ran: list[Any]) -> list[BaseTool]:
    """A lookup that is governed by itself, too, and a refund."""

    @tool
    @governed("ticket.get")
    def lookup(ticket_id: str) -> str:
        """Look a ticket up."""
        ran.append(ticket_id)
        return f"{ticket_id} is open"

    @tool
    def refund(amount: int) -> str:
        """Pay a refund."""
        ran.append(amount)
        return f"paid {amount}"

    return [lookup, refund]


def agent(runtime: Runtime, ran: list[Any], *turns: list[Scripted], saver: Any = None) -> Any:
    gate = CRAMiddleware(runtime, actions={"refund": "refund.create"})
    script = [
        AIMessage("", tool_calls=[{"name": one.tool, "args": dict(one.arguments), "id": one.call_id} for one in turn])
        for turn in turns
    ]
    model = Model(messages=iter([*script, *(AIMessage("done") for _ in range(4))]))
    return create_agent(model, tools(ran), middleware=[gate], checkpointer=saver)


LOOKUP = [Scripted("lookup", {"ticket_id": "T-1"}, "call_1")]
REFUND = [Scripted("refund", {"amount": 5}, "call_2")]
START = {"messages": [HumanMessage("Help")]}


def test_langchain(served: Served, runtime: Runtime) -> None:
    """A ``@governed`` body inside the adapter is decided once; a call that needs a person is told to the model."""
    ran: list[Any] = []
    with runtime.session("bot", "Help") as session:
        state = agent(runtime, ran, LOOKUP, REFUND).invoke(START)
    assert ran == ["T-1"]
    told = [message.content for message in state["messages"] if isinstance(message, ToolMessage)]
    assert told[0] == "T-1 is open"
    assert "approval_required" in told[1]
    assert served.outcomes(session.id) == [("action.executed", "ticket.get")]


@pytest.mark.parametrize("answer", ["approve", "reject"])
def test_a_graph_that_waits_for_a_person(served: Served, answer: str) -> None:
    """It is paused; a person answers at the server; another process goes on with it, and the answer counts."""
    saver, thread = InMemorySaver(), {"configurable": {"thread_id": f"thread-{answer}"}}
    ran: list[Any] = []
    served.key("ann", "approver")
    with served.connect() as runtime:
        stopped = agent(runtime, ran, REFUND, saver=saver).invoke(START, thread)
        (question,) = stopped["__interrupt__"]
        assert question.value["arguments"] == {"amount": 5}
    with served.connect("ann") as desk:
        desk_answer = desk.approvals.approve if answer == "approve" else desk.approvals.reject
        asked = desk_answer(question.value["approval_id"], by="ann", reason="because")
    with served.connect() as runtime:
        state = agent(runtime, ran, saver=saver).invoke(Command(resume=True), thread)
    assert ran == ([5] if answer == "approve" else [])
    last = [message for message in state["messages"] if isinstance(message, ToolMessage)][-1]
    assert ("paid 5" if answer == "approve" else "because") in str(last.content)
    outcomes = served.outcomes(asked.pending.session_id)
    assert outcomes == [("action.executed" if answer == "approve" else "action.denied", "refund.create")]


def test_a_yes_that_the_agents_side_gives_is_none(served: Served, runtime: Runtime) -> None:
    """What a run is resumed with comes from who asks: without the server's yes nothing runs."""
    saver, thread = InMemorySaver(), {"configurable": {"thread_id": "thread-own"}}
    ran: list[Any] = []
    made = agent(runtime, ran, REFUND, saver=saver)
    assert "__interrupt__" in made.invoke(START, thread)
    state = made.invoke(Command(resume={"approved": True, "by": "mallory"}), thread)
    assert ran == []
    assert any(isinstance(message, AIMessage) for message in state["messages"])


@pytest.mark.parametrize(("page", "second"), [("docs/http.md", "never-delete"), ("README.md", "INTACT, SEALED")])
def test_the_page(serve: Any, page: str, second: str) -> None:
    """The first Python block about HTTP mode runs, and prints what it says."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    block = next(block for block in blocks if "Runtime.connect" in block)
    served: Served = serve(ROOT / "examples/atlases/support", keyed="open")
    done = subprocess.run(
        [sys.executable, "-c", block.replace("http://127.0.0.1:8420", served.url)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[0] == "T-42: my lamp arrived broken"
    assert second in said[1]
    assert said[-1].startswith("INTACT, SEALED")
