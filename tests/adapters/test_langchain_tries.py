"""What was tried against the LangChain adapter: numbered calls, stored runs given twice, cancelled tools."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("langchain", reason="needs the langchain extra")

from langchain.agents import create_agent
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command

from cra_adapters.langchain import CRACallbackHandler, CRAMiddleware, governed_tool_node
from cra_adapters.langchain import middleware as module
from cra_middleware import Atlas, Runtime
from cra_middleware.testing.evidence_of_runs import Evidence
from tests.adapters.test_langchain import ATLAS, RAN, model, pay

CONFIG: Any = {"configurable": {"thread_id": "ann's"}}
ASKED = {"order_id": "A-1", "amount": 60}


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    RAN.clear()
    with Runtime(Atlas.from_dict(ATLAS), trace=tmp_path / "traces", approvals=tmp_path / "approvals.db") as made:
        yield made


def test_threads_whose_calls_are_numbered_alike(runtime: Runtime) -> None:
    """A yes to one thread's call is none to another's, whose provider gave its call the same id."""
    graph = StateGraph(MessagesState)
    graph.add_node("tools", governed_tool_node([pay], runtime))
    graph.add_edge(START, "tools")
    compiled = graph.compile(checkpointer=InMemorySaver())
    call = AIMessage("", tool_calls=[{"name": "pay", "args": ASKED, "id": "functions.pay:0"}])
    compiled.invoke({"messages": [call]}, CONFIG)
    (waiting,) = runtime.approvals.list()
    runtime.approvals.approve(waiting.pending.approval_id, by="ann")
    stopped = compiled.invoke({"messages": [call]}, {"configurable": {"thread_id": "bob's"}})
    assert RAN == []
    assert "__interrupt__" in stopped
    assert {item.pending.session_id for item in runtime.approvals.list(None)} > {waiting.pending.session_id}
    compiled.invoke(Command(resume=True), CONFIG)
    assert len(RAN) == 1


def test_an_old_checkpoint_given_again_and_again(runtime: Runtime) -> None:
    """One yes is one run, however often the same checkpoint is gone on from."""
    agent: Any = create_agent(
        model([("pay", ASKED)]), [pay], middleware=[CRAMiddleware(runtime)], checkpointer=InMemorySaver()
    )
    agent.invoke({"messages": "hi"}, CONFIG)
    stopped = agent.get_state(CONFIG).config
    for _ in range(4):
        agent.invoke(Command(resume=True), stopped)
    assert len(RAN) == 1


def test_a_session_that_is_put_in(runtime: Runtime) -> None:
    """What a caller puts into the state does not choose the session."""

    def agent() -> Any:
        return create_agent(model([]), [pay], middleware=[CRAMiddleware(runtime)], checkpointer=InMemorySaver())

    ann, bob = agent(), agent()
    ann.invoke({"messages": "hi"}, CONFIG)
    anns = ann.get_state(CONFIG).values[module.SESSION_KEY]
    bob.invoke({"messages": "hi", module.SESSION_KEY: anns}, {"configurable": {"thread_id": "bob's"}})
    assert bob.get_state({"configurable": {"thread_id": "bob's"}}).values[module.SESSION_KEY] != anns


def test_a_cancelled_tool_under_a_callback(tmp_path: Path) -> None:
    """LangChain tells no handler of it; its outcome is recorded all the same."""

    @tool
    async def lookup() -> str:
        """Look up."""
        await asyncio.sleep(60)
        return "late"

    async def cancelled(handler: CRACallbackHandler) -> None:
        task = asyncio.create_task(lookup.ainvoke({}, config={"callbacks": [handler]}))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with Runtime.observe(tmp_path / "traces") as runtime:
        handler = CRACallbackHandler(runtime)
        asyncio.run(cancelled(handler))
    assert [item["error_code"] for item in Evidence(tmp_path / "traces").of("action.failed")] == ["CancelledError"]


def test_runs_that_fail_are_forgotten(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """LangChain tells no middleware of them."""
    monkeypatch.setattr(module, "MAX_RUNS", 2)
    gate = CRAMiddleware(runtime)
    for _ in range(5):
        agent: Any = create_agent(model([("pay", ASKED)]), [pay], middleware=[gate])
        next(agent.stream({"messages": "hi"}))  # and no more: the caller goes away
    assert len(gate._runs) <= 2
