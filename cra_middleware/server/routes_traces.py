"""Traces: read, verified, streamed, taken over."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import urlencode

import orjson
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from cra_middleware.errors import CRAError
from cra_middleware.server.access import Caller
from cra_middleware.server.archive import Archive, verdict_json
from cra_middleware.server.faults import Fault, fault_of
from cra_middleware.server.routes_sessions import AGENTS, READERS, session_json
from cra_middleware.server.routing import Ask, Routes, Said, respond, said_of
from cra_middleware.server.wire import Note, read_body

NDJSON = "application/x-ndjson"
POLL_SECONDS = 0.25
_BATCH = 500
_REFUSED = 1008
_FULL_SECONDS = 5.0
_CLOSED_SECONDS = 0.1
"""Within this a connection is closed of which everything was sent: how many turns of the loop that takes differs."""


def add_traces(routes: Routes, archive: Archive) -> None:
    """The endpoints of traces."""

    def page(ask: Ask) -> Said:
        session_id = ask.path["session_id"]
        kind = ask.query.get("event_type")
        since, limit = (
            ask.whole_number("since_sequence", None, 0, 2**53),
            ask.whole_number("limit", 100, 1, 1000) or 100,
        )
        found = archive.page(ask.caller, session_id, kind, since, limit + 1)
        lines = found[:limit]
        headers = {}
        if len(found) > limit:  # lines do not show that others follow, and a part would be taken for the whole
            rest = {"since_sequence": orjson.loads(lines[-1])["sequence"], "limit": limit}
            rest |= {} if kind is None else {"event_type": kind}
            headers["link"] = f'</v1/traces/{session_id}?{urlencode(rest)}>; rel="next"'
        if NDJSON in ask.headers.get("accept", ""):
            return Said(200, b"".join(lines), headers, NDJSON)
        events = [orjson.loads(line) for line in lines]
        total = archive.count(session_id)
        told = {"events": events, "session_id": session_id, "total": total, "last_sequence": max(0, total - 1)}
        return Said(200, told, headers)

    def verify(ask: Ask) -> Said:
        return Said(200, verdict_json(archive.verify(ask.caller, ask.path["session_id"])))

    def note(ask: Ask) -> Said:
        archive.note(ask.caller, ask.path["session_id"], read_body(Note, ask.json()))
        return Said(204)

    def upload(ask: Ask) -> Said:
        if ask.headers.get("content-type", "").partition(";")[0].strip().lower() != NDJSON:
            raise Fault("UNSUPPORTED_MEDIA_TYPE", f"the body is {NDJSON}")
        return Said(201, session_json(archive.upload(ask.caller, ask.path["session_id"], ask.data)))

    routes.add("GET", "/v1/traces/{session_id}", READERS, page)
    routes.add("PUT", "/v1/traces/{session_id}", AGENTS, upload, upload=True)
    routes.add("POST", "/v1/traces/{session_id}/verify", READERS, verify)
    routes.add("GET", "/v1/traces/{session_id}/verify", READERS, verify)
    routes.add("POST", "/v1/traces/{session_id}/note", AGENTS, note)


class Stream:
    """``WebSocket /v1/traces/stream?session_id=…&since_sequence=…``: each event as it is kept, until the last."""

    rule = READERS

    def __init__(self, routes: Routes, archive: Archive, is_stopping: Callable[[], bool]) -> None:
        self._routes = routes
        self._archive = archive
        self._is_stopping = is_stopping
        self._open: Counter[str] = Counter()  # only looked at on the loop

    async def serve(self, socket: WebSocket) -> None:
        """Serve one listener."""
        loop, pool = asyncio.get_running_loop(), self._routes.pool
        session_id = socket.query_params.get("session_id", "")
        since = socket.query_params.get("since_sequence")
        after = int(since) if since and since.isascii() and since.isdigit() and len(since) < 17 else None
        try:
            caller = await loop.run_in_executor(pool, self._routes.enter, socket, READERS)
            if not session_id:
                raise Fault("INVALID_CARP_REQUEST", "name the session: ?session_id=…")
            if since is not None and after is None:
                raise Fault("INVALID_CARP_REQUEST", f"since_sequence is a whole number from 0 to {2**53}")
            with self._place(caller.identity):
                await self._tell(socket, caller, session_id, after)
        except CRAError as error:
            await _refuse(socket, fault_of(error))
        except WebSocketDisconnect:
            return

    @contextmanager
    def _place(self, identity: str) -> Iterator[None]:
        """One more open stream of a caller's, for as long as this is entered."""
        most = self._routes.limits.streams
        if self._open[identity] >= most:
            message = f"{most} streams are open with this key; close one"
            raise Fault("RATE_LIMIT_EXCEEDED", message, category="access", retry_after_seconds=_FULL_SECONDS)
        self._open[identity] += 1
        try:
            yield
        finally:
            self._open[identity] -= 1
            self._open += Counter()  # forgets who has none

    async def _tell(self, socket: WebSocket, caller: Caller, session_id: str, after: int | None) -> None:
        loop, pool = asyncio.get_running_loop(), self._routes.pool

        def more() -> Sequence[bytes]:
            self._routes.guard.check(caller, socket.headers)  # a key may be revoked, and a token ends
            if self._archive.is_quiet(session_id, after):
                return ()
            return self._archive.page(caller, session_id, None, after, _BATCH)

        lines = await loop.run_in_executor(pool, more)
        await socket.accept()
        gone = asyncio.ensure_future(_until_gone(socket))
        try:
            while not gone.done():
                for line in lines:
                    await socket.send_text(line.decode().rstrip("\n"))
                    event = orjson.loads(line)
                    after = event["sequence"]
                    if event["event_type"] == "session.ended":
                        await socket.close()
                        return
                if self._is_stopping():
                    await socket.close(1001)
                    return
                if len(lines) < _BATCH:
                    await asyncio.wait((gone,), timeout=POLL_SECONDS)
                lines = await loop.run_in_executor(pool, more)
        finally:
            gone.cancel()


async def _refuse(socket: WebSocket, fault: Fault) -> None:
    """Say why, in the answer to who asks for a stream, where the server can do that; else as the stream's end."""
    is_asked = socket.application_state is WebSocketState.CONNECTING
    if is_asked and "websocket.http.response" in socket.scope.get("extensions", {}):
        await socket.send_denial_response(respond(said_of(fault, None)))
        await asyncio.sleep(_CLOSED_SECONDS)  # uvicorn logs an error about who returns before that
    else:
        await socket.close(_REFUSED, fault.code)


async def _until_gone(socket: WebSocket) -> None:
    """What a listener says is not heard; that it leaves is."""
    while (await socket.receive())["type"] != "websocket.disconnect":
        continue
