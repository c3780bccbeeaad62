"""What was recorded offline, on its way to the server: parked only where no later try can change anything."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cra_middleware import Runtime
from cra_middleware.client.connection import Connection, Reply
from cra_middleware.client.offline import Spool
from tests.client.served import Served, until

Answer = tuple[int, dict[str, object]]
TAKEN: Answer = (201, {"session_id": "it"})


def problem(status: int, code: str, *, recoverable: bool = False) -> Answer:
    return status, {"error": {"code": code, "message": f"because of {code}", "recoverable": recoverable}}


class Receiver(http.server.ThreadingHTTPServer):
    """Answers as it is told, which a real server does only when it has trouble of its own."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.put: Answer = TAKEN
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    def _any(self) -> None:
        assert isinstance(self.server, Receiver)
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.asked.append(f"{self.command} {self.path}")
        status, body = self.server.put
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = _any

    def log_message(self, *args: object) -> None:
        return


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cra_middleware.client.connection._FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr("cra_middleware.client.outcomes._PAUSE_SECONDS", 0.01)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def spool(receiver: Receiver, folder: Path) -> Iterator[Spool]:
    connection = Connection(receiver.url)
    yield Spool(folder, connection, Runtime)
    connection.close()


def recorded(folder: Path, calls: int = 1, session_id: str | None = None) -> Path:
    """A session that has ended, as it lies in a spool."""
    with Runtime.observe(folder) as runtime, runtime.session(session_id=session_id) as session:
        for _ in range(calls):
            session.call("ticket.get", lambda: 1)
    return folder / f"{session.id}.trace.jsonl"


def ends(folder: Path) -> list[str]:
    """What each session's file is called behind its id."""
    return sorted(path.name[36:] for path in folder.glob("*.trace.jsonl*"))


@pytest.mark.parametrize(
    "answer",
    [
        problem(401, "UNAUTHORIZED"),
        problem(404, "NOT_FOUND"),
        problem(429, "RATE_LIMIT_EXCEEDED"),
        problem(429, "RATE_LIMIT_EXCEEDED", recoverable=True),
        problem(500, "STORAGE_LOCKED", recoverable=True),
        problem(500, "INTERNAL_ERROR"),
        problem(502, "IO_ERROR", recoverable=True),
        problem(503, "UNAVAILABLE"),
    ],
    ids=lambda answer: f"{answer[0]} {answer[1]['error']['recoverable']}",
)
def test_what_may_be_taken_later_waits(receiver: Receiver, spool: Spool, folder: Path, answer: Answer) -> None:
    """A server's own trouble, a key that does not count and too many questions pass: the file is taken up again."""
    recorded(folder)
    receiver.put = answer
    assert not spool.upload()
    assert ends(folder) == [".trace.jsonl"]
    receiver.put = TAKEN
    with Runtime.connect(receiver.url, on_unreachable="cached", spool=folder):  # a later process
        until(lambda: ends(folder) == [".trace.jsonl.uploaded"])


def test_it_is_tried_again_while_the_process_lives(receiver: Receiver, folder: Path) -> None:
    """Nobody has to start anything anew."""
    recorded(folder)
    receiver.put = problem(500, "STORAGE_LOCKED", recoverable=True)
    with Runtime.connect(receiver.url, on_unreachable="cached", spool=folder):
        until(lambda: len(receiver.asked) > 4)  # one try is four questions
        receiver.put = TAKEN
        until(lambda: ends(folder) == [".trace.jsonl.uploaded"])


@pytest.mark.parametrize(
    "answer",
    [
        problem(400, "INVALID_CARP_REQUEST"),
        problem(409, "SESSION_ALREADY_EXISTS"),
        problem(413, "PAYLOAD_TOO_LARGE"),
        problem(422, "TRACE_CHAIN_INTEGRITY_ERROR"),
    ],
    ids=lambda answer: str(answer[0]),
)
def test_what_is_never_taken_is_parked(receiver: Receiver, spool: Spool, folder: Path, answer: Answer) -> None:
    """The same bytes would be refused again."""
    recorded(folder)
    receiver.put = answer
    assert spool.upload()
    assert ends(folder) == [".trace.jsonl.refused"]


def test_what_another_key_may_hand_over_stays(receiver: Receiver, spool: Spool, folder: Path) -> None:
    """This process does not try again; one with the right key will."""
    recorded(folder)
    receiver.put = problem(403, "FORBIDDEN")
    assert spool.upload()
    assert ends(folder) == [".trace.jsonl"]


def test_one_session_that_is_not_taken_keeps_no_other_back(receiver: Receiver, spool: Spool, folder: Path) -> None:
    """What is wrong with one says nothing of the next."""
    for _ in range(2):
        recorded(folder)
    receiver.put = problem(500, "INTERNAL_ERROR")
    assert not spool.upload()
    assert len(receiver.asked) == 2


def test_a_server_that_takes_nothing_now_is_asked_once(receiver: Receiver, spool: Spool, folder: Path) -> None:
    """A key that does not count is so for every session alike."""
    for _ in range(2):
        recorded(folder)
    receiver.put = problem(401, "UNAUTHORIZED")
    assert not spool.upload()
    assert len(receiver.asked) == 1


def test_two_processes_hand_over_the_same_session(spool: Spool, folder: Path) -> None:
    """Whoever is second has nothing left to do: not while it asks, and not for what it has seen in the folder."""
    for _ in range(2):
        recorded(folder)

    def other(*given: object, **more: object) -> Reply:
        for path in folder.glob("*.trace.jsonl"):
            path.rename(path.with_name(f"{path.name}.uploaded"))
        return Reply(201, {}, b"{}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool._connection, "ask", other)
        assert spool.upload()
    assert ends(folder) == [".trace.jsonl.uploaded"] * 2


def test_a_real_server_that_has_it_already(serve: Any, folder: Path) -> None:
    """The answer to the first try was lost: the second finds every event there. Another session is not this one."""
    served: Served = serve()
    path = recorded(folder)
    connection = Connection(served.url, served.key("bot"))
    spool = Spool(folder, connection, Runtime)
    assert spool.upload()
    taken = path.with_name(f"{path.name}.uploaded").rename(path)
    assert spool.upload()
    assert ends(folder) == [".trace.jsonl.uploaded"]
    taken.with_name(f"{taken.name}.uploaded").unlink()
    recorded(folder, calls=2, session_id=path.name[:36])
    assert spool.upload()
    assert ends(folder) == [".trace.jsonl.refused"]
    connection.close()


def test_a_session_that_ends_while_the_server_is_away(serve: Any, folder: Path) -> None:
    """What it recorded offline is handed over once the server is back, by the process that still lives."""
    served: Served = serve()
    with served.connect(timeout_seconds=10, on_unreachable="cached", spool=folder) as runtime:
        session = runtime.session("bot", "Help")
        served.gone()
        assert session.call("ticket.get", lambda: 1) == 1
        session.end()
        assert ends(folder) == [".trace.jsonl"]
        served.back()
        until(lambda: ends(folder) == [".trace.jsonl.uploaded"], 20)
