"""Google ADK: ``Runner(..., plugins=[CRAPlugin(runtime)])`` governs every tool of every agent of the runner.

The plugin's own callbacks decide nothing: a later callback may change the arguments, an earlier one may run the tool by
itself. They put the decision into ``tool.run_async`` of each tool before it is reached, and for a function in front of
its body, on the very arguments that it gets: defaults filled in, the context left out. ADK does not hold arguments to
a function's annotations; here they are (a text for a number is made a number, or refused), or a model would get around
a limit by quoting it.

A call that needs a person asks for ADK's tool confirmation, where the runtime has no approver: the run ends with
``adk_request_confirmation``, and goes on with its answer, or after ``runtime.approvals.approve``. The yes counts once,
for exactly that call. An agent in an ``AgentTool`` cannot be gone on with, so there the model is told to wait.

ADK's own tools that only steer a run (``transfer_to_agent``, ``set_model_response`` and the like) are decided where the
Atlas maps them, else let by.

Holes: what a provider runs itself (``google_search``, code execution) and what a ``code_executor`` runs never comes by.
A ``Runner`` that a tool makes by itself needs the plugin, too. A streaming tool of a live run is decided once, at its
start, and recorded as done then.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from typing import Any, get_type_hints

from google.adk.agents import LlmAgent, LoopAgent, ParallelAgent, SequentialAgent
from google.adk.plugins.base_plugin import BasePlugin
from google.adk.tools.agent_tool import AgentTool
from google.adk.tools.base_tool import BaseTool
from google.adk.tools.base_toolset import BaseToolset
from google.adk.tools.function_tool import FunctionTool
from google.adk.tools.tool_context import ToolContext
from pydantic import PydanticUserError, TypeAdapter, ValidationError

from cra_middleware import Answer, CallRefused, Pending, Runtime
from cra_middleware.enforcement import EnforcementPoint, GovernedCall, GovernedTool, require

FRAMEWORK = "google_adk"
BY = "tool confirmation"
"""Who is recorded to have answered, when the answer came by ADK's tool confirmation."""

_STEERS = frozenset({"transfer_to_agent", "exit_loop", "set_model_response", "finish_task", "get_user_choice"})
_outer: ContextVar[tuple[CRAPlugin, str] | None] = ContextVar("cra_google_adk_outer", default=None)
"""Whose ``AgentTool`` this runs in, and in which invocation."""


class CRAPlugin(BasePlugin):
    """Decides and records every tool call of a runner's agents."""

    def __init__(
        self,
        runtime: Runtime,
        actions: Mapping[str, str] | None = None,
        *,
        agent_id: str | None = None,
        goal: str | None = None,
        hide_denied: bool = True,
        inject_context: bool = True,
        confirm: bool = True,
    ) -> None:
        """Govern with ``runtime``.

        Args:
            actions: tool names to action ids, before what the Atlas maps.
            agent_id: how policies and the trace name an agent without a name.
            goal: the operator's sentence, recorded in the trace. Never a user's message.
            hide_denied: tools that no call could be allowed to use are not shown to the model.
            inject_context: the Atlas's documents are added to the instructions.
            confirm: a call that needs a person asks for ADK's tool confirmation, where the runtime has no approver;
                else the model is told to wait.

        Raises:
            RuntimeError: when this version of ADK lacks something that the gate stands on.
        """
        require(
            "google-adk",
            "2.13",
            {
                BasePlugin: ("before_tool_callback", "before_model_callback", "after_run_callback"),
                FunctionTool: ("run_async", "_invoke_callable"),
                ToolContext: ("get_invocation_context", "request_confirmation", "tool_confirmation"),
            },
        )
        super().__init__(name="cra")
        self._runtime = runtime
        self._point = EnforcementPoint(runtime, FRAMEWORK, actions=actions, agent_id=agent_id, goal=goal)
        self._hide_denied = hide_denied
        self._inject_context = inject_context
        self._confirm = confirm

    async def before_model_callback(self, *, callback_context: Any, llm_request: Any) -> None:
        for tool in llm_request.tools_dict.values():
            _watch(tool)
        try:
            session = self._point.session(run=callback_context.invocation_id, agent=callback_context.agent_name)
        except CallRefused:
            return  # so is every call
        if self._hide_denied:
            for group in llm_request.config.tools or []:
                shown = getattr(group, "function_declarations", None)
                if shown:
                    group.function_declarations = [
                        item for item in shown if self._is_shown(session, llm_request.tools_dict.get(item.name))
                    ]
        if self._inject_context and session.context_text:
            llm_request.append_instructions([session.context_text])

    async def before_tool_callback(
        self, *, tool: Any, tool_args: dict[str, Any], tool_context: Any
    ) -> dict[str, Any] | None:
        """The last moment at which every tool comes by. Nothing is decided here."""
        try:
            if type(tool) is BaseTool and "run_async" not in vars(tool):  # ADK's stand-in for a tool that is not there
                self._point.tool(tool.name).missing(tool_args, **_names(tool_context))
                return None
            _watch(tool)
        except Exception as error:  # noqa: BLE001  what leaves a callback ends the whole run
            return {"error": str(self._point.caught(error))}
        return None

    async def after_run_callback(self, *, invocation_context: Any) -> None:
        self._point.end(invocation_context.invocation_id)

    async def on_run_error_callback(self, *, invocation_context: Any, error: Exception) -> None:
        self._point.end(invocation_context.invocation_id)

    async def decide(self, tool: Any, run: Callable[..., Awaitable[Any]], args: Any, context: Any) -> Any:
        """Run ``tool``, or answer with the refusal's sentence."""
        if self._only_steers(tool):
            return await run(args=args, tool_context=context)
        asking, args = self._asking(context), copy.deepcopy(args)  # others may hold the call's own

        def call(arguments: object) -> GovernedCall:
            return _governed(self._point, tool).call(arguments, approver=asking, **_names(context))

        token = _outer.set((self, context.invocation_id))
        try:
            if _is_plain(tool):
                return await _run_function(tool, args, context, call)
            if isinstance(tool, AgentTool) and not tool.include_plugins and not _reach(tool.agent):
                raise call(args).reject("an agent without plugins has tools that could not be governed")
            return await call(args).arun(lambda: run(args=args, tool_context=context))
        except _Paused:
            context.actions.skip_summarization = True
            return {"error": "The call was not run: a person has to confirm it first."}
        except CallRefused as refusal:
            return {"error": str(refusal)}
        finally:
            _outer.reset(token)

    def _asking(self, context: Any) -> _Confirming | None:
        """A way to ask a person, where ADK has one: not in an ``AgentTool``, and once a call."""
        outer = _outer.get()
        if not self._confirm or (outer is not None and outer[1] != context.invocation_id):
            return None
        if context.tool_confirmation is not None and not any(
            item.pending.tool_call_id == context.function_call_id for item in self._runtime.approvals.list("pending")
        ):
            return None  # it answered another question than ours
        return _Confirming(context)

    def _is_shown(self, session: Any, tool: Any) -> bool:
        return tool is None or self._only_steers(tool) or _governed(self._point, tool).is_shown(session)

    def _only_steers(self, tool: Any) -> bool:
        """Whether a tool is ADK's own for steering a run, and the Atlas does not say what it stands for."""
        name, code = str(tool.name), (type(tool), getattr(tool, "func", type(tool)))
        if name not in _STEERS or not all(str(item.__module__).startswith("google.adk.") for item in code):
            return False
        return self._point.target(name).action_id == name


class _Paused(Exception):
    """The run ends here, until a person has said yes or no."""


class _Confirming:
    """Asks a person by ADK's tool confirmation."""

    suspends = (_Paused,)

    def __init__(self, context: Any) -> None:
        self._context = context

    def __call__(self, pending: Pending) -> Answer:
        given = self._context.tool_confirmation
        if given is not None:
            return Answer(given.confirmed, BY)
        self._context.request_confirmation(hint=f"{pending.action_id}: {pending.reason}")
        raise _Paused


def _watch(tool: Any) -> None:
    """From now on each run of ``tool`` is up to the plugin of the runner that it runs in."""
    own = vars(tool).get("run_async")
    if getattr(own, "cra_tool", None) is tool:
        return
    # A copy of a watched tool carries the other one's.
    run = tool.run_async if not hasattr(own, "cra_tool") else type(tool).run_async.__get__(tool)

    async def run_async(*, args: dict[str, Any], tool_context: Any) -> Any:
        plugins = tool_context.get_invocation_context().plugin_manager.plugins
        outer = _outer.get()
        plugin = next((item for item in plugins if isinstance(item, CRAPlugin)), outer[0] if outer else None)
        if plugin is None:  # a runner that is not governed
            return await run(args=args, tool_context=tool_context)
        return await plugin.decide(tool, run, args, tool_context)

    run_async.cra_tool = tool  # type: ignore[attr-defined]
    tool.run_async = run_async
    if tool.run_async is not run_async:
        raise RuntimeError(f"{type(tool).__name__} does not let its run_async be governed")


def _reach(agent: Any) -> bool:
    """Watch the tools of an agent that runs without plugins; False if it is of a kind that could have others."""
    if isinstance(agent, LlmAgent):
        before = agent.canonical_before_tool_callbacks
        if _watch_first not in before:
            agent.before_tool_callback = [_watch_first, *before]
    elif not isinstance(agent, (SequentialAgent, ParallelAgent, LoopAgent)):
        return False
    return all(_reach(item) for item in agent.sub_agents)


def _watch_first(tool: Any, args: Any, tool_context: Any) -> None:
    _watch(tool)


def _is_plain(tool: Any) -> bool:
    """Whether nothing but ADK's own code comes between ``run_async`` and the function."""
    kind = type(tool)
    own = isinstance(tool, FunctionTool) and kind.run_async is FunctionTool.run_async
    return own and kind._invoke_callable is FunctionTool._invoke_callable and not _streams(tool.func)


def _streams(fn: Any) -> bool:
    calls = getattr(fn, "__call__", fn)  # noqa: B004  what an object runs when it is called
    return any(inspect.isgeneratorfunction(item) or inspect.isasyncgenfunction(item) for item in (fn, calls))


async def _run_function(tool: Any, args: Any, context: Any, call: Callable[[object], GovernedCall]) -> Any:
    """Let ADK prepare the arguments, and decide where it would call the function."""
    given = _ignored(tool)
    reached = False

    async def function(**kwargs: Any) -> Any:
        nonlocal reached
        reached = True
        arguments = {name: value for name, value in kwargs.items() if name not in given}
        try:
            fitted = _fitted(tool, arguments)
        except ValidationError as error:
            raise call(arguments).reject(_said(error)) from None
        return await call(fitted).arun(lambda: tool._invoke_callable(tool.func, {**kwargs, **fitted}))

    inner = copy.copy(tool)
    vars(inner).pop("run_async", None)
    inner.func = function
    result = await inner.run_async(args=args, tool_context=context)
    confirms = context.tool_confirmation is not None or context.actions.requested_tool_confirmations
    if not reached and not confirms:
        call(args).reject("the framework refused the arguments before the tool was reached")
    return result


def _fitted(tool: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments as the annotations of the tool's function want them.

    Raises:
        ValidationError: when one cannot be made so.
    """
    fitted = dict(arguments)
    for name, (hint, default) in _annotated(tool.func).items():
        if name not in arguments or arguments[name] == default:
            continue
        try:
            fitted[name] = TypeAdapter(hint).validate_python(arguments[name])
        except (TypeError, NameError, PydanticUserError):  # an annotation that pydantic can make nothing of
            continue
    return fitted


def _annotated(fn: Any) -> dict[str, tuple[Any, Any]]:
    """Hint and default of each parameter of whatever ADK takes for a function."""
    source = fn
    while isinstance(source, functools.partial):
        source = source.func
    try:
        hints = get_type_hints(source if inspect.isroutine(source) else source.__call__, include_extras=True)
        parameters = inspect.signature(fn).parameters
    except (TypeError, NameError, ValueError):  # hints that only a type checker can read, or a builtin
        return {}
    return {name: (hints[name], item.default) for name, item in parameters.items() if name in hints}


def _said(error: ValidationError) -> str:
    return "; ".join(f"{item['msg']}" for item in error.errors(include_url=False, include_input=False))


def _names(context: Any) -> dict[str, Any]:
    return {"call_id": context.function_call_id, "agent": context.agent_name, "run": context.invocation_id}


def _ignored(tool: Any) -> tuple[str, ...]:
    """The parameters that ADK fills itself; the one of a live stream only where it is one."""
    if not isinstance(tool, FunctionTool):
        return ()
    hint, _ = _annotated(tool.func).get("input_stream", ("", None))
    is_filled = _streams(tool.func) or "LiveRequestQueue" in str(hint)
    return tuple(name for name in tool._ignore_params if name != "input_stream" or is_filled)


def _governed(point: EnforcementPoint, tool: Any) -> GovernedTool:
    name, description, schema = _description(tool)
    return point.tool(
        name,
        body=getattr(tool, "func", None),
        declared=(tool.custom_metadata or {}).get("cra_action"),
        description=description,
        schema=schema,
        origin=type(tool).__name__,
        without=_ignored(tool),
    )


def _description(tool: Any) -> tuple[str, str, dict[str, Any] | None]:
    declaration = tool._get_declaration()
    schema = getattr(declaration, "parameters_json_schema", None)
    if schema is None and getattr(declaration, "parameters", None) is not None:
        schema = declaration.parameters.model_dump(mode="json", exclude_none=True)
    return tool.name, getattr(declaration, "description", None) or tool.description or "", schema


def describe_tools(found: Any) -> list[tuple[str, str, dict[str, Any] | None]]:
    """Name, description and JSON Schema of each tool of an agent, of a toolset, or of tools and functions.

    Raises:
        TypeError: when something in it is none of these.
    """
    described: list[tuple[str, str, dict[str, Any] | None]] = []
    for item in found if isinstance(found, (list, tuple)) else [found]:
        if isinstance(item, LlmAgent):
            tools = asyncio.run(item.canonical_tools())
        elif isinstance(item, BaseToolset):
            tools = asyncio.run(item.get_tools_with_prefix())
        elif isinstance(item, BaseTool):
            tools = [item]
        elif callable(item):
            tools = [FunctionTool(item)]
        else:
            raise TypeError(f"{type(item).__name__} is no ADK tool; name an agent, a toolset, tools or functions")
        described += [_description(tool) for tool in tools]
    return described
