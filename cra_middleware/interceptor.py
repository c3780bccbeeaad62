"""The policy enforcement point: drivers that run a tool as one flow tells them to.

A flow is a generator that does no I/O of its own. It *yields* what it needs (a person's answer, the tool's run)
and is *sent* what came of it; when it raises ``CallRefused``, the tool has not run. Functions, coroutines,
generators and async generators each have a driver here; the flow they drive is the same.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import AbstractContextManager, nullcontext
from contextvars import copy_context
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import NamedTuple, ParamSpec, TypeVar

from cra_middleware.approvals.approval import Answer, Approver, Pending, as_answer

T = TypeVar("T")
P = ParamSpec("P")


class AskApproval(NamedTuple):
    """Wanted: a person's answer."""

    pending: Pending
    approver: Approver


class Wait(NamedTuple):
    """Wanted: do ``work``, which waits for a disk; never on an event loop. Sent ``Returned`` or ``Raised``."""

    work: Callable[[], None]


class RunTool(NamedTuple):
    """Wanted: run the tool now, inside ``scope`` when there is one. A stream enters it for each of its steps."""

    scope: Callable[[], AbstractContextManager[object]] | None


class Suspended(NamedTuple):
    """The framework stops the run until a person has answered; ``error`` is how it does that."""

    error: BaseException


class Unanswered(NamedTuple):
    """The approver failed: no answer at all."""

    reason: str


class Returned(NamedTuple):
    """The tool returned."""

    value: object
    item_count: int | None = None
    """How many items a stream gave."""


class Raised(NamedTuple):
    """The tool raised."""

    error: BaseException


class Interrupted(NamedTuple):
    """The approver was interrupted by something that is no answer (Ctrl-C, a cancelled task)."""

    error: BaseException


class Closed(NamedTuple):
    """The consumer of a stream went away; perhaps in a finaliser, in the middle of anything.

    No lock may be taken there, and no context variable set: up to Python 3.11 the collector may run inside
    ``ContextVar.set`` itself, and what it then sets is lost or worse.
    """

    item_count: int


Need = AskApproval | Wait | RunTool
Reply = Answer | Interrupted | Suspended | Unanswered | Returned | Raised | Closed | None
Flow = Generator[Need, Reply, Returned | Raised]


def run(flow: Flow, tool: Callable[[], T]) -> T:
    """Run a function under ``flow``; its value, or its very own exception, comes out."""
    reply: Reply = None
    while True:
        try:
            need = flow.send(reply)
        except StopIteration as stop:
            return _unwrap(stop.value)
        if isinstance(need, RunTool):
            try:
                if need.scope is None:
                    reply = Returned(_finished(tool()))
                else:
                    with need.scope():
                        reply = Returned(_finished(tool()))
            except BaseException as error:  # noqa: BLE001  recorded by the flow, then raised again as it is
                reply = Raised(error)
        else:
            reply = _supply(need)


async def arun(flow: Flow, tool: Callable[[], Awaitable[T]]) -> T:
    """Run a coroutine function under ``flow``."""
    reply: Reply = None
    while True:
        try:
            need = flow.send(reply)
        except StopIteration as stop:
            return _unwrap(stop.value)
        if isinstance(need, RunTool):
            try:
                with _scope(need):
                    value = await tool()
                    reply = Returned(value if isinstance(value, AsyncGeneratorType) else _finished(value))
            except GeneratorExit:  # dropped unfinished, perhaps by a finaliser: see Closed
                flow.close()
                raise
            except BaseException as error:  # noqa: BLE001  CancelledError too: recorded, then raised again
                reply = Raised(error)
        else:
            reply = await _asupply(need)


def run_generator(flow: Flow, tool: Callable[[], Generator[object, object, T]]) -> Generator[object, object, T]:
    """Run a generator under ``flow``, to its end; each step inside the flow's scope."""
    need = authorise(flow)
    count, outcome = 0, _first_outcome()
    stream: Generator[object, object, T] | None = None
    try:
        with _scope(need):
            stream = tool()
            item = next(stream)
        while True:
            count += 1
            try:
                sent = yield item
            except GeneratorExit:
                stream.close()  # not in the scope: see Closed
                outcome = Closed(count)
                raise
            except BaseException as error:  # noqa: BLE001  thrown in by the consumer: the tool decides about it
                with _scope(need):
                    item = stream.throw(error)
            else:
                with _scope(need):
                    item = stream.send(sent)
    except StopIteration as stop:
        outcome = Returned(stop.value, count)
    except GeneratorExit as error:
        if not isinstance(outcome, Closed):
            outcome = Raised(error)
        raise
    except BaseException as error:  # noqa: BLE001  recorded, then raised again
        outcome = Raised(error)
    finally:
        final = finish(flow, outcome)
    return _unwrap(final)


AsyncStream = AsyncGenerator[object, object]


def async_generator_function(
    start: Callable[P, tuple[Flow, Callable[[], AsyncStream]]],
) -> Callable[P, AsyncStream]:
    """An async generator function that runs what ``start`` names, to its end, under the flow that ``start`` gives.

    ``start`` is called when the first item is asked for. It is a function and not a generator that comes out,
    because an async generator cannot delegate to another one.
    """

    async def stream_items(*args: P.args, **kwargs: P.kwargs) -> AsyncStream:
        flow, tool = start(*args, **kwargs)
        need = await aauthorise(flow)
        count, outcome = 0, _first_outcome()
        try:
            with _scope(need):
                stream = tool()
                item = await anext(stream)
            while True:
                count += 1
                try:
                    sent = yield item
                except GeneratorExit:
                    await stream.aclose()  # not in the scope: see Closed
                    outcome = Closed(count)
                    raise
                except BaseException as error:  # noqa: BLE001  thrown in by the consumer: the tool decides about it
                    with _scope(need):
                        item = await stream.athrow(error)
                else:
                    with _scope(need):
                        item = await stream.asend(sent)
        except StopAsyncIteration:
            outcome = Returned(None, count)
        except GeneratorExit as error:
            if not isinstance(outcome, Closed):
                outcome = Raised(error)
            raise
        except BaseException as error:  # noqa: BLE001  recorded, then raised again
            outcome = Raised(error)
        finally:
            final = finish(flow, outcome)
        _unwrap(final)

    return stream_items


def _finished(value: T) -> T:
    """``value``, unless it is a body that has not run yet: recording that as executed would be a lie.

    Raises:
        TypeError: when it is a coroutine or a generator.
    """
    if isinstance(value, (CoroutineType, GeneratorType, AsyncGeneratorType)):
        kind = type(value).__name__.replace("_", " ")
        if not isinstance(value, AsyncGeneratorType):
            value.close()
        raise TypeError(f"the tool returned a {kind} that has not run yet: use acall(), or @governed on its function")
    return value


def _first_outcome() -> Returned | Raised | Closed:
    return Raised(RuntimeError("the stream was never started"))


def authorise(flow: Flow) -> RunTool:
    """Drive a flow up to the tool's run."""
    need = flow.send(None)
    while not isinstance(need, RunTool):
        need = flow.send(_supply(need))
    return need


async def aauthorise(flow: Flow) -> RunTool:
    need = flow.send(None)
    while not isinstance(need, RunTool):
        need = flow.send(await _asupply(need))
    return need


def finish(flow: Flow, outcome: Returned | Raised | Closed) -> Returned | Raised:
    try:
        flow.send(outcome)
    except StopIteration as stop:
        result: Returned | Raised = stop.value
        return result
    raise AssertionError("a flow wants nothing more once the tool has run")


def _unwrap(outcome: Returned | Raised) -> T:  # type: ignore[type-var]
    if isinstance(outcome, Raised):
        raise outcome.error
    return outcome.value  # type: ignore[return-value]


def _scope(need: RunTool) -> AbstractContextManager[object]:
    return nullcontext() if need.scope is None else need.scope()


def finish_waiting(waiting: Generator[Wait, object, T]) -> T:
    """Drive what only ever waits, here and now; its value, or its exception, comes out."""
    reply: object = None
    while True:
        try:
            reply = _waited(waiting.send(reply))
        except StopIteration as stop:
            value: T = stop.value
            return value


def _supply(need: AskApproval | Wait) -> Reply:
    return _waited(need) if isinstance(need, Wait) else _ask(need)


async def _asupply(need: AskApproval | Wait) -> Reply:
    if not isinstance(need, Wait):
        return await _aask(need)
    # A bare future: the end of asyncio.run cancels every task, and this must be over before the call's end is told.
    work = asyncio.get_running_loop().run_in_executor(None, copy_context().run, _waited, need)
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError as error:
            cancelled = error
    return work.result() if cancelled is None else Raised(cancelled)


def _waited(need: Wait) -> Returned | Raised:
    try:
        need.work()
    except BaseException as error:  # noqa: BLE001  the flow decides what it means, and raises what it does not know
        return Raised(error)
    return Returned(None)


def _ask(need: AskApproval) -> Reply:
    """Ask; an approver that fails has not approved."""
    try:
        reply = need.approver(need.pending)
        if inspect.isawaitable(reply):
            reply = _wait_in_a_thread(reply)
    except BaseException as error:  # noqa: BLE001  an approver is foreign code: whatever it raises is no yes
        return _not_answered(need, error)
    return _understood(reply)


async def _aask(need: AskApproval) -> Reply:
    """As ``_ask``. A sync approver may wait for a person, so it waits in a thread and not on the loop.

    One that suspends the framework's run must be called where the run is, and does not wait.
    """
    try:
        if _is_async(need.approver) or _suspends(need.approver):
            reply = need.approver(need.pending)
        else:
            reply = await asyncio.to_thread(need.approver, need.pending)
        if inspect.isawaitable(reply):
            reply = await reply
    except BaseException as error:  # noqa: BLE001  as above; a cancelled task too: recorded, then raised again
        return _not_answered(need, error)
    return _understood(reply)


def _not_answered(need: AskApproval, error: BaseException) -> Reply:
    if isinstance(error, _suspends(need.approver)):
        return Suspended(error)
    if isinstance(error, Exception):
        return Unanswered(f"the approver failed with {type(error).__name__}")
    return Interrupted(error)


def _suspends(approver: Approver) -> tuple[type[BaseException], ...]:
    """The exceptions by which an approver stops its framework's run, to be asked again when the run goes on."""
    kinds: tuple[type[BaseException], ...] = getattr(approver, "suspends", ())
    return kinds


def _understood(reply: object) -> Answer | Unanswered:
    try:
        return as_answer(reply)
    except Exception as error:  # noqa: BLE001  an answer whose words cannot be read is no yes
        return Unanswered(f"the answer could not be read ({type(error).__name__})")


def _is_async(approver: Approver) -> bool:
    return inspect.iscoroutinefunction(approver) or inspect.iscoroutinefunction(type(approver).__call__)


def _wait_in_a_thread(reply: Awaitable[T]) -> T:
    """Await an async approver from sync code, which may itself be running on a loop that must not be re-entered."""
    result: list[T] = []
    failure: list[BaseException] = []

    async def wait() -> T:
        return await reply

    def work() -> None:
        try:
            result.append(asyncio.run(wait()))
        except BaseException as error:  # noqa: BLE001  carried over to the caller's thread
            failure.append(error)

    thread = threading.Thread(target=copy_context().run, args=(work,), name="cra-approver")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]
