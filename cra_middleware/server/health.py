"""Whether the server can do its work now: each thing it needs is really tried."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path

from cra_middleware import __version__
from cra_middleware._ids import new_id
from cra_middleware.carp.quota import Counters, Limit
from cra_middleware.errors import CRAError, SinkError
from cra_middleware.server.host import Host
from cra_middleware.trace.ledger.backlog import TellsBacklog

LOW_BYTES = 512 * 1024 * 1024
"""With less room than this the disk is a warning; with a sixteenth of it, a failure."""
CHECK_SECONDS = 3.0
"""Less than a balancer waits for an answer."""
_NONE = "none in force: every call is denied"
_ASKED = (Limit(("health",), 1, 60_000_000, 1, "health", ""),)
"""A limit that nobody ever takes a place in: without one the counters have nothing to look at."""
_Check = tuple[str, str]
_Ask = Callable[[], _Check | None]
"""None where there is nothing of the kind."""


class Health:
    """The checks of one server."""

    def __init__(
        self,
        host: Host,
        counters: Counters | None = None,
        folder: Path | None = None,
        *,
        seconds: float = CHECK_SECONDS,
    ) -> None:
        """``folder`` is on the disk that fills up; what says nothing for ``seconds`` has failed."""
        self._host = host
        self._counters = counters
        self._folder = folder
        self._more: dict[str, Callable[[], _Check]] = {}
        self._seconds = seconds
        self._lock = threading.Lock()
        self._under_way: dict[str, Future[_Check | None]] = {}

    def also(self, name: str, check: Callable[[], tuple[str, str]]) -> None:
        """Ask one thing more: ``pass``, ``warn`` or ``fail``, and a sentence."""
        self._more[name] = check

    def check(self, *, in_full: bool) -> dict[str, object]:
        """The published shape; ``in_full`` with the sentences, which may name places."""
        wanted: dict[str, _Ask] = {"store": self._store, "book": self._book, "atlases": self._atlases, **self._more}
        if isinstance(self._host.store, TellsBacklog):
            wanted["heads"] = partial(self._heads, self._host.store)
        if self._counters is not None:
            wanted["counters"] = self._count
        if self._folder is not None:
            wanted["disk"] = self._disk
        found = self._tried(wanted)
        states = {state for state, _ in found.values()}
        status = "unhealthy" if "fail" in states else "degraded" if "warn" in states else "healthy"
        return {
            "status": status,
            "version": __version__,
            "uptime_seconds": max(0, (self._host.clock.wall_us() - self._host.began_us) // 1_000_000),
            "checks": {
                name: {"status": state, "message": message} if in_full else {"status": state}
                for name, (state, message) in found.items()
            },
        }

    def _tried(self, wanted: Mapping[str, _Ask]) -> dict[str, _Check]:
        """All at once, as a dead network keeps each of them waiting; one that still waits is not asked again."""
        with self._lock:
            for name, check in wanted.items():
                if name not in self._under_way or self._under_way[name].done():
                    self._under_way[name] = _begun(check)
            asked = {name: self._under_way[name] for name in wanted}
        wait(asked.values(), self._seconds)
        silent = "fail", f"nothing was heard of it for {self._seconds:g} seconds"
        found = {name: told.result() if told.done() else silent for name, told in asked.items()}
        return {name: told for name, told in found.items() if told is not None}

    def _store(self) -> _Check:
        found = self._host.store.health()
        return ("pass" if found.ok else "fail"), found.detail

    def _book(self) -> _Check:
        self._host.book.session(new_id())
        return "pass", "the index can be read"

    def _atlases(self) -> _Check:
        broken = self._host.folder.broken if self._host.folder is not None else {}
        if broken:
            return "warn", "; ".join(f"{place}: {why}" for place, why in broken.items())[:1000]
        count = len(self._host.runtime.atlases)
        return "pass", f"{count} in force" if count or self._host.runtime.resolver.is_observing else _NONE

    def _count(self) -> _Check:
        assert self._counters is not None
        self._counters.peek(_ASKED, self._host.clock.wall_us())
        return "pass", "the counters can be read"

    def _heads(self, store: TellsBacklog) -> _Check | None:
        try:
            waiting = store.backlog()
        except SinkError as error:  # calls are decided all the same
            return "warn", str(error)
        return None if waiting is None else ("warn" if waiting.is_late else "pass", str(waiting))

    def _disk(self) -> _Check:
        assert self._folder is not None
        free = shutil.disk_usage(self._folder).free
        state = "pass" if free >= LOW_BYTES else "warn" if free >= LOW_BYTES // 16 else "fail"
        wanted = (
            "" if state == "pass" else f": less than {LOW_BYTES >> 20} is a warning, less than {LOW_BYTES >> 24} fails"
        )
        return state, f"{free >> 20} MiB free{wanted}"


def _begun(check: _Ask) -> Future[_Check | None]:
    told: Future[_Check | None] = Future()
    threading.Thread(target=lambda: told.set_result(_tried(check)), name="cra-health", daemon=True).start()
    return told


def _tried(check: _Ask) -> _Check | None:
    try:
        return check()
    except (CRAError, OSError) as error:
        return "fail", str(error)[:1000]
    except Exception as error:  # noqa: BLE001  a foreign store may fail in any way, and that is what is asked
        return "fail", f"the check raised {type(error).__name__}"
