"""What the tools of an agent look like to a model, for ``cra atlas init``."""

from __future__ import annotations

from typing import Any

from agents import Agent, CustomTool, FunctionTool


def describe_tools(found: Any) -> list[tuple[str, str, dict[str, Any] | None]]:
    """Name, description and JSON Schema of each local tool of an agent, or of the tools in a list.

    Raises:
        TypeError: when something in it is none of these.
    """
    several = found if isinstance(found, (list, tuple)) else [found]
    described: list[tuple[str, str, dict[str, Any] | None]] = []
    for item in several:
        if isinstance(item, Agent):
            described += describe_tools([tool for tool in item.tools if isinstance(tool, FunctionTool | CustomTool)])
        elif isinstance(item, FunctionTool):
            described.append((item.name, item.description, item.params_json_schema))
        elif isinstance(item, CustomTool):
            described.append((item.name, item.description, None))
        else:
            raise TypeError(f"{type(item).__name__} is no tool of the Agents SDK; name an agent or a list of its tools")
    return described
