"""A ledger that is read page by page says what one that is read at once says, whatever was done to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from cra_middleware.errors import SinkError
from cra_middleware.evidence.folder import Against, what_is_said
from cra_middleware.evidence.paged import PagedLedger
from cra_middleware.evidence.traces import StoreTraces
from cra_middleware.trace.entry import Entry
from cra_middleware.trace.note import Checkpoint
from cra_middleware.trace.sinks import postgres_entries
from cra_middleware.trace.tree import Leaves
from tests.trace.ledger.ledgers import OTHER, SIGNER, PostgresLedger

NAMES = [f"01900000-0000-7000-8000-00000000000{number}" for number in range(3)]
ENTRIES = [Entry(NAMES[turn % 3], 5 + turn, f"{turn:064x}", bytes(32)) for turn in range(10)]
UNKNOWN = "01900000-0000-7000-8000-0000000000ff"


def head(count: int, signer: object = SIGNER) -> bytes:
    leaves = Leaves()
    for entry in ENTRIES[:count]:
        leaves.append(entry.leaf())
    assert signer in (SIGNER, OTHER)
    by = OTHER if signer is OTHER else SIGNER
    return by.sign(Checkpoint(SIGNER.name, count, leaves.root()).text())


def fill(ledger: PostgresLedger, entries: list[Entry]) -> None:
    ledger.put_entries([entry.pack() for entry in entries])
    ledger.put_head(head(8))


def is_removed(ledger: PostgresLedger) -> None:
    fill(ledger, ENTRIES[:6])


def is_changed(ledger: PostgresLedger) -> None:
    fill(ledger, [*ENTRIES[:3], ENTRIES[3]._replace(root=bytes([1]) * 32), *ENTRIES[4:]])


def shrinks(ledger: PostgresLedger) -> None:
    fill(ledger, [*ENTRIES, ENTRIES[0]])


def is_gone(ledger: PostgresLedger) -> None:
    fill(ledger, [])


def is_no_entry(ledger: PostgresLedger) -> None:
    ledger.put_entries([*(entry.pack() for entry in ENTRIES), bytes(88)])
    ledger.put_head(head(8))


def is_of_another(ledger: PostgresLedger) -> None:
    fill(ledger, ENTRIES)
    ledger.put_head(head(8, OTHER))


def has_no_head(ledger: PostgresLedger) -> None:
    fill(ledger, ENTRIES)
    ledger.put_head(None)


def is_whole(ledger: PostgresLedger) -> None:
    fill(ledger, ENTRIES)


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PostgresLedger]:
    monkeypatch.setattr(postgres_entries, "_PAGE_ROWS", 3)
    with ExitStack() as stack:
        yield PostgresLedger(tmp_path, stack)


@pytest.mark.parametrize("held", [None, 4, 0])
@pytest.mark.parametrize(
    "spoil", [is_whole, is_removed, is_changed, shrinks, is_gone, is_no_entry, is_of_another, has_no_head]
)
def test_it_says_the_same(ledger: PostgresLedger, spoil: Callable[[PostgresLedger], None], held: int | None) -> None:
    """Entries, what heads cover, and what is wrong, with a head that was held elsewhere and without."""
    spoil(ledger)
    against = Against(SIGNER.verifier, None if held is None else head(held))
    with closing(ledger.sink()) as sink:
        traces = StoreTraces(sink, "it")
        at_once, paged = what_is_said(traces, against), PagedLedger(traces, traces.entries(), against)
        assert paged.problems == at_once.problems
        assert (not paged.problems) == (
            spoil in (is_whole, has_no_head) or (spoil is is_of_another and held is not None)
        )
        for name in (*NAMES, UNKNOWN):
            said, coverage = paged.of(name), at_once.coverage
            assert said.entries == coverage.entries.get(name, ())
            assert said.signed_events == coverage.signed.get(name, 0)


def test_a_gap(ledger: PostgresLedger) -> None:
    """An entry that was deleted is noticed, and so is one that is deleted or spoilt later."""
    fill(ledger, ENTRIES)
    with closing(ledger.sink()) as sink:
        traces = StoreTraces(sink, "it")
        before = PagedLedger(traces, traces.entries(), Against(SIGNER.verifier))
        ledger.execute("UPDATE cra_ledger_entries SET entry = substr(entry, 1, 16) || %s WHERE place = 9", bytes(72))
        with pytest.raises(SinkError, match="something else than entries"):
            before.of(NAMES[0])
        ledger.execute("DELETE FROM cra_ledger_entries WHERE place = 2")
        found = PagedLedger(traces, traces.entries(), Against(SIGNER.verifier))
        assert found.problems == ("the ledger holds something else than entries: entry 2 is not there",)
        assert found.of(NAMES[0]) == ((), 0)
