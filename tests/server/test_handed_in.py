"""Sessions that were recorded while a server was away, and are handed in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cra_middleware import Atlas, Runtime
from cra_middleware._canonical import canonical
from cra_middleware._clock import Clock
from cra_middleware._ids import new_id
from cra_middleware.errors import SinkError
from cra_middleware.trace.event import seal
from tests.conftest import manifest
from tests.server.serving import Caller, Served, code


def offline(folder: Path, *, clock: Clock | None = None, **metadata: Any) -> tuple[str, bytes]:
    """A session that was recorded elsewhere, and ended."""
    with Runtime(Atlas.from_dict(manifest()), trace=folder, clock=clock) as runtime:
        with runtime.session("bot", "Help", metadata=metadata) as session:
            session.call("ticket.get", lambda n: n, 1)
        return session.id, (folder / f"{session.id}.trace.jsonl").read_bytes()


def put(caller: Caller, data: bytes, session_id: str) -> Any:
    headers = {"content-type": "application/x-ndjson"}
    return caller.ask("PUT", f"/v1/traces/{session_id}", content=data, headers=headers)


def test_a_session_is_handed_in(served: Served, tmp_path: Path) -> None:
    """Whole and sealed, by who may be its agent; a broken one is not taken. Told again it is the same."""
    mine, other = served.by("bot"), served.by("other", agents=("other",))
    same = served.by("same")
    name, data = offline(tmp_path / "spool")
    half = mine.session()
    part = mine.get(f"/v1/traces/{half}", headers={"accept": "application/x-ndjson"}).content
    assert code(put(mine, data.replace(b"Help", b"Harm", 1), name)) == (422, "TRACE_CHAIN_INTEGRITY_ERROR")
    assert code(put(mine, data[:-5], name)) == (422, "TRACE_CHAIN_INTEGRITY_ERROR")
    assert code(put(mine, part, half)) == (422, "TRACE_CHAIN_INTEGRITY_ERROR")
    assert code(put(mine, data + data, name)) == (422, "TRACE_CHAIN_INTEGRITY_ERROR")
    assert code(put(mine, b"", name)) == (422, "TRACE_CHAIN_INTEGRITY_ERROR")
    assert code(put(mine, data, half)) == (422, "TRACE_CHAIN_INTEGRITY_ERROR")
    assert code(put(other, data, name)) == (403, "FORBIDDEN")
    for _ in range(2):
        taken = put(mine, data, name)
        assert (taken.status_code, taken.json()["status"]) == (201, "ended")
    assert code(put(same, data, name)) == (409, "SESSION_ALREADY_EXISTS")
    assert mine.post(f"/v1/traces/{name}/verify").json()["verdict"] == "INTACT, SEALED"
    assert mine.get(f"/v1/traces/{name}", headers={"accept": "application/x-ndjson"}).content == data
    assert mine.execute(name).status_code == 409


def test_a_session_of_that_id_is_there(served: Served, tmp_path: Path) -> None:
    """The one that is there stays as it is, whoever opened it, and the other is not said to be taken."""
    bot = served.by("bot")
    name, data = offline(tmp_path / "spool")
    bot.session(session_id=name)
    assert code(put(bot, data, name)) == (409, "SESSION_ALREADY_EXISTS")
    assert "carp.resolution.completed" in bot.kinds(name)
    bot.ask("DELETE", f"/v1/sessions/{name}")
    assert code(put(bot, data, name)) == (409, "SESSION_ALREADY_EXISTS")


def test_a_handed_in_session_is_not_the_servers_own_word(served: Served, tmp_path: Path) -> None:
    """Whoever reads a trace can tell: what a server wrote names who opened it, and nobody can hand such a one in.
    What stands in for a session is handed in by who opened that one."""
    bot, other = served.by("bot"), served.by("other")
    for creator in ("key:bot", "key:ann", ""):
        name, data = offline(tmp_path / "spool", creator=creator)
        assert code(put(bot, data, name)) == (403, "FORBIDDEN")
        assert code(bot.get(f"/v1/sessions/{name}")) == (404, "SESSION_NOT_FOUND")
    name, data = offline(tmp_path / "spool", offline_of=bot.session())
    assert code(put(other, data, name)) == (403, "FORBIDDEN")
    assert put(bot, data, name).status_code == 201


def test_a_live_session_is_not_ended_by_a_forged_end(served: Served, tmp_path: Path) -> None:
    """Its own bytes, with more behind them, are no session that was recorded elsewhere."""
    bot = served.by("bot")
    live = bot.session()
    data = bot.get(f"/v1/traces/{live}", headers={"accept": "application/x-ndjson"}).content
    folder = tmp_path / "forged"
    folder.mkdir()
    (folder / f"{live}.trace.jsonl").write_bytes(data)
    with Runtime(Atlas.from_dict(manifest()), trace=folder) as runtime:
        session = runtime.resume(live)
        session.call("ticket.get", lambda n: n, 1)
        session.end()
    forged = (folder / f"{live}.trace.jsonl").read_bytes()
    assert forged.startswith(data)
    assert put(bot, forged, live).status_code in (403, 409)
    assert bot.execute(live).status_code == 200


@pytest.mark.parametrize("where", ["create", "append", "partly", "torn"])
def test_a_hand_in_that_was_interrupted(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """A full disk, or a death in the middle of it: handed in again it is taken, and is whole."""
    bot = served.by("bot")
    name, data = offline(tmp_path / "spool")
    store = served.service.host.store

    def full(*asked: Any) -> None:
        raise SinkError("the disk is full", is_transient=True)

    with monkeypatch.context() as patch:
        if where == "create":
            patch.setattr(store, "create", full)
        else:
            patch.setattr("cra_middleware.trace.sinks.jsonl_log.JsonlLog.append", full)
        answer = put(bot, data, name)
        assert answer.status_code >= 500
        assert answer.json()["error"]["recoverable"] is True
    if where in ("partly", "torn"):
        lines = data.splitlines(keepends=True)
        kept = b"".join(lines[:2]) + (lines[2][:50] if where == "torn" else b"")
        (served.folder / "traces" / f"{name}.trace.jsonl").write_bytes(kept)
    assert put(bot, data, name).status_code == 201
    assert (served.folder / "traces" / f"{name}.trace.jsonl").read_bytes() == data
    assert bot.post(f"/v1/traces/{name}/verify").json()["verdict"] == "INTACT, SEALED"


def forged(session_id: str, started: dict[str, Any], time: str = "2026-01-05T12:00:00.000001+00:00") -> bytes:
    """A chain that nobody's runtime wrote."""
    lines, previous = [], "0" * 64
    trace_id, span_id = new_id(), new_id()
    ended = {"duration_ms": 1, "reason": "completed"}
    for number, (kind, payload) in enumerate((("session.started", started), ("session.ended", ended))):
        text = canonical(payload).decode()
        line, previous = seal(new_id(), trace_id, span_id, None, session_id, number, time, kind, text, previous)
        lines.append(line)
    return "".join(lines).encode()


def test_what_is_handed_in_is_no_larger_than_what_is_begun_here(served: Served) -> None:
    """It stands in lists that others read."""
    bot = served.by("bot")
    said = {"agent_id": "bot", "goal": "Help"}
    large = {"given": {"x": "y" * 20_000}}
    for started in ({**said, "goal": "g" * 10_001}, {**said, "agent_id": "b" * 256}, {**said, "metadata": large}):
        name = new_id()
        assert code(put(bot, forged(name, started), name)) == (400, "INVALID_TRACE_EVENT")
    assert bot.get("/v1/sessions?status=all").json()["total"] == 0


def test_a_session_of_the_future(served: Served) -> None:
    """It stands in the lists as of now: no clock puts one before all that are to come."""
    bot = served.by("bot")
    name = new_id()
    data = forged(name, {"agent_id": "bot", "goal": "Help"}, "9999-12-31T23:59:59.999999+00:00")
    for _ in range(2):
        told = put(bot, data, name)
        assert told.status_code == 201
        assert told.json()["created_at"] <= served.now()
        assert told.json()["ended_at"] <= served.now()
        served.clock.advance(seconds=60)
