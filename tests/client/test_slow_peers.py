"""Peers that answer for ever: one question takes ``timeout_seconds`` at most, and its answer only so much room.

None of them ever finishes: without a bound the question would not, either.
"""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress

import pytest

from cra_middleware.client.connection import Connection
from cra_middleware.errors import RuntimeUnreachable

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
Peer = Callable[[socket.socket, threading.Event], None]


def drips(before: bytes) -> Peer:
    def peer(there: socket.socket, over: threading.Event) -> None:
        there.recv(65536)
        there.sendall(before)
        while not over.wait(0.02):
            there.sendall(b"a")

    return peer


def floods(there: socket.socket, over: threading.Event) -> None:
    there.recv(65536)
    there.sendall(HEAD + b"content-length: 1000000000000\r\n\r\n")
    while not over.is_set():
        there.sendall(b"a" * 10_000)


def hardly_reads(there: socket.socket, over: threading.Event) -> None:
    while not over.wait(0.02):
        there.recv(100_000)


@pytest.fixture
def listening() -> Iterator[Callable[[Peer], str]]:
    over, server = threading.Event(), socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def start(peer: Peer) -> str:
        def answer(there: socket.socket) -> None:
            with there, suppress(OSError):  # it has heard enough
                peer(there, over)

        def serve() -> None:
            with suppress(OSError):
                for _ in itertools.count():
                    threads.append(threading.Thread(target=answer, args=(server.accept()[0],)))
                    threads[-1].start()

        threads.append(threading.Thread(target=serve))
        threads[-1].start()
        return f"http://127.0.0.1:{server.getsockname()[1]}"

    yield start
    over.set()
    with suppress(OSError):
        server.shutdown(socket.SHUT_RDWR)
    server.close()
    for thread in threads:
        thread.join()


def answered(url: str, data: bytes, timeout_seconds: float) -> str:
    """What the question comes to; it is asked in a thread of its own, for it may not come to anything."""
    said: list[str] = []

    def ask() -> None:
        with closing(Connection(url, timeout_seconds=timeout_seconds)) as connection:
            try:
                said.append(str(connection.ask("POST", "/v1/execute", data).status))
            except RuntimeUnreachable as error:
                said.append(error.reason)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(60)
    assert said, "the question has no end"
    return said[0]


@pytest.mark.parametrize(
    "peer",
    [drips(HEAD + b"content-length: 1000000\r\n\r\n"), drips(HEAD + b"x-more: "), drips(b"")],
    ids=["body", "headers", "status"],
)
def test_one_that_drips(listening: Callable[[Peer], str], peer: Peer) -> None:
    """Its bytes come in time, each; the answer does not."""
    assert "not to be reached (ReadTimeout" in answered(listening(peer), b"{}", 0.3)


def test_one_whose_name_is_not_found_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked up once for all who wait; when it is found after all, the next question reaches it."""
    may_go, looked_up = threading.Event(), list[str]()
    look_up = socket.getaddrinfo

    def slow(host: str, *given: object, **named: object) -> object:
        if host != "slow.example":
            return look_up(host, *given, **named)  # type: ignore[arg-type]
        looked_up.append(host)
        assert may_go.wait(30)
        first = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.2", port))]  # where nobody listens
        return [*first, (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setattr(socket, "getaddrinfo", slow)
        try:
            for _ in range(2):
                said = answered(f"http://slow.example:{port}", b"{}", 0.3)
                assert "ConnectTimeout: its name was not looked up in time" in said
            assert looked_up == ["slow.example"]
        finally:
            may_go.set()
        assert "ReadTimeout" in answered(f"http://slow.example:{port}", b"{}", 2)


def test_one_that_hardly_reads(listening: Callable[[Peer], str]) -> None:
    """What it is told goes out in time, piece by piece; all of it does not."""
    assert "not to be reached (WriteTimeout" in answered(listening(hardly_reads), b"a" * 50_000_000, 2)


def test_one_that_floods(listening: Callable[[Peer], str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is more than an answer may be is not waited for: there is time for all four tries."""
    monkeypatch.setattr("cra_middleware.client.connection.MAX_ANSWER_BYTES", 100_000)
    monkeypatch.setattr("cra_middleware.client.connection._FIRST_PAUSE_SECONDS", 0.001)
    assert "what answers there is no server of ours" in answered(listening(floods), b"{}", 50)
