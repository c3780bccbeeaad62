"""``--from``: tools described by a framework's adapter, by an MCP server, or by an OpenAPI document."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from cra_middleware.atlas.loader import read_document
from cra_middleware.cli.output import stop
from cra_middleware.openapi_tools import openapi_tools
from cra_middleware.sketch import ToolSketch

SOURCES = "FRAMEWORK:MODULE:NAME | mcp:COMMAND | mcp:URL | openapi:FILE"
Described = tuple[str, str, dict[str, JsonValue] | None]


@dataclass(frozen=True)
class Tools:
    """What a source has."""

    framework: str
    """The section of ``adapters`` that maps them."""
    source: str
    """What ``atlas.lock`` calls where they come from."""
    described: tuple[Described, ...]
    """Name, description, schema of the arguments."""

    @property
    def sketches(self) -> list[ToolSketch]:
        """The tools, for a first Atlas."""
        return as_sketches(self.described)


def tools_from(source: str) -> Tools:
    """The tools that ``source`` names. A module is imported, a server is started: what they do at start is done."""
    kind, _, rest = source.partition(":")
    if kind == "openapi" and rest:
        return Tools("any", "openapi", _each_once(_of_document(rest)))
    if kind == "mcp" and rest:
        return _of_server(rest)
    framework = kind.replace("-", "_")  # as it is written in the extra's name
    return Tools(framework, framework, _each_once(_of_module(source, framework, rest)))


def _each_once(described: Iterable[Described]) -> tuple[Described, ...]:
    """Agents may share a tool. Two different ones of one name could not be told apart in a call."""
    found: dict[str, Described] = {}
    for item in described:
        if found.setdefault(item[0], item) != item:
            raise stop(f"two different tools are named {item[0][:200]!r}, so no call could be told apart", 1)
    return tuple(found.values())


def _of_document(name: str) -> list[Described]:
    document, problems = read_document(Path(name))
    if problems:
        raise stop(f"{name} cannot be read: {problems[0].message}", 1)
    try:
        return openapi_tools(document)
    except ValueError as error:
        raise stop(f"{name}: {error}", 1) from None


def _of_server(where: str) -> Tools:
    from cra_middleware.mcp_proxy.listing import ServerError, list_tools

    try:
        server, described = list_tools(where)
    except ServerError as error:
        raise stop(f"the MCP server {where!r} could not be asked: {error}", 1) from None
    return Tools("mcp", f"mcp:{server}", _each_once(described))


def _of_module(source: str, framework: str, rest: str) -> list[Described]:
    module, _, attribute = rest.partition(":")
    if not framework.isidentifier() or not module or not attribute:
        raise stop(f"--from takes {SOURCES}, such as langchain:my_agent:tools, not {source!r}", 2)
    try:
        adapter = importlib.import_module(f"cra_adapters.{framework}")
    except ImportError as error:
        hint = f"is it installed? pip install 'cra-middleware[{framework.replace('_', '-')}]'"
        raise stop(f"no adapter can describe tools of {framework} ({error}); {hint}", 1) from None
    sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
        described: Iterable[Described] = adapter.describe_tools(found)
        return list(described)
    except Exception as error:  # noqa: BLE001  foreign code: whatever it raises, these tools cannot be described
        raise stop(f"{module}:{attribute} cannot be used: {type(error).__name__}: {error}", 1) from None


def as_sketches(described: Iterable[Described]) -> list[ToolSketch]:
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
