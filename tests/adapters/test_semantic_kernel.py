"""Semantic Kernel, for real: a scripted service drives agents, whole and in streams, and bare kernels."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

pytest.importorskip("semantic_kernel", reason="the Semantic Kernel adapter needs the semantic-kernel extra")

from pydantic import PrivateAttr
from semantic_kernel import Kernel
from semantic_kernel.agents import ChatCompletionAgent
from semantic_kernel.connectors.ai.chat_completion_client_base import ChatCompletionClientBase
from semantic_kernel.connectors.ai.function_choice_behavior import FunctionChoiceBehavior
from semantic_kernel.contents import (
    ChatHistory,
    ChatMessageContent,
    FunctionCallContent,
    FunctionResultContent,
    StreamingChatMessageContent,
    StreamingTextContent,
)
from semantic_kernel.contents.utils.author_role import AuthorRole
from semantic_kernel.exceptions import FunctionExecutionException, KernelInvokeException
from semantic_kernel.filters.filter_types import FilterTypes
from semantic_kernel.functions import KernelArguments, KernelFunctionFromPrompt, kernel_function
from semantic_kernel.prompt_template import PromptTemplateConfig

from cra_adapters.semantic_kernel import describe_tools, govern
from cra_middleware import Answer, Atlas, Pending, Runtime
from cra_middleware.testing import ContractCase, Mode, Outcome, Task, adapter_contract
from cra_middleware.testing import Scripted as Call
from cra_middleware.testing.evidence_of_runs import Evidence
from cra_middleware.testing.workbench import ATLAS
from tests.adapters.contract import Bench, check


class Scripted(ChatCompletionClientBase):
    """Follows a script, turn by turn, and remembers what it was shown."""

    SUPPORTS_FUNCTION_CALLING: ClassVar[bool] = True
    _turns: Iterator[Any] = PrivateAttr()
    _seen: list[str] = PrivateAttr(default_factory=list)

    def __init__(self, turns: Any) -> None:
        super().__init__(ai_model_id="scripted")
        self._turns = iter(turns)

    def _calls(self, history: Any) -> list[FunctionCallContent]:
        self._seen = [str(item.result) for message in history for item in message.items if is_result(item)]
        return [
            FunctionCallContent(
                id=call.call_id, index=number, name=call.tool, arguments=json.dumps(dict(call.arguments))
            )
            for number, call in enumerate(next(self._turns, []))
        ]

    async def _inner_get_chat_message_contents(self, chat_history: Any, settings: Any) -> Any:
        calls = self._calls(chat_history)
        if calls:
            return [ChatMessageContent(role=AuthorRole.ASSISTANT, items=calls)]
        return [ChatMessageContent(role=AuthorRole.ASSISTANT, content="done")]

    async def _inner_get_streaming_chat_message_contents(
        self, chat_history: Any, settings: Any, function_invoke_attempt: int = 0
    ) -> Any:
        calls = self._calls(chat_history)
        items: Any = calls or [StreamingTextContent(choice_index=0, text="done")]
        yield [StreamingChatMessageContent(role=AuthorRole.ASSISTANT, choice_index=0, items=items)]

    def _update_function_choice_settings_callback(self) -> Any:
        return lambda *args, **kwargs: None

    def _reset_function_choice_settings(self, settings: Any) -> None: ...


def is_result(item: Any) -> bool:
    return isinstance(item, FunctionResultContent)


async def retry(context: Any, next: Any) -> None:
    """A neighbour that runs a failed call twice more."""
    for _ in range(2):
        try:
            return await next(context)
        except TimeoutError:
            continue
    return await next(context)


async def change(context: Any, next: Any) -> None:
    """A neighbour that changes arguments as late as it can."""
    changed = {key: value for key, value in (("amount", 500.0), ("ticket_id", "T-9")) if key in context.arguments}
    context.arguments.update(changed)
    await next(context)


class SemanticKernel:
    framework = "semantic_kernel"
    modes: tuple[Mode, ...] = ("async", "stream")
    abilities = frozenset({"call_ids", "agent_names", "retry", "change", "nested"})
    holes: ClassVar[dict[str, str]] = {}

    def agent(self, task: Task) -> tuple[ChatCompletionAgent, Scripted]:
        service = Scripted(task.turns)
        kernel = Kernel()
        for fn in task.tools:
            kernel.add_function("tools", kernel_function(fn))
        if task.nested is not None:
            inner, _ = self.agent(task.nested)
            kernel.add_function("agents", inner._as_kernel_function)
            task.turns[0][0].arguments["messages"] = task.turns[0][0].arguments.pop("request")
            object.__setattr__(task.turns[0][0], "tool", "agents-helper")
        agent = ChatCompletionAgent(
            service=service,
            kernel=kernel,
            name=task.agent,
            instructions="help",
            function_choice_behavior=FunctionChoiceBehavior.Auto(),
        )
        govern(agent, task.runtime)
        for neighbour, name in ((retry, "retry"), (change, "change")):
            if task.neighbour == name:
                kernel.add_filter(FilterTypes.FUNCTION_INVOCATION, neighbour)
        return agent, service

    def run(self, task: Task) -> Outcome:
        agent, service = self.agent(task)
        final = ""
        error: BaseException | None = None
        try:
            final = asyncio.run(self.answer(agent, task.mode))
        except Exception as raised:
            error = raised
        return Outcome(service._seen, final, error)

    async def answer(self, agent: ChatCompletionAgent, mode: Mode) -> str:
        if mode == "async":
            return str(await agent.get_response(messages="hi"))
        return "".join([str(item) async for item in agent.invoke_stream(messages="hi")])


@pytest.mark.parametrize("case", adapter_contract(SemanticKernel()), ids=str)
def test_contract(case: ContractCase, tmp_path: Path, bench_type: Bench) -> None:
    check(case, tmp_path, bench_type)


RAN: list[Any] = []


class Tools:
    @kernel_function
    def remove(self, ticket_id: str) -> str:
        """Delete a ticket."""
        RAN.append(("remove", ticket_id))
        return "gone"

    @kernel_function
    async def lookup(self, ticket_id: str) -> str:
        """Look a ticket up."""
        RAN.append(("lookup", ticket_id))
        return f"{ticket_id} is open"

    @kernel_function
    async def pieces(self, ticket_id: str) -> Any:
        """Look a ticket up, piece by piece."""
        RAN.append(("pieces", ticket_id))
        yield "one"
        yield "two"

    @kernel_function
    def pay(self, order_id: str, kernel: Kernel, amount: float = 70.0) -> str:
        """Pay a refund."""
        RAN.append(("pay", order_id, amount, type(kernel)))
        return "paid"


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    RAN.clear()
    with Runtime(Atlas.from_dict(ATLAS), trace=tmp_path / "traces") as made:
        yield made


def bare() -> Kernel:
    kernel = Kernel()
    kernel.add_plugin(Tools(), "tools")
    return kernel


def agent_of(kernel: Kernel, *turns: tuple[str, Any]) -> ChatCompletionAgent:
    script = [[Call(name, arguments, f"c{number}")] for number, (name, arguments) in enumerate(turns)]
    return ChatCompletionAgent(service=Scripted(script), kernel=kernel, name="worker")


def invoke(kernel: Kernel, name: str, **arguments: Any) -> str:
    return str(asyncio.run(kernel.invoke(plugin_name="tools", function_name=name, **arguments)))


async def streamed(kernel: Kernel, name: str, **arguments: Any) -> list[str]:
    return [str(item) async for item in kernel.invoke_stream(plugin_name="tools", function_name=name, **arguments)]


def test_what_a_program_invokes_is_decided(runtime: Runtime) -> None:
    kernel = govern(bare(), runtime)
    with pytest.raises(KernelInvokeException) as raised:
        invoke(kernel, "remove", ticket_id="T-1")
    assert "Close it instead." in str(raised.value.__cause__)
    assert RAN == []
    assert invoke(kernel, "lookup", ticket_id="T-1") == "T-1 is open"


def test_a_stream_is_one_call_and_a_denied_one_does_not_begin(runtime: Runtime, tmp_path: Path) -> None:
    kernel = govern(bare(), runtime, {"pieces": "ticket.get"})
    assert asyncio.run(streamed(kernel, "pieces", ticket_id="T-1")) == ["one", "two"]
    assert len(Evidence(tmp_path / "traces").of("action.executed", "ticket.get")) == 1
    denied = govern(bare(), runtime, {"pieces": "ticket.delete"})
    with pytest.raises(FunctionExecutionException, match="Close it instead"):
        asyncio.run(streamed(denied, "pieces", ticket_id="T-1"))
    assert RAN == [("pieces", "T-1")]


def test_a_stream_that_is_left_has_an_outcome(runtime: Runtime, tmp_path: Path) -> None:
    async def leave(kernel: Kernel) -> None:
        stream = kernel.invoke_stream(plugin_name="tools", function_name="pieces", ticket_id="T-1")
        async for _ in stream:
            break
        await stream.aclose()

    asyncio.run(leave(govern(bare(), runtime, {"pieces": "ticket.get"})))
    assert len(Evidence(tmp_path / "traces").of("action.failed", "ticket.get")) == 1


def test_what_a_template_calls_is_decided(runtime: Runtime) -> None:
    kernel = govern(bare(), runtime)
    kernel.add_service(Scripted([]))
    with pytest.raises(KernelInvokeException):
        asyncio.run(kernel.invoke_prompt("Now {{tools.remove ticket_id='T-1'}}"))
    assert RAN == []
    assert str(asyncio.run(kernel.invoke_prompt("Hello"))) == "done", "the program's own prompt is no tool"


def test_a_prompt_that_a_model_calls_is_decided(runtime: Runtime, tmp_path: Path) -> None:
    kernel = bare()
    prompt = PromptTemplateConfig(template="Hello", description="Greet.")
    kernel.add_function("tools", KernelFunctionFromPrompt("remove_nicely", "tools", prompt_template_config=prompt))
    agent = govern(agent_of(kernel, ("tools-remove_nicely", {})), runtime, {"remove_nicely": "ticket.delete"})
    asyncio.run(agent.get_response(messages="hi"))
    assert "Close it instead." in agent.service._seen[0]


def test_later_filters_and_functions_and_clones_change_nothing(runtime: Runtime) -> None:
    kernel = govern(bare(), runtime)

    async def yes(context: Any, next: Any) -> None:
        await next(context)

    kernel.add_filter(FilterTypes.FUNCTION_INVOCATION, yes)
    kernel.add_plugin(Tools(), "later")
    for one in (kernel, kernel.clone(), kernel.clone().clone()):
        for plugin in ("tools", "later"):
            with pytest.raises(KernelInvokeException):
                asyncio.run(one.invoke(plugin_name=plugin, function_name="remove", ticket_id="T-1"))
    assert RAN == []


def test_what_is_decided_is_what_runs_whatever_changes_meanwhile(tmp_path: Path) -> None:
    RAN.clear()
    given = KernelArguments(order_id="O-1", amount=70.0)

    async def approver(pending: Pending) -> Answer:
        given["amount"] = 5000.0
        return Answer(True, "ann")

    with Runtime(Atlas.from_dict(ATLAS), trace=tmp_path / "traces", approver=approver) as runtime:
        kernel = govern(bare(), runtime)
        asyncio.run(kernel.invoke(plugin_name="tools", function_name="pay", arguments=given))
    assert RAN == [("pay", "O-1", 70.0, Kernel)]


def test_a_prompt_is_given_what_was_decided(tmp_path: Path) -> None:
    """A filter keeps the arguments, and writes into them while a person is asked."""
    held: list[Any] = []
    rendered: list[Any] = []

    async def render(context: Any, next: Any) -> None:
        await next(context)
        rendered.append(context.rendered_prompt)

    async def keep(context: Any, next: Any) -> None:
        held.append(context.arguments)
        await next(context)

    def approver(pending: Pending) -> Answer:
        held[-1]["amount"] = 5000.0
        return Answer(True, "ann")

    kernel = bare()
    prompt = PromptTemplateConfig(template="Pay {{$amount}} for {{$order_id}}", description="Pay.")
    kernel.add_function("tools", KernelFunctionFromPrompt("pay_nicely", "tools", prompt_template_config=prompt))
    with Runtime(Atlas.from_dict(ATLAS), approver=approver) as runtime:
        agent = agent_of(kernel, ("tools-pay_nicely", {"order_id": "O-1", "amount": 70.0}))
        govern(agent, runtime, {"pay_nicely": "refund.create"})
        kernel.add_filter("function_invocation", keep)
        kernel.add_filter("prompt_rendering", render)
        asyncio.run(agent.get_response(messages="hi"))
    assert held[-1]["amount"] == 5000.0
    assert rendered == ["Pay 70.0 for O-1"]


@pytest.mark.parametrize("arguments", ["{", {"ticket_id": "T-1", "extra": 1}])
def test_what_the_kernel_does_not_take_is_recorded(runtime: Runtime, tmp_path: Path, arguments: Any) -> None:
    kernel = govern(bare(), runtime)
    call = FunctionCallContent(id="c1", name="tools-lookup", arguments=arguments)
    asyncio.run(kernel.invoke_function_call(call, ChatHistory()))
    assert RAN == []
    assert Evidence(tmp_path / "traces").denials("ticket.get") == ["invalid_parameters"]


def test_a_name_with_its_plugin_goes_before_the_bare_one(runtime: Runtime) -> None:
    kernel = govern(bare(), runtime, {"tools-lookup": "ticket.delete"})
    with pytest.raises(KernelInvokeException):
        invoke(kernel, "lookup", ticket_id="T-1")
    assert RAN == []


def test_each_invocation_of_an_agent_is_a_run(runtime: Runtime, tmp_path: Path) -> None:
    async def both(agent: ChatCompletionAgent) -> None:
        await agent.get_response(messages="hi")
        async for _ in agent.invoke(messages="hi"):
            pass

    look = ("tools-lookup", {"ticket_id": "T-1"})
    agent = govern(agent_of(bare(), look), runtime)
    asyncio.run(both(agent))
    evidence = Evidence(tmp_path / "traces")
    assert len(evidence.of("session.ended")) == len(evidence.sessions) == 1


def test_another_kernel_and_the_method_itself_are_not_governed(runtime: Runtime) -> None:
    kernel = govern(bare(), runtime)
    function = kernel.get_function("tools", "remove")
    asyncio.run(function.invoke(Kernel(), ticket_id="T-1"))
    function.method(ticket_id="T-1")
    assert len(RAN) == 2, "holes that the page names"


def test_one_governor_a_kernel(runtime: Runtime) -> None:
    kernel = govern(bare(), runtime)
    with pytest.raises(RuntimeError, match="already"):
        govern(agent_of(kernel), runtime)
    with pytest.raises(TypeError):
        govern(object(), runtime)  # type: ignore[type-var]


def test_an_old_version_is_refused(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cra_middleware.seams.version", lambda name: "1.30.0")
    with pytest.raises(RuntimeError, match="too old"):
        govern(bare(), runtime)


def test_tools_are_described() -> None:
    described = {name: (description, schema) for name, description, schema in describe_tools(bare())}
    assert described["tools-remove"][1]["required"] == ["ticket_id"]
    assert list(described["tools-pay"][1]["properties"]) == ["order_id", "amount"], (
        "what the kernel fills is no argument"
    )
    assert json.dumps(described)
    assert describe_tools(agent_of(bare())) == describe_tools(list(bare().plugins.values()))
    with pytest.raises(TypeError):
        describe_tools([print])
