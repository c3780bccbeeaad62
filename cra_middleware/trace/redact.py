"""What never reaches a sink: arguments that an Atlas names are replaced by a salted hash before they are recorded.

``<action glob>.<argument>``: ``*.email`` hides that argument of every action, ``ticket.reply.body`` one of one. The
salt is made anew by every process and never stored: within a run equal values have equal hashes, afterwards nobody
can try values out.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Sequence

import orjson

Matches = Callable[[str], bool]
TAG = "cra:redacted:"


class Redactor:
    """Hides arguments by action and name."""

    def __init__(self, patterns: Sequence[tuple[Matches, str]]) -> None:
        """``patterns``: a test for the action, and the argument's name."""
        self._patterns = tuple(patterns)
        self._salt = secrets.token_bytes(32)

    def hidden(self, action_id: str) -> frozenset[str]:
        """The arguments of an action that are hidden."""
        return frozenset(name for matches, name in self._patterns if matches(action_id))

    def redacted(self, action_id: str, text: bytes) -> bytes:
        """The canonical text of a call's arguments, without the values that are hidden."""
        hidden = self.hidden(action_id)
        value = orjson.loads(text) if hidden else None
        if not isinstance(value, dict) or hidden.isdisjoint(value):
            return text
        shown = {name: self._tag(item) if name in hidden else item for name, item in value.items()}
        return orjson.dumps(shown, option=orjson.OPT_SORT_KEYS)

    def _tag(self, item: object) -> str:
        return TAG + hmac.new(self._salt, orjson.dumps(item, option=orjson.OPT_SORT_KEYS), "sha256").hexdigest()
