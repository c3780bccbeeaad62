"""Calls that a server decides and that run here: every kind of function, and every kind of refusal."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from cra_middleware import (
    ActionDenied,
    ApprovalRequired,
    Atlas,
    CallRefused,
    Runtime,
    SessionEnded,
    current_session,
    governed,
)
from cra_middleware.errors import InvalidParameters, RateLimitExceeded, UnknownAction
from tests.client.served import Served, atlas, until


@governed("ticket.get")
def lookup(ticket_id: str) -> str:
    session = current_session()
    assert session is not None
    return f"{ticket_id} in {session.id}"


@governed("ticket.get")
async def alookup(ticket_id: str) -> str:
    await asyncio.sleep(0)
    session = current_session()
    assert session is not None
    return f"{ticket_id} in {session.id}"


@governed("ticket.list")
def numbers(most: int) -> Iterator[int]:
    yield from range(most)


@governed("ticket.list")
async def anumbers(most: int) -> AsyncIterator[int]:
    for number in range(most):
        yield number


def never(*args: object, **kwargs: object) -> None:
    raise AssertionError("it ran")


def test_sync(served: Served, runtime: Runtime) -> None:
    """A function runs once, in its session, and the server's trace says so and verifies."""
    with runtime.session("bot", "Help", subject="customer-1") as session:
        assert lookup("T-1") == f"T-1 in {session.id}"
        assert session.behalf == "customer-1"
    assert served.outcomes(session.id) == [("action.executed", "ticket.get")]
    executed = dict(served.events(session.id))["action.executed"]
    assert executed["reported_by"] == "client"
    assert len(executed["result_hash"]) == 64
    verdict = session.verify()
    assert verdict.intact
    assert verdict.sealed
    assert [event.event_type for event in session.events][-1] == "session.ended"


def test_an_outcome_is_told_without_being_asked_for(served: Served, runtime: Runtime) -> None:
    """It does not wait for the session's next call or its end."""
    with runtime.session("bot", "Help") as session:
        session.call("ticket.get", lambda: 1)
        until(lambda: served.outcomes(session.id) == [("action.executed", "ticket.get")])


def test_async(served: Served, runtime: Runtime) -> None:
    """A coroutine function, many at a time, on one loop that is never blocked by the network."""

    async def main() -> str:
        async with runtime.session("bot", "Help") as session:
            told = await asyncio.gather(*(alookup(f"T-{number}") for number in range(8)))
        assert told == [f"T-{number} in {session.id}" for number in range(8)]
        return session.id

    session_id = asyncio.run(main())
    assert served.outcomes(session_id) == [("action.executed", "ticket.get")] * 8


def test_streams(served: Served, runtime: Runtime) -> None:
    """Generators and async generators, whole and left early, even by the collector."""

    async def main() -> list[int]:
        return [number async for number in anumbers(3)]

    with runtime.session("bot", "Help") as session:
        assert list(numbers(3)) == [0, 1, 2]
        left = numbers(9)
        assert next(left) == 0
        del left
        gc.collect()
        assert asyncio.run(main()) == [0, 1, 2]
        still_open = numbers(9)
        next(still_open)
    assert served.outcomes(session.id) == [
        *[("action.executed", "ticket.list")] * 3,
        ("action.failed", "ticket.list"),
    ]
    with pytest.raises(SessionEnded):
        next(still_open)


def test_a_tool_that_raises(served: Served, runtime: Runtime) -> None:
    """The very exception comes out, and the trace names its class, not its words."""
    error = ValueError("secret")

    def broken() -> None:
        raise error

    with runtime.session("bot", "Help") as session, pytest.raises(ValueError, match="secret") as raised:
        session.call("ticket.get", broken)
    assert raised.value is error
    failed = dict(served.events(session.id))["action.failed"]
    assert failed["error_code"] == "ValueError"
    assert "secret" not in str(failed)


@pytest.fixture
def embedded() -> Iterator[Runtime]:
    with Runtime(Atlas.from_dict(atlas())) as made:
        yield made


REFUSED: list[tuple[str, dict[str, Any], type[CallRefused]]] = [
    ("ticket.delete", {"ticket_id": "T-1"}, ActionDenied),
    ("nothing.there", {}, UnknownAction),
    ("refund.create", {"amount": 5}, ApprovalRequired),
    ("ticket.get", {"n": {1: 2}}, InvalidParameters),
]


@pytest.mark.parametrize(("action_id", "arguments", "kind"), REFUSED)
def test_the_same_refusal_as_embedded(
    runtime: Runtime, embedded: Runtime, action_id: str, arguments: dict[str, Any], kind: type[CallRefused]
) -> None:
    """The same class, the same sentence, the same fields; and no run."""
    seen = []
    for one in (runtime, embedded):
        with one.session("bot", "Help") as session, pytest.raises(CallRefused) as refused:
            session.call(action_id, never, **arguments)
        seen.append(refused.value)
        assert type(refused.value) is kind
    here, there = seen
    assert str(here) == str(there)
    names = ("code", "policy_id", "action_id", "reason", "retry_after_seconds")
    assert [getattr(here, name) for name in names] == [getattr(there, name) for name in names]
    assert (here.approval_id is None) is (there.approval_id is None)


def test_a_limit(runtime: Runtime) -> None:
    """The server counts, over all that connect to it; a retried request counts once."""
    with runtime.session("bot", "Help") as session:
        for _ in range(2):
            session.call("ticket.update", lambda: None)
        with pytest.raises(RateLimitExceeded) as refused:
            session.call("ticket.update", lambda: None)
    assert refused.value.retry_after_seconds is not None


class Odd:
    """Something that JSON has no form for."""


@pytest.mark.parametrize(
    "value",
    ["cra:str:x", "plain", 2**70, 1e-9, float("nan"), b"bytes", "\ud800", [1, {"a": "cra:x"}], {"k": None}, (1, 2)],
    ids=repr,
)
def test_values_arrive_as_they_are(served: Served, runtime: Runtime, embedded: Runtime, value: object) -> None:
    """They have the digest in the trace that they have in embedded mode."""
    with runtime.session("bot", "Help") as session:
        session.call("ticket.get", lambda value: value, value)
    with embedded.session("bot", "Help") as local:
        local.call("ticket.get", lambda value: value, value)
    here = dict(served.events(session.id))["action.requested"]["parameters_hash"]
    there = next(event.payload for event in local.events if event.event_type == "action.requested")["parameters_hash"]
    assert here == there


@pytest.mark.parametrize("value", [Odd(), b"secret", {1}], ids=["object", "bytes", "set"])
def test_what_nobody_can_judge_is_not_outside_of_a_rule(serve: Any, value: object) -> None:
    """A rule that denies some texts counts for what is none; as text, its tag would be another one."""
    served: Served = serve(atlas(rules=[{"deny": "ticket.get", "when": {"value": {"matches": "secret.*"}}}]))
    with served.connect() as runtime, runtime.session("bot", "Help") as session:
        assert session.call("ticket.get", lambda value: value, "public") == "public"
        with pytest.raises(ActionDenied):
            session.call("ticket.get", lambda value: never(), value)


def test_nobody_approves_what_cannot_be_seen(served: Served, runtime: Runtime) -> None:
    """No question is asked about an object that cannot be written down."""
    with runtime.session("bot", "Help") as session:
        with pytest.raises(CallRefused, match="nobody can approve it"):
            session.call("refund.create", never, Odd())
        assert runtime.approvals.list(None, session.id) == []
    assert served.outcomes(session.id) == [("action.denied", "refund.create")]


def test_arguments_that_change(served: Served, runtime: Runtime) -> None:
    """What is not what was decided does not run, and the trace says that it did not."""
    items = [1]
    with runtime.session("bot", "Help") as session:
        call = session.freeze("ticket.get", "tool", {"items": items})
        items.append(2)
        with pytest.raises(ActionDenied) as refused:
            session.run(call, never)
    assert refused.value.code == "arguments_changed"
    assert dict(served.events(session.id))["action.failed"]["error_code"] == "not_run"


def test_an_action_that_the_server_runs(serve: Any) -> None:
    """Its result stands for the function's, which does not run; where that cannot be, nothing runs here either."""
    runtime = serve(keyed="executors").connect()
    with runtime, runtime.session("bot", "Help") as session:
        assert session.call("ticket.list", never) == ["T-1", "T-2"]
        with pytest.raises(CallRefused, match="runs this action by itself"):
            list(numbers(3))
        with pytest.raises(CallRefused, match="runs this action by itself"):
            session.begin(session.freeze("ticket.list", "tool", {}))


def test_start_and_end_in_two_places(served: Served, runtime: Runtime) -> None:
    """For frameworks that tell of a tool's start and of its end."""
    with runtime.session("bot", "Help") as session:
        call = session.begin(session.freeze("lookup", "tool", {"ticket_id": "T-1"}))
        assert session.is_busy
        call.raised(TimeoutError())
        assert not session.is_busy
    assert served.outcomes(session.id) == [("action.failed", "ticket.get")]


def test_an_end_while_a_tool_runs(served: Served, runtime: Runtime) -> None:
    """The tool's outcome is in the trace before its end; what comes later is refused."""
    session = runtime.session("bot", "Help")

    def tool() -> str:
        session.end()
        with pytest.raises(SessionEnded):
            session.call("ticket.get", never)
        return "value"

    assert session.call("ticket.get", tool) == "value"
    until(lambda: served.events(session.id)[-1][0] == "session.ended")
    assert served.outcomes(session.id) == [("action.executed", "ticket.get")]


def test_rejected_by_the_framework(served: Served, runtime: Runtime) -> None:
    """What a framework refuses by itself is recorded, with its reason."""
    with runtime.session("bot", "Help") as session:
        refusal = session.reject(session.freeze("ticket.get", "tool", {}), "ticket_id is missing")
    assert isinstance(refusal, InvalidParameters)
    assert "ticket_id is missing" in str(refusal)
    assert served.outcomes(session.id) == [("action.denied", "ticket.get")]


def test_a_cancelled_wait(served: Served, runtime: Runtime) -> None:
    """A task that is cancelled while it waits for the decision runs nothing, and the trace says so."""

    async def main() -> str:
        session = runtime.session("bot", "Help")
        served.freeze()
        task = asyncio.create_task(session.acall("ticket.get", _fails))
        await asyncio.sleep(0.3)
        task.cancel()
        await asyncio.sleep(0.1)
        served.thaw()
        with pytest.raises(asyncio.CancelledError):
            await task
        session.end()
        return session.id

    session_id = asyncio.run(main())
    assert dict(served.events(session_id))["action.failed"]["error_code"] == "not_run"


async def _fails() -> None:
    raise AssertionError("it ran")


@pytest.mark.parametrize("name", ["", "\ud800", "x" * 300], ids=["empty", "half a letter", "long"])
def test_names_that_cannot_be_sent(runtime: Runtime, name: str) -> None:
    """A framework's odd names cost no call, and let none run that is not allowed."""
    with runtime.session("bot", "Help") as session:
        call = session.freeze("ticket.get", name or "tool", {})._replace(tool_call_id=name, agent_name=name)
        assert session.run(call, lambda: 1) == 1
        with pytest.raises(CallRefused):
            session.run(call._replace(action_id=name), never)


def test_closed_while_a_tool_runs(served: Served) -> None:
    """The runtime is closed by another thread: the outcome is told all the same, and then the end."""
    runtime = served.connect()
    session = runtime.session("bot", "Help")

    def tool() -> int:
        runtime.close()
        return 1

    assert session.call("ticket.get", tool) == 1
    until(lambda: served.events(session.id)[-1][0] == "session.ended")
    assert served.outcomes(session.id) == [("action.executed", "ticket.get")]
