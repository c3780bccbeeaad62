"""A governed ``BaseTool``: the decision is made inside it, on the arguments that its body is about to get."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

from langchain_core.messages import ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool
from pydantic import ConfigDict, PrivateAttr

from cra_adapters.langchain.bodies import accepted, arguments_of, body_of, declared_action, injected_names
from cra_adapters.langchain.describe import schema_of
from cra_adapters.langchain.inside import entered, entering
from cra_adapters.langchain.interrupts import AskByInterrupt, can_interrupt
from cra_middleware import CallRefused, Runtime, Session, enforcement
from cra_middleware.enforcement import EnforcementPoint, GovernedCall, annotations_of, require, signature_of

FRAMEWORK = "langchain"


class GovernedTool(BaseTool):
    """Stands where ``inner`` stood: parses as it does, decides on what its body gets, then runs that body."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    inner: BaseTool
    _point: EnforcementPoint = PrivateAttr()
    _find_session: Callable[[], Session] | None = PrivateAttr(default=None)
    _approver: AskByInterrupt | None = PrivateAttr(default=None)
    _lets_others: bool = PrivateAttr(default=False)
    _decided: bool = PrivateAttr(default=False)

    def __init__(
        self,
        inner: BaseTool,
        point: EnforcementPoint,
        find_session: Callable[[], Session] | None = None,
        approver: AskByInterrupt | None = None,
        lets_others: bool = False,
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
        self._point = point
        self._find_session = find_session
        self._approver = approver
        self._lets_others = lets_others

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

    def run(self, tool_input: Any, *args: Any, **kwargs: Any) -> Any:
        with entering(kwargs.get("tool_call_id"), kwargs.get("config"), self._lets_others):
            return super().run(tool_input, *args, **kwargs)

    async def arun(self, tool_input: Any, *args: Any, **kwargs: Any) -> Any:
        with entering(kwargs.get("tool_call_id"), kwargs.get("config"), self._lets_others):
            return await super().arun(tool_input, *args, **kwargs)

    def _run(self, *args: Any, cra_config: RunnableConfig, run_manager: Any = None, **kwargs: Any) -> Any:
        run, body = self.inner._run, body_of(self.inner, is_async=False)
        given = accepted(self.inner, run, kwargs, cra_config, run_manager)
        try:
            call = self._call(body, arguments_of(self.inner, run, body, args, kwargs))
            return call.run(lambda: run(*args, **given))
        except CallRefused as refusal:
            return self._refused(refusal)

    async def _arun(self, *args: Any, cra_config: RunnableConfig, run_manager: Any = None, **kwargs: Any) -> Any:
        run, body = self.inner._arun, body_of(self.inner, is_async=True)
        given = accepted(self.inner, run, kwargs, cra_config, run_manager)
        try:
            call = self._call(body, arguments_of(self.inner, run, body, args, kwargs))
            return await call.arun(lambda: run(*args, **given))
        except CallRefused as refusal:
            return self._refused(refusal)

    def _to_args_and_kwargs(self, tool_input: Any, tool_call_id: str | None) -> Any:
        entered().is_started = True
        try:
            return self.inner._to_args_and_kwargs(tool_input, tool_call_id)
        except Exception as error:  # whatever a parser or a validator of the tool raises; it is raised again
            body = body_of(self.inner, is_async=False)
            given = tool_input if isinstance(tool_input, Mapping) else {"input": tool_input}
            with suppress(CallRefused):  # it cannot be recorded; what the framework says comes out all the same
                arguments = arguments_of(self.inner, self.inner._run, body, (), dict(given))
                self._call(body, arguments).reject(f"the arguments could not be parsed ({type(error).__name__})")
            raise

    def _filter_injected_args(self, tool_input: dict[str, Any]) -> dict[str, Any]:
        return self.inner._filter_injected_args(tool_input)

    def _call(self, body: Any, arguments: dict[str, Any]) -> GovernedCall:
        self._decided = True
        how = entered()
        if self._find_session is None:
            how.session = self._point.session(run=how.thread, agent=how.agent, call_id=how.call_id)
        else:
            how.session = self._find_session()
        return described(self._point, self.inner, body).call(
            arguments,
            call_id=how.call_id,
            agent=how.agent,
            # a person is asked by stopping the graph, where one can be stopped
            approver=self._approver if self._approver is not None and can_interrupt() else None,
            session=how.session,
        )

    def _refused(self, refusal: CallRefused) -> Any:
        """For a model an error message; for Python code that calls the tool without a call id, the exception."""
        call_id = entered().call_id
        if call_id is None:
            raise refusal
        message = ToolMessage(str(refusal), name=self.name, tool_call_id=call_id, status="error")
        return (message, None) if self.response_format == "content_and_artifact" else message

    def _governed(self, fn: Callable[..., Any] | None) -> Callable[..., Any] | None:
        if fn is None:
            return None

        def direct(*args: Any, **kwargs: Any) -> Any:
            given = signature_of(fn).bind(*args, **kwargs).arguments
            return (self.arun if inspect.iscoroutinefunction(fn) else self.run)(given)

        direct.__wrapped__ = fn  # type: ignore[attr-defined]
        direct.__annotations__ = annotations_of(fn)
        return direct


def govern_tools(
    tools: Sequence[BaseTool],
    runtime: Runtime | None = None,
    actions: Mapping[str, str] | None = None,
    *,
    interrupt: bool = True,
    subagents: Literal["governed", "any"] = "governed",
) -> list[BaseTool]:
    """The same tools, governed wherever they run.

    Args:
        tools: any ``BaseTool``s.
        runtime: calls outside a session get one of this runtime, for each thread id one, and one for all calls
            without; ``runtime.close()`` ends them. Without a runtime, the session that is current at the call decides,
            and a call outside any is refused.
        actions: tool names to action ids, before what the Atlas maps.
        interrupt: where the runtime has no approver and a graph can be stopped, stop it and ask.
        subagents: what a model calls inside one of these tools has to be governed as well, or it does not run;
            ``any`` lets it.

    Raises:
        RuntimeError: when this version of LangChain lacks a hook that the gate stands on.
        TypeError: when a tool has a ``run()``, ``arun()`` or ``invoke()`` of its own.
    """
    require_langchain()
    point = EnforcementPoint(runtime, FRAMEWORK, actions=actions)
    approver = AskByInterrupt() if interrupt else None
    lets_others = subagents == "any"
    return [
        tool if isinstance(tool, GovernedTool) else GovernedTool(tool, point, None, approver, lets_others)
        for tool in tools
    ]


def require_langchain(seams: Mapping[object, tuple[str, ...]] | None = None) -> None:
    """Refuse versions that are too old, or that lost a hook.

    Raises:
        RuntimeError: when this is one.
    """
    require("langchain", "1.4", seams)
    require("langgraph", "1.2.12")
    require("langchain-core", "1.7", {BaseTool: ("_to_args_and_kwargs", "_filter_injected_args", "run", "arun")})


def described(point: EnforcementPoint, tool: BaseTool, body: Any = None) -> enforcement.GovernedTool:
    """A tool, as the runtime is told about it."""
    if body is None:
        body = body_of(tool, is_async=False)
    return point.tool(
        tool.name,
        body=body,
        declared=declared_action(tool),
        description=tool.description,
        schema=schema_of(tool),
        without=injected_names(tool, body),
    )
