"""How a server that runs as a program begins and ends: it says where it listens; it waits for nobody who does not read;
the second signal does not wait at all."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

GRACE_SECONDS = 30
"""How long what is being asked may take once the server was told to stop."""
_STREAM_SECONDS = 3.0
"""How long a listener may take to read the end of its stream then; it hears the rest from the next server."""


class StoppingServer(uvicorn.Server):
    """Stops when SIGTERM or SIGINT comes, and returns; uvicorn's own raises the signal once more, and dies of it."""

    def __init__(self, config: uvicorn.Config, tell: Callable[[str], None]) -> None:
        """``tell`` is told the address, once it is listened on."""
        super().__init__(config)
        self._tell = tell

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say where: not before it is so."""
        await super().startup(sockets)
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        self._tell(f"listens on http://{host}:{self.servers[0].sockets[0].getsockname()[1]}")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End; a connection whose client does not read is cut, for else uvicorn waits for it until it cancels all."""
        call_later, streams = asyncio.get_running_loop().call_later, self.config.ws_protocol_class
        assert streams is not None
        cuts = [
            call_later(_STREAM_SECONDS, self._cut, streams),
            call_later(GRACE_SECONDS - 1, self._cut, asyncio.Protocol),
        ]
        try:
            await super().shutdown(sockets)
        finally:
            for cut in cuts:
                cut.cancel()

    @property
    def has_failed(self) -> bool:
        """Whether the application could not end what it had to end; its log says why."""
        return bool(self.lifespan.should_exit)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop; at once when it was told before."""
        if self.should_exit:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        self.should_exit = True

    def _cut(self, kind: type[asyncio.Protocol]) -> None:
        for connection in list(self.server_state.connections):
            if isinstance(connection, kind):
                connection.transport.abort()
