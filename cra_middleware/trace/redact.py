"""What never reaches a sink: values are replaced before they are hashed or recorded.

By name (``*.email``), an argument becomes a salted hash: the salt is made anew by every process and never stored, so
within a run equal values have equal tags, and afterwards nobody can try values out. By place
(``ticket.reply#/customer/email``) the same, in arguments and results. By form (``pattern:email``), what is found inside
any text becomes ``cra:redacted:email``. Personal values become a commitment, which ``commitments`` describes.

A place that is hidden wins over one that is personal, and both over a form; what stands for a value is not searched.
"""

from __future__ import annotations

import hmac
import json
import re
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import orjson

from cra_middleware.errors import SinkError
from cra_middleware.trace.commitments import KEY, Commitment, commit
from cra_middleware.trace.patterns import FINDERS, TAG, hide

Matches = Callable[[str], bool]
Part = Literal["arguments", "result"]
FACTS = "context"
"""Stands for an action where the facts of a session are recorded: ``*.email`` and ``context.email`` are about them."""
ANY = "*"
"""A step of a pointer: every item, every key."""

_HASHED = ("cra:bytes:", "cra:set:")
_RESERVED = re.compile(r"\$+commit").fullmatch
_SORTED = orjson.OPT_SORT_KEYS


class Rule(NamedTuple):
    """A place whose values are not recorded."""

    matches: Matches
    """Which actions it is about."""
    steps: tuple[str, ...]
    """Keys and indices from the arguments, or from the result, down to the value."""
    is_personal: bool = False
    """It becomes a commitment, not a tag."""
    only_arguments: bool = True
    """It says nothing about results."""


class Shown(NamedTuple):
    """What of a value may be recorded."""

    text: bytes
    """Canonical JSON."""
    commitments: tuple[Commitment, ...] = ()
    """To be kept before ``text`` is recorded."""
    by_place: bool = False
    """Something was hidden for its name or place, which free text about it could repeat."""


class Redactor:
    """Hides values by action and place, or by their form."""

    def __init__(self, rules: Sequence[Rule | tuple[Matches, str]], patterns: Sequence[str] = ()) -> None:
        """``rules``: whole, or a test for the action and an argument's name; ``patterns``: names of ``FINDERS``."""
        self._rules = [rule if isinstance(rule, Rule) else Rule(rule[0], (rule[1],)) for rule in rules]
        self._patterns = tuple(name for name in FINDERS if name in patterns)
        self._is_personal = any(rule.is_personal for rule in self._rules)
        self._salt = secrets.token_bytes(32)

    def shown(self, action_id: str, text: bytes, part: Part = "arguments") -> Shown:
        """The canonical ``text`` of a call's arguments or result, without what is hidden.

        Raises:
            SinkError: when it is nested too deeply to be searched.
        """
        rules = [
            rule for rule in self._rules if rule.matches(action_id) and (part == "arguments" or not rule.only_arguments)
        ]
        if not rules and not self._patterns and not (self._is_personal and b"commit" in text):
            return Shown(text)
        walk = _Walk(self._salt, self._patterns, self._is_personal)
        try:
            shown = walk.shown(orjson.loads(text), [(rule.steps, rule.is_personal) for rule in rules])
        except RecursionError:
            raise SinkError("a value is nested too deeply to be searched for what must be hidden") from None
        if not walk.has_changed:
            return Shown(text)
        return Shown(orjson.dumps(shown, option=_SORTED), tuple(walk.commitments), walk.by_place)

    def redacted(self, action_id: str, text: bytes) -> bytes:
        """The canonical text of a call's arguments, without the values that are hidden."""
        return self.shown(action_id, text).text

    def plain(self, text: str) -> str:
        """Free text, without what is hidden for its form."""
        return hide(text, self._patterns)


_Places = list[tuple[tuple[str, ...], bool]]


@dataclass(slots=True)
class _Walk:
    """One value on its way."""

    salt: bytes
    patterns: tuple[str, ...]
    is_personal: bool
    """Commitments may stand in the trace: nothing else may look like one."""
    commitments: list[Commitment] = field(default_factory=list)
    has_changed: bool = False
    by_place: bool = False

    def shown(self, value: object, places: _Places, inside: bool = False) -> object:
        """``value`` with everything at or below it replaced; ``inside`` a value that is kept elsewhere."""
        ends = [is_personal for steps, is_personal in places if not steps]
        if ends:
            self.has_changed = self.by_place = True
            if not all(ends):
                return self._tag(value)
            kept = self.shown(value, [place for place in places if not place[1]], inside=True)
            made = commit(orjson.dumps(kept, option=_SORTED))
            self.commitments.append(made)
            return made.mapping()
        if isinstance(value, dict):
            return self._mapping(value, places, inside)
        if isinstance(value, list):
            return [self.shown(item, _below(places, str(index)), inside) for index, item in enumerate(value)]
        return value if inside or not self.patterns else self._searched(value)

    def _mapping(self, value: dict[str, object], places: _Places, inside: bool) -> dict[str, object]:
        shown: dict[str, object] = {}
        numbers: Counter[str] = Counter()
        for key, item in value.items():
            name = new = key if inside else self._key(key)
            while name != key and (name in shown or name in value):  # without what is hidden, two may be the same
                numbers[new] += 1
                name = f"{new}:{numbers[new]}"
            shown[name] = self.shown(item, _below(places, key), inside)
        return shown

    def _key(self, key: str) -> str:
        found = hide(key, self.patterns)
        if self.is_personal and _RESERVED(found):
            found = f"${found}"
        self.has_changed = self.has_changed or found != key
        return found

    def _searched(self, value: object) -> object:
        if isinstance(value, str):
            text, patterns = value, () if value.startswith(_HASHED) else self.patterns
        elif type(value) is int and "card" in self.patterns:
            text, patterns = str(value), ("card",)
        else:
            return value
        found = hide(text, patterns)
        if found == text:
            return value
        self.has_changed = True
        return found

    def _tag(self, item: object) -> str:
        return TAG + hmac.new(self.salt, orjson.dumps(item, option=_SORTED), "sha256").hexdigest()


def _below(places: _Places, key: str) -> _Places:
    return [(steps[1:], is_personal) for steps, is_personal in places if steps and steps[0] in (ANY, key)]


def is_hidden(value: object) -> bool:
    """Whether a recorded value lacks something that was hidden."""
    text = json.dumps(value)
    return TAG in text or f'"{KEY}"' in text
