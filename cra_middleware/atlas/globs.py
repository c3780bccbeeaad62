"""The one glob rule, for actions and for agents.

Case counts. ``*`` is any run of characters, dots included; ``?`` is one character; nothing else is special.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache

Match = Callable[[str], bool]


@lru_cache(maxsize=4096)
def glob(pattern: str) -> Match:
    """A test for one pattern."""
    if "*" not in pattern and "?" not in pattern:
        return pattern.__eq__
    if "*" not in pattern:
        return _full_match(re.compile(re.escape(pattern).replace(r"\?", "."), re.DOTALL))
    prefix, *middle, suffix = (re.escape(part).replace(r"\?", ".") for part in re.split(r"\*+", pattern))
    # The earliest place for each middle part is as good as any later one, so none is tried again (`?>`):
    # matching stays linear in the text however many stars there are.
    inner = "".join(f"(?>.*?{part})" for part in middle)
    return _full_match(re.compile(f"{prefix}{inner}.*{suffix}", re.DOTALL))


def any_glob(patterns: Iterable[str]) -> Match:
    """A test that holds when one of ``patterns`` does."""
    tests = tuple(glob(pattern) for pattern in patterns)
    return tests[0] if len(tests) == 1 else lambda text: any(test(text) for test in tests)


def _full_match(pattern: re.Pattern[str]) -> Match:
    return lambda text: pattern.fullmatch(text) is not None
