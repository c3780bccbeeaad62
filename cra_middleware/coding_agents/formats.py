"""The agents whose hooks are known, by the name that a command line calls them."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from cra_middleware.coding_agents.events import Format

MODULES = {"claude-code": "claude_code", "codex": "codex", "gemini": "gemini", "cursor": "cursor"}


def format_of(agent: str) -> Format:
    """The format of one agent; the others are not loaded.

    Raises:
        ValueError: when there is none of that name.
    """
    if agent not in MODULES:
        raise ValueError(f"{agent[:80]!r} is no agent whose hooks are known: {', '.join(MODULES)}")
    return cast(Format, import_module(f"cra_middleware.coding_agents.{MODULES[agent]}"))
