"""Governed copies of ``FunctionTool``, of whatever make."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, cast

from agents import FunctionTool, ModelBehaviorError, function_tool
from agents.function_schema import FuncSchema, function_schema
from agents.tool import (
    get_function_tool_origin,
    set_function_tool_failure_error_function,
    with_function_tool_failure_error_handler,
)
from agents.tool_context import ToolContext
from agents.tracing import SpanError, get_current_span

from cra_adapters.openai_agents.caller import Caller
from cra_adapters.openai_agents.pausing import Arguments, approver_for, wants_person
from cra_middleware import CallRefused
from cra_middleware.enforcement import EnforcementPoint, GovernedCall, GovernedTool, bind_arguments, govern_function

Invoke = Callable[[Any, str], Awaitable[Any]]


@dataclass(frozen=True, eq=False)
class _Inside:
    """A function whose calls are decided, within the SDK's own validation; made once for each tool."""

    fn: Callable[..., Any]
    schema: FuncSchema
    invoke: Invoke

    @property
    def prepare(self) -> Any:
        """How the SDK checks that an approval policy sees what the function will get, where it does."""
        return getattr(self.invoke, "prepare_arguments", None)


@dataclass(eq=False)
class _Entered:
    """A call on its way into the body of a function."""

    ctx: Any
    tool: GovernedTool
    caller: Caller
    is_reached: bool = False


_entered: ContextVar[_Entered | None] = ContextVar("cra_openai_agents_call", default=None)


def check_seams() -> None:
    """Try what the copies stand on, on a tool of ours.

    Raises:
        RuntimeError: when this version of the SDK does it in another way.
    """

    def probe(text: str) -> str:
        return text

    async def invoke(ctx: Any, text: str) -> Any:
        return text

    invoke.__agents_prepare_arguments__ = lambda text, name: text  # type: ignore[attr-defined]
    invoker: Any = with_function_tool_failure_error_handler(invoke, _note_failure)
    tool: Any = function_tool(probe)
    try:
        is_as_known = (
            tool.__wrapped__ is probe and tool.on_invoke_tool.prepare_arguments('{"text": "a"}', "probe").unchanged
        )
        is_as_known = is_as_known and invoker.prepare_arguments("seen", "probe") == "seen"
        is_as_known = is_as_known and hasattr(tool.on_invoke_tool, "__agents_bind_function_tool__")
    except AttributeError:
        is_as_known = False
    if not is_as_known:
        raise RuntimeError("this version of openai-agents invokes functions in another way: they cannot be governed")


def describe_tool(tool: FunctionTool, point: EnforcementPoint) -> GovernedTool:
    """What the runtime is told about ``tool``."""
    inside = _inside(tool)
    described: dict[str, Any] = {"description": tool.description, "schema": tool.params_json_schema}
    if inside is None:
        origin = get_function_tool_origin(tool)
        return point.tool(tool.name, origin=None if origin is None else origin.mcp_server_name, **described)
    first = list(inside.schema.signature.parameters)[:1] if inside.schema.takes_context else []
    return point.tool(tool.name, body=inside.fn, without=first, **described)


def govern_function_tool(tool: FunctionTool, caller: Caller) -> FunctionTool:
    """A copy of ``tool`` whose calls by ``caller`` are decided."""
    inside, governed = _inside(tool), describe_tool(tool, caller.point)
    invoke: Invoke
    if inside is None:
        read, prepare = _reader(tool), None
        invoke = _decided_before(tool, governed, caller, _as_it_is(tool), read)
    else:
        read, prepare = _bound_reader(inside), inside.prepare
        invoke = _decided_within(tool, governed, caller, inside)
    changed = copy.copy(tool)
    if caller.pauses:
        changed.needs_approval = wants_person(tool, governed, caller, read, prepare)
    elif prepare is not None:
        invoke.__agents_prepare_arguments__ = prepare  # type: ignore[attr-defined]
    if hasattr(tool.on_invoke_tool, "__agents_bind_function_tool__"):
        invoke = with_function_tool_failure_error_handler(invoke, _note_failure)
    changed.on_invoke_tool = invoke
    return copy.copy(changed)  # binds the invoker to the copy


def _inside(tool: FunctionTool) -> _Inside | None:
    """Of a tool that was made of a function; None for another."""
    body = getattr(tool, "__wrapped__", None)
    if body is None:
        return None
    made: _Inside | None = vars(tool).get("_cra_inside")
    fn = body if inspect.isroutine(body) else body.__call__
    if made is None or made.fn != fn:
        schema = function_schema(fn, use_docstring_info=False, strict_json_schema=False)
        decided = function_tool(
            govern_function(fn, _entered_call, _raised),
            name_override=tool.name,
            failure_error_function=None,
            strict_mode=False,
            use_docstring_info=False,
        )
        made = _Inside(fn, schema, decided.on_invoke_tool)
        vars(tool)["_cra_inside"] = made
    return made


def _entered_call(arguments: dict[str, object]) -> GovernedCall:
    entered = _entered.get()
    if entered is None:
        raise CallRefused("the function was called past its tool", code="internal_error")
    entered.is_reached = True
    ctx = entered.ctx
    return entered.caller.call(entered.tool, arguments, ctx.tool_call_id, approver_for(ctx, entered.caller))


def _raised(refusal: CallRefused) -> Any:
    raise refusal


def _decided_within(tool: FunctionTool, governed: GovernedTool, caller: Caller, inside: _Inside) -> Invoke:
    """The SDK's own invoker around the decided function; what its validation refuses is recorded."""

    async def invoke(ctx: ToolContext[Any], input_json: str) -> Any:
        entered = _Entered(ctx, governed, caller)
        token = _entered.set(entered)
        try:
            return await inside.invoke(ctx, input_json)
        except CallRefused as refusal:
            return _told(tool, refusal)
        except ModelBehaviorError as error:
            if not entered.is_reached:
                caller.reject(governed, _json(input_json), ctx.tool_call_id, _first_line(error))
            raise
        finally:
            _entered.reset(token)

    return invoke


def _decided_before(
    tool: FunctionTool, governed: GovernedTool, caller: Caller, bare: Invoke, read: Arguments
) -> Invoke:
    """``bare``, whose arguments are decided as the model wrote them, with the defaults of the schema."""

    async def invoke(ctx: ToolContext[Any], input_json: str) -> Any:
        try:
            call = caller.call(governed, read(_json(input_json)), ctx.tool_call_id, approver_for(ctx, caller))
            return await call.arun(lambda: bare(ctx, input_json))
        except CallRefused as refusal:
            return _told(tool, refusal)

    return invoke


def _as_it_is(tool: FunctionTool) -> Invoke:
    """What ``tool`` runs, raising what it raises: the copy that is governed makes the model's error text of it."""
    if hasattr(tool.on_invoke_tool, "__agents_bind_function_tool__"):
        tool = copy.copy(set_function_tool_failure_error_function(copy.copy(tool), None))
    return cast("Invoke", tool.on_invoke_tool)


def _reader(tool: FunctionTool) -> Arguments:
    properties = tool.params_json_schema.get("properties")
    known = properties.items() if isinstance(properties, Mapping) else ()
    defaults = {name: one["default"] for name, one in known if isinstance(one, Mapping) and "default" in one}
    return lambda given: {**defaults, **given} if isinstance(given, Mapping) else given


def _bound_reader(inside: _Inside) -> Arguments:
    """Arguments as the body would get them; raises what the SDK's validation raises."""

    def read(given: object) -> object:
        if not isinstance(given, Mapping):
            return given
        args, kwargs = inside.schema.to_call_args(inside.schema.params_pydantic_model(**given))
        first = (None,) if inside.schema.takes_context else ()
        return bind_arguments(inside.fn, (*first, *args), kwargs)

    return read


def _told(tool: FunctionTool, refusal: CallRefused) -> str:
    """What the model is told; a result that must fit a schema can be no sentence, so that is an error of the tool's."""
    if tool.output_json_schema is not None:
        raise refusal
    return str(refusal)


def _note_failure(tool: FunctionTool, error: Exception, input_json: str) -> None:
    span = get_current_span()
    if span is not None:
        data = {"tool_name": tool.name, "error": type(error).__name__}
        span.set_error(SpanError(message="Error running tool (non-fatal)", data=data))


def _json(text: str) -> object:
    try:
        return json.loads(text) if text else {}
    except ValueError:
        return text


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
