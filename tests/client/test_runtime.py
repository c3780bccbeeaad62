"""The runtime that ``Runtime.connect`` gives: everything of ``Runtime``, at a server."""

from __future__ import annotations

import gc
import inspect
import json
import os
import re
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from cra_middleware import (
    ApprovalError,
    ApprovalRequired,
    Atlas,
    CallRefused,
    Runtime,
    SessionEnded,
    SinkError,
    current_session,
    governed,
)
from cra_middleware._ids import new_id
from cra_middleware.carp.messages import Request
from cra_middleware.client import toolbook
from cra_middleware.client.connection import Connection
from cra_middleware.client.remote_runtime import AtServerError, RemoteRuntime
from cra_middleware.client.remote_session import RemoteSession
from cra_middleware.connecting import Connecting
from cra_middleware.enforcement import EnforcementPoint
from cra_middleware.errors import RuntimeUnreachable
from cra_middleware.sessions.session import Session
from tests.client.served import Served, atlas, until
from tests.conftest import manifest

ROOT = Path(__file__).resolve().parents[2]


def test_certificates_are_read_where_one_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without TLS nobody is trusted, and nothing of the system's is read; that takes longer than all the rest."""
    read: list[object] = []

    def default(**options: object) -> ssl.SSLContext:
        read.append(options)
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    monkeypatch.setattr(ssl, "create_default_context", default)
    plain = Connection("http://localhost:1")
    assert read == []
    assert plain._verify.verify_mode is ssl.CERT_REQUIRED
    assert plain._verify.check_hostname
    assert plain._verify.get_ca_certs() == []
    Connection("https://localhost:1")
    Connection("http://localhost:1", ca_file="ca.pem")
    assert read == [{"cafile": None}, {"cafile": "ca.pem"}]


def test_nothing_is_inherited_that_needs_local_parts(runtime: Runtime) -> None:
    """What ``Runtime`` does with parts of its own, the remote one has the parts for, or does otherwise."""
    inherited = [member for name, member in vars(Runtime).items() if name not in vars(RemoteRuntime)]
    functions = [member.fget if isinstance(member, property) else member for member in inherited]
    wanted = {
        name
        for function in functions
        if inspect.isfunction(function) and function.__name__ != "_let_go"  # is called by those it overrides only
        for name in re.findall(r"self\.(_\w+)", inspect.getsource(function))
    }
    assert wanted == {"_sessions", "_approvals", "_tools_now"}
    assert all(hasattr(runtime, name) for name in wanted)
    for name, own in vars(RemoteRuntime).items():
        if inspect.isfunction(own) and name in vars(Runtime) and name != "__init__":
            assert inspect.signature(own).parameters.keys() == inspect.signature(vars(Runtime)[name]).parameters.keys()
    assert {name for name in vars(Connecting) if not name.startswith("_")} == {"connect", "observe", "from_env"}
    abstract = {name for name, member in vars(Session).items() if getattr(member, "__isabstractmethod__", False)}
    assert abstract <= vars(RemoteSession).keys()


def test_what_only_the_server_can_say(runtime: Runtime) -> None:
    """It is refused, not made up."""
    for name in ("atlases", "resolver", "policy_digest"):
        with pytest.raises(AtServerError):
            getattr(runtime, name)
    with pytest.raises(AtServerError):
        runtime.reload([])
    with pytest.raises(AtServerError):
        runtime.explain("ticket.get")


def test_a_session_that_is_over_says_the_same_in_either_mode(runtime: Runtime, tmp_path: Path) -> None:
    """To begin it again, to answer a request in it, to ask it: nothing can be recorded there any more."""
    for each in (runtime, Runtime(Atlas.from_dict(manifest()), trace=tmp_path / "traces")):
        session = each.session("bot", "Help")
        session.end()
        request = {
            "request_id": new_id(),
            "requester": {"agent_id": "bot", "session_id": session.id},
            "task": {"goal": "Help"},
        }
        asks: list[Callable[[], object]] = [
            lambda each=each, name=session.id: each.session("bot", "Help", session_id=name),  # type: ignore[misc]
            lambda each=each, name=session.id: each.session("bot", "Else", session_id=name),  # type: ignore[misc]
            lambda each=each, request=request: each.resolve(request),  # type: ignore[misc]
            session.resolve,
        ]
        for ask in asks:
            with pytest.raises(SinkError):
                ask()
        assert not session.can_reach("ticket.nothing")


def test_sessions(served: Served, runtime: Runtime) -> None:
    """Children, facts, metadata and a whole CARP request arrive at the server as they do in embedded mode."""
    request = {
        "request_id": new_id(),
        "requester": {"agent_id": "bot", "session_id": new_id()},
        "task": {"goal": "Help"},
    }
    resolution = runtime.resolve(request)
    assert resolution.request_id == request["request_id"]
    assert runtime.resolve({**request, "request_id": new_id()}).resolution_id != resolution.resolution_id
    with pytest.raises(ValueError, match="another agent"):
        runtime.resolve({**request, "requester": {**request["requester"], "agent_id": "other"}})  # type: ignore[dict-item]
    whole = Request.model_validate(
        {
            "request_id": new_id(),
            "requester": {"agent_id": "bot", "session_id": new_id()},
            "task": {"goal": "Help", "risk_tier": "high"},
            "context": {"tenant": "a"},
        }
    )
    told = runtime.session("bot", "Help", context={"queue": "b"}, request=whole)
    assert (told.id, told.facts.risk_tier) == (whole.requester.session_id, "high")
    assert told.facts.context == {"tenant": "a", "queue": "b"}
    with pytest.raises(ValueError, match="another agent, goal or session"):
        runtime.session("bot", "Something else", request=whole)
    boss = runtime.session("boss", "Help", "high", {"tenant": "a"})
    below = {**request["requester"], "session_id": new_id(), "parent_session_id": boss.id}  # type: ignore[dict-item]
    runtime.resolve({**request, "request_id": new_id(), "requester": below})
    asked = runtime.find(below["session_id"])
    assert asked is not None
    assert asked.facts.context == {"tenant": "a"}
    assert served.events(asked.id)[0][1]["metadata"]["parent_session_id"] == boss.id
    boss.end()
    assert not asked.is_open
    with runtime.session("bot", "Help", "high", {"tenant": "a"}, metadata={"m": 1}, external_id="t-1") as session:
        with pytest.raises(ValueError, match="parent's"):
            runtime.session("helper", "More", context={"tenant": "b"})
        with runtime.session("helper", "More") as child:
            assert child.facts.risk_tier == "high"
            assert child.facts.root_session_id == session.id
        open_child = runtime.session("third", "More")
    assert not open_child.is_open
    started = served.events(session.id)[0][1]["metadata"]
    assert started["given"] == {"m": 1}
    assert started["external_id"] == "t-1"
    assert served.events(child.id)[0][1]["metadata"]["parent_session_id"] == session.id
    assert served.events(open_child.id)[-1][0] == "session.ended"
    for wrong in ({"atlas_ids": ["com.example.other"]}, {"context": {"a": object()}}, {"session_id": "x"}):
        with pytest.raises(ValueError, match=r"loaded|JSON|UUID"):
            runtime.session("bot", "Help", **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="goal"):
        runtime.session("bot", "")


def test_tools(serve: Any) -> None:
    """Maps, lock and reach come from the server, and change when its Atlases do."""
    told = atlas(adapters={"crew": {"tools": {"find": {"action": "ticket.get", "args": {"id": "ticket_id"}}}}})
    served: Served = serve(told)
    with served.connect() as runtime:
        target = runtime.target_for("find", "crew")
        assert (target.action_id, dict(target.renames)) == ("ticket.get", {"id": "ticket_id"})
        assert runtime.target_for("find", "other").action_id == "find"
        assert runtime.target_for("find", "crew", actions={"find": "ticket.list"}).action_id == "ticket.list"
        assert runtime.target_for("other", "crew", declared="ticket.list").action_id == "ticket.list"
        assert runtime.argument_policies() == ()
        session = runtime.session("bot", "Help")
        assert session.can_reach("ticket.get")
        assert session.can_reach("refund.create")
        assert not session.can_reach("ticket.delete")
        assert not session.can_reach("nothing.there")
        assert not session.is_observing
        told["adapters"]["crew"]["tools"]["find"] = "ticket.delete"
        (served.folder / "atlases" / "tests.json").write_text(json.dumps(told))
        time.sleep(0.1)

        def is_new() -> bool:
            runtime.session("bot", "Help").end()
            return runtime.target_for("find", "crew").action_id == "ticket.delete"

        until(is_new)
        session.note("policy_checked", "a note", more=1)
        assert ("error.occurred", {"error_code": "policy_checked", "message": "a note (more=1)"}) in served.events(
            session.id
        )


@pytest.mark.parametrize("how", ["deny", "cached"])
def test_what_a_tool_stands_for_is_never_older_than_a_minute(
    how: str, serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked for then; a server that is away refuses, or what was heard last counts on."""
    monkeypatch.setattr(toolbook, "STALE_SECONDS", -1.0)
    told = atlas(adapters={"crew": {"tools": {"find": "ticket.get"}}})
    served: Served = serve(told)
    more: dict[str, Any] = {"on_unreachable": "cached", "spool": tmp_path / "spool"} if how == "cached" else {}
    with served.connect() as other, served.connect(timeout_seconds=10, **more) as runtime:
        session = runtime.session("bot", "Help")
        tool = EnforcementPoint(runtime, "crew").tool("find")
        assert session.target_for("find", "crew").action_id == "ticket.get"
        told["adapters"]["crew"]["tools"]["find"] = "ticket.list"
        (served.folder / "atlases" / "tests.json").write_text(json.dumps(told))
        until(lambda: other.target_for("find", "crew").action_id == "ticket.list")
        assert session.target_for("find", "crew").action_id == "ticket.list"
        served.gone()
        for _ in range(3):
            if how == "cached":
                assert runtime.target_for("find", "crew").action_id == "ticket.list"
                continue
            with pytest.raises(RuntimeUnreachable):
                runtime.target_for("find", "crew")
        assert tool.is_shown(session)
        served.back()


@governed("ticket.get")
def inner(ticket_id: str) -> str:
    return ticket_id


def test_a_governed_body_inside_an_adapter(served: Served, runtime: Runtime) -> None:
    """It is decided once; what it calls beside that is decided by itself, in the same session."""
    point = EnforcementPoint(runtime, "any")
    tool = point.tool("inner", body=inner)
    with runtime.session("bot", "Help") as session:
        assert tool.call({"ticket_id": "T-1"}).run(lambda: inner("T-1")) == "T-1"

        def both() -> str:
            assert current_session() is session
            return inner("T-2") + inner("T-3")

        assert session.call("ticket.list", both) == "T-2T-3"
    assert [name for _, name in served.outcomes(session.id)] == [
        "ticket.get",
        "ticket.get",
        "ticket.get",
        "ticket.list",
    ]


def test_approvals(served: Served, runtime: Runtime) -> None:
    """Who asked cannot answer; who may, does, with another key; the identical call then runs, once."""

    def refund(amount: int) -> str:
        return f"paid {amount}"

    with runtime.session("bot", "Help") as session:
        with pytest.raises(ApprovalRequired) as asked:
            session.call("refund.create", refund, 5)
        name = str(asked.value.approval_id)
        assert session.is_waiting
        assert [item.pending.approval_id for item in runtime.approvals.list(session_id=session.id)] == [name]
        found = runtime.approvals.get(name)
        assert found is not None
        assert dict(found.pending.arguments) == {"amount": 5}
        assert runtime.approvals.get(new_id()) is None
        with pytest.raises(ApprovalError, match="role approver"):
            runtime.approvals.approve(name, by="bot")
        with served.connect("stranger") as stranger:
            assert stranger.approvals.list() == []
            assert stranger.approvals.get(name) is None
        served.key("ann", "approver")
        with served.connect("ann") as desk:
            assert name in [item.pending.approval_id for item in desk.approvals.list()]
            assert desk.approvals.approve(name, by="whoever", reason="fine").by == "ann"
            with pytest.raises(ApprovalError, match="already"):
                desk.approvals.reject(name, by="ann")
            with pytest.raises(CallRefused):
                desk.session("bot", "Help")
        assert session.call("refund.create", refund, 5) == "paid 5"
        with pytest.raises(ApprovalRequired):
            session.call("refund.create", refund, 5)
        assert session.is_waiting
    assert not session.is_open


@pytest.mark.parametrize("closes", ["parent", "runtime"])
def test_a_session_that_begins_while_what_owns_it_closes(
    served: Served, closes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is ended with it, here and at the server, and whoever wanted it is told."""
    runtime, name, ask = served.connect(), new_id(), Connection.ask
    parent = runtime.session("bot", "Help")

    def slow(self: Connection, method: str, path: str, *arguments: Any, **options: Any) -> Any:
        reply = ask(self, method, path, *arguments, **options)
        if (method, path) == ("POST", "/v1/sessions"):
            thread = threading.Thread(target=parent.detach if closes == "parent" else runtime.close)
            thread.start()
            thread.join()
        return reply

    above = parent if closes == "parent" else None
    with monkeypatch.context() as patch:
        patch.setattr(Connection, "ask", slow)
        with pytest.raises(SessionEnded if closes == "parent" else SinkError, match=r"nothing begins|closed"):
            runtime.session("bot", "Help", parent=above, session_id=name)
    assert runtime.find(name) is None
    assert served.events(name)[-1][0] == "session.ended"
    runtime.close()


class Stage(Enum):
    PROD = "prod"


def test_both_kinds_of_runtime_take_and_refuse_the_same(served: Served) -> None:
    """Facts that are no plain text, and whatever is wrong with a closed runtime's."""
    tenant = UUID(int=5)
    for runtime in (served.connect(), Runtime(Atlas.from_dict(manifest()))):
        with runtime:
            parent = runtime.session(context={"env": Stage.PROD, "tenant": tenant})
            assert parent.facts.context == {"env": "prod", "tenant": str(tenant)}
            child = runtime.session(context={"env": Stage.PROD}, parent=parent)
            assert child.facts.context == parent.facts.context
        with pytest.raises(SinkError, match="closed"):
            runtime.session(goal="")


@pytest.mark.parametrize("where", ["_hand_over", "_say"])
def test_an_end_that_is_interrupted_is_gone_on_with(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """By whoever closes the session again, though they would only let go of it."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    session = runtime.session()
    with monkeypatch.context() as patched:
        patched.setattr(session, where, interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.end()
    session.detach()
    assert session.is_closed
    assert session.verify().sealed


def test_close_keeps_what_waits(served: Served) -> None:
    """A session in which a person is asked outlives its runtime; the others end."""
    with served.connect() as runtime:
        waiting, other = runtime.session("bot", "Help"), runtime.session("bot", "Help")
        kept = runtime.session("bot", "Help", keep=True)
        with pytest.raises(ApprovalRequired):
            waiting.call("refund.create", lambda: None)
    for closed in (lambda: runtime.session("bot", "Help"), lambda: runtime.resume(kept.id)):
        with pytest.raises(SinkError, match="closed"):
            closed()
    assert other.verify().sealed
    last = {session.id: served.events(session.id)[-1][0] for session in (waiting, other, kept)}
    assert last[other.id] == "session.ended"
    assert "session.ended" not in (last[waiting.id], last[kept.id])
    served.key("ann", "approver")
    with served.connect("ann") as desk:
        (asked,) = desk.approvals.list(session_id=waiting.id)
        desk.approvals.approve(asked.pending.approval_id, by="ann")
    with served.connect() as later:
        session = later.resume(waiting.id)
        assert session.is_waiting
        assert session.call("refund.create", lambda: 1) == 1
        session.end()


def test_from_the_environment(served: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A server or an Atlas, never both; nothing that loosens."""
    for name in ("CRA_URL", "CRA_API_KEY", "CRA_ATLAS", "CRA_TRACE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="CRA_URL"):
        Runtime.from_env()
    monkeypatch.setenv("CRA_ATLAS", str(ROOT / "examples/atlases/support"))
    monkeypatch.setenv("CRA_TRACE", str(tmp_path / "traces"))
    monkeypatch.setenv("CRA_MODE", "observe")
    with Runtime.from_env() as embedded, embedded.session("support-bot", "Help") as session:
        assert not isinstance(embedded, RemoteRuntime)
        assert not session.is_observing
    assert (tmp_path / "traces" / f"{session.id}.trace.jsonl").exists()
    monkeypatch.setenv("CRA_URL", served.url)
    monkeypatch.setenv("CRA_API_KEY", served.key("bot"))
    with pytest.raises(ValueError, match="unset"):
        Runtime.from_env()
    monkeypatch.delenv("CRA_ATLAS")
    monkeypatch.delenv("CRA_TRACE")
    with Runtime.from_env() as remote, remote.session("bot", "Help") as session:
        assert isinstance(remote, RemoteRuntime)
        assert session.call("ticket.get", lambda: 1) == 1


def test_a_program_that_just_ends(served: Served) -> None:
    """At the interpreter's exit outcomes are told, and the session stays open for a later process."""
    program = """
import sys
from cra_middleware import Runtime
session = Runtime.from_env().session("bot", "Help")
session.call("ticket.get", lambda: 1)
print(session.id)
"""
    environment = {**os.environ, "CRA_URL": served.url, "CRA_API_KEY": served.key("bot"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    session_id = done.stdout.strip()
    assert served.outcomes(session_id) == [("action.executed", "ticket.get")]
    with served.connect() as runtime:
        runtime.resume(session_id).end()
    assert served.events(session_id)[-1][0] == "session.ended"


def test_without_httpx(tmp_path: Path) -> None:
    """The core works without it, and says what is missing."""
    program = """
import sys
sys.modules["httpx"] = None
from cra_middleware import Runtime
try:
    Runtime.connect("http://127.0.0.1:1")
except RuntimeError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "pip install 'cra-middleware[http]'" in done.stdout


Watched = tuple[Any, Any]
"""Where spans go, and whence they come."""


@pytest.fixture
def watched() -> Watched:
    trace = pytest.importorskip("opentelemetry.sdk.trace")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), trace.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return exporter, provider


def test_spans(served: Served, watched: Watched) -> None:
    """Each call is a span here, with the tool's own spans below it."""
    exporter, provider = watched
    tracer = provider.get_tracer("tests")
    with served.connect(tracer_provider=provider) as runtime, runtime.session("bot", "Help") as session:

        def tool() -> None:
            tracer.start_span("inside").end()

        session.call("ticket.get", tool)
        with pytest.raises(CallRefused):
            session.call("ticket.delete", tool)
    inside, ran, denied = exporter.get_finished_spans()
    assert inside.parent.span_id == ran.context.span_id
    assert (ran.attributes["cra.action.outcome"], denied.attributes["cra.action.outcome"]) == ("executed", "denied")
    assert denied.attributes["cra.policy.id"] == "no-delete"


@pytest.mark.parametrize("way", ["embedded", "at a server"])
def test_spans_of_what_was_left_open(served: Served, watched: Watched, way: str) -> None:
    """A stream that its session does not wait for, and a call of which nobody says how it came out, are spans too."""
    exporter, provider = watched

    @governed("ticket.get")
    def stream() -> Iterator[int]:
        yield 1
        yield 2

    runtime = Runtime(Atlas.from_dict(atlas()), tracer_provider=provider)
    with runtime if way == "embedded" else served.connect(tracer_provider=provider) as runtime:
        with runtime.session("bot", "Help") as session:
            left = session.begin(session.freeze("ticket.list", "tool", {}))
            del left
            gc.collect()
            items = stream()
            assert next(items) == 1
        with pytest.raises(SessionEnded):
            next(items)
    spans = [span.attributes for span in exporter.get_finished_spans() if span.name.startswith("execute_tool")]
    assert {told["cra.action.id"]: told["error.type"] for told in spans} == {
        "ticket.list": "LostOutcomeError",
        "ticket.get": "session_ended",
    }
