"""What a client has to know to map tools to actions, and to hide those that no call could be allowed for."""

from __future__ import annotations

from collections.abc import Collection
from hashlib import sha256

import orjson

from cra_middleware.runtime import Runtime
from cra_middleware.server.access import Caller


def tools_for(runtime: Runtime, caller: Caller, at_server: Collection[str] = ()) -> dict[str, object]:
    """Action ids, tool maps and the lock of the Atlases that ``caller`` may use, with an ``etag``.

    ``at_server`` names the actions that the server runs by itself.
    """
    resolver = runtime.resolver
    atlases = [atlas for atlas in runtime.atlases if caller.may_use(atlas.manifest.atlas_id)]
    names = {atlas.manifest.atlas_id for atlas in atlases}
    maps: dict[str, dict[str, object]] = {}
    lock: dict[str, dict[str, str]] = {}
    for atlas in atlases:
        for framework, adapter in atlas.manifest.adapters.items():
            known = maps.setdefault(framework, {})
            for tool, target in adapter.tools.items():
                known.setdefault(tool, target if isinstance(target, str) else target.model_dump(mode="json"))
        for source, tools in (atlas.lock.tools if atlas.lock is not None else {}).items():
            lock.setdefault(source, {}).update(tools)
    actions = [name for name, compiled in resolver.actions.items() if compiled.atlas_id in names]
    told: dict[str, object] = {
        "actions": actions,
        "at_server": [name for name in actions if name in at_server],
        "maps": maps,
        "lock": lock,
        "argument_policies": list(runtime.argument_policies()),
        "observing": resolver.is_observing,
    }
    text = orjson.dumps([runtime.policy_digest, told], option=orjson.OPT_SORT_KEYS)
    return {"etag": sha256(text).hexdigest()[:32], **told}
