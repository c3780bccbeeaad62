"""A governed ``BaseTool``: the decision is made inside it, on the arguments that its body is about to get."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, get_args, get_origin, get_type_hints

from langchain.tools import InjectedState, InjectedStore, ToolRuntime
from langchain_core.messages import ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, InjectedToolCallId
from pydantic import ConfigDict, PrivateAttr

from cra_adapters.langchain.interrupts import AskByInterrupt, can_interrupt
from cra_middleware import CallRefused, NoActiveSession, Runtime, Session, Target, ToolCall, current_session

FRAMEWORK = "langchain"
_NOT_ARGUMENTS = ("run_manager", "callbacks")  # LangChain takes these names for itself
_INJECTED = (InjectedState, InjectedStore, InjectedToolCallId, ToolRuntime)
_call_id: ContextVar[str | None] = ContextVar("cra_langchain_call_id", default=None)


class GovernedTool(BaseTool):
    """Stands where ``inner`` stood: parses as it does, decides on what its body gets, then runs that body."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    inner: BaseTool
    _target: Target = PrivateAttr()
    _find_session: Callable[[], Session] = PrivateAttr()
    _approver: AskByInterrupt | None = PrivateAttr(default=None)
    _decided: bool = PrivateAttr(default=False)

    def __init__(
        self,
        inner: BaseTool,
        target: Target,
        find_session: Callable[[], Session],
        approver: AskByInterrupt | None = None,
    ) -> None:
        for method in ("run", "arun", "invoke"):
            owner = next(cls for cls in type(inner).__mro__ if method in vars(cls))
            if not owner.__module__.startswith("langchain_core."):
                raise TypeError(
                    f"{type(inner).__name__} has a {method}() of its own and cannot be governed from inside"
                )
        super().__init__(
            inner=inner,
            name=inner.name,
            description=inner.description,
            args_schema=inner.args_schema or inner.get_input_schema(),
            return_direct=inner.return_direct,
            response_format=inner.response_format,
            handle_tool_error=inner.handle_tool_error,
            handle_validation_error=inner.handle_validation_error,
            metadata=inner.metadata,
            tags=inner.tags,
            callbacks=inner.callbacks,
        )
        self._target = target
        self._find_session = find_session
        self._approver = approver

    @property
    def decided(self) -> bool:
        """Whether a decision was made since this object was made: the framework may have refused the call before."""
        return self._decided

    @property
    def func(self) -> Callable[..., Any] | None:
        """The inner function, governed; frameworks read its annotations."""
        return self._governed(getattr(self.inner, "func", None))

    @property
    def coroutine(self) -> Callable[..., Awaitable[Any]] | None:
        """The inner coroutine function, governed."""
        return self._governed(getattr(self.inner, "coroutine", None))

    def run(self, tool_input: Any, *args: Any, tool_call_id: str | None = None, **kwargs: Any) -> Any:
        token = _call_id.set(tool_call_id)
        try:
            return super().run(tool_input, *args, tool_call_id=tool_call_id, **kwargs)
        finally:
            _call_id.reset(token)

    async def arun(self, tool_input: Any, *args: Any, tool_call_id: str | None = None, **kwargs: Any) -> Any:
        token = _call_id.set(tool_call_id)
        try:
            return await super().arun(tool_input, *args, tool_call_id=tool_call_id, **kwargs)
        finally:
            _call_id.reset(token)

    def _run(self, *args: Any, cra_config: RunnableConfig, run_manager: Any = None, **kwargs: Any) -> Any:
        run, body = self.inner._run, body_of(self.inner, is_async=False)
        given = _accepted(self.inner, run, kwargs, cra_config, run_manager)
        try:
            session, call = self._prepare(run, body, args, kwargs)
            return session.run(call, lambda: run(*args, **given), _governed_inside(body), self._asks())
        except CallRefused as refusal:
            return self._refused(refusal)

    async def _arun(self, *args: Any, cra_config: RunnableConfig, run_manager: Any = None, **kwargs: Any) -> Any:
        run, body = self.inner._arun, body_of(self.inner, is_async=True)
        given = _accepted(self.inner, run, kwargs, cra_config, run_manager)
        try:
            session, call = self._prepare(run, body, args, kwargs)
            return await session.arun(call, lambda: run(*args, **given), _governed_inside(body), self._asks())
        except CallRefused as refusal:
            return self._refused(refusal)

    def _to_args_and_kwargs(self, tool_input: Any, tool_call_id: str | None) -> Any:
        return self.inner._to_args_and_kwargs(tool_input, tool_call_id)

    def _filter_injected_args(self, tool_input: dict[str, Any]) -> dict[str, Any]:
        return self.inner._filter_injected_args(tool_input)

    def _prepare(
        self, run: Callable[..., Any], body: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Session, ToolCall]:
        shape = _shape(self.inner, run)
        lost = {"run_manager", _config_name(shape)} & set(inspect.signature(shape).parameters)
        # LangChain puts its own objects under these names, so the body never gets what a model gives there
        reaching = {key: value for key, value in kwargs.items() if key not in lost}
        arguments = _body_arguments(self.inner, body, args, reaching)
        self._decided = True
        call = self._target.call(tool_name(self.inner, body), arguments, _call_id.get())
        return self._find_session(), call

    def _asks(self) -> AskByInterrupt | None:
        """How a person is asked when the runtime has no approver: by stopping the graph, where one can be stopped."""
        return self._approver if self._approver is not None and can_interrupt() else None

    def _refused(self, refusal: CallRefused) -> Any:
        """For a model an error message; for Python code that calls the tool without a call id, the exception."""
        call_id = _call_id.get()
        if call_id is None:
            raise refusal
        message = ToolMessage(str(refusal), name=self.name, tool_call_id=call_id, status="error")
        return (message, None) if self.response_format == "content_and_artifact" else message

    def _governed(self, fn: Callable[..., Any] | None) -> Callable[..., Any] | None:
        if fn is None:
            return None

        def direct(*args: Any, **kwargs: Any) -> Any:
            given = inspect.signature(fn).bind(*args, **kwargs).arguments
            return (self.arun if inspect.iscoroutinefunction(fn) else self.run)(given)

        direct.__wrapped__ = fn  # type: ignore[attr-defined]
        direct.__annotations__ = getattr(fn, "__annotations__", {})
        return direct


def govern_tools(
    tools: Sequence[BaseTool],
    runtime: Runtime | None = None,
    actions: Mapping[str, str] | None = None,
    *,
    interrupt: bool = True,
) -> list[BaseTool]:
    """The same tools, governed wherever they run.

    Args:
        tools: any ``BaseTool``s.
        runtime: calls outside a session get one of this runtime, ended by ``runtime.close()``. Without it, the
            session that is current at the call decides, and a call outside any is refused.
        actions: tool names to action ids, before what the Atlas maps.
        interrupt: where the runtime has no approver and a graph can be stopped, stop it and ask.
    """
    sessions = SharedSession(runtime)

    def wrap(tool: BaseTool) -> BaseTool:
        if isinstance(tool, GovernedTool):
            return tool
        declared = declared_action(tool)
        target = Target((actions or {}).get(tool.name, declared or tool.name))
        if runtime is not None:
            target = runtime.target_for(tool.name, FRAMEWORK, actions=actions, declared=declared)
        return GovernedTool(tool, target, sessions.get, AskByInterrupt() if interrupt else None)

    return [wrap(tool) for tool in tools]


class SharedSession:
    """The current session, or one that all calls outside a session share."""

    def __init__(self, runtime: Runtime | None) -> None:
        self._runtime = runtime
        self._session: Session | None = None
        self._lock = threading.Lock()

    def get(self) -> Session:
        current = current_session()
        if current is not None and (self._runtime is None or self._runtime.find(current.id) is current):
            return current
        if self._runtime is None:
            raise NoActiveSession("no session is active; open one: with runtime.session(...):, or pass a runtime")
        with self._lock:
            if self._session is None or not self._session.is_open:
                self._session = self._runtime.session("langchain-agent", "Calls of governed tools outside a session")
            return self._session


def declared_action(tool: BaseTool) -> str | None:
    """The action that an in-process tool names itself, in its metadata or by ``@governed``."""
    named = (tool.metadata or {}).get("cra_action")
    for is_async in (False, True):
        named = named or getattr(body_of(tool, is_async=is_async), "cra_action", None)
    return named if isinstance(named, str) else None


def body_of(tool: BaseTool, *, is_async: bool) -> Any:
    """The function that a tool will run."""
    own = getattr(tool, "coroutine", None) if is_async else None
    own = own or getattr(tool, "func", None) or getattr(tool, "coroutine", None)
    return (
        own
        if own is not None
        else (type(tool)._arun if is_async and type(tool)._arun is not BaseTool._arun else type(tool)._run)
    )


def _governed_inside(body: Any) -> Any:
    """The ``@governed`` function in a body, below whatever other decorators copied its attributes."""
    while hasattr(getattr(body, "__wrapped__", None), "cra_action"):
        body = body.__wrapped__
    return body


def tool_name(tool: BaseTool, body: Any) -> str:
    name = f"{getattr(body, '__module__', FRAMEWORK)}.{getattr(body, '__qualname__', type(tool).__qualname__)}"
    return name if name.endswith(f".{tool.name}") else f"{name}/{tool.name}"


def _body_arguments(tool: BaseTool, body: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """What the body receives from the model: by name, with its defaults, without what the framework injects."""
    parameters = _named_parameters(body)
    given = {**dict(zip((parameter.name for parameter in parameters), args, strict=False)), **kwargs}
    for parameter in parameters:
        if parameter.default is not parameter.empty:
            given.setdefault(parameter.name, parameter.default)
    injected = {*_NOT_ARGUMENTS, *_injected_names(tool, body)}
    return {key: value for key, value in given.items() if key not in injected and not isinstance(value, ToolRuntime)}


def decided_parameters(tool: BaseTool, body: Any) -> dict[str, Any]:
    """The parameters of a body that decisions are about, in its order, each with its annotation, if it has one."""
    injected, hints = {*_NOT_ARGUMENTS, *_injected_names(tool, body)}, _hints(body)
    names = [one.name for one in _named_parameters(body) if one.kind is not one.VAR_POSITIONAL]
    return {name: hints.get(name, Any) for name in names if name not in injected}


def _named_parameters(body: Any) -> list[inspect.Parameter]:
    return [
        parameter
        for parameter in inspect.signature(body).parameters.values()
        if parameter.name not in ("self", "cls") and parameter.kind is not parameter.VAR_KEYWORD
    ]


def _injected_names(tool: BaseTool, body: Any) -> set[str]:
    """The parameters that the framework fills itself. A plain ``InjectedToolArg`` is none: a caller fills it."""
    hints = dict(_hints(body))
    if isinstance(tool.args_schema, type):
        hints |= _hints(tool.args_schema)
    names = {_config_name(body)}
    for name, hint in hints.items():
        marks = (hint, get_origin(hint), *get_args(hint))
        if any(
            isinstance(mark, _INJECTED) or (isinstance(mark, type) and issubclass(mark, _INJECTED)) for mark in marks
        ):
            names.add(name)
    return {name for name in names if name is not None}


def _hints(of: Any) -> dict[str, Any]:
    try:
        return get_type_hints(of, include_extras=True)
    except (NameError, TypeError):  # an annotation that cannot be resolved here: LangChain then injects nothing
        return {}


def _accepted(
    tool: BaseTool, run: Callable[..., Any], kwargs: dict[str, Any], config: RunnableConfig, run_manager: Any
) -> dict[str, Any]:
    """The arguments for the inner tool's own ``_run`` or ``_arun``: config and run manager where it takes them."""
    shape = _shape(tool, run)
    accepted = dict(kwargs)
    if "run_manager" in inspect.signature(shape).parameters:
        accepted["run_manager"] = run_manager
    name = _config_name(shape)
    if name is not None:
        accepted[name] = config
    return accepted


def _shape(tool: BaseTool, run: Callable[..., Any]) -> Callable[..., Any]:
    """Whose signature LangChain goes by: ``BaseTool._arun`` hands all it gets to ``_run``."""
    return tool._run if type(tool)._arun is BaseTool._arun else run


def _config_name(fn: Callable[..., Any]) -> str | None:
    """The parameter through which a function takes the ``RunnableConfig``; LangChain goes by its type."""
    return next((name for name, hint in _hints(fn).items() if hint is RunnableConfig), None)
