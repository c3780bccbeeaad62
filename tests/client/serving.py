"""A real server in a thread of this process, over real sockets, for one runtime after the other."""

from __future__ import annotations

import threading
from functools import cache
from pathlib import Path
from typing import Any

import uvicorn

from cra_middleware import Runtime
from cra_middleware._clock import SystemClock
from cra_middleware.server.access import Guard
from cra_middleware.server.app import create_app
from cra_middleware.server.host import Host
from cra_middleware.server.sqlite_book import SqliteBook
from cra_middleware.trace.sink import TraceStore
from tests.client.served import listen


class Serving:
    """Listens as long as the process lives."""

    def __init__(self) -> None:
        self._socket = listen()
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._app: Any = None
        config = uvicorn.Config(
            self._answer, log_level="error", access_log=False, ws="none", lifespan="off", interface="asgi3"
        )
        server = uvicorn.Server(config)
        threading.Thread(target=server.run, kwargs={"sockets": [self._socket]}, daemon=True).start()

    def begin(self, decides: Runtime, store: TraceStore, folder: Path) -> None:
        """From now on ``decides`` does, which writes to ``store``."""
        self.stop()
        host = Host(decides, store, SqliteBook(folder / "book.db"))
        self._app = create_app(host, Guard(None, None, SystemClock().wall_us))

    def stop(self) -> None:
        """End what answers, as an operator does: what it has open is flushed and let go of."""
        if self._app is None:
            return
        service, self._app = self._app.state.cra, None
        service.stopping.set()
        service.routes.close()
        service.host.close()

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        app = self._app
        if app is None:
            raise ConnectionError("nobody answers")
        await app(scope, receive, send)


@cache
def serving() -> Serving:
    """The one of this process."""
    return Serving()
