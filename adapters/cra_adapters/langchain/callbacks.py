"""``CRACallbackHandler``: for places that only take callbacks. Read its limits before you choose it."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.tools import StructuredTool

from cra_adapters.langchain.inside import agent_of, thread_of
from cra_adapters.langchain.tools import FRAMEWORK
from cra_middleware import CallRefused, Runtime
from cra_middleware.enforcement import EnforcementPoint, OpenCall


class CRACallbackHandler(BaseCallbackHandler):
    """Records every tool call, and stops a denied one by raising, which ends the run it is part of.

    LangChain swallows what a handler raises unless ``raise_error`` is set, and never waits for an async handler
    in a sync run. So this handler is sync, inline and raising, stays so, and cannot be made an async one. It is
    shown the model's raw arguments, before the tool parses them and adds its defaults; where a policy looks at
    arguments, it refuses to be made.
    """

    run_inline = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if AsyncCallbackHandler in cls.__mro__ or inspect.iscoroutinefunction(cls.on_tool_start):
            raise TypeError("an async callback handler cannot stop a tool in a sync run; use CRAMiddleware")

    def __init__(self, runtime: Runtime, actions: Mapping[str, str] | None = None) -> None:
        """Govern with ``runtime``; outside a session, calls belong to one of its own.

        Raises:
            ValueError: when a policy has conditions on arguments.
            RuntimeError: when this version of LangChain does not let a raising handler stop a tool.
        """
        policies = runtime.argument_policies()
        if policies:
            raise ValueError(
                f"policies look at arguments ({', '.join(policies)}), and a callback sees them before the tool's own "
                "parsing and defaults; use CRAMiddleware(runtime), or govern_tools(tools, runtime)"
            )
        self._point = EnforcementPoint(runtime, FRAMEWORK, actions=actions)
        self._open: dict[UUID, tuple[OpenCall, Callable[[], object] | None]] = {}
        _prove_that_raising_stops_a_tool()

    @property
    def raise_error(self) -> bool:  # type: ignore[override]
        """Always: without it LangChain logs the denial and runs the tool."""
        return True

    def on_tool_start(
        self,
        serialized: dict[str, Any],
        input_str: str,
        *,
        run_id: UUID,
        inputs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        name = str((serialized or {}).get("name") or kwargs.get("name") or "unnamed")
        arguments = inputs if isinstance(inputs, dict) else {"input": input_str}
        told = kwargs.get("metadata") or {}
        config = {"metadata": told, "configurable": told}  # LangChain copies the thread's id there
        call = self._point.tool(name).call(
            arguments, call_id=kwargs.get("tool_call_id"), agent=agent_of(config), run=thread_of(config)
        )
        self._open[run_id] = call.begin(), self._watch(run_id)

    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        self._tell(run_id, lambda call: call.returned(output))

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self._tell(run_id, lambda call: call.raised(error))

    def _watch(self, run_id: UUID) -> Callable[[], object] | None:
        """LangChain does not tell of a cancelled tool, but its task does when it is over."""
        try:
            task = asyncio.current_task()
        except RuntimeError:  # no event loop
            return None
        if task is None:
            return None

        def lost(task: asyncio.Task[Any]) -> None:
            self._tell(run_id, lambda call: call.raised(asyncio.CancelledError()))

        task.add_done_callback(lost)
        return lambda: task.remove_done_callback(lost)

    def _tell(self, run_id: UUID, how: Callable[[OpenCall], object]) -> None:
        call, forget = self._open.pop(run_id, (None, None))
        if forget is not None:
            forget()
        if call is not None:
            how(call)


def _prove_that_raising_stops_a_tool() -> None:
    """Try it on a tool that does nothing: a version that swallows the handler's exception must not look governed."""
    ran: list[bool] = []

    class Probe(BaseCallbackHandler):
        raise_error = True
        run_inline = True

        def on_tool_start(self, *args: Any, **kwargs: Any) -> None:
            raise CallRefused("probe")

    probe = StructuredTool.from_function(lambda: ran.append(True), name="probe", description="does nothing")
    with contextlib.suppress(CallRefused):
        probe.invoke({}, config={"callbacks": [Probe()]})
    if ran:
        raise RuntimeError("this version of LangChain runs a tool although its callback raised; use CRAMiddleware")
