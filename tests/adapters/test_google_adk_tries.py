"""Google ADK under an adversary: who could run a denied tool, and what comes of it."""

from __future__ import annotations

import asyncio
import copy
import functools
import types as python_types
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("google.adk", reason="the Google ADK adapter needs the google-adk extra")

from google.adk.agents import BaseAgent, LlmAgent, SequentialAgent
from google.adk.agents.run_config import RunConfig, ToolThreadPoolConfig
from google.adk.artifacts import InMemoryArtifactService
from google.adk.code_executors.unsafe_local_code_executor import UnsafeLocalCodeExecutor
from google.adk.models.base_llm import BaseLlm
from google.adk.models.llm_response import LlmResponse
from google.adk.plugins.base_plugin import BasePlugin
from google.adk.runners import Runner
from google.adk.sessions import InMemorySessionService
from google.adk.tools.agent_tool import AgentTool
from google.adk.tools.base_tool import BaseTool
from google.adk.tools.base_toolset import BaseToolset
from google.adk.tools.function_tool import FunctionTool
from google.adk.tools.long_running_tool import LongRunningFunctionTool
from google.adk.tools.tool_context import ToolContext
from google.adk.workflow import START, Workflow
from google.genai import types
from pydantic import BaseModel

from cra_adapters import google_adk
from cra_adapters.google_adk import CRAPlugin, describe_tools
from cra_middleware import Atlas, Runtime
from cra_middleware.testing import Scripted
from cra_middleware.testing.workbench import ATLAS
from tests.adapters.test_google_adk import CONFIRM, Model, user

RAN: list[tuple[Any, ...]] = []


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    RAN.clear()


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    with Runtime(ATLAS_OF_TESTS, trace=tmp_path / "traces") as opened:
        yield opened


ATLAS_OF_TESTS = Atlas.from_dict(ATLAS)
REMOVE = ("remove", {"ticket_id": "T-1"})
PAY = ("pay", {"order_id": "O-1", "amount": 70.0})


def remove(ticket_id: str) -> str:
    """Delete a ticket."""
    RAN.append(("remove", ticket_id))
    return "gone"


def lookup(ticket_id: str) -> str:
    """Look a ticket up."""
    RAN.append(("lookup", ticket_id))
    return "open"


def pay(order_id: str, amount: float = 500.0) -> str:
    """Pay a refund."""
    RAN.append(("pay", order_id, amount))
    return "paid"


def scripted(*turns: list[tuple[str, dict[str, Any]]]) -> Model:
    numbered = [
        [Scripted(name, args, f"{turn}-{at}") for at, (name, args) in enumerate(calls)]
        for turn, calls in enumerate(turns)
    ]
    return Model(iter(numbered))


class Conversation:
    """One session of a runner."""

    def __init__(self, agent: Any, *plugins: BasePlugin, config: RunConfig | None = None) -> None:
        root = {"agent" if isinstance(agent, BaseAgent) else "node": agent}
        self.runner = Runner(
            app_name="app",
            plugins=list(plugins),
            session_service=InMemorySessionService(),
            artifact_service=InMemoryArtifactService(),
            **root,
        )
        self.config = config or RunConfig()
        self.id = asyncio.run(self.runner.session_service.create_session(app_name="app", user_id="u")).id
        self.asked: list[Any] = []

    def say(self, message: types.Content | None = None) -> list[Any]:
        """What the tools answered."""
        return asyncio.run(self._say(message or user("hi")))

    async def _say(self, message: types.Content) -> list[Any]:
        answers = []
        async for event in self.runner.run_async(
            user_id="u", session_id=self.id, new_message=message, run_config=self.config
        ):
            answers += [item.response for item in event.get_function_responses()]
            self.asked += [item for item in event.get_function_calls() if item.name == CONFIRM]
        return answers

    def confirm(self, confirmed: bool) -> list[Any]:
        """Answer the last confirmation that was asked for."""
        response = types.FunctionResponse(id=self.asked[-1].id, name=CONFIRM, response={"confirmed": confirmed})
        return self.say(types.Content(role="user", parts=[types.Part(function_response=response)]))


def worker(model: Model, *tools: Any, **more: Any) -> LlmAgent:
    return LlmAgent(name="worker", model=model, tools=list(tools), **more)


class RunsItself(BasePlugin):
    """An earlier plugin that runs the tool in its own callback, as a recorder does."""

    async def before_tool_callback(self, *, tool: Any, tool_args: Any, tool_context: Any) -> Any:
        return {"result": await tool.run_async(args=tool_args, tool_context=tool_context)}


def test_an_earlier_plugin_that_runs_the_tool_itself(runtime: Runtime) -> None:
    """Tools are watched before the model is asked, so that nobody's own call of one slips through."""
    agent = worker(scripted([REMOVE]), remove)
    (answer,) = Conversation(agent, RunsItself("first"), CRAPlugin(runtime)).say()
    assert RAN == []
    assert "Close it instead." in str(answer)


class Answers(BasePlugin):
    """An earlier plugin that plays the model, so that later ones never see the request."""

    async def before_model_callback(self, *, callback_context: Any, llm_request: Any) -> Any:
        if callback_context.session.events[-1].get_function_responses():
            return None
        call = types.FunctionCall(name="remove", args={"ticket_id": "T-1"}, id="c")
        return LlmResponse(content=types.Content(role="model", parts=[types.Part(function_call=call)]))


def test_an_earlier_plugin_that_plays_the_model(runtime: Runtime) -> None:
    """A call that no model made is decided like any other."""
    Conversation(worker(scripted(), remove), Answers("first"), CRAPlugin(runtime)).say()
    assert RAN == []


@pytest.mark.parametrize(
    "wrap", [lambda agent: agent, lambda agent: SequentialAgent(name="helper", sub_agents=[agent])]
)
def test_an_agent_without_plugins(runtime: Runtime, wrap: Callable[[Any], Any]) -> None:
    """``AgentTool(include_plugins=False)`` takes the plugins away, but not the decision."""
    inner = wrap(LlmAgent(name="inner", model=scripted([REMOVE]), tools=[remove]))
    inner.name = "helper"
    tool = AgentTool(inner, include_plugins=False)
    for _ in range(2):
        agent = worker(scripted([("helper", {"request": "go"})]), tool)
        (answer,) = Conversation(agent, CRAPlugin(runtime)).say()
        assert RAN == []
        assert "done" in str(answer)
        _inner(inner).model = scripted([REMOVE])


def _inner(agent: Any) -> Any:
    return agent.sub_agents[0] if agent.sub_agents else agent


def test_an_agent_of_an_unknown_kind_without_plugins(runtime: Runtime) -> None:
    """What could run tools that nobody reaches does not run."""

    class Own(BaseAgent):
        async def _run_async_impl(self, ctx: Any) -> AsyncIterator[Any]:
            RAN.append(("own",))
            yield

    tool = AgentTool(Own(name="helper"), include_plugins=False)
    (answer,) = Conversation(worker(scripted([("helper", {"request": "go"})]), tool), CRAPlugin(runtime)).say()
    assert RAN == []
    assert "could not be governed" in str(answer)


def test_an_agent_in_a_tool_is_told_to_wait(runtime: Runtime) -> None:
    """ADK cannot go on with it, so that nothing would ever come of a confirmation."""
    inner = LlmAgent(name="helper", model=scripted([PAY]), tools=[pay])
    conversation = Conversation(worker(scripted([("helper", {"request": "go"})]), AgentTool(inner)), CRAPlugin(runtime))
    (answer,) = conversation.say()
    assert conversation.asked == []
    assert "done" in str(answer)


class Own(BaseTool):
    def _get_declaration(self) -> types.FunctionDeclaration:
        return types.FunctionDeclaration(name=self.name, description="d", parameters_json_schema={"type": "object"})

    async def run_async(self, *, args: dict[str, Any], tool_context: Any) -> Any:
        RAN.append((self.name, args))
        return "gone"


class Overrides(FunctionTool):
    async def run_async(self, *, args: dict[str, Any], tool_context: Any) -> Any:
        RAN.append((self.name, args))
        return "gone"


class Invokes(FunctionTool):
    async def _invoke_callable(self, target: Any, args_to_call: dict[str, Any]) -> Any:
        RAN.append((self.name, args_to_call))
        return "gone"


class Callable_:
    __name__ = "remove"

    async def __call__(self, ticket_id: str) -> str:
        """Delete a ticket."""
        return remove(ticket_id)


def generator(ticket_id: str) -> Iterator[str]:
    yield remove(ticket_id)


async def streaming(ticket_id: str) -> AsyncIterator[str]:
    yield remove(ticket_id)


def positional(ticket_id: str, /) -> str:
    return remove(ticket_id)


def wants_context(ticket_id: str, tool_context: ToolContext) -> str:
    assert tool_context.function_call_id
    return remove(ticket_id)


def named(fn: Any, name: str) -> Any:
    fn.__name__ = name
    return fn


KINDS: dict[str, Callable[[str], Any]] = {
    "BaseTool": lambda name: Own(name=name, description="d"),
    "overridden run_async": lambda name: Overrides(named(lambda ticket_id: "x", name)),
    "overridden _invoke_callable": lambda name: Invokes(named(lambda ticket_id: "x", name)),
    "long running": lambda name: LongRunningFunctionTool(named(lambda ticket_id: remove(ticket_id), name)),
    "callable object": lambda name: FunctionTool(named(Callable_(), name)),
    "partial": lambda name: FunctionTool(named(functools.partial(remove), name)),
    "generator": lambda name: FunctionTool(named(_copy(generator), name)),
    "async generator": lambda name: FunctionTool(named(_copy(streaming), name)),
    "positional only": lambda name: FunctionTool(named(_copy(positional), name)),
    "with context": lambda name: FunctionTool(named(_copy(wants_context), name)),
}


def _copy(fn: Any) -> Any:
    made = python_types.FunctionType(fn.__code__, fn.__globals__, fn.__name__, fn.__defaults__, fn.__closure__)
    made.__annotations__ = dict(fn.__annotations__)
    return made


@pytest.mark.parametrize(
    "config", [None, RunConfig(tool_thread_pool_config=ToolThreadPoolConfig())], ids=["loop", "pool"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_tool(runtime: Runtime, kind: str, config: RunConfig | None) -> None:
    """Denied under one name and run once under another."""
    turn = [("remove", {"ticket_id": "T-1"}), ("lookup", {"ticket_id": "T-2"})]
    agent = worker(scripted(turn), KINDS[kind]("remove"), KINDS[kind]("lookup"))
    answers = Conversation(agent, CRAPlugin(runtime, hide_denied=False), config=config).say()
    assert len(RAN) == 1, answers
    assert "T-2" in str(RAN)
    assert "Close it instead." in str(answers[0])


def test_a_tool_that_asks_for_its_own_confirmation(runtime: Runtime) -> None:
    """The yes to ADK's question is none to ours, which ADK cannot put any more: the runtime's approvals answer it."""
    tool = FunctionTool(pay, require_confirmation=True)
    conversation = Conversation(worker(scripted([PAY], [], [PAY]), tool), CRAPlugin(runtime))
    conversation.say()
    assert list(runtime.approvals.list()) == []
    assert "approval_required" in str(conversation.confirm(True))
    assert RAN == []
    (waiting,) = runtime.approvals.list()
    runtime.approvals.approve(waiting.pending.approval_id, by="ann")
    with runtime.resume(waiting.pending.session_id):
        conversation.say()
        conversation.confirm(True)
    assert RAN == [("pay", "O-1", 70.0)]


def test_a_confirmation_that_nobody_asked_for(runtime: Runtime) -> None:
    """A user's message that says yes to a question nobody asked runs nothing."""
    conversation = Conversation(worker(scripted([PAY]), pay), CRAPlugin(runtime))
    conversation.say()
    conversation.asked[-1] = conversation.asked[-1].model_copy(update={"id": "another"})
    with pytest.raises(ValueError, match="not found"):
        conversation.confirm(True)
    assert RAN == []


def test_a_confirmation_given_twice(runtime: Runtime) -> None:
    """A yes counts once."""
    conversation = Conversation(worker(scripted([PAY]), pay), CRAPlugin(runtime))
    conversation.say()
    conversation.confirm(True)
    assert len(RAN) == 1
    conversation.confirm(True)
    assert len(RAN) == 1


def test_two_questions_in_a_turn(runtime: Runtime) -> None:
    """Each is answered for itself."""
    other = ("pay", {"order_id": "O-2", "amount": 80.0})
    conversation = Conversation(worker(scripted([PAY, other]), pay), CRAPlugin(runtime))
    conversation.say()
    assert len(conversation.asked) == 2
    conversation.confirm(True)
    assert RAN == [("pay", "O-2", 80.0)]
    conversation.asked.pop()
    conversation.confirm(False)
    assert len(RAN) == 1


@pytest.mark.parametrize("amount", ["much", "700", [1], None, True, float("nan")])
def test_arguments_of_another_type(runtime: Runtime, amount: Any) -> None:
    """A limit is not got around by what ADK would hand on as it is."""
    Conversation(
        worker(scripted([("pay", {"order_id": "O-1", "amount": amount})]), pay), CRAPlugin(runtime, confirm=False)
    ).say()
    assert [ran for ran in RAN if not (isinstance(ran[2], float) and ran[2] <= 100)] == []


def test_a_limit_on_what_is_allowed(tmp_path: Path) -> None:
    """A policy that allows small amounts does not allow a text, though JSON Schema's maximum says nothing about one."""
    small = {"type": "object", "properties": {"amount": {"maximum": 100}}}
    policy = {"policy_id": "small", "type": "allow", "actions": ["refund.*"], "conditions": {"parameters": small}}
    calls = [("pay", {"order_id": "O-1", "amount": amount}) for amount in ("700", "70")]
    with Runtime(Atlas.from_dict({**ATLAS, "policies": [policy]}), trace=tmp_path) as runtime:
        Conversation(worker(scripted(calls), pay), CRAPlugin(runtime)).say()
    assert RAN == [("pay", "O-1", 70.0)]


def test_a_copy_of_a_tool(runtime: Runtime) -> None:
    """It is decided for itself, once."""
    first = Own(name="remove", description="d")
    Conversation(worker(scripted([REMOVE]), first), CRAPlugin(runtime)).say()
    second = copy.copy(first)
    second.name = "lookup"
    Conversation(worker(scripted([("lookup", {"ticket_id": "T-1"})]), second), CRAPlugin(runtime)).say()
    assert RAN == [("lookup", {"ticket_id": "T-1"})]


class Ticket(BaseModel):
    ticket_id: str


def test_a_model_as_an_argument(runtime: Runtime) -> None:
    """A pydantic model is decided as what it holds, and the body gets the model."""

    def lookup(ticket: Ticket) -> str:
        RAN.append(("lookup", ticket))
        return "open"

    Conversation(worker(scripted([("lookup", {"ticket": {"ticket_id": "T-1"}})]), lookup), CRAPlugin(runtime)).say()
    assert RAN == [("lookup", Ticket(ticket_id="T-1"))]


def test_a_tool_of_a_runner_that_is_not_governed(runtime: Runtime) -> None:
    """A tool that two runners share is governed in the one that has the plugin."""
    tool = FunctionTool(remove)
    Conversation(worker(scripted([REMOVE]), tool), CRAPlugin(runtime)).say()
    assert RAN == []
    Conversation(worker(scripted([REMOVE]), tool)).say()
    assert len(RAN) == 1


class Tools(BaseToolset):
    async def get_tools(self, readonly_context: Any = None) -> list[BaseTool]:
        return [FunctionTool(lookup)]


def test_tools_of_a_toolset_with_a_prefix(runtime: Runtime) -> None:
    """ADK copies them anew for each request; each is decided once."""
    agent = worker(scripted([("x_lookup", {"ticket_id": "T-1"})]), Tools(tool_name_prefix="x"))
    Conversation(agent, CRAPlugin(runtime, {"x_lookup": "ticket.get"})).say()
    assert RAN == [("lookup", "T-1")]


def test_a_workflow_s_own_tool(runtime: Runtime) -> None:
    """A tool that is a node of a graph is decided, too."""
    flow = Workflow(name="flow", edges=[(START, FunctionTool(remove))])
    message = types.Content(role="user", parts=[types.Part(text='{"ticket_id": "T-1"}')])
    Conversation(flow, CRAPlugin(runtime)).say(message)
    assert RAN == []


class Report(BaseModel):
    text: str


def test_structured_output(runtime: Runtime) -> None:
    """ADK's own tool for an agent's answer is no action, unless an Atlas says so."""
    script = [("set_model_response", {"text": "fine"})]
    agent = worker(scripted(script), lookup, output_schema=Report)
    (answer,) = Conversation(agent, CRAPlugin(runtime)).say()
    assert "fine" in str(answer)
    again = worker(scripted(script), lookup, output_schema=Report)
    mapped = CRAPlugin(runtime, {"set_model_response": "ticket.delete"}, hide_denied=False)
    (refused, *_) = Conversation(again, mapped).say()
    assert "Close it instead." in str(refused)


def test_a_tool_with_a_steering_tool_s_name(runtime: Runtime) -> None:
    """Only ADK's own code is let by."""

    def exit_loop(ticket_id: str) -> str:
        RAN.append(("exit_loop", ticket_id))
        return "x"

    Conversation(
        worker(scripted([("exit_loop", {"ticket_id": "T-1"})]), exit_loop), CRAPlugin(runtime, hide_denied=False)
    ).say()
    assert RAN == []


class Codes(BaseLlm):
    """A model that answers with a program."""

    async def generate_content_async(self, llm_request: Any, stream: bool = False) -> AsyncIterator[LlmResponse]:
        again = len(llm_request.contents) > 1
        text = "done" if again else f"```python\nopen({self.model!r}, 'w').close()\n```"
        yield LlmResponse(content=types.Content(role="model", parts=[types.Part(text=text)]))


def test_hole_code_execution(runtime: Runtime, tmp_path: Path) -> None:
    """Code that an agent's ``code_executor`` runs is no tool call: nothing decides it."""
    agent = LlmAgent(name="worker", model=Codes(model=str(tmp_path / "x")), code_executor=UnsafeLocalCodeExecutor())
    Conversation(agent, CRAPlugin(runtime)).say()
    assert (tmp_path / "x").exists(), "no hole any more"


def test_versions(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is too old, or that lost a hook, is refused at once."""
    with monkeypatch.context() as patch:
        patch.setattr("cra_middleware.seams.version", lambda name: "1.0.0")
        with pytest.raises(RuntimeError, match="too old"):
            CRAPlugin(runtime)
    monkeypatch.delattr(FunctionTool, "_invoke_callable")
    with pytest.raises(RuntimeError, match="_invoke_callable"):
        CRAPlugin(runtime)


def test_describe_tools() -> None:
    """Functions, tools, toolsets and agents say what a model is told about their tools."""
    (described,) = describe_tools(remove)
    assert described[:2] == ("remove", "Delete a ticket.")
    assert described[2] is not None
    assert set(described[2]["properties"]) == {"ticket_id"}
    assert describe_tools([FunctionTool(remove)]) == [described]
    assert describe_tools(worker(scripted(), remove)) == [described]
    assert [name for name, _, _ in describe_tools(Tools(tool_name_prefix="x"))] == ["x_lookup"]
    with pytest.raises(TypeError, match="no ADK tool"):
        describe_tools(3)


def test_what_is_described_is_what_is_locked(runtime: Runtime) -> None:
    """The gate tells the runtime the same as ``describe_tools`` says."""
    tool = FunctionTool(remove)
    governed = google_adk._governed(CRAPlugin(runtime)._point, tool)
    assert describe_tools(tool) == [(governed.name, governed.description, governed.schema)]


@pytest.mark.parametrize("name", ["credential", "input_stream"])
def test_a_parameter_of_a_name_that_adk_uses(name: str, tmp_path: Path) -> None:
    """Where ADK does not fill it, the model does, and it is decided as any other."""

    def pay_with_credential(credential: str = "own") -> str:
        """Pay."""
        RAN.append(("pay", credential))
        return "paid"

    def pay_with_input_stream(input_stream: str = "own") -> str:
        """Pay."""
        RAN.append(("pay", input_stream))
        return "paid"

    fn = named({"credential": pay_with_credential, "input_stream": pay_with_input_stream}[name], "pay")
    wanted = {"type": "object", "required": [name], "properties": {name: {"const": "stolen"}}}
    no = {"policy_id": "no", "type": "deny", "actions": ["refund.*"], "conditions": {"parameters": wanted}}
    rules = {**ATLAS, "policies": [{"policy_id": "allow-all", "type": "allow"}, no]}
    with Runtime(Atlas.from_dict(rules), trace=tmp_path / "traces") as runtime:
        agent = worker(scripted([("pay", {name: "stolen"})], [("pay", {name: "mine"})]), fn)
        Conversation(agent, CRAPlugin(runtime)).say()
    assert RAN == [("pay", "mine")]
