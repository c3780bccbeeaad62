"""The policies in force: what a runtime decides by, until ``reload`` puts the next in its place."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cra_middleware._canonical import canonical, digest
from cra_middleware.atlas.globs import glob
from cra_middleware.atlas.loader import Atlas
from cra_middleware.atlas.redactions import Argument, Forms, Pointed, parse_personal, parse_redaction
from cra_middleware.carp.call import Target
from cra_middleware.carp.limits import CostFunctions
from cra_middleware.carp.resolver import DefaultDecision, Resolver
from cra_middleware.carp.tool_map import ToolMap
from cra_middleware.trace.redact import Redactor, Rule

T = TypeVar("T")
_SHOWN = ("W003", "W004", "W005", "W007", "W008", "W009", "W010")
"""Findings that may be a misspelt restriction."""

AtlasSource = str | Path | Atlas


class AtlasWarning(UserWarning):
    """Something in an Atlas that is perhaps not what its writer meant."""


@dataclass(frozen=True, slots=True)
class LoadTerms:
    """What stays when the Atlases are loaded again."""

    default_decision: DefaultDecision
    baseline: Atlas | None
    project: str | None
    costs: CostFunctions
    is_observing: bool
    redact: tuple[str, ...] = ()
    personal: tuple[str, ...] = ()
    can_keep: bool = True
    """Personal values have a sidecar, or are not recorded anyway."""


@dataclass(frozen=True, slots=True, eq=False)
class Epoch(ToolMap):
    """One set of policies, for as long as it is in force."""

    resolver: Resolver
    policy_digest: str
    """SHA-256 over the policies of every Atlas; recorded when a session starts."""
    redactor: Redactor | None
    """None when nothing is hidden."""

    @property
    def atlases(self) -> tuple[Atlas, ...]:
        """What it was loaded from, without the baseline."""
        return self.resolver.atlases

    @property
    def declared(self) -> Container[str]:
        return self.resolver.actions

    def mapped(self, tool_name: str, framework: str) -> Target | None:
        return self.resolver.mapped(tool_name, framework)

    def distrust(self, source: str, tool_name: str, described: Callable[[], str]) -> str | None:
        locks = [atlas.lock for atlas in self.atlases if atlas.lock is not None and atlas.lock.holds(source)]
        if not locks:
            return None
        digest = described()
        problems = [lock.problem(source, tool_name, digest) for lock in locks]
        return None if None in problems else problems[0]

    @property
    def argument_policies(self) -> tuple[str, ...]:
        rules = (rule for action in self.resolver.actions.values() for rule in action.rules)
        costly = (rule for rule in rules if rule.on_arguments or (rule.quota is not None and rule.type == "budget"))
        return tuple(dict.fromkeys(rule.policy_id for rule in costly))

    def risk_tier(self, action_id: str) -> str | None:
        """A declared action's own."""
        compiled = self.resolver.actions.get(action_id)
        return None if compiled is None else compiled.action.risk_tier


class InForce:
    """The one place where the policies change: assigned whole, read once per call."""

    def __init__(self, epoch: Epoch) -> None:
        self.epoch = epoch


def load_atlases(sources: AtlasSource | Sequence[AtlasSource]) -> tuple[Atlas, ...]:
    """The Atlases, read and validated; what may be a misspelt restriction is warned about.

    Raises:
        AtlasError: when one has errors; it carries every finding.
    """
    several = [sources] if isinstance(sources, (str, Path, Atlas)) else list(sources)
    atlases = tuple(item if isinstance(item, Atlas) else Atlas.load(item) for item in several)
    for atlas in atlases:
        for finding in atlas.findings:
            if finding.code in _SHOWN:
                warnings.warn(str(finding), AtlasWarning, stacklevel=3)
    return atlases


def begin_epoch(atlases: Sequence[Atlas], terms: LoadTerms) -> Epoch:
    """Compile a set of Atlases.

    Raises:
        AtlasError: when a dependency is missing.
        ValueError: when Atlases collide, an entry of ``redact`` or ``personal`` is none, or something is needed
            that ``terms`` do not have.
    """
    resolver = Resolver(
        atlases,
        terms.default_decision,
        baseline=terms.baseline,
        project=terms.project,
        costs=terms.costs,
        is_observing=terms.is_observing,
    )
    everything = [*atlases, *((terms.baseline,) if terms.baseline is not None else ())]
    policy_digest = digest(canonical([atlas.policy_digest for atlas in everything]))
    return Epoch(resolver, policy_digest, _redactor(terms, everything))


def _redactor(terms: LoadTerms, everything: Sequence[Atlas]) -> Redactor | None:
    hidden = [*terms.redact, *(entry for atlas in everything for entry in atlas.manifest.redact)]
    personal = [*terms.personal, *(entry for atlas in everything for entry in atlas.manifest.personal)]
    if personal and not terms.can_keep:
        raise ValueError('personal values are kept in a sidecar: with record="full", name its file: sidecar=FILE')
    rules: list[Rule] = []
    patterns: list[str] = []
    for entry in hidden:
        named = _read("redact", parse_redaction, entry)
        if isinstance(named, Forms):
            patterns += named.names
        else:
            rules.append(_rule(named))
    rules += [_rule(_read("personal", parse_personal, entry))._replace(is_personal=True) for entry in personal]
    return Redactor(rules, patterns) if rules or patterns else None


def _read(option: str, parse: Callable[[str], T], entry: str) -> T:
    try:
        return parse(entry)
    except ValueError as error:
        raise ValueError(f"{option}: {error}; it was {entry!r}") from None


def _rule(named: Argument | Pointed) -> Rule:
    steps = (named.name,) if isinstance(named, Argument) else named.steps
    return Rule(glob(named.actions), steps, only_arguments=isinstance(named, Argument))
