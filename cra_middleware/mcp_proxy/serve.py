"""Runs the proxy: the client's lines in, the server's lines out, until one of them ends."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from cra_middleware.mcp_proxy.gate import Gate
from cra_middleware.mcp_proxy.relay import Relay, RelayTerms
from cra_middleware.mcp_proxy.stdio import Deliver, ServerError, StandardInput, StandardOutput

GRACE_SECONDS = 1.0
"""How long each step of an end may take: answers that are under way, a server that was told to end."""


class Server(Protocol):
    """Whatever carries messages to a server and back."""

    async def start(self) -> None:
        """Reach it."""
        ...

    async def run(self, deliver: Deliver, /) -> None:
        """Deliver every line until it gives no more."""
        ...

    def write(self, line: bytes, /) -> None:
        """Send a line; nothing is waited for."""
        ...

    async def drain(self) -> None:
        """Wait until it has taken most of what was written."""
        ...

    async def why(self) -> str:
        """Why it gives no more."""
        ...

    async def close(self, grace_seconds: float, /) -> None:
        """End it."""
        ...


async def serve(
    server: Server, gate: Gate, terms: RelayTerms, warn: Callable[[str], None], fds: tuple[int, int]
) -> int:
    """Relay between ``server`` and the client at ``fds`` (its output, its input), until one of them ends.

    Returns the exit code: 0 when the client left, 1 when the server ended before, 2 when it could not be started.
    """
    stop = _stop_signals()
    out = StandardOutput(fds[1])
    try:
        await server.start()
    except ServerError as error:
        warn(str(error))
        await out.close(GRACE_SECONDS)
        return 2
    relay = Relay(gate, out, server, terms, warn)
    reading = asyncio.create_task(StandardInput(fds[0]).run(relay.from_client))
    answering = asyncio.create_task(server.run(relay.from_server))
    stopping = asyncio.create_task(stop.wait())
    everything = (reading, answering, stopping)
    try:
        await asyncio.wait(everything, return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            return await _server_ended(server, gate, relay, answering, warn)
        if reading.done():
            reading.result()
        await relay.finish(0 if stopping.done() else GRACE_SECONDS)
        gate.end("cancelled" if stopping.done() else "completed")
        return 0
    finally:
        gate.end("error", "ProxyFailed")  # does nothing after an end
        await server.close(GRACE_SECONDS)
        for task in everything:
            task.cancel()
        await asyncio.gather(*everything, return_exceptions=True)
        await out.close(GRACE_SECONDS)


async def _server_ended(
    server: Server, gate: Gate, relay: Relay, answering: asyncio.Task[None], warn: Callable[[str], None]
) -> int:
    failure = answering.exception()
    why = await server.why() if failure is None else str(failure)
    warn(why)
    relay.server_gone(why)
    await relay.settled()
    gate.end("error", "ServerGone")
    return 1


def _stop_signals() -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    with suppress(NotImplementedError, RuntimeError, ValueError):  # none on this platform, or not in the main thread
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # a side that has gone must not end us before its calls are told
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
    return stop
