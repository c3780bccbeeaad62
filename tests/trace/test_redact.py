"""What never reaches a sink."""

from __future__ import annotations

import json

from cra_middleware._canonical import canonical
from cra_middleware.atlas.globs import glob
from cra_middleware.trace.redact import Redactor


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
