"""``cra trace export`` and ``import``: what arrives is what was there, or nothing and a reason."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest

from cra_middleware import Runtime, verify
from cra_middleware._ids import new_id
from cra_middleware.errors import SinkError
from cra_middleware.sinks_by_name import open_existing, open_sink
from cra_middleware.trace.sinks.jsonl import JsonlSink
from cra_middleware.trace.sinks.sqlite import SqliteSink
from tests.cli.conftest import Cra, rewrite
from tests.trace.postgres_server import database


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three ended sessions."""
    with Runtime.observe(tmp_path / "from") as runtime:
        for number in range(3):
            with runtime.session(goal=f"\u2028 🙂 {number}") as session:
                session.call("ticket.get", lambda: None)
    return tmp_path / "from"


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.trace.jsonl")}


def session_of(path: Path) -> str:
    return path.name.removesuffix(".trace.jsonl")


def test_a_round_trip(cra: Cra, tmp_path: Path, folder: Path) -> None:
    """From files to SQLite to PostgreSQL and back to files, every byte is the same."""
    db = f"sqlite:{tmp_path / 'traces.db'}"
    with database() as conninfo:
        from psycopg.conninfo import conninfo_to_dict

        url = "postgresql:///?" + urlencode(conninfo_to_dict(conninfo), quote_via=quote)
        for step, (source, to) in enumerate([(folder, db), (db, url), (url, tmp_path / "back")]):
            ran = cra("trace", "export" if step % 2 else "import", source, "--to", to)
            assert (ran.code, ran.stderr) == (0, "")
            assert ran.stdout.count("copied") == 3
    assert content(tmp_path / "back") == content(folder)
    assert all(verify(path).sealed for path in (tmp_path / "back").glob("*.jsonl"))


def test_again_changes_nothing(cra: Cra, tmp_path: Path, folder: Path) -> None:
    """A session that is there already is left alone; one that an earlier copy left half is finished."""
    to = tmp_path / "to"
    assert cra("trace", "export", folder, "--to", to).code == 0
    assert cra("trace", "export", folder, "--to", to).stdout.count("already there") == 3
    for cut in (1, 400, -1):
        path = sorted(to.glob("*.jsonl"))[1]
        path.write_bytes(path.read_bytes()[:cut])
        ran = cra("trace", "export", folder, "--to", to)
        assert (ran.code, ran.stdout.count("continued"), ran.stdout.count("already there")) == (0, 1, 2), ran
        assert content(to) == content(folder)


def test_what_is_broken_is_not_copied(cra: Cra, tmp_path: Path, folder: Path) -> None:
    """A broken session is named, and the others are copied."""
    path = sorted(folder.glob("*.jsonl"))[1]
    rewrite(path, lambda lines: lines.pop(2))
    ran = cra("trace", "export", folder, "--to", f"sqlite:{tmp_path / 'to.db'}", "--format", "json")
    assert ran.code == 1
    assert f"session {session_of(path)} was not copied: BROKEN at event 2" in ran.stderr
    assert [item["outcome"] for item in ran.json["sessions"]] == ["copied", "not copied", "copied"]
    sink = SqliteSink(tmp_path / "to.db")
    assert session_of(path) not in sink.session_ids()
    assert len(sink.session_ids()) == 2
    sink.close()


@pytest.mark.parametrize("change", ["differs", "longer"])
def test_another_session_of_the_same_id(cra: Cra, tmp_path: Path, folder: Path, change: str) -> None:
    """What the target has is never overwritten by something else, and never shortened."""
    to = tmp_path / "to"
    assert cra("trace", "export", folder, "--to", to).code == 0
    path = sorted((to if change == "differs" else folder).glob("*.jsonl"))[0]
    if change == "differs":
        rewrite(path, lambda lines: lines.__setitem__(1, lines[1].replace(b'sequence":1', b'sequence":9')))
    else:
        rewrite(path, lambda lines: lines.pop())
    before = content(to)
    ran = cra("trace", "export", folder, "--to", to)
    assert ran.code == 1
    assert ("event 1 differs" if change == "differs" else "more of this session") in ran.stderr
    assert content(to) == before


def test_a_session_that_is_written(cra: Cra, tmp_path: Path, folder: Path) -> None:
    """A session whose target has a writer is not copied, and one that was not ended is copied as it stands."""
    to = tmp_path / "to"
    with Runtime.observe(folder) as runtime:
        session = runtime.session()
        assert cra("trace", "export", folder, "--to", to).code == 0
        log = JsonlSink(to).reopen(session.id)
        session.call("ticket.get", lambda: None)
        ran = cra("trace", "export", folder, "--to", to, "--session", session.id)
        assert (ran.code, "another writer" in ran.stderr) == (1, True)
        log.close()
        assert "continued" in cra("trace", "export", folder, "--to", to, "--session", session.id).stdout


def test_a_source_that_changes(cra: Cra, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was not verified is not copied, although it changed after it was."""
    real, path = SqliteSink.create, sorted(folder.glob("*.jsonl"))[0]

    def create(self: SqliteSink, session_id: str) -> object:
        if session_id == session_of(path):
            rewrite(path, lambda lines: lines.__setitem__(3, lines[3].replace(b"0", b"1")))
        return real(self, session_id)

    monkeypatch.setattr(SqliteSink, "create", create)
    ran = cra("trace", "export", folder, "--to", f"sqlite:{tmp_path / 'to.db'}")
    assert (ran.code, "changed while it was read" in ran.stderr) == (1, True)
    sink = SqliteSink(tmp_path / "to.db")
    assert sink.count(session_of(path)) == 0
    sink.close()


def test_one_file_and_one_session(cra: Cra, tmp_path: Path, folder: Path) -> None:
    """A single trace file is a source, by whatever name; and --session chooses."""
    path, other, _ = sorted(folder.glob("*.jsonl"))
    (tmp_path / "evidence.txt").write_bytes(path.read_bytes())
    assert cra("trace", "import", tmp_path / "evidence.txt", "--to", tmp_path / "one").code == 0
    assert content(tmp_path / "one") == {path.name: path.read_bytes()}
    assert cra("trace", "export", folder, "--to", tmp_path / "two", "--session", session_of(other)).code == 0
    assert list(content(tmp_path / "two")) == [other.name]


def test_wrong_usage(cra: Cra, tmp_path: Path, folder: Path) -> None:
    """A store that is not there, is empty, or is none at all: one sentence, and nothing is made."""
    to, (path, *_) = tmp_path / "to", sorted(folder.glob("*.jsonl"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "noise").write_bytes(b"\x00\xff{}\n" * 9)
    for source, code, words in (
        (tmp_path / "absent", 1, "no folder"),
        (f"sqlite:{tmp_path / 'absent.db'}", 1, "no file"),
        (f"sqlite:{path}", 1, "damaged"),
        (tmp_path / "empty", 2, "no sessions"),
        (tmp_path / "noise", 1, "one session"),
        ("ftp://x", 1, "no folder"),
        ("x" * 5000, 1, "no place"),
        ("postgresql://u:secret@127.0.0.1:1/x", 1, "cannot be used" if find_spec("psycopg") else "needs psycopg"),
    ):
        ran = cra("trace", "export", source, "--to", to)
        assert (ran.code, ran.stdout) == (code, ""), ran
        assert words in ran.stderr
        assert "secret" not in ran.stderr
        assert not to.exists()
    ran = cra("trace", "export", folder, "--to", to, "--session", new_id())
    assert (ran.code, "holds no session" in ran.stderr) == (2, True)
    assert not (tmp_path / "absent.db").exists()


@pytest.mark.parametrize(
    "text", ["", "ftp://x", "sqlite:", "sqlite://x", "sqlite:a\0b", "http://x", "a\0b", "mysql:x", "postgresql://[x"]
)
def test_texts_that_name_no_place(text: str) -> None:
    """A text that names no place for traces says what would."""
    with pytest.raises(SinkError):
        open_sink(text)
    with pytest.raises(SinkError):
        open_existing(text)
