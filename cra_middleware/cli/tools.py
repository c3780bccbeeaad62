"""``--from langchain:module:tools``: the tools of a program, described by its framework's adapter."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable

from pydantic import JsonValue

from cra_middleware.cli.output import stop
from cra_middleware.sketch import ToolSketch


def tools_from(source: str) -> tuple[str, list[ToolSketch]]:
    """The framework, and the tools that ``source`` names. The module is imported: its top level runs."""
    framework, _, rest = source.partition(":")
    module, _, attribute = rest.partition(":")
    if not framework.isidentifier() or not module or not attribute:
        raise stop(f"--from takes FRAMEWORK:MODULE:NAME, such as langchain:my_agent:tools, not {source!r}", 2)
    try:
        adapter = importlib.import_module(f"cra_adapters.{framework}")
    except ImportError as error:
        hint = f"is it installed? pip install 'cra-middleware[{framework}]'"
        raise stop(f"no adapter can describe tools of {framework} ({error}); {hint}", 1) from None
    sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
        described = adapter.describe_tools(found)
    except Exception as error:  # noqa: BLE001  foreign code: whatever it raises, these tools cannot be described
        raise stop(f"{module}:{attribute} cannot be used: {type(error).__name__}: {error}", 1) from None
    return framework, as_sketches(described)


def as_sketches(described: Iterable[tuple[str, str, dict[str, JsonValue] | None]]) -> list[ToolSketch]:
    """What an adapter says of tools: name, description, schema of the arguments."""
    return [ToolSketch(name, _one_line(text), _closed(schema)) for name, text, schema in described]


def _one_line(text: str) -> str:
    return " ".join(text.split())[:500]


def _closed(schema: dict[str, JsonValue] | None) -> dict[str, JsonValue] | None:
    """A schema that takes no other arguments, without the titles that generators write."""
    if schema is None:
        return None
    plain = {key: value for key, value in schema.items() if key not in ("title", "description")}
    properties = plain.get("properties")
    if isinstance(properties, dict):
        plain["properties"] = {name: _untitled(value) for name, value in properties.items()}
    return {**plain, "additionalProperties": False}


def _untitled(value: JsonValue) -> JsonValue:
    return {key: item for key, item in value.items() if key != "title"} if isinstance(value, dict) else value
