"""The Atlases in force: their rules, and how often each fired."""

from __future__ import annotations

from typing import NamedTuple

from cra_middleware.atlas.manifest import Action, Policy
from cra_middleware.atlas.words import arguments_in_words, policy_in_words
from cra_middleware.server.access import Role
from cra_middleware.server.faults import Fault
from cra_middleware.server.host import Host
from cra_middleware.server.pages.hearing import Hearing, Turn
from cra_middleware.server.pages.showing import Face
from cra_middleware.server.pages.tallies import Tallies
from cra_middleware.server.routing import Rule, Said

READERS: Rule = frozenset[Role]({"approver", "auditor"})
_VERBS = {"allow": "allow", "deny": "deny", "require_approval": "ask", "rate_limit": "limit", "budget": "budget"}


class Ruled(NamedTuple):
    """A rule as the templates see it."""

    policy: Policy
    verb: str
    words: str
    reason: str


class Named(NamedTuple):
    """An action as the templates see it."""

    action: Action
    arguments: str


def add_atlas_pages(hearing: Hearing, face: Face, host: Host) -> None:
    """The pages of Atlases."""
    tallies = Tallies(host)

    def listed(turn: Turn) -> Said:
        manifests = [atlas.manifest for atlas in host.runtime.atlases]
        broken = host.folder.broken if host.folder is not None and turn.person.is_any("admin", "auditor") else {}
        return face.page(turn, "atlases", manifests=manifests, broken=dict(broken))

    def one(turn: Turn) -> Said:
        for manifest in (atlas.manifest for atlas in host.runtime.atlases):
            if manifest.atlas_id == turn.path["atlas_id"]:
                ordered = sorted(manifest.policies, key=lambda policy: -policy.priority)
                rules = [
                    Ruled(policy, _VERBS.get(policy.type, policy.type), policy_in_words(policy), _reason(policy))
                    for policy in ordered
                ]
                actions = [Named(action, arguments_in_words(action)) for action in manifest.actions]
                tally = tallies.count() if turn.person.is_any("auditor") else None  # traces are an auditor's
                return face.page(turn, "atlas", manifest=manifest, rules=rules, actions=actions, tally=tally)
        raise Fault("ATLAS_NOT_FOUND", f"no Atlas {turn.path['atlas_id'][:256]} is loaded")

    hearing.add("GET", "/atlases", READERS, listed)
    hearing.add("GET", "/atlases/{atlas_id}", READERS, one)


def _reason(policy: Policy) -> str:
    return policy.rules_of().reason or policy.description or policy.name or ""
