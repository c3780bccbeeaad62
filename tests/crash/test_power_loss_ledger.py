"""The power fails while a ledger is written: it is signed on, and every head that was told still holds."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from cra_middleware._ids import new_id
from cra_middleware.trace.entry import ENTRY_BYTES
from cra_middleware.trace.ledger.book import read_book
from cra_middleware.trace.ledger.folder import FolderPlace, replace_file
from cra_middleware.trace.ledger.folder_lines import folder_tree
from cra_middleware.trace.ledger.owner import Owner
from cra_middleware.trace.ledger.session_tree import SessionTree
from cra_middleware.trace.note import Checkpoint, Signer, open_note
from tests.crash.disk import Disk
from tests.crash.rounds import rounds
from tests.trace.forge import write_trace

SIGNER = Signer("example.com/crash", bytes(range(32)))
MOMENTS = 40


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory, where there is one."""
    made = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    yield made
    shutil.rmtree(made)


def owner_of(traces: Path) -> Owner:
    """Whoever comes first after the crash."""
    trees: dict[str, SessionTree] = {}
    place = FolderPlace(traces)
    hold = place.take()
    assert hold is not None
    return Owner(place, hold, SIGNER, lambda name: trees.setdefault(name, folder_tree(traces, name)))


def want(traces: Path, session_id: str, size: int) -> None:
    """Ask for an entry, as the session's writer does."""
    tree = folder_tree(traces, session_id)
    tree.grow(size)
    replace_file(traces / "ledger" / "inbox" / new_id(), tree.entry().pack())


def signed(traces: Path) -> Checkpoint:
    return open_note((traces / "ledger" / "head").read_bytes(), SIGNER.verifier)


def story(traces: Path, random: Random, disk: Disk, sessions: list[str]) -> None:
    """Entries are wanted, noted and signed; now and then the owner dies and another takes over."""
    sizes = dict.fromkeys(sessions, 0)
    with disk.recording():
        owner = owner_of(traces)
        for _ in range(random.randint(2, 6)):
            for name in random.sample(sessions, random.randint(1, len(sessions))):
                sizes[name] = min(14, sizes[name] + random.randint(1, 4))
                want(traces, name, sizes[name])
            head = owner.work()
            if head is not None:
                disk.say(open_note(head, SIGNER.verifier))
            if random.random() < 0.3:
                owner.close()
                owner = owner_of(traces)
        owner.close()


@pytest.mark.slow
@rounds(4, 60)
def test_power_loss(folder: Path, rounds: int) -> None:
    """Whatever was told stays true, what was not is noted again, and no honest ledger is refused."""
    for seed in range(rounds):
        random, traces = Random(seed), folder / "traces"
        traces.mkdir()
        sessions = [write_trace(traces, 4).name.partition(".")[0] for _ in range(random.randint(1, 5))]
        (traces / "ledger" / "inbox").mkdir(parents=True)
        disk = Disk(traces / "ledger")
        story(traces, random, disk, sessions)
        for _ in range(MOMENTS):
            moment = random.randint(0, len(disk.steps))
            files, told = disk.left(moment, random)
            shutil.rmtree(traces / "ledger")
            (traces / "ledger" / "inbox").mkdir(parents=True)
            for path, content in files.items():
                Path(path).write_bytes(content)
            try:
                check(traces, [head for head in told if isinstance(head, Checkpoint)], sessions)
            except BaseException as error:
                error.add_note(f"seed {seed}, moment {moment} of {len(disk.steps)}")
                raise
        shutil.rmtree(traces)


def check(traces: Path, told: list[Checkpoint], sessions: list[str]) -> None:
    owner = owner_of(traces)
    owner.work()
    for name in sessions:
        want(traces, name, 14)
    owner.work()
    owner.close()
    book, head = read_book(traces), signed(traces)
    assert book is not None
    assert head.size == len(book) == (traces / "ledger" / "entries").stat().st_size // ENTRY_BYTES
    assert book.leaves().root() == head.root
    assert all(book.leaves().root(earlier.size) == earlier.root for earlier in told)
    for name in sessions:
        last = book.last_about(name)
        assert last is not None
        assert last.size == 14
