"""The contract of every adapter, for ``CRAMiddleware`` under ``create_agent``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

pytest.importorskip("langchain", reason="the LangChain adapter needs the langchain extra")

from langchain.agents import create_agent
from langchain_core.tools import BaseTool

from cra_adapters.langchain import CRAMiddleware
from cra_middleware.testing import ContractCase, Task, adapter_contract
from tests.adapters.contract import Bench, check
from tests.adapters.langchain_runs import NEIGHBOURS, Model, OfAgents


class CreateAgent(OfAgents):
    """``create_agent(middleware=[CRAMiddleware(runtime)])``."""

    way = "CRAMiddleware"

    abilities = frozenset({"call_ids", "agent_names", "pause", "retry", "change", "nested", "hide", "context"})
    holes: ClassVar[dict[str, str]] = {}

    def build(self, task: Task, model: Model, tools: list[BaseTool], saver: Any) -> Any:
        gate = CRAMiddleware(
            task.runtime, hide_denied=task.adds_context, inject_context=task.adds_context, tool_errors="message"
        )
        return create_agent(
            model, tools, name=task.agent, middleware=[gate, *NEIGHBOURS[task.neighbour]], checkpointer=saver
        )


@pytest.mark.parametrize("case", adapter_contract(CreateAgent()), ids=str)
def test_contract(case: ContractCase, tmp_path: Path, bench_type: Bench) -> None:
    check(case, tmp_path, bench_type)
