"""``CRAMiddleware``: the gate of ``langchain.agents.create_agent``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any, Final, Literal, NotRequired
from uuid import uuid4

from langchain.agents.middleware import AgentMiddleware, AgentState, ModelRequest, ModelResponse
from langchain.agents.middleware.types import PrivateStateAttr
from langchain_core.messages import SystemMessage, ToolMessage
from langchain_core.tools import BaseTool
from langgraph.config import get_config
from langgraph.errors import GraphBubbleUp
from langgraph.prebuilt.tool_node import ToolCallRequest
from langgraph.types import Command

from cra_adapters.langchain.inside import UNGOVERNED, agent_of, thread_of
from cra_adapters.langchain.interrupts import AskByInterrupt
from cra_adapters.langchain.tools import FRAMEWORK, GovernedTool, described, require_langchain
from cra_middleware import CallRefused, ChainBroken, NoActiveSession, Runtime, Session, SinkError, current_session
from cra_middleware.enforcement import EnforcementPoint, GovernedCall

SESSION_KEY: Final = "cra_session_id"
MAX_RUNS = 4096
_HOOKS = ("wrap_tool_call", "awrap_tool_call", "wrap_model_call", "before_agent", "after_agent")


class CRAState(AgentState[Any]):
    """The agent's state, and which session governs it: kept with the thread's checkpoints."""

    cra_session_id: NotRequired[Annotated[str, PrivateStateAttr]]


class CRAMiddleware(AgentMiddleware[CRAState, Any, Any]):
    """Decides and records every tool call of one agent. Put it last in ``middleware=[...]``."""

    state_schema = CRAState

    def __init__(
        self,
        runtime: Runtime,
        actions: Mapping[str, str] | None = None,
        session: Literal["thread", "run"] = "thread",
        *,
        agent_id: str | None = None,
        goal: str = "Answer the user with the tools of this agent",
        hide_denied: bool = True,
        inject_context: bool = True,
        tool_errors: Literal["message", "raise"] = "message",
        interrupt: bool = True,
        subagents: Literal["governed", "any"] = "governed",
    ) -> None:
        """Govern with ``runtime``.

        Args:
            actions: tool names to action ids, before what the Atlas maps.
            session: ``thread`` keeps one session per thread id, over invocations, interrupts and failures, and
                ``runtime.close()`` detaches it; ``run``, and a call without a thread id, makes one per invocation.
                Inside ``with runtime.session(...)`` that session governs instead.
            agent_id: how policies and the trace name an agent that ``create_agent`` was given no ``name`` for.
            goal: the operator's sentence, recorded in the trace. Never a user's message.
            hide_denied: tools that no call could be allowed to use are not shown to the model.
            inject_context: the Atlas's documents are added to the system prompt.
            interrupt: where the runtime has no approver and the agent a checkpointer, a call that needs a person
                stops the run, which goes on with ``Command(resume=...)``; else the model is told to wait.
            subagents: what a model calls inside one of this agent's tools has to be governed as well, or it does not
                run, and the trace notes an ``ungoverned_tool``; ``any`` lets it.
            tool_errors: whether a tool's own exception comes back to the model as an error message, or is raised.

        Raises:
            RuntimeError: when this version of LangChain lacks a hook that the gate stands on.
            ValueError: when ``session`` is neither ``thread`` nor ``run``.
        """
        super().__init__()
        if session not in ("thread", "run"):
            raise ValueError(f"session must be 'thread' or 'run', not {session!r}")
        require_langchain({AgentMiddleware: _HOOKS, ToolCallRequest: ("override",)})
        self._runtime = runtime
        self._point = EnforcementPoint(runtime, FRAMEWORK, actions=actions, agent_id=agent_id, goal=goal)
        self._mode = session
        self._hide_denied = hide_denied
        self._inject_context = inject_context
        self._tool_errors = tool_errors
        self._lets_others = subagents == "any"
        self._approver = AskByInterrupt(one_call_per_task=True) if interrupt else None
        self._runs: dict[str, str] = {}

    def before_agent(self, state: CRAState, runtime: Any) -> dict[str, Any] | None:
        config = get_config()
        thread = thread_of(config)
        keep = self._mode == "thread" and thread is not None
        run = thread if keep and thread is not None else uuid4().hex
        kept = state.get(SESSION_KEY) if keep else None
        session = self._point.session(run=run, agent=agent_of(config), kept=kept, keep=keep)
        if not keep and not self._is_inside():
            self._runs[session.id] = run
            while len(self._runs) > MAX_RUNS:  # nobody tells of the end of a run that failed
                self._runs.pop(next(iter(self._runs)), None)
        return {SESSION_KEY: session.id}

    async def abefore_agent(self, state: CRAState, runtime: Any) -> dict[str, Any] | None:
        return self.before_agent(state, runtime)

    def after_agent(self, state: CRAState, runtime: Any) -> dict[str, Any] | None:
        run = None if self._is_inside() else self._runs.pop(state.get(SESSION_KEY, ""), None)
        if run is not None:
            self._point.end(run, can_wait=False)
        return None

    async def aafter_agent(self, state: CRAState, runtime: Any) -> dict[str, Any] | None:
        return self.after_agent(state, runtime)

    def wrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], ToolMessage | Command[Any]]
    ) -> ToolMessage | Command[Any]:
        gate = _Gate(self, request)
        try:
            return gate.after(handler(gate.request) if gate.may_run() else gate.missing())
        except GraphBubbleUp:
            raise
        except Exception as error:  # noqa: BLE001  whatever a neighbour or the tool raises ends this call only
            return gate.failed(error)

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[ToolMessage | Command[Any]]]
    ) -> ToolMessage | Command[Any]:
        gate = _Gate(self, request)
        try:
            return gate.after(await handler(gate.request) if gate.may_run() else gate.missing())
        except GraphBubbleUp:
            raise
        except Exception as error:  # noqa: BLE001  as above
            return gate.failed(error)

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> ModelResponse[Any]:
        return handler(self._prompt(request))

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any]:
        return await handler(self._prompt(request))

    @property
    def point(self) -> EnforcementPoint:
        """Where this agent's tools meet the runtime."""
        return self._point

    def find_session(self, state: Any, config: Mapping[str, Any]) -> Session:
        """The session that governs a call made in ``state``.

        Raises:
            CallRefused: when there is none, or it is over.
        """
        session_id = state.get(SESSION_KEY) if isinstance(state, Mapping) else None
        if not isinstance(session_id, str):  # a run that began before this agent was governed
            return self._point.session(run=thread_of(config), agent=agent_of(config))
        try:
            return self._runtime.find(session_id) or self._runtime.resume(session_id, keep=session_id not in self._runs)
        except (ChainBroken, SinkError) as error:
            raise NoActiveSession(f"the session of this thread cannot go on: {error}") from error

    @property
    def approver(self) -> AskByInterrupt | None:
        """How a person is asked when the runtime has no approver."""
        return self._approver

    @property
    def lets_others(self) -> bool:
        """Whether a model inside a tool may call what nothing governs."""
        return self._lets_others

    @property
    def returns_tool_errors(self) -> bool:
        """Whether a tool's own exception comes back as a message."""
        return self._tool_errors == "message"

    def _is_inside(self) -> bool:
        """Whether this agent runs in a session of somebody else's: an explicit one, or that of a tool it is run by."""
        current = current_session()
        return current is not None and self._runtime.find(current.id) is current

    def _prompt(self, request: ModelRequest[Any]) -> ModelRequest[Any]:
        session = self.find_session(request.state, get_config())
        if self._hide_denied:
            shown = [
                tool
                for tool in request.tools
                if not isinstance(tool, BaseTool) or described(self._point, _inner(tool)).is_shown(session)
            ]
            if len(shown) != len(request.tools):
                request = request.override(tools=shown)
        text = session.context_text if self._inject_context else ""
        if text:
            request = request.override(system_message=_with_context(request.system_message, text))
        return request


class _Gate:
    """One passage through the hook: puts the governed tool in place, and judges what came back."""

    def __init__(self, middleware: CRAMiddleware, request: ToolCallRequest) -> None:
        self._middleware = middleware
        self._call = request.tool_call
        self._tool = None if request.tool is None else _inner(request.tool)
        self._state = request.state
        self._config = getattr(request.runtime, "config", None) or {}
        self._governed: GovernedTool | None = None
        self.request = request
        if self._tool is not None:
            self._governed = GovernedTool(
                self._tool, middleware.point, self._session, middleware.approver, middleware.lets_others
            )
            self.request = request.override(tool=self._governed)

    def may_run(self) -> bool:
        return self._governed is not None

    def missing(self) -> ToolMessage:
        """The model named a tool that is not there: decided and recorded like any other."""

        def no_tool() -> ToolMessage:
            raise LookupError(f"there is no tool named {self._call['name']!r}")

        return self._asked().run(no_tool)

    def after(self, result: ToolMessage | Command[Any]) -> ToolMessage | Command[Any]:
        """What the model sees: the result, when it came through a decision."""
        if self._governed is None or self._governed.decided:
            kept: ToolMessage | Command[Any] = _keep_session(result)
            return kept
        if isinstance(result, ToolMessage) and result.status == "error":
            self._asked().reject("the framework refused the arguments before the tool was reached")
            return result
        name = self._call["name"]
        self._session().note(UNGOVERNED, f"a neighbour of CRAMiddleware ran something in place of {name[:200]}")
        return self._message(
            f"{name} was replaced by another middleware and its result is withheld. Tell the operator."
        )

    def failed(self, error: Exception) -> ToolMessage:
        """A refusal or a failure, as a message; a tool's own exception is raised where that was asked for."""
        if isinstance(error, CallRefused):
            return self._message(str(error))
        if self._governed is not None and not self._governed.decided:
            reason = f"the arguments could not be parsed ({type(error).__name__})"
            try:
                return self._message(str(self._asked().reject(reason)))
            except CallRefused as refusal:  # it cannot be recorded
                return self._message(str(refusal))
        if not self._middleware.returns_tool_errors:
            raise error
        return self._message(f"{self._call['name']} failed: {type(error).__name__}: {str(error)[:500]}")

    def _session(self) -> Session:
        return self._middleware.find_session(self._state, self._config)

    def _asked(self) -> GovernedCall:
        """The call as the model made it."""
        point, name = self._middleware.point, self._call["name"]
        tool = point.tool(name) if self._tool is None else described(point, self._tool)
        return tool.call(
            self._call["args"], call_id=self._call["id"], agent=agent_of(self._config), session=self._session()
        )

    def _message(self, text: str) -> ToolMessage:
        return ToolMessage(text, name=self._call["name"], tool_call_id=self._call["id"] or "", status="error")


def _keep_session(result: Any) -> Any:
    """A tool's own update of the agent's state may not choose which session governs the next call."""
    update = result.update if isinstance(result, Command) else None
    if isinstance(update, Mapping) and SESSION_KEY in update:
        return replace(result, update={key: value for key, value in update.items() if key != SESSION_KEY})
    if isinstance(update, list):
        return replace(result, update=[pair for pair in update if pair[0] != SESSION_KEY])
    if isinstance(result, list):
        return [_keep_session(item) for item in result]
    return result


def _with_context(message: SystemMessage | None, text: str) -> SystemMessage:
    if message is None:
        return SystemMessage(text)
    if isinstance(message.content, str):
        return message.model_copy(update={"content": f"{message.content}\n\n{text}"})
    return message.model_copy(update={"content": [*message.content, {"type": "text", "text": text}]})


def _inner(tool: BaseTool) -> BaseTool:
    return tool.inner if isinstance(tool, GovernedTool) else tool
