"""Lines over pipes: this process's own stdin and stdout, and a server that is started as a child.

stdin and stdout are read and written in threads: they may be files or terminals, which an event loop cannot wait for,
and must not be made non-blocking for whoever shares them.
"""

from __future__ import annotations

import asyncio
import os
import queue
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from cra_middleware.mcp_proxy.messages import LineSplitter

Deliver = Callable[[bytes | None], Awaitable[None]]
"""Takes one line; None stands for one that was too long."""

_CHUNK = 1 << 16
_HIGH_WATER = 1 << 24
"""Bytes that may wait to be written before whoever sends more has to wait."""


class ServerError(Exception):
    """The server cannot be reached or started; the message says why."""


class StandardInput:
    """The client's lines, from a file descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    async def run(self, deliver: Deliver) -> None:
        """Deliver every line until the client closes its end."""
        loop = asyncio.get_running_loop()
        lines: asyncio.Queue[list[bytes | None] | None] = asyncio.Queue()
        room = threading.Semaphore(64)

        def read() -> None:
            splitter = LineSplitter()
            with suppress(OSError, RuntimeError):  # the pipe broke, or the loop is closed: the same as an end
                while data := os.read(self._fd, _CHUNK):
                    found = splitter.feed(data)
                    if found:
                        room.acquire()
                        loop.call_soon_threadsafe(lines.put_nowait, found)
                rest = splitter.rest()
                if rest:
                    found = [rest]
                    loop.call_soon_threadsafe(lines.put_nowait, found)
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(lines.put_nowait, None)

        threading.Thread(target=read, name="cra-mcp-stdin", daemon=True).start()
        while (found := await lines.get()) is not None:
            room.release()
            for line in found:
                await deliver(line)


class StandardOutput:
    """Lines to the client, to a file descriptor."""

    def __init__(self, fd: int) -> None:
        """Write to ``fd`` from now on; made inside the running loop."""
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._held = 0
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._thread = threading.Thread(target=self._work, name="cra-mcp-stdout", daemon=True)
        self._thread.start()

    def write(self, line: bytes) -> None:
        with self._lock:
            self._held += len(line)
            if self._held > _HIGH_WATER:
                self._has_room.clear()
        self._lines.put(line)

    async def drain(self) -> None:
        await self._has_room.wait()

    async def close(self, seconds: float) -> None:
        """Wait until everything is written, but not for a client that reads nothing any more."""
        self._lines.put(None)
        await asyncio.to_thread(self._thread.join, seconds)

    def _work(self) -> None:
        is_broken = False
        while (line := self._lines.get()) is not None:
            if not is_broken:
                try:
                    _write_all(self._fd, line + b"\n")
                except OSError:  # the client reads no more; it will close its other end, too
                    is_broken = True
            with self._lock:
                self._held -= len(line)
                is_low = self._held <= _HIGH_WATER
            if is_low and not self._has_room.is_set():
                with suppress(RuntimeError):  # the loop is closed
                    self._loop.call_soon_threadsafe(self._has_room.set)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def take_stdout() -> int:
    """A private copy of stdout; whatever else is printed goes to stderr, and not between the messages."""
    sys.stdout.flush()
    private = os.dup(1)
    os.dup2(2, 1)
    return private


class ServerProcess:
    """A server that is a child process, in a group of its own; its stderr is ours."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)
        self._process: asyncio.subprocess.Process | None = None
        self._too_long = False

    async def start(self) -> None:
        """Start it.

        Raises:
            ServerError: when it cannot be started.
        """
        pipe = asyncio.subprocess.PIPE
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdin=pipe, stdout=pipe, start_new_session=True
            )
        except (OSError, ValueError) as error:
            raise ServerError(f"the MCP server {self._command[0]!r} cannot be started: {error}") from None

    async def run(self, deliver: Deliver) -> None:
        """Deliver every line until it closes its stdout. A line that is too long ends the connection."""
        stream = self._running().stdout
        assert stream is not None
        splitter = LineSplitter()
        while data := await stream.read(_CHUNK):
            for line in splitter.feed(data):
                if line is None:
                    self._too_long = True
                    return
                await deliver(line)
        if rest := splitter.rest():
            await deliver(rest)

    def write(self, line: bytes) -> None:
        stdin = self._running().stdin
        if stdin is not None and not stdin.is_closing():
            stdin.write(line + b"\n")

    async def drain(self) -> None:
        stdin = self._running().stdin
        if stdin is not None:
            with suppress(OSError):  # it has ended: its stdout says so, too
                await stdin.drain()

    def close_input(self) -> None:
        """Tell it that no more comes, which is how a server is asked to end."""
        stdin = self._running().stdin
        if stdin is not None:
            stdin.close()

    async def why(self) -> str:
        """Why it gives no more answers."""
        if self._too_long:
            return "the MCP server sent a line that is too long"
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                code = await self._running().wait()
                return f"the MCP server ended with exit code {code}"
        return "the MCP server closed its output"

    async def close(self, grace_seconds: float) -> None:
        """End it: by closing its input, then by SIGTERM, then by SIGKILL to its whole group."""
        process = self._running()
        self.close_input()
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(TimeoutError):
                async with asyncio.timeout(grace_seconds):
                    await process.wait()
                    return
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        with suppress(TimeoutError):  # somebody outside its group may still hold its output
            async with asyncio.timeout(grace_seconds):
                await process.wait()

    def _running(self) -> asyncio.subprocess.Process:
        assert self._process is not None, "start() comes first"
        return self._process
