"""One deadline for a whole question: however slowly a peer answers, byte by byte, no wait goes beyond it.

httpx's timeouts are one wait each, and a peer that sends a byte now and then makes any number of them. Over this
transport the timeouts that are given for connecting, reading and writing are moments of ``time.monotonic``.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterable

import httpcore
import httpx

from cra_middleware.client.lookup import Lookups

_PIECE_BYTES = 64 * 1024
"""How much is sent between two looks at the clock."""

_lookups = Lookups()


class DeadlineTransport(httpx.HTTPTransport):
    """As httpx's own, over sockets that know the deadline."""

    def __init__(self, verify: ssl.SSLContext, limits: httpx.Limits) -> None:
        super().__init__(verify, trust_env=False, limits=limits)
        if type(self._pool) is not httpcore.ConnectionPool:  # or the one made here would not be the one that is used
            raise RuntimeError("this version of httpx is not known: its questions would have no deadline")
        self._pool = httpcore.ConnectionPool(
            verify,
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            network_backend=_Backend(),
        )


class _Backend(httpcore.SyncBackend):
    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        try:
            addresses = _lookups.addresses(host, port, _left(timeout, httpcore.ConnectTimeout))
        except TimeoutError as error:
            raise httpcore.ConnectTimeout("its name was not looked up in time") from error
        except OSError as error:
            raise httpcore.ConnectError(str(error)) from error
        for after, address in zip(reversed(range(len(addresses))), addresses, strict=True):
            left = _left(timeout, httpcore.ConnectTimeout)
            share = None if left is None else left / (after + 1)  # one that says nothing leaves time for the others
            try:
                return _Stream(super().connect_tcp(address, port, share, local_address, socket_options))
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if not after:
                    raise
        raise httpcore.ConnectError("its name has no address")


class _Stream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner
        self.close = inner.close  # type: ignore[method-assign]
        self.get_extra_info = inner.get_extra_info  # type: ignore[method-assign]

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, _left(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), _PIECE_BYTES):
            self._inner.write(buffer[start : start + _PIECE_BYTES], _left(timeout, httpcore.WriteTimeout))

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = _left(timeout, httpcore.ConnectTimeout)
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, left))


def _left(until: float | None, late: type[httpcore.TimeoutException]) -> float | None:
    """The seconds until a moment.

    Raises:
        httpcore.TimeoutException: when it has passed.
    """
    if until is None:
        return None
    left = until - time.monotonic()
    if left <= 0:
        raise late("the time for the answer is over")
    return left
