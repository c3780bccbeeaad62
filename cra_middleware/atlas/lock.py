"""``atlas.lock``: which tools were looked at, by digests of what a model is told about them.

    {"lock_version": 1, "tools": {"mcp:filesystem": {"read_file": "5f0c…"}}}

A source is a framework, or a framework and a server. A tool of a source that is named in the lock must be as it was
when the lock was written: a server that changes a tool's description may be telling a model something new. Its title,
annotations and output schema are not held to anything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256

from pydantic import JsonValue

NAME = "atlas.lock"
VERSION = 1
_MCP = "mcp:"
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Lock:
    """Digests by source and tool name."""

    tools: Mapping[str, Mapping[str, str]]

    def holds(self, source: str) -> bool:
        """Whether tools of this source are looked at."""
        return bool(self._held(source))

    def problem(self, source: str, name: str, digest: str) -> str | None:
        """Why a tool is not one that was looked at; None when it is, or when nobody looks at its source."""
        held = self._held(source)
        if not held or any(known.get(name) == digest for known in held):
            return None
        what = "has changed" if any(name in known for known in held) else "is new"
        return f"the tool {name[:200]!r} of {source} {what} since a person looked at the tools; run cra atlas lock"

    def _held(self, source: str) -> list[Mapping[str, str]]:
        """What a source is held to. An MCP server may change its name: one of a name that is not in the lock is held to
        all the servers that are."""
        if source in self.tools:
            return [self.tools[source]]
        return [known for other, known in self.tools.items() if source.startswith(_MCP) and other.startswith(_MCP)]


@dataclass(frozen=True, slots=True)
class Change:
    """One tool that is not as a lock says."""

    source: str
    name: str
    kind: str
    """``new``, ``changed`` or ``gone``."""


def tool_digest(name: str, description: str, schema: Mapping[str, JsonValue] | None) -> str:
    """SHA-256 over what a model is told about a tool."""
    told = {"name": name, "description": description, "schema": dict(schema or {})}
    return sha256(json.dumps(told, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def digests(tools: Iterable[tuple[str, str, Mapping[str, JsonValue] | None]]) -> dict[str, str]:
    """The digests of tools, each given as name, description and schema."""
    return {name: tool_digest(name, description, schema) for name, description, schema in tools}


def changes(lock: Lock | None, source: str, found: Mapping[str, str]) -> list[Change]:
    """How the tools of a source differ from a lock, by name."""
    known = {} if lock is None else lock.tools.get(source, {})
    kinds = {
        name: "new" if name not in known else "gone" if name not in found else "changed"
        for name in {*known, *found}
        if known.get(name) != found.get(name)
    }
    return [Change(source, name, kind) for name, kind in sorted(kinds.items())]


def renewed(lock: Lock | None, source: str, found: Mapping[str, str]) -> Lock:
    """The lock with the tools of one source as they are now."""
    return Lock({**({} if lock is None else lock.tools), source: dict(found)})


def lock_text(lock: Lock) -> str:
    """The lock as a file."""
    tools = {source: dict(sorted(names.items())) for source, names in sorted(lock.tools.items())}
    return json.dumps({"lock_version": VERSION, "tools": tools}, indent=2) + "\n"


def parse_lock(value: JsonValue) -> Lock:
    """Read a lock's JSON.

    Raises:
        ValueError: when it is no lock of this version.
    """
    if not isinstance(value, dict) or value.keys() != {"lock_version", "tools"} or value["lock_version"] != VERSION:
        raise ValueError(f'a lock holds "lock_version": {VERSION} and "tools", and nothing else')
    tools = value["tools"]
    if not isinstance(tools, dict) or not all(isinstance(names, dict) for names in tools.values()):
        raise ValueError('"tools" holds, for each source, the digests of its tools')
    read: dict[str, dict[str, str]] = {}
    for source, names in tools.items():
        assert isinstance(names, dict)
        for name, digest in names.items():
            if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
                raise ValueError(f"{source}: {name}: a digest is 64 hexadecimal digits")
        read[source] = {name: str(digest) for name, digest in names.items()}
    return Lock(read)
