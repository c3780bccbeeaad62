"""A call's arguments as markup: JSON with every text isolated, so that no letter moves or hides another."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from markupsafe import Markup

from cra_middleware.trace_page.rows import escape, pieces_of

_MAX_DEPTH = 64
_STEP = "  "


def visible(text: str) -> Markup:
    """``text`` whole, what a reader could not see in it shown as a marked escape."""
    return Markup("").join(
        Markup('{}<i class="odd">{}</i>').format(before, escape(odd)) if odd else Markup.escape(before)
        for before, odd in pieces_of(text)
    )


def in_full(value: object) -> Markup:
    """``value`` as indented JSON."""
    return Markup("").join(_parts(value, 0))


def size_of(value: object) -> int:
    """How many letters ``in_full`` shows, about."""
    return len(json.dumps(value, default=str, ensure_ascii=False))


def _parts(value: object, depth: int) -> Iterator[Markup]:
    inner = Markup("\n") + _STEP * (depth + 1)
    if depth >= _MAX_DEPTH or not isinstance(value, Mapping | list | tuple) or not value:
        yield _text(value)
    elif isinstance(value, Mapping):
        for place, (key, item) in enumerate(value.items()):
            yield Markup("{" if place == 0 else ",") + inner + Markup('<span class="key">') + _text(str(key))
            yield Markup("</span>: ")
            yield from _parts(item, depth + 1)
        yield Markup("\n") + _STEP * depth + "}"
    else:
        for place, item in enumerate(value):
            yield Markup("[" if place == 0 else ",") + inner
            yield from _parts(item, depth + 1)
        yield Markup("\n") + _STEP * depth + "]"


def _text(value: object) -> Markup:
    return Markup("<bdi>") + visible(json.dumps(value, default=str, ensure_ascii=False)) + Markup("</bdi>")
