"""The tools of one server as it last listed them, and what may be said about a call before it is made.

Where the body is somewhere else, nobody can see what becomes of an argument: a server may make the number 700 of the
text "700". So a call has to fit the schema that the server listed, and is decided with the defaults that are in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from jsonschema.validators import validator_for  # type: ignore[import-untyped]
from referencing import Registry  # type: ignore[import-not-found]

from cra_middleware import CallRefused
from cra_middleware.enforcement import EnforcementPoint, GovernedCall, GovernedTool

FRAMEWORK = "mcp"

_CLOSED: dict[str, Any] = {"registry": Registry()}
"""References lead nowhere: nothing is fetched."""


@dataclass(frozen=True)
class Listing:
    """One tool, as a model is told about it."""

    name: str
    description: str
    schema: Mapping[str, Any]

    @property
    def defaults(self) -> dict[str, Any]:
        """What the server says it fills in."""
        properties = self.schema.get("properties", {})
        several = properties.items() if isinstance(properties, dict) else ()
        return {key: item["default"] for key, item in several if isinstance(item, Mapping) and "default" in item}

    def objection(self, arguments: object) -> str | None:
        """Why arguments are none that it takes as they are."""
        try:
            validator = validator_for(self.schema)(dict(self.schema), **_CLOSED)
            wrong = next(iter(validator.iter_errors(arguments)), None)
        except Exception as error:  # noqa: BLE001  a foreign schema: what cannot be checked is refused
            return f"the schema of the tool cannot be used ({type(error).__name__})"
        if wrong is None:
            return None
        where = ".".join(str(step) for step in wrong.absolute_path)
        return f"{where}: {wrong.message}"[:300] if where else str(wrong.message)[:300]


@dataclass(frozen=True)
class Caller:
    """Who makes a call, as far as the connection tells."""

    agent: str | None = None
    run: str | None = None
    call_id: str | None = None
    approver: Any = None


class Listed:
    """What a server says of its tools; its last word counts."""

    def __init__(self, point: EnforcementPoint, server: str, *, names_itself: bool = False) -> None:
        """``names_itself``: the server's name is its own word, and not the operator's."""
        self.point = point
        self.server = server
        self.names_itself = names_itself
        self._tools: dict[str, Listing] = {}
        self._round: dict[str, Listing] = {}
        self._twice: set[str] = set()

    def see(self, found: Iterable[Listing], *, is_first: bool = True) -> None:
        """Hear a page of a list."""
        if is_first:
            self._round, self._twice = {}, set()
        for one in found:
            if self._round.setdefault(one.name, one) != one:
                self._twice.add(one.name)
            self._tools[one.name] = one

    def knows(self, name: str) -> bool:
        """Whether a tool was ever listed."""
        return name in self._tools

    def tool(self, name: str) -> GovernedTool:
        """A tool as the runtime is told about it."""
        known = self._tools.get(name, Listing(name, "", {}))
        return self.point.tool(
            name,
            description=known.description,
            schema=known.schema,
            server=self.server,
            names_itself=self.names_itself,
        )

    def call(self, name: str, arguments: Mapping[str, Any], caller: Caller) -> GovernedCall:
        """A call that goes to the server as it is.

        Raises:
            CallRefused: when no session governs it, or the arguments are none that the server says it takes.
        """
        known = self._tools.get(name)
        call = self.tool(name).call(
            {**({} if known is None else known.defaults), **arguments},
            call_id=caller.call_id,
            agent=caller.agent,
            run=caller.run,
            approver=caller.approver,
        )
        if known is None and call.call.distrust is not None:
            told = f"the tool {name[:200]!r} of {FRAMEWORK}:{self.server} is in no list of the server's"
            return replace(call, call=call.call._replace(distrust=told))
        objection = None if known is None else known.objection(dict(arguments))
        if name in self._twice:
            objection = f"the server lists two different tools named {name[:200]!r}"
        if objection is not None:
            raise call.reject(objection)
        return call


def missing(tool: GovernedTool, arguments: Any, caller: Caller) -> CallRefused:
    """Record a call of a tool that is not there; the refusal to tell."""
    try:
        return tool.missing(arguments, call_id=caller.call_id, agent=caller.agent, run=caller.run)
    except CallRefused as refusal:
        return refusal


def invalid(tool: GovernedTool, arguments: Any, caller: Caller) -> CallRefused:
    """Record a call whose arguments the framework refused; the refusal, which it has told in its own words."""
    try:
        call = tool.call(arguments, call_id=caller.call_id, agent=caller.agent, run=caller.run)
        return call.reject("the framework refused the arguments before the tool was reached")
    except CallRefused as refusal:
        return refusal
