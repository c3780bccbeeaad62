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
from cra_middleware.client.deadline import DeadlineTransport
from cra_middleware.errors import RuntimeUnreachable

MAX_ANSWER_BYTES = 64 * 1024 * 1024
_TRIES = 4
_FIRST_PAUSE_SECONDS = 0.05
_CONNECT_SECONDS = 3.0
_LIMITS = httpx.Limits(max_connections=128, max_keepalive_connections=64, keepalive_expiry=30.0)
_MAY_PASS = frozenset({"STORAGE_LOCKED", "IO_ERROR", "UNAVAILABLE", "REQUEST_TIMEOUT", "IDEMPOTENCY_CONFLICT"})
"""What a server says when the same request may be answered a moment later."""

_OF_ANY_KEY = ("/v1/execute", "/v1/resolve")
"""What an agent's key may ask of its own sessions as long as it counts."""

_NOBODY_BEHIND = (502, 503, 504)
"""What a balancer says by itself when there is no server behind it that answers."""

_logger = logging.getLogger("cra_middleware")


class ServerAway(RuntimeUnreachable):
    """Nobody was there: no connection, no answer in time, or a balancer that has nobody behind it.

    Any other answer was given by somebody, who may have meant a no, or by a server that cannot decide now.
    """


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
            api_key: who we are: a key of the server's, or a bearer token of an identity provider.
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
        self.turned_away = float("-inf")
        """When (``time.monotonic``) a server said that our key counts no more; what it had allowed it would not now."""
        self._timeout = timeout_seconds
        self._headers = {} if api_key is None else _named(api_key)
        self._verify = _trusted(parts.scheme, ca_file)
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
            RuntimeUnreachable: when no answer of the server's came in time; ``ServerAway`` when it is not there.
            TypeError: when ``body`` is no JSON.
        """
        data = body if isinstance(body, bytes) or body is None else orjson.dumps(body)
        sent = {"content-type": "application/json", **(headers or {})} if data is not None else dict(headers or {})
        until = time.monotonic() + self._timeout
        why, is_away, last = "it did not answer in time", True, None
        for turn in range(_TRIES):
            left = until - time.monotonic()
            if left <= 0:
                break
            pause = _FIRST_PAUSE_SECONDS * 4**turn * random.uniform(0.5, 1.0)
            try:
                reply = self._once(method, path, data, query, sent, left)
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:  # it heard nothing of it
                why, is_away, last = _why(error), True, None
            except httpx.TransportError as error:
                why, is_away, last = _why(error), True, None
                if not again:
                    break
            except httpx.DecodingError as error:
                why, is_away, last = _why(error), False, None
                if not again:
                    break
            else:
                if isinstance(reply, Reply) and (not again or not _may_pass(reply)):
                    return reply
                if isinstance(reply, Reply):
                    last = reply
                    wait = None if reply.problem is None else reply.problem.retry_after_seconds
                    pause = max(pause, (wait or 0.0) * random.uniform(1.0, 1.5))  # others were told the same
                else:
                    why, is_away, last = "what answers there is no server of ours", reply in _NOBODY_BEHIND, None
                    if not again:
                        break
            if turn == _TRIES - 1 or time.monotonic() + pause >= until:
                break
            time.sleep(pause)
        if last is not None:  # it is there, and this is what it says
            return last
        raise (ServerAway if is_away else RuntimeUnreachable)(f"the server that decides is not to be reached ({why})")

    def close(self) -> None:
        """Let go of the connections. What is asked later gets one of its own: traces are read after the end, too."""
        self._client.close()

    def _connected(self) -> httpx.Client:
        return httpx.Client(
            base_url=self.url,
            headers=self._headers,
            transport=DeadlineTransport(self._verify, _LIMITS),
            trust_env=False,  # a proxy or a netrc of the environment's would be told the key
            follow_redirects=False,
        )

    def _once(
        self,
        method: str,
        path: str,
        data: bytes | None,
        query: dict[str, str] | None,
        headers: Mapping[str, str],
        left: float,
    ) -> Reply | int:
        """One try; the status alone when what came is no answer of a server of ours."""
        now = time.monotonic()
        timeout = httpx.Timeout(now + left, connect=now + min(left, _CONNECT_SECONDS), pool=left)  # see deadline.py
        parts, size = list[bytes](), 0
        with (
            self._connected() if self._client.is_closed else nullcontext(self._client) as client,
            client.stream(method, path, content=data, params=query, headers=headers, timeout=timeout) as response,
        ):
            for part in response.iter_bytes():
                size += len(part)
                if size > MAX_ANSWER_BYTES:
                    return response.status_code
                parts.append(part)
        status, answered = response.status_code, b"".join(parts)
        if status < 300 or status == 304:
            return Reply(status, response.headers, answered)
        problem = problem_in(answered, response.headers.get("retry-after"))
        if problem is None:
            return status
        if _turns_away(problem, path):
            self.turned_away = time.monotonic()
        return Reply(status, response.headers, answered, problem)


def _named(api_key: str) -> dict[str, str]:
    """The header that says who we are; a JSON web token is three parts, the first of which begins so."""
    if api_key.startswith("eyJ") and api_key.count(".") == 2:
        return {"authorization": f"Bearer {api_key}"}
    return {"x-api-key": api_key}


def _trusted(scheme: str, ca_file: str | Path | None) -> ssl.SSLContext:
    if scheme == "http" and ca_file is None:  # no certificate is shown, and reading the system's takes long
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # it trusts nobody
    try:
        return ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    except OSError as error:  # of which ssl.SSLError is one
        if ca_file is None:
            raise
        raise ValueError(f"ca_file {ca_file} cannot be used: {error.strerror or error}") from error


def segment(text: str) -> str:
    """A text as one part of a path."""
    return "".join(letter if letter.isascii() and (letter.isalnum() or letter in "-_.~") else "_" for letter in text)


def _may_pass(reply: Reply) -> bool:
    return reply.problem is not None and reply.problem.recoverable and reply.problem.code in _MAY_PASS


def _turns_away(problem: Problem, path: str) -> bool:
    """Whether it is our key that is refused, and not this one request."""
    if problem.code == "RATE_LIMIT_EXCEEDED":  # of failed logins, if of no policy: a key that counts is let in
        return "reason_code" not in problem.details
    return problem.code == "UNAUTHORIZED" or (problem.code == "FORBIDDEN" and path in _OF_ANY_KEY)


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
        seconds = float(retry_after) if retry_after is not None and retry_after.isdecimal() else None
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
