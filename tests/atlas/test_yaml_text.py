"""YAML as Atlases use it: no surprises, no bombs, no other errors than our own."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cra_middleware.atlas.yaml_text import MAX_CHARACTERS, NotYamlError, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: no", {"a": "no"}),
        ("a: [yes, on, off, y, n, Yes, NO]", {"a": ["yes", "on", "off", "y", "n", "Yes", "NO"]}),
        ("a: [true, True, FALSE]", {"a": [True, True, False]}),
        ("a: 09:00", {"a": "09:00"}),
        ("a: 12:30:45", {"a": "12:30:45"}),
        ("a: 2026-01-05", {"a": "2026-01-05"}),
        ("a: 2026-01-05T12:00:00Z", {"a": "2026-01-05T12:00:00Z"}),
        ("a: 007", {"a": "007"}),
        ("a: 1_000", {"a": "1_000"}),
        ("a: 0x1F", {"a": "0x1F"}),
        ("a: 0b11", {"a": "0b11"}),
        ("a: [1, -5, +3, 1.5, 1e3, .5, -0.0]", {"a": [1, -5, 3, 1.5, 1000.0, 0.5, -0.0]}),
        ("a: [~, null, Null]", {"a": [None, None, None]}),
        ("a:", {"a": None}),
        ("a: '5'", {"a": "5"}),
        ("a: .inf.", {"a": ".inf."}),
        ("a: .nan", {"a": ".nan"}),
        ("a: &x [1]\nb: *x", {"a": [1], "b": [1]}),
        ("a: &x {p: 1, q: 2}\nb: {<<: *x, q: 3}", {"a": {"p": 1, "q": 2}, "b": {"p": 1, "q": 3}}),
        ('{"json": [1, "a\\u00e4"]}', {"json": [1, "aä"]}),
        ("", None),
    ],
)
def test_values(text: str, value: Any) -> None:
    """What stands there is what is meant."""
    assert read_yaml(text) == value


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: 1\na: 2", r"duplicate key 'a' \(line 2, column 1\)"),
        ("a: {b: 1, b: 2}", "duplicate key 'b'"),
        ("1: a", r"no text \(line 1, column 1\)"),
        ("true: a", "no text"),
        ("? [a]\n: b", "no text"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a: !mine x", "could not determine a constructor"),
        ("a: [1", r"not YAML: .*line 1|not YAML: .*line 2"),
        ("a: b: c", "not YAML"),
        ("a: *none", "undefined alias"),
        ("--- a\n--- b", "not YAML"),
        ("a: &x [*x]", "an anchor inside itself"),
        ("a: \x00", "does not allow"),
        ("a: 1e999", "not finite"),
        ("a: " + "9" * 5000, "too long to read"),
        ("[" * 5000, "nested too deeply"),
        ("x" * (MAX_CHARACTERS + 1), "write it as JSON"),
        (
            "\n".join(["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9))]),
            "unfolds into more than",
        ),
    ],
)
def test_what_is_refused(text: str, why: str) -> None:
    """With line and column where there are some."""
    with pytest.raises(NotYamlError, match=why):
        read_yaml(text)


@given(st.text(max_size=200))
def test_no_other_error(text: str) -> None:
    """Whatever the text is."""
    with contextlib.suppress(NotYamlError):
        read_yaml(text)


@given(st.text(alphabet="&*!|>{}[]:,-?#'\"%@` \n\tab<1", max_size=60))
def test_no_other_error_in_what_looks_like_yaml(text: str) -> None:
    """Made of its own signs."""
    with contextlib.suppress(NotYamlError):
        read_yaml(text)
