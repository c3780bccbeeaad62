"""A receiver on another machine: a witness, or the one place for the traces of many.

``append`` writes to a spool, a folder of trace files like any other, so an event survives the death of the process
at once; one background thread sends what the other side does not have, in order. While that is away, the spool
fills; what is left when the process ends is sent by the next one that opens the spool. What the other side has
acknowledged is what counts as durable and as witnessed. One process has a spool at a time.

The receiver's part:

    POST {url}/sessions/{session id}/events
    Cra-Session-Id, Cra-Offset (bytes before the first line), Cra-First-Sequence, Idempotency-Key,
    Authorization: Bearer … (when there is a token), Content-Type: application/x-ndjson
    body: whole lines, byte for byte as they are hashed

    200 {"events": n}   it has made them durable, and holds n events of the session
    409 {"events": n}   it cannot put them there: it holds n events; the sender goes on from event n
    408, 425, 429 and 5xx: the sender tries again, after ``Retry-After`` or longer and longer pauses with jitter
    any other status: it never will take them; the sender takes no more events of this session

A batch may come twice. One that the receiver holds already is answered with 200. One that begins earlier and differs
replaces what it holds from there on, which was never accepted (its writer was interrupted); a receiver that takes
nothing back answers 403 instead.
"""

from __future__ import annotations

import fcntl
import os
import random
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

from cra_middleware.errors import SinkError
from cra_middleware.trace.sink import Health, Query, SessionLog
from cra_middleware.trace.sinks.http_client import Acknowledged, HttpClient, Later, Refused
from cra_middleware.trace.sinks.http_log import HttpLog
from cra_middleware.trace.sinks.jsonl import JsonlSink
from cra_middleware.trace.sinks.outbox import Outbox
from cra_middleware.trace.storage.files import failed
from cra_middleware.trace.wakeup import Wakeup

SPOOL_BYTES = 256 * 1024 * 1024
"""How much may wait for the other side before events are refused."""
_BATCH_BYTES = 512 * 1024
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 30.0
_MOST_STALLS = 5
_spools: weakref.WeakSet[HttpSink] = weakref.WeakSet()


class HttpSink:
    """The sessions of one process, on their way to a receiver."""

    def __init__(
        self,
        url: str,
        spool: str | Path,
        token: str | None = None,
        *,
        spool_bytes: int = SPOOL_BYTES,
        interval_seconds: float = 0.2,
        timeout_seconds: float = 10.0,
        flush_seconds: float = 10.0,
        close_seconds: float = 5.0,
    ) -> None:
        """Open the spool, and begin to send what an earlier process left there.

        Args:
            url: the receiver's address; send a ``token`` over ``https`` only.
            spool: a folder on a local disk, which no other process uses.
            token: sent as ``Authorization: Bearer …``.
            spool_bytes: how much may wait; then events are refused with an error that is transient. Sessions that
                were not ended stay in the spool, and do not count once they are sent.
            interval_seconds: how long an event waits at most before it is sent.
            timeout_seconds: how long one exchange may take.
            flush_seconds: how long ``flush`` waits for the other side.
            close_seconds: how long closing the sink does; the rest stays in the spool.

        Raises:
            SinkError: when httpx is not installed, an argument cannot be used, or another process has the spool.
        """
        self._client = HttpClient(url, token, timeout_seconds)
        self._spool_bytes, self._interval = spool_bytes, interval_seconds
        self._flush_seconds, self._close_seconds = flush_seconds, close_seconds
        self._pid = os.getpid()
        self._files = JsonlSink(spool, segment_bytes=1 << 62, segment_seconds=float("inf"))
        self._lock_fd = _lock(self._files.folder)
        self._boxes: dict[str, Outbox] = {}
        self._writers: dict[str, weakref.ref[HttpLog]] = {}
        self._turn = threading.Lock()
        self._wakeup = Wakeup()
        self._pause, self._not_before = 0.0, 0.0
        self.problem = ""
        """Why nothing is sent at the moment."""
        self._is_stopped = False
        _spools.add(self)
        try:
            for session_id in self._files.session_ids():
                self._boxes[session_id] = Outbox(self._files.folder, session_id)
        except SinkError:
            self.let_go()
            raise
        self._thread = threading.Thread(target=self._run, name="cra-trace-http", daemon=True)
        self._thread.start()
        self._wakeup.now()

    def create(self, session_id: str, /) -> SessionLog:
        self._check()
        return self._open(session_id, self._files.create(session_id))

    def reopen(self, session_id: str, /) -> SessionLog:
        """The log of an earlier session that is still in this spool, to be continued.

        Raises:
            SinkError: when it is not, or has a writer.
        """
        self._check()
        return self._open(session_id, self._files.reopen(session_id))

    def session_ids(self) -> list[str]:
        """Those in the spool."""
        return self._files.session_ids()

    def lines(self, session_id: str, /) -> Iterator[bytes]:
        return self._files.lines(session_id)

    def find(self, session_id: str, query: Query, /) -> Iterator[bytes]:
        return self._files.find(session_id, query)

    def count(self, session_id: str, /) -> int:
        return self._files.count(session_id)

    def health(self) -> Health:
        spool, waiting = self._files.health(), self.waiting_bytes
        refused = next((box.failure for box in list(self._boxes.values()) if box.failure is not None), None)
        reason = refused or self.problem
        text = f"{spool.detail}; {waiting} bytes wait for {self._client.place}" + (f": {reason}" if reason else "")
        return Health(spool.ok and refused is None and waiting < self._spool_bytes, text)

    def close(self) -> None:
        """Send what waits, for ``close_seconds``; the rest stays in the spool."""
        if os.getpid() != self._pid or self._lock_fd < 0:
            return
        deadline = time.monotonic() + self._close_seconds
        self._wakeup.now()
        for box in list(self._boxes.values()):
            box.wait_until_sent(max(0.0, deadline - time.monotonic()))
        self._is_stopped = True
        self._wakeup.now()
        self._thread.join(timeout=self._close_seconds)
        for session_id in list(self._boxes):
            self._tidy(session_id)
        self._files.close()
        self._client.close()
        self.let_go()

    @property
    def waiting_bytes(self) -> int:
        """How much the other side does not have yet."""
        return sum(box.waiting_bytes for box in list(self._boxes.values()) if box.is_waiting)

    def let_go(self) -> None:
        """Give the spool up."""
        fd, self._lock_fd = self._lock_fd, -1
        if fd >= 0:
            if os.getpid() == self._pid:
                fcntl.flock(fd, fcntl.LOCK_UN)
            os.close(fd)

    def _open(self, session_id: str, inner: SessionLog) -> HttpLog:
        with self._turn:
            box = self._boxes.get(session_id) or Outbox(self._files.folder, session_id)
            log = HttpLog(box, inner, self._wakeup, self._check_room, self._flush_seconds)
            self._boxes[session_id], self._writers[session_id] = box, weakref.ref(log)
        return log

    def _check(self) -> None:
        if os.getpid() != self._pid:
            raise SinkError(f"the spool {self._files.folder} belongs to the parent process; name another folder")
        if self._lock_fd < 0:
            raise SinkError(f"the spool {self._files.folder} is closed")

    def _check_room(self, more: int) -> None:
        waiting = self.waiting_bytes
        if waiting and waiting + more > self._spool_bytes:
            reason = self.problem or f"{self._client.place} is slow"
            raise SinkError(f"{waiting} bytes wait in the spool {self._files.folder}: {reason}", is_transient=True)

    def _run(self) -> None:
        while not self._is_stopped:
            self._wakeup.wait(max(self._interval, min(_LONGEST_PAUSE, self._not_before - time.monotonic())))
            for session_id, box in list(self._boxes.items()):
                try:
                    while box.is_waiting and not self._is_stopped and time.monotonic() >= self._not_before:
                        self._send(box)
                except SinkError as error:  # the spool cannot be read now
                    self._wait_a_little(str(error), None)
                self._tidy(session_id)
            if any(box.is_waiting for box in list(self._boxes.values())):
                self._wakeup.soon()

    def _send(self, box: Outbox) -> None:
        batch = box.next_batch(_BATCH_BYTES)
        if batch is None:  # it was taken back meanwhile, or is not whole yet
            self._wait_a_little("", self._interval)
            return
        match self._client.send(batch):
            case Later(reason, seconds):
                self._wait_a_little(reason, seconds)
            case Refused(reason):
                box.fail(f"session {box.session_id} takes no more events: {reason}")
            case Acknowledged(events):
                self._pause, self._not_before, self.problem = 0.0, 0.0, ""
                if events > max(box.written.events, batch.events):  # what is written may have been cut meanwhile
                    box.fail(
                        f"{self._client.place} has {events} events of session {box.session_id}, which has "
                        f"{box.written.events} here: it has another writer, or was changed"
                    )
                    return
                box.confirm(events, batch)
                if box.stalls:
                    self._wait_a_little(f"{self._client.place} does not get on at event {events}", None)
                if box.stalls >= _MOST_STALLS:
                    box.fail(f"session {box.session_id} takes no more events: {self.problem}")

    def _wait_a_little(self, reason: str, seconds: float | None) -> None:
        if reason:
            self.problem = reason
            self._pause = min(max(_FIRST_PAUSE, self._pause * 2), _LONGEST_PAUSE)
        pause = self._pause * random.uniform(0.5, 1.0)
        self._not_before = time.monotonic() + (pause if seconds is None else seconds)

    def _tidy(self, session_id: str) -> None:
        """Delete a session that was ended, is sent, and that nobody looks at any more."""
        with self._turn:
            box, writer = self._boxes.get(session_id), self._writers.get(session_id)
            log = writer() if writer is not None else None
            if box is None or log is not None:
                return
            try:
                if box.is_done():
                    box.remove()
                    del self._boxes[session_id]
                    self._writers.pop(session_id, None)
            except SinkError as error:
                self.problem = str(error)


def _lock(folder: Path) -> int:
    path = folder / "spool.lock"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise failed(f"{path} cannot be opened", error) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise SinkError(f"the spool {folder} has another process; give each a folder of its own") from error
    return fd


def _after_fork() -> None:
    for sink in list(_spools):
        sink.let_go()  # a copy of the descriptor must not outlive the parent


os.register_at_fork(after_in_child=_after_fork)
