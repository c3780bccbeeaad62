"""Personal values: commitments in the trace, values in the sidecar, and nothing anywhere once they are erased."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from cra_middleware import Atlas, AuditUnavailable, CallRefused, Runtime, SinkError, verify
from cra_middleware._canonical import canonical
from cra_middleware.approvals.approval import Pending
from cra_middleware.approvals.sqlite_store import SqliteApprovals
from cra_middleware.calls.attempt import Attempt
from cra_middleware.carp.resolver import Resolver
from cra_middleware.errors import CRAError, InvalidParameters
from cra_middleware.replay import replay
from cra_middleware.sidecar import Sidecar, SidecarError, WithheldError
from tests.conftest import manifest, policies

EMAIL = "ann@example.org"
PERSONAL = ["*.email", "*#/customer/email"]


def payloads(session: Any, kind: str) -> list[dict[str, Any]]:
    return [event.payload for event in session.events if event.event_type == kind]


def full(folder: Path, **options: Any) -> Runtime:
    """A runtime that records values, and keeps the personal ones beside the trace."""
    given = {"personal": PERSONAL, "sidecar": folder / "personal.db", **options}
    return Runtime(Atlas.from_dict(manifest()), trace=folder / "t", record="full", **given)


def holds(folder: Path, *secrets: str) -> list[str]:
    """Which files below a folder hold one of the secrets, as text or in JSON."""
    found = []
    for file in sorted(item for item in folder.rglob("*") if item.is_file()):
        data = file.read_bytes()
        found += [f"{file.name}: {secret}" for secret in secrets if secret.encode() in data]
    return found


def test_a_kept_value_can_be_checked_by_anybody(tmp_path: Path) -> None:
    """Value and salt give the commitment by the published rule; equal values have nothing in common."""
    sidecar = Sidecar(tmp_path / "p.db")
    first, second = sidecar.commit("ann", {"b": 1, "a": EMAIL}), sidecar.commit("ann", {"b": 1, "a": EMAIL})
    found = sidecar.reveal(first["ref"])
    assert found.value == canonical({"a": EMAIL, "b": 1})
    assert first["$commit"] == "sha256:" + sha256(b"cra-redact/1\0" + found.salt + found.value).hexdigest()
    assert not set(first.values()) & set(second.values())
    assert sidecar.subjects() == ("ann",)
    assert sidecar.count("ann") == 2
    sidecar.close()
    assert holds(tmp_path, EMAIL) == []
    assert (tmp_path / "p.db").stat().st_mode & 0o777 == 0o600


def test_erasing_leaves_nothing_to_guess_from(tmp_path: Path) -> None:
    """Key, values, salts and name are gone from the file's bytes; others' values stay, and so does the word erased."""
    sidecar = Sidecar(tmp_path / "p.db")
    mine = [sidecar.commit("ann", f"{EMAIL} {number}" * 400) for number in range(50)]
    other = sidecar.commit("bob", "kept")
    with sqlite3.connect(tmp_path / "p.db") as raw:
        (key,) = raw.execute("SELECT key FROM subjects WHERE subject = 'ann'").fetchone()
        sealed = [row for (row,) in raw.execute("SELECT sealed FROM personal WHERE subject = 1")]
    raw.close()
    assert len(sealed) == 50
    assert sidecar.erase("ann") == 50
    with sqlite3.connect(tmp_path / "p.db") as raw:
        assert raw.execute("PRAGMA freelist_count").fetchone() == (
            0,
        )  # written anew: no room is left of what was there
    raw.close()
    bytes_left = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert key not in bytes_left
    assert not [row for row in sealed if row[-32:] in bytes_left]
    assert b"ann" not in bytes_left
    for made in mine:
        with pytest.raises(WithheldError) as caught:
            sidecar.reveal(made["ref"])
        assert caught.value.why == "erased"
    assert sidecar.reveal(other["ref"]).value == b'"kept"'
    assert sidecar.subjects() == ("bob",)
    assert sidecar.erase("ann") == 0
    again = sidecar.commit("ann", "new")  # a key of its own, which was never the old one
    assert sidecar.reveal(again["ref"]).value == b'"new"'


def test_an_erasure_that_a_reader_holds_up_says_so(tmp_path: Path) -> None:
    """Old pages are still there while somebody reads them; afterwards the same command finishes it."""
    sidecar = Sidecar(tmp_path / "p.db", timeout_seconds=0.05)
    sidecar.commit("ann", EMAIL)
    reader = sqlite3.connect(tmp_path / "p.db", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM personal").fetchall()
    with pytest.raises(SidecarError, match=r"try again|locked"):
        sidecar.erase("ann")
    reader.execute("COMMIT")
    reader.close()
    sidecar.erase("ann")
    assert b"ann" not in b"".join(file.read_bytes() for file in tmp_path.iterdir())


@pytest.mark.parametrize("column", ["commitment", "sealed", "key"])
def test_a_changed_sidecar_is_found_out(column: str, tmp_path: Path) -> None:
    """No value comes out that is not what was committed to, however the file was changed."""
    sidecar = Sidecar(tmp_path / "p.db")
    made, other = sidecar.commit("ann", EMAIL), sidecar.commit("bob", "x")
    sidecar.close()
    with sqlite3.connect(tmp_path / "p.db") as raw:
        table, name = ("subjects", "subject") if column == "key" else ("personal", "ref")
        source, target = ("bob", "ann") if column == "key" else (other["ref"], made["ref"])
        raw.execute(
            f"UPDATE {table} SET {column} = (SELECT {column} FROM {table} WHERE {name} = ?) WHERE {name} = ?",
            (source, target),
        )
    raw.close()
    with pytest.raises(WithheldError) as caught:
        sidecar.reveal(made["ref"])
    assert caught.value.why == "altered"


def test_a_value_that_was_sealed_again(tmp_path: Path) -> None:
    """Whoever can read the file has the key; another value under it still does not give the commitment."""
    sidecar = Sidecar(tmp_path / "p.db")
    made = sidecar.commit("ann", EMAIL)
    salt = sidecar.reveal(made["ref"]).salt
    with sqlite3.connect(tmp_path / "p.db") as raw:
        (key,) = raw.execute("SELECT key FROM subjects").fetchone()
        bound = f"{made['ref']} {made['$commit']}".encode()
        forged = bytes(12) + AESGCM(key).encrypt(bytes(12), salt + b'"bob@example.org"', bound)
        raw.execute("UPDATE personal SET sealed = ?", (forged,))
    raw.close()
    with pytest.raises(WithheldError) as caught:
        sidecar.reveal(made["ref"])
    assert caught.value.why == "altered"


@pytest.mark.parametrize("junk", [b"", b"x", b"x" * 40, "text", 5])
def test_junk_in_the_sidecar(junk: object, tmp_path: Path) -> None:
    """Whatever stands where a sealed value should, it is no value."""
    sidecar = Sidecar(tmp_path / "p.db")
    made = sidecar.commit("ann", EMAIL)
    with sqlite3.connect(tmp_path / "p.db") as raw:
        raw.execute("UPDATE personal SET sealed = ?", (junk,))
    raw.close()
    with pytest.raises(WithheldError):
        sidecar.reveal(made["ref"])


def test_refs_and_files_of_others(tmp_path: Path) -> None:
    """An unknown ref, another store's file, a text that is none: each has its sentence."""
    sidecar = Sidecar(tmp_path / "p.db")
    with pytest.raises(WithheldError) as caught:
        sidecar.reveal("no such ref")
    assert caught.value.why == "unknown"
    with pytest.raises(SidecarError, match="surrogate"):
        sidecar.commit("\ud800", 1)
    with pytest.raises(SidecarError, match="written down"):
        sidecar.commit("ann", {1: 2})
    SqliteApprovals(tmp_path / "a.db").close()
    with pytest.raises(SidecarError, match="name another file"):
        Sidecar(tmp_path / "a.db")
    (tmp_path / "text.db").write_text("not a database, and longer than a hundred letters " * 9)
    with pytest.raises(SidecarError, match="damaged"):
        Sidecar(tmp_path / "text.db")


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    """One sidecar for many examples."""
    made = Sidecar(tmp_path_factory.mktemp("common") / "p.db")
    yield made
    made.close()


@settings(max_examples=40)
@given(st.text(st.characters(exclude_categories=["Cs"])), st.recursive(st.none() | st.integers() | st.text(), st.lists))
def test_any_value_comes_back(common: Sidecar, subject: str, value: object) -> None:
    """As its canonical text, whoever's it is."""
    assert common.reveal(common.commit(subject, value)["ref"]).value == canonical(value)


def test_a_session_with_personal_values(tmp_path: Path) -> None:
    """Arguments, results and facts hold commitments, each of which the sidecar opens; the trace verifies before and
    after the erasure, byte for byte the same."""
    with full(tmp_path) as runtime:
        with runtime.session(subject="customer-7", context={"email": EMAIL, "env": "prod"}) as session:
            session.call("ticket.get", lambda email, n: {"customer": {"email": email, "id": 7}}, EMAIL, 1)
    (asked,), (called,) = payloads(session, "carp.request.received"), payloads(session, "action.requested")
    (ran,) = payloads(session, "action.executed")
    sidecar = Sidecar(tmp_path / "personal.db")
    made = [asked["context"]["email"], called["parameters"]["email"], ran["result"]["customer"]["email"]]
    for mapping in made:
        found = sidecar.reveal(mapping["ref"])
        assert (found.value, found.commitment) == (canonical(EMAIL), mapping["$commit"])
    assert asked["context"]["env"] == "prod"
    assert called["parameters"]["n"] == 1
    assert called["parameters_hash"] == sha256(canonical(called["parameters"])).hexdigest()
    assert sidecar.subjects() == ("customer-7",)
    assert holds(tmp_path, EMAIL) == []
    file = tmp_path / "t" / f"{session.id}.trace.jsonl"
    before = file.read_bytes()
    assert verify(file).sealed
    assert sidecar.erase("customer-7") == 3
    assert file.read_bytes() == before
    assert verify(file).sealed


def test_whose_values_they_are(tmp_path: Path) -> None:
    """The subject's that was named, in children and after a resume too; else the session's own."""
    with full(tmp_path) as runtime:
        with runtime.session() as alone:
            alone.call("ticket.get", lambda email: None, EMAIL)
        with runtime.session(subject="cra:ann", keep=True) as parent:
            with runtime.session() as child:
                child.call("ticket.get", lambda email: None, EMAIL)
            with runtime.session(subject="bob") as other:
                other.call("ticket.get", lambda email: None, EMAIL)
            parent.detach()
        with runtime.resume(parent.id) as again:
            again.call("ticket.get", lambda email: None, EMAIL)
    sidecar = Sidecar(tmp_path / "personal.db")
    assert {name: sidecar.count(name) for name in sidecar.subjects()} == {alone.id: 1, "bob": 1, "cra:ann": 2}


def test_nothing_is_kept_where_values_are_not_recorded(tmp_path: Path) -> None:
    """With record="hash" the hash covers a commitment whose salt nobody has, so it cannot be guessed."""
    with Runtime(Atlas.from_dict(manifest()), personal=PERSONAL, sidecar=tmp_path / "p.db") as runtime:
        with runtime.session(context={"email": EMAIL}) as session:
            for _ in range(2):
                session.call("ticket.get", lambda email: email, EMAIL)
    hashes = {payload["parameters_hash"] for payload in payloads(session, "action.requested")}
    assert len(hashes) == 2
    assert sha256(canonical({"email": EMAIL})).hexdigest() not in hashes
    assert Sidecar(tmp_path / "p.db").subjects() == ()


def break_sidecar(file: Path) -> None:
    with sqlite3.connect(file) as raw:
        raw.execute("DROP TABLE personal")
    raw.close()


def test_a_value_that_cannot_be_kept_refuses_its_call(tmp_path: Path) -> None:
    """Like an unavailable log: the tool does not run, nothing is in the trace, and calls without such values go on."""
    ran: list[str] = []
    with full(tmp_path) as runtime, runtime.session() as session:
        break_sidecar(tmp_path / "personal.db")
        before = len(session.events)
        with pytest.raises(AuditUnavailable, match="could not be recorded"):
            session.call("ticket.get", lambda email: ran.append(email), EMAIL)
        assert (ran, len(session.events)) == ([], before)
        session.call("ticket.get", ran.append, "x")
        assert ran == ["x"]
        assert not session.is_busy
        with pytest.raises(SinkError):
            runtime.session(context={"email": EMAIL})


def test_an_interrupt_while_a_value_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call is over, nothing of it is in the trace, and the session ends."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with full(tmp_path) as runtime:
        session = runtime.session()
        before = len(session.events)
        monkeypatch.setattr(Attempt, "_keep", interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.call("ticket.get", lambda email: None, EMAIL)
        assert (session.is_busy, len(session.events)) == (False, before)
        session.end()
        assert session.verify().sealed


def test_a_result_that_cannot_be_kept(tmp_path: Path) -> None:
    """The tool has run: its value comes out, its outcome is recorded, and a tag stands for what it gave."""
    with full(tmp_path) as runtime, runtime.session() as session:

        def tool() -> object:
            break_sidecar(tmp_path / "personal.db")
            return {"customer": {"email": EMAIL}}

        assert session.call("ticket.get", tool) == {"customer": {"email": EMAIL}}
        assert payloads(session, "action.executed")[0]["result"] == "cra:redacted:unkept"
        assert session.verify().intact


def test_what_is_too_long_is_not_kept_either(tmp_path: Path) -> None:
    """No orphans: a value whose event holds no ref to it stays out of the sidecar."""
    with full(tmp_path, personal=["*#/items/*", "*.note"]) as runtime, runtime.session() as session:
        session.call("ticket.get", lambda items: {"items": items}, [1] * 12_000)
        session.call("ticket.get", lambda note: None, "x" * 1_100_000)
        first, second = payloads(session, "action.requested")
        assert "parameters" not in first
        assert "result" not in payloads(session, "action.executed")[0]
        assert second["parameters"]["note"]["$commit"].startswith("sha256:")
    assert Sidecar(tmp_path / "personal.db").count(session.id) == 1


def test_an_error_that_could_repeat_a_hidden_value(tmp_path: Path) -> None:
    """Where an argument was hidden by name or place, our own words stand for the tool's; forms are cut out of them."""

    def tool(**given: object) -> None:
        raise ValueError(f"no customer {EMAIL}")

    with full(tmp_path, redact=["*.pin", "pattern:email"]) as runtime, runtime.session() as session:
        for given in ({"pin": 1}, {"email": EMAIL}, {"n": 1}):
            with suppress(ValueError):
                session.call("ticket.get", tool, **given)
        messages = [payload["error_message"] for payload in payloads(session, "action.failed")]
    assert messages == ["the tool raised ValueError"] * 2 + ["no customer cra:redacted:email"]


def test_atlases_name_personal_values_too(tmp_path: Path) -> None:
    """With record="full" they need a sidecar, or the Atlas is not used; misspelt entries are refused."""
    atlas = Atlas.from_dict(manifest(personal=["context.email", "*#/customer"], redact=["pattern:all"]))
    with pytest.raises(ValueError, match="sidecar"):
        Runtime(atlas, record="full")
    with Runtime(Atlas.from_dict(manifest()), record="full") as runtime:
        with pytest.raises(ValueError, match="sidecar"):
            runtime.reload(atlas)
    with Runtime(atlas, record="full", sidecar=tmp_path / "p.db") as runtime:
        with runtime.session(context={"email": EMAIL}) as session:
            pass
        assert Sidecar(tmp_path / "p.db").count(session.id) == 1


MISSPELT = ["email", "*.", ".email", "pattern:emial", "pattern:", "patern:x.y", "a.b#", "a.b#x", "a.b#/", "a.b#/x//y"]
MISSPELT += ["#/x", "a.b#/~2", "a b.c", "a.b/c.d"]


@pytest.mark.parametrize("entry", MISSPELT)
def test_misspelt_entries(entry: str) -> None:
    """A rule that would hide nothing must never load."""
    for option in ("redact", "personal"):
        with pytest.raises(ValueError, match=f"{option}: "):
            Runtime([], **{option: [entry]})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="under redact"):
        Runtime([], personal=["pattern:email"])


@pytest.mark.filterwarnings("ignore::cra_middleware.policies.AtlasWarning")
def test_a_hidden_fact_is_not_taken_for_the_fact(tmp_path: Path) -> None:
    """After a resume it is missing, and a denial that looks at it holds, until it is given again."""
    atlas = Atlas.from_dict(
        manifest(
            policies=policies({"policy_id": "d", "type": "deny", "conditions": {"context_matches": {"vip": "yes"}}})
        )
    )
    for option in ({"redact": ["context.vip"]}, {"personal": ["context#/vip"]}):
        with Runtime(
            atlas,
            trace=tmp_path / "t",
            record="full",
            sidecar=tmp_path / "p.db",
            **option,  # type: ignore[arg-type]
        ) as runtime:
            session = runtime.session(context={"vip": "no", "env": "prod"})
            session.call("ticket.get", lambda: None)
            events = session.events
            session.detach()
            again = runtime.resume(session.id)
            assert dict(again.facts.context) == {"env": "prod"}
            again.detach()
            assert runtime.resume(session.id, context={"vip": "no"}).facts.context["vip"] == "no"
        assert [step.now.word for step in replay([events], Resolver([atlas], "deny")).steps] == ["undecidable"]


def test_the_approvals_store_keeps_commitments(tmp_path: Path) -> None:
    """The person who is asked sees the value; the store's file has what the trace has, so that erasing reaches it."""
    seen: list[object] = []
    ask = {"policy_id": "ask", "type": "require_approval", "actions": ["refund.create"]}

    def approver(pending: Pending) -> bool:
        seen.append(pending.arguments["email"])
        return True

    with Runtime(
        Atlas.from_dict(manifest(policies=policies(ask))),
        trace=tmp_path / "t",
        approvals=tmp_path / "a.db",
        record="full",
        personal=PERSONAL,
        sidecar=tmp_path / "p.db",
        approver=approver,
    ) as runtime:
        with runtime.session() as session:
            session.call("refund.create", lambda email: None, EMAIL)
        (approval,) = runtime.approvals.list(None)
    assert seen == [EMAIL]
    assert approval.pending.arguments["email"] == payloads(session, "action.requested")[0]["parameters"]["email"]
    assert Sidecar(tmp_path / "p.db").count(session.id) == 1
    assert holds(tmp_path, EMAIL) == []


def test_without_entries_nothing_is_looked_at(tmp_path: Path) -> None:
    """No redactor, no copy of the arguments, no sidecar."""
    with Runtime(Atlas.from_dict(manifest()), record="full") as runtime:
        assert runtime._policies.epoch.redactor is None
        assert runtime._setting.sidecar is None
        with runtime.session() as session:
            session.call("ticket.get", lambda email: email, EMAIL)
            assert payloads(session, "action.executed")[0]["result"] == EMAIL


def test_several_writers(tmp_path: Path) -> None:
    """Each with a connection of its own, as processes have: one file, one key of a subject, nothing lost."""
    stores = [Sidecar(tmp_path / "p.db", timeout_seconds=30) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        for store in stores:
            pool.submit(lambda store: [store.commit("ann", number) for number in range(20)], store)
    with sqlite3.connect(tmp_path / "p.db") as raw:
        assert raw.execute("SELECT count(*) FROM subjects").fetchone() == (1,)
    raw.close()
    assert stores[0].count("ann") == 40
    assert stores[1].erase("ann") == 40


SECRETS = [f"s3cr3t-{number}-of-the-walk" for number in range(9)]


def test_secrets_never_reach_a_sink_by_default(tmp_path: Path) -> None:
    """record="hash": a secret in an argument, a result, an exception, a fact, a schema's refusal, an
    approval (whose argument is hidden) or a limit's count is in no file. Names (of actions, tools and agents), the goal
    and the policies' reasons are recorded as they are: they are the operator's."""
    schema = {"type": "object", "properties": {"amount": {"type": "number", "enum": [1, 2]}}}
    actions = [
        {"action_id": "refund.create", "name": "r", "description": "r", "parameters_schema": schema},
        *({"action_id": name, "name": name, "description": name} for name in ("ticket.get", "ticket.list")),
    ]
    rules = policies(
        {"policy_id": "ask", "type": "require_approval", "actions": ["ticket.list"]},
        {
            "policy_id": "limit",
            "type": "rate_limit",
            "actions": ["ticket.get"],
            "parameters": {"max_calls": 90, "window_seconds": 60},
        },
    )
    atlas = Atlas.from_dict(manifest(actions=actions, policies=rules, redact=["ticket.list.*", "*#/note"]))

    class Odd(Exception):
        def __str__(self) -> str:
            return SECRETS[2]

    def failing(value: object) -> None:
        raise Odd(SECRETS[2], value)

    options: dict[str, Any] = {"approvals": tmp_path / "a.db", "counters": tmp_path / "c.db"}
    with Runtime(atlas, trace=tmp_path / "t", **options) as runtime:
        with runtime.session(context={"token": SECRETS[3]}) as session:
            session.call("ticket.get", lambda value: SECRETS[1], {"deep": [SECRETS[0]]})
            with pytest.raises(Odd):
                session.call("ticket.get", failing, SECRETS[0])
            for wrong in (SECRETS[4], {SECRETS[4]: SECRETS[4]}, 3):
                with pytest.raises(InvalidParameters):
                    session.call("refund.create", lambda amount: None, wrong)
            with suppress(CallRefused):
                session.call("ticket.get", lambda value: None, {"\n": SECRETS[5]})
            with suppress(CRAError):
                session.call("ticket.list", lambda note: None, SECRETS[6])
            session.call("ticket.get", lambda value: None, SECRETS[7].encode())
        with suppress(RuntimeError), runtime.session():
            raise RuntimeError(SECRETS[8])
    assert holds(tmp_path, *SECRETS) == []
    text = "".join(file.read_text() for file in (tmp_path / "t").glob("*.jsonl"))
    assert not [secret for secret in SECRETS if json.dumps(sha256(canonical(secret)).hexdigest()) in text]
    assert text.count("action.requested") == 8
