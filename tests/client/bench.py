"""The contract's workbench with a server in between: its runtime is one at a server on the same folder."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import uvicorn

from cra_middleware import Atlas, Runtime
from cra_middleware._clock import SystemClock
from cra_middleware.approvals import Approver
from cra_middleware.carp.quota import Counters
from cra_middleware.server.access import Guard
from cra_middleware.server.app import create_app
from cra_middleware.server.host import Host
from cra_middleware.server.sqlite_book import SqliteBook
from cra_middleware.testing.stand_ins import FailingSink
from cra_middleware.testing.workbench import ATLAS, Workbench
from cra_middleware.trace.sinks.jsonl import JsonlSink
from tests.client.served import listen


class _Serving:
    """A real server in a thread, over real sockets."""

    def __init__(self, app: Any) -> None:
        self._socket = listen()
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, ws="none"))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(20)
        self._socket.close()


class RemoteWorkbench(Workbench):
    """As ``Workbench``; approver, counters and the failing sink are the server's."""

    _serving: _Serving | None = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sink.failing = False
        if self._runtime is not None:
            self._runtime.close()
            self._runtime = None
        if self._serving is not None:
            self._serving.stop()
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
        if self._serving is not None:
            self._serving.stop()
        store = JsonlSink(self.folder / "traces")
        self.sink = FailingSink(store)
        decides = Runtime(
            Atlas.from_dict(ATLAS if adapters is None else {**ATLAS, "adapters": adapters}),
            trace=self.sink,
            approver=approver,
            counters=counters,
            approvals=self.folder / "approvals.db" if approvals else None,
        )
        host = Host(decides, store, SqliteBook(self.folder / "book.db"))
        self._serving = _Serving(create_app(host, Guard(None, None, SystemClock().wall_us)))
        self._runtime = Runtime.connect(self._serving.url, timeout_seconds=5)
        return self._runtime
