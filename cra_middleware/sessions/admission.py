"""Who a session is: its facts checked, from a caller's words or from its own trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import NamedTuple
from uuid import UUID

from cra_middleware._ids import is_id, new_id
from cra_middleware.atlas.manifest import RISK_TIERS, RiskTier
from cra_middleware.calls.setting import Identity
from cra_middleware.carp.messages import Request
from cra_middleware.carp.policy import RANK, Facts
from cra_middleware.carp.recorded import recorded_facts
from cra_middleware.errors import ChainBroken
from cra_middleware.sessions.session import Session
from cra_middleware.trace.recovery import Reopened


class WiderThanParentError(ValueError):
    """A session was to have an Atlas that the one above it has not."""


def facts_of(
    session_id: str,
    agent_id: str,
    risk_tier: RiskTier,
    context: Mapping[str, object],
    atlas_ids: Sequence[str] | None,
    parent: Facts | None,
) -> Facts:
    """A session's facts; below a parent the tier is the higher of both, facts are only added, Atlases only left out.

    Raises:
        ValueError: when one is not usable, changes a fact of the parent, or names an Atlas that it has not.
    """
    _check_tier(risk_tier)
    if not isinstance(agent_id, str) or not 0 < len(agent_id) <= 255:
        raise ValueError("agent_id must have 1 to 255 characters")
    _check_text("agent_id", agent_id)
    context = plain(context)
    names = None if atlas_ids is None else tuple(atlas_ids)
    if parent is None:
        return Facts(agent_id, risk_tier, context, session_id, names)
    changed = [key for key, value in context.items() if key in parent.context and parent.context[key] != value]
    if changed:
        raise ValueError(f"a nested session may add facts, not change its parent's: {', '.join(sorted(changed))}")
    if names and parent.atlas_ids is not None:
        wider = set(names).difference(parent.atlas_ids)
        if wider:
            raise WiderThanParentError(f"the parent has no Atlas {min(wider)[:256]}")
    tier = max(risk_tier, parent.risk_tier, key=RANK.__getitem__)
    return Facts(agent_id, tier, {**parent.context, **context}, parent.root_session_id, names or parent.atlas_ids)


class Opening(NamedTuple):
    """What is said of a session that is to be opened; ``Runtime.session`` says what each of it means."""

    agent_id: str
    goal: str
    risk_tier: RiskTier = "low"
    context: Mapping[str, object] = {}
    atlas_ids: Sequence[str] | None = None
    external_id: str | None = None
    subject: str | None = None
    parent_id: str | None = None
    session_id: str | None = None
    metadata: Mapping[str, object] = {}
    request: Request | None = None

    @property
    def whole(self) -> Opening:
        """The same, read as one with what is requested; of two risk tiers the higher one counts.

        Raises:
            ValueError: when the two speak of different things, or there is no such tier.
        """
        _check_tier(self.risk_tier)
        if self.request is None:
            return self
        who, task = self.request.requester, self.request.task
        same_session = self.session_id in (None, who.session_id) and who.parent_session_id in (
            None,
            self.parent_id or who.parent_session_id,
        )
        if (who.agent_id, task.goal) != (self.agent_id, self.goal) or not same_session:
            raise ValueError("request speaks of another agent, goal or session than what is said beside it")
        return self._replace(
            session_id=who.session_id,
            parent_id=self.parent_id or who.parent_session_id,
            risk_tier=max(self.risk_tier, task.risk_tier, key=RANK.__getitem__),
            context={**self.request.context, **self.context},
            atlas_ids=self.request.atlas_ids or self.atlas_ids,
        )


class Admitted(NamedTuple):
    """Who a new session is."""

    session_id: str
    goal: str
    facts: Facts
    behalf: str | None


def admitted(opening: Opening, above: Session | None) -> Admitted:
    """Who the session is that ``opening``, read as a whole, speaks of.

    Raises:
        ValueError: when something of it is not usable, or changes a fact of the session above.
    """
    session_id = opening.session_id or new_id()
    if not is_id(session_id):
        raise ValueError("a session id is a lower-case UUID")
    facts = facts_of(
        session_id,
        opening.agent_id,
        opening.risk_tier,
        opening.context,
        opening.atlas_ids,
        None if above is None else above.facts,
    )
    if not 0 < len(opening.goal) <= 10_000:
        raise ValueError("goal must have 1 to 10,000 characters")
    _check_text("goal", opening.goal)
    return Admitted(session_id, opening.goal, facts, opening.subject or (above.behalf if above else None))


def _check_tier(risk_tier: str) -> None:
    if risk_tier not in RISK_TIERS:
        raise ValueError(f"risk_tier must be one of {', '.join(RISK_TIERS)}, not {risk_tier!r}")


def _check_text(name: str, text: str) -> None:
    """Refuse what no message can carry.

    Raises:
        ValueError: when ``text`` holds a lone surrogate.
    """
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(f"{name} holds a lone surrogate, which no message can carry")


def plain(context: Mapping[str, object]) -> dict[str, object]:
    """Facts as a trace has them: an Enum stands for its value, and a UUID for its text, whichever way they are read."""
    return {name: _plain_value(value) for name, value in context.items()}


def _plain_value(value: object) -> object:
    while isinstance(value, Enum):
        value = value.value
    return str(value) if isinstance(value, UUID) else value


def identity_of(found: Reopened, context: Mapping[str, object] | None) -> Identity:
    """Who a session is that was written by another process; ``context`` gives its facts again.

    Raises:
        ChainBroken: when what was written cannot be.
    """
    first, payload = found.first, found.first.payload
    asked = found.request.payload if found.request is not None else {}
    facts_given = {**recorded_facts(asked.get("context")), **plain(context or {})}
    named = payload.get("atlas_ids")
    if named is None:  # then they are those that it began by asking for
        named = asked.get("atlas_ids") or None
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
