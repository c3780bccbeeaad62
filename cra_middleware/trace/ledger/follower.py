"""Follows the sessions of one process: what reached the disk is put into the ledger's inbox, and signed by its owner.

One thread, never the caller's: a head follows at most ``HEAD_SECONDS`` behind the events, sooner after
``HEAD_EVENTS`` of them or at a session's end. Whoever gets the ledger's lock is its owner, for all processes of the
machine that write to the same folder; when that one is gone, another takes over.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from cra_middleware._fork import tell_child
from cra_middleware._ids import new_id
from cra_middleware.errors import ChainBroken, SinkError
from cra_middleware.trace.ledger.book import FOLDER
from cra_middleware.trace.ledger.owner import Owner, take_lock
from cra_middleware.trace.ledger.session_tree import SessionTree
from cra_middleware.trace.note import Signer
from cra_middleware.trace.sinks.files import failed, make_folder, replace_file

HEAD_SECONDS = 1.0
HEAD_EVENTS = 1000
_LEAST_SECONDS = 0.05
"""Between two heads, however much happens."""
CLOSE_SECONDS = 5.0
"""How long an end waits for the owner, when that is another process."""
MAX_TREES = 4096
"""Sessions whose trees are remembered; that of another is read from its files again."""

_logger = logging.getLogger("cra_middleware.trace")


class LedgerFollower:
    """Hears of durable events; sees to it that a signed head covers them."""

    def __init__(self, traces: Path, signer: Signer, on_head: Callable[[str], object] | None = None) -> None:
        """Make the ledger of a folder of traces when it is not there, and own it when nobody else does.

        Args:
            traces: the folder, which is there.
            on_head: hears of each new head that this process signs; to publish it somewhere else.

        Raises:
            ChainBroken: when the ledger was changed since it was signed.
            SinkError: when it cannot be used.
        """
        self._traces = traces
        self._signer = signer
        self._on_head = on_head
        try:
            make_folder(traces / FOLDER / "inbox")
        except OSError as error:
            raise failed(f"the ledger in {traces / FOLDER} cannot be made", error) from error
        self._owner: Owner | None = None
        self._begin()
        self._try_to_own()
        self._start()
        tell_child(self)

    def check(self) -> None:
        """Whether sessions may be begun.

        Raises:
            SinkError: when the ledger was changed, and nothing is signed any more.
        """
        if self._alarm is not None:
            raise SinkError(self._alarm)

    def durable(self, session_id: str, events: int, new: int, /) -> None:
        """A session has ``events`` events on the disk, ``new`` of them since the last time."""
        self._heard.append((session_id, events, new))
        if self._thread is None:
            self._start()
        self._wake.set()

    def ended(self, session_id: str, /) -> None:
        """This process writes nothing more to a session: a head is wanted now."""
        self._over.append(session_id)
        self._wake.set()

    def close(self) -> None:
        """Sign the last head, or see that the owner does, and end the thread."""
        self._stopped = True
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(CLOSE_SECONDS)
        with self._turn:
            for _ in range(int(CLOSE_SECONDS / _LEAST_SECONDS)):
                self._work_once()
                if self._alarm is not None or not self._is_waiting_for_owner():
                    break
                time.sleep(_LEAST_SECONDS)
            else:
                _logger.error("the owner of the ledger in %s does not sign; another will", self._traces / FOLDER)
            if self._owner is not None:
                self._owner.close()
                self._owner = None

    def forked(self) -> None:
        """In a forked child: the parent's ledger is the parent's."""
        if self._owner is not None:
            self._owner.close(is_forked=True)
            self._owner = None
        self._begin()

    def _begin(self) -> None:
        self._heard: deque[tuple[str, int, int]] = deque()  # a log's thread appends while ours takes out
        self._over: deque[str] = deque()
        self._trees: dict[str, SessionTree] = {}
        self._changed: dict[str, int] = {}
        self._mine: deque[str] = deque(maxlen=64)
        self._alarm: str | None = None
        self._wake = threading.Event()
        self._turn = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopped = False

    def _start(self) -> None:
        with self._turn:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="cra-ledger", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while not self._stopped:
            if self._wake.wait(HEAD_SECONDS):  # else it is others' entries' turn: they make no noise
                self._wake.clear()
                began = time.monotonic()
                while not self._is_due(time.monotonic() - began):
                    time.sleep(_LEAST_SECONDS)
            with self._turn:
                self._work_once()

    def _is_due(self, seconds: float) -> bool:
        if self._stopped or seconds >= HEAD_SECONDS:
            return True
        if seconds < _LEAST_SECONDS:
            return False
        return bool(self._over) or sum(new for _, _, new in list(self._heard)) >= HEAD_EVENTS

    def _work_once(self) -> None:
        over = [self._over.popleft() for _ in range(len(self._over))]
        while self._heard:
            session_id, events, _ = self._heard.popleft()
            self._changed[session_id] = max(events, self._changed.get(session_id, 0))
        try:
            self._ask()
            self._try_to_own()
            if self._owner is not None:
                head = self._owner.work()
                if head is not None and self._on_head is not None:
                    self._publish(self._on_head, head.decode())
        except ChainBroken as error:
            self._alarm = str(error)
            _logger.error("%s", error)
        except SinkError as error:
            _logger.error("no head could be signed: %s", error)
        for session_id in over if len(self._trees) <= MAX_TREES else list(self._trees):
            if session_id not in self._changed:
                self._trees.pop(session_id, None)

    def _ask(self) -> None:
        """Put what changed into the inbox."""
        entries: dict[str, bytes] = {}
        for session_id, events in list(self._changed.items()):
            tree = self._tree_of(session_id)
            try:
                tree.grow(events)
            except ChainBroken as error:
                _logger.error("not signed: %s", error)
                del self._changed[session_id]
            except SinkError as error:
                _logger.error("not signed yet: %s", error)
            else:
                entries[session_id] = tree.entry().pack()
        if not entries:
            return
        name = new_id()
        try:
            replace_file(self._traces / FOLDER / "inbox" / name, b"".join(entries.values()))
        except OSError as error:
            raise failed(f"the ledger in {self._traces / FOLDER} cannot be written", error) from error
        self._mine.append(name)
        for session_id in entries:
            del self._changed[session_id]

    def _try_to_own(self) -> None:
        if self._owner is not None or self._alarm is not None:
            return
        lock = take_lock(self._traces / FOLDER)
        if lock is None:
            return
        try:
            self._owner = Owner(self._traces, lock, self._signer, self._tree_of)
        except BaseException:  # whatever it was, the ledger must not stay locked
            os.close(lock)
            raise

    def _tree_of(self, session_id: str) -> SessionTree:
        tree = self._trees.get(session_id)
        if tree is None:
            tree = self._trees[session_id] = SessionTree(self._traces, session_id)
        return tree

    def _is_waiting_for_owner(self) -> bool:
        inbox = self._traces / FOLDER / "inbox"
        return bool(self._changed) or any((inbox / name).exists() for name in self._mine)

    def _publish(self, tell: Callable[[str], object], head: str) -> None:
        try:
            tell(head)
        except Exception as error:  # noqa: BLE001  foreign code: the head is kept all the same
            _logger.error("a head was not published: %s", type(error).__name__)
