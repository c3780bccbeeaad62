"""Whoever holds the objects that a call's arguments came in changes them while a person is asked: no body sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cra_middleware import Answer, Atlas, Pending, Runtime
from cra_middleware.testing.workbench import ATLAS

ASK = {"policy_id": "ask", "type": "require_approval", "actions": ["refund.create"]}
POLICIES = [{"policy_id": "allow-all", "type": "allow"}, ASK]


def started(folder: Path, change: Callable[[], object]) -> Runtime:
    def approver(pending: Pending) -> Answer:
        change()
        return Answer(True, "ann")

    adapters = {"any": {"tools": {"pay": "refund.create", "shell": "refund.create"}}}
    made = {**ATLAS, "policies": POLICIES, "adapters": adapters}
    return Runtime(Atlas.from_dict(made), trace=folder / "traces", approver=approver)


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_anthropic(tmp_path: Path, mode: str) -> None:
    """The message's block keeps the input of a tool without a function."""
    lib = pytest.importorskip("anthropic.lib.tools", reason="needs the anthropic extra")
    from cra_adapters.anthropic import GovernedTools

    ran: list[Any] = []
    given = {"amount": 5}
    properties = {"name": "pay", "description": "d", "input_schema": {"type": "object", "properties": {"amount": {}}}}

    class Pay(lib.BetaBuiltinFunctionTool):  # type: ignore[misc]
        name = "pay"

        def to_dict(self) -> Any:
            return properties

        def call(self, input: Any) -> str:
            ran.append(dict(input))
            return "paid"

    class PayLater(lib.BetaAsyncBuiltinFunctionTool):  # type: ignore[misc]
        name = "pay"

        def to_dict(self) -> Any:
            return properties

        async def call(self, input: Any) -> str:
            ran.append(dict(input))
            return "paid"

    with started(tmp_path, lambda: given.update(amount=500)) as runtime:
        (tool,) = GovernedTools(runtime, [Pay() if mode == "sync" else PayLater()]).runnables()
        asyncio.run(tool.call(given)) if mode == "async" else tool.call(given)
    assert ran == [{"amount": 5}]


def test_autogen(tmp_path: Path) -> None:
    """A caller keeps the arguments that it gives to a tool of another workbench."""
    pytest.importorskip("autogen_core", reason="needs the autogen extra")
    from cra_adapters.autogen import CRAWorkbench
    from tests.adapters.test_autogen import Remote

    ran: list[Any] = []
    given = {"amount": 5}

    def pay(amount: int) -> str:
        ran.append(amount)
        return "paid"

    with started(tmp_path, lambda: given.update(amount=500)) as runtime:
        asyncio.run(CRAWorkbench(runtime, Remote([pay])).call_tool("pay", given))
    assert ran == [5]


def test_google_adk(tmp_path: Path) -> None:
    """A neighbour's callback keeps the arguments of a tool of its own kind."""
    pytest.importorskip("google.adk", reason="needs the google-adk extra")
    from google.adk.plugins.base_plugin import BasePlugin

    from cra_adapters.google_adk import CRAPlugin
    from tests.adapters.test_google_adk_tries import RAN, Conversation, Own, scripted, worker

    held: list[dict[str, Any]] = []

    class Holds(BasePlugin):
        async def before_tool_callback(self, *, tool: Any, tool_args: dict[str, Any], tool_context: Any) -> None:
            held.append(tool_args)

    RAN.clear()
    agent = worker(scripted([("pay", {"amount": 5})]), Own(name="pay", description="d"))
    with started(tmp_path, lambda: held[0].update(amount=500)) as runtime:
        Conversation(agent, Holds("holds"), CRAPlugin(runtime)).say()
    assert RAN == [("pay", {"amount": 5})]


def test_openai_agents(tmp_path: Path) -> None:
    """A shell's executor is given a request that the response's item, and the tool's approval policy, hold as well."""
    agents = pytest.importorskip("agents", reason="needs the openai-agents extra")
    from agents.testing import ScriptedModel, assistant_message

    from cra_adapters.openai_agents import install
    from tests.adapters.test_openai_agents import LOCAL_CALLS

    ran: list[Any] = []
    held: list[Any] = []

    async def holds(context: Any, action: Any, call_id: str) -> bool:
        held.append(action)
        return False

    tool = agents.ShellTool(executor=lambda request: ran.extend(request.data.action.commands), needs_approval=holds)
    model = ScriptedModel([[LOCAL_CALLS["shell"]], [assistant_message("done")]])
    agent = agents.Agent(name="worker", model=model, tools=[tool])
    with started(tmp_path, lambda: held[0].commands.append("reboot")) as runtime, install(runtime, hide_denied=False):
        agents.Runner.run_sync(agent, "hi")
    assert ran == ["rm -r /"]
    assert held
