"""Claude Agent SDK: ``govern(options, runtime, servers={"desk": [my_tool]})`` gives options whose tools are governed.

The tools that are named in ``servers`` run in this process: they are decided in front of their handler, on the very
arguments that it gets, whatever hooks did to them before. Every other tool (``Bash``, ``Write``, ``Agent``, those of
other MCP servers) runs elsewhere and is decided in the ``PreToolUse`` hook; its outcome comes by ``PostToolUse``. A
failure of ours blocks the call (``on_failure="block"``). Hooks and ``can_use_tool`` of the user's are kept, but one
that would change the arguments of a tool after it was decided is a denial.

A call that needs a person is put to ``can_use_tool``, where the runtime has no approver and the options have that
callback; else the model is told to wait.

Holes: tools that do not exist come by no hook. Hooks in settings files and plugins run in Claude Code: one that changes
the arguments of a tool that runs elsewhere is seen only afterwards, and recorded as a failure. What a ``Bash`` command
starts, tools that Anthropic runs on its servers, and a handler's own defaults never come by.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import claude_agent_sdk
from claude_agent_sdk import (
    ClaudeAgentOptions,
    HookMatcher,
    PermissionResultAllow,
    PermissionResultDeny,
    SdkMcpTool,
    ToolPermissionContext,
    create_sdk_mcp_server,
)

from cra_middleware import Answer, CallRefused, Pending, Runtime
from cra_middleware.enforcement import EnforcementPoint, GovernedTool, require

FRAMEWORK = "claude_agent_sdk"
BY = "can_use_tool"
"""Who is recorded to have answered, when the answer came by ``can_use_tool``."""
PATIENCE = 24 * 3600.0
"""Seconds that a hook may take: a person may be asked in it."""

_CHANGED = "a hook or can_use_tool changes the arguments of this call after it was decided"


class ToolFailure(Exception):
    """Claude Code says that a tool failed."""


class ArgumentsChanged(Exception):
    """A tool ran with other arguments than were decided."""


class OutcomeLost(Exception):
    """Claude Code never said how a call came out."""


def govern(
    options: ClaudeAgentOptions,
    runtime: Runtime,
    *,
    servers: Mapping[str, Iterable[SdkMcpTool[Any]]] | None = None,
    actions: Mapping[str, str] | None = None,
    agent_id: str | None = None,
    goal: str | None = None,
    inject_context: bool = True,
) -> ClaudeAgentOptions:
    """Options for one client or query, whose every tool call is decided and recorded.

    Args:
        servers: tools that run in this process, by the name of the MCP server that is made of them.
        actions: tool names to action ids, before what the Atlas maps. A tool of ``servers`` is found by the name that
            Claude calls it by (``mcp__desk__lookup``), or by its own.
        agent_id: how policies and the trace name the agent. A sub-agent is named by its type.
        goal: the operator's sentence, recorded in the trace. Never a user's message.
        inject_context: the Atlas's documents are added to the first message of a session.

    Raises:
        RuntimeError: when this version of the SDK lacks something that the gate stands on.
        ValueError: when a server of this name is among the options already.
    """
    hooks = CRAHooks(runtime, actions, agent_id=agent_id, goal=goal, inject_context=inject_context)
    return hooks.govern(options, servers)


class CRAHooks:
    """Decides and records the tool calls of one client."""

    def __init__(
        self,
        runtime: Runtime,
        actions: Mapping[str, str] | None = None,
        *,
        agent_id: str | None = None,
        goal: str | None = None,
        inject_context: bool = True,
    ) -> None:
        """As ``govern``.

        Raises:
            RuntimeError: when this version of the SDK lacks something that the gate stands on.
        """
        require(
            "claude-agent-sdk",
            "0.2.187",
            {
                HookMatcher: ("on_failure", "timeout"),
                ToolPermissionContext: ("tool_use_id", "decision_reason"),
                claude_agent_sdk: ("_build_input_schema",),
            },
        )
        self._point = EnforcementPoint(runtime, FRAMEWORK, actions=actions, agent_id=agent_id, goal=goal)
        self._agent = agent_id
        self._inject_context = inject_context
        self._told: set[str] = set()
        """The Claude sessions that were given the Atlas's documents."""
        self._inside: set[str] = set()
        self._can_use_tool: Callable[..., Awaitable[Any]] | None = None
        self._announced: dict[str, Any] = {}
        """What ``PreToolUse`` said about calls of tools of ours that were not entered yet, by their ids."""
        self._open: dict[str, tuple[Any, Any]] = {}
        """Calls that run elsewhere, each with what ``PreToolUse`` said about it."""
        self._last: dict[str, Any] = {}

    def govern(
        self, options: ClaudeAgentOptions, servers: Mapping[str, Iterable[SdkMcpTool[Any]]] | None = None
    ) -> ClaudeAgentOptions:
        """The same options with the gate in them.

        Raises:
            ValueError: when a server of this name is among the options already.
        """
        made = {name: create_sdk_mcp_server(name, tools=self.tools(name, of)) for name, of in (servers or {}).items()}
        present = options.mcp_servers
        if made:
            if not isinstance(present, dict) or made.keys() & present.keys():
                raise ValueError("mcp_servers has to be a dict without the names in servers")
            present = {**present, **made}
        self._can_use_tool = options.can_use_tool
        hooks: dict[Any, list[HookMatcher]] = {event: list(found) for event, found in (options.hooks or {}).items()}
        for event in ("PreToolUse", "PermissionRequest"):
            hooks[event] = [
                dataclasses.replace(item, hooks=[self._held(hook) for hook in item.hooks])
                for item in hooks.get(event, [])
            ]
        ours = {
            "PreToolUse": HookMatcher(hooks=[self._before], timeout=PATIENCE, on_failure="block"),
            "PostToolUse": HookMatcher(hooks=[self._after]),
            "PostToolUseFailure": HookMatcher(hooks=[self._after]),
            "UserPromptSubmit": HookMatcher(hooks=[self._add_context]),
            "Stop": HookMatcher(hooks=[self._settle]),
            "SubagentStop": HookMatcher(hooks=[self._settle]),
        }
        for event, matcher in ours.items():
            hooks[event] = [matcher, *hooks.get(event, [])]
        held = None if options.can_use_tool is None else self._held_answer
        return dataclasses.replace(
            options,
            mcp_servers=present,
            hooks={event: found for event, found in hooks.items() if found},
            can_use_tool=held,
        )

    def tools(self, server: str, tools: Iterable[SdkMcpTool[Any]]) -> list[SdkMcpTool[Any]]:
        """The same tools, decided in front of their handlers; for ``create_sdk_mcp_server(server, tools=…)``."""
        return [self._governed(server, tool) for tool in tools]

    def _governed(self, server: str, tool: SdkMcpTool[Any]) -> SdkMcpTool[Any]:
        name = f"mcp__{server}__{tool.name}"
        self._inside.add(name)
        _, description, schema = _description(tool)
        defaults = {
            key: item["default"]
            for key, item in (schema.get("properties") or {}).items()
            if isinstance(item, dict) and "default" in item
        }

        async def handler(arguments: Any) -> dict[str, Any]:
            # What the schema promises is filled in here, so that it is decided; the handler's own defaults cannot be.
            filled = {**defaults, **arguments}
            try:
                said = self._entered(name, arguments)
                governed = self._tool(name, tool.name, description, schema, tool.handler, server)
                call = governed.call(filled, approver=self._asking(name, filled, said), **self._names(said))
                return await call.arun(lambda: tool.handler(filled))
            except CallRefused as refusal:
                return {"content": [{"type": "text", "text": str(refusal)}], "is_error": True}

        return dataclasses.replace(tool, handler=handler)

    def _tool(self, name: str, own: str, description: str, schema: Any, body: Any, server: str) -> GovernedTool:
        """By the name that Claude calls it by, where that is mapped; else by its own."""
        if self._point.target(name).action_id != name:
            own = name
        body = body if hasattr(body, "cra_action") else None  # another's parameters are no arguments of a call
        return self._point.tool(own, body=body, description=description, schema=schema, origin=server)

    async def _before(self, data: Any, tool_use_id: str | None, context: Any) -> Any:
        try:
            self._last = data
            if data["tool_name"] in self._inside:
                self._announced[data["tool_use_id"]] = data
                return {}
            self._lose(lambda said: said["tool_use_id"] == data["tool_use_id"])
            asking = self._asking(data["tool_name"], data["tool_input"], data)
            tool = self._point.tool(data["tool_name"])
            call = tool.call(data["tool_input"], approver=asking, **self._names(data))
            self._open[data["tool_use_id"]] = (await call.abegin(), data)
        except Exception as error:  # noqa: BLE001  what leaves a hook is told to the model without its reason
            return _denied(str(self._point.caught(error)))
        return {}

    async def _after(self, data: Any, tool_use_id: str | None, context: Any) -> Any:
        try:
            if self._announced.pop(data["tool_use_id"], None) is not None:
                tool = self._point.tool(data["tool_name"].split("__", 2)[2])
                tool.call(data["tool_input"], **self._names(data)).reject(
                    "the framework refused the arguments before the tool was reached"
                )
            known = self._open.pop(data["tool_use_id"], None)
            if known is None:
                return {}
            call, said = known
            if data["tool_input"] != said["tool_input"]:
                call.raised(ArgumentsChanged(_CHANGED))
            elif data["hook_event_name"] == "PostToolUse":
                call.returned(data.get("tool_response"))
            else:
                call.raised(ToolFailure(data.get("error")))
        except Exception as error:  # noqa: BLE001  the tool has run: all that is left is to say so in the log
            self._point.caught(error)
        return {}

    async def _add_context(self, data: Any, tool_use_id: str | None, context: Any) -> Any:
        if not self._inject_context or data["session_id"] in self._told:
            return {}
        try:
            text = self._point.session(run=data["session_id"], agent=self._agent).context_text
        except CallRefused:
            return {}  # so is every call
        self._told.add(data["session_id"])
        said = {"hookEventName": "UserPromptSubmit", "additionalContext": text}
        return {"hookSpecificOutput": said} if text else {}

    async def _settle(self, data: Any, tool_use_id: str | None, context: Any) -> Any:
        """An agent has stopped: what it still had open will get no outcome."""
        who = (data["session_id"], data.get("agent_id"))
        self._lose(lambda said: (said["session_id"], said.get("agent_id")) == who)
        return {}

    def _lose(self, which: Callable[[Any], bool]) -> None:
        for call_id in [key for key, said in self._announced.items() if which(said)]:
            self._announced.pop(call_id)
        for call_id in [key for key, (_, said) in self._open.items() if which(said)]:
            call, _ = self._open.pop(call_id)
            try:
                call.raised(OutcomeLost("Claude Code never said how the call came out"))
            except Exception as error:  # noqa: BLE001  the others have to be settled, too
                self._point.caught(error)

    def _entered(self, name: str, arguments: Any) -> Any:
        """What ``PreToolUse`` said about a call whose handler is entered, whose arguments may have changed since."""
        waiting = [item for item in self._announced.values() if item["tool_name"] == name]
        same = [item for item in waiting if item["tool_input"] == arguments]
        for said in (same or waiting)[:1]:
            return self._announced.pop(said["tool_use_id"])
        return {"session_id": self._last.get("session_id")}

    def _names(self, said: Any) -> dict[str, Any]:
        agent = said.get("agent_type") if said.get("agent_id") else self._agent
        return {"call_id": said.get("tool_use_id"), "agent": agent, "run": said.get("session_id")}

    def _asking(self, name: str, arguments: Any, said: Any) -> Any:
        """The user's ``can_use_tool`` as an approver."""
        can_use_tool = self._can_use_tool
        if can_use_tool is None:
            return None

        async def ask(pending: Pending) -> Answer:
            context = ToolPermissionContext(
                tool_use_id=said.get("tool_use_id"),
                agent_id=said.get("agent_id"),
                decision_reason=pending.reason,
                title=f"May {pending.action_id} be done?",
            )
            answer = await can_use_tool(name, copy.deepcopy(arguments), context)  # which may well change them in place
            if not isinstance(answer, PermissionResultAllow):
                return Answer(False, BY, getattr(answer, "message", None) or "A person said no.")
            if answer.updated_input is not None and answer.updated_input != arguments:
                return Answer(False, BY, "The answer changes the arguments; make the call with them.")
            return Answer(True, BY)

        return ask

    def _held(self, hook: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        """A hook of the user's, which may say no, but may change nothing that is decided already."""

        async def held(data: Any, tool_use_id: str | None, context: Any) -> Any:
            said = await hook(copy.deepcopy(data), tool_use_id, context)  # or a change in place would be none
            special = (said or {}).get("hookSpecificOutput") or {}
            changed = [special.get("updatedInput"), (special.get("decision") or {}).get("updatedInput")]
            if data["tool_name"] in self._inside or all(item in (None, data["tool_input"]) for item in changed):
                return said
            if data["hook_event_name"] == "PreToolUse":
                return _denied(_CHANGED)
            decision = {"behavior": "deny", "message": _CHANGED}
            return {"hookSpecificOutput": {"hookEventName": data["hook_event_name"], "decision": decision}}

        return held

    async def _held_answer(self, name: str, arguments: dict[str, Any], context: ToolPermissionContext) -> Any:
        assert self._can_use_tool is not None
        answer = await self._can_use_tool(name, copy.deepcopy(arguments), context)
        changed = getattr(answer, "updated_input", None)
        if name in self._inside or changed is None or changed == arguments:
            return answer
        return PermissionResultDeny(message=_CHANGED)


def _denied(reason: str) -> dict[str, Any]:
    said = {"hookEventName": "PreToolUse", "permissionDecision": "deny", "permissionDecisionReason": reason}
    return {"hookSpecificOutput": said}


def _description(tool: SdkMcpTool[Any]) -> tuple[str, str, dict[str, Any]]:
    return tool.name, tool.description, claude_agent_sdk._build_input_schema(tool)


def describe_tools(found: Any) -> list[tuple[str, str, dict[str, Any] | None]]:
    """Name, description and JSON Schema of in-process tools.

    Raises:
        TypeError: when something in it is none.
    """
    described: list[tuple[str, str, dict[str, Any] | None]] = []
    for item in found if isinstance(found, (list, tuple)) else [found]:
        if not isinstance(item, SdkMcpTool):
            raise TypeError(f"{type(item).__name__} is no tool of the Claude Agent SDK; name what @tool made")
        described.append(_description(item))
    return described
