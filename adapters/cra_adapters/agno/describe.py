"""What the tools of an agent look like, for drafting an Atlas and for ``atlas.lock``."""

from __future__ import annotations

from typing import Any

from agno.agent import Agent
from agno.team import Team
from agno.tools import Function, Toolkit

from cra_adapters.agno.functions import Described, describe_function


def describe_tools(found: Any) -> list[Described]:
    """Name, description and JSON Schema of each tool of an agent, of a team with its members, of toolkits or functions.

    Raises:
        TypeError: when something in it is none of these.
    """
    if isinstance(found, (Agent, Team)):
        own = describe_tools(found.tools if isinstance(found.tools, list) else [])
        members = found.members if isinstance(found, Team) and isinstance(found.members, list) else []
        return own + [item for member in members for item in describe_tools(member)]
    described: list[Described] = []
    for item in found if isinstance(found, (list, tuple)) else [found]:
        if isinstance(item, Toolkit):
            described += [describe_function(function) for function in item.get_async_functions().values()]
        elif isinstance(item, Function):
            described.append(describe_function(item))
        elif callable(item):
            described.append(describe_function(Function.from_callable(item)))
        else:
            raise TypeError(f"{type(item).__name__} is no Agno tool; name an agent, a team, toolkits or functions")
    return described
