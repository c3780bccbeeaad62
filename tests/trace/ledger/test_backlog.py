"""What waits for a head is told, wherever the ledger lies, and however much it is."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cra_middleware.errors import SinkError
from cra_middleware.trace.buffered import BufferedSink
from cra_middleware.trace.entry import ENTRY_BYTES
from cra_middleware.trace.ledger import backlog as module
from cra_middleware.trace.ledger import follower
from cra_middleware.trace.ledger.backlog import Backlog
from cra_middleware.trace.sinks import postgres_ledger
from cra_middleware.trace.sinks.sqlite import SqliteSink
from cra_middleware.trace.tee import TeeSink
from tests.trace.ledger.ledgers import KINDS, SIGNER, FolderLedger, Ledger, PostgresLedger, ask, ledger_in
from tests.trace.ledger.waiting import until


@pytest.fixture(params=KINDS)
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    with ledger_in(request.param, tmp_path / "traces") as made:
        yield made


def age(ledger: Ledger, seconds: int) -> None:
    """What lies in the inbox lies there longer."""
    if isinstance(ledger, PostgresLedger):
        ledger.execute("UPDATE cra_ledger_inbox SET asked = asked - make_interval(secs => %s)", seconds)
    assert isinstance(ledger, FolderLedger | PostgresLedger)
    for path in (ledger.folder / "ledger" / "inbox").glob("*"):
        os.utime(path, (time.time() - seconds,) * 2)


def test_what_waits_for_another_process(ledger: Ledger) -> None:
    """Entries in the inbox, of whichever process, and the age of the oldest; late when that is more than a minute."""
    one, other = ledger.write(), ledger.write()
    hold = ledger.open().take()
    assert hold is not None
    with closing(ledger.sink(signer=SIGNER)) as sink:
        assert sink.backlog() == Backlog()
        assert str(sink.backlog()) == "no session waits for a signed head"
        ask(ledger, one, 3, 5)
        age(ledger, 59)
        ask(ledger, other, 5)
        found = sink.backlog()
        assert (found.entries, found.seconds // 10, found.is_late) == (3, 5, False)
        age(ledger, 90)
        found = sink.backlog()
        assert (found.seconds > 80, found.is_late, found.is_more) == (True, True, False)
        assert str(found).startswith("entries of sessions that wait for a signed head: 3, the oldest for ")
        hold.close()
        until(lambda: sink.backlog() == Backlog(), "a head over all of it")


def test_only_so_much_is_counted(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million cost what ten thousand do: it is said that there are more, and that heads are late."""
    for place in (module, postgres_ledger):
        monkeypatch.setattr(place, "COUNTED", 5)
    hold = ledger.open().take()
    assert hold is not None
    with closing(ledger.sink(signer=SIGNER)) as sink:
        for number in range(7):
            ask(ledger, ledger.write(), 5)
            found = sink.backlog()
            assert (found.entries, found.is_more) == (min(number + 1, 6), number >= 5)
        assert found.is_late
        assert str(found).startswith("entries of sessions that wait for a signed head: at least 6,")
        hold.close()


def test_what_this_process_could_not_ask(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions that are in no inbox yet wait, too, from the first event on that was heard of."""
    session, now = ledger.write(), time.monotonic
    with closing(ledger.sink(signer=SIGNER)) as sink:
        follows: Any = sink._follower

        def away(entries: object) -> str:
            raise SinkError("the place is away")

        ask = follows._place.ask
        follows._place.ask = away
        follows.durable(session, 3, 3)
        until(lambda: not follows._heard, "it was heard of")
        assert sink.backlog().entries == 1
        monkeypatch.setattr(time, "monotonic", lambda: now() + 90)
        follows.durable(session, 5, 2)
        found = sink.backlog()
        assert (found.entries, found.seconds >= 89, found.is_late) == (1, True, True)
        follows._place.ask = ask
        until(lambda: sink.backlog() == Backlog(), "a head over all of it")
        follows.durable(session, 5, 0)
        assert sink.backlog().seconds < 60


def test_events_that_nobody_took_out_yet(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the owner's turn takes minutes, what is heard of meanwhile is counted; of very much, only that."""
    monkeypatch.setattr(follower, "COUNTED", 3)
    with closing(ledger.sink(signer=SIGNER)) as sink:
        follows: Any = sink._follower
        with follows._turn:
            for number in range(5):
                follows.durable(f"01900000-0000-7000-8000-00000000000{number}", 3, 3)
            found = sink.backlog()
            assert (found.entries, found.is_more) == (3, True)
            follows._heard.clear()


def test_what_is_no_entry(ledger: Ledger) -> None:
    """Something else in the inbox waits, too: it is one piece of it."""
    hold = ledger.open().take()
    assert hold is not None
    with closing(ledger.sink(signer=SIGNER)) as sink:
        ledger.plant(b"x")
        ledger.plant(bytes(3 * ENTRY_BYTES)) if isinstance(ledger, PostgresLedger) else None
        assert sink.backlog().entries == (4 if isinstance(ledger, PostgresLedger) else 1)
        hold.close()


def test_a_folder_that_cannot_be_read(tmp_path: Path) -> None:
    """Is no folder where nothing waits."""
    with ledger_in("folder", tmp_path / "traces") as ledger, closing(ledger.sink(signer=SIGNER)) as sink:
        inbox = tmp_path / "traces" / "ledger" / "inbox"
        inbox.rename(inbox.with_name("away"))
        with pytest.raises(SinkError, match="cannot be read"):
            sink.backlog()
        inbox.with_name("away").rename(inbox)


def test_sinks_that_sign_nothing(ledger: Ledger, tmp_path: Path) -> None:
    """They have nothing to say; what stands before a sink says what that one does."""
    with closing(ledger.sink()) as sink:
        assert sink.backlog() is None
    with closing(BufferedSink(SqliteSink(tmp_path / "traces.db"))) as sink:
        assert sink.backlog() is None
    with closing(TeeSink(BufferedSink(ledger.sink(signer=SIGNER)), SqliteSink(tmp_path / "copy.db"))) as sink:
        assert sink.backlog() == Backlog()
