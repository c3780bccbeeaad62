"""LangChain, for real: a scripted model drives ``create_agent``, ``ToolNode`` and bare tools."""

from __future__ import annotations

import asyncio
import json
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import pytest

pytest.importorskip("langchain", reason="the LangChain adapter needs the langchain extra")

from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ToolRetryMiddleware
from langchain.tools import ToolRuntime
from langchain_core.callbacks import AsyncCallbackHandler
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, SystemMessage, ToolMessage
from langchain_core.tools import (
    BaseTool,
    InjectedToolArg,
    InjectedToolCallId,
    StructuredTool,
    Tool,
    ToolException,
    tool,
)
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import Command, interrupt
from pydantic import BaseModel, Field

from cra_adapters.langchain import CRACallbackHandler, CRAMiddleware, govern_tools
from cra_middleware import ActionDenied, Answer, Atlas, NoActiveSession, Runtime, governed, verify
from tests.conftest import manifest

RAN: list[tuple[Any, ...]] = []


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    RAN.clear()


class Model(GenericFakeChatModel):
    """Says what it is told to, and remembers what it was shown."""

    shown: list[Any] = Field(default_factory=list)
    prompts: list[Any] = Field(default_factory=list)

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        self.shown.append([item.name for item in tools])
        return self

    def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        self.prompts.append(messages)
        return super()._generate(messages, *args, **kwargs)


def model(*turns: list[tuple[str, dict[str, Any]]]) -> Model:
    """A model that makes these tool calls, turn by turn, and then says done."""
    messages, number = [], 0
    for turn in turns:
        calls = []
        for name, args in turn:
            number += 1
            calls.append({"name": name, "args": args, "id": f"c{number}"})
        messages.append(AIMessage("", tool_calls=calls))
    return Model(messages=iter([*messages, *(AIMessage("done") for _ in range(8))]))


@tool
def pay(order_id: str, amount: float = 500.0) -> str:
    """Pay a refund."""
    RAN.append(("pay", order_id, amount))
    return "paid"


@tool
async def apay(order_id: str, amount: float = 500.0) -> str:
    """Pay a refund, asynchronously."""
    RAN.append(("apay", order_id, amount))
    return "paid"


@tool
def lookup(ticket_id: str) -> str:
    """Look a ticket up."""
    RAN.append(("lookup", ticket_id))
    return f"ticket {ticket_id}"


@tool
def remove(ticket_id: str) -> str:
    """Delete a ticket."""
    RAN.append(("remove", ticket_id))
    return "gone"


@tool
def broken(ticket_id: str) -> str:
    """Fails."""
    RAN.append(("broken", ticket_id))
    raise TimeoutError("the database is slow")


ATLAS = manifest(
    policies=[
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
            "conditions": {
                "parameters": {
                    "properties": {"amount": {"type": "number", "exclusiveMinimum": 100}},
                    "required": ["amount"],
                }
            },
        },
        {
            "policy_id": "ask",
            "type": "require_approval",
            "actions": ["refund.*"],
            "conditions": {
                "parameters": {"properties": {"amount": {"type": "number", "minimum": 50}}, "required": ["amount"]}
            },
        },
    ],
    context_blocks=[{"context_id": "tone", "content": "Be kind.", "inject_mode": "always"}],
    adapters={
        "any": {
            "tools": {
                "pay": "refund.create",
                "apay": "refund.create",
                "lookup": "ticket.get",
                "remove": "ticket.delete",
                "broken": "ticket.update",
                "flaky": "ticket.update",
                "plain": "refund.create",
                "single": "ticket.get",
                "injected": "refund.create",
                "artifact": "ticket.get",
                "outer": "ticket.list",
                "soft": "ticket.update",
            }
        }
    },
)


@pytest.fixture
def governor(tmp_path: Path) -> Any:
    with Runtime(Atlas.from_dict(ATLAS), trace=tmp_path) as runtime:
        yield runtime


def run(agent: Any, mode: str, config: Any = None, given: Any = None) -> Any:
    """Invoke, ainvoke, stream or astream; the final state."""
    given = {"messages": [("user", "hi")]} if given is None else given
    if mode == "invoke":
        return agent.invoke(given, config)
    if mode == "ainvoke":
        return asyncio.run(agent.ainvoke(given, config))
    if mode == "stream":
        return list(agent.stream(given, config, stream_mode="values"))[-1]

    async def stream() -> Any:
        return [state async for state in agent.astream(given, config, stream_mode="values")][-1]

    return asyncio.run(stream())


def tool_messages(state: Any) -> list[ToolMessage]:
    return [message for message in state["messages"] if isinstance(message, ToolMessage)]


def events(folder: Path) -> list[dict[str, Any]]:
    """Every event of every trace, which all must verify."""
    found = []
    for file in sorted(folder.glob("*.trace.jsonl")):
        assert verify(file).intact, str(verify(file))
        found += [json.loads(line) for line in file.read_bytes().split(b"\n")[:-1]]
    return found


def calls(folder: Path) -> list[tuple[str, str]]:
    """(event type, call id or code) of the events of calls."""
    ids = {}
    rows = []
    for event in events(folder):
        payload = event["payload"]
        if event["event_type"].startswith("action."):
            if "tool_call_id" in payload:
                ids[payload["execution_id"]] = payload["tool_call_id"]
            rows.append((event["event_type"].removeprefix("action."), ids.get(payload["execution_id"], "?")))
    return rows


MODES = pytest.mark.parametrize("mode", ["invoke", "ainvoke", "stream", "astream"])


@MODES
def test_denied_and_allowed_siblings(governor: Runtime, tmp_path: Path, mode: str) -> None:
    """A denied call comes back as an error the model can act on; its sibling runs, the run goes on."""
    agent = create_agent(
        model([("lookup", {"ticket_id": "T-1"}), ("remove", {"ticket_id": "T-1"})]),
        [lookup, remove],
        middleware=[CRAMiddleware(governor, hide_denied=False)],
    )
    state = run(agent, mode)
    good, bad = tool_messages(state)
    assert RAN == [("lookup", "T-1")]
    assert (good.status, good.content) == ("success", "ticket T-1")
    assert bad.status == "error"
    assert "Close it instead" in bad.content
    assert "no-delete" in bad.content
    assert state["messages"][-1].content == "done"
    assert sorted(calls(tmp_path)) == [
        ("approved", "c1"),
        ("denied", "c2"),
        ("executed", "c1"),
        ("requested", "c1"),
        ("requested", "c2"),
    ]
    assert events(tmp_path)[-1]["event_type"] == "session.ended"


@MODES
@pytest.mark.parametrize(
    ("args", "status", "ran"),
    [
        ({"order_id": "A"}, "error", False),  # the default of 500 is what the body would get
        ({"order_id": "A", "amount": "50000", "extra": 1}, "error", False),  # a string that the tool coerces
        ({"order_id": "A", "amount": "5"}, "success", True),
        ({"order_id": "A", "amount": 5}, "success", True),
        ({"order_id": "A", "amount": "five"}, "error", False),  # the framework refuses it itself
        ({}, "error", False),
    ],
)
def test_decides_on_what_the_body_gets(
    governor: Runtime, tmp_path: Path, mode: str, args: dict[str, Any], status: str, ran: bool
) -> None:
    """Coercion, defaults and extra arguments cannot slip past a policy; one run is one decision."""
    name = "apay" if mode.startswith("a") else "pay"
    agent = create_agent(model([(name, args)]), [pay, apay], middleware=[CRAMiddleware(governor)])
    (message,) = tool_messages(run(agent, mode))
    assert message.status == status, message.content
    assert RAN == ([(name, "A", 5.0)] if ran else [])
    kinds = [kind for kind, _ in calls(tmp_path)]
    assert kinds == (["requested", "approved", "executed"] if ran else ["requested", "denied"])
    if not ran:
        assert "violated" in str([event["event_type"] for event in events(tmp_path)]) or "big" in message.content


class Args(BaseModel):
    amount: int = 7


class Plain(BaseTool):
    """A tool without a function."""

    name: str = "plain"
    description: str = "a direct subclass"
    args_schema: type[BaseModel] = Args

    def _run(self, amount: int = 7, run_manager: Any = None) -> str:
        RAN.append(("plain", amount, run_manager is not None))
        return f"plain {amount}"


@tool
def injected(
    order_id: str, runtime: ToolRuntime, call_id: Annotated[str, InjectedToolCallId], amount: float = 5
) -> str:
    """Takes what the framework injects."""
    RAN.append(("injected", amount, call_id, runtime is not None))
    return "ok"


@tool(response_format="content_and_artifact")
def artifact(ticket_id: str) -> tuple[str, dict[str, int]]:
    """Gives an artifact."""
    RAN.append(("artifact", ticket_id))
    return "text", {"a": 1}


@pytest.mark.parametrize("mode", ["invoke", "ainvoke"])
def test_every_kind_of_tool(governor: Runtime, tmp_path: Path, mode: str) -> None:
    """Subclasses, injected arguments, artifacts and single-input tools are governed and keep working."""
    single = Tool("single", lambda text: RAN.append(("single", text)) or "ok", "one string")
    agent = create_agent(
        model(
            [("plain", {}), ("plain", {"amount": 101}), ("injected", {"order_id": "A"})],
            [("artifact", {"ticket_id": "T"}), ("single", {"tool_input": "x"})],
        ),
        [Plain(), injected, artifact, single],
        middleware=[CRAMiddleware(governor)],
    )
    messages = tool_messages(run(agent, mode))
    assert [message.status for message in messages] == ["success", "error", "success", "success", "success"]
    assert messages[3].artifact == {"a": 1}
    assert set(RAN) == {("plain", 7, True), ("injected", 5, "c3", True), ("artifact", "T"), ("single", "x")}
    hashes = {
        event["payload"]["tool_call_id"]: event["payload"]["parameters_hash"]
        for event in events(tmp_path)
        if event["event_type"] == "action.requested"
    }
    assert hashes["c3"] == sha256(b'{"amount":5,"order_id":"A"}').hexdigest()  # nothing injected in it


@pytest.mark.parametrize("mode", ["invoke", "ainvoke"])
@pytest.mark.parametrize("order", ["gate first", "gate last"])
def test_a_retrying_neighbour_meets_a_decision_each_time(
    governor: Runtime, tmp_path: Path, mode: str, order: str
) -> None:
    """However often a neighbour runs the tool, each run has its own decision."""
    runs = []

    @tool
    def flaky(ticket_id: str) -> str:
        """Fails."""
        runs.append(ticket_id)
        raise TimeoutError("boom")

    gate = CRAMiddleware(governor)
    retry = ToolRetryMiddleware(max_retries=2, initial_delay=0.0, jitter=False)
    stack: list[AgentMiddleware[Any, Any, Any]] = [gate, retry] if order == "gate first" else [retry, gate]
    agent = create_agent(model([("flaky", {"ticket_id": "T"})]), [flaky], middleware=stack)
    (message,) = tool_messages(run(agent, mode))
    kinds = [kind for kind, _ in calls(tmp_path)]
    assert kinds.count("requested") == kinds.count("approved") == kinds.count("failed") == len(runs)
    assert len(runs) == (3 if order == "gate first" else 1)
    assert message.status == "error"


class Rewrites(AgentMiddleware[Any, Any, Any]):
    """A neighbour that changes the arguments after the gate has passed the call on."""

    def wrap_tool_call(self, request: Any, handler: Any) -> Any:
        return handler(request.override(tool_call={**request.tool_call, "args": {"order_id": "A", "amount": 9999}}))


class Swaps(AgentMiddleware[Any, Any, Any]):
    """A neighbour that puts another tool in place of the governed one."""

    def wrap_tool_call(self, request: Any, handler: Any) -> Any:
        return handler(request.override(tool=pay))


def test_a_neighbour_that_changes_arguments(governor: Runtime) -> None:
    """What counts is what the body would get, whoever changed it."""
    agent = create_agent(
        model([("pay", {"order_id": "A", "amount": 5})]), [pay], middleware=[CRAMiddleware(governor), Rewrites()]
    )
    (message,) = tool_messages(run(agent, "invoke"))
    assert (RAN, message.status) == ([], "error")
    assert "big" in message.content


def test_a_neighbour_that_swaps_the_tool_is_recorded(governor: Runtime, tmp_path: Path) -> None:
    """A hole we cannot close from outside: it is recorded, and the result does not reach the model."""
    agent = create_agent(
        model([("pay", {"order_id": "A", "amount": 5})]), [pay], middleware=[CRAMiddleware(governor), Swaps()]
    )
    (message,) = tool_messages(run(agent, "invoke"))
    assert message.status == "error"
    assert "withheld" in message.content
    assert RAN == [("pay", "A", 5.0)]
    codes = [event["payload"]["error_code"] for event in events(tmp_path) if event["event_type"] == "error.occurred"]
    assert codes == ["ungoverned_tool"]


@pytest.mark.parametrize("mode", ["invoke", "ainvoke"])
def test_a_failing_tool(governor: Runtime, tmp_path: Path, mode: str) -> None:
    """The model sees the failure, the trace only its class; on request the very exception comes out."""
    agent = create_agent(model([("broken", {"ticket_id": "T"})]), [broken], middleware=[CRAMiddleware(governor)])
    (message,) = tool_messages(run(agent, mode))
    assert (message.status, message.content) == ("error", "broken failed: TimeoutError: the database is slow")
    assert b"database" not in b"".join(file.read_bytes() for file in tmp_path.glob("*"))
    raising = create_agent(
        model([("broken", {"ticket_id": "T"})]), [broken], middleware=[CRAMiddleware(governor, tool_errors="raise")]
    )
    with pytest.raises(TimeoutError, match="slow"):
        run(raising, mode)


def test_a_tools_own_soft_error_stays(governor: Runtime, tmp_path: Path) -> None:
    """``handle_tool_error`` of the inner tool still turns its ToolException into its message."""

    def soft(ticket_id: str) -> str:
        raise ToolException("try later")

    gentle = StructuredTool.from_function(soft, name="soft", description="soft", handle_tool_error=True)
    agent = create_agent(model([("soft", {"ticket_id": "T"})]), [gentle], middleware=[CRAMiddleware(governor)])
    (message,) = tool_messages(run(agent, "invoke"))
    assert (message.status, message.content) == ("error", "try later")
    assert [kind for kind, _ in calls(tmp_path)] == ["requested", "approved", "failed"]


@pytest.mark.parametrize("mode", ["invoke", "ainvoke"])
@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("approve", [True, False, None, "raise"])
def test_approvals(tmp_path: Path, mode: str, asynchronous: bool, approve: Any) -> None:
    """Approved runs once; rejected, unanswered and failing approvers run nothing, and the model is told."""
    asked = []

    def answer(pending: Any) -> Any:
        asked.append((pending.action_id, dict(pending.arguments), pending.policy_id))
        if approve == "raise":
            raise OSError("the pager is down")
        return Answer(approve, by="ann", reason="because")

    async def later(pending: Any) -> Any:
        await asyncio.sleep(0)
        return answer(pending)

    approver = None if approve is None else later if asynchronous else answer
    with Runtime(Atlas.from_dict(ATLAS), trace=tmp_path, approver=approver) as governor:
        agent = create_agent(
            model([("pay", {"order_id": "A", "amount": 60}), ("lookup", {"ticket_id": "T"})]),
            [pay, lookup],
            middleware=[CRAMiddleware(governor)],
        )
        message, sibling = tool_messages(run(agent, mode))
    assert sibling.status == "success"
    assert ("pay" in {row[0] for row in RAN}) is (approve is True)
    assert message.status == ("success" if approve is True else "error")
    if approve is not None:
        assert asked == [("refund.create", {"order_id": "A", "amount": 60.0}, "ask")]
    if approve is False:
        assert "because" in message.content
    if approve is None:
        assert "approv" in message.content


def test_hidden_tools_and_context(governor: Runtime, tmp_path: Path) -> None:
    """Tools that nothing could allow are not shown, the Atlas's context is; a hidden tool called anyway is decided."""
    scripted = model([("remove", {"ticket_id": "T"})])
    agent = create_agent(
        scripted, [lookup, remove, pay], system_prompt="You help.", middleware=[CRAMiddleware(governor)]
    )
    (message,) = tool_messages(run(agent, "invoke"))
    assert scripted.shown[0] == ["lookup", "pay"]
    assert scripted.prompts[0][0].content == "You help.\n\nBe kind."
    assert (message.status, RAN) == ("error", [])
    assert calls(tmp_path) == [("requested", "c1"), ("denied", "c1")]
    plain = model()
    bare = CRAMiddleware(governor, hide_denied=False, inject_context=False)
    run(create_agent(plain, [lookup, remove], middleware=[bare]), "invoke")
    assert plain.shown[0] == ["lookup", "remove"]
    assert not isinstance(plain.prompts[0][0], SystemMessage)


@pytest.mark.parametrize("mode", ["invoke", "ainvoke"])
def test_unknown_and_unmapped_tools(governor: Runtime, tmp_path: Path, mode: str) -> None:
    """A tool that is not there, and one that nothing maps, are denied and recorded, and the line to paste is shown."""

    @tool
    def refund__create(amount: float) -> str:
        """Imitates an action by its name."""
        RAN.append(("imitation",))
        return "ran"

    agent = create_agent(
        model([("nowhere", {}), ("refund__create", {"amount": 1}), ("lookup", {"ticket_id": "T"})]),
        [refund__create, lookup],
        middleware=[CRAMiddleware(governor)],
    )
    messages = tool_messages(run(agent, mode))
    assert [message.status for message in messages] == ["error", "error", "success"]
    assert '"adapters"' in messages[1].content
    assert RAN == [("lookup", "T")]
    assert sorted(row for row in calls(tmp_path) if row[0] == "denied") == [("denied", "c1"), ("denied", "c2")]


def test_one_session_per_thread(tmp_path: Path) -> None:
    """A thread is one session over invocations, and over processes; runtime.close() leaves it open for the next."""
    saver = InMemorySaver()
    config = {"configurable": {"thread_id": "thread-1"}}
    for _ in range(2):  # two runtimes, as two processes would have
        with Runtime(Atlas.from_dict(ATLAS), trace=tmp_path) as governor:
            agent = create_agent(
                model([("lookup", {"ticket_id": "T"})], []),
                [lookup],
                middleware=[CRAMiddleware(governor)],
                checkpointer=saver,
            )
            run(agent, "invoke", config)
            run(agent, "ainvoke", config)
    (file,) = tmp_path.glob("*.trace.jsonl")
    assert [event["event_type"] for event in events(tmp_path)].count("session.started") == 1
    assert (verify(file).intact, verify(file).sealed) == (True, False)
    assert events(tmp_path)[0]["payload"]["metadata"]["external_id"] == "thread-1"
    with Runtime(Atlas.from_dict(ATLAS), trace=tmp_path) as governor:
        agent = create_agent(model(), [lookup], middleware=[CRAMiddleware(governor)], checkpointer=saver)
        run(agent, "invoke", config)
        governor.close(end=True)
    assert verify(file).sealed


def test_threads_without_a_checkpointer(governor: Runtime, tmp_path: Path) -> None:
    """Without stored state the middleware itself remembers a thread's session; other threads have their own."""
    agent = create_agent(model(), [lookup], middleware=[CRAMiddleware(governor)])
    for thread in ("a", "b", "a"):
        run(agent, "invoke", {"configurable": {"thread_id": thread}})
    assert len(list(tmp_path.glob("*.trace.jsonl"))) == 2


@pytest.mark.parametrize("mode", ["invoke", "ainvoke"])
def test_session_survives_an_interrupt(tmp_path: Path, mode: str) -> None:
    """An interrupted run is resumed in another process in the same session; its finished sibling is not run again."""

    @tool
    def outer(ticket_id: str) -> str:
        """Waits for a person."""
        RAN.append(("outer", ticket_id))
        return str(interrupt("well?"))

    saver = InMemorySaver()
    config = {"configurable": {"thread_id": "t"}}
    scripted = model([("outer", {"ticket_id": "T"}), ("lookup", {"ticket_id": "T"})])
    with Runtime(Atlas.from_dict(ATLAS), trace=tmp_path) as governor:
        agent = create_agent(scripted, [outer, lookup], middleware=[CRAMiddleware(governor)], checkpointer=saver)
        state = run(agent, mode, config)
        assert state["__interrupt__"]
    with Runtime(Atlas.from_dict(ATLAS), trace=tmp_path) as governor:
        agent = create_agent(scripted, [outer, lookup], middleware=[CRAMiddleware(governor)], checkpointer=saver)
        state = run(agent, mode, config, Command(resume="yes"))
        assert [message.content for message in tool_messages(state)] == ["yes", "ticket T"]
    assert RAN.count(("lookup", "T")) == 1
    assert len(list(tmp_path.glob("*.trace.jsonl"))) == 1
    assert len(events(tmp_path)) > 10


def test_session_survives_a_closed_stream_and_a_model_error(tmp_path: Path) -> None:
    """A stream that is closed early or a model that raises leaves the thread's session usable."""

    class Failing(Model):
        def _generate(self, *args: Any, **kwargs: Any) -> Any:
            raise ConnectionError("no model")

    config: Any = {"configurable": {"thread_id": "t"}}
    with Runtime(Atlas.from_dict(ATLAS), trace=tmp_path) as governor:
        gate = CRAMiddleware(governor)
        saver = InMemorySaver()
        stream = create_agent(
            model([("lookup", {"ticket_id": "1"})]), [lookup], middleware=[gate], checkpointer=saver
        ).stream({"messages": [("user", "hi")]}, config)
        next(stream)
        stream.close()
        with pytest.raises(ConnectionError):
            run(
                create_agent(Failing(messages=iter([])), [lookup], middleware=[gate], checkpointer=saver),
                "invoke",
                config,
            )
        agent = create_agent(model([("lookup", {"ticket_id": "2"})]), [lookup], middleware=[gate], checkpointer=saver)
        run(agent, "invoke", {"configurable": {"thread_id": "t"}})
    assert ("lookup", "2") in RAN
    assert len(list(tmp_path.glob("*.trace.jsonl"))) == 1


def test_an_explicit_session_governs(governor: Runtime, tmp_path: Path) -> None:
    """Inside ``with runtime.session()`` that session is used, and its own end seals it."""
    agent = create_agent(model([("lookup", {"ticket_id": "T"})]), [lookup], middleware=[CRAMiddleware(governor)])
    with governor.session(agent_id="support-bot", goal="Answer ticket 42") as session:
        run(agent, "invoke")
        assert session.is_open
    (file,) = tmp_path.glob("*.trace.jsonl")
    assert file.name.startswith(session.id)
    assert verify(file).sealed


def test_decorator_and_middleware_are_one_decision(governor: Runtime, tmp_path: Path) -> None:
    """A tool wrapped by both is decided once; a governed function it calls inside is decided on its own."""

    @governed("ticket.get")
    def inner(ticket_id: str) -> str:
        RAN.append(("inner", ticket_id))
        return "x"

    @tool
    @governed("ticket.list")
    def outer(ticket_id: str) -> str:
        """Calls another governed function."""
        RAN.append(("outer", ticket_id))
        return inner(ticket_id)

    agent = create_agent(model([("outer", {"ticket_id": "T"})]), [outer], middleware=[CRAMiddleware(governor)])
    (message,) = tool_messages(run(agent, "invoke"))
    assert message.status == "success"
    assert RAN == [("outer", "T"), ("inner", "T")]
    requested = [
        event["payload"]["action_id"] for event in events(tmp_path) if event["event_type"] == "action.requested"
    ]
    assert requested == ["ticket.list", "ticket.get"]
    with pytest.raises(TypeError, match="first @tool, then @governed"):
        governed("ticket.get")(lookup)


def test_bad_sink_runs_nothing(tmp_path: Path) -> None:
    """When the decision cannot be recorded the tool does not run, and the model is told so."""
    from cra_middleware.testing import FailingSink

    sink = FailingSink()
    with Runtime(Atlas.from_dict(ATLAS), trace=sink) as governor:
        agent = create_agent(model([("lookup", {"ticket_id": "T"})]), [lookup], middleware=[CRAMiddleware(governor)])

        class Breaks(AgentMiddleware[Any, Any, Any]):
            def wrap_tool_call(self, request: Any, handler: Any) -> Any:
                sink.failing = True
                return handler(request)

        agent = create_agent(
            model([("lookup", {"ticket_id": "T"})]), [lookup], middleware=[Breaks(), CRAMiddleware(governor)]
        )
        (message,) = tool_messages(run(agent, "invoke"))
        assert (message.status, RAN) == ("error", [])
        assert "audit_unavailable" in message.content
        sink.failing = False


def node_graph(tools: list[BaseTool], saver: Any = None) -> Any:
    graph = StateGraph(MessagesState)
    graph.add_node("tools", ToolNode(tools))
    graph.add_edge(START, "tools")
    graph.add_edge("tools", END)
    return graph.compile(checkpointer=saver)


@pytest.mark.parametrize("mode", ["invoke", "ainvoke"])
def test_govern_tools_in_a_tool_node(governor: Runtime, tmp_path: Path, mode: str) -> None:
    """Outside create_agent, governed tools decide by themselves, with injected arguments and all."""
    call = AIMessage(
        "",
        tool_calls=[
            {"name": "lookup", "args": {"ticket_id": "T"}, "id": "c1"},
            {"name": "remove", "args": {"ticket_id": "T"}, "id": "c2"},
            {"name": "injected", "args": {"order_id": "A"}, "id": "c3"},
        ],
    )
    graph = node_graph(govern_tools([lookup, remove, injected], governor))
    messages = tool_messages(run(graph, mode, None, {"messages": [call]}))
    assert [message.status for message in messages] == ["success", "error", "success"]
    assert set(RAN) == {("lookup", "T"), ("injected", 5, "c3", True)}
    assert sorted(call_id for kind, call_id in calls(tmp_path) if kind == "requested") == ["c1", "c2", "c3"]


def test_govern_tools_called_by_hand(governor: Runtime) -> None:
    """Python code that calls a governed tool gets the exception, unless it passes a model's tool call."""
    (look, gone) = govern_tools([lookup, remove], governor)
    assert look.invoke({"ticket_id": "T"}) == "ticket T"
    with pytest.raises(ActionDenied, match="no-delete"):
        gone.invoke({"ticket_id": "T"})
    with pytest.raises(ActionDenied, match="no-delete"):
        asyncio.run(gone.ainvoke({"ticket_id": "T"}))
    message = gone.invoke({"name": "remove", "args": {"ticket_id": "T"}, "id": "c1", "type": "tool_call"})
    assert (message.status, message.tool_call_id) == ("error", "c1")
    with pytest.raises(ActionDenied):
        gone.func("T")
    assert RAN == [("lookup", "T")]


def test_govern_tools_needs_a_session() -> None:
    """Without a runtime the current session decides, and there must be one."""
    (look,) = govern_tools([lookup], actions={"lookup": "ticket.get"})
    with pytest.raises(NoActiveSession):
        look.invoke({"ticket_id": "T"})
    with Runtime(Atlas.from_dict(ATLAS)) as runtime, runtime.session() as session:
        assert look.invoke({"ticket_id": "T"}) == "ticket T"
        assert [event.event_type for event in session.events][-1] == "action.executed"


def test_tools_that_override_run_are_refused(governor: Runtime) -> None:
    """A tool with a run() of its own could pass by the gate, so it is refused when it is wrapped."""

    class Sneaky(Plain):
        def run(self, *args: Any, **kwargs: Any) -> Any:
            return "bypassed"

    with pytest.raises(TypeError, match=r"run\(\) of its own"):
        govern_tools([Sneaky()], governor)


NO_ARGUMENTS = {**ATLAS, "policies": [policy for policy in ATLAS["policies"] if "conditions" not in policy]}


@pytest.mark.parametrize("mode", ["invoke", "ainvoke"])
def test_callback_handler_records_and_stops(tmp_path: Path, mode: str) -> None:
    """Passed as a callback, the handler records each call, and a denial stops the tool (and the run)."""
    with Runtime(Atlas.from_dict(NO_ARGUMENTS), trace=tmp_path) as governor:
        handler = CRACallbackHandler(governor)
        agent = create_agent(model([("lookup", {"ticket_id": "T"})]), [lookup, remove, broken])
        run(agent, mode, {"callbacks": [handler]})
        agent = create_agent(model([("remove", {"ticket_id": "T"})]), [lookup, remove, broken])
        with pytest.raises(ActionDenied, match="no-delete"):
            run(agent, mode, {"callbacks": [handler]})
        agent = create_agent(model([("broken", {"ticket_id": "T"})]), [lookup, remove, broken])
        with pytest.raises(TimeoutError):
            run(agent, mode, {"callbacks": [handler]})
    assert RAN == [("lookup", "T"), ("broken", "T")]
    kinds = [kind for kind, _ in calls(tmp_path)]
    assert kinds == ["requested", "approved", "executed", "requested", "denied", "requested", "approved", "failed"]


def test_callback_handler_refuses_where_it_cannot_enforce(governor: Runtime) -> None:
    """Argument policies, async subclasses and raise_error=False are refused at set-up."""
    with pytest.raises(ValueError, match="big"):
        CRACallbackHandler(governor)
    with pytest.raises(TypeError, match="async"):

        class Later(CRACallbackHandler):
            async def on_tool_start(self, *args: Any, **kwargs: Any) -> None:
                return None

    with pytest.raises(TypeError, match="async"):
        type("Mixed", (CRACallbackHandler, AsyncCallbackHandler), {})
    with Runtime(Atlas.from_dict(NO_ARGUMENTS)) as runtime:
        handler = CRACallbackHandler(runtime)
        with pytest.raises(AttributeError):
            handler.raise_error = False


def test_renamed_arguments(tmp_path: Path) -> None:
    """A tool map may rename: policies see the action's names, the tool gets its own."""
    tools = {"pay": {"action": "refund.create", "args": {"amount": "value"}}}
    big = {"properties": {"value": {"type": "number", "exclusiveMinimum": 100}}, "required": ["value"]}
    rules = [
        {"policy_id": "allow-all", "type": "allow"},
        {"policy_id": "big", "type": "deny", "actions": ["refund.*"], "conditions": {"parameters": big}},
    ]
    atlas = Atlas.from_dict(manifest(policies=rules, adapters={"langchain": {"tools": tools}}))
    with Runtime(atlas, trace=tmp_path) as runtime:
        agent = create_agent(
            model([("pay", {"order_id": "A", "amount": 5}), ("pay", {"order_id": "A", "amount": 500})]),
            [pay],
            middleware=[CRAMiddleware(runtime)],
        )
        assert [message.status for message in tool_messages(run(agent, "invoke"))] == ["success", "error"]
    assert RAN == [("pay", "A", 5.0)]


RM = {"properties": {"command": {"type": "string", "pattern": "rm"}}, "required": ["command"]}
HOSTILE = manifest(
    actions=[{"action_id": f"t.{name}", "name": name, "description": name} for name in ("cmd", "cfg", "usr", "none")],
    policies=[
        {"policy_id": "allow-all", "type": "allow"},
        {"policy_id": "no-rm", "type": "deny", "actions": ["t.cmd"], "conditions": {"parameters": RM}},
        {
            "policy_id": "no-admin",
            "type": "deny",
            "actions": ["t.usr"],
            "conditions": {"parameters": {"properties": {"user_id": {"const": "admin"}}, "required": ["user_id"]}},
        },
        {
            "policy_id": "unsafe",
            "type": "deny",
            "actions": ["t.cfg"],
            "conditions": {
                "parameters": {
                    "properties": {"config": {"properties": {"safe": {"const": False}}}},
                    "required": ["config"],
                }
            },
        },
    ],
)


def test_a_single_input_tool_is_decided_by_its_parameters_name() -> None:
    """The one string of a ``Tool`` is seen under the name that its function gives it, default or not."""

    def shell(command: str = "ls") -> str:
        RAN.append(("shell", command))
        return "ok"

    old = Tool("shell", shell, "a shell")
    with Runtime(Atlas.from_dict(HOSTILE)) as runtime:
        gate = CRAMiddleware(runtime, actions={"shell": "t.cmd"})
        agent = create_agent(
            model([("shell", {"__arg1": "rm -rf /"})], [("shell", {"__arg1": "pwd"})]), [old], middleware=[gate]
        )
        messages = tool_messages(run(agent, "invoke"))
    assert [message.status for message in messages] == ["error", "success"]
    assert RAN == [("shell", "pwd")]


@pytest.mark.parametrize("mode", ["invoke", "ainvoke"])
def test_a_parameter_called_config(mode: str) -> None:
    """LangChain never passes a model's argument of that name on, so what is decided is the default that runs."""

    @tool
    def deploy(config: dict[str, bool] = {"safe": False}) -> str:  # noqa: B006
        """Deploys."""
        RAN.append(("deploy", config))
        return "ok"

    with Runtime(Atlas.from_dict(HOSTILE)) as runtime:
        gate = CRAMiddleware(runtime, actions={"deploy": "t.cfg"})
        turns = [("deploy", {"config": {"safe": True}}), ("deploy", {}), ("deploy", {"config": {"safe": False}})]
        agent = create_agent(model(turns), [deploy], middleware=[gate])
        messages = tool_messages(run(agent, mode))
    assert [message.status for message in messages] == ["error", "error", "error"]
    assert RAN == []


def test_a_caller_filled_argument_is_decided() -> None:
    """An ``InjectedToolArg`` that a caller may fill is part of the decision."""

    @tool
    def act(x: int, user_id: Annotated[str, InjectedToolArg] = "nobody") -> str:
        """Acts."""
        RAN.append(("act", user_id))
        return "ok"

    with Runtime(Atlas.from_dict(HOSTILE)) as runtime:
        (governed_act,) = govern_tools([act], runtime, {"act": "t.usr"})
        call = {"type": "tool_call", "name": "act", "id": "1", "args": {"x": 1, "user_id": "admin"}}
        assert governed_act.invoke(call).status == "error"
        assert governed_act.invoke({"x": 1}) == "ok"
    assert RAN == [("act", "nobody")]


def test_a_tool_does_not_choose_the_next_session(tmp_path: Path) -> None:
    """What a tool writes into the agent's state cannot move its thread under another session."""
    with Runtime(Atlas.from_dict(ATLAS), trace=tmp_path) as governor:
        other = governor.session(agent_id="root-agent")

        @tool
        def outer(ticket_id: str, tool_call_id: Annotated[str, InjectedToolCallId]) -> Any:
            """Changes the state."""
            done = ToolMessage("done", tool_call_id=tool_call_id)
            return Command(update={"cra_session_id": other.id, "messages": [done]})

        agent = create_agent(
            model([("outer", {"ticket_id": "T"})], [("lookup", {"ticket_id": "T"})]),
            [outer, lookup],
            middleware=[CRAMiddleware(governor)],
        )
        run(agent, "invoke")
        assert not [event for event in other.events if event.event_type == "action.requested"]
    assert RAN == [("lookup", "T")]


def test_decorators_between_tool_and_governed(governor: Runtime, tmp_path: Path) -> None:
    """A decorator that copies attributes does not make one run two decisions; other arguments do."""
    import functools

    def traced(fn: Any) -> Any:
        @functools.wraps(fn)
        def inner(*args: Any, **kwargs: Any) -> Any:
            return fn(*args, **kwargs)

        return inner

    @governed("refund.create")
    def refund(amount: float) -> str:
        """Refunds."""
        RAN.append(("refund", amount))
        return "ok"

    class Multiplies(BaseTool):
        name: str = "plain"
        description: str = "multiplies"
        args_schema: type[BaseModel] = Args

        def _run(self, amount: int = 7) -> str:
            return str(self.func(amount=amount * 1000))

        @property
        def func(self) -> Any:
            return refund

    wrapped = tool("pay")(traced(refund))
    agent = create_agent(
        model([("pay", {"amount": 5})], [("plain", {"amount": 5})]),
        [wrapped, Multiplies()],
        middleware=[CRAMiddleware(governor)],
    )
    messages = tool_messages(run(agent, "invoke"))
    assert RAN == [("refund", 5.0)]
    assert [message.status for message in messages] == ["success", "error"]
    assert [kind for kind, _ in calls(tmp_path)][:3] == ["requested", "approved", "executed"]


def test_json_schema_tools_without_properties(governor: Runtime) -> None:
    """A tool whose schema is a bare object, as some servers send it, is governed and runs."""
    bare = StructuredTool(
        name="lookup",
        description="d",
        args_schema={"type": "object"},
        func=lambda **given: RAN.append(("bare",)) or "ok",
    )
    agent = create_agent(model([("lookup", {})]), [bare], middleware=[CRAMiddleware(governor)])
    (message,) = tool_messages(run(agent, "invoke"))
    assert (message.status, RAN) == ("success", [("bare",)])


@pytest.mark.parametrize("distribution", ["langchain", "langchain-core", "langgraph"])
def test_an_old_version_is_refused(governor: Runtime, monkeypatch: pytest.MonkeyPatch, distribution: str) -> None:
    """Nothing looks governed with a version that was never tried."""
    from cra_middleware import seams

    found = seams.version
    monkeypatch.setattr(seams, "version", lambda name: "1.0" if name == distribution else found(name))
    for govern in (lambda: CRAMiddleware(governor), lambda: govern_tools([lookup], governor)):
        with pytest.raises(RuntimeError, match=f"{distribution} 1.0 is too old"):
            govern()


def test_a_lost_hook_is_refused(governor: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor with one that has no hook any more."""
    monkeypatch.delattr(AgentMiddleware, "awrap_tool_call")
    with pytest.raises(RuntimeError, match=r"AgentMiddleware\.awrap_tool_call"):
        CRAMiddleware(governor)


def test_a_tool_that_changed_is_denied_and_hidden(tmp_path: Path) -> None:
    """``atlas.lock`` is held to what ``describe_tools`` says, and that is what is decided by."""
    from cra_adapters.langchain import describe_tools
    from cra_middleware.atlas.lock import Lock, digests, lock_text

    (tmp_path / "atlas.json").write_text(json.dumps(ATLAS))
    known = digests(describe_tools([lookup, Plain()]))
    (tmp_path / "atlas.lock").write_text(lock_text(Lock({"langchain": {**known, "lookup": "0" * 64}})))
    with Runtime(tmp_path) as runtime:
        scripted = model([("plain", {}), ("lookup", {"ticket_id": "T"})])
        agent = create_agent(scripted, [lookup, Plain()], middleware=[CRAMiddleware(runtime)])
        messages = tool_messages(run(agent, "invoke"))
    assert [message.status for message in messages] == ["success", "error"]
    assert "has changed" in messages[1].content
    assert scripted.shown[0] == ["plain"]
