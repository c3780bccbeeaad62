"""The power fails at any moment: what was synced is there afterwards, and the chain goes on whole."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest

from cra_middleware._ids import new_id
from cra_middleware.errors import ChainBroken, SinkError
from cra_middleware.testing import FrozenClock
from cra_middleware.trace.chain import RECOVERED, verify_lines
from cra_middleware.trace.payloads import render
from cra_middleware.trace.recovery import reopen
from cra_middleware.trace.sinks.jsonl import JsonlSink
from cra_middleware.trace.sinks.jsonl_log import JsonlLog
from cra_middleware.trace.writer import ChainWriter, Draft
from tests.conftest import NOON
from tests.crash.disk import Disk, Said
from tests.crash.rounds import rounds

MOMENTS = 40
"""Power losses of one story."""


@pytest.fixture
def fast_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where there is one."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder)


def entry(writer: ChainWriter, kind: str, **payload: object) -> Draft:
    return Draft(new_id(), None, kind, render(payload), writer.now_us())


class Promise(NamedTuple):
    """What a log says is durable."""

    events: int


class Story:
    """A session that is written, synced, rotated, left by processes that died, and taken up again."""

    def __init__(self, folder: Path, random: Random) -> None:
        self.session_id = new_id()
        self.lines: list[bytes] = []
        """As they were accepted, with what later processes set aside taken out."""
        self.disk = Disk(folder)
        self._random = random
        self._segment_bytes = random.choice((700, 2500, 1 << 20))
        self._log: JsonlLog | None = None
        self.disk.promise = lambda: None if self._log is None else Promise(self._log.durable_events)
        self._fails = random.random() < 0.3
        with self.disk.recording():
            for process in range(random.randint(1, 3)):
                self._live(is_first=process == 0)

    def _sink(self) -> JsonlSink:
        return JsonlSink(self.disk.folder, sync_interval_seconds=3600, segment_bytes=self._segment_bytes)

    def _live(self, *, is_first: bool) -> None:
        random, sink = self._random, self._sink()
        log = sink.create(self.session_id) if is_first else sink.reopen(self.session_id)
        assert isinstance(log, JsonlLog)
        self._log = log
        log._queue = lambda: None  # type: ignore[method-assign]  # this story says when the disk is waited for
        if is_first:
            writer = ChainWriter(log, FrozenClock(NOON), self.session_id, new_id())
            writer.write(entry(writer, "session.started", agent_id="a", goal="g"))
        else:
            writer = go_on(log, self.session_id)
        for _ in range(random.randint(1, 6)):
            for _ in range(random.randint(0, 4)):
                for _ in range(random.randint(1, 2)):
                    writer.write(entry(writer, "error.occurred", error_code="e", message="é" * random.randint(0, 400)))
            if random.random() < 0.6:
                self._flush(log)
        self.lines = list(log.lines())
        if random.random() < 0.3:  # a last write that the process did not finish
            place = writer.end.offset - log._file.begins
            os.pwrite(log._file.fd, b'{"trace_version":"1.0",' * 30, place)
        log._let_go()  # it was killed

    def _flush(self, log: JsonlLog) -> None:
        if self._fails and self._random.random() < 0.5:
            bad = os.fstat(log._file.fd).st_ino
            self.disk.failing = lambda node: node == bad
        with suppress(SinkError):
            log.flush()
        self.disk.failing = lambda node: False


def go_on(log: JsonlLog, session_id: str) -> ChainWriter:
    """What resuming does: verify, set the torn end aside, record it."""
    found = reopen(log, session_id)
    writer = ChainWriter(log, FrozenClock(NOON), session_id, found.first.trace_id, found.end)
    if found.torn is not None:
        sha = {"bytes": found.torn.size, "sha256": found.torn.sha256}
        writer.write(entry(writer, "error.occurred", error_code=RECOVERED, message="torn", **sha))
    return writer


def check_recovery(folder: Path, story: Story, promised: int, *, twice: bool) -> bool:
    """Recover, perhaps twice, and look; whether there was anything to go on from."""
    sink = JsonlSink(folder, sync_interval_seconds=3600, segment_bytes=story._segment_bytes)
    try:
        log = sink.reopen(story.session_id)
    except SinkError:
        assert promised == 0
        return False
    try:
        writer = go_on(log, story.session_id)
    except ChainBroken as error:
        # nothing was promised, and there is no first event, or not even the note that promises are kept in
        assert promised == 0, error
        assert next(log.lines(), b"") != story.lines[0] or log.noted_durable is None, error
        log.close()
        return False
    kept = list(log.lines())
    common = sum(mine == theirs for mine, theirs in zip(kept, story.lines, strict=False))
    assert common >= promised
    writer.write(entry(writer, "error.occurred", error_code="e", message="goes on"))
    log.close()
    assert log.durable_events == writer.end.sequence
    (verdict,) = verify_lines(sink.lines(story.session_id), story.session_id)
    assert verdict.intact
    assert verdict.events == writer.end.sequence
    if twice:
        again = sink.reopen(story.session_id)
        assert reopen(again, story.session_id).torn is None  # what was recorded is not recorded again
        again.close()
    return True


@rounds(4, 255)
def test_power_loss(fast_folder: Path, rounds: int) -> None:
    """No synced event is lost, no chain is broken afterwards, and no session is refused that a crash has torn."""
    recovered = 0
    for seed in range(rounds):
        random = Random(seed)
        origin = fast_folder / "origin"
        origin.mkdir()
        story = Story(origin, random)
        for number in range(MOMENTS):
            moment = random.randint(0, len(story.disk.steps))
            files, promises = story.disk.left(moment, random)
            promised = max((said.events for said in promises if isinstance(said, Promise)), default=0)
            folder = fast_folder / "left"
            folder.mkdir()
            for path, content in files.items():
                (folder / Path(path).name).write_bytes(content)
            try:
                recovered += check_recovery(folder, story, promised, twice=number % 4 == 0)
            except BaseException as error:
                error.add_note(f"seed {seed}, moment {moment} of {len(story.disk.steps)}, promised {promised}")
                raise
            shutil.rmtree(folder)
        shutil.rmtree(origin)
    assert recovered > rounds * MOMENTS // 2


def test_the_disk_loses_something(fast_folder: Path) -> None:
    """The simulation does lose what was not synced, and keeps what was."""
    disk, random = Disk(fast_folder), Random(1)
    with disk.recording():
        fd = os.open(fast_folder / "file", os.O_RDWR | os.O_CREAT)
        os.pwrite(fd, b"a" * 700, 0)
        os.fdatasync(fd)
        folder = os.open(fast_folder, os.O_RDONLY)
        os.fsync(folder)
        disk.say("synced")
        os.pwrite(fd, b"b" * 2000, 700)
    os.close(fd)
    os.close(folder)
    assert Said("synced") in disk.steps
    found = {next(iter(disk.left(len(disk.steps), random)[0].values())) for _ in range(200)}
    assert all(content.startswith(b"a" * 700) for content in found)
    assert {b"a" * 700, b"a" * 700 + b"b" * 2000} < found
    assert any(b"\0" in content for content in found)
    assert any(disk.left(2, random)[0] == {} for _ in range(20))
