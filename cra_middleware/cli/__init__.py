"""The command line ``cra``: it reads, asks the decider or the verifier, and prints. It decides nothing."""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import Annotated

import typer

from cra_middleware.cli import (
    apikeys,
    approvals,
    atlas,
    compare,
    heads,
    hook,
    keys,
    lock,
    personal,
    policy_tests,
    prune,
    report,
    sketch,
    trace,
    transfer,
)
from cra_middleware.cli.check import check
from cra_middleware.cli.doctor import doctor
from cra_middleware.cli.mcp_proxy import mcp_proxy
from cra_middleware.cli.output import complain
from cra_middleware.cli.serve import serve

app = typer.Typer(
    name="cra",
    add_completion=False,
    rich_markup_mode=None,  # plain help: the same in a pipe, and nothing in it is taken for markup
    pretty_exceptions_enable=False,
)
atlas.app.command("init", short_help="Make a first Atlas.")(sketch.init)
atlas.app.command("lock", short_help="Hold tools to what they were.")(lock.lock_command)
atlas.app.command("test", short_help="Run an Atlas's own tests.")(policy_tests.run_tests)
app.add_typer(atlas.app, name="atlas")
app.command("check")(check)
app.command("doctor")(doctor)
app.command("mcp-proxy")(mcp_proxy)
app.command("serve")(serve)
trace.app.command("report", short_help="What was decided, counted.")(report.report)
trace.app.command("learn", short_help="Propose an Atlas from what was called.")(sketch.learn_command)
trace.app.command("diff", short_help="How one trace differs from another.")(compare.diff_command)
trace.app.command("replay", short_help="What another Atlas would have decided.")(compare.replay_command)
trace.app.command("erase", short_help="Destroy a person's values.")(personal.erase_command)
trace.app.command("reveal", short_help="The values behind commitments.")(personal.reveal_command)
trace.app.command("prune", short_help="Remove what need not be kept.")(prune.prune_command)
trace.app.command("head", short_help="The folder's signed head.")(heads.head_command)
trace.app.command("prove", short_help="A proof of one event, or of growth.")(heads.prove_command)
trace.app.command("verify-proof", short_help="Check a proof, without the traces.")(heads.verify_proof_command)
trace.app.command("export", short_help="Copy sessions to another store, verified.")(transfer.export_command)
trace.app.command("import", short_help="Bring sessions in from another store.")(transfer.import_command)
app.add_typer(trace.app, name="trace")
app.add_typer(keys.app, name="keys")
app.add_typer(approvals.app, name="approvals")
app.add_typer(apikeys.app, name="apikeys")
app.add_typer(hook.app, name="hook")


def _version(wanted: bool) -> None:
    if wanted:
        from cra_middleware import __version__

        print(f"cra-middleware {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """CRA Middleware: see what an Atlas allows, why a call is decided as it is, and whether a trace is whole.

    \b
    cra atlas init atlas                        make a first Atlas, to edit
    cra atlas validate atlases/support          find every mistake in an Atlas
    cra atlas test atlases/support              run its own tests
    cra check atlases/support refund.create     decide one call, and say why
    cra approvals list                          see what waits for a person
    cra trace verify traces/                    recompute the hash chains
    cra trace report traces/ --html page.html   one page for an auditor
    cra keys generate --out bot.key             make the key that signs heads over traces
    cra trace head traces/ > kept.head          the signed head, to be kept elsewhere
    cra trace replay traces/ --atlas NEW        decide it all again, by other rules
    cra doctor atlases/support                  see what is not governed
    cra mcp-proxy --atlas ATLAS -- COMMAND      govern the tools of an MCP server
    cra hook install claude-code --atlas DIR    govern a coding agent by its own hooks
    cra serve --atlas atlases/ --trace traces/  govern many agents, over HTTP

    Whatever tells something takes --format json.
    """
    if context.invoked_subcommand is None:
        print(context.get_help())


def main() -> None:
    """The console script."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `cra ... | head` ends quietly, as other programs do
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115  for good
        elif name != "stdin" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that is not UTF-8 still shows everything
    try:
        try:
            app(prog_name="cra")
        finally:
            sys.stdout.flush()
    except OSError as error:  # what is read is caught where it is read, so this was the output
        complain(f"the output cannot be written: {error.strerror or error}")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python would try again while it shuts down
        sys.exit(1)
