"""Who listens to a trace, and may no more."""

from __future__ import annotations

import base64
import json
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import httpx
import jwt
import pytest
import uvicorn
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from cra_middleware._clock import SystemClock
from cra_middleware.cli import stopping
from cra_middleware.cli.stopping import StoppingServer
from cra_middleware.server.routing import Limits
from cra_middleware.server.tokens import JwtTokens
from cra_middleware.testing import FrozenClock
from tests.client.served import until
from tests.conftest import NOON
from tests.server.serving import Caller, Process, Serve, Served, listening

ISSUER, AUDIENCE = "https://idp.example", "cra"


def heard_until_it_ends(served: Any, listener: Caller, forbid: Callable[[], object]) -> tuple[int, str]:
    """How a stream ended whose listener was forbidden everything behind its first event."""
    connect = pytest.importorskip("websockets.sync.client").connect
    exceptions = pytest.importorskip("websockets.exceptions")
    bot = served.by("bot")
    name = bot.session()
    with listening(served) as port:
        address = f"ws://localhost:{port}/v1/traces/stream?session_id={name}"
        with connect(address, additional_headers=listener.headers) as link:
            assert json.loads(link.recv(5))["event_type"] == "session.started"
            forbid()
            with pytest.raises(exceptions.ConnectionClosed) as ended:
                list(iter(partial(link.recv, 10), None))
    assert ended.value.rcvd is not None
    return ended.value.rcvd.code, ended.value.rcvd.reason


def test_a_revoked_key_hears_no_more(serve: Serve) -> None:
    """A stream is let in once and asked again and again; that is no failed login."""
    served = serve()
    listener = served.by("ann", "auditor")
    revoke = lambda: served.keys.revoke("ann", SystemClock().wall_us())  # noqa: E731
    assert heard_until_it_ends(served, listener, revoke) == (1008, "UNAUTHORIZED")
    assert served.service.routes.guard._failures._failed == {}


def test_a_token_that_ends_hears_no_more(serve: Serve) -> None:
    """Neither does one whose time is over."""
    clock, key = FrozenClock(NOON), generate_private_key(SECP256R1())

    class Keys:
        def get_signing_key_from_jwt(self, token: str | bytes) -> Any:
            return jwt.PyJWK.from_json(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key()), "ES256")

    served = serve(clock=clock, tokens=JwtTokens(Keys(), issuer=ISSUER, audience=AUDIENCE))
    ends = SystemClock().wall_us() // 1_000_000 + 3600  # the library has a clock of its own
    claims = {"sub": "ann", "iss": ISSUER, "aud": AUDIENCE, "exp": ends, "roles": ["auditor"]}
    token = jwt.encode(claims, key, "ES256")
    listener = Caller(served, {"authorization": f"Bearer {token}"})
    assert listener.get("/v1/sessions").status_code == 200
    forbid = lambda: clock.advance(seconds=(ends * 1_000_000 - clock.wall_us()) // 1_000_000 + 1)  # noqa: E731
    assert heard_until_it_ends(served, listener, forbid) == (1008, "UNAUTHORIZED")


def refused(address: str, headers: dict[str, str]) -> tuple[int, str] | None:
    """What somebody is told who wants to listen; None when they may."""
    connect = pytest.importorskip("websockets.sync.client").connect
    try:
        with connect(address, additional_headers=headers):
            return None
    except pytest.importorskip("websockets.exceptions").InvalidStatus as error:
        return error.response.status_code, json.loads(error.response.body)["error"]["code"]


def test_one_key_has_so_many_streams(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """One more is refused, with the code of a limit; others have their own; one that was closed makes room."""
    connect = pytest.importorskip("websockets.sync.client").connect
    served = serve(limits=Limits(streams=2))
    ann, ben = served.by("ann", "auditor").headers, served.by("ben", "auditor").headers
    name = served.by("bot").session()
    with listening(served) as port:
        address = f"ws://localhost:{port}/v1/traces/stream?session_id={name}"
        with connect(address, additional_headers=ann):
            with connect(address, additional_headers=ann):
                assert refused(address, ann) == (429, "RATE_LIMIT_EXCEEDED")
                assert refused(address, ben) is None
            until(lambda: refused(address, ann) is None)
        assert refused(f"{address}0", ben) == (404, "SESSION_NOT_FOUND")
        for wrong in (address.replace("session_id", "session"), f"{address}&since_sequence=-1"):
            assert refused(wrong, ben) == (400, "INVALID_CARP_REQUEST")
    assert "without completing handshake" not in caplog.text


def test_how_many_streams_is_a_setting(process: Callable[..., Process], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the program's, from its environment too."""
    connect = pytest.importorskip("websockets.sync.client").connect
    monkeypatch.setenv("CRA_STREAMS", "1")
    server = process()
    name = httpx.post(f"{server.url}/v1/sessions", json={"agent_id": "bot", "goal": "Help"}).json()["session_id"]
    address = f"ws://127.0.0.1:{server.port}/v1/traces/stream?session_id={name}"
    with connect(address):
        assert refused(address, {}) == (429, "RATE_LIMIT_EXCEEDED")
    assert (server.stop(), "ERROR" in server.said) == (0, False)


@contextmanager
def hardly_read(served: Served, path: str, *headers: str) -> Iterator[StoppingServer]:
    """A server as the program has it, and a client of it that reads the beginning of an answer and no more."""
    told = list[str]()
    config = uvicorn.Config(served.app, port=0, lifespan="off", log_config=None, ws="websockets-sansio")
    server = StoppingServer(config, told.append)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: told)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", int(told[0].rpartition(":")[2])))
        client.sendall("\r\n".join([f"GET {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode())
        assert client.recv(12) in (b"HTTP/1.1 101", b"HTTP/1.1 200")
        until(lambda: any(one.transport.get_write_buffer_size() for one in server.server_state.connections))
        yield server
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


UPGRADED = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13")


@pytest.mark.parametrize("kind", ["a stream", "an answer"])
def test_a_server_stops_though_nobody_reads(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """A stream is cut soon, an answer when the time is nearly over; nothing is logged as if the server had failed."""
    is_stream = kind == "a stream"
    monkeypatch.setattr(stopping, "_STREAM_SECONDS", 0.1 if is_stream else 300)
    monkeypatch.setattr(stopping, "GRACE_SECONDS", 300 if is_stream else 1.1)
    served = serve(record="full")
    bot = served.by("bot")
    name = bot.session()
    for _ in range(8):  # more than the kernel takes
        assert bot.execute(name, parameters={"n": "x" * 900_000}).status_code == 200
    key = f"X-API-Key: {bot.headers['x-api-key']}"
    path = f"/v1/traces/stream?session_id={name}" if is_stream else f"/v1/traces/{name}"
    upgrade = (*UPGRADED, f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}") if is_stream else ()
    with hardly_read(served, path, key, *upgrade):
        caplog.clear()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
