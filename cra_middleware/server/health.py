"""Whether the server can do its work now: each thing it needs is really tried."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from cra_middleware import __version__
from cra_middleware._ids import new_id
from cra_middleware.carp.quota import Counters
from cra_middleware.errors import CRAError
from cra_middleware.server.host import Host

LOW_BYTES = 512 * 1024 * 1024
"""With less room than this the disk is a warning; with a sixteenth of it, a failure."""
_Check = tuple[str, str]


class Health:
    """The checks of one server."""

    def __init__(self, host: Host, counters: Counters | None = None, folder: Path | None = None) -> None:
        """``folder`` is on the disk that fills up."""
        self._host = host
        self._counters = counters
        self._folder = folder
        self._more: dict[str, Callable[[], _Check]] = {}

    def also(self, name: str, check: Callable[[], tuple[str, str]]) -> None:
        """Ask one thing more: ``pass``, ``warn`` or ``fail``, and a sentence."""
        self._more[name] = check

    def check(self, *, in_full: bool) -> dict[str, object]:
        """The published shape; ``in_full`` with the sentences, which may name places."""
        wanted = {"store": self._store, "book": self._book, "atlases": self._atlases, **self._more}
        if self._counters is not None:
            wanted["counters"] = self._count
        if self._folder is not None:
            wanted["disk"] = self._disk
        found = {name: _tried(check) for name, check in wanted.items()}
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
        return "pass", f"{len(self._host.runtime.atlases)} in force"

    def _count(self) -> _Check:
        assert self._counters is not None
        self._counters.peek((), self._host.clock.wall_us())
        return "pass", "the counters can be read"

    def _disk(self) -> _Check:
        assert self._folder is not None
        free = shutil.disk_usage(self._folder).free
        state = "pass" if free >= LOW_BYTES else "warn" if free >= LOW_BYTES // 16 else "fail"
        return state, f"{free // 1_048_576} MiB free"


def _tried(check: Callable[[], _Check]) -> _Check:
    try:
        return check()
    except (CRAError, OSError) as error:
        return "fail", str(error)[:1000]
    except Exception as error:  # noqa: BLE001  a foreign store may fail in any way, and that is what is asked
        return "fail", f"the check raised {type(error).__name__}"
