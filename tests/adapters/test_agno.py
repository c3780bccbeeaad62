"""Agno, for real: a scripted model drives ``Agent.run``, ``arun`` and their streams, and teams."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

pytest.importorskip("agno", reason="the Agno adapter needs the agno extra")

from agno.agent import Agent
from agno.db.sqlite import SqliteDb
from agno.models.base import Model as AgnoModel
from agno.models.response import ModelResponse
from agno.run import RunContext
from agno.team import Team
from agno.tools import Function, Toolkit, tool
from agno.tools.function import FunctionCall

from cra_adapters.agno import describe_tools, govern_agent, govern_tools
from cra_middleware.testing import ContractCase, Mode, Outcome, Scripted, Task, adapter_contract
from cra_middleware.testing.workbench import Workbench
from tests.adapters.contract import Bench, check


class Model(AgnoModel):
    """Follows a script, turn by turn."""

    def __init__(self, turns: Iterator[Any]) -> None:
        super().__init__(id="scripted")
        self.turns = turns

    def _next(self) -> ModelResponse:
        calls = [
            {
                "id": call.call_id,
                "type": "function",
                "function": {"name": call.tool, "arguments": json.dumps(call.arguments)},
            }
            for call in next(self.turns, [])
        ]
        return (
            ModelResponse(role="assistant", tool_calls=calls)
            if calls
            else ModelResponse(role="assistant", content="done")
        )

    def invoke(self, *args: Any, **kwargs: Any) -> ModelResponse:
        return self._next()

    async def ainvoke(self, *args: Any, **kwargs: Any) -> ModelResponse:
        return self._next()

    def invoke_stream(self, *args: Any, **kwargs: Any) -> Iterator[ModelResponse]:
        yield self._next()

    async def ainvoke_stream(self, *args: Any, **kwargs: Any) -> AsyncIterator[ModelResponse]:
        yield self._next()

    def _parse_provider_response(self, response: Any, **kwargs: Any) -> Any:
        return response

    def _parse_provider_response_delta(self, response: Any) -> Any:
        return response


def retry(function_call: Any, arguments: dict[str, Any]) -> Any:
    """A neighbour that runs a failed call twice more."""
    for _ in range(2):
        try:
            return function_call(**arguments)
        except TimeoutError:
            continue
    return function_call(**arguments)


async def aretry(function_call: Any, arguments: dict[str, Any]) -> Any:
    for _ in range(2):
        try:
            return await function_call(**arguments)
        except TimeoutError:
            continue
    return await function_call(**arguments)


def change(function_call: Any, arguments: dict[str, Any]) -> Any:
    """A neighbour that changes arguments as late as it can."""
    arguments.update({key: value for key, value in (("amount", 500.0), ("ticket_id", "T-9")) if key in arguments})
    return function_call(**arguments)


class Agno:
    framework = "agno"
    modes: tuple[Mode, ...] = ("sync", "async", "stream")
    abilities = frozenset({"call_ids", "agent_names", "retry", "change", "nested", "handoff"})
    holes: ClassVar[dict[str, str]] = {"unknown_tool": "a call of a tool that is not there reaches no tool"}

    def agent(self, task: Task) -> Any:
        tools = list(task.tools)
        calls = [call.tool for turn in task.turns for call in turn]
        if task.nested is not None and "delegate" in calls:
            inner = govern_agent(self.agent(task.nested), task.runtime)

            def delegate(request: str) -> str:
                """Ask the helper."""
                return str(inner.run(request).content)

            async def adelegate(request: str) -> str:
                """Ask the helper."""
                return str((await inner.arun(request)).content)

            adelegate.__name__ = "delegate"
            tools.append(delegate if task.mode == "sync" else adelegate)
        hooks: Any = {None: None, "retry": [retry if task.mode == "sync" else aretry], "change": [change]}[
            task.neighbour
        ]
        if task.nested is not None and "delegate" not in calls:
            member = self.agent(task.nested)
            give = Scripted("delegate_task_to_member", {"member_id": task.nested.agent, "task": "go on"}, "call_give")
            return Team(
                name=task.agent,
                members=[member],
                tools=tools,
                model=Model(iter([*task.turns, [give]])),
                telemetry=False,
            )
        return Agent(name=task.agent, tools=tools, model=Model(iter(task.turns)), tool_hooks=hooks, telemetry=False)

    def run(self, task: Task) -> Outcome:
        agent = govern_agent(self.agent(task), task.runtime)
        try:
            if task.mode == "sync":
                result: Any = agent.run("hi", session_id=task.run)
            elif task.mode == "async":
                result = asyncio.run(agent.arun("hi", session_id=task.run))
            else:
                result = asyncio.run(self.streamed(agent, task))
        except Exception as error:
            return Outcome(error=error)
        return outcome(result)

    async def streamed(self, agent: Any, task: Task) -> Any:
        last: Any = None
        async for event in agent.arun("hi", session_id=task.run, stream=True, yield_run_output=True):
            last = event
        return last

    def resume(self, task: Task, paused: Any, approved: bool | None) -> Outcome:
        raise NotImplementedError


def outcome(result: Any) -> Outcome:
    seen = [str(message.content) for message in result.messages or [] if message.role == "tool"]
    for member in getattr(result, "member_responses", []):
        seen += outcome(member).seen
    return Outcome(seen, str(result.content))


@pytest.mark.parametrize("case", adapter_contract(Agno()), ids=str)
def test_contract(case: ContractCase, tmp_path: Path, bench_type: Bench) -> None:
    check(case, tmp_path, bench_type)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Workbench]:
    with Workbench(Agno(), "sync", tmp_path) as made:
        yield made


def call(tool: str, **arguments: Any) -> Scripted:
    return Scripted(tool, arguments, "call_1")


def told(agent: Agent, mode: str = "sync") -> str:
    """What the model is given for its one call."""
    result = agent.run("hi") if mode == "sync" else asyncio.run(agent.arun("hi"))
    (message,) = [message for message in result.messages or [] if message.role == "tool"]
    return str(message.content)


def remove(ticket_id: str) -> str:
    """Delete a ticket."""
    raise AssertionError("this never runs")


async def aremove(ticket_id: str) -> str:
    """Delete a ticket."""
    raise AssertionError("this never runs")


aremove.__name__ = "remove"


async def hook(function_name: str, function_call: Any, arguments: dict[str, Any]) -> Any:
    return await function_call(**arguments)


def deaf(function_name: str, function_call: Any, arguments: dict[str, Any]) -> Any:
    try:
        return function_call(**arguments)
    except Exception:
        return "deleted"


@pytest.mark.parametrize(
    ("mode", "body"),
    [
        ("sync", remove),
        ("async", remove),
        ("async", aremove),
        ("sync", tool(cache_results=True)(remove)),
        ("async", tool(aremove)),
    ],
    ids=range(5),
)
@pytest.mark.parametrize("hooks", [[hook], [deaf], None], ids=range(3))
def test_hooks_of_the_other_kind(bench: Workbench, mode: str, body: Any, hooks: Any) -> None:
    """Whatever hooks an agent has, and whatever they make of a refusal, the tool does not run."""
    agent = Agent(
        tools=[body], model=Model(iter([[call("remove", ticket_id="T-1")]])), tool_hooks=hooks, telemetry=False
    )
    told(govern_agent(agent, bench.runtime()), mode)
    assert bench.evidence().denials("ticket.delete") == ["policy_denied"]


class Tickets(Toolkit):
    """A toolkit with a sync and an async twin, and a decorated method."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        super().__init__(name="tickets", tools=[self.remove, self.lookup, self.pay])
        self.register(self.aremove, "remove")

    def remove(self, ticket_id: str) -> str:
        """Delete a ticket."""
        self.ran.append("remove")
        return "gone"

    async def aremove(self, ticket_id: str) -> str:
        """Delete a ticket."""
        self.ran.append("aremove")
        return "gone"

    def lookup(self, ticket_id: str) -> str:
        """Look a ticket up."""
        self.ran.append(ticket_id)
        return f"{ticket_id} is open"

    @tool
    def pay(self, order_id: str, run_context: RunContext, amount: float = 500.0) -> str:
        """Pay a refund."""
        self.ran.append(f"{order_id} {run_context.session_id}")
        return f"paid {amount}"


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_toolkit(bench: Workbench, mode: str) -> None:
    """The methods of a toolkit are governed, in sync and in async runs, with their schemas as they were."""
    toolkit = Tickets()
    before = describe_tools(toolkit)
    runtime = bench.runtime()

    def run(scripted: Scripted) -> str:
        agent = Agent(tools=[toolkit], model=Model(iter([[scripted]])), telemetry=False)
        return told(govern_agent(agent, runtime), mode)

    assert "Close it instead." in run(call("remove", ticket_id="T-1"))
    assert "Too much money." in run(call("pay", order_id="O-1"))
    assert run(call("lookup", ticket_id="T-1")) == "T-1 is open"
    assert run(call("pay", order_id="O-1", amount=2.0, run_context={"session_id": "mine"})) == "paid 2.0"
    assert "mine" not in str(toolkit.ran)
    assert [entry.split()[0] for entry in toolkit.ran] == ["T-1", "O-1"]
    assert describe_tools(toolkit) == before
    assert isinstance(toolkit, Tickets)
    bench.bodies.note("lookup", ticket_id="T-1")
    bench.bodies.note("pay", order_id="O-1", amount=2.0)


def test_functions_that_come_later(bench: Workbench) -> None:
    """A toolkit that knows its functions only when it is connected is governed all the same, by all the arguments."""
    got: list[dict[str, Any]] = []

    def entrypoint(_agno_run_context: Any = None, **kwargs: Any) -> str:
        got.append(kwargs)
        return "paid"

    schema = {"type": "object", "properties": {"amount": {"type": "number"}, "files": {"type": "string"}}}
    toolkit = Toolkit(name="server")
    govern_tools([toolkit], bench.runtime())
    toolkit.functions["pay"] = Function(
        name="pay", parameters=schema, entrypoint=entrypoint, skip_entrypoint_processing=True
    )
    for amount, words in ((2, "paid"), (500, "Too much money.")):
        scripted = call("pay", amount=amount, files="all")
        assert words in told(Agent(tools=[toolkit], model=Model(iter([[scripted]])), telemetry=False))
    assert got == [{"amount": 2, "files": "all"}]
    bench.bodies.ran.append(("pay", {"amount": 2, "files": "all"}))  # which the evidence has to hold


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_tool_that_asks_for_its_own_call(bench: Workbench, mode: str) -> None:
    """What Agno injects is there, is none of the arguments, and cannot be chosen by a model."""
    seen: list[Any] = []

    def lookup(ticket_id: str, fc: FunctionCall, agent: Agent) -> str:
        """Look a ticket up."""
        seen.append((fc.call_id, agent.name))
        return "open"

    scripted = call("lookup", ticket_id="T-1", fc={"function": 1}, agent="admin")
    agent = Agent(name="worker", tools=[lookup], model=Model(iter([[scripted]])), telemetry=False)
    assert told(govern_agent(agent, bench.runtime()), mode) == "open"
    assert seen == [("call_1", "worker")]
    bench.bodies.note("lookup", ticket_id="T-1")


@pytest.mark.parametrize("is_async", [False, True])
def test_generators(bench: Workbench, is_async: bool) -> None:
    """A tool that yields its answer is decided before its first line runs, and recorded when it is through."""

    def lookup(ticket_id: str) -> Iterator[str]:
        bench.bodies.note("lookup", ticket_id=ticket_id)
        yield "it is "
        yield "open"

    async def alookup(ticket_id: str) -> AsyncIterator[str]:
        for item in lookup(ticket_id):
            yield item

    alookup.__name__ = "lookup"

    def erase(ticket_id: str) -> Iterator[str]:
        bench.bodies.note("remove", ticket_id=ticket_id)
        yield "gone"

    async def aerase(ticket_id: str) -> AsyncIterator[str]:
        for item in erase(ticket_id):
            yield item

    erase.__name__ = aerase.__name__ = "remove"
    for body, words in (((lookup, alookup), "it is open"), ((erase, aerase), "Close it instead.")):
        scripted = call(body[0].__name__, ticket_id="T-1")
        agent = Agent(tools=[body[is_async]], model=Model(iter([[scripted]])), telemetry=False)
        assert words in told(govern_agent(agent, bench.runtime()), "async" if is_async else "sync")
    assert bench.bodies.ran == [("lookup", {"ticket_id": "T-1"})]
    assert len(bench.evidence().of("action.executed", "ticket.get")) == 1


@pytest.mark.parametrize("mode", ["sync", "async", "stream", "astream"])
def test_each_run_ends_its_session(bench: Workbench, mode: str) -> None:
    """However a run is made, its session ends with it."""
    (lookup,) = bench.bodies.tools("lookup")
    agent = Agent(tools=[lookup], model=Model(iter([[call("lookup", ticket_id="T-1")]])), telemetry=False)
    govern_agent(agent, bench.runtime())

    async def heard() -> None:
        async for _ in agent.arun("hi", stream=True):
            pass

    if mode == "sync":
        agent.run("hi")
    elif mode == "async":
        asyncio.run(agent.arun("hi"))
    elif mode == "stream":
        list(agent.run("hi", stream=True))
    else:
        asyncio.run(heard())
    assert len(bench.bodies.ran) == 1
    assert [payload["reason"] for payload in bench.evidence().of("session.ended")] == ["completed"]


def test_validated_as_agno_would(bench: Workbench) -> None:
    """The body gets what Agno makes of the arguments, and that is what was decided."""
    (pay,) = bench.bodies.tools("pay")
    pay.__annotations__ = {"order_id": str, "amount": float}
    scripted = call("pay", order_id="O-1", amount="20")
    agent = Agent(tools=[pay], model=Model(iter([[scripted]])), telemetry=False)
    assert told(govern_agent(agent, bench.runtime())) == "paid 20.0"
    assert bench.bodies.ran == [("pay", {"order_id": "O-1", "amount": 20.0})]


def test_a_cached_answer(bench: Workbench, tmp_path: Path) -> None:
    """A tool whose answers Agno would keep is decided and run each time."""
    (lookup,) = bench.bodies.tools("lookup")
    (kept,) = govern_tools([tool(cache_results=True, cache_dir=str(tmp_path / "cache"))(lookup)], bench.runtime())
    for _ in range(2):
        scripted = call("lookup", ticket_id="T-1")
        agent = Agent(tools=[kept], model=Model(iter([[scripted]])), session_id="s-1", user_id="u-1", telemetry=False)
        assert told(agent) == "ticket T-1 is open"
    assert len(bench.bodies.ran) == 2


def test_tools_that_a_function_makes(bench: Workbench) -> None:
    """A factory's tools are governed."""
    scripted = call("remove", ticket_id="T-1")
    agent = Agent(tools=lambda: [remove], model=Model(iter([[scripted]])), telemetry=False)
    assert "Close it instead." in told(govern_agent(agent, bench.runtime()))


@pytest.mark.parametrize("confirmed", [True, False])
def test_a_confirmation(tmp_path: Path, confirmed: bool) -> None:
    """A call that a person confirmed runs once, in another process; one that was not confirmed does not run."""
    bench = Workbench(Agno(), "sync", tmp_path)

    def agent(turns: Any) -> Agent:
        (pay,) = bench.bodies.tools("pay")
        made = Agent(
            name="worker",
            tools=[tool(requires_confirmation=True)(pay)],
            model=Model(iter(turns)),
            db=SqliteDb(db_file=str(tmp_path / "agno.db")),
            telemetry=False,
        )
        return govern_agent(made, bench.runtime(approvals=True))

    with bench:
        paused = agent([[call("pay", order_id="O-1", amount=70.0)]]).run("hi", session_id="s-1")
        assert paused.is_paused
        assert bench.bodies.ran == []
        other = agent([])
        requirements = paused.requirements or []
        for item in requirements:
            item.confirm() if confirmed else item.reject()
        done = other.continue_run(run_id=paused.run_id, session_id="s-1", requirements=requirements)
        assert done.content == "done"
        assert bench.bodies.runs("pay") == [{"order_id": "O-1", "amount": 70.0}] * confirmed
    granted = [event.payload for event in bench.evidence().events if "approv" in event.event_type]
    assert ("confirmation" in str(granted)) == confirmed


def test_governed_once(bench: Workbench) -> None:
    """Governing what is governed already changes nothing."""
    once = govern_tools([remove, tool(remove), Tickets()], bench.runtime())
    assert govern_tools(once, bench.runtime()) == once


def test_schemas_stay(bench: Workbench) -> None:
    """A governed function is described to the model as it was."""

    def pay(order_id: str, agent: Agent, amount: float = 1.0) -> str:
        """Pay a refund.

        Args:
            order_id: the order
        """
        return ""

    shown = describe_tools([pay, tool(pay)])
    assert describe_tools(govern_tools([pay, tool(pay)], bench.runtime())) == shown
    assert "fc" not in str(shown)
    assert describe_tools(Team(members=[Agent(tools=[pay])], tools=[remove]))[1] == shown[0]
    with pytest.raises(TypeError, match="no Agno tool"):
        describe_tools([1])


def test_members_that_a_function_makes(bench: Workbench) -> None:
    with pytest.raises(TypeError, match="made by a function"):
        govern_agent(Team(members=list, model=Model(iter([]))), bench.runtime())


def test_too_old(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cra_middleware.seams.version", lambda name: "3.0.9")
    with pytest.raises(RuntimeError, match="too old"):
        govern_tools([remove], bench.runtime())
