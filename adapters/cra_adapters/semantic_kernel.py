"""Semantic Kernel: ``govern(agent, runtime)``, or of a kernel, governs every function call of that kernel.

The decision is made innermost, behind every filter, later ones too, on the very arguments that the function then gets:
they are gathered once. It is the same for what a model calls, what a template calls, ``kernel.invoke`` and
``kernel.invoke_stream``; a clone of the kernel is governed as well. A prompt function is decided where a model calls
it; one that the program begins is no tool. A denial is raised as ``FunctionExecutionException``, which a model gets as
the result of its call, as Semantic Kernel has it for every error.

A tool's name is ``plugin-function`` where that is mapped to an action, else the name of the function alone. There is no
pause: a call that needs a person is put to the runtime's approver, or the model is told to wait.

Holes: calling a function's ``method``, and invoking it with a kernel that is not governed (``agent.invoke(kernel=...)``
with another one, too), are none of this kernel's. Functions of a provider's servers never come by. A filter for
automatic calls that answers by itself runs nothing, and is not recorded.
"""

from __future__ import annotations

import copy
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from inspect import isasyncgen, isgenerator
from typing import Any, TypeVar
from uuid import uuid4

from semantic_kernel import Kernel
from semantic_kernel.agents import ChatCompletionAgent
from semantic_kernel.connectors.ai.function_calling_utils import kernel_function_metadata_to_function_call_format
from semantic_kernel.exceptions import FunctionExecutionException
from semantic_kernel.filters.filter_types import FilterTypes
from semantic_kernel.functions import FunctionResult, KernelFunction, KernelFunctionFromMethod, KernelFunctionFromPrompt
from semantic_kernel.functions.kernel_plugin import KernelPlugin

from cra_middleware import CallRefused, Runtime
from cra_middleware.enforcement import EnforcementPoint, GovernedCall, require

T = TypeVar("T", Kernel, ChatCompletionAgent)

FRAMEWORK = "semantic_kernel"

_MARK = "_cra_governor"
_RUN = "cra_run"  # among a run's own arguments, which reach each of its calls; a function gets only what it declares
_FILLED = ("kernel", "service", "execution_settings", "arguments")  # parameters that the kernel fills by itself


@dataclass
class _Asked:
    """A call that a model made, on its way through the kernel."""

    call_id: str | None
    was_read: bool = False


_asked: ContextVar[_Asked | None] = ContextVar("cra_semantic_kernel_asked", default=None)


def govern(
    target: T,
    runtime: Runtime,
    actions: Mapping[str, str] | None = None,
    *,
    agent_id: str | None = None,
    goal: str | None = None,
) -> T:
    """Govern every function call of a kernel, or of an agent's kernel; the target is returned.

    Args:
        actions: tool names (``plugin-function``, or the function's alone) to action ids, before what the Atlas maps.
        agent_id: how policies and the trace name a kernel that no agent was given with.
        goal: the operator's sentence, recorded in the trace. Never a user's message.

    Raises:
        RuntimeError: when this version of Semantic Kernel lacks a seam that the gate stands on, or the kernel is
            governed already: agents that are to be told apart need a kernel each.
        TypeError: when it is neither a ``Kernel`` nor a ``ChatCompletionAgent``.
    """
    require(
        "semantic-kernel",
        "1.36",
        {
            Kernel: ("construct_call_stack", "invoke_function_call", "clone", "get_function"),
            KernelFunctionFromMethod: ("_invoke_internal", "_invoke_internal_stream", "gather_function_parameters"),
            ChatCompletionAgent: ("get_response", "invoke", "invoke_stream"),
        },
    )
    point = EnforcementPoint(runtime, FRAMEWORK, actions=actions, agent_id=agent_id, goal=goal)
    if isinstance(target, Kernel):
        _Governor(point, None).kernel(target)
    elif isinstance(target, ChatCompletionAgent):
        governor = _Governor(point, target.name)
        governor.kernel(target.kernel)
        governor.runs(target)
    else:
        raise TypeError(f"{type(target).__name__} is neither a Kernel nor a ChatCompletionAgent; govern its kernel")
    return target


class _Governor:
    def __init__(self, point: EnforcementPoint, agent: str | None) -> None:
        self._point = point
        self._agent = agent

    def kernel(self, kernel: Kernel) -> None:
        if _MARK in kernel.__dict__:
            raise RuntimeError("this kernel is governed already; an agent that is to be told apart needs its own")
        construct, invoke, clone = kernel.construct_call_stack, kernel.invoke_function_call, kernel.clone

        def construct_call_stack(filter_type: Any, inner_function: Any) -> Any:
            if filter_type == FilterTypes.FUNCTION_INVOCATION:

                async def decided(context: Any) -> None:
                    await self._decided(inner_function, context)

                return construct(filter_type=filter_type, inner_function=decided)
            asked = _asked.get()
            if filter_type == FilterTypes.AUTO_FUNCTION_INVOCATION and asked is not None:
                asked.was_read = True
            return construct(filter_type=filter_type, inner_function=inner_function)

        async def invoke_function_call(function_call: Any, chat_history: Any, **kwargs: Any) -> Any:
            asked = _Asked(function_call.id)
            token = _asked.set(asked)
            try:
                result = await invoke(function_call, chat_history, **kwargs)
                if not asked.was_read:
                    self._unread(kernel, function_call, kwargs.get("arguments"))
                return result
            finally:
                _asked.reset(token)

        def governed_clone() -> Kernel:
            made = clone()
            self.kernel(made)
            return made

        replaced = {
            _MARK: self,
            "construct_call_stack": construct_call_stack,
            "invoke_function_call": invoke_function_call,
            "clone": governed_clone,
        }
        for name, value in replaced.items():
            object.__setattr__(kernel, name, value)  # pydantic would look for a field of that name

    def runs(self, agent: ChatCompletionAgent) -> None:
        """Each invocation of the agent is a run, whose session ends with it."""
        respond: Any = agent.get_response

        async def get_response(*args: Any, **kwargs: Any) -> Any:
            run = uuid4().hex
            try:
                return await respond(*args, **kwargs, **{_RUN: run})
            finally:
                self._point.end(run)

        def streamed(invoke: Callable[..., Any]) -> Callable[..., AsyncGenerator[Any, None]]:
            async def stream(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
                run = uuid4().hex
                try:
                    async for item in invoke(*args, **kwargs, **{_RUN: run}):
                        yield item
                finally:
                    self._point.end(run)

            return stream

        object.__setattr__(agent, "get_response", get_response)
        object.__setattr__(agent, "invoke", streamed(agent.invoke))
        object.__setattr__(agent, "invoke_stream", streamed(agent.invoke_stream))

    async def _decided(self, inner: Callable[[Any], Awaitable[None]], context: Any) -> None:
        """The last thing before a function."""
        function: KernelFunction = inner.__self__  # type: ignore[attr-defined]
        if isinstance(function, KernelFunctionFromPrompt) and _asked.get() is None:
            await inner(context)
            return
        try:
            call, run = self._prepared(function, inner, context)
            if context.is_streaming:
                context.result = FunctionResult(function=function.metadata, value=_streamed(call, run, context))
            else:
                await call.arun(lambda: _ran(run, context))
        except CallRefused as refusal:
            raise FunctionExecutionException(str(refusal)) from refusal

    def _prepared(
        self, function: Any, inner: Any, context: Any
    ) -> tuple[GovernedCall, Callable[[Any], Awaitable[None]]]:
        """The call, and what runs the function with the arguments of the call, whatever changes meanwhile."""
        given = {key: value for key, value in context.arguments.items() if key != _RUN}
        if not isinstance(function, KernelFunctionFromMethod):
            own = copy.copy(context.arguments)

            async def run(context: Any) -> None:
                context.arguments = own
                await inner(context)

            return self._call(function, given, context.arguments), run
        try:
            gathered = function.gather_function_parameters(context)
        except FunctionExecutionException as error:
            self._call(function, given, context.arguments).reject(str(error))
            raise
        fixed = copy.copy(function)
        object.__setattr__(fixed, "gather_function_parameters", lambda context: gathered)
        return self._call(function, gathered, context.arguments), lambda context: inner.__func__(fixed, context)

    def _call(self, function: KernelFunction, arguments: object, among: Mapping[str, Any] | None) -> GovernedCall:
        _, description, schema = _shown(function)
        body = function.method if isinstance(function, KernelFunctionFromMethod) else None
        tool = self._point.tool(
            self._name(function.name, function.fully_qualified_name),
            body=body,
            description=description,
            schema=schema,
            origin=function.plugin_name or None,
            without=_FILLED if body is not None else (),
        )
        asked = _asked.get()
        call_id = None if asked is None else asked.call_id
        return tool.call(arguments, call_id=call_id, agent=self._agent, run=(among or {}).get(_RUN))

    def _name(self, name: str, qualified: str) -> str:
        return name if self._point.target(qualified).action_id == qualified else qualified

    def _unread(self, kernel: Kernel, call: Any, among: Mapping[str, Any] | None) -> None:
        """The kernel answered by itself: there is no such function, or it does not take these arguments."""
        try:
            function = kernel.get_function(call.plugin_name, call.function_name)
        except Exception:  # noqa: BLE001  there is none, whatever the kernel calls that
            name = self._name(call.function_name, call.name or call.function_name)
            run = (among or {}).get(_RUN)
            self._point.tool(name).missing(call.arguments, call_id=call.id, agent=self._agent, run=run)
            return
        self._call(function, call.arguments or {}, among).reject("the kernel refused the arguments")


async def _ran(run: Callable[[Any], Awaitable[None]], context: Any) -> object:
    token = _asked.set(None)  # what the function itself calls was asked for by no model
    try:
        await run(context)
    finally:
        _asked.reset(token)
    return None if context.result is None else context.result.value


async def _streamed(
    call: GovernedCall, run: Callable[[Any], Awaitable[None]], context: Any
) -> AsyncGenerator[Any, None]:
    """What the function gives piece by piece; decided when the first one is asked for."""
    try:
        opened = await call.abegin()
    except CallRefused as refusal:
        raise FunctionExecutionException(str(refusal)) from refusal
    own = context.model_copy()
    pieces: list[Any] = []
    try:
        value = await _ran(run, own)
        if isasyncgen(value):
            async for piece in value:
                pieces.append(piece)
                yield piece
        elif isgenerator(value):
            for piece in value:
                pieces.append(piece)
                yield piece
        elif own.result is not None:
            pieces.append(value)
            yield own.result
    except BaseException as error:  # whatever ends the stream is its outcome
        opened.raised(error)
        raise
    opened.returned(pieces)


def _shown(function: KernelFunction) -> tuple[str, str, dict[str, Any] | None]:
    described = kernel_function_metadata_to_function_call_format(function.metadata)["function"]
    schema = dict(described.get("parameters") or {})
    schema["properties"] = {key: value for key, value in schema.get("properties", {}).items() if key not in _FILLED}
    schema["required"] = [name for name in schema.get("required") or () if name not in _FILLED]
    return function.fully_qualified_name, described.get("description") or "", schema


def describe_tools(found: Any) -> list[tuple[str, str, dict[str, Any] | None]]:
    """Name, description and JSON Schema of each function of a kernel, an agent, a plugin, or of functions.

    Raises:
        TypeError: when something in it is none of these.
    """
    described = []
    for item in found if isinstance(found, (list, tuple)) else [found]:
        kernel = item.kernel if isinstance(item, ChatCompletionAgent) else item
        plugins = kernel.plugins.values() if isinstance(kernel, Kernel) else [item]
        for plugin in plugins:
            functions = plugin.functions.values() if isinstance(plugin, KernelPlugin) else [plugin]
            for function in functions:
                if not isinstance(function, KernelFunction):
                    raise TypeError(f"{type(function).__name__} is no kernel function; name a kernel or a plugin")
                described.append(_shown(function))
    return described
