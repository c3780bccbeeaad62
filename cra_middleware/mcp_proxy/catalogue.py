"""The tools that a server has listed: the last definition of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from cra_middleware.atlas.lock import tool_digest

FIELDS = ("name", "description", "inputSchema", "outputSchema", "annotations")
"""What a tool's definition consists of: all that a model, or a client, acts on."""


class Definition(NamedTuple):
    """What a server last said of a tool."""

    name: str
    fields: Mapping[str, object]
    """Those of ``FIELDS`` that it gave, as it gave them."""

    @property
    def digest(self) -> str:
        """What ``atlas.lock`` holds it to; empty, which is no digest, when the protocol knows no such definition."""
        description, schema = self.fields.get("description"), self.fields.get("inputSchema")
        if not isinstance(description, str | None) or not isinstance(schema, dict | None):
            return ""
        return tool_digest(self.name, description or "", schema)


class Catalogue:
    """Every tool seen so far. The one place that tools/list results go through."""

    def __init__(self) -> None:
        self._tools: dict[str, Definition] = {}
        self._ambiguous: set[str] = set()

    def see(self, tools: list[object]) -> list[tuple[str, object]]:
        """Keep the definitions of one tools/list result; the tools in it that have a name, in its order."""
        seen: dict[str, Definition] = {}
        twice: set[str] = set()
        named: list[tuple[str, object]] = []
        for tool in tools:
            name = tool.get("name") if isinstance(tool, dict) else None
            if not isinstance(tool, dict) or not isinstance(name, str):
                continue
            definition = Definition(name, {key: tool[key] for key in FIELDS if key in tool})
            if seen.setdefault(name, definition) != definition:
                twice.add(name)
            named.append((name, tool))
        self._tools.update(seen)
        self._ambiguous = (self._ambiguous - seen.keys()) | twice
        return named

    def get(self, name: str) -> Definition | None:
        """The last definition of a tool; None when it was never listed."""
        return self._tools.get(name)

    def objection(self, name: str) -> str | None:
        """Why a call of this tool may not run, whatever the policies say."""
        return "the server listed two different tools of this name" if name in self._ambiguous else None
