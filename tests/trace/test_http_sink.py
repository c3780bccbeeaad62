"""The sink for a receiver elsewhere: nothing is lost while it is away, and it may answer what it likes."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from cra_middleware import Atlas, Runtime
from cra_middleware.errors import AuditUnavailable, SinkError
from cra_middleware.trace.chain import verify_lines
from cra_middleware.trace.sinks import http
from cra_middleware.trace.sinks.http import HttpSink
from cra_middleware.trace.sinks.http_client import Acknowledged, Batch, HttpClient, Later, Refused
from cra_middleware.trace.sinks.sqlite import SqliteSink
from tests.conftest import manifest
from tests.trace.places import in_child
from tests.trace.receiver import Receiver, answer

pytest.importorskip("httpx", reason="HttpSink needs the http extra")
ID = "01900000-0000-7000-8000-00000000000a"
ATLAS = Atlas.from_dict(manifest())
BATCH = Batch(ID, 0, 0, b"one\n")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses are short."""
    monkeypatch.setattr(http, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(http, "_LONGEST_PAUSE", 0.02)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.stop()


def opened(receiver: Receiver, folder: Path, **options: Any) -> HttpSink:
    return HttpSink(receiver.url, folder / "spool", **{"interval_seconds": 0.01, "close_seconds": 2.0, **options})


def away(receiver: Receiver) -> Receiver:
    """The receiver is stopped; another may be started on its port and its store."""
    receiver.stop()
    return receiver


def until(what: Callable[[], object]) -> None:
    """Wait until it is so, at most 5 seconds."""
    deadline = time.monotonic() + 5
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_receiver_that_comes_back(tmp_path: Path, receiver: Receiver) -> None:
    """Calls go on while it is away; everything arrives once it is back, once and in order."""
    sink = opened(receiver, tmp_path)
    with Runtime(ATLAS, trace=sink) as runtime, runtime.session() as session:
        session.call("ticket.get", lambda: None)
        session._log.flush()
        known = session._log.durable_events
        away(receiver)
        session.call("ticket.get", lambda: None)
        assert session._log.durable_events == session._log.witnessed_events == known
        until(lambda: "is away" in sink.health().detail)
        back = Receiver(receiver.store, receiver.port)
        session._log.flush()
        assert session._log.witnessed_events == session._writer.end.sequence > known
    assert str(verify_lines(receiver.store.lines(session.id))[0]) == "INTACT, SEALED"
    assert sink.waiting_bytes == 0
    back.stop()


def test_the_spool_outlives_the_process(tmp_path: Path, receiver: Receiver) -> None:
    """What was not sent when the process ended is sent by the next one, and what was is not sent again."""
    sink = opened(receiver, tmp_path, close_seconds=0.05, flush_seconds=0.05)
    with Runtime(ATLAS, trace=sink) as runtime:
        first = runtime.session()
        first._log.flush()
        away(receiver)
        first.call("ticket.get", lambda: None)
        with pytest.raises(SinkError, match="wait in the spool") as caught:
            first._log.flush()
        assert caught.value.is_transient
        first.end()
        with runtime.session() as second:
            second.call("ticket.get", lambda: None)
    back = Receiver(receiver.store, receiver.port)
    again = opened(back, tmp_path)
    until(lambda: not again.waiting_bytes)
    for session in (first, second):
        assert str(verify_lines(receiver.store.lines(session.id))[0]) == "INTACT, SEALED"
    assert [request["Cra-First-Sequence"] for request in back.requests] == ["4", "0"]
    again.close()
    assert list((tmp_path / "spool").glob("*.jsonl")) == []
    assert not list((tmp_path / "spool").glob("*.sent"))
    back.stop()


def test_a_bounded_spool(tmp_path: Path, receiver: Receiver) -> None:
    """When as much waits as may, events are refused for now, and the tool does not run."""
    away(receiver)
    sink = opened(receiver, tmp_path, spool_bytes=6000, close_seconds=0.05)
    with Runtime(ATLAS, trace=sink) as runtime:
        session = runtime.session()

        def call_on() -> None:
            while True:
                session.call("ticket.get", lambda: None)

        with pytest.raises(AuditUnavailable, match="wait in the spool"):
            call_on()
        with pytest.raises(SinkError) as caught:
            session._log.append(session._writer.end.offset, b"x" * 6000 + b"\n", 99)
        assert caught.value.is_transient
        back = Receiver(receiver.store, receiver.port)
        until(lambda: not sink.waiting_bytes)
        session.call("ticket.get", lambda: None)
        session.end()
    back.stop()


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_answers_that_pass(tmp_path: Path, receiver: Receiver, status: int) -> None:
    """What may pass is tried again, and the log takes events meanwhile."""
    receiver.script += [lambda request: answer(request, status, b"busy")] * 3
    sink = opened(receiver, tmp_path)
    log = sink.create(ID)
    log.append(0, b"one\n", 1)
    log.flush()
    assert len(receiver.requests) == 4
    assert len({request["Idempotency-Key"] for request in receiver.requests}) == 1
    log.close()
    sink.close()


@pytest.mark.parametrize("status", [204, 301, 400, 401, 403, 404, 413, 422])
def test_answers_that_do_not_pass(tmp_path: Path, receiver: Receiver, status: int) -> None:
    """What is refused for good fails the session's log, and only that; what is spooled stays."""
    receiver.script.append(lambda request: answer(request, status, b"", Location="http://127.0.0.1:1/"))
    sink = opened(receiver, tmp_path)
    log = sink.create(ID)
    log.append(0, b"one\n", 1)
    with pytest.raises(SinkError, match="takes no more events") as caught:
        log.flush()
    assert not caught.value.is_transient
    with pytest.raises(SinkError, match="takes no more events"):
        log.append(4, b"two\n", 2)
    assert not sink.health().ok
    assert list(sink.lines(ID)) == [b"one\n"]
    other = sink.create(ID[:-1] + "b")
    other.append(0, b"one\n", 1)
    other.flush()
    sink.close()


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b"7", b"null", b"{}", b'{"events": "1"}', b'{"events": true}', b'{"events": -1}'),
        *(b'{"events": 1.0}', b'{"events": 1e99}', b'{"events": 99999999999999999999999}', b"\xff" * 9, b"[" * 60_000),
        *(b" " * 70_000, b'{"events": 2}'),
    ],
    ids=lambda body: body[:24].decode(errors="replace"),
)
@pytest.mark.parametrize("status", [200, 409])
def test_hostile_answers(tmp_path: Path, receiver: Receiver, status: int, body: bytes) -> None:
    """An answer that is no answer, or names events that never were, fails the log with a sentence."""
    receiver.script.append(lambda request: answer(request, status, body))
    sink = opened(receiver, tmp_path)
    log = sink.create(ID)
    log.append(0, b"one\n", 1)
    with pytest.raises(SinkError, match=r"takes no more|another writer"):
        log.flush()
    assert log.witnessed_events == 0
    sink.close()


def test_a_receiver_that_lost_events(tmp_path: Path, receiver: Receiver) -> None:
    """One that holds less than it said is sent the rest again, from where it stands."""
    sink = opened(receiver, tmp_path)
    log = sink.create(ID)
    for events in (1, 2, 3):
        log.append(4 * events - 4, b"one\n", events)
        log.flush()
    receiver._log(ID).append(4, b"", 1)
    log.append(12, b"two\n", 4)
    log.flush()
    assert list(receiver.store.lines(ID)) == [b"one\n", b"one\n", b"one\n", b"two\n"]
    assert receiver.requests[-1]["Cra-First-Sequence"] == "1"
    sink.close()


def test_a_receiver_that_does_not_get_on(tmp_path: Path, receiver: Receiver) -> None:
    """One that says the same place again and again is not asked for ever."""
    receiver.script += [lambda request: answer(request, 409, {"events": 0})] * 9
    sink = opened(receiver, tmp_path)
    log = sink.create(ID)
    log.append(0, b"one\n", 1)
    with pytest.raises(SinkError, match="does not get on"):
        log.flush()
    assert len(receiver.requests) == 5
    sink.close()


def test_an_answer_that_is_lost(tmp_path: Path, receiver: Receiver) -> None:
    """A batch that arrived, but whose answer did not, is sent again and stands there once."""

    def take_and_hang_up(request: Any) -> None:
        receiver._log(ID).append(0, b"one\n", 1)
        request.close_connection = True
        request.connection.shutdown(socket.SHUT_RDWR)

    receiver.script.append(take_and_hang_up)
    sink = opened(receiver, tmp_path)
    log = sink.create(ID)
    log.append(0, b"one\n", 1)
    log.flush()
    assert list(receiver.store.lines(ID)) == [b"one\n"]
    assert len(receiver.requests) == 2
    sink.close()


def test_what_is_taken_back(tmp_path: Path, receiver: Receiver) -> None:
    """An event that was sent and then taken back is replaced there, and not counted as witnessed."""
    sink = opened(receiver, tmp_path)
    log = sink.create(ID)
    log.append(0, b"one\ntwo\n", 2)
    log.flush()
    log.append(4, b"", 1)
    assert log.witnessed_events == 1
    log.append(4, b"2\n", 2)
    log.flush()
    assert list(receiver.store.lines(ID)) == [b"one\n", b"2\n"]
    sink.close()


def test_taken_back_on_the_way(tmp_path: Path, receiver: Receiver) -> None:
    """An event that is taken back while it is sent is not counted when the answer comes."""
    held, go = threading.Event(), threading.Event()

    def hold(request: Any) -> None:
        receiver._log(ID).append(0, b"one\ntwo\n", 2)
        held.set()
        go.wait(5)
        answer(request, 200, {"events": 2})

    receiver.script.append(hold)
    sink = opened(receiver, tmp_path)
    log = sink.create(ID)
    log.append(0, b"one\ntwo\n", 2)
    assert held.wait(5)
    log.append(4, b"2\n", 2)
    go.set()
    log.flush()
    assert list(receiver.store.lines(ID)) == [b"one\n", b"2\n"]
    sink.close()


def test_large_batches(tmp_path: Path, receiver: Receiver) -> None:
    """A log larger than one batch, with lines larger than one, arrives whole."""
    lines = [b"x" * size + b"\n" for size in (700_000, 10, 300_000, 300_000, 1_200_000, 0)]
    sink = opened(receiver, tmp_path)
    log = sink.create(ID)
    log.append(0, b"".join(lines), 6)
    log.flush()
    assert list(receiver.store.lines(ID)) == lines
    assert len(receiver.requests) > 2
    sink.close()


def test_a_receiver_on_sqlite(tmp_path: Path) -> None:
    """The receiver's part can be kept by any store; what arrives there is a trace like any other."""
    store = SqliteSink(tmp_path / "traces.db")
    receiver = Receiver(store)
    with Runtime(ATLAS, trace=opened(receiver, tmp_path)) as runtime, runtime.session() as session:
        session.call("ticket.get", lambda: None)
    assert str(verify_lines(store.lines(session.id))[0]) == "INTACT, SEALED"
    receiver.stop()
    store.close()


def test_one_process_a_spool(tmp_path: Path, receiver: Receiver) -> None:
    """A spool has one process; a forked child has none, and sends nothing."""
    sink = opened(receiver, tmp_path)
    with pytest.raises(SinkError, match="another process"):
        opened(receiver, tmp_path)
    assert in_child(lambda: sink.create(ID)) == "SinkError"
    assert in_child(sink.close) == "None"
    sink.create(ID).append(0, b"one\n", 1)
    sink.close()
    with pytest.raises(SinkError, match="is closed"):
        sink.reopen(ID)
    opened(receiver, tmp_path).close()


@pytest.mark.parametrize("note", [b"", b"x" * 99, b"%020d %020d\n" % (1, 3), b"%020d %020d\n" % (9, 99)])
def test_a_note_that_was_changed(tmp_path: Path, receiver: Receiver, note: bytes) -> None:
    """A note of what was sent that cannot be true is not believed: everything is offered again."""
    sink = opened(receiver, tmp_path)
    log = sink.create(ID)
    log.append(0, b"one\ntwo\n", 2)
    log.flush()
    sink.close()
    (tmp_path / "spool" / f"{ID}.sent").write_bytes(note)
    again = opened(receiver, tmp_path)
    until(lambda: not again.waiting_bytes)
    assert list(receiver.store.lines(ID)) == [b"one\n", b"two\n"]
    again.close()


@pytest.mark.parametrize(
    ("url", "token"),
    [
        *((text, None) for text in ("", "x", "ftp://x", "http://", "http://x:y", "http://x?a=b", "http://x#a", "//x")),
        *(("http://x", token) for token in ("", "a\nb", "é", " a", "a\0")),
    ],
)
def test_addresses_and_tokens(tmp_path: Path, url: str, token: str | None) -> None:
    """An address or a token that cannot be used is told when the sink is made."""
    with pytest.raises(SinkError):
        HttpSink(url, tmp_path, token)


def test_without_httpx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where httpx is not installed, the error names what to install."""
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(SinkError, match=r"cra-middleware\[http\]"):
        HttpSink("http://x", tmp_path)


def test_the_token_is_sent_and_not_told(receiver: Receiver) -> None:
    """The token goes into its header only, and a password in the address into no message."""
    client = HttpClient(receiver.url, "s3cret", 5)
    assert client.send(BATCH) == Acknowledged(1)
    assert receiver.requests[0]["Authorization"] == "Bearer s3cret"
    client.close()
    gone = HttpClient("http://me:s3cret@127.0.0.1:1/", None, 5)
    told = gone.send(BATCH)
    assert isinstance(told, Later)
    assert "s3cret" not in told.reason
    gone.close()


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        *(("3", 3, 3), ("99999999999999999999", 300, 300), ("in 100 s", 60, 100)),
        *(
            (formatdate(0, usegmt=True), 0, 0),
            ("Mon, 99 Foo 20 00:00", None, None),
            ("-1", None, None),
            ("٣", None, None),
        ),
    ],
)
def test_retry_after(receiver: Receiver, text: str, least: float | None, most: float | None) -> None:
    """Seconds or a date, within reason; anything else counts as not said."""
    if text == "in 100 s":  # now, and not when tests are collected: every worker must name them alike
        text = formatdate(time.time() + 100, usegmt=True)
    receiver.script.append(lambda request: answer(request, 429, b"", Retry_After=text.encode().decode("latin-1")))
    client = HttpClient(receiver.url, None, 5)
    told = client.send(BATCH)
    assert isinstance(told, Later)
    if least is None or most is None:
        assert told.after_seconds is None
    else:
        assert told.after_seconds is not None
        assert least <= told.after_seconds <= most
    client.close()


def test_an_answer_without_an_end(receiver: Receiver) -> None:
    """An answer that trickles is given up after the time for one exchange."""

    def trickle(request: Any) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "60000")
        request.end_headers()
        while True:
            request.wfile.write(b" ")
            time.sleep(0.05)

    receiver.script.append(trickle)
    client = HttpClient(receiver.url, None, 0.2)
    assert isinstance(client.send(BATCH), Later)
    client.close()


def test_noise_instead_of_http() -> None:
    """A port where something else listens is a receiver that is away, not a crash."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def noise() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"\x00\xff SSH-2.0\r\n\r\n")

        thread = threading.Thread(target=noise)
        thread.start()
        client = HttpClient(f"http://127.0.0.1:{server.getsockname()[1]}", None, 5)
        assert isinstance(client.send(BATCH), Later | Refused)
        client.close()
        thread.join()
