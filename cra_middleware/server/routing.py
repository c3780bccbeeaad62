"""How a request is heard: its body read within limits, its caller known, its rule asked, its work done in a thread."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple
from urllib.parse import urlsplit

import orjson
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import Route

from cra_middleware.server.access import Caller, Guard, Role
from cra_middleware.server.faults import Fault, StoreError, fault_of
from cra_middleware.server.lingering import Lingering
from cra_middleware.server.lobby import Lobby

PUBLIC = None
"""The rule of an endpoint that everybody may use."""
Rule = frozenset[Role] | None

_logger = logging.getLogger("cra_middleware.server")
_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
_NOBODY = Caller("anyone", "", frozenset())
_WHO_SECONDS = 2.0
"""How long it may take to find out who asks for what everybody may read; then it is told as to anybody."""
_PUBLIC_SECONDS = 10.0
_SMALL_BYTES = 64 * 1024
_OF_PROXIES = ("x-forwarded-for", "x-forwarded-host", "forwarded", "x-real-ip", "via")
_LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")


class Limits(NamedTuple):
    """What a request may be, and how many go on."""

    body_bytes: int = 1024 * 1024
    upload_bytes: int = 16 * 1024 * 1024
    depth: int = 64
    body_seconds: float = 20.0
    streams: int = 64
    """Streams of one caller that are open at once."""


class Ask(NamedTuple):
    """One request, heard."""

    caller: Caller
    path: Mapping[str, str]
    query: Mapping[str, str]
    headers: Mapping[str, str]
    data: bytes
    limits: Limits

    def json(self, *, optional: bool = False) -> dict[str, object]:
        """The body, an object.

        Raises:
            Fault: when it is none that can be read in one way only.
        """
        if optional and not self.data:
            return {}
        if self.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Fault("UNSUPPORTED_MEDIA_TYPE", "the body is application/json")
        return read_json(self.data, self.limits.depth)

    def whole_number(self, name: str, default: int | None, least: int, most: int) -> int | None:
        """A number of the query.

        Raises:
            Fault: when it is none, or out of range.
        """
        text = self.query.get(name)
        if text is None:
            return default
        if not (text.isascii() and text.isdigit() and len(text) < 17 and least <= int(text) <= most):
            raise Fault("INVALID_CARP_REQUEST", f"{name} is a whole number from {least} to {most}")
        return int(text)

    def word(self, name: str, default: str, known: tuple[str, ...]) -> str:
        """A word of the query.

        Raises:
            Fault: when it is none of those known.
        """
        text = self.query.get(name, default)
        if text not in known:
            raise Fault("INVALID_CARP_REQUEST", f"{name} is one of {', '.join(known)}")
        return text


class Said(NamedTuple):
    """What is answered."""

    status: int = 200
    body: object = None
    """JSON, or bytes as they are."""
    headers: Mapping[str, str] = {}
    media_type: str = "application/json"


Work = Callable[[Ask], Said]


class Routes:
    """Collects the endpoints of one server; there is no way in without a rule."""

    def __init__(self, guard: Guard, limits: Limits, workers: int) -> None:
        """``workers`` threads do what blocks; what comes with a large body has a quarter as many of its own: it takes
        so long to read that others would wait for all of them."""
        self.guard = guard
        self.limits = limits
        self.pool = ThreadPoolExecutor(workers, thread_name_prefix="cra-server")
        self._slow_pool = ThreadPoolExecutor(max(1, workers // 4), thread_name_prefix="cra-server-large")
        self._lobby = Lobby()
        self.made: list[Route] = []

    def close(self) -> None:
        """Wait for what is being done; nothing more is."""
        self._slow_pool.shutdown(wait=True)
        self.pool.shutdown(wait=True)

    def add(self, method: str, path: str, rule: Rule, work: Work, *, upload: bool = False) -> None:
        """Do ``work`` for whom ``rule`` lets in: one of its roles, an admin always."""
        most = self.limits.upload_bytes if upload else self.limits.body_bytes

        async def endpoint(request: Request) -> Response:
            return await self._answer(request, rule, work, most)

        endpoint.__dict__["cra_rule"] = rule
        self.made.append(Route(path, endpoint, methods=[method], name=f"{method} {path}"))

    def enter(self, connection: HTTPConnection, rule: Rule) -> Caller:
        """Who it is, when the rule lets them in. Blocks.

        Raises:
            Fault: when it does not.
        """
        check_origin(connection, self.guard.is_open)
        address = connection.client.host if connection.client is not None else ""
        if rule is PUBLIC:
            try:
                return self.guard.caller(connection.headers, address)
            except (Fault, StoreError):  # health is told also while nobody can be known
                return _NOBODY
        caller = self.guard.caller(connection.headers, address)
        if not caller.is_any(*rule):
            raise Fault("FORBIDDEN", f"this needs the role {' or '.join(sorted(rule))}")
        return caller

    async def _answer(self, request: Request, rule: Rule, work: Work, most: int) -> Response:
        data: bytes | None = None
        try:
            loop, known = asyncio.get_running_loop(), None
            if _is_large(request):  # nobody whom we do not know sends us much
                known = await loop.run_in_executor(self.pool, self.enter, request, rule)
            data = b"" if request.method == "GET" else await self.body(request, most)

            def act() -> Said:
                caller = known or self.enter(request, rule)
                return work(Ask(caller, request.path_params, request.query_params, request.headers, data, self.limits))

            if rule is PUBLIC:
                said = await self._public(request, work)
            else:
                said = await loop.run_in_executor(self.pool if len(data) <= _SMALL_BYTES else self._slow_pool, act)
        except ClientDisconnect:
            return Response(status_code=499)
        except Exception as error:  # the border: whatever it was, the client is told in our words
            fault = fault_of(error)
            if fault.code == "INTERNAL_ERROR":
                _logger.exception("a request could not be answered")
            elif fault.http_status >= 500:
                _logger.error("%s %s: %s", request.method, request.url.path, error)
            said = said_of(fault, request.headers.get("x-request-id"))
        return respond(said, is_unread=data is None)

    async def _public(self, request: Request, work: Work) -> Said:
        """What everybody may read, also while all that is asked of the stores waits for them."""
        try:
            caller = await self._lobby.ask(partial(self.enter, request, PUBLIC), _WHO_SECONDS)
        except TimeoutError:
            caller = _NOBODY
        ask = Ask(caller, request.path_params, request.query_params, request.headers, b"", self.limits)
        try:
            return await self._lobby.ask(partial(work, ask), _PUBLIC_SECONDS)
        except TimeoutError:
            raise Fault("UNAVAILABLE", "too many wait for what says nothing", recoverable=True) from None

    async def body(self, request: Request, most: int) -> bytes:
        """What was sent, read within the limits.

        Raises:
            Fault: when it is more than ``most`` bytes, or comes too slowly.
        """
        length = request.headers.get("content-length", "0")
        if length.isdigit() and int(length[:20]) > most:
            raise Fault("PAYLOAD_TOO_LARGE", f"a body has at most {most} bytes")
        parts, size = list[bytes](), 0
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                async for part in request.stream():
                    size += len(part)
                    if size > most:
                        raise Fault("PAYLOAD_TOO_LARGE", f"a body has at most {most} bytes")
                    parts.append(part)
        except TimeoutError:
            message = f"the body did not come in {self.limits.body_seconds:g} seconds"
            raise Fault("REQUEST_TIMEOUT", message, recoverable=True) from None
        return b"".join(parts)


def _is_large(request: Request) -> bool:
    length = request.headers.get("content-length", "")
    return "transfer-encoding" in request.headers or (length.isdigit() and int(length[:20]) > _SMALL_BYTES)


def said_of(fault: Fault, request_id: str | None) -> Said:
    """What is answered when something is not done."""
    headers = retry_after(fault.retry_after_seconds)
    if fault.http_status == 401:
        headers["www-authenticate"] = "Bearer"
    return Said(fault.http_status, fault.body(None if request_id is None else request_id[:100]), headers)


def retry_after(seconds: float | None) -> dict[str, str]:
    """The header that says when to ask again: in whole seconds, at least one; none where that is not known."""
    return {} if seconds is None else {"retry-after": str(max(1, math.ceil(seconds)))}


def respond(said: Said, is_unread: bool = False) -> Response:
    """The answer on the wire; the connection ends with it where the request ``is_unread``, for what still comes of it
    must not be taken for the next one."""
    headers = {**_HEADERS, **said.headers, **({"connection": "close"} if is_unread else {})}
    if said.body is None:
        return Response(status_code=said.status, headers=headers)
    content = said.body if isinstance(said.body, bytes) else _json(said.body)
    return (Lingering if is_unread else Response)(content, said.status, headers, said.media_type)


def _json(value: object) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:  # a whole number of more than 64 bits, in somebody's schema
        return json.dumps(value).encode()


def check_origin(connection: HTTPConnection, is_open: bool) -> None:
    """Keep web pages of others out: a browser sends its user's cookies, and reaches what listens on loopback.

    Raises:
        Fault: when the request comes from a page of another site, under a name that is not ours, or by a proxy where
            nobody is asked who they are.
    """
    host, origin = connection.headers.get("host", ""), connection.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
        raise Fault("FORBIDDEN", "this server answers no other site's pages")
    if is_open and urlsplit(f"//{host}").hostname not in _LOCAL_HOSTS:
        raise Fault("FORBIDDEN", "without keys this server answers to localhost only")
    if is_open and any(name in connection.headers for name in _OF_PROXIES):  # its clients are not on this machine
        raise Fault("FORBIDDEN", "without keys this server answers to no proxy: make a key (cra apikeys create)")


def read_json(data: bytes, depth: int) -> dict[str, object]:
    """An object, read in the one way it can be read.

    Raises:
        Fault: when it is none.
    """
    try:
        text = data.decode()
        value: object = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
        if data.count(b"{") + data.count(b"[") > depth and _is_deeper(value, depth):
            raise RecursionError
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half a letter is none
    except RecursionError:  # of ours, or of who reads it
        raise Fault("INVALID_CARP_REQUEST", f"the body cannot be read: nested more than {depth} deep") from None
    except ValueError as error:
        why = "not JSON" if isinstance(error, json.JSONDecodeError | UnicodeError) else str(error)
        raise Fault("INVALID_CARP_REQUEST", f"the body cannot be read: {why}") from None
    if not isinstance(value, dict):
        raise Fault("INVALID_CARP_REQUEST", "the body is a JSON object")
    return value


def _is_deeper(value: object, most: int) -> bool:
    """Whether lists and objects are nested more than ``most`` deep."""
    level: list[object] = [value]
    for _ in range(most):
        level = [
            child
            for item in level
            for child in (item.values() if isinstance(item, dict) else item if isinstance(item, list) else ())
            if isinstance(child, (dict, list))
        ]
    return bool(level)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")
