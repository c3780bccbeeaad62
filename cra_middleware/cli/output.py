"""Printing: rows for people, JSON for machines, sentences for stderr.

Everything printed goes through here and is escaped here, so no text from a trace or an Atlas can act on a
terminal. Rows are wrapped and coloured on a terminal only; in a pipe each is one plain line.
"""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

Part = str | tuple[str, str]
"""A piece of a row: text, or text and a rich style."""


class Format(StrEnum):
    """What stdout is for."""

    text = "text"
    json = "json"


FormatOption = Annotated[Format, typer.Option("--format", help="For people, or one JSON document for programs.")]


def shown(text: object) -> str:
    """``text`` with whatever is not printable written as an escape: controls, surrogates, bidi marks, odd blanks."""
    plain = str(text)
    if plain.isprintable():
        return plain
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in plain)


def say(*body: Part, lead: Part = "", indent: int = 0) -> None:
    """One row: ``lead``, padded to ``indent`` cells, then ``body``, which wraps below its own beginning."""
    lead_text = shown(lead if isinstance(lead, str) else lead[0])
    pieces = [(shown(part), "") if isinstance(part, str) else (shown(part[0]), part[1]) for part in body]
    if not sys.stdout.isatty():
        gap = "  " if lead_text.strip() and len(lead_text) >= indent else ""
        print((lead_text.ljust(indent) + gap + "".join(text for text, _ in pieces)).rstrip())
        return
    from rich.text import Text

    console = _console()
    head = Text(lead_text, "" if isinstance(lead, str) else lead[1])
    lines = list(Text.assemble(*pieces).wrap(console, max(console.width - indent, 20), overflow="fold"))
    if lead_text.strip() and head.cell_len >= indent:
        console.print(head, soft_wrap=True)
        head = Text()
    for line in lines or [Text()]:
        head.pad_right(max(0, indent - head.cell_len))
        row = Text.assemble(head, line)
        row.rstrip()
        console.print(row, soft_wrap=True)
        head = Text()


def json_text(value: object, indent: int | None = 2) -> str:
    """``value`` as ASCII JSON; infinities, which JSON does not have, become text."""
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except ValueError:
        return json.dumps(json.loads(json.dumps(value), parse_constant=str), indent=indent)


def emit(value: object) -> None:
    """The one JSON document of a command."""
    print(json_text(value))


def complain(message: object) -> None:
    """One line on stderr."""
    print(f"cra: {shown(message)}", file=sys.stderr)


def stop(message: object, code: int) -> typer.Exit:
    """Say what to do on stderr; the exception to raise, which ends the command."""
    complain(message)
    return typer.Exit(code)


@cache
def _console() -> Console:
    from rich.console import Console  # not at the top: it costs 40 ms, which a pipe need not pay

    return Console(highlight=False)
