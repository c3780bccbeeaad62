"""The contract of every adapter, for tools that are governed alone: in a ``ToolNode``, and in ``create_agent``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

pytest.importorskip("langchain", reason="the LangChain adapter needs the langchain extra")

from langchain.agents import create_agent
from langchain_core.tools import BaseTool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import tools_condition

from cra_adapters.langchain import govern_tools, governed_tool_node
from cra_middleware.testing import ContractCase, Mode, Task, adapter_contract
from tests.adapters.contract import Bench, check
from tests.adapters.langchain_runs import NEIGHBOURS, Model, OfAgents


class AloneInCreateAgent(OfAgents):
    """``create_agent(tools=govern_tools(tools, runtime))``."""

    way = "govern_tools"

    modes: tuple[Mode, ...] = ("sync", "async")

    abilities = frozenset({"call_ids", "agent_names", "pause", "retry", "change", "nested"})
    holes: ClassVar[dict[str, str]] = {
        "unknown_tool": "a tool that is not there is refused by LangChain, where no governed tool hears of it",
    }

    def build(self, task: Task, model: Model, tools: list[BaseTool], saver: Any) -> Any:
        return create_agent(
            model,
            govern_tools(tools, task.runtime),
            name=task.agent,
            middleware=NEIGHBOURS[task.neighbour],
            checkpointer=saver,
        )


RERUN = "a bare ToolNode runs the siblings of a call that stopped a second time when the run goes on"


class BareNode(OfAgents):
    """``governed_tool_node(tools, runtime)`` in a graph of one's own."""

    way = "governed_tool_node"

    modes: tuple[Mode, ...] = ("sync", "async")

    abilities = frozenset({"call_ids", "pause"})
    holes: ClassVar[dict[str, str]] = {
        "pause_approved": RERUN,
        "pause_rejected": RERUN,
        "pause_over_restart": RERUN,
        "pause_rejected_over_restart": RERUN,
    }

    def build(self, task: Task, model: Model, tools: list[BaseTool], saver: Any) -> Any:
        graph = StateGraph(MessagesState)
        graph.add_node("model", lambda state: {"messages": [model.invoke(state["messages"])]})
        graph.add_node("tools", governed_tool_node(tools, task.runtime, handle_tool_errors=True))
        graph.add_edge(START, "model")
        graph.add_conditional_edges("model", tools_condition)
        graph.add_edge("tools", "model")
        return graph.compile(checkpointer=saver)


CASES = [
    pytest.param(case, id=f"{type(subject).__name__}-{case}")
    for subject in (AloneInCreateAgent(), BareNode())
    for case in adapter_contract(subject)
]


@pytest.mark.parametrize("case", CASES)
def test_contract(case: ContractCase, tmp_path: Path, bench_type: Bench) -> None:
    check(case, tmp_path, bench_type)
