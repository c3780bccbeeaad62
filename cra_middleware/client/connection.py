"""One server, as its client hears it: connections kept, time limited, what may be asked again asked again.

What is no answer of such a server (a redirect, a balancer's page, a broken body) counts as none. A key goes into a
header and nowhere else: into no message, no address and no log.
"""

from __future__ import annotations

import logging
import random
import ssl
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx
import orjson

from cra_middleware._fork import tell_child
from cra_middleware.errors import RuntimeUnreachable

MAX_ANSWER_BYTES = 64 * 1024 * 1024
_TRIES = 4
_FIRST_PAUSE_SECONDS = 0.05
_CONNECT_SECONDS = 3.0
_LIMITS = httpx.Limits(max_connections=128, max_keepalive_connections=64, keepalive_expiry=30.0)
_MAY_PASS = frozenset({"STORAGE_LOCKED", "IO_ERROR", "UNAVAILABLE", "REQUEST_TIMEOUT", "IDEMPOTENCY_CONFLICT"})
"""What a server says when the same request may be answered a moment later."""

_logger = logging.getLogger("cra_middleware")


class Problem(NamedTuple):
    """Why a server did not do what it was asked."""

    code: str
    message: str
    recoverable: bool
    retry_after_seconds: float | None
    details: Mapping[str, object]


class Reply(NamedTuple):
    """What a server answered."""

    status: int
    headers: Mapping[str, str]
    data: bytes
    problem: Problem | None = None

    def json(self) -> dict[str, object]:
        """The body.

        Raises:
            RuntimeUnreachable: when it is no object.
        """
        found = _object(self.data)
        if found is None:
            raise RuntimeUnreachable("the server's answer cannot be read")
        return found


class Connection:
    """Safe under threads; a forked child gets connections of its own."""

    def __init__(
        self, url: str, api_key: str | None = None, *, timeout_seconds: float = 10.0, ca_file: str | Path | None = None
    ) -> None:
        """Connect when there is something to ask.

        Args:
            url: where the server is: ``https://cra.example:8420``.
            api_key: who we are.
            timeout_seconds: how long one question may take, with everything that is tried for it.
            ca_file: whom to trust, instead of the authorities that the system knows.

        Raises:
            ValueError: when an argument is not usable.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("the server's url begins with https:// or http:// and a host")
        if parts.username is not None or parts.password is not None:
            raise ValueError("a url holds no password: it would be logged; use api_key")
        if timeout_seconds <= 0:
            raise ValueError("timeout_seconds must be more than nothing")
        if api_key is not None and not (api_key.isascii() and api_key.isprintable() and api_key.strip()):
            raise ValueError("the api_key is not one that can be sent")
        self.url = url.rstrip("/")
        self._timeout = timeout_seconds
        self._headers = {} if api_key is None else {"x-api-key": api_key}
        self._verify = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
        self._client = self._connected()
        if api_key is not None and parts.scheme == "http" and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
            _logger.warning("the key for %s is sent in the clear: use https", self.url)
        tell_child(self)

    def __repr__(self) -> str:
        return f"Connection({self.url!r})"

    def forked(self) -> None:
        """In a forked child: the sockets are the parent's."""
        self._client = self._connected()

    def ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | bytes | None = None,
        *,
        query: dict[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        again: bool = True,
    ) -> Reply:
        """Ask once, and again where no answer came and ``again`` says that asking twice does no harm.

        Raises:
            RuntimeUnreachable: when no answer came in time.
            TypeError: when ``body`` is no JSON.
        """
        data = body if isinstance(body, bytes) or body is None else orjson.dumps(body)
        sent = {"content-type": "application/json", **(headers or {})} if data is not None else dict(headers or {})
        until = time.monotonic() + self._timeout
        why = "it did not answer in time"
        for turn in range(_TRIES):
            left = until - time.monotonic()
            if left <= 0:
                break
            pause = _FIRST_PAUSE_SECONDS * 4**turn * random.uniform(0.5, 1.0)
            try:
                reply = self._once(method, path, data, query, sent, left)
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:  # it heard nothing of it
                why = _why(error)
            except (httpx.TransportError, httpx.DecodingError) as error:
                why = _why(error)
                if not again:
                    break
            else:
                if reply is not None and (not again or not _may_pass(reply) or turn == _TRIES - 1):
                    return reply
                if reply is None:
                    why = "what answers there is no server of ours"
                    if not again:
                        break
                elif reply.problem is not None:
                    why = reply.problem.message
                    pause = max(pause, reply.problem.retry_after_seconds or 0.0)
            if turn == _TRIES - 1 or time.monotonic() + pause >= until:
                break
            time.sleep(pause)
        raise RuntimeUnreachable(f"the server that decides is not to be reached ({why})")

    def close(self) -> None:
        """Let go of the connections. What is asked later gets one of its own: traces are read after the end, too."""
        self._client.close()

    def _connected(self) -> httpx.Client:
        return httpx.Client(
            base_url=self.url,
            headers=self._headers,
            verify=self._verify,
            trust_env=False,  # a proxy or a netrc of the environment's would be told the key
            follow_redirects=False,
            limits=_LIMITS,
        )

    def _once(
        self,
        method: str,
        path: str,
        data: bytes | None,
        query: dict[str, str] | None,
        headers: Mapping[str, str],
        left: float,
    ) -> Reply | None:
        """One try; None when what came is no answer of a server of ours."""
        timeout = httpx.Timeout(left, connect=min(left, _CONNECT_SECONDS))
        with self._connected() if self._client.is_closed else nullcontext(self._client) as client:
            response = client.request(method, path, content=data, params=query, headers=headers, timeout=timeout)
        status, answered = response.status_code, response.content
        if len(answered) > MAX_ANSWER_BYTES:
            return None
        if status < 300 or status == 304:
            return Reply(status, response.headers, answered)
        problem = problem_in(answered, response.headers.get("retry-after"))
        return None if problem is None else Reply(status, response.headers, answered, problem)


def segment(text: str) -> str:
    """A text as one part of a path."""
    return "".join(letter if letter.isascii() and (letter.isalnum() or letter in "-_.~") else "_" for letter in text)


def _may_pass(reply: Reply) -> bool:
    return reply.problem is not None and reply.problem.recoverable and reply.problem.code in _MAY_PASS


def problem_in(data: bytes, retry_after: str | None = None) -> Problem | None:
    """The error that a body tells of, if it does."""
    body = _object(data)
    error = None if body is None else body.get("error")
    if not isinstance(error, dict) or not isinstance(error.get("code"), str):
        return None
    details = error.get("details")
    known = details if isinstance(details, dict) else {}
    seconds = known.get("retry_after_seconds")
    if not isinstance(seconds, (int, float)):
        seconds = float(retry_after) if retry_after is not None and retry_after.isdigit() else None
    message = str(error.get("message", ""))[:10_000]
    return Problem(error["code"], message, error.get("recoverable") is True, seconds, known)


def _object(data: bytes) -> dict[str, object] | None:
    try:
        found = orjson.loads(data)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _why(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
