"""What clients should not send, and what happens to them: the documented code, nothing lost, nothing authorised."""

from __future__ import annotations

import json
import socket
import threading
import time
import tracemalloc
from typing import Any

import pytest
from pydantic import BaseModel

from cra_middleware.approvals.approval import ApprovalError
from cra_middleware.carp.messages import Request
from cra_middleware.errors import SinkError
from cra_middleware.server.app import WORKERS
from cra_middleware.server.book import BookError
from cra_middleware.server.faults import STATUSES, Fault
from cra_middleware.server.routing import Limits, read_json
from cra_middleware.server.wire import CreateSession, Execute, read_body
from cra_middleware.testing import FrozenClock
from tests.conftest import NOON, manifest
from tests.server.serving import Serve, Served, code, listening

pytest.importorskip("uvicorn")


def talk(port: int, *parts: bytes, pause: float = 0.0) -> bytes:
    """Send bytes, and read until the other side closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as link:
        try:
            for part in parts:
                link.sendall(part)
                time.sleep(pause)
        except OSError:
            pass  # it has closed already; what it said can still be read
        found = b""
        try:
            while more := link.recv(65_536):
                found += more
        except OSError:
            pass
        return found


def head(served: Served, length: int | None, path: str = "/v1/execute", method: str = "POST") -> bytes:
    size = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    return (
        f"{method} {path} HTTP/1.1\r\nhost: localhost\r\nx-api-key: {served.key('bot')}\r\n"
        f"content-type: application/json\r\n{size}\r\n\r\n"
    ).encode()


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff{}", "not JSON"),
        (b'"text"', "object"),
        (b"[]", "object"),
        (b'{"a":NaN}', "NaN"),
        (b'{"a":1,"a":2}', "twice"),
        (b'{"a":"\\ud800"}', "cannot be read"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "deep"),
        (b"[" * 500_000, "deep"),
        (b'{"a":' + b"1" * 5000 + b"}", "cannot be read"),
    ],
)
def test_bodies_that_cannot_be_read(served: Served, body: bytes, why: str) -> None:
    """Refused as a bad request, at every endpoint that takes one."""
    bot = served.by("bot")
    for path in ("/v1/execute", "/v1/sessions", "/v1/resolve"):
        answer = bot.post(path, content=body, headers={"content-type": "application/json"})
        assert code(answer) == (400, "INVALID_CARP_REQUEST")
        assert why in answer.json()["error"]["message"]


def test_depth_is_counted_outside_of_texts() -> None:
    """A text full of brackets is not deep."""
    assert read_json(json.dumps({"a": "[{" * 100 + '\\"['}).encode(), 64)
    assert read_json(b'{"a":' * 64 + b"1" + b"}" * 64, 64)


def test_numbers_stay_what_they_are(served: Served) -> None:
    """A whole number that needs more than 64 bits is not decided as another one."""
    bot = served.by("bot")
    name = bot.session()
    body = json.dumps(bot.execution(name)).replace('"n": 1', '"n": 18446744073709551617')
    answer = bot.post("/v1/execute", content=body.encode(), headers={"content-type": "application/json"})
    assert answer.status_code == 200
    again = json.dumps(bot.execution(name)).replace('"n": 1', '"n": 18446744073709551617')
    assert (
        bot.post("/v1/execute", content=again.encode(), headers={"content-type": "application/json"}).status_code == 200
    )
    asked = [event["payload"] for event in bot.get(f"/v1/traces/{name}?event_type=action.requested").json()["events"]]
    assert asked[0]["parameters_hash"] == asked[1]["parameters_hash"]


@pytest.mark.parametrize(
    "change",
    [
        {"carp_version": "1.1"},
        {"carp_version": 1.0},
        {"operation": "resolve"},
        {"timestamp": "2026-01-05T12:05:01+00:00"},
        {"timestamp": "2026-01-05T12:00:00"},
        {"timestamp": None},
        {"request_id": "1"},
        {"request_id": "0B0F3A5E-0000-0000-0000-000000000000"},
        {"surprise": 1},
        {"execution": {"action_id": "ticket.get"}},
        {"execution": {"action_id": "ticket.get", "parameters": []}},
        {"execution": {"action_id": "", "parameters": {}}},
        {"execution": {"action_id": "ticket.get", "parameters": {}, "surprize": True}},
    ],
)
def test_requests_that_are_none(served: Served, change: dict[str, Any]) -> None:
    """Wrong versions, other times, missing and unknown keys: nothing is decided, nothing recorded."""
    bot = served.by("bot")
    name = bot.session()
    before = bot.kinds(name)
    assert code(bot.post("/v1/execute", bot.execution(name) | change)) == (400, "INVALID_CARP_REQUEST")
    assert bot.kinds(name) == before


def test_odd_names_are_recorded_or_refused(served: Served) -> None:
    """Whatever a tool is called, the trace verifies."""
    bot = served.by("bot")
    name = bot.session(agent_id="a\u2028\x00b", goal='"\\\n')
    for odd in ("\x00", "\u2028", "cra:int:1", '"}', "../../etc/passwd", "🙂" * 200):
        more = {"parameters": {"k": odd, odd: 1}, "tool_name": odd, "tool_call_id": odd, "agent_id": "a\u2028\x00b"}
        assert bot.execute(name, **more).status_code in (200, 400)
    assert bot.post(f"/v1/traces/{name}/verify").json()["valid"]


@pytest.mark.slow
def test_a_large_body_is_not_read(serve: Serve) -> None:
    """Whether it says how large it is or not; and nobody who is unknown may send much at all."""
    served = serve()
    served.key("bot")
    with listening(served) as port:
        announced = talk(port, head(served, 100 * 1024 * 1024), b"x" * 1000)
        assert b" 413 " in announced.partition(b"\r\n")[0]
        assert b"PAYLOAD_TOO_LARGE" in announced
        piece = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
        endless = talk(port, head(served, None), *[piece] * 17)
        assert b" 413 " in endless.partition(b"\r\n")[0]
        unknown = head(served, 500_000).replace(b"x-api-key: cra_", b"x-api-key: arc_")
        assert b" 401 " in talk(port, unknown, b"x" * 500_000).partition(b"\r\n")[0]
        assert b" 200 " in talk(port, b"GET /v1/health HTTP/1.0\r\nhost: localhost\r\n\r\n").partition(b"\r\n")[0]


def test_who_still_sends_hears_why(serve: Serve) -> None:
    """The whole body is sent before the answer is read, as a proxy does it: the connection is not reset under it."""
    served = serve()
    served.key("bot")
    size = 8 * 1024 * 1024
    with listening(served) as port:
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", port), timeout=20) as link:
                link.sendall(head(served, size))
                for _ in range(size // 65_536):
                    link.sendall(b"x" * 65_536)
                said = b""
                while piece := link.recv(65_536):
                    said += piece
            assert b" 413 " in said.partition(b"\r\n")[0]
            assert said.endswith(b"}")


def test_a_slow_body_is_not_waited_for(serve: Serve) -> None:
    """After its time the answer is 408, and the line is closed."""
    served = serve(limits=Limits(body_seconds=0.3))
    served.key("bot")
    with listening(served) as port:
        began = time.monotonic()
        answer = talk(port, head(served, 1000), b"{", b'"', b"a", pause=0.05)
        assert b" 408 " in answer.partition(b"\r\n")[0]
        assert time.monotonic() - began < 5


def test_a_client_that_vanishes(serve: Serve) -> None:
    """In the middle of its body nothing happens; in the middle of the call it is answered when it asks again."""
    entered, go = threading.Event(), threading.Event()
    ran: list[int] = []

    def slow(n: int) -> int:
        ran.append(n)
        entered.set()
        go.wait(10)
        return n

    served = serve(executors={"ticket.list": slow})
    bot = served.by("bot")
    name = bot.session()
    before = bot.kinds(name)
    body = json.dumps(bot.execution(name, "ticket.list")).encode()
    with listening(served) as port:
        with socket.create_connection(("127.0.0.1", port)) as link:
            link.sendall(head(served, len(body)) + body[:-1])
            time.sleep(0.1)
        assert bot.kinds(name) == before
        with socket.create_connection(("127.0.0.1", port)) as link:
            link.sendall(head(served, len(body)) + body)
            assert entered.wait(10)
        go.set()
        answer = bot.post("/v1/execute", json.loads(body))
    assert (answer.status_code, answer.json()["result"], ran) == (200, {"value": 1}, [1])


def test_addresses_and_methods(served: Served) -> None:
    """Unknown ones are told in the published shape."""
    bot = served.by("bot")
    assert code(bot.get("/v1/nothing")) == (404, "NOT_FOUND")
    wrong = bot.ask("PATCH", "/v1/sessions")
    assert code(wrong) == (405, "METHOD_NOT_ALLOWED")
    for path in ("/v1/sessions/..%2f..%2fetc", "/v1/traces/%00", "/v1/traces/" + "a" * 3000, "/v1/sessions/"):
        assert bot.get(path).status_code == 404
    headers = bot.get("/v1/health").headers
    assert headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "access-control-allow-origin" not in bot.get("/v1/health", headers={"origin": "http://localhost"}).headers


class Broken:
    """Stands before a store, and fails at what is named."""

    def __init__(self, store: Any, name: str, error: Exception) -> None:
        self.store, self.name, self.error = store, name, error

    def __getattr__(self, name: str) -> Any:
        return self.fail if name == self.name else getattr(self.store, name)

    def fail(self, *asked: object) -> None:
        raise self.error


def test_the_book_is_gone_and_back(served: Served) -> None:
    """Nothing is authorised that could not be answered twice; later everything goes on."""
    bot = served.by("bot")
    name = bot.session()
    host, book = served.service.host, served.service.host.book
    body = bot.execution(name)
    host.book = Broken(book, "claim", BookError("gone"))
    assert code(bot.post("/v1/execute", body)) == (500, "STORAGE_LOCKED")
    assert "action.requested" not in bot.kinds(name)
    host.book = Broken(book, "answer", BookError("gone"))
    assert code(bot.post("/v1/execute", body)) == (500, "STORAGE_LOCKED")
    host.book = book
    answer = bot.post("/v1/execute", body)
    assert answer.status_code == 200
    assert bot.kinds(name).count("action.requested") == 1
    assert bot.report(name, answer.json()["execution_id"]).status_code == 200


def test_the_trace_cannot_be_written(serve: Serve) -> None:
    """The call is refused, may be made again, and is then decided for the first time."""
    served = serve(clock=FrozenClock(NOON))
    bot = served.by("bot")
    name = bot.session()
    log = served.service.host.table.peek(name)._log
    kept = type(log).append

    def full(*data: object) -> None:
        raise SinkError("the disk is full")

    body = bot.execution(name)
    type(log).append = full
    try:
        answer = bot.post("/v1/execute", body)
    finally:
        type(log).append = kept
    assert code(answer) == (500, "STORAGE_LOCKED")
    assert answer.json()["error"]["recoverable"]
    assert bot.post("/v1/execute", body).status_code == 200
    assert bot.kinds(name).count("action.requested") == 1


def test_approvals_cannot_be_read(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that needs one is refused."""
    bot = served.by("bot")
    name = bot.session()
    store = served.service.host.runtime._stores.approvals

    def gone(*asked: object) -> None:
        raise ApprovalError("gone")

    monkeypatch.setattr(store, "find", gone)
    assert code(bot.execute(name, "refund.create")) == (422, "POLICY_EVALUATION_ERROR")


def test_a_failure_of_ours_says_nothing(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its words stay in the server's log."""
    bot = served.by("bot")

    def bug(*asked: object) -> None:
        raise RuntimeError("secret 4711")

    monkeypatch.setattr(served.service.host, "listed", bug)
    answer = bot.get("/v1/sessions")
    assert code(answer) == (500, "INTERNAL_ERROR")
    assert "4711" not in answer.text


def test_codes_are_the_contract_s() -> None:
    """As the protocol's table has them."""
    table = {
        400: "INVALID_ATLAS_MANIFEST ATLAS_VERSION_MISMATCH INVALID_CARP_REQUEST INVALID_PARAMETERS",
        403: "ACTION_DENIED",
        404: "ATLAS_NOT_FOUND SESSION_NOT_FOUND ACTION_NOT_FOUND RESOLUTION_NOT_FOUND",
        409: "ATLAS_ALREADY_LOADED SESSION_ALREADY_EXISTS SESSION_ALREADY_ENDED IDEMPOTENCY_CONFLICT",
        410: "SESSION_EXPIRED RESOLUTION_EXPIRED",
        422: "TRACE_CHAIN_INTEGRITY_ERROR POLICY_EVALUATION_ERROR",
        423: "ACTION_REQUIRES_APPROVAL",
        429: "RATE_LIMIT_EXCEEDED BUDGET_EXCEEDED",
        500: "STORAGE_LOCKED INTERNAL_ERROR",
        502: "IO_ERROR",
    }
    for status, codes in table.items():
        for name in codes.split():
            assert STATUSES[name] == status


def test_many_at_once(serve: Serve) -> None:
    """Eight threads on one session: every call is recorded once, and the chain is whole."""
    served = serve(manifest())
    bot = served.by("bot")
    name = bot.session()
    failed: list[str] = []

    def work() -> None:
        for _ in range(10):
            answer = bot.execute(name)
            told = bot.report(name, answer.json()["execution_id"])
            if (answer.status_code, told.status_code) != (200, 200):
                failed.append(answer.text + told.text)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failed
    assert bot.kinds(name).count("action.executed") == 80
    assert bot.post(f"/v1/traces/{name}/verify").json()["valid"]


def test_many_mistakes_are_counted_not_told(served: Served) -> None:
    """Sixty thousand unknown keys: the answer is small, says how many, and names some; of a list's items, the first."""
    bot = served.by("bot")
    name = bot.session()
    junk = {f"key{number}": 1 for number in range(60_000)}
    answer = bot.post("/v1/execute", junk)
    assert code(answer) == (400, "INVALID_CARP_REQUEST")
    (found,) = answer.json()["error"]["details"]["findings"]
    assert found["at"] == "/"
    assert "60006 mistakes" in found["why"]
    assert "key0, key1, key2" in found["why"]
    inner = bot.execution(name)
    answer = bot.post("/v1/execute", inner | {"execution": {**inner["execution"], **junk}})
    assert "60000 mistakes" in answer.json()["error"]["details"]["findings"][0]["why"]
    numbers = {"agent_id": "bot", "goal": "g", "atlas_ids": [1] * 60_000}
    answer = bot.post("/v1/sessions", numbers)
    assert [found["at"] for found in answer.json()["error"]["details"]["findings"]] == ["/atlas_ids/0"]
    assert bot.execute(name).status_code == 200


@pytest.mark.parametrize("model", [Execute, CreateSession, Request])
def test_many_mistakes_take_no_memory(model: type[BaseModel]) -> None:
    """What is built to refuse a body is not a multiple of the body."""
    junk = {f"key{number}": 1 for number in range(60_000)}
    tracemalloc.start()
    try:
        with pytest.raises(Fault):
            read_body(model, junk)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4_000_000


def test_large_bodies_leave_room_for_others(serve: Serve) -> None:
    """While as many of them as there are threads are worked on, a small call is answered."""
    entered, go = threading.Semaphore(0), threading.Event()

    def slow(text: str = "", n: int = 0) -> int:
        if text:
            entered.release()
            go.wait(30)
        return n

    served = serve(executors={"ticket.list": slow})
    bot = served.by("bot")
    names = [bot.session() for _ in range(WORKERS)]
    large = {"parameters": {"text": "x" * 100_000}}
    threads = [threading.Thread(target=bot.execute, args=(name, "ticket.list"), kwargs=large) for name in names]
    for thread in threads:
        thread.start()
    try:
        assert entered.acquire(timeout=30)
        time.sleep(0.5)  # until they all came
        assert bot.execute(bot.session()).status_code == 200
    finally:
        go.set()
        for thread in threads:
            thread.join(30)
