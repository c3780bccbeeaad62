"""``cra hook``: put the hook into a coding agent's settings, take it out, or run it by hand."""

from __future__ import annotations

import difflib
import os
import shutil
import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cra_middleware.approvals.approvers import NoTerminalError, Terminal
from cra_middleware.cli.atlas import load
from cra_middleware.cli.output import say, stop
from cra_middleware.coding_agents import entry
from cra_middleware.coding_agents.settings import SettingsError, command, installed, settings_file, uninstalled

app = typer.Typer(no_args_is_help=True)


class Agent(StrEnum):
    """Whose hooks are known."""

    claude_code = "claude-code"
    codex = "codex"
    gemini = "gemini"
    cursor = "cursor"


AgentArgument = Annotated[Agent, typer.Argument(metavar="AGENT", help="claude-code, codex, gemini or cursor.")]
UserOption = Annotated[bool, typer.Option("--user/--project", help="Your own settings, or those of this folder.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Write without asking.")]
AtlasOption = Annotated[
    list[str] | None, typer.Option("--atlas", metavar="PATH", envvar="CRA_ATLAS", help="What decides; may be repeated.")
]
TraceOption = Annotated[
    str, typer.Option("--trace", metavar="DIR", envvar="CRA_TRACE", help="Where traces go. Left out: ~/.cra/traces.")
]
ApprovalsOption = Annotated[
    str, typer.Option("--approvals", metavar="FILE", help="Open questions. Left out: approvals.db among the traces.")
]


@app.callback()
def about() -> None:
    """Decide every tool call of a coding agent before it runs, and record it: by the agent's own hooks.

    \b
    cra hook install claude-code --atlas atlases/developer    show the change, ask, write it
    cra approvals list --store ~/.cra/traces/approvals.db     see what waits for a person
    cra trace verify ~/.cra/traces                            one trace for each session of the agent
    cra hook uninstall claude-code                            take exactly that away again

    The Atlas maps the agent's tools to actions (adapters/claude_code.yaml, codex.yaml, gemini_cli.yaml, cursor.yaml);
    a tool that it does not map is denied. Whatever goes wrong in the hook blocks the tool.

    A hook is as strong as the account that the agent runs under: give the agent one of its own, see
    docs/coding-agents.md.
    """


@app.command(short_help="Put the hook into an agent's settings.")
def install(
    agent: AgentArgument,
    user: UserOption = False,
    atlas: AtlasOption = None,
    trace: TraceOption = "",
    approvals: ApprovalsOption = "",
    yes: YesOption = False,
) -> None:
    """Show how the agent's settings change, ask, and write them; everything else in them stays.

    The hook is named by full paths, so it works wherever the agent starts. A copy of the settings is kept beside
    them. Done twice, it changes nothing. Do not install it both for the user and for a project: each call would be
    decided twice.

    \b
    Example:  cra hook install claude-code --project --atlas atlases/developer

    Exit code: 0, 1 when nothing was written, 2 for wrong usage.
    """
    atlases = [str(Path(name).absolute()) for name in atlas or ()]
    if not atlases:
        raise stop("name an Atlas: --atlas PATH, or set CRA_ATLAS; examples/atlases/developer is one to begin with", 2)
    for name in atlases:
        load(name)
    folder = Path.cwd()
    options = [("--atlas", name) for name in atlases]
    traces = Path(trace or Path.home() / ".cra" / "traces").absolute()
    options.append(("--trace", str(traces)))
    options.append(("--approvals", str(Path(approvals or traces / "approvals.db").absolute())))  # not the environment
    if not user:
        options.append(("--project", str(folder)))
    line = command(agent, options)
    file = settings_file(agent, None if user else folder)
    before = _read(file)
    try:
        after = installed(before, agent, line)
    except SettingsError as error:
        raise stop(f"{file} stays as it is: {error}. The command is: {line}", 1) from None
    if _change(file, before, after, yes, keep=True):
        _try(line, file)
        _warn_of_what_the_agent_can_write([Path(value).resolve() for name, value in options if name != "--project"])


def _warn_of_what_the_agent_can_write(keepers: list[Path]) -> None:
    """An agent that writes its own Atlas, or the answers to its own questions, judges itself."""
    project = Path.cwd().resolve()
    for keeper in keepers:
        if keeper.is_relative_to(project):
            say(
                ("In the project, where the agent works: ", "yellow"),
                f"{keeper}. Keep it elsewhere, or have the Atlas deny it.",
            )


@app.command(short_help="Take the hook out of an agent's settings.")
def uninstall(agent: AgentArgument, user: UserOption = False, yes: YesOption = False) -> None:
    """Show how the agent's settings change, ask, and write them without our hook; everything else in them stays.

    Traces and approvals stay where they are.

    Exit code: 0, 1 when nothing was written, 2 for wrong usage.
    """
    file = settings_file(agent, None if user else Path.cwd())
    before = _read(file)
    try:
        after = uninstalled(before, _read(_backup(file)))
    except SettingsError as error:
        raise stop(f"{file} stays as it is: {error}", 1) from None
    if _change(file, before, after, yes) and after == _read(_backup(file)):
        _backup(file).unlink(missing_ok=True)


@app.command(short_help="Answer one event, as the agent's hook.")
def run(
    agent: AgentArgument,
    atlas: AtlasOption = None,
    trace: TraceOption = "",
    approvals: ApprovalsOption = "",
    project: Annotated[str, typer.Option(metavar="DIR", help="The folder that $PROJECT stands for.")] = "",
) -> None:
    """Read one event of an agent from stdin and answer it, to see what the hook would do.

    An agent's settings name the hook itself and not this command, which starts later and is not watched over.

    \b
    Example:  cra hook run claude-code --atlas atlases/developer --trace traces < event.json

    Exit code: 0 the tool may run, 2 it must not.
    """
    words = [sys.executable, "-I", str(Path(entry.__file__).absolute()), agent.value]
    for name, value in (("--trace", trace), ("--approvals", approvals), ("--project", project)):
        words += [name, value] if value else []
    for name in atlas or ():
        words += ["--atlas", name]
    sys.stdout.flush()
    os.execv(sys.executable, words)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise stop(f"{file} cannot be read: {error}", 1) from None


def _backup(file: Path) -> Path:
    real = file.resolve()
    return real.with_name(f"{real.name}.before-cra")


def _change(file: Path, before: str, after: str, yes: bool, *, keep: bool = False) -> bool:
    """Show, ask, and write. Whether there was anything to write."""
    if before == after:
        say(f"{file} is as it should be; nothing to change.")
        return False
    for row in difflib.unified_diff(before.splitlines(), after.splitlines(), str(file), str(file), lineterm=""):
        say((row, "green" if row.startswith("+") else "red" if row.startswith("-") else "dim"))
    if not yes and not _agreed(file):
        raise stop("nothing was written; --yes writes without asking", 1)
    try:
        if keep and before:
            shutil.copy2(file, _backup(file))
            say(f"What it was is kept in {_backup(file)}")
        _write(file, before, after)
    except OSError as error:
        raise stop(f"{file} cannot be written: {error.strerror or error}", 1) from None
    return True


def _agreed(file: Path) -> bool:
    try:
        with Terminal() as terminal:
            return terminal.ask(f"Write {file}? [y/N]").lower() in ("y", "yes")
    except NoTerminalError:
        return False


def _write(file: Path, before: str, after: str) -> None:
    """The new text under the old name, whole or not at all; a link stays one. What is empty afterwards goes."""
    real = file.resolve()
    real.parent.mkdir(parents=True, exist_ok=True)
    if not after:
        real.unlink(missing_ok=True)
        return
    made = real.with_name(f"{real.name}.cra-new")
    made.write_text(after, encoding="utf-8")
    if before:
        shutil.copymode(real, made)
    os.replace(made, real)


def _try(line: str, file: Path) -> None:
    """The command as the agent will run it: what it cannot read, it has to block."""
    done = subprocess.run(line, shell=True, input=b"", capture_output=True, timeout=60, check=False)
    if done.returncode != entry.BLOCKED or b"CRA:" not in done.stderr:
        raise stop(f"{file} is written, and the hook does not work: it left {done.returncode}, {done.stderr!r}", 1)
    say("The hook was tried: it starts, and blocks what it cannot read.")
