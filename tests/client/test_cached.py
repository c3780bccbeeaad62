"""What may run while the server is away: only what it would let run, and only while it is really away."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cra_middleware import CallRefused
from cra_middleware import Runtime as LocalRuntime
from cra_middleware._ids import new_id
from cra_middleware.client.connection import Connection
from cra_middleware.client.offline import Spool
from cra_middleware.errors import RuntimeUnreachable
from cra_middleware.server.places import open_keys, state_folder
from tests.client.served import Served, atlas, until


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test need not wait as long between two tries as an agent should."""
    monkeypatch.setattr("cra_middleware.client.connection._FIRST_PAUSE_SECONDS", 0.01)


def never(*args: object, **kwargs: object) -> None:
    raise AssertionError("it ran")


Answer = tuple[int, dict[str, str], bytes]


class Between:
    """A proxy that passes everything on, or answers by itself: everything, or one method alone."""

    def __init__(self) -> None:
        self.to = ""
        self.answer: Answer | None = None
        self.only = ""
        between = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _any(self) -> None:
                data = self.rfile.read(int(self.headers.get("content-length", 0)))
                status, headers, body = between.told(self, data)
                self.send_response(status)
                for name, value in {"content-length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_PUT = _any

            def log_message(self, *args: object) -> None:
                return

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def told(self, handler: http.server.BaseHTTPRequestHandler, data: bytes) -> Answer:
        if self.answer is not None and self.only in ("", handler.command):
            return self.answer
        kept = ("x-api-key", "content-type", "accept", "if-none-match")
        headers = {name: value for name, value in handler.headers.items() if name.lower() in kept}
        try:
            reply = httpx.request(handler.command, self.to + handler.path, content=data, headers=headers)
        except httpx.TransportError:
            return 502, {}, b"bad gateway"
        shown = {name: value for name, value in reply.headers.items() if name in ("content-type", "etag")}
        return reply.status_code, shown, reply.content

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def between() -> Iterator[Between]:
    made = Between()
    yield made
    made.close()


def through(between: Between, served: Served, **options: Any) -> Any:
    """A runtime that reaches the server through the proxy."""
    from cra_middleware import Runtime

    between.to = served.url
    terms = {"timeout_seconds": 1, "on_unreachable": "cached", "spool": served.folder / "spool", **options}
    return Runtime.connect(between.url, api_key=served.key("bot"), **terms)


def problem(code: str, *, recoverable: bool = True, wait: str | None = None) -> tuple[dict[str, str], bytes]:
    body = {"error": {"code": code, "message": "not now", "category": "storage", "recoverable": recoverable}}
    headers = {} if wait is None else {"retry-after": wait}
    return {"content-type": "application/json", **headers}, json.dumps(body).encode()


PAGE = ({"content-type": "text/html"}, b"<html>no</html>")


SAID: list[tuple[int, tuple[dict[str, str], bytes]]] = [
    (200, PAGE),
    (200, ({}, b'{"execution_id": "x", "resul')),
    (200, ({}, b"[]")),
    (200, ({}, b"{}")),
    (204, ({}, b"")),
    (302, ({"location": "/login"}, b"")),
    (307, ({"location": "/elsewhere"}, b"")),
    (401, PAGE),
    (403, PAGE),
    (404, PAGE),
    (407, PAGE),
    (429, PAGE),
    (500, ({}, b"Internal Server Error")),
    (500, problem("STORAGE_LOCKED")),
    (500, problem("STORAGE_LOCKED", wait="30")),
    (502, problem("IO_ERROR", wait="30")),
    (503, problem("UNAVAILABLE")),
    (503, problem("UNAVAILABLE", wait="30")),
    (409, problem("IDEMPOTENCY_CONFLICT", wait="30")),
]


@pytest.mark.slow
def test_an_answer_is_no_absence(serve: Any, between: Between) -> None:
    """Who turns a call away, whoever it is, and a server that cannot decide now, are there: nothing runs."""
    served: Served = serve()
    with through(between, served) as runtime:
        for status, told in SAID:
            session: Any = runtime.session("bot", "Help")
            between.answer = (status, *told)
            ran: list[int] = []
            with pytest.raises(CallRefused):
                session.call("ticket.get", ran.append, 1)
            assert not ran, (status, told)
            between.answer = None
            assert session.call("ticket.get", lambda: 1) == 1


@pytest.mark.slow
def test_a_balancer_that_has_nobody_behind_it(serve: Any, between: Between) -> None:
    """It says that the server is away."""
    served: Served = serve()
    with through(between, served) as runtime:
        session: Any = runtime.session("bot", "Help")
        for status in (502, 503, 504):
            between.answer = (status, *PAGE)
            assert session.call("ticket.get", lambda: 1) == 1
            with pytest.raises(RuntimeUnreachable):
                session.call("refund.create", never)


def test_what_it_denied_meanwhile(serve: Any, tmp_path: Path) -> None:
    """The server's Atlas was changed: once it has said no, its earlier yes counts no more, whoever is away then."""
    served: Served = serve()
    with served.connect(timeout_seconds=10, on_unreachable="cached", spool=tmp_path / "spool") as runtime:
        session: Any = runtime.session("bot", "Help")
        served.gone()
        assert session.call("ticket.get", lambda: 1) == 1
        told = atlas()
        told["policies"].append({"policy_id": "no", "type": "deny", "actions": ["ticket.get"]})
        (served.folder / "atlases" / "tests.json").write_text(json.dumps(told))
        served.back()
        with pytest.raises(CallRefused) as refused:
            session.call("ticket.get", never)
        assert refused.value.policy_id == "no"
        served.gone()
        for action_id in ("ticket.get", "ticket.list"):
            with pytest.raises(RuntimeUnreachable):
                session.call(action_id, never)


def test_a_no_about_something_else(serve: Any, tmp_path: Path) -> None:
    """What was denied as ever, or for its arguments alone, says nothing against the others."""
    told = atlas()
    told["actions"][0]["parameters_schema"] = {"type": "object", "required": ["n"]}
    served: Served = serve(told)
    with served.connect(timeout_seconds=10, on_unreachable="cached", spool=tmp_path / "spool") as runtime:
        session: Any = runtime.session("bot", "Help")
        for action_id in ("ticket.delete", "ticket.get", "refund.create"):
            with pytest.raises(CallRefused):
                session.call(action_id, never)
        served.gone()
        assert session.call("ticket.get", lambda n: n, 1) == 1


def test_a_session_that_was_ended_there(serve: Any, tmp_path: Path) -> None:
    """Whoever ended it meant it."""
    served: Served = serve()
    with served.connect(timeout_seconds=10, on_unreachable="cached", spool=tmp_path / "spool") as runtime:
        session: Any = runtime.session("bot", "Help")
        ended = httpx.delete(f"{served.url}/v1/sessions/{session.id}", headers={"x-api-key": served.key("bot")})
        assert ended.status_code == 204
        with pytest.raises(CallRefused, match="has ended"):
            session.call("refund.create", never)
        served.gone()
        with pytest.raises(RuntimeUnreachable):
            session.call("ticket.get", never)


def revoke(served: Served, name: str) -> None:
    keys = open_keys(state_folder(served.traces))
    assert keys.revoke(name, time.time_ns() // 1000)
    keys.close()


def is_turned_away(session: Any) -> bool:
    """Whether a call of it hears that the key counts no more."""
    try:
        session.call("ticket.get", lambda: 1)
    except CallRefused as refused:
        return refused.code == "unauthorized"
    return False


def test_a_key_that_was_revoked(serve: Any, tmp_path: Path) -> None:
    """One session heard of it: nothing runs in any other, of this key's, when nobody is there any more."""
    served: Served = serve()
    with served.connect(timeout_seconds=10, on_unreachable="cached", spool=tmp_path / "spool") as runtime:
        sessions: list[Any] = [runtime.session("bot", "Help") for _ in range(3)]
        revoke(served, "bot")
        until(lambda: is_turned_away(sessions[0]))
        served.gone()
        for session in sessions:
            with pytest.raises(RuntimeUnreachable):
                session.call("ticket.get", never)


def test_an_answer_from_before_the_key_was_revoked(serve: Any, between: Between) -> None:
    """It was on its way while another session heard of that: what it allows does not run."""
    served: Served = serve()
    arrived, may_go, told = threading.Event(), threading.Event(), between.told

    def held(handler: http.server.BaseHTTPRequestHandler, data: bytes) -> Answer:
        answer = told(handler, data)
        if handler.path == "/v1/resolve":
            arrived.set()
            assert may_go.wait(20)
        return answer

    with through(between, served, timeout_seconds=20) as runtime:
        one, other = runtime.session("bot", "Help"), runtime.session("bot", "Help")
        between.told = held  # type: ignore[method-assign]
        resolving = threading.Thread(target=other.resolve)
        resolving.start()
        assert arrived.wait(20)
        revoke(served, "bot")
        until(lambda: is_turned_away(one))
        may_go.set()
        resolving.join(20)
        between.answer = (502, *PAGE)
        for session in (one, other):
            with pytest.raises(RuntimeUnreachable):
                session.call("ticket.get", never)


@pytest.mark.parametrize(
    ("status", "code", "method"),
    [
        (401, "UNAUTHORIZED", "POST"),
        (401, "UNAUTHORIZED", "GET"),
        (403, "FORBIDDEN", "POST"),
        (429, "RATE_LIMIT_EXCEEDED", "POST"),
    ],
)
def test_a_key_that_counts_again(serve: Any, between: Between, status: int, code: str, method: str) -> None:
    """Whatever request hears that it counts no more; each session goes on once it has asked again."""
    served: Served = serve()
    with through(between, served) as runtime:
        one, other = runtime.session("bot", "Help"), runtime.session("bot", "Help")
        between.answer = (status, *problem(code, recoverable=False))
        if method == "GET":
            runtime._connection.ask("GET", f"/v1/sessions/{one.id}")
        else:
            with pytest.raises(CallRefused):
                one.call("ticket.delete", never)
        between.answer = (502, *PAGE)
        for session in (one, other):
            with pytest.raises(RuntimeUnreachable):
                session.call("ticket.get", never)
        between.answer = None
        other.resolve()
        between.answer = (502, *PAGE)
        assert other.call("ticket.get", lambda: 1) == 1
        with pytest.raises(RuntimeUnreachable):
            one.call("ticket.get", never)


def test_a_no_to_one_request(serve: Any, tmp_path: Path) -> None:
    """That a key may not speak for another agent, or a limit is full, says nothing against its sessions."""
    served: Served = serve()
    narrow = served.key("narrow", agents=("bot",))
    spool = tmp_path / "spool"
    with LocalRuntime.connect(
        served.url, api_key=narrow, timeout_seconds=10, on_unreachable="cached", spool=spool
    ) as runtime:
        session: Any = runtime.session("bot", "Help")
        with pytest.raises(CallRefused) as refused:
            runtime.session("cleaner", "Help")
        assert refused.value.code == "forbidden"
        for _ in range(2):
            session.call("ticket.update", lambda: 1)
        with pytest.raises(CallRefused) as refused:
            session.call("ticket.update", never)
        assert refused.value.code == "rate_limit_exceeded"
        served.gone()
        assert session.call("ticket.get", lambda: 1) == 1


def test_facts_of_one_request(serve: Any, tmp_path: Path) -> None:
    """A request may suppose facts. The session's calls are not decided by them, at the server or here."""
    told = atlas(policies=[{"policy_id": "s", "type": "allow", "conditions": {"context_matches": {"env": "staging"}}}])
    served: Served = serve(told)
    with served.connect(timeout_seconds=10, on_unreachable="cached", spool=tmp_path / "spool") as runtime:
        session: Any = runtime.session("bot", "Help")
        with pytest.raises(CallRefused):
            session.call("ticket.get", never)
        supposed = {
            "request_id": new_id(),
            "requester": {"agent_id": "bot", "session_id": session.id},
            "task": {"goal": "Help", "risk_tier": "high"},
            "context": {"env": "staging"},
        }
        assert "ticket.get" in {action.action_id for action in runtime.resolve(supposed).allowed_actions}
        with pytest.raises(CallRefused):
            session.call("ticket.get", never)
        served.gone()
        with pytest.raises(RuntimeUnreachable):
            session.call("ticket.get", never)


def test_what_a_narrower_request_denies(serve: Any, tmp_path: Path) -> None:
    """Its no counts, though its yes does not."""
    told = atlas()
    told["policies"].append(
        {
            "policy_id": "no",
            "type": "deny",
            "actions": ["ticket.get"],
            "conditions": {"risk_tiers": ["high", "critical"]},
        }
    )
    served: Served = serve(told)
    with served.connect(timeout_seconds=10, on_unreachable="cached", spool=tmp_path / "spool") as runtime:
        session: Any = runtime.session("bot", "Help")
        runtime.resolve(
            {
                "request_id": new_id(),
                "requester": {"agent_id": "bot", "session_id": session.id},
                "task": {"goal": "Help", "risk_tier": "high"},
            }
        )
        served.gone()
        with pytest.raises(RuntimeUnreachable):
            session.call("ticket.get", never)
        assert session.call("ticket.list", lambda: 1) == 1


def test_a_machine_that_slept(serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its monotonic clock stood still; by the other one the server's answer has expired."""
    served: Served = serve()
    with served.connect(timeout_seconds=10, on_unreachable="cached", spool=tmp_path / "spool") as runtime:
        session: Any = runtime.session("bot", "Help")
        served.gone()
        assert session.call("ticket.get", lambda: 1) == 1
        now = time.time_ns
        with monkeypatch.context() as patch:
            patch.setattr("cra_middleware._clock.time.time_ns", lambda: now() + 3601 * 10**9)
            with pytest.raises(RuntimeUnreachable):
                session.call("ticket.get", never)
        with monkeypatch.context() as patch:  # set back: the monotonic one counts on
            patch.setattr("cra_middleware._clock.time.time_ns", lambda: now() - 7200 * 10**9)
            monotonic = time.monotonic
            patch.setattr("cra_middleware.client.offline.time.monotonic", lambda: monotonic() + 3601)
            with pytest.raises(RuntimeUnreachable):
                session.call("ticket.get", never)


def test_a_server_that_cannot_take_it_now(serve: Any, between: Between) -> None:
    """What was recorded offline stays where it is until it is taken; no passing trouble is a refusal."""
    served: Served = serve()
    spool = served.folder / "spool"
    with through(between, served) as runtime:
        session: Any = runtime.session("bot", "Help")
        between.answer = (503, *PAGE)
        assert session.call("ticket.get", lambda: 1) == 1
        (path,) = spool.glob("*.trace.jsonl")
        between.only = "PUT"
        for status, code in (
            (500, "STORAGE_LOCKED"),
            (502, "IO_ERROR"),
            (429, "RATE_LIMIT_EXCEEDED"),
            (503, "UNAVAILABLE"),
        ):
            between.answer = (status, *problem(code))
            assert session._offline.is_over()
            assert not runtime._spool.upload(), code
            assert path.exists(), code
        for status, code in ((401, "UNAUTHORIZED"), (403, "FORBIDDEN"), (500, "INTERNAL_ERROR")):
            between.answer = (status, *problem(code, recoverable=False))
            assert runtime._spool.upload() is (status == 403), code  # another key is not to be had by waiting
            assert path.exists(), code
        between.answer = None
        assert runtime._spool.upload()
        until(lambda: list(spool.glob("*.uploaded")), 20)
    assert served.outcomes(path.name[:36]) == [("action.executed", "ticket.get")]


def test_one_that_runs_while_the_server_is_back(serve: Any, tmp_path: Path) -> None:
    """Its outcome is recorded offline, and handed over with the rest."""
    served: Served = serve()
    spool = tmp_path / "spool"
    with served.connect(timeout_seconds=10, on_unreachable="cached", spool=spool) as runtime:
        session: Any = runtime.session("bot", "Help")
        served.gone()

        def slow() -> int:
            served.back()
            until(lambda: session._offline._open is None)
            time.sleep(0.5)
            return 7

        assert session.call("ticket.get", slow) == 7
        (path,) = spool.glob("*.trace.jsonl*")
        until(lambda: list(spool.glob("*.uploaded")), 20)
    assert served.outcomes(path.name[:36]) == [("action.executed", "ticket.get")]


@pytest.mark.slow
def test_two_processes_of_one_spool(serve: Any, tmp_path: Path) -> None:
    """They may hand the same file over at once: whoever is told that another is at it asks again, and none is lost."""
    served: Served = serve()
    spool = tmp_path / "spool"
    with served.connect(timeout_seconds=10, on_unreachable="cached", spool=spool) as runtime:
        session: Any = runtime.session("bot", "Help")
        served.gone()
        for _ in range(3):
            assert session.call("ticket.get", lambda: 1) == 1
            session._offline.is_over()
        assert len(list(spool.glob("*.trace.jsonl"))) == 3
        served.back()
        connection = Connection(served.url, served.key("bot"))
        others = [Spool(spool, connection, LocalRuntime) for _ in range(8)]
        raised: list[BaseException] = []

        def hand_over(one: Spool) -> None:
            until = time.monotonic() + 20
            try:
                while not one.upload():  # another is at the same file just now
                    assert time.monotonic() < until
                    time.sleep(0.05)
            except BaseException as error:
                raised.append(error)

        threads = [threading.Thread(target=hand_over, args=(one,)) for one in others]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        connection.close()
        assert raised == []
        assert len(list(spool.glob("*.uploaded"))) == 3


def test_another_session_of_that_id(serve: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Somebody who saw the id begins one at the server: what was recorded offline is not taken for handed over."""
    served: Served = serve()
    spool = tmp_path / "spool"
    with served.connect(timeout_seconds=10, on_unreachable="cached", spool=spool) as runtime:
        session: Any = runtime.session("bot", "Help")
        served.gone()
        assert session.call("ticket.get", lambda: 1) == 1
        (path,) = spool.glob("*.trace.jsonl")
        offline = path.name[:36]
        session._offline.is_over()
        with served.connect("other") as other:
            with session._link.spool._lock:  # nothing is handed over before the other session is there
                served.back()
                other.session("bot", "Help", session_id=offline)
            until(lambda: not path.exists(), 20)
    assert [one.name for one in spool.iterdir()] == [path.name + ".refused"]
    assert "does not take offline session" in caplog.text


def test_a_long_absence(serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is recorded in several sessions: a server takes over so many bytes at once, and no more."""
    monkeypatch.setattr("cra_middleware.client.offline.MOST_EVENTS", 10)
    served: Served = serve()
    spool = tmp_path / "spool"
    with served.connect(timeout_seconds=10, on_unreachable="cached", spool=spool) as runtime:
        session: Any = runtime.session("bot", "Help")
        served.gone()
        for _ in range(7):
            assert session.call("ticket.get", lambda: 1) == 1
        paths = list(spool.glob("*.trace.jsonl"))
        assert len(paths) > 1
        served.back()
        until(lambda: len(list(spool.glob("*.uploaded"))) == len(paths), 20)
    assert sum(len(served.outcomes(path.name[:36])) for path in paths) == 7


KILLED = """
import sys, time
from cra_middleware import Runtime

url, key, spool = sys.argv[1:]
runtime = Runtime.connect(url, api_key=key, timeout_seconds=10, on_unreachable="cached", spool=spool)
session = runtime.session("bot", "Help")
print("ready", flush=True)
sys.stdin.readline()
print(session.call("ticket.get", lambda: 1), flush=True)
session.call("ticket.list", lambda: (print("in", flush=True), time.sleep(60)))
"""


@pytest.mark.slow
def test_a_process_that_is_killed_offline(serve: Any, tmp_path: Path) -> None:
    """The next one hands over what it had recorded, whatever else lies in the spool."""
    served: Served = serve()
    spool = tmp_path / "spool"
    command = [sys.executable, "-c", KILLED, served.url, served.key("bot"), str(spool)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        served.gone()
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "1\n"
        assert process.stdout.readline() == "in\n"
        process.kill()
    (path,) = spool.glob("*.trace.jsonl")
    for junk in (b"", b"junk\n", b"\xff\xfe{"):
        (spool / f"{new_id()}.trace.jsonl").write_bytes(junk)
    (spool / f"{new_id()}.trace.jsonl").mkdir()
    served.back()
    with served.connect(on_unreachable="cached", spool=spool):
        until(lambda: list(spool.glob("*.uploaded")), 20)
    kinds = [kind for kind, _ in served.events(path.name[:36]) if kind.startswith(("action", "session.ended"))]
    one = ["action.requested", "action.approved"]
    assert kinds == [*one, "action.executed", *one, "session.ended"]
