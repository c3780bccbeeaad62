"""``cra atlas lock``: hold tools to what they were when a person looked at them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from cra_middleware.atlas.lock import NAME, changes, digests, lock_text, renewed
from cra_middleware.cli.atlas import load
from cra_middleware.cli.output import say, stop
from cra_middleware.cli.tools import SOURCES, tools_from

_STYLES = {"new": "yellow", "changed": "bold red", "gone": "dim"}


def lock_command(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="The Atlas's folder.")],
    source: Annotated[str, typer.Option("--from", metavar="SOURCE", help=SOURCES)],
    check: Annotated[bool, typer.Option("--check", help="Only say what differs; write nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="You have looked: write without asking.")] = False,
) -> None:
    """Write FOLDER/atlas.lock: the digests of each tool's name, description and schema.

    From then on a tool of that source that is new or says something else is hidden and denied, until you look at it
    and lock again. MCP servers change under you; a description is an instruction to a model.

    \b
    Example:  cra atlas lock atlas --from "mcp:npx -y @modelcontextprotocol/server-filesystem ."
    In CI:    cra atlas lock atlas --from mcp:./server.py --check

    Exit code: 0, 1 when --check found a difference, you said no, or the tools cannot be read, 2 for wrong usage.
    """
    atlas = load(folder)
    if not Path(folder).is_dir():
        raise stop(f"{folder} is no folder: a lock lies beside atlas.yaml", 2)
    if source.startswith("openapi:"):
        raise stop("an OpenAPI document is not what a model is told at run time; lock the tools themselves", 2)
    tools = tools_from(source)
    found = digests(tools.described)
    differing = changes(atlas.lock, tools.source, found)
    described = {name: (text, schema) for name, text, schema in tools.described}
    for change in differing:
        say((change.name, "bold"), lead=(change.kind, _STYLES[change.kind]), indent=10)
        text, schema = described.get(change.name, ("", None))
        if change.kind != "gone":
            say(f"          {text or '(no description)'}")
            say((f"          {json.dumps(schema)}", "dim"))
    if not differing:
        say(f"{tools.source}: {len(found)} tools, as they were looked at")
        return
    if check:
        raise stop(f"{len(differing)} of {tools.source} differ from {NAME}; look at them, then lock again", 1)
    if not yes:
        if not sys.stdin.isatty():
            raise stop("nothing was written: look at the tools above, then say --yes", 1)
        if not typer.confirm(f"Are these {len(differing)} as they should be?"):
            raise stop("nothing was written", 1)
    target, written = Path(folder) / NAME, Path(folder) / f"{NAME}.new"
    try:
        written.write_text(lock_text(renewed(atlas.lock, tools.source, found)), encoding="utf-8")
        os.replace(written, target)
    except OSError as error:
        raise stop(f"{target} cannot be written: {error.strerror or error}", 1) from None
    say((str(target), "bold green"), f": {len(found)} tools of {tools.source}")
