"""LangChain's own tests for tools: a governed tool is a tool like any other."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytest.importorskip("langchain", reason="the LangChain adapter needs the langchain extra")
pytest.importorskip("langchain_tests", reason="LangChain's standard tests need the langchain-tests distribution")

from langchain_core.tools import BaseTool, tool
from langchain_tests.integration_tests import ToolsIntegrationTests
from langchain_tests.unit_tests import ToolsUnitTests

from cra_adapters.langchain import govern_tools
from cra_middleware import Atlas, Runtime
from tests.conftest import manifest

TOOLS = {"multiply": "ticket.get", "asynchronous": "ticket.get", "whole": "ticket.get", "cut": "ticket.get"}
RUNTIME = Runtime(
    Atlas.from_dict(
        manifest(policies=[{"policy_id": "allow-all", "type": "allow"}], adapters={"any": {"tools": TOOLS}})
    )
)
pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@tool
def multiply(first: int, second: int = 3) -> int:
    """Multiply two numbers."""
    return first * second


@tool(response_format="content_and_artifact")
async def asynchronous(first: int, second: int = 3) -> tuple[str, int]:
    """Multiply two numbers, on a loop."""
    await asyncio.sleep(0)
    return str(first * second), first * second


class Whole(BaseTool):
    """A tool that is a class, with both ways to run."""

    name: str = "whole"
    description: str = "Multiply two numbers."

    def _run(self, first: int, second: int = 3) -> int:
        return first * second

    async def _arun(self, first: int, second: int = 3) -> int:
        return first * second


class _Governed:
    """What a standard test of tools is told."""

    inner: BaseTool

    @property
    def tool_constructor(self) -> BaseTool:
        return govern_tools([self.inner], RUNTIME)[0]

    @property
    def tool_invoke_params_example(self) -> dict[str, Any]:
        return {"first": 6, "second": 7}


class TestFunctionUnit(_Governed, ToolsUnitTests):
    inner = multiply


class TestFunctionIntegration(_Governed, ToolsIntegrationTests):
    inner = multiply


class TestCoroutineUnit(_Governed, ToolsUnitTests):
    inner = asynchronous


class TestClassUnit(_Governed, ToolsUnitTests):
    inner = Whole()


class TestClassIntegration(_Governed, ToolsIntegrationTests):
    inner = Whole()
