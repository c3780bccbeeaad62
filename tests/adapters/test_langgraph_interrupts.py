"""Approvals by LangGraph's own pause: the run stops, and goes on with exactly what was approved, once."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("langchain", reason="needs the langchain extra")

from langchain.agents import create_agent
from langchain_core.messages import AIMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, Send

from cra_adapters.langchain import AskByInterrupt, CRAMiddleware, govern_tools, governed_tool_node
from cra_middleware import Atlas, CallRefused, Runtime, governed, verify
from cra_middleware.approvals.approval import Pending
from cra_middleware.approvals.store import MemoryApprovals
from tests.adapters.test_langchain import ATLAS, RAN, apay, lookup, model, node_graph, pay, run, tool_messages

CONFIG = {"configurable": {"thread_id": "t"}}
ASKED = ("pay", {"order_id": "A-1", "amount": 60})


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    RAN.clear()


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    with Runtime(Atlas.from_dict(ATLAS), trace=tmp_path / "traces", approvals=tmp_path / "approvals.db") as made:
        yield made


def agent_of(runtime: Runtime, *turns: list[tuple[str, dict[str, Any]]], saver: Any = None) -> Any:
    return create_agent(
        model(*turns), [pay, apay, lookup], middleware=[CRAMiddleware(runtime)], checkpointer=saver or InMemorySaver()
    )


def questions(state: Any) -> list[dict[str, Any]]:
    return [item.value for item in state.get("__interrupt__", [])]


def trace(folder: Path) -> list[dict[str, Any]]:
    (file,) = (folder / "traces").glob("*.trace.jsonl")
    assert verify(file).intact
    return [json.loads(line) for line in file.read_bytes().splitlines()]


def kinds(folder: Path) -> list[str]:
    return [event["event_type"] for event in trace(folder) if event["event_type"].startswith(("action.", "policy."))]


@pytest.mark.parametrize("mode", ["invoke", "ainvoke", "stream", "astream"])
@pytest.mark.parametrize("answer", [True, {"approved": True, "by": "ann"}, False, {"approved": False, "reason": "No."}])
def test_stop_and_resume(runtime: Runtime, tmp_path: Path, mode: str, answer: Any) -> None:
    """The question names the call; yes runs it exactly once, no tells the model; both are in one whole chain."""
    name = "apay" if mode.startswith("a") else "pay"
    agent = agent_of(runtime, [(name, ASKED[1]), ("lookup", {"ticket_id": "T-1"})])
    stopped = run(agent, "ainvoke" if mode.startswith("a") else "invoke", CONFIG)
    (question,) = questions(stopped)
    assert (question["action_id"], question["arguments"], question["policy_id"]) == (
        "refund.create",
        {"order_id": "A-1", "amount": 60.0},
        "ask",
    )
    assert RAN == [("lookup", "T-1")]
    state = run(agent, mode, CONFIG, Command(resume=answer))
    said = {message.name: message for message in tool_messages(state)}
    approved = answer is True or (isinstance(answer, dict) and answer["approved"])
    assert RAN == [("lookup", "T-1"), *([(name, "A-1", 60.0)] if approved else [])]
    assert said[name].status == ("success" if approved else "error")
    if answer == {"approved": False, "reason": "No."}:
        assert "No." in str(said[name].content)
    events = trace(tmp_path)
    asked = [event for event in events if event["payload"].get("effect") == "require_approval"]
    assert len(asked) >= 1
    final = [event for event in events if event["payload"].get("approval_id") == question["approval_id"]]
    assert [event["event_type"] for event in final] == ["action.approved" if approved else "action.denied"]


def test_siblings_are_answered_one_by_one(runtime: Runtime) -> None:
    """Two questions of one turn: each gets its own answer."""
    agent = agent_of(runtime, [("pay", {"order_id": "A", "amount": 60}), ("pay", {"order_id": "B", "amount": 70})])
    stopped = run(agent, "invoke", CONFIG)
    found = {item.value["arguments"]["order_id"]: item.id for item in stopped["__interrupt__"]}
    run(agent, "invoke", CONFIG, Command(resume={found["A"]: False, found["B"]: True}))
    assert RAN == [("pay", "B", 70.0)]


def test_a_person_answers_elsewhere(runtime: Runtime) -> None:
    """Approved by ``runtime.approvals``, the run goes on whatever it is resumed with, and asks nobody again."""
    agent = agent_of(runtime, [ASKED])
    (question,) = questions(run(agent, "invoke", CONFIG))
    runtime.approvals.approve(question["approval_id"], by="ann")
    run(agent, "invoke", CONFIG, Command(resume="go on"))
    assert RAN == [("pay", "A-1", 60.0)]


def test_another_process_goes_on(tmp_path: Path) -> None:
    """The thread's checkpoint, its trace and the store outlive the runtime; the call runs once, in the same chain."""
    saver = InMemorySaver()
    options: dict[str, Any] = {"trace": tmp_path / "traces", "approvals": tmp_path / "approvals.db"}
    first = Runtime(Atlas.from_dict(ATLAS), **options)
    (question,) = questions(run(agent_of(first, [ASKED], saver=saver), "invoke", CONFIG))
    first.close()
    with Runtime(Atlas.from_dict(ATLAS), **options) as second:
        second.approvals.approve(question["approval_id"], by="ann")
        run(agent_of(second, saver=saver), "invoke", CONFIG, Command(resume=True))
    assert RAN == [("pay", "A-1", 60.0)]
    assert kinds(tmp_path).count("action.executed") == 1


def test_changed_arguments_are_not_what_was_approved(runtime: Runtime) -> None:
    """Somebody edits the call while it waits: the yes was to another question, and nothing runs."""
    agent = agent_of(runtime, [ASKED])
    run(agent, "invoke", CONFIG)
    message = agent.get_state(CONFIG).values["messages"][-1]
    assert isinstance(message, AIMessage)
    changed = message.model_copy(
        update={"tool_calls": [{**message.tool_calls[0], "args": {"order_id": "A-1", "amount": 99}}]}
    )
    agent.update_state(CONFIG, {"messages": [changed]}, as_node="model")
    state = run(agent, "invoke", CONFIG, Command(resume=True))
    assert RAN == []
    assert questions(state) or tool_messages(state)[-1].status == "error"


def test_changed_policies_void_the_question(runtime: Runtime) -> None:
    """The policies change while the call waits: it is asked about anew, or refused, and never run on the old yes."""
    agent = agent_of(runtime, [ASKED])
    run(agent, "invoke", CONFIG)
    runtime.reload(Atlas.from_dict({**ATLAS, "version": "2.0.0"}))
    run(agent, "invoke", CONFIG, Command(resume=True))
    assert RAN == []
    assert [item.state for item in runtime.approvals.list(None)][0] == "expired"


def test_a_second_use_asks_again(runtime: Runtime) -> None:
    """The same call in the next turn is another question."""
    agent = agent_of(runtime, [ASKED], [ASKED])
    first = questions(run(agent, "invoke", CONFIG))
    second = questions(run(agent, "invoke", CONFIG, Command(resume=True)))
    assert RAN == [("pay", "A-1", 60.0)]
    assert first[0]["approval_id"] != second[0]["approval_id"]


def test_a_resume_that_is_no_answer(runtime: Runtime) -> None:
    """Neither yes nor no is no."""
    agent = agent_of(runtime, [ASKED])
    run(agent, "invoke", CONFIG)
    state = run(agent, "invoke", CONFIG, Command(resume={"approve": "yes"}))
    assert RAN == []
    assert "neither True nor" in str(tool_messages(state)[-1].content)


def test_an_answer_for_another_question(runtime: Runtime) -> None:
    """A value that names another approval does not count for this one."""
    agent = agent_of(runtime, [ASKED])
    run(agent, "invoke", CONFIG)
    run(agent, "invoke", CONFIG, Command(resume={"approved": True, "approval_id": "another"}))
    assert RAN == []


def test_without_a_checkpointer_the_model_is_told(runtime: Runtime) -> None:
    """Where a run cannot be stopped, the call is refused with its approval's id to wait for."""
    agent = create_agent(model([ASKED]), [pay], middleware=[CRAMiddleware(runtime)])
    state = run(agent, "invoke")
    assert "approval_required" in str(tool_messages(state)[-1].content)
    assert RAN == []
    # the run's session is over, and nobody can go on with it
    assert [item.state for item in runtime.approvals.list(None)] == ["expired"]


def test_interrupt_can_be_left_out(runtime: Runtime) -> None:
    """``interrupt=False`` tells the model to wait, with a checkpointer, too."""
    agent = create_agent(
        model([ASKED]), [pay], middleware=[CRAMiddleware(runtime, interrupt=False)], checkpointer=InMemorySaver()
    )
    assert questions(run(agent, "invoke", CONFIG)) == []


class AskedTogether(MemoryApprovals):
    """Nobody is asked before two are: the first that stops would keep a ToolNode from beginning the second."""

    def __init__(self) -> None:
        super().__init__()
        self._both = threading.Barrier(2)

    def add(self, pending: Pending, most: int) -> bool:
        self._both.wait(30)
        return super().add(pending, most)


@pytest.fixture
def asking(tmp_path: Path) -> Iterator[Runtime]:
    with Runtime(Atlas.from_dict(ATLAS), trace=tmp_path / "traces", approvals=AskedTogether()) as made:
        yield made


def test_a_node_with_several_calls_wants_a_name(asking: Runtime) -> None:
    """In a plain ToolNode two calls share a task: a bare yes could be for either, so it counts for neither."""
    graph = node_graph(govern_tools([pay], asking), InMemorySaver())
    calls = [
        {"name": "pay", "args": {"order_id": name, "amount": 60}, "id": name, "type": "tool_call"}
        for name in ("A", "B")
    ]
    given = {"messages": [AIMessage("", tool_calls=calls)]}
    with asking.session():
        (question, *_) = questions(graph.invoke(given, CONFIG))
        waiting = {item.pending.arguments["order_id"]: item.pending.approval_id for item in asking.approvals.list()}
        assert set(waiting) == {"A", "B"}
        assert question["approval_id"] in waiting.values()
        graph.invoke(Command(resume=True), CONFIG)
        assert RAN == []


def test_an_approver_for_any_graph(tmp_path: Path) -> None:
    """``Runtime(approver=AskByInterrupt())`` stops whatever graph a governed function runs in."""

    @governed("refund.create")
    def refund(amount: float) -> str:
        RAN.append(("refund", amount))
        return "paid"

    graph = StateGraph(MessagesState)
    graph.add_node("pay", lambda state: {"messages": [AIMessage(refund(60))]})
    graph.add_edge(START, "pay")
    compiled = graph.compile(checkpointer=InMemorySaver())
    with Runtime(Atlas.from_dict(ATLAS), approver=AskByInterrupt()) as runtime, runtime.session():
        assert len(questions(compiled.invoke({"messages": []}, CONFIG))) == 1
        assert RAN == []
        compiled.invoke(Command(resume=True), CONFIG)
        assert RAN == [("refund", 60)]
        with pytest.raises(CallRefused, match="failed with RuntimeError"):
            refund(70)  # outside of a graph nobody can be asked so


def test_a_question_that_nobody_remembers(tmp_path: Path) -> None:
    """After a restart without a store the value answers nothing, and nothing runs."""
    saver = InMemorySaver()
    first = Runtime(Atlas.from_dict(ATLAS), trace=tmp_path)
    run(agent_of(first, [ASKED], saver=saver), "invoke", CONFIG)
    first.close()
    with Runtime(Atlas.from_dict(ATLAS), trace=tmp_path) as second:
        state = run(agent_of(second, saver=saver), "invoke", CONFIG, Command(resume=True))
    assert RAN == []
    assert "another question" in str(tool_messages(state)[-1].content)


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("alone", [False, True])
def test_a_no_is_remembered(runtime: Runtime, elsewhere: bool, alone: bool) -> None:
    """The same call again, after a person's no, is refused with the reason that was given, and stops no run."""
    turns = ([ASKED], [ASKED], [("pay", {"order_id": "A-1", "amount": 61})])
    saver = InMemorySaver()
    agent = agent_of(runtime, *turns, saver=saver)
    if alone:
        agent = create_agent(model(*turns), govern_tools([pay], runtime), checkpointer=saver)
    (question,) = questions(run(agent, "invoke", CONFIG))
    answer: Any = {"approved": False, "by": "ann", "reason": "Not before Monday."}
    if elsewhere:
        runtime.approvals.reject(question["approval_id"], by="ann", reason="Not before Monday.")
        answer = True  # what the run is resumed with is no answer then
    stopped = run(agent, "invoke", CONFIG, Command(resume=answer))
    assert RAN == []
    assert ["Not before Monday" in str(message.content) for message in tool_messages(stopped)] == [True, True]
    (other,) = questions(stopped)  # another call is another question
    assert other["arguments"]["amount"] == 61
    run(agent, "invoke", CONFIG, Command(resume=True))
    assert RAN == [("pay", "A-1", 61.0)]


@pytest.mark.parametrize("mode", ["invoke", "ainvoke"])
def test_a_node_that_is_sent_each_call(runtime: Runtime, mode: str) -> None:
    """With ``Send``, as create_agent does it, a call that waits does not run its siblings a second time."""
    graph = StateGraph(MessagesState)
    graph.add_node("ask", lambda state: {})
    graph.add_node("tools", governed_tool_node([pay, apay, lookup], runtime))
    graph.add_edge(START, "ask")
    graph.add_conditional_edges(
        "ask", lambda state: [Send("tools", [call]) for call in state["messages"][-1].tool_calls], ["tools"]
    )
    compiled = graph.compile(checkpointer=InMemorySaver())
    calls = [
        {"name": "pay", "args": ASKED[1], "id": "c1", "type": "tool_call"},
        {"name": "lookup", "args": {"ticket_id": "T"}, "id": "c2", "type": "tool_call"},
    ]
    state = run(compiled, mode, CONFIG, {"messages": [AIMessage("", tool_calls=calls)]})
    assert len(questions(state)) == 1
    run(compiled, mode, CONFIG, Command(resume=True))
    assert RAN == [("lookup", "T"), ("pay", "A-1", 60.0)]
