"""A TCP proxy that loses an answer, cuts a connection, or keeps it open and says nothing, whenever it is told to."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress


class CuttingProxy:
    """Forwards to one server; an answer that is lost takes its connection with it."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.lost = self.taken = 0
        self._to_lose = self._to_pass = 0
        self._lock = threading.Lock()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self.held = threading.Event()
        """Set when an answer is held back."""
        self._flow = threading.Event()  # of connections that are made now
        self._flow.set()
        self._hushed: list[threading.Event] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def lose(self, answers: int) -> None:
        """The next ones."""
        with self._lock:
            self._to_lose, self._to_pass = answers, 0

    def lose_after(self, answers: int | None) -> None:
        """The one after that many; None: no more."""
        with self._lock:
            self._to_lose, self._to_pass = (0, 0) if answers is None else (1, answers)

    def hush(self, *, new: bool = True) -> None:
        """Let requests through on every connection there is, and no answers; so on ``new`` ones, or these work."""
        self.held.clear()
        self._hushed.append(self._flow)
        self._flow.clear()
        if not new:
            self._flow = threading.Event()
            self._flow.set()

    def speak(self) -> None:
        """Answers flow again, those that were held back first."""
        while self._hushed:
            self._hushed.pop().set()

    def cut(self) -> None:
        """Every connection there is."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            _end(*pair)

    def close(self) -> None:
        """Take no more."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        self.speak()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            with self._lock:
                self._pairs.append((client, server))
                self.taken += 1
            threading.Thread(target=self._pump, args=(client, server, None), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client, self._flow), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, answers: threading.Event | None) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if answers is not None and self._is_lost():
                    break
                if answers is not None and not answers.is_set():
                    self.held.set()
                    answers.wait()
                target.sendall(data)
        _end(source, target)

    def _is_lost(self) -> bool:
        with self._lock:
            if self._to_lose == 0:
                return False
            if self._to_pass:
                self._to_pass -= 1
                return False
            self._to_lose -= 1
            self.lost += 1
            return True


def _end(*ends: socket.socket) -> None:
    for end in ends:
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
