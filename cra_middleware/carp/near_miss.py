"""Why no allow policy counted: the one that came nearest, and what it missed."""

from __future__ import annotations

from collections.abc import Sequence

from cra_middleware.atlas.words import window_in_words
from cra_middleware.carp.policy import Rule, Situation, evaluate
from cra_middleware.carp.time_windows import opens_after

_MINUTE_US = 60_000_000


def nearest_miss(rules: Sequence[Rule], situation: Situation) -> str:
    """The end of a sentence about the rule with the fewest conditions missed; empty when there is no rule."""
    misses = [(rule, [one.name for one in rule.conditions if evaluate(one, situation) is not True]) for rule in rules]
    misses = [(rule, missed) for rule, missed in misses if missed]
    if not misses:
        return ""
    nearest, missed = min(misses, key=lambda item: len(item[1]))
    window = nearest.source.conditions.time_window if nearest.source is not None else None
    if missed == ["time_window"] and window is not None:
        opens_us = opens_after(window, situation.now_us)
        again = "" if opens_us is None else f"; again in {_wait(opens_us - situation.now_us)}"
        return f"; {nearest.policy_id} allows it {window_in_words(window)}{again}"
    return f"; {nearest.policy_id} would, but for its condition on {' and '.join(missed)}"


def _wait(us: int) -> str:
    minutes = max(1, -(-us // _MINUTE_US))
    if minutes < 60:
        return f"{minutes} min"
    hours = -(-minutes // 60)
    return f"{hours} h" if hours < 48 else f"{-(-hours // 24)} days"
