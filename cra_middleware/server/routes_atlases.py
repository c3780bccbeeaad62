"""Atlases: listed, posted, deleted; the server's health; its own document."""

from __future__ import annotations

from cra_middleware._clock import timestamp_text
from cra_middleware.atlas.loader import Atlas
from cra_middleware.server.access import Caller, Role
from cra_middleware.server.faults import Fault
from cra_middleware.server.health import Health
from cra_middleware.server.host import Host
from cra_middleware.server.openapi import document
from cra_middleware.server.routing import PUBLIC, Ask, Routes, Rule, Said

ADMINS: Rule = frozenset[Role]({"admin"})
EVERYBODY: Rule = frozenset[Role]({"agent", "approver", "auditor"})


def add_atlases(routes: Routes, host: Host) -> None:
    """The endpoints of Atlases."""

    def summary(atlas: Atlas) -> dict[str, object]:
        manifest = atlas.manifest
        loaded_us = host.folder.loaded().get(manifest.atlas_id) if host.folder is not None else None
        return {
            "atlas_id": manifest.atlas_id,
            "version": manifest.version,
            "name": manifest.name,
            "description": manifest.description,
            "domains": list(manifest.domains),
            "action_count": len(manifest.actions),
            "loaded_at": timestamp_text(host.began_us if loaded_us is None else loaded_us),
        }

    def visible(caller: Caller) -> list[Atlas]:
        is_reader = caller.is_any("auditor", "approver")
        return [atlas for atlas in host.runtime.atlases if is_reader or caller.may_use(atlas.manifest.atlas_id)]

    def listed(ask: Ask) -> Said:
        items = [summary(atlas) for atlas in visible(ask.caller)]
        return Said(200, {"items": items, "total": len(items)})

    def get(ask: Ask) -> Said:
        for atlas in visible(ask.caller):
            if atlas.manifest.atlas_id == ask.path["atlas_id"]:
                told = atlas.manifest.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)
                return Said(200, told)
        raise Fault("ATLAS_NOT_FOUND", f"no Atlas {ask.path['atlas_id'][:256]} is loaded")

    def post(ask: Ask) -> Said:
        if host.folder is None:
            raise Fault("FORBIDDEN", "this server's Atlases are given by its program")
        return Said(201, summary(host.folder.post(ask.json(), host.reload)))  # type: ignore[arg-type]

    def delete(ask: Ask) -> Said:
        if host.folder is None:
            raise Fault("FORBIDDEN", "this server's Atlases are given by its program")
        host.folder.delete(ask.path["atlas_id"], host.reload)
        return Said(204)

    routes.add("GET", "/v1/atlases", EVERYBODY, listed)
    routes.add("POST", "/v1/atlases", ADMINS, post)
    routes.add("GET", "/v1/atlases/{atlas_id}", EVERYBODY, get)
    routes.add("DELETE", "/v1/atlases/{atlas_id}", ADMINS, delete)


def add_health(routes: Routes, health: Health) -> None:
    """The endpoints that everybody may read."""

    def check(ask: Ask) -> Said:
        told = health.check(in_full=bool(ask.caller.identity))
        return Said(503 if told["status"] == "unhealthy" else 200, told)

    def served(ask: Ask) -> Said:
        text, digest = document()
        return Said(200, text, {"etag": f'"{digest}"'}, "application/yaml")

    routes.add("GET", "/v1/health", PUBLIC, check)
    routes.add("GET", "/health", PUBLIC, check)
    routes.add("GET", "/v1/openapi.yaml", PUBLIC, served)
