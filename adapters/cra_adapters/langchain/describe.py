"""What the command line asks about LangChain tools: their names, descriptions and arguments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from langchain_core.tools import BaseTool
from pydantic import BaseModel


def describe_tools(found: Any) -> list[tuple[str, str, dict[str, Any] | None]]:
    """Name, description and JSON Schema of each tool in ``found``: a tool, or several.

    Raises:
        TypeError: when something in it is no LangChain tool.
    """
    several: Iterable[Any] = [found] if isinstance(found, BaseTool) else found
    if isinstance(several, Mapping):
        several = several.values()
    described = []
    for tool in several:
        if not isinstance(tool, BaseTool):
            raise TypeError(f"{type(tool).__name__} is no LangChain tool; name a list of tools")
        shape = tool.tool_call_schema  # without what the framework injects
        if isinstance(shape, dict):
            schema: dict[str, Any] | None = shape
        else:
            schema = shape.model_json_schema() if issubclass(shape, BaseModel) else None
        described.append((tool.name, tool.description, schema))
    return described
