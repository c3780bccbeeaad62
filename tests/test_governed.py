"""``@governed`` and the drivers: every kind of function, sync and async, decided once and recorded to its end."""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from cra_middleware import (
    ActionDenied,
    Atlas,
    CallRefused,
    NoActiveSession,
    Runtime,
    SessionEnded,
    current_session,
    governed,
)
from cra_middleware.errors import InvalidParameters
from cra_middleware.sessions.session import Session
from tests.conftest import manifest, policies

RAN: list[Any] = []


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    RAN.clear()


@pytest.fixture
def session(runtime: Runtime) -> Iterator[Session]:
    with runtime.session(agent_id="bot", goal="g") as opened:
        yield opened


@governed("ticket.get")
def get(ticket_id: str, verbose: bool = False) -> str:
    """Reads a ticket."""
    RAN.append((ticket_id, verbose))
    return f"ticket {ticket_id}"


@governed("ticket.delete")
def delete(ticket_id: str) -> None:
    RAN.append(ticket_id)


@governed("ticket.get")
async def aget(ticket_id: str) -> str:
    await asyncio.sleep(0)
    RAN.append(ticket_id)
    return f"ticket {ticket_id}"


@governed("ticket.delete")
async def adelete(ticket_id: str) -> None:
    RAN.append(ticket_id)


@governed("ticket.list")
def listing(count: int, fail: bool = False) -> Iterator[int]:
    for number in range(count):
        got = yield number
        RAN.append(got)
    if fail:
        raise OSError("disk")


@governed("ticket.list")
async def alisting(count: int, fail: bool = False) -> AsyncIterator[int]:
    for number in range(count):
        await asyncio.sleep(0)
        yield number
    if fail:
        raise OSError("disk")


@governed("ticket.delete")
def purge() -> Iterator[int]:
    RAN.append("purged")
    yield 1


@governed("ticket.delete")
async def apurge() -> AsyncIterator[int]:
    RAN.append("purged")
    yield 1


class Desk:
    @governed("ticket.get")
    def method(self, ticket_id: str) -> str:
        return f"{type(self).__name__} {ticket_id}"

    @classmethod
    @governed("ticket.get")
    def above(cls, ticket_id: str) -> str:
        return f"{cls.__name__} {ticket_id}"

    @governed("ticket.get")
    @classmethod
    def below(cls, ticket_id: str) -> str:
        return f"{cls.__name__} {ticket_id}"

    @governed("ticket.get")
    @staticmethod
    def static(ticket_id: str) -> str:
        return f"static {ticket_id}"

    @staticmethod
    @governed("ticket.get")
    def static_above(ticket_id: str) -> str:
        return f"static {ticket_id}"

    @governed("ticket.get")
    def defaulted(self, ticket_id: str, verbose: bool = False) -> str:
        return f"{ticket_id} {verbose}"

    @governed("ticket.get")
    async def coroutine(self, ticket_id: str) -> str:
        return f"async {ticket_id}"


def kinds(session: Session) -> list[str]:
    """The events of calls, without the resolution in front."""
    return [
        event.event_type.removeprefix("action.") for event in session.events if event.event_type.startswith("action.")
    ]


def last(session: Session) -> dict[str, Any]:
    return dict(session.events[-1].payload)


def parameters_hash(session: Session) -> str:
    return [str(e.payload["parameters_hash"]) for e in session.events if e.event_type == "action.requested"][-1]


def test_allowed_and_denied(session: Session) -> None:
    """An allowed function runs once and its value comes out; a denied one does not run."""
    assert get("T-1") == "ticket T-1"
    with pytest.raises(ActionDenied, match="Never") as denial:
        delete("T-1")
    assert RAN == [("T-1", False)]
    assert (denial.value.code, denial.value.policy_id) == ("policy_denied", "no-delete")
    assert kinds(session) == ["requested", "approved", "executed", "requested", "denied"]


def test_async_allowed_and_denied(session: Session) -> None:
    """The async driver is the same flow."""

    async def main() -> None:
        assert await aget("T-1") == "ticket T-1"
        with pytest.raises(ActionDenied):
            await adelete("T-1")

    asyncio.run(main())
    assert RAN == ["T-1"]
    assert kinds(session) == ["requested", "approved", "executed", "requested", "denied"]


def test_metadata_stays() -> None:
    """Name, docstring, signature and kind of function are kept."""
    assert (get.__name__, get.__doc__) == ("get", "Reads a ticket.")
    assert list(inspect.signature(get).parameters) == ["ticket_id", "verbose"]
    assert inspect.iscoroutinefunction(aget)
    assert inspect.isgeneratorfunction(listing)
    assert inspect.isasyncgenfunction(alisting)


def test_every_kind_of_method(session: Session) -> None:
    """Instances and classes are not arguments; the digest is that of the arguments alone."""
    desk = Desk()
    hashes = set()
    for run, expected in (
        (desk.method, "Desk T"),
        (Desk.above, "Desk T"),
        (desk.above, "Desk T"),
        (Desk.below, "Desk T"),
        (Desk.static, "static T"),
        (desk.static, "static T"),
        (Desk.static_above, "static T"),
    ):
        assert run("T") == run(ticket_id="T") == expected
        hashes.add(parameters_hash(session))
    assert asyncio.run(desk.coroutine("T")) == "async T"
    hashes.add(parameters_hash(session))
    assert len(hashes) == 1


def test_the_instance_is_never_an_argument(session: Session) -> None:
    """A method called with a default left out binds the slow way, and its instance is no argument there either."""
    assert Desk().defaulted("T") == "T False"
    left_out = parameters_hash(session)
    get("T", verbose=False)
    assert left_out == parameters_hash(session)


def test_a_claim_ends_with_its_run(session: Session) -> None:
    """A context that was copied while an adapter ran a body cannot run it again without a decision."""
    import contextvars

    from cra_middleware import ToolCall

    contexts: list[contextvars.Context] = []
    call = ToolCall.freeze("ticket.get", "adapter", {"ticket_id": "T", "verbose": False})
    session.run(call, lambda: contexts.append(contextvars.copy_context()), body=get)
    assert contexts[0].run(get, "T") == "ticket T"
    assert kinds(session) == ["requested", "approved", "executed"] * 2


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [(("T", False), {}), (("T",), {}), ((), {"ticket_id": "T"}), ((), {"verbose": False, "ticket_id": "T"})],
)
def test_one_digest_however_called(session: Session, args: Any, kwargs: Any) -> None:
    """Positions, keywords and defaults name the same arguments."""
    get("T", verbose=False)
    first = parameters_hash(session)
    get(*args, **kwargs)
    assert parameters_hash(session) == first


def test_star_arguments(session: Session) -> None:
    """``*args`` is a list under its name, ``**kwargs`` is flattened; an ambiguous name is refused."""
    seen = []

    def tool(first: int, /, *rest: int, **options: int) -> None:
        seen.append((first, rest, options))

    session.call("ticket.get", tool, 1, 2, 3, x=4)

    def same(first: int, rest: list[int], x: int) -> None:
        seen.append(())

    session.call("ticket.get", same, 1, [2, 3], 4)
    hashes = [e.payload["parameters_hash"] for e in session.events if e.event_type == "action.requested"]
    assert hashes[0] == hashes[1]
    with pytest.raises(TypeError, match="both by position and by keyword"):
        session.call("ticket.get", tool, 1, first=2)
    assert len(seen) == 2


def test_wrong_arguments_are_the_callers_error(session: Session) -> None:
    """A call that does not fit the signature raises TypeError, runs nothing and records nothing."""
    with pytest.raises(TypeError):
        get(nothing=1)  # type: ignore[call-arg]
    assert (RAN, kinds(session)) == ([], [])


def test_the_same_exception_object(session: Session) -> None:
    """What the tool raises comes out as it is, sync and async, StopIteration included."""
    for error in (ValueError("secret"), StopIteration("secret"), KeyboardInterrupt(), SystemExit(3)):

        def tool(error: BaseException = error, /) -> None:
            raise error

        async def atool(error: BaseException = error, /) -> None:
            raise error

        with pytest.raises(type(error)) as caught:
            session.call("ticket.get", lambda: tool())
        assert caught.value is error
        if not isinstance(error, StopIteration):  # Python itself forbids that one in a coroutine
            with pytest.raises(type(error)) as caught:
                asyncio.run(session.acall("ticket.get", lambda: atool()))
            assert type(caught.value) is type(error)
    assert kinds(session).count("failed") == 7
    assert not [event for event in session.events if "secret" in str(event.payload)]


def test_cancelled_task_is_recorded(session: Session) -> None:
    """A task that is cancelled inside the tool is a failed call, and stays cancelled."""

    async def slow() -> None:
        await asyncio.sleep(60)

    async def main() -> None:
        task = asyncio.ensure_future(session.acall("ticket.get", slow))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert last(session)["error_code"] == "CancelledError"


def test_generator_watched_to_its_end(session: Session) -> None:
    """Items, sent values and the item count; the decision falls when the first item is asked for."""
    stream = listing(3)
    assert kinds(session) == []
    assert next(stream) == 0
    assert stream.send("a") == 1  # type: ignore[attr-defined]
    assert list(stream) == [2]
    assert RAN == ["a", None, None]
    assert last(session)["item_count"] == 3


def test_generator_that_fails(session: Session) -> None:
    """The items it gave came out, then its own exception; recorded as failed."""
    stream = listing(2, fail=True)
    assert [next(stream), next(stream)] == [0, 1]
    with pytest.raises(OSError, match="disk"):
        next(stream)
    assert last(session)["error_code"] == "OSError"


def test_generator_closed_early(session: Session) -> None:
    """A consumer that has enough is no error: executed with the items it took."""
    for number in listing(10):
        if number == 2:
            break
    gc.collect()
    assert kinds(session)[-1] == "executed"
    assert last(session)["item_count"] == 3


def test_generator_closed_with_an_error(session: Session) -> None:
    """An exception thrown in by the consumer, which the tool does not handle, is a failure."""
    stream = listing(10)
    next(stream)
    with pytest.raises(RuntimeError, match="enough"):
        stream.throw(RuntimeError("enough"))  # type: ignore[attr-defined]
    assert last(session)["error_code"] == "RuntimeError"


def test_generator_that_is_never_started(session: Session) -> None:
    """A stream nobody reads is no call."""
    listing(3)
    gc.collect()
    assert kinds(session) == []


def test_denied_streams_run_nothing(session: Session) -> None:
    """Denied generators raise at the first item, and their body never runs."""
    with pytest.raises(ActionDenied):
        next(purge())

    async def main() -> None:
        with pytest.raises(ActionDenied):
            await anext(apurge())

    asyncio.run(main())
    assert RAN == []
    assert kinds(session) == ["requested", "denied"] * 2


def test_async_generators(session: Session) -> None:
    """To the end, failing, and closed early."""

    async def main() -> None:
        assert [number async for number in alisting(3)] == [0, 1, 2]
        with pytest.raises(OSError, match="disk"):
            _ = [number async for number in alisting(1, fail=True)]
        stream = alisting(10)
        assert await anext(stream) == 0
        await stream.aclose()  # type: ignore[attr-defined]

    asyncio.run(main())
    assert kinds(session)[2::3] == ["executed", "failed", "executed"]
    counts = [event.payload.get("item_count") for event in session.events if event.event_type == "action.executed"]
    assert counts == [3, 1]


def test_streams_in_collected_cycles_do_not_deadlock(session: Session) -> None:
    """A stream that the garbage collector closes in the middle of a write takes no lock, and is still recorded."""

    class Node:
        pass

    thresholds = gc.get_threshold()
    gc.set_threshold(50, 2, 2)
    try:
        for _ in range(200):
            stream, node = listing(5), Node()
            next(stream)
            node.me, node.stream = node, stream  # type: ignore[attr-defined]
            del stream, node
            get("T")
    finally:
        gc.set_threshold(*thresholds)
    gc.collect()
    closed = [event for event in session.events if event.payload.get("item_count") == 1]
    assert len(closed) == 200
    assert session.verify().intact


def test_streams_open_at_the_end(runtime: Runtime) -> None:
    """The end of a session records an open stream as failed, seals, and the stream gives nothing more."""
    with runtime.session() as session:
        stream = listing(5)
        next(stream)
    verdict = session.verify()
    assert (verdict.intact, verdict.sealed) == (True, True)
    assert kinds(session)[-1] == "failed"
    with pytest.raises(SessionEnded):
        next(stream)


def test_streams_dropped_after_the_end(runtime: Runtime) -> None:
    """A stream that is dropped after its session tidies up in silence."""
    tidied: list[str] = []

    @governed("ticket.list")
    def stream() -> Iterator[int]:
        try:
            yield 1
            yield 2
        finally:
            tidied.append("sync")

    @governed("ticket.list")
    async def astream() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            tidied.append("async")

    async def main() -> None:
        with runtime.session() as session:
            items, aitems = stream(), astream()
            next(items)
            await anext(aitems)
        assert kinds(session).count("failed") == 2
        items.close()  # type: ignore[attr-defined]
        await aitems.aclose()  # type: ignore[attr-defined]
        assert session.verify().sealed

    asyncio.run(main())
    assert tidied == ["sync", "async"]


def test_a_stream_that_waits_for_a_person_at_the_end() -> None:
    """A session that ends while a stream's approval is pending stays verifiable, and the stream gives nothing."""

    asks = policies({"policy_id": "ask", "type": "require_approval", "actions": ["ticket.list"]})

    async def main() -> Session:
        asked, answered = asyncio.Event(), asyncio.Event()

        async def approver(pending: Any) -> bool:
            asked.set()
            await answered.wait()
            return True

        with Runtime(Atlas.from_dict(manifest(policies=asks)), approver=approver) as runtime:
            async with runtime.session() as session:
                task = asyncio.ensure_future(anext(alisting(3)))
                await asked.wait()
            answered.set()
            with pytest.raises(SessionEnded):
                await task
            return session

    session = asyncio.run(main())
    verdict = session.verify()
    assert (verdict.intact, verdict.sealed) == (True, True), verdict.error
    assert kinds(session) == ["requested", "denied"]


def test_bodies_that_have_not_run(session: Session) -> None:
    """A plain function that hands back a coroutine or a generator has run nothing: recorded as failed, and said."""

    def late() -> Any:
        return aget.__wrapped__("T")  # type: ignore[attr-defined]

    for tool in (late, lambda: (number for number in range(3))):
        with pytest.raises(TypeError, match="has not run yet"):
            session.call("ticket.get", tool)
    assert kinds(session) == ["requested", "approved", "failed"] * 2


def test_a_plain_function_that_is_awaited(session: Session) -> None:
    """It has run when that is seen: its value comes out, and no failure is recorded of what was done."""
    assert asyncio.run(session.acall("ticket.get", lambda: "value")) == "value"  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="has not run yet"):
        asyncio.run(session.acall("ticket.get", lambda: (number for number in range(3))))  # type: ignore[arg-type]
    assert kinds(session) == ["requested", "approved", "executed", "requested", "approved", "failed"]


def test_a_session_left_in_another_context(runtime: Runtime) -> None:
    """A session that is left in another context than it was entered in still ends."""

    def opens() -> Iterator[Session]:
        with runtime.session() as session:
            yield session

    import contextvars

    generator = opens()
    session = contextvars.copy_context().run(next, generator)
    assert list(generator) == []
    assert session.verify().sealed


def test_a_finaliser_that_calls_a_tool_in_the_middle_of_a_write(runtime: Runtime) -> None:
    """A thread never waits for itself: the call inside another one's writing is refused, and the chain is whole."""
    refused: list[str] = []
    with runtime.session() as session:
        append = session._log.append

        def slow(offset: int, data: bytes, events: int, /) -> None:
            session._log.append = append  # type: ignore[method-assign]
            try:
                session.call("ticket.get", lambda: RAN.append("inside"))
            except CallRefused as refusal:
                refused.append(refusal.code)
            append(offset, data, events)

        session._log.append = slow  # type: ignore[method-assign]
        assert get("T") == "ticket T"
    assert (refused, RAN) == (["audit_unavailable"], [("T", False)])
    assert session.verify().sealed


def test_hostile_errors_and_results() -> None:
    """An exception or result that cannot even be looked at costs no record, and comes out as it is."""

    class Meta(type):
        @property
        def __name__(cls) -> str:  # type: ignore[override]
            raise SystemExit("no name")

    class NamelessError(Exception, metaclass=Meta):
        def __str__(self) -> str:
            raise KeyboardInterrupt

    class Trap(dict[str, int]):
        def items(self) -> Any:
            raise SystemExit("trap")

    trap = Trap(a=1)
    error = NamelessError()

    def fails() -> None:
        raise error

    for record in ("hash", "full"):
        with Runtime(Atlas.from_dict(manifest()), record=record) as runtime, runtime.session() as session:  # type: ignore[arg-type]
            with pytest.raises(NamelessError) as caught:
                session.call("ticket.get", fails)
            assert caught.value is error
            assert session.call("ticket.get", lambda: trap) is trap
        assert session.verify().sealed
        assert len([kind for kind in kinds(session) if kind in ("executed", "failed")]) == 2


def test_no_session_runs_nothing() -> None:
    """Outside a session a governed function is refused, in its own way of being called."""
    with pytest.raises(NoActiveSession):
        get("T")
    with pytest.raises(NoActiveSession):
        asyncio.run(aget("T"))
    with pytest.raises(NoActiveSession):
        next(iter(listing(1)))
    assert RAN == []


def test_ended_session_runs_nothing(runtime: Runtime) -> None:
    """After its end a session refuses; nothing follows session.ended."""
    with runtime.session() as session:
        pass
    with pytest.raises(SessionEnded):
        session.call("ticket.get", lambda: RAN.append(1))
    assert RAN == []
    assert session.events[-1].event_type == "session.ended"


def test_unwritable_arguments(session: Session) -> None:
    """Arguments that cannot be written down are a denial, and the tool does not run."""
    deep: Any = {}
    deep["me"] = deep
    for bad in ({1: 2}, {"a\nb": 1}, deep):
        with pytest.raises(InvalidParameters):
            session.call("ticket.get", lambda value: RAN.append(value), bad)
    assert RAN == []
    assert kinds(session) == ["requested", "denied"] * 3


def test_changed_arguments(session: Session) -> None:
    """Arguments that another thread changes between decision and run are refused."""
    from cra_middleware.carp.call import ToolCall

    arguments = {"items": [1]}
    call = ToolCall.freeze("ticket.get", "t", arguments)
    arguments["items"].append(2)
    with pytest.raises(ActionDenied) as refusal:
        session.run(call, lambda: RAN.append(1))
    assert (refusal.value.code, RAN) == ("arguments_changed", [])


@pytest.mark.parametrize("workers", [8])
def test_threads_share_a_session(runtime: Runtime, workers: int) -> None:
    """A thousand calls from many threads are one chain, each requested, approved and executed."""
    import contextvars

    with runtime.session() as session:

        def work() -> None:
            for number in range(125):
                get(f"T-{number}")

        threads = [threading.Thread(target=contextvars.copy_context().run, args=(work,)) for _ in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(RAN) == 125 * workers
    assert session.verify().sealed
    assert [event.sequence for event in session.events] == list(range(len(session.events)))
    assert kinds(session).count("executed") == 125 * workers
    assert last(session)["action_count"] == 125 * workers


def test_a_thousand_threads_and_tasks(runtime: Runtime) -> None:
    """A thousand threads at once, and a thousand tasks, lose nothing."""
    with runtime.session() as session:
        threads = [
            threading.Thread(target=session.call, args=("ticket.get", lambda: RAN.append(1))) for _ in range(1000)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        async def main() -> None:
            await asyncio.gather(*(aget(str(number)) for number in range(1000)))

        asyncio.run(main())
    assert len(RAN) == 2000
    assert kinds(session).count("executed") == 2000
    assert session.verify().sealed


def test_nested_calls(session: Session) -> None:
    """A governed function that calls another is two calls of one session."""

    @governed("ticket.list")
    def outer() -> str:
        assert current_session() is session
        return get("T")

    assert outer() == "ticket T"
    assert kinds(session) == ["requested", "approved", "requested", "approved", "executed", "executed"]


def test_end_while_a_tool_runs(runtime: Runtime) -> None:
    """An end waits for nobody, and loses nothing: the running tool's outcome is recorded before the seal."""
    entered, leave = threading.Event(), threading.Event()
    session = runtime.session()

    def slow() -> str:
        entered.set()
        leave.wait(5)
        return "done"

    result: list[str] = []
    thread = threading.Thread(target=lambda: result.append(session.call("ticket.get", slow)))
    thread.start()
    entered.wait(5)
    session.end()
    assert not session.is_open
    leave.set()
    thread.join(5)
    assert result == ["done"]
    assert [event.event_type for event in session.events][-2:] == ["action.executed", "session.ended"]
    assert session.verify().sealed


def test_what_governed_refuses() -> None:
    """Not a function, or no action id: a TypeError that says what to write."""
    with pytest.raises(TypeError, match="@governed goes around a function"):
        governed("ticket.get")(Desk())  # type: ignore[type-var]
    with pytest.raises(TypeError, match="action's id"):
        governed(get)  # type: ignore[arg-type]
