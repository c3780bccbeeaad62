"""Observe mode out loud: what would have been refused is printed, once for each action and policy."""

from __future__ import annotations

import sys
import threading
from contextlib import suppress

from cra_middleware._fork import tell_child
from cra_middleware.carp.call import Shadow, ToolCall


class Loudspeaker:
    """Prints to stderr; hears of every call that ran only because nothing was enforced."""

    def __init__(self) -> None:
        self._said: set[tuple[str, str]] = set()
        self._lock = threading.Lock()
        tell_child(self)

    def forked(self) -> None:
        """In a forked child: another thread of the parent's may have held the lock."""
        self._lock = threading.Lock()

    def __call__(self, call: ToolCall, shadow: Shadow) -> None:
        """Say it, unless the same was said before."""
        key = (call.action_id, shadow.policy_id)
        with self._lock:
            if key in self._said or len(self._said) > 1000:
                return
            self._said.add(key)
        would = "be denied" if shadow.verdict == "deny" else "wait for a person"
        text = f"cra observes: {call.action_id} would {would}: {shadow.reason} [{shadow.code}]"
        # an action id may be a foreign tool's name: nothing in it may steer a terminal
        with suppress(OSError, ValueError):  # a stderr that is gone must not stop what is only observed
            print("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text), file=sys.stderr)
