"""What is noted and signed, and what never is: the same rules, wherever a ledger lies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from cra_middleware.errors import ChainBroken
from cra_middleware.trace.entry import ENTRY_BYTES, Entry
from cra_middleware.trace.ledger import session_tree
from cra_middleware.trace.note import Checkpoint, Signer
from cra_middleware.trace.tree import Leaves
from tests.trace.forge import rewrite
from tests.trace.ledger.ledgers import (
    KINDS,
    OTHER,
    SIGNER,
    Ledger,
    Owners,
    ask,
    head_of,
    ledger_in,
    noted,
    sizes,
    tree_of,
)

GONE = r"was changed \(its last head is about 2 entries that are not there\): it is not signed any more"


@pytest.fixture(params=KINDS)
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    with ledger_in(request.param, tmp_path / "traces") as made:
        yield made


@pytest.fixture
def owners(ledger: Ledger) -> Iterator[Owners]:
    made = Owners(ledger)
    yield made
    made.close()


@pytest.fixture
def session(ledger: Ledger) -> str:
    """A sealed session in it."""
    return ledger.write()


@pytest.fixture
def two_heads(ledger: Ledger, session: str, owners: Owners) -> Owners:
    """A ledger of two entries, signed after each."""
    owner = owners.new()
    for size in (3, 5):
        ask(ledger, session, size)
        owner.work()
    owners.close()
    return owners


def change_goal(lines: list[bytes]) -> list[bytes]:
    return rewrite(lines, lambda events: events[0]["payload"].update(goal="Another"))


def test_what_is_wanted_is_noted_and_signed(ledger: Ledger, session: str, owners: Owners) -> None:
    """The entry, the tree of it, the head; the inbox is empty, and there is nothing more to do."""
    owner = owners.new()
    assert owner.work() is None
    ask(ledger, session, 3)
    note = owner.work()
    assert note == ledger.head()
    [entry] = noted(ledger)
    assert entry == tree_of(ledger, session, 3).entry()
    assert head_of(ledger)[:2] == ("example.com/bot", 1)
    assert (ledger.waiting(), owner.work()) == (0, None)


def test_the_largest_of_what_is_asked_counts(ledger: Ledger, session: str, owners: Owners) -> None:
    """One entry a session and turn, in the order in which sessions were named."""
    other = ledger.write()
    ask(ledger, session, 1)
    ask(ledger, session, 2, 4)
    ask(ledger, other, 2)
    ask(ledger, session, 3)
    owners.new().work()
    assert [(entry.session_id, entry.size) for entry in noted(ledger)] == [(session, 4), (other, 2)]


def test_the_next_owner_goes_on(ledger: Ledger, session: str, two_heads: Owners) -> None:
    """With the entries and the head that the last one left."""
    ask(ledger, session, 7)
    two_heads.new().work()
    assert sizes(ledger) == [3, 5, 7]
    assert head_of(ledger).size == 3


def test_one_owner_at_a_time(ledger: Ledger, owners: Owners) -> None:
    """Nobody else gets it before the owner lets go."""
    owners.new()
    place = ledger.open()
    assert place.take() is None
    owners.close()
    hold = place.take()
    assert hold is not None
    hold.close()


@pytest.mark.parametrize("is_remembered", [True, False])
def test_who_is_late(
    ledger: Ledger,
    session: str,
    two_heads: Owners,
    is_remembered: bool,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process that asks for less than another got noted is no fault; what it saw must have been there."""
    monkeypatch.setattr(session_tree, "REMEMBERED", 256 if is_remembered else 1)
    owner = two_heads.new()
    ask(ledger, session, 4)
    assert owner.work() is None
    ask(ledger, session, 1)
    ask(ledger, session, 7)
    owner.work()
    ask(ledger, session, 2)
    assert owner.work() is None
    assert (sizes(ledger), ledger.waiting(), caplog.text) == ([3, 5, 7], 0, "")
    ledger.plant(tree_of(ledger, session, 2).entry()._replace(head_hash="0" * 64).pack())
    assert owner.work() is None
    assert "is not what its writer says it is" in caplog.text
    ask(ledger, session, 8)
    owner.work()
    assert sizes(ledger) == [3, 5, 7, 8]


def test_late_in_what_is_asked_at_once(
    ledger: Ledger, session: str, owners: Owners, caplog: pytest.LogCaptureFixture
) -> None:
    """A lie beside the truth does not keep it from being signed."""
    ledger.plant(tree_of(ledger, session, 5).entry()._replace(size=1 << 40).pack())
    ask(ledger, session, 4)
    ask(ledger, session, 2)
    owners.new().work()
    assert sizes(ledger) == [4]
    assert caplog.text.count("not noted in the ledger, and not signed") == 1


def test_a_tree_that_ran_ahead(ledger: Ledger, session: str, owners: Owners, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever asks may have grown the session's tree beyond what is noted: it is compared all the same."""
    owner = owners.new()
    ask(ledger, session, 3)
    owner.work()
    was = ledger.lines(session)
    ledger.put(session, change_goal(was))
    owner = owners.new()
    owner._tree_of(session).grow(6)
    ask(ledger, session, 6)
    assert owner.work() is None
    assert f"session {session} was changed since its first 3 events" in caplog.text
    ledger.put(session, was)
    ask(ledger, session, 7)
    owner.work()
    assert sizes(ledger) == [3, 7]


def test_a_session_that_shrank_is_not_signed(
    ledger: Ledger, session: str, two_heads: Owners, caplog: pytest.LogCaptureFixture
) -> None:
    """Those entries that are there stay, and other sessions are signed."""
    ledger.put(session, ledger.lines(session)[:4])
    ask(ledger, session, 4)
    ask(ledger, ledger.write(), 2)
    two_heads.new().work()
    assert sizes(ledger) == [3, 5, 2]
    assert f"session {session} has 4 events where 5 were written" in caplog.text


def test_a_session_that_is_gone(
    ledger: Ledger, session: str, two_heads: Owners, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is noted of what is not there."""
    ask(ledger, session, 7)
    ledger.put(session, [])
    assert two_heads.new().work() is None
    assert f"session {session} has 0 events where 5 were written" in caplog.text


def test_what_was_signed_is_not_signed_twice(ledger: Ledger, session: str, two_heads: Owners) -> None:
    """An entry that is there already is no news, and no fault."""
    ask(ledger, session, 5)
    assert two_heads.new().work() is None
    assert ledger.waiting() == 0


def test_a_session_that_was_rewritten_is_not_signed(
    ledger: Ledger, session: str, two_heads: Owners, caplog: pytest.LogCaptureFixture
) -> None:
    """It must begin with the events that were signed."""
    ledger.put(session, change_goal(ledger.lines(session)))
    ask(ledger, session, 7)
    assert two_heads.new().work() is None
    assert sizes(ledger) == [3, 5]
    assert f"session {session} was changed since its first 5 events" in caplog.text


@pytest.mark.parametrize("field", ["size", "head_hash", "root", "session_id"])
def test_an_entry_that_the_lines_do_not_bear_out(
    ledger: Ledger, session: str, owners: Owners, caplog: pytest.LogCaptureFixture, field: str
) -> None:
    """Whoever can write the inbox cannot make the owner sign what is not there."""
    true = tree_of(ledger, session, 3).entry()
    lies = {"size": 4, "head_hash": "0" * 64, "root": bytes(32), "session_id": "0" * 8 + true.session_id[8:]}
    data = true._replace(**{field: lies[field]}).pack()  # type: ignore[arg-type]
    ledger.plant(data)
    assert owners.new().work() is None
    assert (noted(ledger), ledger.waiting()) == ([], 0)
    expected = "has 0 events where 3" if field == "session_id" else "is not what its writer says it is"
    assert f"not noted in the ledger, and not signed: session {data[:4].hex()}" in caplog.text
    assert expected in caplog.text


@pytest.mark.parametrize("garbage", [b"x", bytes(ENTRY_BYTES), b""])
def test_garbage_in_the_inbox(
    ledger: Ledger, session: str, owners: Owners, garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """What is no entry is told once, and nobody else's entry waits for it."""
    owner = owners.new()
    ledger.plant(garbage)
    ask(ledger, session, 3)
    owner.work()
    assert (sizes(ledger), ledger.waiting()) == ([3], 0)
    assert caplog.text.count("holds something else") == (1 if garbage else 0)


def flipped(entries: Sequence[bytes]) -> list[bytes]:
    return [*entries[:-1], entries[-1][:-1] + bytes([entries[-1][-1] ^ 1])]


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda entries: entries[:1], GONE),
        (flipped, GONE),
        (lambda entries: entries[::-1], GONE),
        (lambda entries: [], GONE),
        (lambda entries: [bytes(ENTRY_BYTES)] * 2, r"an entry is about 1 to 2\^63-1 events, not 0"),
    ],
)
def test_a_ledger_that_does_not_extend_its_head(
    ledger: Ledger, two_heads: Owners, damage: Callable[[Sequence[bytes]], Sequence[bytes]], why: str
) -> None:
    """Entries that are gone or changed below the last head: nothing is signed any more."""
    ledger.put_entries(damage(ledger.entries()))
    before = ledger.head()
    for _ in range(2):  # it is not locked by the first try
        with pytest.raises(ChainBroken, match=why):
            two_heads.new()
    assert ledger.head() == before


@pytest.mark.parametrize(
    ("forge", "why"),
    [
        (lambda head: head.replace(b"\n2\n", b"\n1\n"), "does not fit the head: it was changed or forged"),
        (lambda head: b"garbage", "the head is no signed note"),
        (lambda head: b"", "the head is no signed note"),
        (lambda head: b"\xff", "the head is not UTF-8"),
        (lambda head: head * 9000, "the head is longer than"),
        (lambda head: head.replace(b"\n2\n", b"\n-2\n"), "its second line is not a tree size"),
        (
            lambda head: SIGNER.sign(
                "example.com/elsewhere\n" + head.decode().split("\n\n")[0].split("\n", 1)[1] + "\n"
            ),
            "the head is of the log",
        ),
    ],
)
def test_a_head_that_was_forged(ledger: Ledger, two_heads: Owners, forge: Callable[[bytes], bytes], why: str) -> None:
    """A head that is none, or is said to be signed with our key and is not, stops everything."""
    ledger.put_head(forge(ledger.head() or b""))
    with pytest.raises(ChainBroken, match=why):
        two_heads.new()


@pytest.mark.parametrize("new", [OTHER, Signer(SIGNER.name, bytes(32))])
def test_another_key(
    ledger: Ledger, session: str, two_heads: Owners, new: Signer, caplog: pytest.LogCaptureFixture
) -> None:
    """A key may be replaced, by one of another name or the same: the last head must fit, and a warning is given."""
    owner = two_heads.new(new)
    assert "was signed by another key, of 'example.com/bot'" in caplog.text
    ask(ledger, session, 7)
    owner.work()
    assert head_of(ledger, new)[:2] == (new.name, 3)


def test_another_key_is_no_way_around_the_head(ledger: Ledger, two_heads: Owners) -> None:
    """What another key signed must be there, too."""
    ledger.put_entries(ledger.entries()[:1])
    with pytest.raises(ChainBroken, match=GONE):
        two_heads.new(OTHER)


def test_a_cosigned_head(ledger: Ledger, session: str, two_heads: Owners) -> None:
    """A witness may have put its signature under ours."""
    text, signature = (ledger.head() or b"").decode().split("\n\n")
    ledger.put_head(OTHER.sign(text + "\n") + signature.encode())
    ask(ledger, session, 7)
    assert two_heads.new().work() is not None


def signed_over(entries: Sequence[bytes]) -> Checkpoint:
    leaves = Leaves()
    for data in entries:
        leaves.append(Entry.unpack(data).leaf())
    return Checkpoint(SIGNER.name, len(entries), leaves.root())


def test_an_older_state_that_was_put_back(ledger: Ledger, session: str, two_heads: Owners) -> None:
    """Whole as it is, and with a head that was true: who knows a later one does not sign."""
    known = head_of(ledger)
    older = ledger.entries()[:1]
    head = SIGNER.sign(signed_over(older).text())
    ledger.put_entries(older)
    ledger.put_head(head)
    two_heads.new()  # nothing in it says so
    with pytest.raises(ChainBroken, match="an earlier head is about 2 entries that are not there"):
        two_heads.new(known=known)
    ask(ledger, session, 7)
    two_heads.new().work()
    with pytest.raises(ChainBroken, match="an earlier head is about 2 entries that are not there"):
        two_heads.new(known=known)  # as many again, and others
