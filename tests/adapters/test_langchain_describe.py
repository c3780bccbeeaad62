"""What ``cra atlas init --from langchain:…`` writes about a tool is what is decided about its calls."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from typing import Annotated, Any

import pytest

pytest.importorskip("langchain", reason="needs the langchain extra")

from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, InjectedToolArg, InjectedToolCallId, StructuredTool, Tool, tool
from pydantic import BaseModel, Field

from cra_adapters.langchain import govern_tools
from cra_adapters.langchain.describe import describe_tools
from cra_middleware import Atlas, Runtime
from cra_middleware.atlas.yaml_text import read_yaml
from cra_middleware.cli.tools import as_sketches
from cra_middleware.sketch import atlas_text


class Handle:
    """An object that a caller has."""


class Kind(Enum):
    """Makes a schema with definitions."""

    BIG = "big"


class Query(BaseModel):
    """What a model is shown of a tool whose function takes more."""

    query: str = Field(max_length=5)


class OfClass(BaseTool):
    """A tool that is a class."""

    name: str = "of_class"
    description: str = "Of a class."

    def _run(self, query: str, limit: int = 5, run_manager: Any = None) -> str:
        return f"{query} {limit}"


@tool
def for_caller(q: str, who: Annotated[str, InjectedToolArg]) -> str:
    """A caller fills an argument."""
    return q + who


@tool
def for_framework(q: Kind, call_id: Annotated[str, InjectedToolCallId], config: RunnableConfig) -> str:
    """The framework fills two."""
    return q.value


@tool
def odd(q: str, handle: Annotated[Handle, InjectedToolArg]) -> str:
    """A caller fills in an object."""
    return q


@tool
def kind_for_caller(q: str, kind: Annotated[Kind, InjectedToolArg] = Kind.BIG) -> str:
    """A default of a type with a definition."""
    return q


CALL_ID = {"type": "tool_call", "id": "1"}


@pytest.mark.parametrize(
    ("made", "given", "names", "required"),
    [
        (Tool(name="old", func=lambda s: s, description="x"), "x", ["s"], ["s"]),
        (Tool(name="old", func=lambda s, limit=3: s, description="x"), "x", ["limit", "s"], ["s"]),
        (Tool(name="old", func=lambda q: q, description="x", args_schema=Query), {"query": "x"}, ["q"], ["q"]),
        (for_caller, {"q": "x", "who": "ann"}, ["q", "who"], ["q"]),
        (for_framework, {**CALL_ID, "name": "for_framework", "args": {"q": "big"}}, ["q"], ["q"]),
        (kind_for_caller, {"q": "x"}, ["kind", "q"], ["q"]),
        (OfClass(), {"query": "x"}, ["limit", "query"], ["query"]),
        (
            StructuredTool.from_function(lambda query, extra=1: query, None, "narrow", "x", args_schema=Query),
            {"query": "x"},
            ["extra", "query"],
            ["query"],
        ),
    ],
)
def test_a_call_passes_after_init(made: BaseTool, given: Any, names: list[str], required: list[str]) -> None:
    """The schema holds what the body gets, and nothing that the framework fills; the first call is allowed."""
    (sketch,) = as_sketches(describe_tools([made]))
    assert sketch.schema is not None
    assert (sorted(sketch.schema["properties"]), sketch.schema["required"]) == (names, required)  # type: ignore[arg-type]
    atlas = Atlas.from_dict(read_yaml(atlas_text([replace(sketch, verb="allow")], "t")))  # type: ignore[arg-type]
    with Runtime(atlas) as runtime:
        (governed_tool,) = govern_tools([made], runtime)
        result = governed_tool.invoke(given)
    assert "was not run" not in str(result)


def test_an_object_of_the_callers() -> None:
    """Nothing is said about a type that JSON does not have."""
    (described,) = describe_tools(odd)
    assert described[2] is not None
    assert described[2]["properties"]["handle"] == {}
