"""Puts the gate where every agent of the process gets its tools from, and takes it away again."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any
from uuid import uuid4

from agents import Agent, FunctionTool, Runner, RunState
from agents import tool as tools_module
from agents.agent import AgentBase
from agents.lifecycle import RunHooksBase

from cra_adapters.openai_agents.caller import Caller, Run, current_run
from cra_adapters.openai_agents.function_tools import check_seams
from cra_adapters.openai_agents.hooks import GovernedHooks
from cra_adapters.openai_agents.local_tools import describe, govern_tool
from cra_middleware import CallRefused, Runtime
from cra_middleware.enforcement import EnforcementPoint, require

FRAMEWORK = "openai_agents"

_logger = logging.getLogger("cra_adapters")
_lock = threading.Lock()
_installed: list[Installation] = []
_fetching: ContextVar[object] = ContextVar("cra_openai_agents_fetching", default=None)


def install(
    runtime: Runtime | None,
    actions: dict[str, str] | None = None,
    *,
    agent_id: str | None = None,
    goal: str | None = None,
    hide_denied: bool = True,
    inject_context: bool = True,
    pauses: bool = False,
) -> Installation:
    """Govern the tools of every agent in this process, from now on; the result can be used as a context manager.

    Args:
        runtime: None leaves it to the session that is current at a call; a call outside any is refused.
        actions: tool names to action ids, before what the Atlas maps.
        agent_id: how policies and the trace name an agent whose name is empty.
        goal: the operator's sentence, recorded in the trace. Never a user's message.
        hide_denied: tools that no call could be allowed to use are not shown to the model.
        inject_context: the Atlas's documents are added to the instructions.
        pauses: whether a call that needs a person interrupts the run, where the runtime has no approver; else the
            model is told to wait.

    Raises:
        RuntimeError: when it is installed already, or this version of the SDK lacks what the gate stands on.
    """
    require(
        "openai-agents",
        "0.23.1",
        {
            AgentBase: ("get_all_tools",),
            Agent: ("get_system_prompt",),
            Runner: ("run", "run_sync", "run_streamed"),
            FunctionTool: ("__copy__",),
            tools_module: ("with_function_tool_failure_error_handler", "set_function_tool_failure_error_function"),
        },
    )
    check_seams()
    point = EnforcementPoint(runtime, FRAMEWORK, actions=actions, agent_id=agent_id, goal=goal)
    made = Installation(point, hide_denied, inject_context, pauses)
    with _lock:
        if _installed:
            raise RuntimeError("the Agents SDK is governed already; uninstall that first")
        _installed.append(made)
        made._put()
    return made


class Installation:
    """The gate, as it is installed."""

    def __init__(self, point: EnforcementPoint, hide_denied: bool, inject_context: bool, pauses: bool) -> None:
        self._point = point
        self._hide_denied = hide_denied
        self._inject_context = inject_context
        self._pauses = pauses
        self._replaced: list[tuple[type, str, object]] = []

    def uninstall(self) -> None:
        """Let every agent have its own tools again. Tools that an agent was given before stay governed."""
        with _lock:
            if self in _installed:
                _installed.remove(self)
                for owner, name, original in reversed(self._replaced):
                    setattr(owner, name, original)
                self._replaced.clear()

    def __enter__(self) -> Installation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.uninstall()

    def _put(self) -> None:
        for owner in _all_kinds(AgentBase):
            self._cover_class(owner)
        self._replace(Agent, "get_system_prompt", self._with_context)
        self._replace(Runner, "run", self._awaited)
        self._replace(Runner, "run_sync", self._waited)
        self._replace(Runner, "run_streamed", self._streamed)

    def _replace(self, owner: type, name: str, made: Callable[[Any], Any]) -> None:
        original = vars(owner)[name]
        self._replaced.append((owner, name, original))
        if isinstance(original, classmethod):
            setattr(owner, name, classmethod(functools.wraps(original.__func__)(made(original.__func__))))
        else:
            setattr(owner, name, functools.wraps(original)(made(original)))

    def _cover_class(self, owner: type) -> None:
        known = [name for cls, name, _ in self._replaced if cls is owner]
        if "get_all_tools" in vars(owner) and "get_all_tools" not in known:
            self._replace(owner, "get_all_tools", self._governed_tools)

    def _cover(self, agent: Any) -> None:
        """Govern an agent whose class was made, or changed, after the installation.

        Raises:
            RuntimeError: when the agent itself, not its class, says what its tools are.
        """
        if "get_all_tools" in vars(agent):
            raise RuntimeError(f"agent {agent.name!r} has its own get_all_tools, so its tools cannot be governed")
        with _lock:
            for owner in type(agent).__mro__ if self in _installed else ():
                self._cover_class(owner)

    def _governed_tools(self, original: Callable[..., Any]) -> Callable[..., Any]:
        async def get_all_tools(agent: Any, run_context: Any) -> list[Any]:
            if _fetching.get() is agent:  # a class that goes on with its parent's tools: decided once, on the outside
                return list(await original(agent, run_context))
            token = _fetching.set(agent)
            try:
                tools = await original(agent, run_context)
            finally:
                _fetching.reset(token)
            return self._governed(agent, tools)

        return get_all_tools

    def _governed(self, agent: Any, tools: list[Any]) -> list[Any]:
        caller, run, given = self._caller(agent), current_run.get(), []
        for tool in tools:
            governed = govern_tool(tool, caller)
            if governed is None:
                _logger.warning("tool %s of agent %s cannot be governed and is taken away", tool.name, agent.name)
            elif run is None or not self._hide_denied or self._is_shown(tool, caller):
                given.append(governed)
        if run is not None:
            run.shown[agent.name] = frozenset(tool.name for tool in given)
        return given

    def _is_shown(self, tool: Any, caller: Caller) -> bool:
        try:
            return describe(tool, self._point).is_shown(caller.session())
        except CallRefused:  # its calls say why
            return True

    def _with_context(self, original: Callable[..., Any]) -> Callable[..., Any]:
        async def get_system_prompt(agent: Any, run_context: Any) -> str | None:
            prompt: str | None = await original(agent, run_context)
            if not self._inject_context or current_run.get() is None:
                return prompt
            try:
                text = self._caller(agent).session().context_text
            except CallRefused:  # its calls say why
                return prompt
            return "\n\n".join(part for part in (prompt, text) if part) or prompt

        return get_system_prompt

    def _caller(self, agent: Any) -> Caller:
        return Caller(self._point, agent.name or None, self._pauses)

    @contextmanager
    def _begun(self, agent: Any, given: Any, kwargs: dict[str, Any]) -> Iterator[Run]:
        """A run begins, or goes on; ``kwargs`` gets our hooks."""
        run = Run(uuid4().hex)
        tokens = current_run.set(run), _fetching.set(None)
        hooks = kwargs.get("hooks")
        if hooks is None or isinstance(hooks, RunHooksBase):  # the SDK says what is wrong with others
            kwargs["hooks"] = ours = GovernedHooks(self._point, run, self._cover, hooks)
            if self._pauses and isinstance(given, RunState):
                stopped = [item.call_id for item in given.get_interruptions() if item.call_id]
                ours.resumed(stopped)
                self._find(agent, stopped)
        try:
            self._cover(agent)
            yield run
        finally:
            current_run.reset(tokens[0])
            _fetching.reset(tokens[1])

    def _find(self, agent: Any, stopped: list[str]) -> None:
        """The session in which a run was stopped, so that it goes on in that one."""
        try:
            self._caller(agent).session(stopped)
        except CallRefused as refusal:  # each call meets the same, and is refused
            _logger.warning("the session of an interrupted run was not found: %s", refusal)

    def _awaited(self, original: Callable[..., Any]) -> Callable[..., Any]:
        async def run(cls: Any, starting_agent: Any, input: Any, **kwargs: Any) -> Any:
            with self._begun(starting_agent, input, kwargs) as begun:
                try:
                    return await original(cls, starting_agent, input, **kwargs)
                finally:
                    self._point.end(begun.id)

        return run

    def _waited(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def run_sync(cls: Any, starting_agent: Any, input: Any, **kwargs: Any) -> Any:
            with self._begun(starting_agent, input, kwargs) as begun:
                try:
                    return original(cls, starting_agent, input, **kwargs)
                finally:
                    self._point.end(begun.id)

        return run_sync

    def _streamed(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def run_streamed(cls: Any, starting_agent: Any, input: Any, **kwargs: Any) -> Any:
            with self._begun(starting_agent, input, kwargs) as begun:
                result = original(cls, starting_agent, input, **kwargs)

            if result.run_loop_task is not None:
                result.run_loop_task.add_done_callback(lambda task: self._point.end(begun.id))
            return result

        return run_streamed


def _all_kinds(cls: type) -> Iterator[type]:
    kinds: list[type] = cls.__subclasses__()
    yield cls
    for kind in kinds:
        yield from _all_kinds(kind)
