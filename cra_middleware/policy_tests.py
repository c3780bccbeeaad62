"""An Atlas's own tests: calls, and what must be decided about them.

``tests/*.yaml`` hold a list (or ``tests:`` with a list) of cases:

    - call: refund.create
      args: {order_id: A-1001, amount: 250, reason: broken}
      agent: support-bot                # also risk_tier, context
      at: 2026-01-05T12:00:00+01:00     # left out: a Monday at noon, UTC
      repeat: 31                        # the last of so many; left out: 1
      expect: ask                       # allow, ask or deny
      policy: large-refund              # also code: left out, any

Every case begins with empty counters. ``approved: true`` says that a person said yes. A text argument that begins
with ``$PROJECT`` gets the folder that the tests run with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from cra_middleware import presence
from cra_middleware._clock import parse_us
from cra_middleware.atlas.argument_tests import PROJECT
from cra_middleware.atlas.loader import SUFFIXES
from cra_middleware.atlas.manifest import RiskTier
from cra_middleware.atlas.yaml_text import NotYamlError, read_yaml
from cra_middleware.carp.call import Allow, Ask, Decision, Deny, ToolCall
from cra_middleware.carp.counters import MemoryCounters
from cra_middleware.carp.policy import Facts
from cra_middleware.carp.resolver import Resolver

MONDAY_NOON = "2026-01-05T12:00:00+00:00"
FOLDER = "tests"


class Case(BaseModel):
    """One call, and what must be decided."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    call: str
    args: dict[str, JsonValue] = {}
    agent: str = "agent"
    risk_tier: RiskTier = "low"
    context: dict[str, JsonValue] = {}
    at: str = MONDAY_NOON
    repeat: Annotated[int, Field(ge=1, le=100_000)] = 1
    approved: bool = False
    expect: Literal["allow", "ask", "deny"]
    policy: str | None = None
    code: str | None = None
    name: str = ""

    @property
    def title(self) -> str:
        """What it is called in a list."""
        return self.name or f"{self.call} {self.expect}"


class Told(NamedTuple):
    """How one case came out."""

    case: Case
    word: str
    policy_id: str | None
    code: str | None
    reason: str

    @property
    def difference(self) -> str | None:
        """What was not as expected; None when all was."""
        case = self.case
        wanted: list[str] = [case.expect]
        got = [self.word]
        for want, found in ((case.policy, self.policy_id), (case.code, self.code)):
            if want is not None:
                wanted.append(want)
                got.append(found or "none")
        if wanted == got:
            return None
        why = f": {self.reason}" if self.reason else ""
        return f"expected {', '.join(wanted)}, got {', '.join(got)}{why}"


class BadCaseError(ValueError):
    """A test file that cannot be read; the message names file and place."""


def read_cases(atlas: Path) -> Iterator[tuple[str, Case]]:
    """The cases beside an Atlas (its folder, or its manifest's), each with the file it stands in.

    Raises:
        BadCaseError: when a file is no list of cases.
    """
    folder = (atlas if presence.is_dir(atlas) else atlas.parent) / FOLDER
    for file in sorted(folder.iterdir()) if presence.is_dir(folder) else ():
        if file.suffix in SUFFIXES:
            yield from ((file.name, case) for case in read_case_file(file))


def read_case_file(file: Path) -> list[Case]:
    """The cases in one file.

    Raises:
        BadCaseError: when it is no list of cases.
    """
    try:
        content = read_yaml(file.read_text(encoding="utf-8"))  # JSON is YAML
    except (OSError, UnicodeDecodeError, NotYamlError) as error:
        raise BadCaseError(f"{file}: {error}") from None
    entries = content.get("tests") if isinstance(content, dict) else content
    if not isinstance(entries, list):
        raise BadCaseError(f"{file}: a list of cases is wanted, each with call and expect")
    cases = []
    for number, entry in enumerate(entries):
        try:
            cases.append(Case.model_validate(entry))
            parse_us(cases[-1].at)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = "".join(f"/{part}" for part in (number, *first["loc"]))
            raise BadCaseError(f"{file}#{place}: {first['msg']}") from None
        except ValueError as error:
            raise BadCaseError(f"{file}#/{number}/at: {error}") from None
    return cases


def run_case(case: Case, resolver: Resolver, project: str) -> Told:
    """Decide one case."""
    counters, now_us = MemoryCounters(), parse_us(case.at)
    facts = Facts(case.agent, case.risk_tier, case.context, "tests")
    arguments = {name: _placed(value, project) for name, value in case.args.items()}
    call = ToolCall.freeze(case.call, "cra atlas test", arguments)
    for _ in range(case.repeat - 1):
        earlier = resolver.decide(call, facts, now_us, counters, approved=True)
        for reservation in earlier.reservations if isinstance(earlier, Allow) else ():
            counters.commit(reservation)
    return _told(case, resolver.decide(call, facts, now_us, counters, case.approved))


def run_cases(cases: Sequence[Case], resolver: Resolver, project: str) -> list[Told]:
    """Decide all of them."""
    return [run_case(case, resolver, project) for case in cases]


def _told(case: Case, decision: Decision) -> Told:
    match decision:
        case Allow():
            return Told(case, "allow", decision.policy_id, None, "")
        case Ask():
            return Told(case, "ask", decision.policy_id, "approval_required", decision.reason)
        case Deny():
            return Told(case, "deny", decision.policy_id, decision.code, decision.reason)


def _placed(value: JsonValue, project: str) -> JsonValue:
    if isinstance(value, str) and value.startswith(PROJECT):
        return project + value[len(PROJECT) :]
    if isinstance(value, Mapping):
        return {key: _placed(item, project) for key, item in value.items()}
    if isinstance(value, list):
        return [_placed(item, project) for item in value]
    return value
