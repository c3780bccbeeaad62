"""A first Atlas from tools and traces: always valid, whatever names they have."""

from __future__ import annotations

import re
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cra_middleware import Atlas, Runtime, Session, governed
from cra_middleware.atlas.manifest import ACTION_ID
from cra_middleware.atlas.yaml_text import read_yaml
from cra_middleware.carp.resolver import Resolver
from cra_middleware.replay import replay
from cra_middleware.sketch import ToolSketch, action_ids, atlas_files, atlas_text, learn
from tests.conftest import manifest

HOSTILE = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["yes", "a: b", "- allow: '*'", "a\n  - allow: x", "#x", "search_docs", "ticket.get", "\u202e", "0"]
    ),
)


@given(st.lists(HOSTILE, unique=True, max_size=6), st.sampled_from(["allow", "ask", None]))
def test_any_name_makes_a_valid_atlas(names: list[str], verb: str | None) -> None:
    """Nothing in a name becomes a rule, and every tool is mapped to its own action."""
    names = [name for name in names if not any("\ud800" <= letter <= "\udfff" for letter in name)]
    tools = [ToolSketch(name, name, {"type": "object"}, (name,), verb) for name in names]
    raw: Any = read_yaml(atlas_text(tools, "\n".join(names)))
    ids = action_ids(names)
    assert len(set(ids.values())) == len(names)
    assert all(re.fullmatch(ACTION_ID, name) for name in ids.values())
    assert [entry["action_id"] for entry in raw["actions"] or ()] == [ids[name] for name in names]
    allowed = [rule["allow"] for rule in raw["rules"] or () if "allow" in rule]
    assert allowed == ([] if verb is None else [ids[name] for name in names])
    mapped = raw.get("adapters", {}).get("any", {}).get("tools", {})
    assert mapped == {name: ids[name] for name in names if ids[name] != name}
    for text in atlas_files(tools, "x").values():
        read_yaml(text)


def test_what_was_seen_is_proposed() -> None:
    """What ran is allowed, what was asked is asked, what was refused stays a comment; arguments by name and type."""
    with Runtime.observe(record="full") as runtime, runtime.session("bot") as session:
        for limit in (5, 2.5):
            session.call("search_docs", lambda q, limit, deep=None: None, "x", limit)
    tools = learn([session.events])
    assert (tools[0].name, tools[0].verb) == ("search_docs", "allow")
    assert tools[0].notes == ("2 calls by 1 agent, at most 2 in an hour",)
    schema: Any = tools[0].schema
    assert schema["properties"] == {"q": {"type": "string"}, "limit": {"type": "number"}, "deep": {"type": "null"}}
    assert "x" not in str(yaml.safe_load(atlas_text(tools, "t"))["actions"][0]["parameters_schema"]["properties"]["q"])
    policies = [
        {"policy_id": "yes", "type": "allow"},
        {"policy_id": "ask", "type": "require_approval", "actions": ["refund.*"]},
        {"policy_id": "no", "type": "deny", "actions": ["ticket.delete"]},
    ]

    with Runtime(Atlas.from_dict(manifest(policies=policies)), approver=lambda pending: True) as runtime:
        with runtime.session() as session:
            session.call("refund.create", lambda: None)
            with pytest.raises(Exception, match="was not run"):
                session.call("ticket.delete", lambda: None)
            with pytest.raises(ZeroDivisionError):
                session.call("ticket.get", lambda: 1 / 0)
    proposed = {tool.name: (tool.verb, tool.notes) for tool in learn([session.events])}
    assert proposed["refund.create"][0] == "ask"
    assert proposed["ticket.delete"][0] is None
    assert proposed["ticket.get"][1][1] == "1 of 1 failed"
    rules = read_yaml(atlas_text(learn([session.events]), "t"))["rules"]  # type: ignore[index,call-overload]
    assert [next(iter(rule.items())) for rule in rules] == [  # type: ignore[union-attr]
        ("allow", "refund.create"),
        ("ask", "refund.create"),
        ("allow", "ticket.get"),
    ]


def _calls(session: Session) -> None:
    """The same traffic each time: tools under their own names, positional arguments, odd values."""
    session.call("search_docs", lambda query, limit=5: "found", "refunds")
    session.call("search.docs", lambda n: n, "&x: - #")
    session.call("store", lambda data: None, b"\x00\xff")
    session.call("store", lambda data: None, {"parts": [b"\x00"]})
    session.call("CamelTool", lambda page: None, None)
    session.call("when", lambda at, cost: None, date(2026, 1, 5), Decimal("1.5"))
    _delete_page("old")


@governed("delete-page")
def _delete_page(page: str) -> None:
    return None


def test_what_was_observed_runs_under_the_learned_atlas() -> None:
    """Observed, learned, enforced, replayed: the identical traffic is allowed, and replay says the same."""
    with Runtime.observe(record="full") as runtime, runtime.session("bot") as session:
        _calls(session)
    atlas = Atlas.from_dict(read_yaml(atlas_text(learn([session.events]), "t")))  # type: ignore[arg-type]
    with Runtime(atlas, record="full") as runtime, runtime.session("bot") as again:
        _calls(again)
    decided = replay([session.events], Resolver([atlas]))
    assert [step.now.word for step in decided.changed] == []
    assert [step.action_id for step in decided.undecidable] == ["store", "store"]  # bytes are in no trace
    assert replay([again.events], Resolver([atlas])).changed == ()
