"""What never reaches a sink."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cra_middleware._canonical import MAX_DEPTH, canonical
from cra_middleware.atlas import redactions
from cra_middleware.atlas.globs import glob
from cra_middleware.trace.commitments import commitment_text
from cra_middleware.trace.patterns import FINDERS
from cra_middleware.trace.redact import FACTS, Redactor, Rule, is_hidden

EVERY = glob("*")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc$"), inner, max_size=3),
    max_leaves=12,
)


def test_values_are_hidden_by_action_and_name() -> None:
    """Only there, only those; equal values have equal tags, and the result is canonical text."""
    redactor = Redactor([(glob("*"), "email"), (glob("ticket.reply"), "body")])
    text = canonical({"email": "a@b", "body": ["secret", 1.5], "n": 1})
    shown = redactor.redacted("ticket.reply", text)
    assert b"a@b" not in shown
    assert b"secret" not in shown
    assert json.loads(shown)["n"] == 1
    assert canonical(json.loads(redactor.redacted("ticket.get", canonical({"body": 1})))) == b'{"body":1}'
    assert redactor.redacted("ticket.get", canonical({"body": 1})) == b'{"body":1}'
    again = redactor.redacted("order.get", canonical({"email": "a@b"}))
    assert json.loads(again)["email"] == json.loads(shown)["email"]
    other = redactor.redacted("order.get", canonical({"email": "a@c"}))
    assert json.loads(other)["email"] != json.loads(shown)["email"]
    assert list(json.loads(shown)) == sorted(json.loads(shown))


def test_another_run_has_another_salt() -> None:
    """Nobody can try values out later."""
    text = canonical({"email": "a@b"})
    tags = {Redactor([(glob("*"), "email")]).redacted("a.b", text) for _ in range(3)}
    assert len(tags) == 3


def test_nothing_to_hide() -> None:
    """Other texts come back as they are, what cannot be written down included."""
    redactor = Redactor([(glob("*"), "email")])
    for text in (b"{}", b'{"a":1}', b'"cra:opaque:arguments"'):
        assert redactor.redacted("a.b", text) is text
    assert Redactor([]).redacted("a.b", b"{}") == b"{}"


def shown(redactor: Redactor, value: object, part: Any = "arguments") -> Any:
    """What is left of a value."""
    return json.loads(redactor.shown("ticket.reply", canonical(value), part).text)


def place(*steps: str, personal: bool = False) -> Rule:
    """A rule about every action's arguments and results."""
    return Rule(EVERY, steps, personal, only_arguments=False)


@pytest.mark.parametrize(
    ("steps", "value", "left"),
    [
        (("a",), {"a": 1, "b": 2}, {"a": "?", "b": 2}),
        (("a", "b"), {"a": {"b": [1], "c": 2}, "b": 3}, {"a": {"b": "?", "c": 2}, "b": 3}),
        (("a", "*", "b"), {"a": [{"b": 1}, {"c": 2}, 3]}, {"a": [{"b": "?"}, {"c": 2}, 3]}),
        (("a", "*"), {"a": {"x": 1, "y": [2]}}, {"a": {"x": "?", "y": "?"}}),
        (("a", "1"), {"a": [1, 2]}, {"a": [1, "?"]}),
        (("*",), {"a": 1, "b": {}}, {"a": "?", "b": "?"}),
        (("a", "b", "c"), {"a": {"b": 1}}, {"a": {"b": 1}}),
        (("a/b~c",), {"a/b~c": 1}, {"a/b~c": "?"}),
    ],
)
@pytest.mark.parametrize("part", ["arguments", "result"])
def test_values_are_hidden_by_place(steps: tuple[str, ...], value: object, left: object, part: str) -> None:
    """A pointer's steps are keys and indices, ``*`` is any; arguments and results alike."""
    text = json.dumps(shown(Redactor([place(*steps)]), value, part), sort_keys=True)
    while "cra:redacted:" in text:
        at = text.index("cra:redacted:")
        text = text[:at] + "?" + text[at + len("cra:redacted:") + 64 :]
    assert json.loads(text) == left


def test_a_name_is_about_arguments_only() -> None:
    """As it always was: results are hidden by place or form."""
    assert shown(Redactor([(EVERY, "email")]), {"email": "a@b"}, "result") == {"email": "a@b"}


def test_forms_are_hidden_everywhere() -> None:
    """In values at any depth, in keys, in whole numbers; what are hashes already and what has no such form stay."""
    redactor = Redactor([], ("email", "card"))
    value = {
        "to a@b.org": ["mail a@b.org now", {"n": 4111111111111111, "m": 4111111111111112}],
        "a@y.org": 0,
        "x@y.org": 1,
        "z@y.org": 2,
        "cra:redacted:email": 3,
        "blob": b"4",
        "flag": True,
    }
    left = shown(redactor, value)
    assert left.pop("blob").startswith("cra:bytes:")
    assert left == {
        "to cra:redacted:email": ["mail cra:redacted:email now", {"n": "cra:redacted:card", "m": 4111111111111112}],
        "cra:redacted:email:1": 0,
        "cra:redacted:email:2": 1,
        "cra:redacted:email:3": 2,
        "cra:redacted:email": 3,
        "flag": True,
    }
    assert redactor.plain("no a@b.org") == "no cra:redacted:email"


def test_a_hash_is_not_searched() -> None:
    """The digits of a digest are nobody's telephone number, whatever they look like."""
    text = b'{"a":"cra:bytes:4111111111111111"}'
    assert Redactor([], ("card",)).redacted("a.b", text) is text


def test_a_personal_value_becomes_a_commitment() -> None:
    """It can be checked with the salt and the canonical value, and with nothing less."""
    made = Redactor([place("who", personal=True)]).shown("a.b", canonical({"who": {"b": 1, "a": "é"}, "n": 1}))
    (kept,) = made.commitments
    assert json.loads(made.text) == {"who": {"$commit": kept.text, "ref": kept.ref}, "n": 1}
    assert kept.value == canonical({"a": "é", "b": 1})
    assert len(kept.salt) == 16
    assert kept.text == commitment_text(kept.salt, kept.value)
    assert made.by_place


def test_the_format_of_a_commitment() -> None:
    """As documented, to the byte: nobody needs this program to check one."""
    digest = "46403b6455a687e4dbd4ed003678cc631852f08a63aef6ac148cb3f01c214bb2"
    assert commitment_text(bytes(range(16)), b'"a@b.org"') == f"sha256:{digest}"


def test_what_wins_where_rules_meet() -> None:
    """Hidden over personal, the outer over the inner, both over a form; what is kept loses what is hidden in it."""
    rules = [place("a", personal=True), place("a", "pin"), place("a", "*", personal=True), place("b", personal=True)]
    made = Redactor([*rules, place("b")], ("email",)).shown("x.y", canonical({"a": {"pin": 1, "m": "a@b.org"}, "b": 2}))
    left = json.loads(made.text)
    assert left["b"].startswith("cra:redacted:")
    (kept,) = made.commitments
    assert left["a"] == kept.mapping()
    inside = json.loads(kept.value)
    assert inside["m"] == "a@b.org"
    assert inside["pin"].startswith("cra:redacted:")


def test_nothing_imitates_a_commitment() -> None:
    """Where commitments may stand, a caller's own key of that name is written with one more dollar."""
    value = {"x": {"$commit": "sha256:0", "ref": "r"}, "$$commit": 1, "$commits": 2}
    assert shown(Redactor([place("y", personal=True)]), value) == {
        "x": {"$$commit": "sha256:0", "ref": "r"},
        "$$$commit": 1,
        "$commits": 2,
    }
    assert shown(Redactor([place("y")]), value) == value


@given(
    JSON, st.lists(st.tuples(st.lists(st.sampled_from("abc*0$"), min_size=1, max_size=3), st.booleans()), max_size=4)
)
def test_the_result_is_canonical(value: object, rules: list[tuple[list[str], bool]]) -> None:
    """Whatever is hidden: the text that is recorded is canonical, and hiding again from it changes no tag."""
    redactor = Redactor([place(*steps, personal=personal) for steps, personal in rules], tuple(FINDERS))
    text = canonical(value)
    made = redactor.shown("a.b", text, "result")
    again = json.dumps(json.loads(made.text), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert made.text == again.encode()
    assert is_hidden(json.loads(made.text)) or made.text == text or b"$" in text
    assert all(kept.ref.encode() in made.text for kept in made.commitments)


def test_the_deepest_value() -> None:
    """What can be recorded can be searched."""
    value: object = "a@b.org"
    for _ in range(MAX_DEPTH):
        value = [value]
    assert b"cra:redacted:email" in Redactor([], ("email",)).shown("a.b", canonical(value)).text
    made = Redactor([place(*["0"] * MAX_DEPTH, personal=True)]).shown("a.b", canonical(value))
    assert [kept.value for kept in made.commitments] == [b'"a@b.org"']


def test_atlas_and_trace_agree() -> None:
    """They do not know each other, so a test holds their two words for one thing together."""
    assert set(redactions.PATTERNS) == set(FINDERS)
    assert redactions.FACTS == FACTS
