"""A governed run of one agent, wherever it is decided: how its calls are made, and how it is entered and left."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from contextvars import Token
from inspect import isawaitable
from types import TracebackType
from typing import Literal, ParamSpec, Self, TypeVar, cast

from cra_middleware.approvals.approval import Approver
from cra_middleware.calls.running import CURRENT
from cra_middleware.carp.call import Target, ToolCall
from cra_middleware.carp.messages import ContextBlockMessage, Request, Resolution
from cra_middleware.carp.policy import Facts
from cra_middleware.carp.tool_map import ToolMap
from cra_middleware.errors import CallRefused
from cra_middleware.interceptor import Flow, arun, run
from cra_middleware.open_call import OpenCall
from cra_middleware.sessions.life import Life
from cra_middleware.signatures import bind_arguments, describe
from cra_middleware.trace.chain import Verdict
from cra_middleware.trace.event import Event

T = TypeVar("T")
P = ParamSpec("P")
EndReason = Literal["completed", "timeout", "error", "cancelled"]

OFFLINE_OF = "offline_of"
"""The metadata of a session that was recorded while a server was away: the session of the server's it stood in for."""


def current_session() -> Session | None:
    """The session of this thread or task, if there is one."""
    session = CURRENT.get()
    return session if isinstance(session, Session) else None


class Session(ABC):
    """One agent's governed run. Many threads and tasks may share it; its chain stays one chain."""

    def __init__(self) -> None:
        self._tokens: list[Token[object]] = []
        self._life: Life[Self] = Life()

    @property
    @abstractmethod
    def id(self) -> str:
        """The session's id, which also names its trace."""

    @property
    @abstractmethod
    def facts(self) -> Facts:
        """What decisions depend on."""

    @property
    @abstractmethod
    def behalf(self) -> str | None:
        """On whose behalf it acts, where that was told."""

    @property
    def is_open(self) -> bool:
        """Whether calls are accepted, as far as is known in this process."""
        return self._life.is_open

    @property
    def is_closed(self) -> bool:
        """Whether it was let go of, and no tool of it runs any more."""
        return self._life.is_closed

    @property
    @abstractmethod
    def is_busy(self) -> bool:
        """Whether a tool is running, or a stream is open."""

    @property
    def is_waiting(self) -> bool:
        """Whether a person is being asked about one of its calls, or has said yes to one that has not run yet.

        A call of an open session below it is one of its calls.
        """
        return self._is_asking() or any(child.is_waiting for child in self._life.below)

    @abstractmethod
    def _is_asking(self) -> bool:
        """As ``is_waiting``, about its own calls."""

    @property
    @abstractmethod
    def is_observing(self) -> bool:
        """Whether nothing is enforced, only recorded."""

    @property
    @abstractmethod
    def resolution(self) -> Resolution:
        """What the agent may do now; renewed by itself when it has expired."""

    @property
    @abstractmethod
    def events(self) -> tuple[Event, ...]:
        """Every event so far, as they are kept."""

    @abstractmethod
    def verify(self) -> Verdict:
        """Verify this session's chain, from the bytes that are kept."""

    @property
    @abstractmethod
    def _tools(self) -> ToolMap:
        """What tools stand for now."""

    def freeze(self, action_id: str, tool_name: str, arguments: Mapping[str, object]) -> ToolCall:
        """A call of an action, or of a tool that an Atlas maps to one, before it is decided.

        Raises:
            TypeError: when a name is no string, or two arguments would have one name.
        """
        return self._tools.freeze(action_id, tool_name, arguments)

    @abstractmethod
    def flow(
        self, call: ToolCall, body: object = None, *, stream: bool = False, approver: Approver | None = None
    ) -> Flow:
        """The bare path of one call, for the drivers of ``interceptor``.

        ``body`` is the ``@governed`` function inside it, if any; ``approver`` is the framework's way to ask a
        person, for when the runtime has none.
        """

    @abstractmethod
    def would_wait(self, call: ToolCall) -> bool:
        """Whether ``call`` would be left for a person now. Nothing is recorded, and no limit is used up."""

    async def awould_wait(self, call: ToolCall) -> bool:
        """As ``would_wait``, on an event loop: a server, or a store of questions, may have to be asked."""
        return await asyncio.to_thread(self.would_wait, call)

    @abstractmethod
    def reject(self, call: ToolCall, reason: str) -> CallRefused:
        """Record a call whose arguments the framework itself refused, and return the refusal.

        Raises:
            CallRefused: when it cannot be recorded, or the session is over.
        """

    def target_for(
        self,
        tool_name: str,
        framework: str,
        *,
        actions: Mapping[str, str] | None = None,
        declared: str | None = None,
        server: str | None = None,
    ) -> Target:
        """What a tool stands for, as ``Runtime.target_for`` says."""
        return self._tools.target_for(tool_name, framework, declared, actions, server)

    def distrust(self, source: str, tool_name: str, described: Callable[[], str]) -> str | None:
        """Why a tool is not one that was looked at, as ``atlas.lock`` says; ``described`` gives its digest."""
        return self._tools.distrust(source, tool_name, described)

    @abstractmethod
    def can_reach(self, action_id: str) -> bool:
        """Whether some call of the action could be allowed, now or in an hour, with or without a person's yes."""

    @abstractmethod
    def note(self, error_code: str, message: str, **details: object) -> None:
        """Record ``error.occurred``: something about the session itself, not about a call.

        Raises:
            SinkError: when it cannot be kept.
        """

    @abstractmethod
    def resolve(self, request: Request | None = None) -> Resolution:
        """Answer ``request`` (or a plain one of our own) and make it the resolution that calls are made under.

        Raises:
            SinkError: when it cannot be recorded; the earlier resolution stays.
        """

    @abstractmethod
    def flush(self) -> None:
        """Wait until every event so far is durable.

        Raises:
            SinkError: when the storage says that it is not.
        """

    @abstractmethod
    def end(self, reason: EndReason = "completed", error: str | None = None) -> None:
        """Seal the chain. Calls that are running still record their outcome first; a second end just goes on.

        Sessions opened below this one end before it.
        """

    @abstractmethod
    def detach(self) -> None:
        """Let go of the session without sealing it, so that ``runtime.resume`` can go on with it, here or elsewhere."""

    def adopt(self, child: Self) -> bool:
        """Make ``child``, a session of the same runtime's, end before this one does, and wait for a person with it.

        False when this one is over already: ``child`` is then nobody's.
        """
        return self._life.adopt(child)

    @property
    def context(self) -> tuple[ContextBlockMessage, ...]:
        """The documents that the Atlas wants the agent to have."""
        return self.resolution.context_blocks

    @property
    def context_text(self) -> str:
        """The same documents as one text, ready for a system prompt."""
        return "\n\n".join(block.content.strip() for block in self.context)

    def call(self, action_id: str, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``fn(*args, **kwargs)`` as ``action_id``, or refuse to.

        A name that no Atlas declares may be that of a tool which one maps (``adapters.any.tools``).

        Raises:
            CallRefused: when the function did not run; which one says why.
            TypeError: when the arguments do not fit the function's signature.
        """
        call = self.freeze(action_id, describe(fn), bind_arguments(fn, args, kwargs))
        return self.run(call, lambda: fn(*args, **kwargs))

    async def acall(self, action_id: str, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """As ``call``, for a coroutine function; a plain one runs on the loop, and what it did is recorded as done."""
        call = self.freeze(action_id, describe(fn), bind_arguments(fn, args, kwargs))

        async def body() -> T:
            given: object = fn(*args, **kwargs)
            value = await given if isawaitable(given) else given  # it has run by then: no failure may be told of it
            return cast("T", value)

        return await self.arun(call, body)

    def run(self, call: ToolCall, tool: Callable[[], T], body: object = None, approver: Approver | None = None) -> T:
        """Run ``tool`` for a call that an adapter froze.

        ``body`` is the ``@governed`` function inside it, if any; ``approver`` is the framework's way to ask a
        person, for when the runtime has none.
        """
        return run(self.flow(call, body, approver=approver), tool)

    async def arun(
        self, call: ToolCall, tool: Callable[[], Awaitable[T]], body: object = None, approver: Approver | None = None
    ) -> T:
        """As ``run``, for a coroutine function."""
        return await arun(self.flow(call, body, approver=approver), tool)

    def begin(self, call: ToolCall, approver: Approver | None = None) -> OpenCall:
        """Authorise a call whose start and end a framework tells of in two places.

        Raises:
            CallRefused: when the tool must not run.
        """
        return OpenCall.begin(self.flow(call, approver=approver))

    async def abegin(self, call: ToolCall, approver: Approver | None = None) -> OpenCall:
        """As ``begin``, on an event loop."""
        return await OpenCall.abegin(self.flow(call, approver=approver))

    def __enter__(self) -> Session:
        self._tokens.append(CURRENT.set(self))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()
        self._end_after(error)

    async def __aenter__(self) -> Session:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()
        await asyncio.shield(asyncio.to_thread(self._end_after, error))  # an end waits for the disk

    def _leave(self) -> None:
        with suppress(ValueError):  # left in another context than it was entered in: nothing to put back there
            CURRENT.reset(self._tokens.pop())

    def _end_after(self, error: BaseException | None) -> None:
        if error is None or isinstance(error, GeneratorExit):
            self.end("completed")
        elif isinstance(error, (asyncio.CancelledError, KeyboardInterrupt, SystemExit)):
            self.end("cancelled", type(error).__name__)
        else:
            self.end("error", type(error).__name__)
