"""The one glob rule, against a matcher that is written another way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cra_middleware.atlas.globs import any_glob, glob

PATTERNS = st.text(alphabet="ab*?.\n[]\\A", max_size=12)
TEXTS = st.text(alphabet="ab.\n[]\\*?Aé", max_size=16)


def reference(pattern: str, text: str) -> bool:
    """Which beginnings of the text the pattern so far can match, letter by letter."""
    ends = {0}
    for letter in pattern:
        if letter == "*":
            ends = set(range(min(ends), len(text) + 1)) if ends else ends
        else:
            ends = {end + 1 for end in ends if end < len(text) and letter in ("?", text[end])}
    return len(text) in ends


@given(PATTERNS, TEXTS)
def test_agrees_with_the_reference(pattern: str, text: str) -> None:
    """``*`` is any run, ``?`` one character, all else itself: two independent matchers agree."""
    assert glob(pattern)(text) is reference(pattern, text)


@given(st.lists(st.sampled_from(["a", "b", "*", "?", "ab", "."]), max_size=10), st.text(alphabet="ab.", max_size=12))
def test_agrees_with_the_reference_on_near_hits(parts: list[str], text: str) -> None:
    """The same, on patterns that match more often than random ones."""
    pattern = "".join(parts)
    assert glob(pattern)(text) is reference(pattern, text)


@given(TEXTS)
def test_a_text_is_matched_by_itself_with_any_run_starred(text: str) -> None:
    """A star may stand for any part of a text, and ``*`` for the whole."""
    assert glob("*")(text)
    for cut in range(len(text) + 1):
        assert glob(text[:cut].replace("*", "?") + "*")(text)
        assert glob("*" + text[cut:].replace("*", "?"))(text)


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        ("ticket.get", "ticket.get", True),
        ("ticket.get", "ticket_get", False),
        ("ticket.get", "Ticket.get", False),
        ("TICKET.*", "ticket.get", False),
        ("ticket.*", "ticket.a.b", True),
        ("ticket.*", "ticket.", True),
        ("ticket.*", "ticket", False),
        ("*.delete", "a.b.delete", True),
        ("*.delete", "a.delete.b", False),
        ("**", "", True),
        ("", "", True),
        ("", "a", False),
        ("?", "", False),
        ("?", ".", True),
        ("?", "\n", True),
        ("?", "é", True),
        ("?", "ab", False),
        ("a?c", "abc", True),
        ("*", "a\nb", True),
        ("a*b", "a\n\nb", True),
        ("ticket.get", "ticket.get\n", False),
        ("ticket.*t", "ticket.get\n", False),
        ("[ab]", "a", False),
        ("[ab]", "[ab]", True),
        ("[!a]*", "b", False),
        ("a|b", "a", False),
        ("a.c", "abc", False),
        ("(a)", "a", False),
        ("^a$", "a", False),
        ("\\?", "\\x", True),
        ("\\*", "\\", True),
        ("a*?", "a", False),
        ("*a*a*", "aba", True),
        ("*ab*ba*", "aba", False),
        ("ab*ab", "ab", False),
    ],
)
def test_table(pattern: str, text: str, matches: bool) -> None:
    """Case counts, dots are crossed, a final newline too is a character, and brackets are no classes."""
    assert glob(pattern)(text) is matches


@pytest.mark.parametrize(
    "pattern", ["*a" * 500 + "b", "a*" * 500 + "b", "?*" * 200 + "b", "*" * 5000 + "b", "*aa" * 300 + "?b"]
)
def test_hostile_patterns_end(pattern: str) -> None:
    """Many stars on a text that almost matches: a matcher that tried every way would not come back."""
    assert glob(pattern)("a" * 2000) is False
    assert glob(pattern)("a" * 2000 + "b") is reference(pattern, "a" * 2000 + "b")


@given(st.lists(PATTERNS, max_size=4), TEXTS)
def test_any_glob(patterns: list[str], text: str) -> None:
    """One matching pattern is enough; no patterns match nothing."""
    assert any_glob(patterns)(text) is any(reference(pattern, text) for pattern in patterns)
