"""What outlives a call: where questions and counts are kept, as given or as made here from a file's name."""

from __future__ import annotations

from pathlib import Path

from cra_middleware.approval_store import MemoryApprovals
from cra_middleware.approvals import ApprovalStore
from cra_middleware.carp.counters import MemoryCounters
from cra_middleware.carp.quota import Counters
from cra_middleware.carp.sqlite_counters import SqliteCounters
from cra_middleware.sidecar import Sidecar
from cra_middleware.sqlite_approvals import SqliteApprovals


class Stores:
    """The stores of one runtime."""

    def __init__(
        self,
        approvals: ApprovalStore | str | Path | None,
        counters: Counters | str | Path | None,
        sidecar: str | Path | None = None,
    ) -> None:
        """A name is a file, which is opened or made; nothing is memory, or no sidecar.

        Raises:
            CRAError: when a file cannot be used.
        """
        self._made: list[SqliteApprovals | SqliteCounters | Sidecar] = []
        self.approvals: ApprovalStore
        self.counters: Counters
        if isinstance(approvals, (str, Path)):
            self.approvals = SqliteApprovals(approvals)
            self._made.append(self.approvals)
        else:
            self.approvals = MemoryApprovals() if approvals is None else approvals
        if isinstance(counters, (str, Path)):
            self.counters = SqliteCounters(counters)
            self._made.append(self.counters)
        else:
            self.counters = MemoryCounters() if counters is None else counters
        self.outlive = approvals is not None
        """Whether open questions outlive this process."""
        self.sidecar = None if sidecar is None else Sidecar(sidecar)
        if self.sidecar is not None:
            self._made.append(self.sidecar)

    def close(self) -> None:
        """Let go of the files that were made here; what was given is its owner's."""
        for store in self._made:
            store.close()
