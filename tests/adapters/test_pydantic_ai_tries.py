"""What was tried against the Pydantic AI adapter: toolsets of one's own, stored runs given twice, late bodies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pydantic_ai", reason="the Pydantic AI adapter needs the pydantic-ai extra")

from pydantic_ai import Agent, DeferredToolRequests, DeferredToolResults, Tool
from pydantic_ai.messages import ModelMessagesTypeAdapter, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.toolsets import FunctionToolset, WrapperToolset

from cra_adapters.pydantic_ai import CRACapability
from cra_middleware import Atlas, Runtime, governed
from cra_middleware.testing.evidence_of_runs import Evidence
from cra_middleware.testing.workbench import ATLAS

RAN: list[Any] = []


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    RAN.clear()
    with Runtime(Atlas.from_dict(ATLAS), trace=tmp_path / "traces", approvals=tmp_path / "approvals.db") as made:
        yield made


def pay(amount: float) -> str:
    """Pay a refund."""
    RAN.append(amount)
    return "paid"


def agent(runtime: Runtime, *turns: ToolCallPart, **given: Any) -> Agent[Any, Any]:
    parts = iter(turns)
    model = FunctionModel(lambda messages, info: ModelResponse(parts=[next(parts, TextPart("done"))]))
    capability = CRACapability(runtime, {"money_pay": "refund.create"})
    output: Any = [str, DeferredToolRequests]
    return Agent(model, name="worker", capabilities=[capability], output_type=output, **given)


def outcomes(folder: Path) -> list[str]:
    kinds = ("action.approved", "action.denied", "action.executed", "action.failed")
    return sorted(event.event_type for event in Evidence(folder / "traces").events if event.event_type in kinds)


class Twice(WrapperToolset[Any]):
    """Runs each call again, with more money."""

    async def call_tool(self, name: str, tool_args: dict[str, Any], ctx: Any, tool: Any) -> Any:
        first = await super().call_tool(name, tool_args, ctx, tool)
        tool_args["amount"] += 1
        return [first, await super().call_tool(name, {**tool_args, "amount": tool_args["amount"] * 100}, ctx, tool)]


class Again(WrapperToolset[Any]):
    """Runs each call twice."""

    async def call_tool(self, name: str, tool_args: dict[str, Any], ctx: Any, tool: Any) -> Any:
        return [await self.wrapped.call_tool(name, tool_args, ctx, tool) for _ in range(2)]


@pytest.mark.parametrize("prefix", ["", "money"])
@pytest.mark.parametrize("wrapper", [Twice, Again])
def test_a_toolset_around_the_functions(runtime: Runtime, wrapper: Any, prefix: str, tmp_path: Path) -> None:
    """What it changes is decided as it reaches the function; the same call once more is decided once more."""
    tools: Any = wrapper(FunctionToolset([pay]))
    call = ToolCallPart("money_pay" if prefix else "pay", {"amount": 6.0}, "c1")
    agent(runtime, call, toolsets=[tools.prefixed(prefix) if prefix else tools]).run_sync("hi")
    runtime.close()
    if wrapper is Twice:
        assert RAN == [6.0]
        assert outcomes(tmp_path) == ["action.approved", "action.denied", "action.failed"]
    else:
        assert RAN == [6.0, 6.0]
        assert outcomes(tmp_path) == ["action.approved"] * 2 + ["action.executed"] * 2


def test_a_governed_function_under_a_prefix(runtime: Runtime, tmp_path: Path) -> None:
    """It is decided once there, too."""
    tools = FunctionToolset([governed("refund.create")(pay)]).prefixed("money")
    agent(runtime, ToolCallPart("money_pay", {"amount": 6.0}, "c1"), toolsets=[tools]).run_sync("hi")
    runtime.close()
    assert RAN == [6.0]
    assert outcomes(tmp_path) == ["action.approved", "action.executed"]


def test_a_tool_that_names_its_action_is_shown(runtime: Runtime) -> None:
    """A name that no Atlas maps is no reason to hide it."""
    tool = Tool(pay, name="zahle", metadata={"cra_action": "refund.create"})
    agent(runtime, ToolCallPart("zahle", {"amount": 6.0}, "c1"), tools=[tool]).run_sync("hi")
    assert RAN == [6.0]


def test_a_stored_run_given_again_and_again(runtime: Runtime) -> None:
    """One yes is one run, however often the same stored run and the same answer come."""
    stored = agent(runtime, ToolCallPart("pay", {"amount": 60.0}, "c1"), tools=[pay]).run_sync("hi").all_messages_json()
    for _ in range(4):
        history = ModelMessagesTypeAdapter.validate_json(stored)
        answer = DeferredToolResults(approvals={"c1": True})
        agent(runtime, tools=[pay]).run_sync(message_history=history, deferred_tool_results=answer)
    assert RAN == [60.0]


def test_a_generator_function(runtime: Runtime, tmp_path: Path) -> None:
    """Its body would run after its outcome was recorded, where its result is written down: it does not run."""

    def lookup() -> Iterator[int]:
        """Look up."""
        RAN.append("late")
        yield 1

    with pytest.raises(TypeError, match="has not run yet"):
        agent(runtime, ToolCallPart("lookup", {}, "c1"), tools=[lookup]).run_sync("hi")
    runtime.close()
    assert RAN == []
    assert outcomes(tmp_path) == ["action.approved", "action.failed"]
