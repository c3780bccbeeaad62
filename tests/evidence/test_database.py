"""Traces and ledger in PostgreSQL: what somebody with the tables can do, and what a head held elsewhere says to it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from cra_middleware import Atlas, Runtime
from cra_middleware.keys import generate_key, load_signer
from cra_middleware.sinks import SqliteSink
from cra_middleware.trace.pruned import Pruned
from tests.cli.conftest import Cra
from tests.conftest import manifest
from tests.evidence.scene import work
from tests.trace.forge import rewrite
from tests.trace.ledger.ledgers import PostgresLedger

pytest.importorskip("psycopg", reason="PostgreSQL needs the postgres extra")
ATLAS = Atlas.from_dict(manifest())
UNKNOWN = "01900000-0000-7000-8000-0000000000ff"


@dataclass
class Kept:
    """Two sessions that were ended, the address with a password in it, and what is held elsewhere."""

    ledger: PostgresLedger
    address: str
    key: Path
    head: Path
    first: Path
    a: str
    b: str

    def sql(self, statement: str) -> None:
        self.ledger.execute(statement)


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    folder = tmp_path / "made"
    folder.mkdir()
    with ExitStack() as stack:
        ledger = PostgresLedger(folder, stack)
        generate_key(tmp_path / "bot.key", "example.com/bot")
        heads: list[str] = []
        names = []
        for _ in range(2):
            sink = ledger.sink(shared=True, signer=load_signer(tmp_path / "bot.key"), on_head=heads.append)
            with Runtime(ATLAS, trace=sink) as runtime, runtime.session("bot", "Answer ticket 42") as session:
                work(runtime, session, 2)
            names.append(session.id)
            (tmp_path / f"{len(names)}.head").write_text(heads[-1])
        address = ledger.address.replace("postgres@", "postgres:secret@")
        yield Kept(ledger, address, tmp_path / "bot.key.pub", tmp_path / "2.head", tmp_path / "1.head", *names)


def of(name: str) -> str:
    return f"session = (SELECT number FROM cra_sessions WHERE session_id = '{name}')"


def drop_the_tail(kept: Kept) -> None:
    kept.sql(f"DELETE FROM cra_lines WHERE {of(kept.a)} AND sequence > 8")
    kept.sql(f"UPDATE cra_sessions SET events = 9 WHERE session_id = '{kept.a}'")


def delete_a_session(kept: Kept) -> None:
    kept.sql(f"DELETE FROM cra_lines WHERE {of(kept.a)}")
    kept.sql(f"DELETE FROM cra_sessions WHERE session_id = '{kept.a}'")


def write_a_session_anew(kept: Kept) -> None:
    lines = rewrite(kept.ledger.lines(kept.a), lambda events: events[0]["payload"].update(goal="Another"))
    kept.ledger.put(kept.a, lines)


def drop_the_ledger(kept: Kept) -> None:
    kept.sql("DELETE FROM cra_ledger_entries; UPDATE cra_ledger_head SET note = NULL")


def roll_back(kept: Kept) -> None:
    """Everything as it was after the first session."""
    kept.sql(f"DELETE FROM cra_lines WHERE {of(kept.b)}; DELETE FROM cra_sessions WHERE session_id = '{kept.b}'")
    size = int(kept.first.read_text().split("\n")[1])
    kept.sql(f"DELETE FROM cra_ledger_entries WHERE place >= {size}")
    kept.ledger.put_head(kept.first.read_bytes())


ATTACKS: list[tuple[Callable[[Kept], None], str, str]] = [
    (lambda kept: None, "", ""),
    (
        lambda kept: kept.sql(f"DELETE FROM cra_lines WHERE {of(kept.a)} AND sequence = 4"),
        "BROKEN at event 4",
        "BROKEN at event 4",
    ),
    (
        lambda kept: kept.sql(
            f"UPDATE cra_lines SET line = replace(encode(line, 'escape'), 'ticket 42', 'ticket 43')::bytea "
            f"WHERE {of(kept.a)} AND sequence = 0"
        ),
        "BROKEN at event 0: hash_mismatch",
        "BROKEN at event 0: hash_mismatch",
    ),
    (drop_the_tail, "CHANGED: the ledger knows", "CHANGED: the ledger knows"),
    (
        lambda kept: kept.sql(f"DELETE FROM cra_lines WHERE {of(kept.a)}"),
        "BROKEN at event 0",
        "BROKEN at event 0",
    ),
    (delete_a_session, "is missing: the ledger knows", "is missing: the ledger knows"),
    (write_a_session_anew, "are not those that the ledger was told of", "are not those that the ledger was told of"),
    (drop_the_ledger, "", "CHANGED: a signed head covers this database, and its ledger is not there: it was removed"),
    (roll_back, "", "CHANGED: the head that was held elsewhere covers"),
]


@pytest.mark.parametrize(("attack", "beside", "elsewhere"), ATTACKS)
def test_what_is_caught(cra: Cra, kept: Kept, attack: Callable[[Kept], None], beside: str, elsewhere: str) -> None:
    """With the head that lies in the database, and with one that was held elsewhere."""
    attack(kept)
    for sentence, more in ((beside, ()), (elsewhere, ("--head", kept.head))):
        ran = cra("trace", "verify", kept.address, "--key", kept.key, *more)
        assert (ran.code, ran.stderr) == (1 if sentence else 0, "")
        assert sentence in ran.stdout
        assert "secret" not in ran.stdout


def test_signed_to_the_end(cra: Cra, kept: Kept) -> None:
    """As a person reads it, and as a program does."""
    ran = cra("trace", "verify", kept.address, "--key", kept.key, "--head", kept.head, "--require", "signed")
    assert (ran.code, ran.stderr) == (0, "")
    assert ran.stdout.count("SIGNED up to event") == 2
    found = json.loads(cra("trace", "verify", kept.address, "--key", kept.key, "--format", "json").stdout)
    assert {item["path"] for item in found["files"]} == {kept.a, kept.b}
    assert found["folders"][0]["head"]["size"] == len(kept.ledger.entries())
    assert "secret" not in json.dumps(found)


def test_proofs(cra: Cra, kept: Kept, tmp_path: Path) -> None:
    """The head, one event, and that the log only grew: from the database, checked without it."""
    head = cra("trace", "head", kept.address)
    assert (head.code, head.stdout.encode()) == (0, kept.head.read_bytes())
    event = cra("trace", "prove", kept.address, "--session", kept.a, "--sequence", "3")
    growth = cra("trace", "prove", kept.address, "--since", kept.first)
    for name, made in (("event", event), ("growth", growth)):
        assert (made.code, made.stderr) == (0, "")
        (tmp_path / name).write_text(made.stdout)
        checked = cra("trace", "verify-proof", tmp_path / name, "--key", kept.key)
        assert (checked.code, checked.stdout[:7]) == (0, "PROVEN:")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("prove", "DB", "--sequence", "3"), 2, "say which session: --session ID"),
        (("prove", "DB", "--sequence", "3", "--session", "x"), 2, "--session is the id of a session"),
        (("show", "DB"), 2, "is a database, and showing one trace is for files: cra trace export postgresql://…@"),
        (("report", "DB", "--session", "x"), 2, "'x' is no session id: those are lower-case UUIDs"),
        (
            ("report", "DB", "--html", "-", "--session", UNKNOWN),
            1,
            f"holds no session {UNKNOWN}; `cra trace verify` names",
        ),
        (("report", "sqlite:nowhere.db", "--html", "-"), 1, "there is no file nowhere.db"),
        (
            ("report", ".", "--session", UNKNOWN),
            2,
            "--session chooses from a database; of a folder, name the session's",
        ),
        (("head", "sqlite:nowhere.db"), 1, "there is no file nowhere.db"),
    ],
)
def test_what_is_not_done_there(cra: Cra, kept: Kept, words: tuple[str, ...], code: int, said: str) -> None:
    """A sentence says so."""
    named = {"DB": kept.address, "KEY": str(kept.key)}
    ran = cra("trace", *(named.get(word, word) for word in words))
    assert (ran.code, ran.stdout) == (code, "")
    assert said in ran.stderr
    assert "secret" not in ran.stderr


def test_reports(cra: Cra, kept: Kept, tmp_path: Path) -> None:
    """Counted, and as a page with what the signed head covers; of one session, or of all; what was changed is said."""
    counted = json.loads(cra("trace", "report", kept.address, "--format", "json").stdout)
    assert (counted["sessions"], counted["broken_files"]) == (2, 0)
    one = json.loads(cra("trace", "report", kept.address, "--format", "json", "--session", kept.a).stdout)
    assert one["sessions"] == 1
    page = tmp_path / "page.html"
    made = cra("trace", "report", kept.address, "--html", page, "--key", kept.key)
    assert (made.code, made.stderr) == (0, "")
    text = page.read_text()
    assert (kept.a in text, kept.b in text, "SIGNED up to event" in text) == (True, True, True)
    assert "secret" not in text
    assert cra("trace", "report", kept.address, "--html", page, "--session", kept.b).code == 0
    assert (kept.a in page.read_text(), kept.b in page.read_text()) == (False, True)
    few = cra("trace", "report", kept.address, "--html", page, "--html-limit", "3")
    assert (few.code, "choose with --session ID" in few.stderr) == (2, True)

    kept.sql(f"UPDATE cra_lines SET line = decode('7b7d0a', 'hex') WHERE {of(kept.a)} AND sequence = 3")
    told = cra("trace", "report", kept.address)
    assert (told.code, "1 of 2 files and sessions were not counted" in told.stderr) == (1, True)
    broken = cra("trace", "report", kept.address, "--html", page)
    assert (broken.code, "1 of 2 files and sessions do not verify; the page says so" in broken.stderr) == (1, True)
    kept.sql(f"DELETE FROM cra_lines WHERE {of(kept.a)}")
    kept.sql(f"DELETE FROM cra_sessions WHERE session_id = '{kept.a}'")
    gone = cra("trace", "report", kept.address, "--html", page, "--key", kept.key)
    assert (gone.code, f"session {kept.a} is missing" in gone.stderr) == (1, True)
    assert "CHANGED: the traces are not what was signed." in page.read_text()


def test_a_report_of_what_was_pruned(cra: Cra, tmp_path: Path) -> None:
    """A sentence says that only hashes are left; the others are shown."""
    place = f"sqlite:{tmp_path / 'traces.db'}"
    sink = SqliteSink(tmp_path / "traces.db")
    with Runtime(ATLAS, trace=sink) as runtime:
        names = []
        for _ in range(2):
            with runtime.session("bot", "Answer ticket 42") as session:
                work(runtime, session, 1)
            names.append(session.id)
        assert sink.prune(names[0], Pruned(bytes(32 * sink.count(names[0])))) is None
    page = tmp_path / "page.html"
    assert cra("trace", "report", place, "--html", page).code == 0
    assert (names[0] in page.read_text(), names[1] in page.read_text()) == (False, True)
    refused = cra("trace", "report", place, "--html", page, "--session", names[0])
    assert (refused.code, f"session {names[0]} was pruned: {place} keeps its hashes" in refused.stderr) == (1, True)


def test_sqlite(cra: Cra, tmp_path: Path) -> None:
    """Its sessions are verified, too; it has no ledger."""
    place = f"sqlite:{tmp_path / 'traces.db'}"
    sink = SqliteSink(tmp_path / "traces.db")
    with Runtime(ATLAS, trace=sink) as runtime, runtime.session("bot", "Answer ticket 42") as session:
        work(runtime, session, 1)
    ran = cra("trace", "verify", place, "--require", "sealed")
    assert (ran.code, ran.stdout.split(":")[0]) == (0, session.id)
    head = cra("trace", "head", place)
    assert (head.code, head.stderr) == (
        1,
        f"cra: {place} has no signed head; give the runtime a signing key (`cra keys generate`)\n",
    )


def test_a_tail_that_is_gone(cra: Cra, kept: Kept) -> None:
    """Without a ledger, too, the database knows how many events were committed."""
    drop_the_ledger(kept)
    assert cra("trace", "verify", kept.address).code == 0
    kept.sql(f"DELETE FROM cra_lines WHERE {of(kept.a)} AND sequence > 8")
    ran = cra("trace", "verify", kept.address)
    assert ran.code == 1
    assert "events had reached the disk, and 9 are there: its end was removed" in ran.stdout
