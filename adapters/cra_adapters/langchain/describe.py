"""What the command line asks about LangChain tools: their names, descriptions and arguments."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

from langchain_core.tools import BaseTool, Tool
from pydantic import BaseModel, TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticSchemaGenerationError, PydanticUserError

from cra_adapters.langchain.bodies import body_of, decided_parameters

_KNOWN: dict[int, tuple[weakref.ref[BaseTool], object, dict[str, Any] | None]] = {}


def describe_tools(found: Any) -> list[tuple[str, str, dict[str, Any] | None]]:
    """Name, description and JSON Schema of each tool in ``found``: a tool, or several.

    The schema is of what is decided: the arguments that the tool's body gets, those of a caller and defaults included.

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
        described.append((tool.name, tool.description, schema_of(tool)))
    return described


def schema_of(tool: BaseTool) -> dict[str, Any] | None:
    """The JSON Schema of what is decided about calls of a tool; worked out once for each tool."""
    key = id(tool)
    known = _KNOWN.get(key)
    if known is None or known[0]() is not tool or known[1] is not tool.args_schema:
        known = (weakref.ref(tool, lambda _: _KNOWN.pop(key, None)), tool.args_schema, _schema(tool))
        _KNOWN[key] = known
    return known[2]


def _schema(tool: BaseTool) -> dict[str, Any] | None:
    schema = _single_input(tool) if isinstance(tool, Tool) else _shown_to_models(tool)
    if schema is None:
        return None
    properties, definitions = {**schema.get("properties", {})}, {**schema.get("$defs", {})}
    for is_async in (False, True):
        for name, hint in decided_parameters(tool, body_of(tool, is_async=is_async)).items():
            if name not in properties:
                one = _of_type(hint)
                definitions |= one.pop("$defs", {})
                properties[name] = one
    return {**schema, "properties": properties, **({"$defs": definitions} if definitions else {})}


def _shown_to_models(tool: BaseTool) -> dict[str, Any] | None:
    shape = tool.tool_call_schema  # without what the framework, or a caller, fills
    if isinstance(shape, dict):
        return shape
    return shape.model_json_schema() if issubclass(shape, BaseModel) else None


def _single_input(tool: Tool) -> dict[str, Any]:
    """A tool of the old kind hands one value on to its function, whatever the model calls it."""
    name = next(iter(decided_parameters(tool, body_of(tool, is_async=False))), None)
    shape: dict[str, Any] = next(iter(tool.args.values()), {})
    known = {} if name is None or "$ref" in str(shape) else {name: shape}
    return {"type": "object", "properties": known, "required": [name] if name is not None else []}


def _of_type(hint: Any) -> dict[str, Any]:
    """What an annotation says; nothing, where it is of a kind that JSON does not have."""
    try:
        return TypeAdapter(hint).json_schema()
    except (PydanticInvalidForJsonSchema, PydanticSchemaGenerationError, PydanticUserError):
        return {}
