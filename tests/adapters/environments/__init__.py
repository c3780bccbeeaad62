"""Which adapters can be tested where: by the module that each framework is imported as."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import cra_adapters

ADAPTERS = Path(cra_adapters.__file__).parent
FRAMEWORKS = {
    "ag2": "ag2",
    "agent_framework": "agent_framework",
    "agno": "agno",
    "anthropic": "anthropic",
    "autogen": "autogen_agentchat",
    "claude_agent_sdk": "claude_agent_sdk",
    "crewai": "crewai",
    "dspy": "dspy",
    "google_adk": "google.adk",
    "haystack": "haystack",
    "langchain": "langchain",
    "llama_index": "llama_index.core",
    "mcp": "mcp.server.mcpserver",  # of its second version
    "openai": "openai",
    "openai_agents": "agents",
    "pydantic_ai": "pydantic_ai",
    "semantic_kernel": "semantic_kernel",
    "smolagents": "smolagents",
    "strands": "strands",
}
"""By adapter."""


def installed() -> list[Path]:
    """The adapters whose framework is here, as files or folders."""
    found = []
    for adapter, module in FRAMEWORKS.items():
        try:
            is_here = find_spec(module) is not None
        except ModuleNotFoundError:  # a package above it is missing
            is_here = False
        if is_here:
            file = ADAPTERS / f"{adapter}.py"
            found.append(file if file.exists() else ADAPTERS / adapter)
    return [path for path in found if path.exists()]
