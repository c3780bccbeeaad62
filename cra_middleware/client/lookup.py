"""Names are looked up in time: what the system does about a name cannot be interrupted, and may take half a minute.

A lookup that takes longer goes on in a thread of its own; who wants the same host meanwhile waits for that one.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
from concurrent.futures import Future

from cra_middleware._fork import tell_child


class Lookups:
    """Safe under threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: dict[tuple[str, int], Future[list[str]]] = {}
        tell_child(self)

    def forked(self) -> None:
        """In a forked child: the threads are the parent's."""
        self._lock = threading.Lock()
        self._under_way = {}

    def addresses(self, host: str, port: int, seconds: float | None) -> list[str]:
        """The addresses of a host, in the order in which the system wants them tried.

        Raises:
            TimeoutError: when that takes longer.
            OSError: when there are none.
        """
        try:
            return [str(ipaddress.ip_address(host))]
        except ValueError:
            pass
        with self._lock:
            found = self._under_way.get((host, port))
            if found is None:
                found = self._under_way[host, port] = Future()
                arguments = (found, host, port)
                threading.Thread(target=self._look_up, args=arguments, name="cra-lookup", daemon=True).start()
        return found.result(seconds)

    def _look_up(self, found: Future[list[str]], host: str, port: int) -> None:
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found.set_result(list(dict.fromkeys(str(info[4][0]) for info in infos)))
        except (OSError, UnicodeError) as error:
            found.set_exception(error if isinstance(error, OSError) else OSError(str(error)))
        finally:
            with self._lock:
                self._under_way.pop((host, port), None)
