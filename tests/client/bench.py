"""The contract's workbench with a server in between: its runtime is one at a server on the same folder."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, ClassVar
from unittest.mock import patch

from cra_middleware import Atlas, Runtime
from cra_middleware.approvals.approval import Approver
from cra_middleware.carp.quota import Counters
from cra_middleware.client import connection
from cra_middleware.client.remote_runtime import RemoteRuntime
from cra_middleware.testing.evidence_of_runs import Evidence
from cra_middleware.testing.stand_ins import FailingSink
from cra_middleware.testing.workbench import ATLAS, Workbench
from cra_middleware.trace.sinks.jsonl import JsonlSink
from tests.client.serving import serving


class RemoteWorkbench(Workbench):
    """As ``Workbench``; approver, counters and the failing sink are the server's."""

    holes: ClassVar[Mapping[str, str]] = {
        "pause_approved": "a yes that a run is resumed with comes from who asks; the server takes none of that"
    }

    def __enter__(self) -> RemoteWorkbench:
        self._quick = patch.object(connection, "_FIRST_PAUSE_SECONDS", 0.002)  # what fails here goes on failing
        self._quick.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._quick.stop()
        self.sink.failing = False
        if self._runtime is not None:
            self._runtime.close()
            self._runtime = None
        serving().stop()
        super().__exit__(kind, error, trace)

    def runtime(
        self,
        *,
        approver: Approver | None = None,
        counters: Counters | None = None,
        approvals: bool = False,
        adapters: Mapping[str, Any] | None = None,
    ) -> Runtime:
        if self._runtime is not None:
            self._runtime.close()
        serving().stop()
        store = JsonlSink(self.folder / "traces")
        self.sink = FailingSink(store)
        decides = Runtime(
            Atlas.from_dict(ATLAS if adapters is None else {**ATLAS, "adapters": adapters}),
            trace=self.sink,
            approver=approver,
            counters=counters,
            approvals=self.folder / "approvals.db" if approvals else None,
        )
        serving().begin(decides, store, self.folder)
        self._runtime = Runtime.connect(serving().url, timeout_seconds=30)
        return self._runtime

    def evidence(self) -> Evidence:
        """What the traces say, once the server was told how calls came out: another thread does that."""
        if isinstance(self._runtime, RemoteRuntime):
            for name in self._runtime._sessions._open.ids():
                session = self._runtime._sessions._open.get(name)
                assert session is not None
                session.flush()
        return super().evidence()
