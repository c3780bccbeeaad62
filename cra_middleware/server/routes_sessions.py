"""Sessions, resolutions, and what a client needs to map tools."""

from __future__ import annotations

from collections.abc import Collection
from typing import cast

import orjson

from cra_middleware._clock import timestamp_text
from cra_middleware.carp.messages import Request
from cra_middleware.server.access import Role
from cra_middleware.server.book import SessionRow, State
from cra_middleware.server.host import Host
from cra_middleware.server.routing import Ask, Routes, Rule, Said
from cra_middleware.server.tool_maps import tools_for
from cra_middleware.server.wire import CreateSession, End, read_body

AGENTS: Rule = frozenset[Role]({"agent"})
READERS: Rule = frozenset[Role]({"agent", "auditor"})


def session_json(row: SessionRow) -> dict[str, object]:
    """A session on the wire."""
    told: dict[str, object] = {
        "session_id": row.session_id,
        "agent_id": row.agent_id,
        "goal": row.goal,
        "status": "active" if row.ended_us is None else "ended",
        "created_at": timestamp_text(row.created_us),
        "metadata": orjson.loads(row.metadata),
    }
    if row.atlas_ids:
        told |= {"atlas_id": row.atlas_ids[0], "atlas_ids": list(row.atlas_ids)}
    if row.ended_us is not None:
        told["ended_at"] = timestamp_text(row.ended_us)
    if row.is_expired:
        told["expired"] = True
    if row.parent_session_id is not None:
        told["parent_session_id"] = row.parent_session_id
    return told


def add_sessions(routes: Routes, host: Host, at_server: Collection[str] = ()) -> None:
    """The endpoints of sessions; ``at_server`` names the actions that run here."""

    def create(ask: Ask) -> Said:
        row, resolution = host.create(ask.caller, read_body(CreateSession, ask.json()))
        etag = tools_for(host.runtime, ask.caller, at_server)["etag"]
        told = session_json(row) | {"resolution": resolution.model_dump(mode="json"), "tools_etag": etag}
        return Said(201, told, {"location": f"/v1/sessions/{row.session_id}"})

    def listed(ask: Ask) -> Said:
        state = cast(State, ask.word("status", "active", ("active", "ended", "all")))
        limit, offset = ask.whole_number("limit", 20, 1, 100), ask.whole_number("offset", 0, 0, 2**53)
        rows, total = host.listed(ask.caller, state, limit or 20, offset or 0)
        items = [session_json(row) for row in rows]
        return Said(200, {"items": items, "total": total, "limit": limit, "offset": offset})

    def get(ask: Ask) -> Said:
        return Said(200, session_json(host.readable(ask.caller, ask.path["session_id"])))

    def delete(ask: Ask) -> Said:
        host.end(ask.caller, ask.path["session_id"])
        return Said(204)

    def end(ask: Ask) -> Said:
        body = read_body(End, ask.json(optional=True))
        host.end(ask.caller, ask.path["session_id"], body.reason, body.error)
        return Said(200, session_json(host.readable(ask.caller, ask.path["session_id"])))

    def resolve(ask: Ask) -> Said:
        resolution = host.resolve(ask.caller, read_body(Request, ask.json()))
        return Said(200, resolution.model_dump(mode="json"))

    def tools(ask: Ask) -> Said:
        told = tools_for(host.runtime, ask.caller, at_server)
        etag = f'"{told["etag"]}"'
        headers = {"etag": etag, "cache-control": "private, no-cache"}
        known = [item.strip().removeprefix("W/") for item in ask.headers.get("if-none-match", "").split(",")]
        return Said(304, None, headers) if etag in known or "*" in known else Said(200, told, headers)

    routes.add("POST", "/v1/sessions", AGENTS, create)
    routes.add("GET", "/v1/sessions", READERS, listed)
    routes.add("GET", "/v1/sessions/{session_id}", READERS, get)
    routes.add("DELETE", "/v1/sessions/{session_id}", AGENTS, delete)
    routes.add("POST", "/v1/sessions/{session_id}/end", AGENTS, end)
    routes.add("POST", "/v1/resolve", AGENTS, resolve)
    routes.add("GET", "/v1/tools", READERS, tools)
