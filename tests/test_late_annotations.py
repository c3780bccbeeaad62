"""Python 3.14 evaluates an annotation when it is read: a call that reads none is decided without."""

import asyncio
import sys
from collections.abc import Callable
from typing import Any, get_type_hints

import pytest

from cra_middleware import ActionDenied, Runtime, governed
from cra_middleware.enforcement import EnforcementPoint, annotations_of, signature_of

pytestmark = pytest.mark.skipif(sys.version_info < (3, 14), reason="there, such a function cannot be defined")

SOURCE = """
def get(ticket_id: Later, verbose: OnlyForTypeCheckers = False) -> Later:
    return f"ticket {ticket_id}"

async def aget(ticket_id: list[Later]) -> Later:
    return f"ticket {ticket_id}"

def delete(ticket_id: Later, *rest: Later, **more: Later) -> None:
    raise AssertionError("it ran")

class Desk:
    def get(self, ticket_id: Later) -> Later:
        return f"ticket {ticket_id}"
"""


@pytest.fixture
def late() -> dict[str, Any]:
    """Functions whose annotations name what is not there yet."""
    module: dict[str, Any] = {"__name__": "late"}
    exec(compile(SOURCE, "late.py", "exec", dont_inherit=True), module)
    return module


def test_a_governed_function_runs_though_nothing_of_its_annotations_is_defined(
    runtime: Runtime, late: dict[str, Any]
) -> None:
    """As the plain function does."""
    with runtime.session(agent_id="bot") as session:
        assert governed("ticket.get")(late["get"])("T-42") == "ticket T-42"
        assert asyncio.run(governed("ticket.get")(late["aget"])("T-42")) == "ticket T-42"
        assert session.call("ticket.get", late["get"], "T-42") == "ticket T-42"
        assert session.call("ticket.get", late["Desk"]().get, ticket_id="T-42") == "ticket T-42"


def test_and_is_denied_by_the_same_rules(runtime: Runtime, late: dict[str, Any]) -> None:
    """The arguments are bound by name: what cannot be read is only what they are annotated with."""
    with runtime.session(agent_id="bot"), pytest.raises(ActionDenied):
        governed("ticket.delete")(late["delete"])("T-42")


def test_the_defaults_of_a_tool_are_known(runtime: Runtime, late: dict[str, Any]) -> None:
    """An adapter's tool is described with its body: its defaults are decided on like what a model gives."""
    with runtime.session(agent_id="bot"):
        tool = EnforcementPoint(runtime, "openai").tool("ticket.get", body=late["get"])
        assert tool.defaults == {"verbose": False}


def test_what_is_defined_by_then_is_read(late: dict[str, Any]) -> None:
    """The hints are those that a framework would get of the function itself."""
    assert list(signature_of(late["get"]).parameters) == ["ticket_id", "verbose"]
    late["Later"] = str
    assert annotations_of(late["aget"]) == {"ticket_id": list[str], "return": str}


@pytest.mark.parametrize("name", ["get", "aget"])
def test_a_langchain_tool_with_a_schema_of_its_own_runs(runtime: Runtime, late: dict[str, Any], name: str) -> None:
    """LangChain needs no annotation where it is given the schema; and what reads the governed function's, may."""
    tools = pytest.importorskip("langchain_core.tools")
    from cra_adapters.langchain import govern_tools

    fn: Callable[..., Any] = late[name]
    schema = {"type": "object", "properties": {"ticket_id": {"type": "string"}}, "required": ["ticket_id"]}
    given = {"func": fn} if name == "get" else {"coroutine": fn}
    tool = tools.StructuredTool(name="ticket.get", description="Reads", args_schema=schema, **given)
    with runtime.session(agent_id="bot"):
        (one,) = govern_tools([tool], runtime)
        assert asyncio.run(one.ainvoke({"ticket_id": "T-42"})) == "ticket T-42"
        late["Later"] = late["OnlyForTypeCheckers"] = str
        assert get_type_hints(one.func or one.coroutine)["return"] is str
