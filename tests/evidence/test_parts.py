"""A large file in parts: the same verdict as from its beginning, wherever it is cut, and whatever is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cra_middleware.evidence import session as module
from cra_middleware.evidence.folder import Against, verify_folder
from cra_middleware.trace import parts
from cra_middleware.trace.chain import verify_lines
from cra_middleware.trace.event import GENESIS
from cra_middleware.trace.parts import Joined, Part, verify_part
from cra_middleware.trace.witness import Seen, Witness
from tests.evidence.scene import Scene
from tests.trace.forge import lines_of, parse, reseal, rewrite, write_trace


class Inline(Executor):
    """Runs what it is given at once, and counts it."""

    def __init__(self) -> None:
        self.ran = 0

    def submit(self, work: Any, /, *args: Any, **named: Any) -> Future[Any]:
        self.ran += 1
        future: Future[Any] = Future()
        try:
            future.set_result(work(*args, **named))
        except OSError as error:
            future.set_exception(error)
        return future


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    return lines_of(write_trace(tmp_path_factory.mktemp("parts"), calls=6))


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> Path:
    path = tmp_path_factory.mktemp("joined") / f"{parse(lines)[0]['session_id']}.trace.jsonl"
    path.write_bytes(b"".join(lines))
    return path


def in_parts(path: Path, cuts: list[int], *, wants_leaves: bool = False) -> Joined | None:
    """The parts between these bytes, joined; None when they do not all say yes."""
    size = path.stat().st_size
    joined = Joined(path.name.split(".")[0])
    for begin, end in zip([0, *cuts], [*cuts, size], strict=True):
        part = verify_part(str(path), begin, end, wants_leaves)
        if part is None or not joined.add(part):
            return None
    return joined


def good_cuts(lines: list[bytes], cuts: list[int]) -> bool:
    """Whether a line begins in each part."""
    begins, place = [], 0
    for line in lines:
        begins.append(place)
        place += len(line)
    ends = [*cuts, place]
    return all(any(begin <= start < end for start in begins) for begin, end in zip([0, *cuts], ends, strict=True))


@given(st.data())
def test_wherever_it_is_cut(trace: Path, lines: list[bytes], data: st.DataObject) -> None:
    """A good trace is good in parts that each begin a line, with the verdict that it has as a whole."""
    size = trace.stat().st_size
    cuts = sorted(data.draw(st.sets(st.integers(1, size - 1), max_size=6)))
    joined = in_parts(trace, cuts)
    assert (joined is not None) == good_cuts(lines, cuts)
    if joined is not None:
        assert (joined.verdict(),) == verify_lines(lines, trace.name.split(".")[0])


def test_cut_between_two_lines(trace: Path, lines: list[bytes]) -> None:
    """A line belongs to the part in which it begins, to the byte."""
    place = sum(map(len, lines[:5]))
    for cut, first in ((place - 1, 5), (place, 5), (place + 1, 6)):
        before, behind = verify_part(str(trace), 0, cut, False), verify_part(str(trace), cut, 1 << 40, False)
        assert before is not None
        assert behind is not None
        assert (before.end.sequence, behind.begin.sequence) == (first, first)
        assert before.bytes + behind.bytes == trace.stat().st_size


CHANGES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "nothing": lambda lines: lines,
    "cut": lambda lines: lines[:-1],
    "torn": lambda lines: [*lines[:-1], lines[-1][:-1]],
    "edited": lambda lines: [*lines[:9], lines[9].replace(b"2026", b"2025", 1), *lines[10:]],
    "deleted": lambda lines: [*lines[:9], *lines[10:]],
    "moved": lambda lines: [*lines[:9], lines[10], lines[9], *lines[11:]],
    "repeated": lambda lines: [*lines[:9], lines[8], *lines[9:]],
    "behind the end": lambda lines: [*lines, lines[-1]],
    "empty line": lambda lines: [*lines[:9], b"\n", *lines[9:]],
    "event id twice": lambda lines: rewrite(lines, lambda e: e[20].update(event_id=e[4]["event_id"])),
    "execution id twice": lambda lines: rewrite(lines, call_twice),
    "outcome twice": lambda lines: rewrite(lines, lambda e: e.insert(-1, {**e[of(e, "action.executed")]})),
    "no outcome": lambda lines: rewrite(lines, lambda e: e.pop(of(e, "action.executed"))),
    "no approval": lambda lines: rewrite(lines, lambda e: e.pop(of(e, "action.approved"))),
    "no request": lambda lines: rewrite(lines, lambda e: e.pop(of(e, "action.requested"))),
    "sealed in the middle": lambda lines: rewrite(
        lines, lambda e: e.insert(9, {**e[-1], "event_id": "0" + e[9]["event_id"][1:]})
    ),
    "begun in the middle": lambda lines: rewrite(lines, lambda e: e.insert(9, {**e[0]})),
    "ids the other way round": lambda lines: rewrite(lines, turn_round),
    "another session": lambda lines: rewrite(lines, lambda e: [x.update(session_id=x["trace_id"]) for x in e[12:]]),
    "no genesis": lambda lines: lines[1:],
    "not from 0": lambda lines: reseal([{**e, "sequence": e["sequence"] + 1} for e in parse(lines)], renumber=False),
}


def of(events: list[dict[str, Any]], kind: str) -> int:
    return next(place for place, event in enumerate(events) if event["event_type"] == kind)


def call_twice(events: list[dict[str, Any]]) -> None:
    """The last call has the id of the first."""
    calls = [event for event in events if "execution_id" in event["payload"]]
    last = calls[-1]["payload"]["execution_id"]
    for event in calls:
        if event["payload"]["execution_id"] == last:
            event["payload"]["execution_id"] = calls[0]["payload"]["execution_id"]


def turn_round(events: list[dict[str, Any]]) -> None:
    """As after a clock was set back: allowed, and no part can tell."""
    ids = sorted((event["event_id"] for event in events), reverse=True)
    for event, name in zip(events, ids, strict=True):
        event["event_id"] = name


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("size", [700, 1500, 5000])
def test_the_same_verdict(
    tmp_path: Path, lines: list[bytes], monkeypatch: pytest.MonkeyPatch, change: str, size: int
) -> None:
    """Helped by other processes or not, every report is the same, word for word."""
    monkeypatch.setattr(module, "PART_BYTES", size)
    path = tmp_path / f"{parse(lines)[0]['session_id']}.trace.jsonl"
    path.write_bytes(b"".join(CHANGES[change](lines)))
    workers = Inline()
    assert verify_folder(tmp_path, workers=workers) == verify_folder(tmp_path)
    assert workers.ran > 1


@given(st.integers(0), st.integers(1, 255))
def test_any_other_byte(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], place: int, flip: int) -> None:
    """No changed byte is accepted in parts, wherever it is."""
    data = bytearray(b"".join(lines))
    data[place % len(data)] ^= flip
    path = tmp_path_factory.getbasetemp() / f"{parse(lines)[0]['session_id']}.trace.jsonl"
    path.write_bytes(data)
    cuts = list(range(3000, len(data), 3000))
    assert in_parts(path, cuts) is None


def test_a_ledger_and_parts(signed: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the ledger says is compared, too: the same as from the beginning."""
    monkeypatch.setattr(module, "PART_BYTES", 2500)
    against = Against(signed.signer.verifier)
    monkeypatch.setattr(module, "_in_order", lambda *args: pytest.fail("it should be told from parts"))
    helped = verify_folder(signed.folder, against, workers=Inline())
    monkeypatch.undo()
    assert helped == verify_folder(signed.folder, against)
    assert all(report.signed for report in helped.sessions)
    data = (signed.ledger / "entries").read_bytes()
    (signed.ledger / "entries").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    monkeypatch.setattr(module, "PART_BYTES", 2500)
    assert verify_folder(signed.folder, workers=Inline()) == verify_folder(signed.folder)
    assert not verify_folder(signed.folder, workers=Inline()).intact


def test_leaves_only_when_they_are_wanted(trace: Path, lines: list[bytes]) -> None:
    """32 bytes an event, or none."""
    with_, without = (verify_part(str(trace), 0, 1 << 40, wanted) for wanted in (True, False))
    assert with_ is not None
    assert without is not None
    assert (len(with_.leaves), without.leaves) == (32 * len(lines), b"")


def test_small_files_and_copies_are_read_from_the_beginning(plain: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts are for large files; a copy is compared event by event."""
    workers = Inline()
    verify_folder(plain.folder, workers=workers)
    assert workers.ran == 0
    monkeypatch.setattr(module, "PART_BYTES", 100)
    verify_folder(plain.folder, Against(witness=Witness(iter([Seen("s", 0, "x")]))), workers=workers)
    assert workers.ran == 0


def test_progress_in_parts(plain: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told every byte once."""
    monkeypatch.setattr(module, "PART_BYTES", 2500)
    counts: list[int] = []
    verify_folder(plain.folder, progress=counts.append, workers=Inline())
    assert sum(counts) == sum(plain.file(name).stat().st_size for name in (plain.a, plain.b))
    assert len(counts) < len(plain.lines(plain.a))


@pytest.mark.parametrize("error", [OSError("gone"), BrokenExecutor("killed")])
def test_workers_that_fail(plain: Scene, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """A process that is killed, or cannot read the file, costs time and no verdict."""

    class Failing(Inline):
        def submit(self, work: Any, /, *args: Any, **named: Any) -> Future[Any]:
            future: Future[Any] = Future()
            future.set_exception(error)
            return future

    monkeypatch.setattr(module, "PART_BYTES", 2500)
    assert verify_folder(plain.folder, workers=Failing()) == verify_folder(plain.folder)


def test_processes(signed: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent between real processes can be sent."""
    monkeypatch.setattr(module, "PART_BYTES", 2500)
    against = Against(signed.signer.verifier)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as workers:
        assert verify_folder(signed.folder, against, workers=workers) == verify_folder(signed.folder, against)


def part(first: int, behind: int, /, **fields: Any) -> Part:
    """A part of a session "s" whose hashes are its numbers."""
    starts = {
        "begin": parts.Start(first, GENESIS if first == 0 else str(first)),
        "end": parts.Start(behind, str(behind)),
    }
    rest = {"open_calls": {}, "begun_before": {}, "calls": ("", ""), "is_sealed": False, "recovered": None}
    ids = (f"{first:04}", f"{behind - 1:04}")
    return Part(**{"session_id": "s", **starts, **rest, "ids": ids, "leaves": b"", "bytes": 1, **fields})


@pytest.mark.parametrize(
    ("second", "goes_on"),
    [
        ({}, True),
        ({"session_id": "t"}, False),
        ({"begin": parts.Start(10, "other")}, False),
        ({"begin": parts.Start(11, "10")}, False),
        ({"ids": ("0009", "0019")}, False),
        ({"ids": ("0008", "0019")}, False),
        ({"calls": ("0003", "0004")}, True),
        ({"calls": ("0002", "0004")}, False),
        ({"begun_before": {"c": "action.approved"}}, True),
        ({"begun_before": {"c": "action.executed"}}, False),
        ({"begun_before": {"d": "action.approved"}}, False),
        ({"begun_before": {"c": "action.denied"}}, True),
        ({"end": parts.Start(10 + parts.MAX_OPEN - 1, "x")}, True),
        ({"end": parts.Start(10 + parts.MAX_OPEN, "x")}, False),
    ],
)
def test_how_parts_join(second: dict[str, Any], goes_on: bool) -> None:
    """The next one begins where the last ended, with larger ids, and with calls that were open as it says."""
    joined = Joined("s")
    assert joined.add(part(0, 10, open_calls={"c": "action.requested"}, calls=("0001", "0002")))
    assert joined.add(part(10, 20, **second)) is goes_on


def test_a_part_behind_the_end_does_not_join() -> None:
    """Nothing follows a sealed one; the first begins at the beginning, and names the session if nobody did."""
    joined = Joined(None)
    assert not joined.add(part(1, 2))
    joined = Joined(None)
    assert joined.add(part(0, 10, is_sealed=True))
    assert joined.verdict().sealed
    assert joined.verdict().session_id == "s"
    assert not joined.add(part(10, 20))


def test_calls_over_three_parts() -> None:
    """A call that is requested, approved and executed in one part each; it is over then."""
    joined = Joined("s")
    assert joined.add(part(0, 10, open_calls={"c": "action.requested"}, calls=("c", "c")))
    assert joined.add(part(10, 20, begun_before={"c": "action.approved"}, open_calls={"c": "action.approved"}))
    assert joined.add(part(20, 30, begun_before={"c": "action.failed"}))
    assert not joined.add(part(30, 40, begun_before={"c": "action.failed"}))


def test_recoveries_add_up() -> None:
    """The bytes of all, and the digest of the last, as in the chain's own verdict."""
    joined = Joined("s")
    for begin, found in ((0, parts.Recovery(3, "a")), (10, None), (20, parts.Recovery(4, "b"))):
        assert joined.add(part(begin, begin + 10, recovered=found))
    assert joined.verdict().recovered == parts.Recovery(7, "b")


@pytest.mark.parametrize("data", [b"", b"\n", b"x", b"{}\n", b"\0" * 100, json.dumps({"a": 1}).encode() + b"\n"])
def test_parts_of_garbage(tmp_path: Path, data: bytes) -> None:
    """No part of it says yes."""
    path = tmp_path / "x"
    path.write_bytes(data)
    assert verify_part(str(path), 0, 1 << 40, True) is None
