"""LlamaIndex, for real: a scripted model drives ``FunctionAgent`` and ``AgentWorkflow``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

pytest.importorskip("llama_index.core", reason="the LlamaIndex adapter needs the llama-index extra")

from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent, ToolCallResult
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, LLMMetadata
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.mock import MockLLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.tools import AsyncBaseTool, FunctionTool, ToolMetadata, ToolOutput, ToolSelection
from llama_index.core.tools.calling import call_tool_with_selection
from llama_index.core.workflow import Context, HumanResponseEvent, InputRequiredEvent

from cra_adapters.llama_index import describe_tools, govern_agent, govern_tools
from cra_middleware import ActionDenied, Runtime
from cra_middleware.testing import ContractCase, Mode, Outcome, Scripted, Task, adapter_contract
from cra_middleware.testing.workbench import Workbench
from tests.adapters.contract import Bench, check


class Model(MockLLM, FunctionCallingLLM):
    """Follows a script, turn by turn."""

    turns: Any = None

    def __init__(self, turns: Iterator[Any]) -> None:
        super().__init__()
        self.turns = turns

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(is_function_calling_model=True)

    def _prepare_chat_with_tools(self, tools: Any, user_msg: Any = None, chat_history: Any = None, **more: Any) -> Any:
        return {"messages": chat_history or []}

    def get_tool_calls_from_response(self, response: Any, error_on_no_tool_call: bool = True, **more: Any) -> Any:
        return [ToolSelection(**call) for call in response.message.additional_kwargs.get("calls", [])]

    def _answer(self) -> ChatResponse:
        calls = [
            {"tool_id": call.call_id, "tool_name": call.tool, "tool_kwargs": dict(call.arguments)}
            for call in next(self.turns, [])
        ]
        text = "" if calls else "done"
        return ChatResponse(message=ChatMessage(role="assistant", content=text, additional_kwargs={"calls": calls}))

    async def achat_with_tools(self, tools: Any, **more: Any) -> ChatResponse:
        return self._answer()

    async def astream_chat_with_tools(self, tools: Any, **more: Any) -> Any:
        async def stream() -> AsyncIterator[ChatResponse]:
            yield self._answer()

        return stream()


class LlamaIndex:
    framework = "llama_index"
    modes: tuple[Mode, ...] = ("async", "stream")
    abilities = frozenset({"call_ids", "agent_names", "pause", "nested", "handoff"})
    holes: ClassVar[dict[str, str]] = {
        "unknown_tool": "a call of a tool that is not there reaches no tool",
    }

    def agent(self, task: Task, turns: Any = None) -> FunctionAgent:
        tools = list(task.tools)
        if task.nested is not None and self.is_nested(task):
            inner = govern_agent(self.agent(task.nested), task.runtime)

            async def delegate(request: str) -> str:
                """Ask the helper."""
                return str(await inner.run(user_msg=request))

            tools.append(delegate)
        return FunctionAgent(
            name=task.agent,
            description="works",
            tools=tools,
            llm=Model(iter(task.turns) if turns is None else turns),
            streaming=task.mode == "stream",
        )

    def is_nested(self, task: Task) -> bool:
        return any(call.tool == "delegate" for turn in task.turns for call in turn)

    def workflow(self, task: Task) -> Any:
        if task.nested is None or self.is_nested(task):
            return govern_agent(self.agent(task), task.runtime, pause=task.pauses)
        handoff = Scripted("handoff", {"to_agent": task.nested.agent, "reason": "it knows"}, "call_handoff")
        agents = [self.agent(task, iter([*task.turns, [handoff]])), self.agent(task.nested)]
        return govern_agent(AgentWorkflow(agents=agents, root_agent=task.agent), task.runtime)

    def run(self, task: Task) -> Outcome:
        return asyncio.run(self.arun(task, None, None))

    def resume(self, task: Task, paused: Any, approved: bool | None) -> Outcome:
        return asyncio.run(self.arun(task, json.loads(paused), approved))

    async def arun(self, task: Task, state: Any, approved: bool | None) -> Outcome:
        seen: list[str] = []
        workflow = self.workflow(task if state is None else replace(task, turns=[]))
        if state is None:
            handler = workflow.run(user_msg="hi")
        else:
            context: Any = Context.from_dict(workflow, state["context"])
            await context.store.set("memory", ChatMemoryBuffer.from_defaults())  # the framework does not store it
            handler = workflow.run(ctx=context)
            answer = {"approval_id": state["approval_id"]} | ({} if approved is None else {"approved": approved})
            handler.ctx.send_event(HumanResponseEvent(**answer))
        waits: str | None = None
        async for event in handler.stream_events():
            if isinstance(event, ToolCallResult):
                seen.append(str(event.tool_output.content))
            if isinstance(event, InputRequiredEvent):
                waits = event.approval_id
            if state is None and waits is not None and seen:
                context = await settled(handler)
                await handler.cancel_run()
                return Outcome(seen, paused=json.dumps({"context": context, "approval_id": waits}))
        try:
            return Outcome(seen, str(await handler))
        except Exception as error:
            return Outcome(seen, error=error)


async def settled(handler: Any) -> Any:
    """The state of a run in which nothing but a person is waited for: a step that works is stored half done."""
    for _ in range(1000):
        context = handler.ctx.to_dict()
        workers = context["workers"].values()
        if any(worker["collected_waiters"] for worker in workers) and not any(
            worker["queue"] or worker["in_progress"] for worker in workers
        ):
            return context
        await asyncio.sleep(0.01)
    raise AssertionError("the run goes on and on")


class Direct(LlamaIndex):
    """Tools called by hand and by the framework's own functions for that, without an agent."""

    modes = ("sync",)
    abilities = frozenset()
    holes: ClassVar[dict[str, str]] = {
        **LlamaIndex.holes,
        "invalid_arguments": "a single argument of another name is passed by position, and decided as it is passed",
    }

    def run(self, task: Task) -> Outcome:
        tools = govern_tools(task.tools, task.runtime)
        seen = []
        try:
            for call in (call for turn in task.turns for call in turn):
                chosen = ToolSelection(tool_id=call.call_id, tool_name=call.tool, tool_kwargs=dict(call.arguments))
                seen.append(call_tool_with_selection(chosen, tools).content)
        except Exception as error:
            return Outcome(seen, error=error)
        return Outcome(seen, "done")


@pytest.mark.parametrize("case", [*adapter_contract(LlamaIndex()), *adapter_contract(Direct())], ids=str)
def test_contract(case: ContractCase, tmp_path: Path, bench_type: Bench) -> None:
    check(case, tmp_path, bench_type)


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    bench = Workbench(LlamaIndex(), "sync", tmp_path)
    yield bench.runtime()
    bench.runtime().close()


def pay(context: Context, order_id: str, amount: float = 20.0) -> str:
    """Pay a refund."""
    assert isinstance(context, Context)
    return f"paid {amount}"


pay.__annotations__ = {"context": Context, "order_id": str, "amount": float}  # LlamaIndex reads no text for these


def test_partial_parameters_and_the_context(runtime: Runtime) -> None:
    """A partial parameter is decided though no model sees it; the injected context is no argument of the call."""

    def run(amount: float) -> str:
        tool = FunctionTool.from_defaults(pay, partial_params={"amount": amount})
        call = Scripted("pay", {"order_id": "O-1"}, "call_1")
        agent = FunctionAgent(name="worker", tools=[tool], llm=Model(iter([[call]])))

        async def go() -> str:
            handler = govern_agent(agent, runtime).run(user_msg="hi")
            return "".join([e.tool_output.content async for e in handler.stream_events() if type(e) is ToolCallResult])

        return asyncio.run(go())

    assert run(20.0) == "paid 20.0"
    assert "Too much money." in run(500.0)
    with pytest.raises(ValueError, match="Context is required"):
        govern_tools([pay], runtime)[0].call(order_id="O-1")


def test_what_a_person_is_asked(tmp_path: Path) -> None:
    """The injected context is none of the arguments that a person says yes to."""
    asked: list[dict[str, Any]] = []

    def approver(pending: Any) -> bool:
        asked.append(dict(pending.arguments))
        return True

    bench = Workbench(LlamaIndex(), "async", tmp_path)
    call = Scripted("pay", {"order_id": "O-1", "amount": 70.0}, "call_1")
    agent = FunctionAgent(tools=[pay], llm=Model(iter([[call]])))
    govern_agent(agent, bench.runtime(approver=approver))

    async def go() -> None:
        await agent.run(user_msg="hi")

    asyncio.run(go())
    assert asked == [{"order_id": "O-1", "amount": 70.0}]


class Query(AsyncBaseTool):
    """A tool that is no function, whose ``acall`` goes through ``call``."""

    ran = 0

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def metadata(self) -> ToolMetadata:
        return ToolMetadata("Looks up.", name=self.name)

    def call(self, input: str) -> ToolOutput:
        self.ran += 1
        return ToolOutput(self.name, f"found {input}", raw_input={"input": input})

    async def acall(self, input: str) -> ToolOutput:
        return self.call(input)


@pytest.mark.parametrize("given", [("T-1",), ()], ids=["by position", "by name"])
def test_a_tool_that_is_no_function(runtime: Runtime, given: tuple[str, ...]) -> None:
    """It is decided once a call, with its argument by the schema's name, sync and async."""
    tools = [Query("lookup"), Query("remove")]
    lookup, remove = govern_tools(tools, runtime)
    kwargs = {} if given else {"input": "T-1"}
    with runtime.session("desk") as session:
        assert lookup(*given, **kwargs).content == "found T-1"
        assert asyncio.run(lookup.acall(*given, **kwargs)).content == "found T-1"
        assert remove.call(*given, **kwargs).is_error
        assert asyncio.run(remove.acall(*given, **kwargs)).is_error
        asked = [event for event in session.events if event.event_type == "action.requested"]
    assert [tool.ran for tool in tools] == [2, 0]
    assert len(asked) == 4


def remove(ticket_id: str) -> str:
    """Delete a ticket."""
    raise AssertionError("this never runs")


def test_no_way_around_a_governed_function(runtime: Runtime) -> None:
    """The function that a governed tool gives away is governed as well, and governing it twice changes nothing."""
    (tool,) = govern_tools([remove], runtime)
    assert govern_tools([tool], runtime) == [tool]
    assert isinstance(tool, FunctionTool)
    assert tool(ticket_id="T-1").is_error
    assert tool.call("T-1").is_error
    for way in (tool.fn, tool.real_fn):
        with pytest.raises(ActionDenied):
            way("T-1")
    with pytest.raises(ActionDenied):
        asyncio.run(tool.async_fn("T-1"))


def test_a_subclass_with_a_call_of_its_own(runtime: Runtime) -> None:
    """A function's tool that overrides ``call`` is decided around that, whatever it does inside."""

    class Own(FunctionTool):
        def call(self, *args: Any, **kwargs: Any) -> ToolOutput:
            raise AssertionError("this never runs")

    (tool,) = govern_tools([Own.from_defaults(remove)], runtime)
    assert "Close it instead." in tool.call(ticket_id="T-1").content
    assert "Close it instead." in asyncio.run(tool.acall(ticket_id="T-1")).content


@pytest.mark.parametrize(
    "turns", [[], [[Scripted("lookup", {"ticket_id": "T-1"}, "call_2")]] * 30], ids=["well", "ill"]
)
def test_each_run_ends_its_session(tmp_path: Path, turns: Any) -> None:
    """A session ends with its run, also with one that raises; the agent stays what it was."""
    with Workbench(LlamaIndex(), "async", tmp_path) as bench:
        (lookup,) = bench.bodies.tools("lookup")
        script = [[Scripted("lookup", {"ticket_id": "T-1"}, "call_1")], *turns]
        agent = FunctionAgent(name="worker", tools=[lookup], llm=Model(iter(script)))
        before = agent.model_dump(exclude={"tools"})
        govern_agent(agent, bench.runtime())
        assert agent.model_dump(exclude={"tools"}) == before

        async def go() -> None:
            try:
                await agent.run(user_msg="hi", max_iterations=5)
            except Exception:
                assert turns
            await asyncio.sleep(0.05)
            assert len(bench.evidence().of("session.ended")) == 1

        asyncio.run(go())


def test_tools_of_a_retriever(runtime: Runtime) -> None:
    """Tools that an agent looks up for each question are governed, too."""

    class Retriever:
        async def aretrieve(self, query: str) -> list[Any]:
            return [FunctionTool.from_defaults(remove)]

    agent = FunctionAgent(name="worker", llm=Model(iter([[Scripted("remove", {"ticket_id": "T-1"}, "call_1")]])))
    agent.tool_retriever = Retriever()

    async def go() -> list[str]:
        handler = govern_agent(agent, runtime).run(user_msg="hi")
        return [event.tool_output.content async for event in handler.stream_events() if type(event) is ToolCallResult]

    (told,) = asyncio.run(go())
    assert "Close it instead." in told


def test_a_react_agent(runtime: Runtime) -> None:
    """An agent that writes its calls as text is governed the same."""
    said = iter(
        ['Thought: x\nAction: remove\nAction Input: {"ticket_id": "T-1"}', "Thought: I can answer.\nAnswer: done"]
    )

    class Texts(MockLLM):
        async def achat(self, messages: Any, **more: Any) -> ChatResponse:
            return ChatResponse(message=ChatMessage(role="assistant", content=next(said)))

    async def go() -> tuple[list[str], str]:
        agent = ReActAgent(name="worker", tools=[remove], llm=Texts(), streaming=False)
        handler = govern_agent(agent, runtime).run(user_msg="hi")
        told = [event.tool_output.content async for event in handler.stream_events() if type(event) is ToolCallResult]
        return told, str(await handler)

    told, last = asyncio.run(go())
    assert "Close it instead." in told[0]
    assert last == "done"


@pytest.mark.parametrize("answer", ["yes", 1, None])
def test_only_true_is_a_yes(tmp_path: Path, answer: object) -> None:
    """An event whose ``approved`` is anything but ``True`` is a no."""
    bench = Workbench(LlamaIndex(), "async", tmp_path)
    task = bench.task([("lookup", {"ticket_id": "T-1"}), ("pay", {"order_id": "O-1", "amount": 70.0})], pauses=True)
    bench.runtime()
    paused = bench.subject.run(replace(task, runtime=bench.runtime(approvals=True))).paused
    bench.subject.resume(replace(task, runtime=bench.runtime(approvals=True)), paused, answer)  # type: ignore[arg-type]
    assert bench.bodies.runs("pay") == []


@pytest.mark.parametrize(("old", "is_old"), [("llama-index-core", "0.14.12"), ("llama-index-workflows", "2.24.9")])
def test_too_old(runtime: Runtime, monkeypatch: pytest.MonkeyPatch, old: str, is_old: str) -> None:
    monkeypatch.setattr("cra_middleware.seams.version", lambda name: is_old if name == old else "99")
    with pytest.raises(RuntimeError, match=f"{old} {is_old} is too old"):
        govern_tools([remove], runtime)


def test_describe_tools(runtime: Runtime) -> None:
    """What an Atlas is drafted from is what the gate compares with."""
    agent = FunctionAgent(name="worker", tools=[remove, Query("lookup")], llm=Model(iter([])))
    described = describe_tools(AgentWorkflow(agents=[agent]))
    assert [name for name, _, _ in described] == ["remove", "lookup"]
    assert described[0][1].endswith("Delete a ticket.")
    assert described[0][2]["required"] == ["ticket_id"]
    assert describe_tools(remove) == described[:1] == describe_tools(govern_tools([remove], runtime))
    with pytest.raises(TypeError, match="no LlamaIndex tool"):
        describe_tools([1])
