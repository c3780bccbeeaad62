"""What a framework's tools stand for, and whether they are those that were looked at."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Mapping

from cra_middleware.carp.call import Target, ToolCall


class ToolMap(ABC):
    """The Atlases' word on tools, wherever the Atlases are."""

    __slots__ = ()

    @property
    @abstractmethod
    def declared(self) -> Container[str]:
        """The ids of the actions that there are."""

    @property
    @abstractmethod
    def argument_policies(self) -> tuple[str, ...]:
        """The policies that only a call's arguments can decide."""

    @abstractmethod
    def mapped(self, tool_name: str, framework: str) -> Target | None:
        """What the Atlases say of a tool of a framework's, or else of a tool of any."""

    @abstractmethod
    def distrust(self, source: str, tool_name: str, described: Callable[[], str]) -> str | None:
        """Why a tool is not one that was looked at, as the Atlases' locks say; ``described`` gives its digest."""

    def target_for(
        self,
        tool_name: str,
        framework: str,
        declared: str | None,
        actions: Mapping[str, str] | None = None,
        server: str | None = None,
    ) -> Target:
        """What a tool stands for: as ``actions`` or the Atlases map it, as it declares itself, or its own name.

        Of a tool on a ``server`` that the operator named, the key ``server/tool`` comes first; and one that has a slash
        in its own name has no other key: it must not get at what is meant for another server.
        """
        if actions is not None and tool_name in actions:
            return Target(actions[tool_name])
        if server is not None:
            qualified = f"{server}/{tool_name}"
            target = self.mapped(qualified, framework)
            if target is not None or "/" in tool_name:
                return target or Target(declared or qualified)
        return self.mapped(tool_name, framework) or Target(declared or tool_name)

    def freeze(self, action_id: str, tool_name: str, arguments: Mapping[str, object]) -> ToolCall:
        """The call of a function as an action, or as a tool that the Atlases map to one.

        Raises:
            TypeError: when ``action_id`` is no string, or two arguments would have one name.
        """
        if action_id in self.declared:
            return ToolCall.freeze(action_id, tool_name, arguments)
        return self.target_for(action_id, "any", None).call(tool_name, arguments)
