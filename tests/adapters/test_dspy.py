"""DSPy, for real: a scripted model drives ``ReAct`` and ``ReActV2``, in calls and in ``acall``."""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

pytest.importorskip("dspy", reason="the DSPy adapter needs the dspy extra")

import dspy
from dspy.adapters.types.tool import ToolCalls
from dspy.utils import DummyLM
from dspy.utils.callback import BaseCallback
from pydantic import BaseModel

from cra_adapters.dspy import describe_tools, govern, govern_tools
from cra_middleware import ActionDenied, Atlas, Runtime
from cra_middleware._canonical import canonical, digest
from cra_middleware.testing import ContractCase, Mode, Outcome, Task, adapter_contract
from cra_middleware.testing.evidence_of_runs import Evidence
from cra_middleware.testing.workbench import ATLAS
from tests.adapters.contract import Bench, check


def script(turns: Any, version: int) -> list[dict[str, Any]]:
    """What the model says: ReAct makes one call in a turn, ReActV2 several."""
    if version == 1:
        calls = [(call.tool, dict(call.arguments)) for turn in turns for call in turn]
        said = [said_v1(name, arguments) for name, arguments in [*calls, ("finish", {})]]
        return [*said, {"reasoning": "so", "answer": "done"}]
    listed = [[{"name": call.tool, "args": dict(call.arguments)} for call in turn] for turn in turns]
    end = [{"name": "submit", "args": {"answer": "done"}}]
    return [{"next_thought": "go on", "tool_calls": json.dumps({"tool_calls": calls})} for calls in [*listed, end]]


def said_v1(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"next_thought": "go on", "next_tool_name": name, "next_tool_args": json.dumps(arguments)}


class DSPy:
    framework = "dspy"
    modes: tuple[Mode, ...] = ("sync", "async")
    abilities = frozenset({"agent_names", "nested"})

    def __init__(self, version: Literal[1, 2]) -> None:
        self.way = "ReAct" if version == 1 else "ReActV2"
        self.version = version
        self.holes: dict[str, str] = {"unknown_tool": "the modules tell nobody of an unknown tool"}

    def module(self, task: Task) -> tuple[dspy.Module, DummyLM]:
        tools: list[Any] = list(task.tools)
        if task.nested is not None:
            inner, inner_lm = self.module(task.nested)

            def delegate(request: str) -> str:
                """Ask the helper."""
                with dspy.context(lm=inner_lm):
                    return str(inner(question=request).answer)

            async def adelegate(request: str) -> str:
                """Ask the helper."""
                with dspy.context(lm=inner_lm):
                    return str((await inner.acall(question=request)).answer)

            tools.append(delegate if task.mode == "sync" else dspy.Tool(adelegate, name="delegate"))
        kind = dspy.ReAct if self.version == 1 else dspy.ReActV2
        module = govern(kind("question -> answer", tools=tools), task.runtime, agent=task.agent)
        return module, DummyLM(script(task.turns, self.version))

    def run(self, task: Task) -> Outcome:
        module, lm = self.module(task)
        final = ""
        error: BaseException | None = None
        try:
            with dspy.context(lm=lm):
                final = ask(module, task.mode)
        except Exception as raised:
            error = raised
        return Outcome([str(lm.history[-1]["messages"])], final, error)


def ask(module: dspy.Module, mode: Mode) -> str:
    if mode == "sync":
        return str(module(question="hi").answer)
    return str(asyncio.run(module.acall(question="hi")).answer)


CASES = [case for version in (1, 2) for case in adapter_contract(DSPy(version))]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case}-v{case.subject.version}")
def test_contract(case: ContractCase, tmp_path: Path, bench_type: Bench) -> None:
    check(case, tmp_path, bench_type)


RAN: list[Any] = []


def remove(ticket_id: str) -> str:
    """Delete a ticket."""
    RAN.append(("remove", ticket_id))
    return "gone"


async def lookup(ticket_id: str) -> str:
    """Look a ticket up."""
    RAN.append(("lookup", ticket_id))
    return f"{ticket_id} is open"


class Order(BaseModel):
    order: str
    amount: float = 500.0


def pay(refund: Order) -> str:
    """Pay a refund."""
    RAN.append(refund)
    return "paid"


class Remover:
    """Delete a ticket."""

    async def __call__(self, ticket_id: str) -> str:
        RAN.append(("remover", ticket_id))
        return "gone"


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    RAN.clear()
    with Runtime(Atlas.from_dict(ATLAS), trace=tmp_path / "traces") as made:
        yield made


def test_every_way_to_call_a_governed_tool_is_decided(runtime: Runtime) -> None:
    (tool,) = govern_tools([remove], runtime)
    call = ToolCalls.ToolCall(name="remove", args={"ticket_id": "T-1"})
    for run in (
        lambda: tool(ticket_id="T-1"),
        lambda: asyncio.run(tool.acall(ticket_id="T-1")),
        lambda: tool.func("T-1"),
        lambda: copy.deepcopy(tool)(ticket_id="T-1"),
        lambda: tool.model_copy()(ticket_id="T-1"),
    ):
        with pytest.raises(ActionDenied, match="Close it instead"):
            run()
    with pytest.raises(RuntimeError, match="Close it instead"):
        call.execute([tool])
    assert RAN == []


def test_what_was_given_is_not_governed(runtime: Runtime) -> None:
    tool = dspy.Tool(remove)
    govern_tools([tool], runtime)
    tool(ticket_id="T-1")
    ToolCalls.ToolCall(name="remove", args={"ticket_id": "T-1"}).execute()
    module = govern(dspy.ReAct("question -> answer", tools=[lookup]), runtime)
    module.tools["remove"] = tool
    module.tools["remove"](ticket_id="T-1")
    assert len(RAN) == 3, "holes that the page names"


def test_the_source_of_a_tool_is_not_found_through_it(runtime: Runtime) -> None:
    (tool,) = govern_tools([remove], runtime)
    assert "RAN.append" not in inspect.getsource(tool.func)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module = dspy.CodeAct("question -> answer", tools=[remove])
    with pytest.raises(TypeError, match="sandbox"):
        govern(module, runtime)


def test_a_callback_that_breaks_changes_nothing(runtime: Runtime) -> None:
    class Broken(BaseCallback):
        def on_tool_start(self, call_id: str, instance: Any, inputs: Any) -> None:
            raise RuntimeError("swallowed, and the tool would run")

    (tool,) = govern_tools([remove], runtime)
    with dspy.context(callbacks=[Broken()]), pytest.raises(ActionDenied):
        tool(ticket_id="T-1")
    assert RAN == []


def test_callable_objects_and_partial_functions_are_decided(runtime: Runtime, tmp_path: Path) -> None:
    partial = dspy.Tool(functools.partial(lookup), name="lookup", desc="Look up.", args={"ticket_id": {}}, arg_types={})
    remover, look = govern_tools([dspy.Tool(Remover(), name="remove"), partial], runtime)
    with pytest.raises(ActionDenied):
        asyncio.run(remover.acall(ticket_id="T-1"))
    assert asyncio.run(look.acall(ticket_id="T-1")) == "T-1 is open"
    assert RAN == [("lookup", "T-1")]
    assert Evidence(tmp_path / "traces").of("action.executed", "ticket.get")


def test_a_model_as_an_argument_is_decided_by_its_fields(runtime: Runtime) -> None:
    rules = [
        {"policy_id": "allow", "type": "allow"},
        {
            "policy_id": "big",
            "type": "deny",
            "actions": ["refund.*"],
            "conditions": {
                "parameters": {
                    "required": ["refund"],
                    "properties": {"refund": {"properties": {"amount": {"exclusiveMinimum": 100}}}},
                }
            },
        },
    ]
    with Runtime(Atlas.from_dict({**ATLAS, "policies": rules})) as strict:
        (tool,) = govern_tools([pay], strict)
        with pytest.raises(ActionDenied):
            tool(refund={"order": "O-1"})
        assert tool(refund={"order": "O-1", "amount": 5}) == "paid"
    assert RAN == [Order(order="O-1", amount=5)]


def test_an_empty_star_is_no_argument(runtime: Runtime, tmp_path: Path) -> None:
    async def anything(*args: Any, **kwargs: Any) -> str:
        """Look a ticket up, as a tool of another process is called."""
        return str(kwargs)

    tool = dspy.Tool(anything, name="lookup", args={"ticket_id": {"type": "string"}}, arg_types={"ticket_id": str})
    (governed,) = govern_tools([tool], runtime)
    assert asyncio.run(governed.acall(ticket_id="T-1")) == "{'ticket_id': 'T-1'}"
    (asked,) = Evidence(tmp_path / "traces").of("action.requested")
    assert asked["parameters_hash"] == digest(canonical({"ticket_id": "T-1"}))


def test_governed_twice_is_decided_once(runtime: Runtime, tmp_path: Path) -> None:
    (tool,) = govern_tools(govern_tools([lookup], runtime), runtime)
    asyncio.run(tool.acall(ticket_id="T-1"))
    assert len(Evidence(tmp_path / "traces").of("action.requested")) == 1


def test_a_copy_of_a_module_is_governed_and_each_call_of_the_module_a_run(runtime: Runtime, tmp_path: Path) -> None:
    class Program(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = dspy.ReAct("question -> answer", tools=[remove])

        def forward(self, question: str) -> Any:
            return self.inner(question=question)

    module = govern(Program(), runtime, {"remove": "ticket.delete"})
    calls = [said_v1("remove", {"ticket_id": "T-1"}), said_v1("finish", {}), {"reasoning": "so", "answer": "done"}]
    for one in (module, module.deepcopy(), module.reset_copy()):
        with dspy.context(lm=DummyLM(list(calls))):
            assert one(question="hi").answer == "done"
    assert RAN == []
    evidence = Evidence(tmp_path / "traces")
    assert evidence.denials("ticket.delete") == ["policy_denied"] * 3
    assert len(evidence.of("session.ended")) == 1, "a copy has no callbacks: its calls share the session of no run"
    assert len(evidence.sessions) == 2


def test_what_a_model_writes_for_rlm_calls_governed_tools(runtime: Runtime) -> None:
    """In a module of its own, and beside another."""

    class Both(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.react = dspy.ReAct("question -> answer", tools=[remove])
            self.rlm = dspy.RLM("question -> answer", tools=[remove])

    alone, both = dspy.RLM("question -> answer", tools=[remove]), Both()
    for module, rlm in ((alone, alone), (both, both.rlm)):
        govern(module, runtime)
        for copied in (rlm, rlm.deepcopy()):
            with pytest.raises(ActionDenied):
                copied._prepare_execution_tools()["remove"](ticket_id="T-1")
    assert [name for name, _, _ in describe_tools(alone)] == ["remove"]


def test_what_cannot_be_governed_is_said(runtime: Runtime) -> None:
    class Own(dspy.Tool):
        def __call__(self, **kwargs: Any) -> Any:
            return self.func(**kwargs)

    class Listed(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tools = [remove]

    class Aside(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.react = dspy.ReAct("question -> answer", tools=[remove])
            self.aside = {"remove": dspy.Tool(remove)}

    with pytest.raises(TypeError, match=r"holds tools in \.aside"):
        govern(Aside(), runtime)
    with pytest.raises(TypeError, match="a way of its own"):
        govern_tools([Own(remove)], runtime)
    with pytest.raises(TypeError, match="govern_tools"):
        govern(Listed(), runtime)
    with pytest.raises(ValueError, match="no tools"):
        govern(dspy.Predict("question -> answer"), runtime)


def test_an_old_version_is_refused(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cra_middleware.seams.version", lambda name: "2.6.0")
    with pytest.raises(RuntimeError, match="too old"):
        govern_tools([remove], runtime)


def test_tools_are_described() -> None:
    (name, description, schema) = describe_tools([remove])[0]
    assert (name, description) == ("remove", "Delete a ticket.")
    assert schema is not None
    assert schema["required"] == ["ticket_id"]
    for kind in (dspy.ReAct, dspy.ReActV2):
        assert describe_tools(kind("question -> answer", tools=[remove])) == [(name, description, schema)]
    with pytest.raises(TypeError):
        describe_tools([1])
