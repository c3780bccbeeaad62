"""A server that is killed, slow, gone, back, or none at all: no tool runs by accident, and no outcome is made up."""

from __future__ import annotations

import asyncio
import http.server
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from uuid import uuid4

import pytest

from cra_middleware import AuditUnavailable, CallRefused, ChainBroken, Runtime, SinkError, verify
from cra_middleware.client.connection import Connection, Problem, problem_in
from cra_middleware.client.offline import unconditional
from cra_middleware.client.refusals import resume_error
from cra_middleware.errors import RuntimeUnreachable, SessionEnded
from tests.client.served import Served, atlas, until


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test need not wait as long between two tries as an agent should."""
    monkeypatch.setattr("cra_middleware.client.connection._FIRST_PAUSE_SECONDS", 0.01)


def never(*args: object, **kwargs: object) -> None:
    raise AssertionError("it ran")


@pytest.mark.slow
def test_killed_while_a_tool_runs(serve: Any) -> None:
    """The tool's value comes out; the outcome is told to the server that is started again; the chain goes on."""
    served: Served = serve()
    with served.connect(timeout_seconds=30) as runtime:
        session = runtime.session("bot", "Help")

        def tool() -> str:
            served.gone()
            return "value"

        assert session.call("ticket.get", tool) == "value"
        with pytest.raises(RuntimeUnreachable):
            session.call("ticket.get", never)
        served.back()
        assert session.call("ticket.list", lambda: "more") == "more"
        session.end()
    calls = [kind for kind, _ in served.events(session.id) if kind.startswith("action.")]
    assert calls == ["action.requested", "action.approved", "action.executed"] * 2
    assert verify(served.traces / f"{session.id}.trace.jsonl").sealed


def test_killed_while_it_decides(serve: Any) -> None:
    """The same question is asked again, as the same request: it runs once, is recorded once and counted once."""
    served: Served = serve()
    with served.connect() as runtime:
        session = runtime.session("bot", "Help")
        session.call("ticket.update", lambda: None)
        session.flush()
        served.freeze()
        ran: list[int] = []
        thread = threading.Thread(target=lambda: session.call("ticket.update", lambda: ran.append(1)))
        thread.start()
        time.sleep(0.3)
        served.kill()
        served.start()
        thread.join(20)
        assert ran == [1]
        with pytest.raises(CallRefused, match="few"):
            session.call("ticket.update", never)
        session.end()
    assert served.outcomes(session.id) == [
        *[("action.executed", "ticket.update")] * 2,
        ("action.denied", "ticket.update"),
    ]


def test_slow(serve: Any) -> None:
    """What is not decided in time does not run; when the server wakes up, the session goes on."""
    served: Served = serve()
    served.connect().close()
    with served.connect(timeout_seconds=5) as warm, warm.session("bot", "Help"):
        pass
    with served.connect(timeout_seconds=0.4) as runtime:
        session = runtime.session("bot", "Help")
        served.freeze()
        began = time.monotonic()
        with pytest.raises(RuntimeUnreachable, match="not to be reached"):
            session.call("ticket.get", never)
        assert time.monotonic() - began < 2
        served.thaw()
        assert session.call("ticket.get", lambda: "value") == "value"


def test_gone(serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Everything is refused, sessions end quietly, and the log says what is not known at the server."""
    served: Served = serve()
    with served.connect(timeout_seconds=3) as runtime:
        session = runtime.session("bot", "Help")

        def tool() -> str:
            served.gone()
            return "value"

        assert session.call("ticket.get", tool) == "value"
        for refused in (
            lambda: session.call("ticket.get", never),
            lambda: runtime.session("bot", "Help"),
            lambda: session.reject(session.freeze("ticket.get", "tool", {}), "no"),
        ):
            with pytest.raises(RuntimeUnreachable) as error:
                refused()
            assert error.value.code == "runtime_unreachable"
        for failed in (session.flush, session.verify, lambda: session.note("code", "message")):
            with pytest.raises(SinkError):
                failed()
    assert "does not know how it came out" in caplog.text
    assert "ends unsealed" in caplog.text
    assert not session.is_open


def test_an_outcome_that_nobody_tells(serve: Any) -> None:
    """A client that vanishes: the server closes the call itself, and says that it does not know."""
    served: Served = serve(timeout=1)
    with served.connect() as runtime:
        session = runtime.session("bot", "Help", keep=True)
        left = session.begin(session.freeze("ticket.get", "tool", {}))
        until(lambda: ("action.failed", "ticket.get") in served.outcomes(session.id))
    assert dict(served.events(session.id))["action.failed"]["error_code"] == "outcome_unknown"
    assert left is not None


def test_cached(serve: Any, tmp_path: Path) -> None:
    """Unconditional actions run while the server is away, recorded in a session of its own that is handed over."""
    schema = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}
    told = atlas()
    told["actions"][0]["parameters_schema"] = schema
    served: Served = serve(told)
    spool = tmp_path / "spool"
    with served.connect(timeout_seconds=10, on_unreachable="cached", spool=spool) as runtime:
        session = runtime.session("bot", "Help")
        assert {action.action_id for action in unconditional(session.resolution)} == {"ticket.get", "ticket.list"}
        served.gone()
        assert session.call("ticket.get", lambda n: n + 1, 1) == 2
        with pytest.raises(CallRefused, match="n"):
            session.call("ticket.get", never, "x")
        for action_id in ("ticket.delete", "refund.create", "ticket.update", "nothing.there"):
            with pytest.raises(RuntimeUnreachable):
                session.call(action_id, never)
        (path,) = spool.glob("*.trace.jsonl")
        served.back()
        until(lambda: list(spool.glob("*.uploaded")), 20)
        assert session.call("ticket.get", lambda n: n, 3) == 3
        session.end()
    offline = path.name.removesuffix(".trace.jsonl")
    refused = ["ticket.get", "ticket.delete", "refund.create", "ticket.update", "nothing.there"]
    assert served.outcomes(offline) == [("action.executed", "ticket.get"), *(("action.denied", it) for it in refused)]
    codes = [told["code"] for kind, told in served.events(offline) if kind == "action.denied"]
    assert codes == ["invalid_parameters"] + ["runtime_unreachable"] * 4
    first = served.events(offline)[0][1]
    assert first["metadata"]["offline_of"] == session.id
    assert verify(served.traces / path.name).sealed
    assert served.outcomes(session.id) == [("action.executed", "ticket.get")]


def test_cached_never_runs_what_the_server_runs(serve: Any, tmp_path: Path) -> None:
    """Whether the server is away before the call, or dies with it; not in one function, nor in two places."""
    served: Served = serve(keyed="executors")
    with served.connect(on_unreachable="cached", spool=tmp_path / "spool") as runtime:
        session = runtime.session("bot", "Help")
        assert "ticket.list" in {action.action_id for action in unconditional(session.resolution)}
        assert session.call("ticket.list", never) == ["T-1", "T-2"]
        served.gone()
        for _ in range(2):
            with pytest.raises(RuntimeUnreachable):
                session.call("ticket.list", never)
            with pytest.raises(RuntimeUnreachable):
                session.begin(session.freeze("ticket.list", "tool", {}))
            assert session.call("ticket.get", lambda: 1) == 1
        with pytest.raises(RuntimeUnreachable):
            asyncio.run(session.acall("ticket.list", never))


def test_cached_expires(serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the server's last answer has expired, nothing runs; what was begun is handed over by a later process."""
    served: Served = serve()
    spool = tmp_path / "spool"
    runtime = served.connect(timeout_seconds=10, on_unreachable="cached", spool=spool)
    session = runtime.session("bot", "Help")
    served.gone()
    assert session.call("ticket.get", lambda: 1) == 1
    now = time.monotonic
    with monkeypatch.context() as patch:
        patch.setattr("cra_middleware.client.offline.time.monotonic", lambda: now() + 3601)
        with pytest.raises(RuntimeUnreachable):
            session.call("ticket.get", never)
    runtime.close()
    (path,) = spool.glob("*.trace.jsonl")
    served.back()
    with served.connect(on_unreachable="cached", spool=spool):
        until(lambda: list(spool.glob("*.uploaded")), 20)
    assert served.outcomes(path.name[:36]) == [("action.executed", "ticket.get"), ("action.denied", "ticket.get")]


def test_cached_where_nothing_may_run(
    serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What was refused is recorded all the same, sync and async; a full disk changes nothing about it."""
    served: Served = serve(atlas(policies=[]))
    spool = tmp_path / "spool"
    with served.connect(timeout_seconds=10, on_unreachable="cached", spool=spool) as runtime:
        session = runtime.session("bot", "Help")
        assert unconditional(session.resolution) == []
        served.gone()
        with monkeypatch.context() as patch:

            def full(*asked: object, **more: object) -> None:
                raise SinkError("the disk is full")

            patch.setattr("cra_middleware.client.offline.Offline._begin", full)
            with pytest.raises(RuntimeUnreachable):
                session.call("ticket.get", never)
            assert "a refusal of ticket.get is not recorded: the disk is full" in caplog.text
        with pytest.raises(RuntimeUnreachable) as refused:
            session.call("ticket.get", never)
        with pytest.raises(RuntimeUnreachable):
            asyncio.run(session.acall("ticket.list", never))
        (path,) = spool.glob("*.trace.jsonl")
        served.back()
        until(lambda: list(spool.glob("*.uploaded")), 20)
    assert served.outcomes(path.name[:36]) == [("action.denied", "ticket.get"), ("action.denied", "ticket.list")]
    told = dict(served.events(path.name[:36]))["action.denied"]
    assert (told["code"], told["reason"]) == ("runtime_unreachable", refused.value.reason)
    assert verify(served.traces / path.name).sealed


def test_cached_needs_a_spool() -> None:
    """What runs is recorded somewhere."""
    with pytest.raises(ValueError, match="spool"):
        Runtime.connect("http://127.0.0.1:1", on_unreachable="cached")
    with pytest.raises(ValueError, match="on_unreachable"):
        Runtime.connect("http://127.0.0.1:1", on_unreachable="allow")  # type: ignore[arg-type]


def test_a_key_that_does_not_count(serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    """401 and 403 are refusals, also in the middle of a session and also when calls may run unasked; no key is told."""
    caplog.set_level(logging.DEBUG)
    served: Served = serve()
    spool = served.folder / "spool"
    with Runtime.connect(served.url, api_key="cra_00000000_wrong-and-secret") as stranger:
        with pytest.raises(CallRefused) as refused:
            stranger.session("bot", "Help")
    assert refused.value.code == "unauthorized"
    narrow = served.key("narrow", agents=("cleaner",))
    with Runtime.connect(served.url, api_key=narrow) as other, pytest.raises(CallRefused) as refused:
        other.session("bot", "Help")
    assert refused.value.code == "forbidden"
    with served.connect("fired", on_unreachable="cached", spool=spool) as runtime:
        session = runtime.session("bot", "Help", keep=True)
        from cra_middleware.server.places import open_keys, state_folder

        keys = open_keys(state_folder(served.traces))
        assert keys.revoke("fired", time.time_ns() // 1000)
        keys.close()
        time.sleep(1.1)
        with pytest.raises(CallRefused) as refused:
            session.call("ticket.get", never)
        assert refused.value.code == "unauthorized"
    told = caplog.text + str(refused.value) + repr(runtime) + repr(session)
    for secret in ("wrong-and-secret", narrow, served.key("fired")):
        assert secret not in told


def test_when_a_server_says_when_to_ask_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is never asked earlier, and not by all at the same moment."""
    body = b'{"error": {"code": "UNAVAILABLE", "message": "stopping", "recoverable": true}}'

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(503)
            self.send_header("retry-after", "7")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            return

    pauses = list[float]()
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=pauses.append)
    monkeypatch.setattr("cra_middleware.client.connection.time", clock)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        connection = Connection(f"http://127.0.0.1:{server.server_address[1]}", timeout_seconds=600)
        for _ in range(4):
            assert connection.ask("GET", "/v1/health").status == 503
        connection.close()
        server.shutdown()
    assert len(set(pauses)) == len(pauses) == 12
    assert all(7 <= pause <= 10.5 for pause in pauses)
    assert max(pauses) > 7.1


def test_a_time_to_ask_again_that_is_none() -> None:
    """Is none: the answer itself is read all the same."""
    found = problem_in(b'{"error": {"code": "UNAVAILABLE"}}', "²")
    assert found == Problem("UNAVAILABLE", "", False, None, {})


def test_a_session_that_expired(serve: Any) -> None:
    """A call is refused as in one that has ended, with a sentence that says what to do; it cannot be gone on with."""
    served: Served = serve(expires=0.5)
    with served.connect() as runtime:
        session = runtime.session("bot", "Help", keep=True)
        until(lambda: served.events(session.id)[-1][0] == "session.ended")
        for refused, error in ((lambda: session.call("ticket.get", never), SessionEnded), (session.resolve, SinkError)):
            with pytest.raises(error, match="has expired: nobody called it for long; start a new one"):
                refused()
        with pytest.raises(ValueError, match="has expired"):
            runtime.session("bot", "Help", parent=session)
        session.detach()
        with pytest.raises(ChainBroken, match="has expired"):
            runtime.resume(session.id)
        with served.connect() as again, pytest.raises(ChainBroken, match="has expired"):
            again.resume(session.id)
    late = resume_error(Problem("SESSION_EXPIRED", "has expired", False, None, {}))  # between its two questions
    assert isinstance(late, ChainBroken)


def test_another_keys_session(serve: Any) -> None:
    """Who did not open a session cannot go on with it; who did can, on another machine, until it has ended."""
    served: Served = serve()
    with served.connect() as first, served.connect("other") as other, served.connect() as second:
        session = first.session("bot", "Help", keep=True)
        with pytest.raises(SinkError):
            other.resume(session.id)
        session.call("ticket.get", lambda: 1)
        session.detach()
        again = second.resume(session.id)
        assert again.call("ticket.list", lambda: 2) == 2
        again.end()
        with pytest.raises(ChainBroken):
            first.resume(session.id)
        with pytest.raises(SinkError):
            first.resume("../../etc")
    assert [name for _, name in served.outcomes(session.id)] == ["ticket.get", "ticket.list"]


class _Nonsense(http.server.BaseHTTPRequestHandler):
    """Answers as no such server does."""

    answer: tuple[int, dict[str, str], bytes] = (200, {}, b"")
    asked: ClassVar[list[str]] = []

    def _any(self) -> None:
        type(self).asked.append(self.path)
        self.rfile.read(int(self.headers.get("content-length", 0)))
        status, headers, data = self.answer
        self.send_response(status)
        for name, value in {"content-length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = _any

    def log_message(self, *args: object) -> None:
        return


@pytest.fixture
def nonsense() -> Iterator[tuple[str, type[_Nonsense]]]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Nonsense) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", _Nonsense
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    "answer",
    [
        (200, {}, b"<html>hello</html>"),
        (201, {}, b"[]"),
        (201, {}, b'{"resolution": {}}'),
        (204, {}, b""),
        (302, {"location": "http://127.0.0.1:1/v1/sessions"}, b""),
        (307, {"location": "/elsewhere"}, b""),
        (403, {}, b"forbidden by proxy"),
        (502, {}, b"bad gateway"),
    ],
    ids=lambda answer: f"{answer[0]} {answer[2].decode()[:12]}",
)
def test_what_is_no_server_of_ours(nonsense: Any, answer: tuple[int, dict[str, str], bytes]) -> None:
    """A page, a redirect, a balancer: no answer at all, and no redirect is followed."""
    url, handler = nonsense
    handler.answer, handler.asked = answer, []
    with Runtime.connect(url, api_key="cra_key", timeout_seconds=1) as runtime, pytest.raises(RuntimeUnreachable):
        runtime.session("bot", "Help")
    assert set(handler.asked) == {"/v1/sessions"}


@pytest.mark.parametrize(
    "url", ["cra:8420", "ftp://cra", "http://", "https://bot:secret@cra", "http://cra/?key=secret"]
)
def test_addresses(url: str) -> None:
    """What is no address, or holds a secret, is refused; the message holds none."""
    with pytest.raises(ValueError, match="url") as refused:
        Runtime.connect(url)
    assert "secret" not in str(refused.value)


def test_a_wrong_address_is_named(serve: Any, tmp_path: Path) -> None:
    """Whoever begins or goes on with a session reads where the server was looked for; a model's sentence has none."""
    served: Served = serve()
    with Runtime.connect("http://127.0.0.1:1", timeout_seconds=1) as runtime:
        for begun in (lambda: runtime.session("bot", "Help"), lambda: runtime.resume(str(uuid4()))):
            with pytest.raises(RuntimeUnreachable, match=r"looked for at http://127\.0\.0\.1:1\b"):
                begun()
    with Runtime.connect(f"{served.url}/v1", api_key=served.key("bot")) as runtime:
        with pytest.raises(ValueError, match=f"nothing at {served.url}/v1/v1/sessions: is the url where the server"):
            runtime.session("bot", "Help")
        with pytest.raises(SinkError, match=f"nothing at {served.url}/v1/v1/sessions/.*: is the url where the server"):
            runtime.resume(str(uuid4()))
    (tmp_path / "none.pem").write_text("no certificate")
    for name in ("missing.pem", "none.pem"):
        with pytest.raises(ValueError, match=f"ca_file .*{name} cannot be used"):
            Runtime.connect("https://127.0.0.1:1", ca_file=tmp_path / name)
    with served.connect(timeout_seconds=1) as runtime:
        session = runtime.session("bot", "Help")
        served.gone()
        with pytest.raises(RuntimeUnreachable) as refused:
            session.call("ticket.get", never)
        assert served.url not in str(refused.value)


def test_a_key_that_cannot_be_sent() -> None:
    """It would be two headers."""
    with pytest.raises(ValueError, match="api_key") as refused:
        Runtime.connect("http://127.0.0.1:1", api_key="secret\r\nX-Other: 1")
    assert "secret" not in str(refused.value)


def test_a_proxy_of_the_environment_is_not_told_the_key(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment may not lead requests elsewhere."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with serve().connect() as runtime, runtime.session("bot", "Help") as session:
        assert session.call("ticket.get", lambda: 1) == 1


def test_a_certificate_that_nobody_vouches_for(tmp_path: Path) -> None:
    """TLS is verified, always; ``ca_file`` names whom to trust."""
    import ssl
    import subprocess

    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost "
        f"-addext subjectAltName=DNS:localhost -keyout {key} -out {certificate}",
        shell=True,
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    _Nonsense.answer = (200, {}, b'{"ok": true}')
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Nonsense)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"https://localhost:{server.server_address[1]}"
    try:
        with pytest.raises(RuntimeUnreachable, match="ertificate"):
            Connection(url, timeout_seconds=2).ask("GET", "/v1/health")
        trusted = Connection(url, timeout_seconds=2, ca_file=certificate)
        assert trusted.ask("GET", "/v1/health").json() == {"ok": True}
        trusted.close()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_forked_child(served: Served, runtime: Runtime) -> None:
    """It uses connections of its own, and both go on."""
    with runtime.session("bot", "Help") as session:
        session.call("ticket.get", lambda: 1)
        session.flush()
        parents: Any = runtime._connection._client  # type: ignore[attr-defined]
        child = os.fork()
        name, status = ("ticket.get" if child == 0 else "ticket.list"), 1
        try:
            told = [session.call(name, lambda number=number: number) for number in range(20)]
            session.flush()
            is_own = (runtime._connection._client is parents) is (child != 0)  # type: ignore[attr-defined]
            status = int(told != list(range(20)) or not is_own)
        finally:
            if child == 0:
                os._exit(status)
        assert status == 0
        assert os.waitpid(child, 0)[1] == 0
    outcomes = served.outcomes(session.id)
    assert outcomes.count(("action.executed", "ticket.get")) == 21
    assert outcomes.count(("action.executed", "ticket.list")) == 20


def test_a_server_that_cannot_write(serve: Any) -> None:
    """Its own trouble is told as its own: the decision could not be recorded."""
    served: Served = serve()
    with served.connect(timeout_seconds=3) as runtime:
        session = runtime.session("bot", "Help")
        served.stop()
        path = served.traces / f"{session.id}.trace.jsonl"
        path.write_bytes(path.read_bytes()[:-2] + b"x\n{}\n")
        served.start()
        with pytest.raises((AuditUnavailable, CallRefused)) as refused:
            session.call("ticket.get", never)
        assert not isinstance(refused.value, RuntimeUnreachable)
