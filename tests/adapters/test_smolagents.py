"""smolagents, for real: a scripted model drives ``ToolCallingAgent`` and ``CodeAgent``."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

pytest.importorskip("smolagents", reason="the smolagents adapter needs the smolagents extra")

from smolagents import CodeAgent, Tool, ToolCallingAgent, tool
from smolagents.models import (
    ChatMessage,
    ChatMessageToolCall,
    ChatMessageToolCallFunction,
    MessageRole,
)
from smolagents.models import Model as SmolModel

from cra_adapters.smolagents import describe_tools, govern_agent, govern_tools
from cra_middleware import CallRefused
from cra_middleware.testing import ContractCase, Mode, Outcome, Scripted, Task, adapter_contract
from cra_middleware.testing.workbench import Workbench
from tests.adapters.contract import Bench, check


class Calls(SmolModel):
    """Follows a script of tool calls, turn by turn, and remembers what it was told."""

    def __init__(self, turns: Any) -> None:
        super().__init__()
        self.turns = iter(turns)
        self.seen: list[str] = []

    def generate(self, messages: Any, **kwargs: Any) -> ChatMessage:
        self.seen.append(str(messages[-1].content))
        turn = next(self.turns, [Scripted("final_answer", {"answer": "done"}, "call_last")])
        calls = [
            ChatMessageToolCall(
                id=call.call_id,
                type="function",
                function=ChatMessageToolCallFunction(name=call.tool, arguments=dict(call.arguments)),
            )
            for call in turn
        ]
        return ChatMessage(role=MessageRole.ASSISTANT, content="", tool_calls=calls)


class Code(Calls):
    """The same, as code."""

    def generate(self, messages: Any, **kwargs: Any) -> ChatMessage:
        self.seen.append(str(messages[-1].content))
        turn = next(self.turns, "final_answer('done')")
        if not isinstance(turn, str):
            lines = [f"print({call.tool}(**{dict(call.arguments)!r}))" for call in turn]
            if len(lines) > 1:  # or the first refusal would end the piece of code
                lines = [f"try:\n    {line}\nexcept Exception as error:\n    print(error)" for line in lines]
            turn = "\n".join(lines)
        return ChatMessage(role=MessageRole.ASSISTANT, content=f"<code>\n{turn}\n</code>")


def plain(function: Any) -> Tool:
    """A tool of any function, as ``@tool`` takes only those whose source it finds."""
    types = {"str": "string", "float": "number", "list": "array"}
    parameters = inspect.signature(function).parameters.values()

    class Plain(Tool):
        skip_forward_signature_validation = True
        name = function.__name__
        description = function.__doc__
        output_type = "string"
        inputs: ClassVar[dict[str, Any]] = {
            item.name: {
                "type": types[getattr(item.annotation, "__name__", str(item.annotation))],
                "description": item.name,
                **({} if item.default is item.empty else {"nullable": True}),
            }
            for item in parameters
        }

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            return asyncio.run(result) if inspect.iscoroutine(result) else result

    made = Plain()
    made.forward.__func__.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD), *parameters]
    )
    made.forward.__func__.__wrapped__ = function  # type: ignore[attr-defined]
    return made


class ToolCalling:
    framework = "smolagents"
    modes: tuple[Mode, ...] = ("sync", "stream")
    abilities = frozenset({"agent_names", "nested"})
    holes: ClassVar[dict[str, str]] = {}
    kind: Any = ToolCallingAgent
    model: Any = Calls

    def agent(self, task: Task) -> Any:
        managed = []
        turns = list(task.turns)
        if task.nested is not None:
            managed = [self.agent(task.nested)]
            turns = [[Scripted(task.nested.agent, {"task": "Look T-1 up."}, "call_helper")]]
        make = tool if task.mode == "sync" else plain
        return self.kind(
            name=task.agent,
            description="works",
            tools=[make(function) for function in task.tools],
            managed_agents=managed,
            model=self.model(turns),
            verbosity_level=0,
        )

    def run(self, task: Task) -> Outcome:
        agent = govern_agent(self.agent(task), task.runtime)
        try:
            final = list(agent.run("hi", stream=True))[-1].output if task.mode == "stream" else agent.run("hi")
        except Exception as error:
            return Outcome(agent.model.seen, error=error)
        return Outcome(agent.model.seen[1:], str(final))

    def resume(self, task: Task, paused: Any, approved: bool | None) -> Outcome:
        raise NotImplementedError


class Coding(ToolCalling):
    holes: ClassVar[dict[str, str]] = {"unknown_tool": "a name that is no tool is only an error in a program"}
    kind = CodeAgent
    model = Code


@pytest.mark.parametrize("case", adapter_contract(ToolCalling()), ids=str)
def test_contract(case: ContractCase, tmp_path: Path, bench_type: Bench) -> None:
    check(case, tmp_path, bench_type)


@pytest.mark.parametrize("case", adapter_contract(Coding()), ids=str)
def test_contract_with_code(case: ContractCase, tmp_path: Path, bench_type: Bench) -> None:
    check(case, tmp_path, bench_type)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Workbench]:
    with Workbench(Coding(), "sync", tmp_path) as made:
        yield made


ran: list[str] = []


@tool
def remove(ticket_id: str) -> str:
    """Delete a ticket.

    Args:
        ticket_id: the ticket's id
    """
    ran.append(ticket_id)
    return "gone"


class Remove(Tool):
    name = "remove"
    description = "Delete a ticket."
    inputs: ClassVar[dict[str, Any]] = {"ticket_id": {"type": "string", "description": "the ticket's id"}}
    output_type = "string"

    def forward(self, ticket_id: str) -> str:
        ran.append(ticket_id)
        return "gone"


def told(bench: Workbench, code: str, *tools: Any, **more: Any) -> str:
    """What a model is told of the code that it wrote."""
    agent = CodeAgent(tools=list(tools), model=Code([code]), verbosity_level=0, **more)
    ran.clear()
    assert govern_agent(agent, bench.runtime()).run("hi") == "done"
    return "".join(agent.model.seen[1:])


@pytest.mark.parametrize("make", [lambda: remove, Remove], ids=["decorated", "class"])
@pytest.mark.parametrize(
    "code",
    [
        "remove('T-1')",
        "remove({'ticket_id': 'T-1'})",
        "remove.forward('T-1')",
        "x = remove\nx(ticket_id='T-1')",
        "list(map(remove, ['T-1']))",
        "type(remove).forward(remove, 'T-1')",
        "type(remove).forward('T-1')",
        "type(remove)()('T-1')",
        "for kind in type(remove).mro():\n    kind.forward('T-1')",
        "for kind in type(remove).mro()[1:]:\n    kind.forward(remove, 'T-1')",
        "remove.forward.__wrapped__('T-1')",
        "remove.forward.__func__.__closure__[0].cell_contents('T-1')",
        "getattr(remove, '__dict__')",
        "remove.to_dict()",
        "def lookup(ticket_id):\n    return remove(ticket_id)\nlookup('T-1')",
    ],
)
def test_code_that_wants_to_get_around(bench: Workbench, make: Any, code: str) -> None:
    """Nothing that a program does with a governed tool runs a denied one."""
    told(bench, code, make())
    assert ran == []


def test_why_code_was_stopped(bench: Workbench) -> None:
    """The refusal ends the piece of code, and the model is told why."""
    lookup = tool(bench.bodies.tools("lookup")[0])
    words = told(bench, "lookup('T-1')\nremove('T-1')\nlookup('T-2')", remove, lookup)
    assert "Close it instead." in words
    assert bench.bodies.ran == [("lookup", {"ticket_id": "T-1"})]


def test_tools_that_run_elsewhere(bench: Workbench) -> None:
    """An executor elsewhere is given no source of a governed tool: it fails before anything runs."""
    from smolagents.monitoring import AgentLogger
    from smolagents.remote_executors import RemotePythonExecutor

    class Elsewhere(RemotePythonExecutor):
        def run_code_raise_errors(self, code: str) -> Any:
            raise AssertionError("this never runs")

    agent = CodeAgent(
        tools=[Remove()], model=Code(["remove('T-1')"]), executor=Elsewhere([], AgentLogger()), verbosity_level=0
    )
    del agent.tools["final_answer"]
    with pytest.raises(RuntimeError, match="gives no source"):
        govern_agent(agent, bench.runtime()).run("hi")
    with pytest.raises(RuntimeError, match="gives no source"):
        agent.to_dict()


def test_managed_agents_are_no_way_around(bench: Workbench) -> None:
    """A managed agent is decided as a tool of its name, and what is called gives no way to the agent."""
    inner = ToolCallingAgent(tools=[], model=Calls([]), name="remove", description="Deletes.", verbosity_level=0)
    assert "Close it instead." in told(bench, "remove('T-1')", managed_agents=[inner])
    assert "no attribute run" in told(bench, "remove.run('T-1')", managed_agents=[inner])
    assert inner.model.seen == []


def test_a_managed_agent_that_is_given_more(bench: Workbench) -> None:
    """What a managed agent is given beside its task comes through."""
    inner = ToolCallingAgent(tools=[], model=Calls([]), name="helper", description="Helps.", verbosity_level=0)
    words = told(bench, "print(helper(task='look', additional_args={'a': 41}))", managed_agents=[inner])
    assert "done" in words
    assert "41" in inner.model.seen[0]


def test_each_run_has_its_session(bench: Workbench) -> None:
    """A session is a run's, and ends with it; one that is given step by step, too."""
    turns = [Scripted("lookup", {"ticket_id": "T-1"}, "call_1")]
    last = [Scripted("final_answer", {"answer": "done"}, "call_2")]
    agent = ToolCallingAgent(
        tools=[tool(bench.bodies.tools("lookup")[0])], model=Calls([turns, last, turns, last]), verbosity_level=0
    )
    govern_agent(agent, bench.runtime())
    agent.run("hi")
    steps = agent.run("hi", stream=True)
    next(steps)
    list(steps)
    assert len(bench.evidence().of("session.ended")) == 2
    assert len(bench.evidence().of("session.started")) == 2


def test_a_tool_by_itself(bench: Workbench) -> None:
    """A governed tool says why it refuses, or raises, as it was told; governing it twice changes nothing."""
    runtime = bench.runtime()
    (says,) = govern_tools([remove], runtime)
    ran.clear()
    assert says("T-1").startswith("Error: ticket.delete was not run: Close it instead.")
    assert govern_tools([says], runtime) == [says]
    (raises,) = govern_tools([Remove()], runtime, raises=True)
    with pytest.raises(CallRefused, match="Close it instead"):
        raises(ticket_id="T-1")
    assert ran == []


def test_a_tool_with_a_call_and_a_setup_of_its_own(bench: Workbench) -> None:
    """What a tool does around its body goes on being done."""

    class Odd(Tool):
        name = "lookup"
        description = "Look a ticket up."
        inputs: ClassVar[dict[str, Any]] = {"ticket_id": {"type": "string", "description": "the ticket's id"}}
        output_type = "string"

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return f"<{super().__call__(*args, **kwargs)}>"

        def setup(self) -> None:
            self.is_initialized = True
            self.words = "open"

        def forward(self, ticket_id: str) -> str:
            bench.bodies.note("lookup", ticket_id=ticket_id)
            return self.words

    (odd,) = govern_tools([Odd()], bench.runtime())
    assert odd("T-1") == "<open>"


def test_too_old(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cra_middleware.seams.version", lambda name: "1.25.9")
    with pytest.raises(RuntimeError, match="too old"):
        govern_tools([remove], bench.runtime())


def test_describe_tools(bench: Workbench) -> None:
    """What an Atlas is drafted from is what the gate compares with."""
    inner = ToolCallingAgent(tools=[Remove()], model=Calls([]), name="helper", description="Helps.", verbosity_level=0)
    agent = CodeAgent(tools=[remove], model=Code([]), managed_agents=[inner], verbosity_level=0)
    described = describe_tools(agent)
    assert [name for name, _, _ in described] == ["remove", "helper", "remove"]
    assert described[0][2] == {
        "type": "object",
        "properties": {"ticket_id": {"type": "string", "description": "the ticket's id"}},
        "required": ["ticket_id"],
    }
    assert describe_tools(govern_tools([remove], bench.runtime())) == described[:1]
    assert describe_tools(govern_agent(agent, bench.runtime())) == described[:2]
    with pytest.raises(TypeError, match="no smolagents tool"):
        describe_tools([1])
