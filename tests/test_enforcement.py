"""The seam for adapters: which session governs, what a failure of ours becomes, and what is recorded."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cra_middleware import (
    ActionDenied,
    Answer,
    Atlas,
    AuditUnavailable,
    CallRefused,
    NoActiveSession,
    Pending,
    Runtime,
    SessionEnded,
    governed,
)
from cra_middleware import run_sessions as sessions_of_runs
from cra_middleware.enforcement import EnforcementPoint, govern_function, require
from cra_middleware.testing import FailingSink, MemorySink
from tests.conftest import manifest, policies

ASKS = {"policy_id": "ask", "type": "require_approval"}
ROOT = Path(__file__).resolve().parents[1]
MAP = {"any": {"tools": {"lookup": "ticket.get", "remove": "ticket.delete", "pay": "refund.create"}}}


@pytest.fixture
def sink() -> MemorySink:
    return MemorySink()


@pytest.fixture
def point(sink: MemorySink) -> Iterator[EnforcementPoint]:
    with Runtime(Atlas.from_dict(manifest(adapters=MAP)), trace=sink) as runtime:
        yield EnforcementPoint(runtime, "made_up")


def lookup(ticket_id: str, note: str = "none") -> str:
    return f"{ticket_id} {note}"


def started(sink: MemorySink) -> list[tuple[str, str | None]]:
    """Agent and parent of each session."""
    found = {}
    for session_id in sink.session_ids():
        first = next(iter(sink.lines(session_id)))
        event = json.loads(first)
        found[session_id] = (event["payload"]["agent_id"], event["payload"]["metadata"].get("parent_session_id"))
    return [(agent, None if parent is None else found[parent][0]) for agent, parent in found.values()]


def test_calls_of_one_run_share_a_session(point: EnforcementPoint) -> None:
    """And calls of none share another."""
    tool = point.tool("lookup", body=lookup)
    sessions = [tool.call({"ticket_id": "T"}, run=run).session for run in ("a", "a", "b", None, None)]
    assert sessions[0] is sessions[1]
    assert sessions[3] is sessions[4]
    assert len({session.id for session in sessions}) == 3


def test_another_agent_of_a_run_gets_its_own_below(point: EnforcementPoint, sink: MemorySink) -> None:
    """A handoff: the second agent's session is the first one's child, and ends with it."""
    tool = point.tool("lookup")
    first = tool.call({}, run="a", agent="triage").session
    second = tool.call({}, run="a", agent="refunds").session
    assert tool.call({}, run="a", agent="triage").session is first
    assert tool.call({}, run="a", agent="refunds").session is second
    assert started(sink) == [("triage", None), ("refunds", "triage")]
    point.end("a")
    assert not first.is_open
    assert not second.is_open
    assert tool.call({}, run="a", agent="triage").session is not first


def test_an_agent_inside_a_tool_gets_its_own_below(point: EnforcementPoint, sink: MemorySink) -> None:
    """Also where the outer session is the user's own; the outer agent's later calls stay in the outer one."""
    runtime = point._runtime
    assert runtime is not None
    inner = EnforcementPoint(runtime, "other_framework").tool("lookup")
    outer = point.tool("lookup")
    with runtime.session("desk") as desk:
        assert outer.call({"ticket_id": "T"}, agent="worker").session is desk
        outer.call({"ticket_id": "T"}, agent="worker").run(
            lambda: inner.call({"ticket_id": "U"}, agent="helper", run="x").run(lambda: "inner")
        )
        assert outer.call({"ticket_id": "T"}, agent="worker").session is desk
    assert started(sink) == [("desk", None), ("helper", "desk")]


def test_async_calls_are_inside_too(point: EnforcementPoint, sink: MemorySink) -> None:
    """As the one before, on an event loop."""

    async def main() -> str:
        async def body() -> str:
            return point.tool("lookup").call({"ticket_id": "U"}, agent="helper").run(lambda: "inner")

        return await point.tool("lookup").call({"ticket_id": "T"}, agent="worker", run="r").arun(body)

    assert asyncio.run(main()) == "inner"
    assert started(sink) == [("worker", None), ("helper", "worker")]


def test_many_runs_do_not_stay_open(point: EnforcementPoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run unused longest is ended when there are too many."""
    monkeypatch.setattr(sessions_of_runs, "MAX_RUNS", 3)
    tool = point.tool("lookup")
    made = [tool.call({}, run=str(number)).session for number in range(5)]
    assert [session.is_open for session in made] == [False, False, True, True, True]


def test_an_ended_session_refuses(point: EnforcementPoint) -> None:
    """It is not replaced by one of the adapter's own."""
    runtime = point._runtime
    assert runtime is not None
    with runtime.session("desk") as session:
        session.end()
        with pytest.raises(SessionEnded):
            point.tool("lookup").call({"ticket_id": "T"}).run(lambda: "ran")


def test_no_runtime_means_the_current_session() -> None:
    """Without either, the call is refused."""
    tool = EnforcementPoint(None, "made_up").tool("lookup")
    with pytest.raises(NoActiveSession):
        tool.call({})
    with Runtime(Atlas.from_dict(manifest(adapters=MAP))) as runtime, runtime.session("desk") as session:
        call = tool.call({"ticket_id": "T"}, agent="someone else")
        assert call.session is session
        assert call.run(lambda: "ran") == "ran"


def test_a_session_that_cannot_be_opened_is_a_refusal() -> None:
    """Whatever goes wrong: an adapter catches one type."""
    sink = FailingSink()
    with Runtime(Atlas.from_dict(manifest(adapters=MAP)), trace=sink) as runtime:
        point = EnforcementPoint(runtime, "made_up")
        sink.failing = True
        with pytest.raises(AuditUnavailable):
            point.tool("lookup").call({})
        sink.failing = False
        with pytest.raises(CallRefused, match="no session could be opened"):
            point.tool("lookup").call({}, agent="")


@pytest.mark.parametrize("arguments", [None, [], "text", 7, b"{}"])
def test_arguments_that_are_no_object_are_denied(point: EnforcementPoint, arguments: Any) -> None:
    """Recorded as invalid, and nothing runs."""
    call = point.tool("lookup").call(arguments, run="r")
    with pytest.raises(CallRefused) as caught:
        call.run(lambda: pytest.fail("ran"))
    assert caught.value.code == "invalid_parameters"
    assert [event.event_type for event in call.session.events][-1] == "action.denied"


def test_two_arguments_of_one_name_are_denied(sink: MemorySink) -> None:
    """What an Atlas renames may not cover another argument."""
    tools = {"any": {"tools": {"lookup": {"action": "ticket.get", "args": {"ticket_id": "note"}}}}}
    with Runtime(Atlas.from_dict(manifest(adapters=tools)), trace=sink) as runtime:
        call = EnforcementPoint(runtime, "made_up").tool("lookup").call({"ticket_id": "T", "note": "n"})
        with pytest.raises(CallRefused, match="one name"):
            call.run(lambda: pytest.fail("ran"))


def test_defaults_and_injected_parameters(point: EnforcementPoint) -> None:
    """What the body fills in is decided; what the framework fills in is no argument."""

    def body(context: object, ticket_id: str, note: str = "none") -> str:
        return ticket_id

    call = point.tool("lookup", body=body, without=("context",)).call({"context": object(), "ticket_id": "T"})
    assert dict(call.call.arguments) == {"ticket_id": "T", "note": "none"}


@pytest.mark.parametrize("change", [{"amount": 500}, {"to": {"name": "eve"}}, {"note": "more"}])
@pytest.mark.parametrize("way", ["run", "arun", "begin", "abegin"])
def test_what_a_caller_holds_and_changes_does_not_run(way: str, change: dict[str, Any]) -> None:
    """The mapping that a call was made of changes while a person is asked: whoever runs the body with it is refused."""
    given: dict[str, Any] = {"amount": 5, "ctx": None} if "amount" in change else {"amount": 5, "to": {"name": "ann"}}
    ran: list[Any] = []

    def approver(pending: Pending) -> bool:
        given.update(change)
        return True

    def body() -> None:
        ran.append(given)

    async def abody() -> None:
        body()

    made = Atlas.from_dict(manifest(adapters=MAP, policies=policies({**ASKS, "actions": ["refund.*"]})))
    with Runtime(made, approver=approver) as runtime:
        call = EnforcementPoint(runtime, "made_up").tool("pay", without={"ctx"}).call(given)
        ways: dict[str, Callable[[], object]] = {
            "run": lambda: call.run(body),
            "arun": lambda: asyncio.run(call.arun(abody)),
            "begin": call.begin,
            "abegin": lambda: asyncio.run(call.abegin()),
        }
        with pytest.raises(ActionDenied) as refusal:
            ways[way]()
    assert (refusal.value.code, ran) == ("arguments_changed", [])


def test_what_a_framework_fills_in_later_is_no_change() -> None:
    """A parameter that is no argument may be given to the mapping while a person is asked."""
    given: dict[str, Any] = {"amount": 5}

    def approver(pending: Pending) -> bool:
        given.update(ctx=object())
        return True

    made = Atlas.from_dict(manifest(adapters=MAP, policies=policies({**ASKS, "actions": ["refund.*"]})))
    with Runtime(made, approver=approver) as runtime:
        call = EnforcementPoint(runtime, "made_up").tool("pay", without={"ctx"}).call(given)
        assert call.run(lambda: "paid") == "paid"


def test_govern_function_keeps_its_kind(point: EnforcementPoint) -> None:
    """Signature and hints stay; refusals are what the framework wants; wrong arguments are recorded."""

    async def alookup(ticket_id: str) -> str:
        return ticket_id

    removed = point.tool("remove")
    plain = govern_function(lookup, removed.call, str)
    waiting = govern_function(alookup, point.tool("lookup", body=alookup).call, str)
    assert "was not run: Never." in plain("T-1")
    assert asyncio.run(waiting("T-1")) == "T-1"
    assert asyncio.run(waiting(ticket_id="T-1")) == "T-1"
    assert "invalid_parameters" in govern_function(lookup, point.tool("lookup", body=lookup).call, str)(wrong=1)
    assert plain.__wrapped__ is lookup


def test_a_governed_body_is_decided_once(point: EnforcementPoint, sink: MemorySink) -> None:
    """By the adapter, whose call the decorator inside finds."""

    @governed("ticket.get")
    def body(ticket_id: str) -> str:
        return ticket_id

    call = point.tool("anything", body=body).call({"ticket_id": "T"})
    assert call.run(lambda: body("T")) == "T"
    assert [event.event_type for event in call.session.events].count("action.requested") == 1


def test_missing_tools_are_recorded(point: EnforcementPoint) -> None:
    """Whether their name means something or not; arguments as a model writes them."""
    told = [
        point.tool(name).missing(given, call_id=None, agent=None, run=None)
        for name, given in (("nosuch", '{"a": 1}'), ("lookup", "{broken"), ("lookup", None), ("remove", {}))
    ]
    assert [refusal.code for refusal in told] == [
        "unknown_action",
        "invalid_parameters",
        "unknown_action",
        "policy_denied",
    ]


class Stop(Exception):
    """How this framework stops a run."""


class Suspending:
    suspends = (Stop,)

    def __init__(self, answer: Answer | None = None) -> None:
        self.answer = answer

    def __call__(self, pending: Any) -> Answer:
        if self.answer is None:
            raise Stop
        return self.answer


def asking(tmp_path: Path) -> Runtime:
    rules = policies({**ASKS, "actions": ["refund.*"]})
    return Runtime(
        Atlas.from_dict(manifest(policies=rules, adapters=MAP)),
        trace=tmp_path / "traces",
        approvals=tmp_path / "approvals.db",
    )


def test_a_stopped_run_finds_its_session_in_another_process(tmp_path: Path) -> None:
    """By the id of the call that waits; it is neither ended nor sealed meanwhile, and runs once."""
    with asking(tmp_path) as runtime:
        point = EnforcementPoint(runtime, "made_up")
        call = point.tool("pay").call({"amount": 5}, call_id="c1", run="r", approver=Suspending())
        with pytest.raises(Stop):
            call.run(lambda: pytest.fail("ran"))
        point.end("r")
        assert call.session.is_open
        first = call.session.id
    with asking(tmp_path) as runtime:
        point = EnforcementPoint(runtime, "made_up")
        (waiting,) = runtime.approvals.list()
        assert waiting.pending.tool_call_id == "c1"
        runtime.approvals.approve(waiting.pending.approval_id, by="ann")
        assert point.session(run="r2", resumed=("c1",)).id == first
        again = point.tool("pay").call({"amount": 5}, call_id="c1", run="r2", approver=Suspending())
        assert again.session.id == first
        assert again.run(lambda: "paid") == "paid"
        point.end("r2")
        assert not again.session.is_open
        other = point.tool("pay").call({"amount": 5}, call_id="c1", run="r3", approver=Suspending())
        assert other.session.id != first


def test_an_answer_by_the_frameworks_own_means(tmp_path: Path) -> None:
    """A call that does not come again is answered all the same; others are left alone."""
    with asking(tmp_path) as runtime:
        point = EnforcementPoint(runtime, "made_up")
        for name in ("c1", "c2"):
            with pytest.raises(Stop):
                point.tool("pay").call({"amount": name}, call_id=name, run="r", approver=Suspending()).run(lambda: 1)
        session = point.session(run="r")
        point.withdraw(session, "c1", by="the desk", reason="No.")
        point.withdraw(session, "c9", by="nobody")
        states = {item.pending.tool_call_id: item.state for item in runtime.approvals.list(None)}
        assert states == {"c1": "rejected", "c2": "pending"}


def test_a_no_in_one_run_leaves_the_calls_of_another(tmp_path: Path) -> None:
    """Some providers number the calls of every run anew."""
    with asking(tmp_path) as runtime:
        point = EnforcementPoint(runtime, "made_up")
        for run in ("a", "b"):
            with pytest.raises(Stop):
                point.tool("pay").call({"run": run}, call_id="call_0", run=run, approver=Suspending()).run(lambda: 1)
        point.withdraw(point.session(run="a"), "call_0", by="run a")
        states = {item.pending.arguments["run"]: item.state for item in runtime.approvals.list(None)}
        assert states == {"a": "rejected", "b": "pending"}


def test_require() -> None:
    """Too old, not there, or without a hook: refused when it is installed."""
    require("pydantic", "2.0", {Path: ("exists",)})
    with pytest.raises(RuntimeError, match="too old"):
        require("pydantic", "999")
    with pytest.raises(RuntimeError, match="not installed"):
        require("no-such-distribution", "1")
    with pytest.raises(RuntimeError, match=r"has no Path\.enter, Path\.leave"):
        require("pydantic", "2.0", {Path: ("exists", "enter", "leave")})


@pytest.mark.parametrize(
    ("found", "floor", "good"),
    [
        ("1.10", "1.9", True),
        ("1.9", "1.10", False),
        ("2.0rc1", "2.0", True),
        ("1.9.9", "2", False),
        ("2", "2.0.1", False),
    ],
)
def test_versions_are_compared_as_numbers(monkeypatch: pytest.MonkeyPatch, found: str, floor: str, good: bool) -> None:
    """A release candidate counts as its release."""
    monkeypatch.setattr("cra_middleware.seams.version", lambda name: found)
    if good:
        require("x", floor)
    else:
        with pytest.raises(RuntimeError, match="too old"):
            require("x", floor)


def test_the_page_about_adapters_runs(tmp_path: Path) -> None:
    """Its adapter of a framework in six lines governs it."""
    text = (ROOT / "docs" / "writing-an-adapter.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_tool_of_a_server_has_a_key_of_its_own(sink: MemorySink) -> None:
    """``server/tool`` wins over ``tool`` where the operator named the server; a name with a slash gets no other key."""
    keys = {"search": "ticket.delete", "github/search": "ticket.get", "crm/open": "ticket.get"}
    with Runtime(Atlas.from_dict(manifest(adapters={"mcp": {"tools": keys}})), trace=sink) as runtime:
        point = EnforcementPoint(runtime, "mcp")

        def action(name: str, **server: Any) -> tuple[str, str]:
            call = point.tool(name, **server).call({})
            return call.call.action_id, call.call.tool_name

        assert action("search", server="github") == ("ticket.get", "mcp.github/search")
        assert action("search", server="gitlab") == ("ticket.delete", "mcp.gitlab/search")
        assert action("search", server="github", names_itself=True) == ("ticket.delete", "mcp.github/search")
        assert action("crm/open", server="github") == ("github/crm/open", "mcp.github/crm/open")
        assert action("open", server="crm") == ("ticket.get", "mcp.crm/open")
        assert point.tool("search", server="github").source == "mcp:github"
