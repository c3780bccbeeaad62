"""Follows the sessions of one process: what became durable is put into the ledger's inbox, and signed by its owner.

One thread, never the caller's: a head follows at most ``HEAD_SECONDS`` behind the events, sooner after
``HEAD_EVENTS`` of them or at a session's end. Whoever gets the ledger's lock is its owner, for all processes that write
to the same place; when that one is gone, another takes over.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from cra_middleware._fork import tell_child
from cra_middleware.errors import ChainBroken, SinkError
from cra_middleware.trace.entry import Entry
from cra_middleware.trace.ledger.backlog import COUNTED, Backlog
from cra_middleware.trace.ledger.owner import Owner, broken
from cra_middleware.trace.ledger.place import LedgerPlace, LostError
from cra_middleware.trace.ledger.session_tree import SessionTree
from cra_middleware.trace.note import Checkpoint, NoteError, Signer, read_note

HEAD_SECONDS = 1.0
HEAD_EVENTS = 1000
_LEAST_SECONDS = 0.05
"""Between two heads, however much happens."""
CLOSE_SECONDS = 5.0
"""How long an end waits for the owner, when that is another process."""
MAX_TREES = 4096
"""Sessions whose trees are remembered; that of another is read from its lines again."""

_logger = logging.getLogger("cra_middleware.trace")


class LedgerFollower:
    """Hears of durable events; sees to it that a signed head covers them."""

    _since: float | None
    """When the first was heard of that was not taken out of what was heard yet."""
    _changed_since: float | None
    """The same of those that were, and are not in the inbox yet."""

    def __init__(self, place: LedgerPlace, signer: Signer, on_head: Callable[[str], object] | None = None) -> None:
        """Own the ledger when nobody else does.

        Args:
            on_head: hears of each new head that this process signs; to publish it somewhere else.

        Raises:
            ChainBroken: when the ledger was changed since it was signed.
            SinkError: when it cannot be used.
        """
        self._place = place
        self._signer = signer
        self._on_head = on_head
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

    @property
    def alarm(self) -> str | None:
        """Why nothing is signed any more; None when all is well."""
        return self._alarm

    def durable(self, session_id: str, events: int, new: int, /) -> None:
        """``events`` events of a session are durable, ``new`` of them since the last time."""
        self._heard.append((session_id, events, new))
        if self._since is None:
            self._since = time.monotonic()
        if self._thread is None:
            self._start()
        self._wake.set()

    def ended(self, session_id: str, /) -> None:
        """This process writes nothing more to a session: a head is wanted now."""
        self._over.append(session_id)
        self._wake.set()

    def backlog(self) -> Backlog:
        """What this process has heard of and not put into the inbox: its turn takes long, or the place is away."""
        heard = list(self._heard)
        sessions = {session_id for session_id, _, _ in heard[:COUNTED]} | set(self._changed.copy())
        since = self._changed_since or self._since
        if not sessions or since is None:
            return Backlog()
        return Backlog(len(sessions), time.monotonic() - since, len(heard) > COUNTED and len(sessions) >= COUNTED)

    def close(self) -> None:
        """Sign the last head, or see that the owner does, and end the thread."""
        self._stopped = True
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(CLOSE_SECONDS)
        with self._turn:
            until = time.monotonic() + CLOSE_SECONDS
            while True:
                self._work_once()
                if self._alarm is not None or not self._is_waiting_for_owner():
                    break
                if time.monotonic() >= until:
                    _logger.error("the owner of %s does not sign; another will", self._place.name)
                    break
                time.sleep(_LEAST_SECONDS)
            self._let_go()
            self._place.close()

    def forked(self) -> None:
        """In a forked child: the parent's ledger is the parent's."""
        self._let_go(is_forked=True)
        self._begin()

    def _begin(self) -> None:
        self._heard: deque[tuple[str, int, int]] = deque()  # a log's thread appends while ours takes out
        self._over: deque[str] = deque()
        self._trees: dict[str, SessionTree] = {}
        self._changed: dict[str, int] = {}
        self._since = None
        self._changed_since = None
        self._mine: deque[str] = deque(maxlen=64)
        self._known: Checkpoint | None = None  # the last head that was seen: the ledger never goes back behind it
        self._tried: bytes | None = None  # a head that may have been kept, and was not published
        self._alarm: str | None = None
        self._complaints = set[str]()  # of this turn
        self._complaints_before = set[str]()
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
        self._complaints_before, self._complaints = self._complaints, set()
        over = [self._over.popleft() for _ in range(len(self._over))]
        since, self._since = self._since, None
        if self._changed_since is None:
            self._changed_since = since
        while self._heard:
            session_id, events, _ = self._heard.popleft()
            self._changed[session_id] = events
        try:
            self._ask()
            if not self._changed:
                self._changed_since = None
            self._try_to_own()
            if self._owner is not None:
                self._sign(self._owner)
        except ChainBroken as error:
            self._alarm = str(error)
            self._let_go()
            _logger.error("%s", error)
        except SinkError as error:
            if isinstance(error, LostError):
                self._let_go()
            self._complain(f"no head could be signed: {error}")
        for session_id in over if len(self._trees) <= MAX_TREES else list(self._trees):
            if session_id not in self._changed:
                self._trees.pop(session_id, None)

    def _sign(self, owner: Owner) -> None:
        try:
            head = owner.work()
        except SinkError:
            self._tried = owner.tried or self._tried
            raise
        self._known = owner.head or self._known
        self._publish(head)

    def _complain(self, message: str) -> None:
        """Once, however often it is tried in vain."""
        self._complaints.add(message)
        if message not in self._complaints_before:
            _logger.error("%s", message)

    def _ask(self) -> None:
        """Put what changed into the inbox."""
        entries: dict[str, Entry] = {}
        for session_id, events in list(self._changed.items()):
            tree = self._tree_of(session_id)
            try:
                tree.grow(events)
            except ChainBroken as error:
                _logger.error("not signed: %s", error)
                del self._changed[session_id]
            except SinkError as error:
                self._complain(f"not signed yet: {error}")
            else:
                entries[session_id] = tree.entry()
        if entries:
            self._mine.append(self._place.ask(list(entries.values())))
            for session_id in entries:
                del self._changed[session_id]

    def _try_to_own(self) -> None:
        if self._owner is not None or self._alarm is not None:
            return
        hold = self._place.take()
        if hold is None:
            self._watch()
            return
        try:
            self._owner = Owner(self._place, hold, self._signer, self._tree_of, self._known)
        except BaseException:  # whatever it was, the ledger must not stay locked
            hold.close()
            raise
        self._known = self._owner.head
        if self._tried is not None and self._owner.kept == self._tried:  # it was kept after all
            self._publish(self._tried)

    def _watch(self) -> None:
        """Look at the head that another process signed last: it never goes back.

        Raises:
            ChainBroken: when it did.
            SinkError: when it cannot be read.
        """
        note = self._place.head()
        try:
            head = None if note is None else read_note(note).head
        except NoteError:  # its owner, or the next one, stops at it
            return
        if self._known is not None and not _may_follow(head, self._known):
            raise broken(self._place, f"it had {self._known.size} entries, and an older state of it was put back")
        self._known = head or self._known

    def _let_go(self, *, is_forked: bool = False) -> None:
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.close(is_forked=is_forked)

    def _tree_of(self, session_id: str) -> SessionTree:
        tree = self._trees.get(session_id)
        if tree is None:
            tree = self._trees[session_id] = SessionTree(session_id, self._place.lines(session_id))
        return tree

    def _is_waiting_for_owner(self) -> bool:
        try:
            return bool(self._changed) or self._place.is_waiting(self._mine)
        except SinkError:
            return True

    def _publish(self, head: bytes | None) -> None:
        self._tried = None
        if head is None or self._on_head is None:
            return
        try:
            self._on_head(head.decode())
        except Exception as error:  # noqa: BLE001  foreign code: the head is kept all the same
            _logger.error("a head was not published: %s", type(error).__name__)


def _may_follow(head: Checkpoint | None, known: Checkpoint) -> bool:
    if head is None or head.size < known.size:
        return False
    return head.size > known.size or head.root == known.root
