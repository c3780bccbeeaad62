"""A session that is handed in is kept before it is listed, and a try that was cut short is finished by the next."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cra_middleware import Atlas, Runtime
from cra_middleware.errors import SinkError
from cra_middleware.server.book import SessionRow
from cra_middleware.server.faults import Fault
from cra_middleware.trace.pruned import Pruned
from cra_middleware.trace.sink import MovedError
from cra_middleware.trace.sinks.jsonl import JsonlSink
from tests.conftest import manifest
from tests.server.dying_upload import BOT, DIED, archive_at
from tests.trace.postgres_server import address_of, database

ROOT = Path(__file__).parents[2]
EVE = BOT._replace(name="eve", identity="key:eve")
NOBODY = BOT._replace(name="nobody", identity="")
STEPS = [
    ("folder", "begun"),
    ("folder", "torn"),
    ("folder", "written"),
    ("folder", "kept"),
    ("sqlite", "begun"),
    ("sqlite", "written"),
    ("sqlite", "kept"),
    ("postgres", "begun"),
    ("postgres", "written"),
    ("postgres", "kept"),
]


@pytest.fixture
def handed_in(tmp_path: Path) -> Path:
    """A whole session that was recorded elsewhere."""
    with Runtime(Atlas.from_dict(manifest()), trace=tmp_path / "spool") as runtime:
        with runtime.session("bot", "Help") as session:
            session.call("ticket.get", lambda n: n, 1)
    (path,) = (tmp_path / "spool").glob("*.trace.jsonl")
    return path


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "postgres":
        with database() as conninfo:
            yield address_of(conninfo)
    else:
        yield f"sqlite:{tmp_path}/traces.db" if request.param == "sqlite" else str(tmp_path / "traces")


def dies(store: str, folder: Path, path: Path, step: str) -> None:
    command = [sys.executable, "-m", "tests.server.dying_upload", store, str(folder), str(path), step]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == DIED, done.stderr


def listed(archive: Any) -> dict[str, SessionRow]:
    rows, _ = archive._host.book.sessions("all", None, 10, 0)
    return {row.session_id: row for row in rows}


@pytest.mark.slow
@pytest.mark.parametrize("looks", [False, True], ids=["", "looked-at"])
@pytest.mark.parametrize(("store", "step"), STEPS, indirect=["store"])
def test_a_server_dies_while_it_takes_a_session(
    store: str, step: str, looks: bool, handed_in: Path, tmp_path: Path
) -> None:
    """No list names a session that is not there; the same bytes, handed in again, are taken, as their sender's."""
    name, data = handed_in.name.partition(".")[0], handed_in.read_bytes()
    dies(store, tmp_path, handed_in, step)
    with archive_at(store, tmp_path) as archive:
        kept = archive._host.store
        assert listed(archive) == {}
        if looks:  # an auditor asks for it between: what its trace says of it is then in the lists
            archive._host.session_row(name)
        row = archive.upload(BOT, name, data)
        assert b"".join(kept.lines(name)) == data
        assert listed(archive) == {name: row}
        assert (row.creator, row.ended_us is None) == ("key:bot", False)
        assert str(archive.verify(BOT, name)) == "INTACT, SEALED"
        assert archive.upload(BOT, name, data) == row
        with pytest.raises(Fault) as refused:
            archive.upload(EVE, name, data)
        assert refused.value.code == "SESSION_ALREADY_EXISTS"
    with archive_at(store, tmp_path) as archive:
        assert b"".join(archive._host.store.lines(name)) == data


@pytest.mark.parametrize("store", ["folder", "sqlite", "postgres"], indirect=True)
def test_what_an_earlier_server_left(store: str, handed_in: Path, tmp_path: Path) -> None:
    """A session that is listed, and of which no trace was ever written: who handed it in hands it in again."""
    name, data = handed_in.name.partition(".")[0], handed_in.read_bytes()
    with archive_at(store, tmp_path) as archive:
        row = archive.upload(BOT, name, data)
    with archive_at(f"{store}-2" if "://" not in store else store, tmp_path) as archive:
        if "://" in store:  # gone with its rows
            sink: Any = archive._host.store
            with sink._link.transaction() as connection:
                connection.execute("DELETE FROM cra_lines")
                connection.execute("DELETE FROM cra_sessions")
        with pytest.raises(Fault, match="another session"):
            archive.upload(EVE, name, data)
        assert archive.upload(BOT, name, data) == row
        assert b"".join(archive._host.store.lines(name)) == data


@pytest.mark.parametrize("store", ["folder", "sqlite"], indirect=True)
def test_what_is_another_session_stays(store: str, handed_in: Path, tmp_path: Path) -> None:
    """Bytes that are not how the handed in ones begin are nobody's to go on with; nor is a session of the server's."""
    name, data = handed_in.name.partition(".")[0], handed_in.read_bytes()
    lines = data.splitlines(keepends=True)
    with archive_at(store, tmp_path) as archive:
        kept: Any = archive._host.store
        with closing(kept.create(name)) as log:
            log.append(0, lines[0] + lines[2], 2)
        with pytest.raises(Fault) as refused:
            archive.upload(BOT, name, data)
        assert refused.value.code == "SESSION_ALREADY_EXISTS"
        assert b"".join(kept.lines(name)) == lines[0] + lines[2]


def test_a_session_that_is_open_is_asked_for_again(handed_in: Path, tmp_path: Path) -> None:
    """Another process may be taking it at this very moment, and may yet die: nobody is told that it is there."""
    name, data = handed_in.name.partition(".")[0], handed_in.read_bytes()
    with archive_at(str(tmp_path / "traces"), tmp_path) as archive:
        log: Any = archive._host.store.create(name)
        with pytest.raises(Fault) as refused:
            archive.upload(BOT, name, data)
        assert (refused.value.code, refused.value.recoverable) == ("STORAGE_LOCKED", True)
        log.close()
        assert archive.upload(BOT, name, data).creator == "key:bot"


def test_one_that_is_listed_waits_for_nobody(handed_in: Path, tmp_path: Path) -> None:
    """It is durable: who hands the same bytes in while another does so is told that it is there."""
    name, data = handed_in.name.partition(".")[0], handed_in.read_bytes()
    with archive_at(str(tmp_path / "traces"), tmp_path) as archive:
        archive.upload(BOT, name, data)
        with closing(archive._host.store.reopen(name)):  # another is at it
            assert archive.upload(BOT, name, data).session_id == name
            with pytest.raises(Fault) as refused:
                archive.upload(EVE, name, data)
        assert refused.value.code == "SESSION_ALREADY_EXISTS"


def test_a_place_that_cannot_be_written(handed_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is no session that is there already: it is told as what it is, and nothing is listed."""
    name, data = handed_in.name.partition(".")[0], handed_in.read_bytes()

    def full(*args: object) -> None:
        raise SinkError("the disk is full", is_transient=True)

    with archive_at(str(tmp_path / "traces"), tmp_path) as archive:
        with monkeypatch.context() as patch:
            patch.setattr(JsonlSink, "create", full)
            with pytest.raises(SinkError, match="the disk is full"):
                archive.upload(BOT, name, data)
        with monkeypatch.context() as patch:
            patch.setattr("cra_middleware.trace.sinks.jsonl_log.JsonlLog.append", full)
            with pytest.raises(SinkError, match="the disk is full"):
                archive.upload(BOT, name, data)
        assert listed(archive) == {}
        assert archive.upload(BOT, name, data).session_id == name


def test_two_servers_take_it_at_once(handed_in: Path, tmp_path: Path) -> None:
    """One writes it; the other asks its client to come again, and never mixes its bytes in."""
    name, data = handed_in.name.partition(".")[0], handed_in.read_bytes()
    with database() as conninfo, archive_at(address_of(conninfo), tmp_path) as archive:
        sink: Any = archive._host.store
        create = sink.create

        def slow(session_id: str) -> Any:
            log = create(session_id)
            sink.create, append = create, log.append

            def late(*args: Any) -> None:
                log.append = append
                assert archive.upload(BOT, name, data).session_id == name  # the other one
                append(*args)

            log.append = late
            return log

        sink.create = slow
        with pytest.raises(Fault) as refused:
            archive.upload(BOT, name, data)
        assert (refused.value.code, refused.value.recoverable) == ("STORAGE_LOCKED", True)
        assert isinstance(refused.value.__cause__, MovedError)
        assert b"".join(sink.lines(name)) == data
        assert archive.upload(BOT, name, data).session_id == name


def test_a_session_of_the_servers_own(handed_in: Path, tmp_path: Path) -> None:
    """Its trace names who began it: nobody goes on with that by handing it in, where its index was lost."""
    with archive_at(str(tmp_path / "traces"), tmp_path) as archive:
        sink: Any = archive._host.store
        runtime = archive._host.runtime
        session = runtime.session("bot", "Help", metadata={"creator": "key:bot"})
        session.end()
        name = session.id
        data = b"".join(sink.lines(name))
        lines = data.splitlines(keepends=True)
    path = tmp_path / "traces" / f"{name}.trace.jsonl"
    path.write_bytes(b"".join(lines[:-1]))
    with archive_at(str(tmp_path / "traces"), tmp_path) as archive:
        for caller in (BOT, EVE):
            with pytest.raises(Fault, match="a server wrote"):
                archive.upload(caller, name, data)
        assert path.read_bytes() == b"".join(lines[:-1])
        assert archive._host.session_row(name).creator == "key:bot"


def test_one_that_was_pruned(handed_in: Path, tmp_path: Path) -> None:
    """Its row, where one is left, goes: no list names what is not there."""
    name, data = handed_in.name.partition(".")[0], handed_in.read_bytes()
    with archive_at(f"sqlite:{tmp_path}/traces.db", tmp_path) as archive:
        archive.upload(BOT, name, data)
        sink: Any = archive._host.store
        assert sink.prune(name, Pruned(bytes(32 * data.count(b"\n")))) is None
        with pytest.raises(Fault) as refused:
            archive.upload(BOT, name, data)
        assert refused.value.code == "SESSION_ALREADY_EXISTS"
        assert listed(archive) == {}
