"""``cra atlas init`` and ``cra trace learn``: a first Atlas to edit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cra_middleware.atlas.loader import inspect
from cra_middleware.atlas.lock import NAME, digests, lock_text, renewed
from cra_middleware.cli.output import complain, say, stop
from cra_middleware.cli.tools import SOURCES, tools_from
from cra_middleware.cli.trace_files import events_of, intact_files
from cra_middleware.sketch import ToolSketch, atlas_files, atlas_text, learn

_EXAMPLE = ToolSketch(
    "ticket.get",
    "An example: returns one ticket",
    {
        "type": "object",
        "properties": {"ticket_id": {"type": "string"}},
        "required": ["ticket_id"],
        "additionalProperties": False,
    },
)


def init(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Where the Atlas is made.")] = "atlas",
    source: Annotated[
        str, typer.Option("--from", metavar="SOURCE", help=f"Tools to write actions for: {SOURCES}")
    ] = "",
    atlas_id: Annotated[str, typer.Option("--id", help="The Atlas's id, a reversed domain.")] = "com.example.agent",
) -> None:
    """Make a first Atlas: actions with their schemas, the tool map, rules to edit, and a test.

    Everything is denied until you take away the # in front of a rule. --from imports the module, or starts the server:
    what they do at start is done. The tools of an MCP server are locked as they are now (cra atlas lock).

    \b
    Example:  cra atlas init atlas --from langchain:my_agent:tools
              cra atlas init atlas --from "mcp:npx -y @modelcontextprotocol/server-filesystem ."
              cra atlas init atlas --from openapi:petstore.yaml
              cra atlas validate atlas && cra atlas test atlas

    Exit code: 0, 1 when a file exists already, the tools cannot be read, or what they say is no Atlas, 2 for wrong
    usage.
    """
    found = tools_from(source) if source else None
    tools = found.sketches if found is not None else [_EXAMPLE]
    files = {Path(folder) / name: text for name, text in atlas_files(tools, "What an agent may do", atlas_id).items()}
    if found is not None and found.framework == "mcp":
        files[Path(folder) / NAME] = lock_text(renewed(None, found.source, digests(found.described)))
    there = [path for path in (*files, Path(folder) / "atlas.json") if path.exists()]
    if there:
        raise stop(f"{there[0]} is there already; name another folder", 1)
    try:
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise stop(f"{folder} cannot be written: {error.strerror or error}", 1) from None
    _, findings = inspect(Path(folder))
    errors = [item for item in findings if item.severity == "error"]
    for item in errors:  # what tools say of themselves may be nothing that an Atlas can hold
        complain(item)
    if errors:
        raise stop(f"{folder} is written, and has errors: mend them, then run: cra atlas validate {folder}", 1)
    say((folder, "bold green"), f": {len(tools)} action{'' if len(tools) == 1 else 's'}, all denied so far")
    say(f"Next: edit {folder}/rules/rules.yaml, then: cra atlas validate {folder} && cra atlas test {folder}")


def learn_command(
    files: Annotated[list[str], typer.Argument(metavar="FILE", help="Trace files, or folders of them.")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="Write there, not to stdout.")] = "",
) -> None:
    """Propose an Atlas from what traces say was called: actions, tool map, and rules with counts.

    What ran is proposed as allowed, what a person was asked about as asked; what was refused stays a comment. Read
    every line: that something happened does not mean that it should. With record="full" the schemas of arguments are
    proposed too; values never are.

    \b
    Example:  cra trace learn traces/ -o atlas.yaml    (after a day with Runtime.observe(trace="traces"))

    Exit code: 0, 1 when a file does not verify or cannot be read, 2 for wrong usage.
    """
    found, broken = intact_files(files)
    tools = learn(events_of(report) for report in found)
    calls = "learned from traces; read every line"
    text = atlas_text(tools, f"{len(found)} files, {len(tools)} actions: {calls}")
    if output:
        try:
            with Path(output).open("x", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise stop(f"{output} cannot be written: {error.strerror or error}", 1) from None
    else:
        print(text, end="")
    if broken:
        raise stop(f"{broken} of {broken + len(found)} files were not used", 1)
