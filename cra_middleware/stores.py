"""What outlives a call: where questions and counts are kept, as given or as made here from a name."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from cra_middleware._postgres import POSTGRES
from cra_middleware.approvals.approval import ApprovalError, ApprovalStore
from cra_middleware.approvals.postgres_store import PostgresApprovals
from cra_middleware.approvals.sqlite_store import SqliteApprovals
from cra_middleware.approvals.store import MemoryApprovals
from cra_middleware.carp.counters import MemoryCounters
from cra_middleware.carp.quota import Counters, CountersError
from cra_middleware.carp.redis_counters import PREFIX, REDIS, RedisCounters
from cra_middleware.carp.sqlite_counters import SqliteCounters
from cra_middleware.sidecar import Sidecar


class _Closable(Protocol):
    def close(self) -> None: ...


class Stores:
    """The stores of one runtime."""

    def __init__(
        self,
        approvals: ApprovalStore | str | Path | None,
        counters: Counters | str | Path | None,
        sidecar: str | Path | None = None,
    ) -> None:
        """A name is a server's address, or a file, which is opened or made; nothing is memory, or no sidecar.

        Raises:
            CRAError: when one cannot be used.
        """
        self._made: list[_Closable] = []
        self.approvals: ApprovalStore
        self.counters: Counters
        try:
            if isinstance(approvals, (str, Path)):
                self.approvals = open_approvals(approvals)
                self._made.append(self.approvals)
            else:
                self.approvals = MemoryApprovals() if approvals is None else approvals
            if isinstance(counters, (str, Path)):
                self.counters = open_counters(counters)
                self._made.append(self.counters)
            else:
                self.counters = MemoryCounters() if counters is None else counters
            self.outlive = approvals is not None
            """Whether open questions outlive this process."""
            self.place: object = str(approvals) if isinstance(approvals, (str, Path)) else id(self.approvals)
            """Equal where the same questions lie."""
            self.sidecar = None if sidecar is None else Sidecar(sidecar)
            if self.sidecar is not None:
                self._made.append(self.sidecar)
        except BaseException:  # what was opened before must not stay open
            self.close()
            raise

    def close(self) -> None:
        """Let go of the files that were made here; what was given is its owner's."""
        for store in self._made:
            store.close()


def open_approvals(name: str | Path) -> SqliteApprovals | PostgresApprovals:
    """The store that ``name`` says: ``postgresql://…``, or a file.

    Raises:
        ApprovalError: when it cannot be used.
    """
    if isinstance(name, str) and name.startswith(POSTGRES):
        return PostgresApprovals(name)
    if isinstance(name, str) and "://" in name:
        raise ApprovalError(f"questions are kept in a file or in postgresql://…, not in {_scheme(name)}")
    return SqliteApprovals(name)


def open_counters(name: str | Path, prefix: str = PREFIX) -> SqliteCounters | RedisCounters:
    """The counters that ``name`` says: ``redis://…``, where ``prefix`` begins every key, or a file.

    Raises:
        CountersError: when they cannot be used.
        ValueError: when the prefix is none.
    """
    if isinstance(name, str) and name.startswith(REDIS):
        return RedisCounters(name, prefix)
    if isinstance(name, str) and "://" in name:
        raise CountersError(f"calls are counted in a file or in redis://…, not in {_scheme(name)}")
    return SqliteCounters(name)


def _scheme(name: str) -> str:
    return name.partition("://")[0] + "://…"  # the rest may hold a password
