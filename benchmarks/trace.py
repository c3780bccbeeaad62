"""What keeping and verifying a trace costs. Prints JSON.

Rows take turns round by round in one process, so that a machine that slows down slows all of them alike: quote medians
and ratios. ``plain`` is the floor: ``json.dumps``, SHA-256 and one ``write`` an event, without a chain's other fields.

    python benchmarks/trace.py [--rounds 9] [--events 2000] [--verify 200000]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

from cra_middleware._clock import SystemClock, timestamp_text
from cra_middleware._ids import new_id
from cra_middleware.evidence.folder import verify_folder
from cra_middleware.trace.event import GENESIS, seal
from cra_middleware.trace.note import Signer
from cra_middleware.trace.payloads import approved, executed, requested
from cra_middleware.trace.sinks.jsonl import JsonlSink
from cra_middleware.trace.sinks.memory import MemorySink
from cra_middleware.trace.writer import ChainWriter, Draft

ID = "01900000-0000-7000-8000-000000000001"
PAYLOAD = executed("ticket.get", ID, 3, ID)
PLAIN = {"action_id": "ticket.get", "execution_id": ID, "duration_ms": 3, "resolution_id": ID, "header": "0" * 330}


def writer_on(sink: JsonlSink | MemorySink) -> ChainWriter:
    session_id = new_id()
    return ChainWriter(sink.create(session_id), SystemClock(), session_id, ID)


def entry(writer: ChainWriter) -> Draft:
    return Draft(ID, None, "action.executed", PAYLOAD, writer.now_us())


def write_one(writer: ChainWriter) -> Callable[[], object]:
    return lambda: writer.write(entry(writer))


def write_durable(writer: ChainWriter) -> Callable[[], object]:
    def work() -> None:
        writer.write(entry(writer))
        writer.flush()

    return work


def plain_file(folder: Path) -> Callable[[], object]:
    fd = os.open(folder / "plain", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def work() -> None:
        text = json.dumps(PLAIN, sort_keys=True, separators=(",", ":")).encode()
        os.write(fd, text + hashlib.sha256(text).hexdigest().encode() + b"\n")

    return work


def plain_durable(folder: Path) -> Callable[[], object]:
    fd = os.open(folder / "plain-durable", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def work() -> None:
        os.write(fd, b"0" * 700)
        getattr(os, "fdatasync", os.fsync)(fd)

    return work


def sqlite_file(folder: Path) -> Callable[[], object]:
    database = sqlite3.connect(folder / "plain.db", isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=NORMAL")
    database.execute("CREATE TABLE events (line TEXT)")

    def work() -> None:
        text = json.dumps(PLAIN, sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(text.encode()).hexdigest()
        database.execute("INSERT INTO events VALUES (?)", (text + digest,))

    return work


def rows_of(folder: Path) -> dict[str, tuple[Callable[[], object], float]]:
    """Each row, with the part of the events that it is given: what waits for a disk is given fewer."""
    signed = JsonlSink(folder / "signed", signer=Signer("bench", bytes(32)))
    return {
        "plain json+sha256+write": (plain_file(folder), 1),
        "plain sqlite WAL": (sqlite_file(folder), 1),
        "memory": (write_one(writer_on(MemorySink())), 1),
        "write_through": (write_one(writer_on(JsonlSink(folder / "t"))), 1),
        "write_through, signed": (write_one(writer_on(signed)), 1),
        "plain write+fdatasync": (plain_durable(folder), 0.25),
        "sync": (write_durable(writer_on(JsonlSink(folder / "s", sync_interval_seconds=60))), 0.25),
    }


def per_event(work: Callable[[], object], events: int) -> float:
    began = time.perf_counter_ns()
    for _ in range(events):
        work()
    return (time.perf_counter_ns() - began) / events / 1000


def one_a_millisecond(folder: Path, events: int) -> dict[str, float]:
    """What one write takes when the last was a millisecond ago: caches are cold, and the disk is at work."""
    work, times = write_one(writer_on(JsonlSink(folder / "slow"))), []
    for _ in range(events):
        time.sleep(0.001)
        began = time.perf_counter_ns()
        work()
        times.append((time.perf_counter_ns() - began) / 1000)
    times.sort()
    return {"p50_us": round(times[len(times) // 2], 1), "p99_us": round(times[int(len(times) * 0.99)], 1)}


def durable_a_second(folder: Path, threads: int, seconds: float) -> dict[str, float]:
    """Writes that each waited for the disk, by threads that share one session; a sync may serve several."""
    writer = writer_on(JsonlSink(folder / f"durable-{threads}", sync_interval_seconds=60))
    counts, times, until = [0] * threads, [], time.monotonic() + seconds
    work = write_durable(writer)

    def run(place: int) -> None:
        while time.monotonic() < until:
            began = time.perf_counter_ns()
            work()
            times.append((time.perf_counter_ns() - began) / 1000)
            counts[place] += 1

    running = [threading.Thread(target=run, args=(place,)) for place in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return {"per_second": round(sum(counts) / seconds), "p50_us": round(statistics.median(times), 1)}


def generate(folder: Path, events: int) -> Path:
    """A whole session, written as fast as lines can be made."""
    folder.mkdir(parents=True, exist_ok=True)
    session_id, head, us, lines = new_id(), GENESIS, 1_767_614_400_000_001, []
    path = folder / f"{session_id}.trace.jsonl"

    def add(kind: str, payload: str, sequence: int) -> None:
        nonlocal head
        line, head = seal(
            new_id(), ID, ID, None, session_id, sequence, timestamp_text(us + 1000 * sequence), kind, payload, head
        )
        lines.append(line)

    with path.open("w") as file:
        add("session.started", '{"agent_id":"bench","goal":"bench"}', 0)
        for sequence in range(1, events - 3, 3):
            call = new_id()
            add(
                "action.requested",
                requested("ticket.get", call, "0" * 64, ID, "tool", None, None, None, None, None),
                sequence,
            )
            add("action.approved", approved("ticket.get", call, ID, "allow"), sequence + 1)
            add("action.executed", executed("ticket.get", call, 3, ID), sequence + 2)
            if len(lines) > 10_000:
                file.write("".join(lines))
                lines.clear()
        file.write("".join(lines))
    return path


def verifying(folder: Path, events: int) -> dict[str, object]:
    path = generate(folder / "large", events)
    began = time.perf_counter()
    (report,) = verify_folder(path.parent).sessions
    alone = time.perf_counter() - began
    assert report.intact
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        list(pool.map(abs, range(8)))  # the processes have started
        began = time.perf_counter()
        (report,) = verify_folder(path.parent, workers=pool).sessions
        together = time.perf_counter() - began
    assert report.intact
    began = time.perf_counter()
    with path.open("rb") as file:
        for line in file:
            json.loads(line)
            hashlib.sha256(line).hexdigest()
    floor = time.perf_counter() - began
    small = generate(folder / "small", 1000)
    return {
        "events": report.total_events,
        "MB": round(path.stat().st_size / 1e6),
        "one_process_per_second": round(report.total_events / alone),
        "all_cores_per_second": round(report.total_events / together),
        "json_loads_and_sha256_per_second": round(report.total_events / floor),
        "peak_memory_MB": peak_memory(path.parent),
        "peak_memory_MB_for_1000_events": peak_memory(small.parent),
    }


def peak_memory(folder: Path) -> int | None:
    """Of a process that does nothing but verify, in MB; Linux only (``ru_maxrss`` would be its parent's)."""
    script = f"from cra_middleware.evidence.folder import verify_folder; verify_folder({str(folder)!r}); "
    script += "print(open('/proc/self/status').read())"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout
    found = [line.split()[1] for line in told.splitlines() if line.startswith("VmHWM:")]
    return int(found[0]) // 1024 if found else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--events", type=int, default=2000)
    parser.add_argument("--verify", type=int, default=200_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = rows_of(folder)
        times: dict[str, list[float]] = {row: [] for row in rows}
        for number in range(options.rounds + 1):
            for row, (work, part) in rows.items():
                found = per_event(work, max(20, int(options.events * part)))
                if number:  # the first round warms up
                    times[row].append(found)
        medians = {row: statistics.median(found) for row, found in times.items()}
        floor = medians["plain json+sha256+write"]
        report = {
            "unit": "microseconds per event, median of rounds; spread = (max - min) / median",
            "python": platform.python_version(),
            "machine": f"{platform.machine()}, {platform.system()}, {os.cpu_count()} cores",
            "versions": {package: version(package) for package in ("cra-middleware", "orjson", "cryptography")},
            "rows": {
                row: {
                    "us": round(medians[row], 2),
                    "ratio_to_plain": round(medians[row] / floor, 2),
                    "spread": round((max(found) - min(found)) / medians[row], 2),
                }
                for row, found in times.items()
            },
            "write_through, one a millisecond": one_a_millisecond(folder, 1000),
            "durable, 1 thread": durable_a_second(folder, 1, 2),
            "durable, 8 threads": durable_a_second(folder, 8, 2),
            "verify": verifying(folder, options.verify),
        }
    json.dump(report, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
