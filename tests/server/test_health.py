"""Health says what is away, and says so soon."""

from __future__ import annotations

import os
import threading
import time
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from cra_middleware.carp.redis_counters import RedisCounters
from cra_middleware.server.access import ApiKeyError
from cra_middleware.sinks import JsonlSink
from cra_middleware.trace.note import Signer
from tests.carp.redis_server import OwnServer
from tests.server.serving import Caller, Serve


def test_health_asks_redis(serve: Serve, tmp_path: Path) -> None:
    """And does not believe that what nobody asked is there."""
    redis = OwnServer(tmp_path)
    try:
        with closing(RedisCounters(redis.url, timeout_seconds=0.5)) as counters:
            bot = serve(counters=counters).by("bot")
            assert bot.get("/v1/health").json()["checks"]["counters"]["status"] == "pass"
            redis.stop()
            told = bot.get("/v1/health")
            assert (told.status_code, told.json()["checks"]["counters"]["status"]) == (503, "fail")
            redis.start()
            assert bot.get("/v1/health").status_code == 200
            assert counters._client.keys() == []
    finally:
        redis.stop()


def test_health_tells_how_far_heads_are_behind(serve: Serve, tmp_path: Path) -> None:
    """Degraded, and still 200, once an entry waits for more than a minute; not asked where no head is signed."""
    assert "heads" not in serve(folder=tmp_path / "unsigned").by("bot").get("/v1/health").json()["checks"]
    signer = Signer("example.com/bot", bytes(range(32)))
    with closing(JsonlSink(tmp_path / "traces", signer=signer)) as sink:
        bot = serve(folder=tmp_path / "signed", trace=sink, state=tmp_path / "state").by("bot")

        def told() -> tuple[object, ...]:
            answer = bot.get("/v1/health")
            found = answer.json()
            return answer.status_code, found["status"], found["checks"]["heads"]["status"]

        assert told() == (200, "healthy", "pass")
        inbox = tmp_path / "traces" / "ledger" / "inbox"
        (inbox / "0").mkdir()  # it is no file that the owner could read, so it stays
        assert told() == (200, "healthy", "pass")
        os.utime(inbox / "0", (time.time() - 3_600_000,) * 2)
        assert told() == (200, "degraded", "warn")
        waits = "entries of sessions that wait for a signed head: 1, the oldest for 3600"
        assert bot.get("/v1/health").json()["checks"]["heads"]["message"].startswith(waits)
        inbox.rename(inbox.with_name("away"))
        assert told() == (200, "degraded", "warn")
        inbox.with_name("away").rename(inbox)


def test_health_waits_for_nobody_long(serve: Serve) -> None:
    """Checks that hang are told of as failures, all within one span, and are not asked again while they hang."""
    served = serve()
    health, goes_on, asked = served.service.health, threading.Event(), list[str]()
    health._seconds = 0.2

    def hangs(name: str) -> tuple[str, str]:
        asked.append(name)
        goes_on.wait(30)
        return "pass", "at last"

    for name in ("one", "two", "three"):
        health.also(name, partial(hangs, name))
    try:
        began = time.monotonic()
        for _ in range(2):
            told = served.by("bot").get("/v1/health")
            assert told.status_code == 503
            assert told.json()["checks"]["two"] == {
                "status": "fail",
                "message": "nothing was heard of it for 0.2 seconds",
            }
            assert told.json()["checks"]["book"]["status"] == "pass"
        assert time.monotonic() - began < 20
        assert sorted(asked) == ["one", "three", "two"]
    finally:
        goes_on.set()
    until = time.monotonic() + 20
    while served.by("bot").get("/v1/health").status_code != 200:
        assert time.monotonic() < until


def test_health_is_told_while_everything_hangs(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls and keys wait for a database that says nothing, all threads are taken: health says so all the same."""
    served = serve()
    served.by("bot").session()
    goes_on = threading.Event()

    def hangs(*asked: object) -> None:
        goes_on.wait(60)
        raise ApiKeyError("it is gone")

    monkeypatch.setattr(served.service.routes.guard._keys, "by_prefix", hangs)
    monkeypatch.setattr(served.service.host.book, "session", hangs)
    monkeypatch.setattr("cra_middleware.server.access._REMEMBERED_SECONDS", 0.0)
    served.service.health._seconds = 0.2
    waiting = [threading.Thread(target=served.by("bot").get, args=("/v1/sessions",)) for _ in range(40)]
    for thread in waiting:
        thread.start()
    try:
        for headers in ({}, served.by("bot").headers):
            told = Caller(served, headers).get("/v1/health")
            assert (told.status_code, told.json()["status"]) == (503, "unhealthy")
            assert told.json()["checks"]["book"] == {"status": "fail"}
    finally:
        goes_on.set()
        for thread in waiting:
            thread.join(60)
    monkeypatch.undo()
    assert served.by("bot").get("/v1/health").status_code == 200


def test_what_is_too_little_room(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads that the disk fails reads how much it wants, and not in the same line that all is well."""
    served = serve()
    full = os.statvfs_result((4096, 4096, 1000, 100, 100, 1000, 1000, 1000, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda place: full)
    told = served.by("bot").get("/v1/health")
    assert told.status_code == 503
    checks = told.json()["checks"]
    assert checks["disk"] == {"status": "fail", "message": "0 MiB free: less than 512 is a warning, less than 32 fails"}
    assert checks["store"]["status"] == "fail"
    assert "can be written" not in checks["store"]["message"]
    assert "no room: 400 KiB are free, and 1024 are wanted" in checks["store"]["message"]


def test_no_atlas_is_in_force(serve: Serve) -> None:
    """No error, as a server may begin so; but it is said what that means."""
    served = serve()
    (path,) = (served.folder / "atlases").iterdir()
    path.unlink()
    served.service.host.tend()
    told = served.by("bot").get("/v1/health").json()
    assert told["status"] == "healthy"
    assert told["checks"]["atlases"] == {"status": "pass", "message": "none in force: every call is denied"}
