"""Who a session is: its facts checked, from a caller's words or from its own trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cra_middleware._ids import is_id
from cra_middleware.atlas.manifest import RISK_TIERS, RiskTier
from cra_middleware.carp.policy import RANK, Facts
from cra_middleware.errors import ChainBroken
from cra_middleware.setting import Identity
from cra_middleware.trace.recovery import Reopened
from cra_middleware.trace.redact import is_hidden


def facts_of(
    session_id: str,
    agent_id: str,
    risk_tier: RiskTier,
    context: Mapping[str, object],
    atlas_ids: Sequence[str] | None,
    parent: Facts | None,
) -> Facts:
    """A session's facts; below a parent the tier is the higher of both, and facts are only added.

    Raises:
        ValueError: when one is not usable, or changes a fact of the parent.
    """
    if risk_tier not in RISK_TIERS:
        raise ValueError(f"risk_tier must be one of {', '.join(RISK_TIERS)}, not {risk_tier!r}")
    if not isinstance(agent_id, str) or not 0 < len(agent_id) <= 255:
        raise ValueError("agent_id must have 1 to 255 characters")
    check_text("agent_id", agent_id)
    names = None if atlas_ids is None else tuple(atlas_ids)
    if parent is None:
        return Facts(agent_id, risk_tier, dict(context), session_id, names)
    changed = [key for key, value in context.items() if key in parent.context and parent.context[key] != value]
    if changed:
        raise ValueError(f"a nested session may add facts, not change its parent's: {', '.join(sorted(changed))}")
    tier = max(risk_tier, parent.risk_tier, key=RANK.__getitem__)
    return Facts(agent_id, tier, {**parent.context, **context}, parent.root_session_id, names or parent.atlas_ids)


def check_text(name: str, text: str) -> None:
    """Refuse what no message can carry.

    Raises:
        ValueError: when ``text`` holds a lone surrogate.
    """
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(f"{name} holds a lone surrogate, which no message can carry")


def identity_of(found: Reopened, context: Mapping[str, object] | None) -> Identity:
    """Who a session is that was written by another process; ``context`` gives its facts again.

    Raises:
        ChainBroken: when what was written cannot be.
    """
    first, payload = found.first, found.first.payload
    asked = found.request.payload if found.request is not None else {}
    recorded = asked.get("context")
    known = recorded if isinstance(recorded, dict) else {}  # a fact that was hidden is as good as not recorded
    facts_given = {**{key: value for key, value in known.items() if not is_hidden(value)}, **(context or {})}
    named = payload.get("atlas_ids") or asked.get("atlas_ids")
    tier = next((known for known in RISK_TIERS if known == asked.get("risk_tier", "low")), None)
    if tier is None:
        raise ChainBroken(f"session {first.session_id} was begun under a risk tier that does not exist")
    facts = Facts(
        agent_id=str(payload["agent_id"]),
        risk_tier=tier,
        context=facts_given,
        root_session_id=first.session_id,
        atlas_ids=tuple(str(name) for name in named) if isinstance(named, list) else None,
    )
    metadata = payload.get("metadata")
    behalf = metadata.get("subject") if isinstance(metadata, dict) else None
    root = metadata.get("root_session_id") if isinstance(metadata, dict) else None
    if isinstance(root, str) and is_id(root):  # a child goes on with its parent's budgets
        facts = facts._replace(root_session_id=root)
    behalf = behalf.removeprefix("cra:str:") if isinstance(behalf, str) else None
    return Identity(first.session_id, first.trace_id, first.span_id, str(payload["goal"]), facts, behalf)
