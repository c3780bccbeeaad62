"""Rules: what each key becomes, and what is wrong with one, at its place in its file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cra_middleware import Atlas
from cra_middleware.atlas.loader import inspect
from cra_middleware.atlas.manifest import Manifest
from cra_middleware.atlas.rules import compile_rule
from cra_middleware.cli.atlas import built
from cra_middleware.errors import AtlasError
from tests.conftest import CONFORMANCE, manifest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "atlases"
SPIKES = CONFORMANCE.parent / "spikes" / "rules"


def one(rule: dict[str, Any]) -> dict[str, Any]:
    (policy,), problems = compile_rule(rule, set())
    assert problems == []
    return dict(policy)


@pytest.mark.parametrize(
    ("rule", "policy"),
    [
        ({"allow": "a.b"}, {"policy_id": "allow-a-b", "type": "allow", "actions": ["a.b"]}),
        ({"deny": ["*", "a.?"], "id": "no"}, {"policy_id": "no", "type": "deny", "actions": ["*", "a.?"]}),
        (
            {"ask": "a.b", "when": {"amount": "> 100"}, "approvers": "leads", "expires": "30m", "why": "Large."},
            {
                "policy_id": "ask-a-b",
                "type": "require_approval",
                "actions": ["a.b"],
                "conditions": {"arguments": {"amount": "> 100"}},
                "parameters": {"reason": "Large.", "approvers": ["leads"], "expires_seconds": 1800},
            },
        ),
        (
            {"deny": "a.*", "agents": "bot-*", "risk_tiers": ["high"], "context": {"env": "prod"}, "shadow": True},
            {
                "policy_id": "deny-a-all",
                "type": "deny",
                "actions": ["a.*"],
                "conditions": {"risk_tiers": ["high"], "agents": ["bot-*"], "context_matches": {"env": "prod"}},
                "parameters": {"enforcement": "shadow"},
            },
        ),
        (
            {"deny": "a.b", "hours": "mon-fri 09:00-18:00 Europe/Berlin", "shadow": False},
            {
                "policy_id": "deny-a-b",
                "type": "deny",
                "actions": ["a.b"],
                "conditions": {
                    "time_window": {
                        "start": "09:00",
                        "end": "18:00",
                        "timezone": "Europe/Berlin",
                        "days": ["mon", "tue", "wed", "thu", "fri"],
                    }
                },
            },
        ),
        (
            {"limit": "a.b", "to": "30/hour per action"},
            {
                "policy_id": "limit-a-b",
                "type": "rate_limit",
                "actions": ["a.b"],
                "parameters": {"max_calls": 30, "window_seconds": 3600, "scope": "action"},
            },
        ),
        (
            {"limit": "a.b", "to": "5 / 15m sliding"},
            {
                "policy_id": "limit-a-b",
                "type": "rate_limit",
                "actions": ["a.b"],
                "parameters": {"max_calls": 5, "window_seconds": 900, "algorithm": "sliding"},
            },
        ),
        *(
            (
                {"budget": "a.b", "to": to},
                {"policy_id": "budget-a-b", "type": "budget", "actions": ["a.b"], "parameters": parameters},
            )
            for to, parameters in (
                (
                    "500/day of amount per global",
                    {"max_cost": 500, "window_seconds": 86400, "scope": "global", "cost_parameter": "amount"},
                ),
                ("500 of amount", {"max_cost": 500, "cost_parameter": "amount"}),
                ("0.5/week of 0.25", {"max_cost": 0.5, "window_seconds": 604800, "cost": 0.25}),
                (
                    "9/2h of tokens() per agent sliding",
                    {
                        "max_cost": 9,
                        "window_seconds": 7200,
                        "scope": "agent",
                        "algorithm": "sliding",
                        "cost_function": "tokens",
                    },
                ),
            )
        ),
    ],
)
def test_what_a_rule_becomes(rule: dict[str, Any], policy: dict[str, Any]) -> None:
    """A plain policy, and one that a manifest takes."""
    found = one(rule)
    assert found == policy
    Manifest.model_validate(manifest(policies=[found])).policies[0].rules_of()


def test_outside_becomes_several() -> None:
    """Each with the rule's id and a number."""
    policies, _ = compile_rule({"deny": "a.b", "outside": "mon-fri 09:00-18:00", "id": "night"}, set())
    assert [policy["policy_id"] for policy in policies] == ["night-1", "night-2", "night-3"]
    assert len({json.dumps(policy["conditions"]) for policy in policies}) == 3


def test_ids_are_numbered_only_where_they_must() -> None:
    """Two rules about the same action have two ids; a written one is never taken away."""
    taken = {"deny-a-b-2"}
    names = [compile_rule({"deny": "a.b"}, taken)[0][0]["policy_id"] for _ in range(3)]
    assert names == ["deny-a-b", "deny-a-b-3", "deny-a-b-4"]


@pytest.mark.parametrize(
    ("rule", "pointer", "words"),
    [
        (5, "", "a rule is a mapping"),
        ({}, "", "has no verb"),
        ({"why": "x"}, "", "has no verb"),
        ({"allow": "a.b", "deny": "a.c"}, "", "has 2 verbs"),
        ({"alow": "a.b"}, "/alow", "unknown key 'alow' (did you mean allow?)"),
        ({"deny": "a.b", "wen": {}}, "/wen", "did you mean when?"),
        ({"deny": []}, "/deny", "takes a text"),
        ({"deny": [5]}, "/deny", "takes a text"),
        ({"deny": "a.b", "when": {}}, "/when", "names arguments"),
        ({"deny": "a.b", "when": {"amount": "> lots"}}, "/when/amount", "compares nothing"),
        ({"deny": "a.b", "agents": []}, "/agents", "takes a text"),
        ({"deny": "a.b", "context": {"a": 5}}, "/context", "the texts they equal"),
        ({"deny": "a.b", "why": 5}, "/why", "the sentence"),
        ({"deny": "a.b", "id": 5}, "/id", "an id is a text"),
        ({"deny": "a.b", "shadow": "yes"}, "/shadow", "true or false"),
        ({"deny": "a.b", "approvers": "x"}, "/approvers", "belongs to ask"),
        ({"allow": "a.b", "expires": "5m"}, "/expires", "belongs to ask"),
        ({"ask": "a.b", "expires": "soon"}, "/expires", "a number and a unit"),
        ({"ask": "a.b", "expires": "0m"}, "/expires", "a number and a unit"),
        ({"deny": "a.b", "to": "30/hour"}, "/to", "belongs to limit and budget"),
        ({"limit": "a.b"}, "/to", "a limit needs to"),
        ({"limit": "a.b", "to": "five/hour"}, "/to", "a number of calls in a time"),
        ({"limit": "a.b", "to": "0/hour"}, "/to", "a number of calls in a time"),
        ({"limit": "a.b", "to": "30"}, "/to", "a number of calls in a time"),
        ({"limit": "a.b", "to": "30/hour per everybody"}, "/to", "a number of calls in a time"),
        ({"budget": "a.b", "to": "500/day"}, "/to", "of what a call costs"),
        ({"budget": "a.b", "to": "-5 of amount"}, "/to", "of what a call costs"),
        ({"budget": "a.b", "to": "5 of amount sliding"}, "/to", "cannot slide"),
        ({"deny": "a.b", "hours": 9}, "/hours", "hours is a text"),
        ({"deny": "a.b", "hours": "late"}, "/hours", "names no days and times"),
        ({"deny": "a.b", "hours": "mon-fri 09:00-18:00 Europe/Berlim"}, "/hours", "no IANA time zone"),
        ({"deny": "a.b", "hours": "09:00-09:00"}, "/hours", "start equals end"),
        ({"deny": "a.b", "hours": "09:00-10:00", "outside": "sat"}, "/outside", "not both"),
        ({"deny": "a.b", "outside": "mon-sun"}, "/outside", "no time outside"),
        ({"limit": "a.b", "to": "1/hour", "outside": "mon-fri 09:00-18:00"}, "/outside", "counted apart"),
    ],
)
def test_what_is_wrong(tmp_path: Path, rule: Any, pointer: str, words: str) -> None:
    """Said at its place, in the manifest as in a file of rules; nothing loads."""
    good = {"allow": "ticket.get"}
    (tmp_path / "atlas.yaml").write_text(yaml.safe_dump({**manifest(), "rules": [good, rule]}))
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "a.yaml").write_text(yaml.safe_dump({"x-note": 1, "rules": [good, good, rule]}))
    atlas, found = inspect(tmp_path)
    assert atlas is None
    told = {(item.file, item.pointer) for item in found if item.code == "E011"}
    assert told == {("atlas.yaml", f"/rules/1{pointer}"), ("rules/a.yaml", f"/rules/2{pointer}")}
    assert any(words in str(item) for item in found)


def test_later_findings_point_to_the_rule(tmp_path: Path) -> None:
    """What is noticed about a policy is said where a person wrote it."""
    source = {**manifest(policies=[]), "rules": [{"allow": "*"}, {"deny": "tikket.get", "when": {"id": 5}}]}
    (tmp_path / "atlas.yaml").write_text(yaml.safe_dump(source))
    _, found = inspect(tmp_path)
    assert [(item.code, item.pointer) for item in found] == [("W003", "/rules/1/actions/0")]


def test_a_page_of_comments_is_no_rule(tmp_path: Path) -> None:
    """``rules:`` with nothing under it."""
    (tmp_path / "atlas.yaml").write_text(yaml.safe_dump(manifest()) + "rules:\n")
    assert inspect(tmp_path)[0] is not None
    with pytest.raises(AtlasError, match="rules is a list"):
        Atlas.from_dict({**manifest(), "rules": {"allow": "a.b"}})


@pytest.mark.parametrize("name", ["support", "developer"])
def test_what_is_built_decides_the_same(tmp_path: Path, name: str) -> None:
    """``cra atlas build`` writes plain JSON of the same digest, and building that changes nothing."""
    atlas = Atlas.load(EXAMPLES / name)
    text = built(atlas)
    plain = json.loads(text)
    assert "rules" not in plain
    assert not [key for key in plain if key.startswith("x-")]
    plain["context_packs"] = []
    for capability in plain["capabilities"]:
        capability.pop("context_packs", None)
    again = Atlas.from_dict(plain)
    assert [entry.model_dump() for entry in again.manifest.policies] == [
        entry.model_dump() for entry in atlas.manifest.policies
    ]
    (tmp_path / "x.json").write_text(json.dumps(plain))
    assert Atlas.load(tmp_path / "x.json").policy_digest == again.policy_digest


@pytest.mark.parametrize("name", ["support", "coding"])
def test_the_shared_examples_load(tmp_path: Path, name: str) -> None:
    """Rules that others wrote for the same contract."""
    file = SPIKES / f"{name}.love.yaml"
    if not file.is_file():
        pytest.skip("the shared examples are not here")
    (tmp_path / "atlas.yaml").write_text(file.read_text())
    atlas, found = inspect(tmp_path)
    assert [item for item in found if item.severity == "error"] == []
    assert atlas is not None
    assert len(atlas.manifest.policies) >= 7


NAMES = st.sampled_from(["ticket.get", "*", "refund.*", "a.?"])
TEXTS = st.one_of(NAMES, st.lists(NAMES, min_size=1, max_size=3))
TESTS = st.sampled_from(
    [
        "> 100",
        "<= 0.5",
        5,
        "x",
        True,
        ["a", 1],
        {"within": "/x"},
        {"glob": "**/x"},
        {"matches": "a+"},
        {"commands": ["ls *"]},
    ]
)
SCHEDULES = st.sampled_from(["mon-fri 09:00-18:00 Europe/Berlin", "22:00-06:00", "sat,sun", "fri-mon 20:00-24:00 UTC"])


@st.composite
def rules(draw: st.DrawFn) -> dict[str, Any]:
    verb = draw(st.sampled_from(["allow", "ask", "deny", "limit", "budget"]))
    rule: dict[str, Any] = {verb: draw(TEXTS)}
    optional: dict[str, st.SearchStrategy[Any]] = {
        "when": st.dictionaries(st.sampled_from(["amount", "path"]), TESTS, min_size=1),
        "agents": TEXTS,
        "risk_tiers": st.sampled_from(["high", ["low", "critical"]]),
        "context": st.just({"env": "prod"}),
        "why": st.just("Because."),
        "shadow": st.booleans(),
        "hours": SCHEDULES,
    }
    if verb == "ask":
        optional |= {"approvers": TEXTS, "expires": st.sampled_from(["30m", "1d"])}
    rule |= {key: draw(values) for key, values in optional.items() if draw(st.booleans())}
    if verb == "limit":
        rule["to"] = draw(st.sampled_from(["1/second", "30/hour per agent", "7/15m sliding"]))
    elif verb == "budget":
        rule["to"] = draw(st.sampled_from(["5 of amount", "5/day of 2.5 per global", "5/1h of f() sliding"]))
    elif "hours" in rule and draw(st.booleans()):
        rule["outside"] = rule.pop("hours")
    return rule


@given(st.lists(rules(), min_size=1, max_size=4))
def test_a_valid_rule_always_compiles(given_rules: list[dict[str, Any]]) -> None:
    """To policies that a manifest takes, with ids of their own."""
    taken: set[str] = set()
    made = [policy for rule in given_rules for policy in compile_rule(rule, taken)[0]]
    assert len(made) >= len(given_rules)
    read = Manifest.model_validate(manifest(policies=made))
    for policy in read.policies:
        policy.rules_of()
    assert len({policy.policy_id for policy in read.policies}) == len(made)


@pytest.mark.parametrize(
    "rule",
    [
        {"limit": "a.b", "to": "NUMBER/day"},
        {"limit": "a.b", "to": "3/NUMBERd"},
        {"budget": "a.b", "to": "NUMBER of 1"},
        {"ask": "a.b", "expires": "NUMBERd"},
    ],
)
def test_a_number_of_thousands_of_digits_is_a_finding(rule: dict[str, Any]) -> None:
    """It is no traceback, though Python reads no such number."""
    long = {key: text.replace("NUMBER", "9" * 5000) for key, text in rule.items()}
    with pytest.raises(AtlasError) as refused:
        Atlas.from_dict(manifest(policies=[], rules=[long]))
    assert any(finding.code == "E011" for finding in refused.value.findings)
