"""However long a trace is, and however long a line: verifying takes up no more memory, and comes to an end."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from cra_middleware._clock import parse_us
from cra_middleware.evidence import session as module
from cra_middleware.evidence.folder import verify_folder
from cra_middleware.evidence.pruning_rows import prune_rows
from cra_middleware.evidence.traces import StoreTraces
from cra_middleware.trace.entry import Entry
from cra_middleware.trace.event import GENESIS, seal
from cra_middleware.trace.note import Checkpoint
from cra_middleware.trace.tree import Frontier
from tests.conftest import NOON
from tests.evidence.scene import Scene
from tests.trace.ledger.ledgers import SIGNER, PostgresLedger

SESSION = "01900000-0000-7000-8000-000000000001"
MEBIBYTE = 1 << 20
SCRIPT = """
import resource, sys
from pathlib import Path
from cra_middleware.evidence.folder import verify_folder
found = verify_folder(sys.argv[1])
status = Path("/proc/self/status")  # ru_maxrss counts what the parent had when it forked
high = [line.split()[1] for line in status.read_text().splitlines() if "VmHWM" in line] if status.exists() else []
print(high[0] if high else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, *found.sessions, sep="\\n")
"""


def events(count: int) -> Iterator[tuple[str, str]]:
    """The kinds and payloads of a session of ``count`` events: a start, calls that run, and an end."""
    digest = "0" * 64
    yield "session.started", '{"agent_id":"bot","goal":"x"}'
    for number in range((count - 2) // 3):
        call = f'"execution_id":"01900000-0000-7000-9000-{number:012x}"'
        yield "action.requested", f'{{"action_id":"a",{call},"parameters_hash":"{digest}"}}'
        yield "action.approved", f'{{"action_id":"a",{call},"resolution_id":"01900000-0000-7000-9000-000000000000"}}'
        yield "action.executed", f'{{"action_id":"a","duration_ms":1,{call}}}'
    yield "session.ended", f'{{"action_count":1,"duration_ms":1,"event_count":{count},"reason":"completed"}}'


def write(folder: Path, count: int) -> Path:
    """A sealed trace of about ``count`` events, without a runtime."""
    folder.mkdir()
    path, previous = folder / f"{SESSION}.trace.jsonl", GENESIS
    time = NOON.replace("+", ".000001+")
    with path.open("w") as file:
        for sequence, (kind, payload) in enumerate(events(count)):
            event_id = f"01900000-0000-7000-a000-{sequence:012x}"
            ids = (event_id, SESSION, SESSION, None, SESSION)
            line, previous = seal(*ids, sequence, time, kind, payload, previous)
            file.write(line)
    return path


def peak(folder: Path) -> tuple[int, str]:
    """The most memory that verifying a folder took up, in bytes, and what was found."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, folder], capture_output=True, text=True, check=True)
    size, found = done.stdout.splitlines()
    return int(size) * (1 if sys.platform == "darwin" else 1024), found


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> int:
    """What a trace of a thousand events takes up."""
    folder = tmp_path_factory.mktemp("small") / "traces"
    write(folder, 1000)
    size, found = peak(folder)
    assert found == "INTACT, SEALED"
    return size


@pytest.mark.parametrize("count", [20_000, pytest.param(200_000, marks=pytest.mark.slow)])
def test_a_long_trace(tmp_path: Path, small: int, count: int) -> None:
    """No more than what the last ids take up, which are remembered."""
    write(tmp_path / "traces", count)
    size, found = peak(tmp_path / "traces")
    assert found == "INTACT, SEALED"
    assert size - small < 60 * MEBIBYTE


@pytest.mark.parametrize(
    ("before", "length"), [(0, 1 << 28), (5, 1 << 28), pytest.param(5, 1 << 30, marks=pytest.mark.slow)]
)
def test_an_endless_line(tmp_path: Path, small: int, before: int, length: int) -> None:
    """A file of zeros without a newline is one line, which is too long: it is passed over, and not held."""
    path = write(tmp_path / "traces", 1000)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:before]))
    with path.open("r+b") as file:
        file.truncate(length)
    size, found = peak(tmp_path / "traces")
    assert found == f"BROKEN at event {before}: malformed_event: a line is longer than 16777216 bytes"
    assert size - small < 60 * MEBIBYTE


def test_a_file_that_grows_meanwhile(plain: Scene) -> None:
    """What was written since the verification began may be verified, too, or not: it does no harm, and it ends."""
    lines = plain.lines(plain.b)
    path = plain.file(plain.b)
    path.write_bytes(b"".join(lines[:5]))
    grown = 5

    def grow(count: int) -> None:
        nonlocal grown
        if grown < len(lines):
            with path.open("ab") as file:
                file.write(lines[grown])
            grown += 1

    [_, report] = verify_folder(plain.folder, progress=grow).sessions
    assert str(report) in ("INTACT, SEALED", "INTACT, NOT SEALED: the end may be missing")
    assert report.total_events >= 5


def test_a_file_that_shrinks_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is torn, or short; no traceback."""
    monkeypatch.setattr(module, "PART_BYTES", 1)
    path = write(tmp_path / "traces", 2000)  # more than is read ahead at once, which newer Pythons do more of
    [report] = verify_folder(path.parent, only=SESSION, progress=lambda count: path.write_bytes(b"")).sessions
    assert not report.sealed


def fill(ledger: PostgresLedger, count: int) -> None:
    """A ledger of ``count`` entries about as many sessions, and a head over it."""
    import psycopg

    tree = Frontier()
    with psycopg.connect(ledger.conninfo, autocommit=True) as connection, connection.cursor() as cursor:
        with cursor.copy("COPY cra_ledger_entries (place, entry) FROM STDIN") as copy:
            for place in range(count):
                entry = Entry(f"01900000-0000-7000-8000-{place:012x}", 5, f"{place:064x}", bytes(32))
                tree.append(entry.leaf())
                copy.write_row((place, entry.pack()))
        connection.execute("ANALYZE cra_ledger_entries")
    ledger.put_head(SIGNER.sign(Checkpoint(SIGNER.name, tree.size, tree.root()).text()))


def pruning_peak(ledger: PostgresLedger) -> int:
    """The most memory that pruning took up, in bytes, as Python counts it."""
    with closing(ledger.sink()) as sink:
        tracemalloc.start()
        try:
            found = list(prune_rows(StoreTraces(sink, "it"), sink, SIGNER.verifier, parse_us(NOON)))
            assert found == []
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("count", [20_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_pruning_under_a_long_ledger(tmp_path: Path, count: int) -> None:
    """It is read page by page: what it takes up does not grow with the ledger."""
    with ExitStack() as stack:
        ledger = PostgresLedger(tmp_path, stack)
        fill(ledger, 5000)
        small = pruning_peak(ledger)
        ledger.put_entries(())
        fill(ledger, count)
        assert pruning_peak(ledger) - small < MEBIBYTE
