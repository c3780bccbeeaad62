"""``cra trace``: is the record whole, and what happened?"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Annotated

import typer

from cra_middleware.cli.databases import refuse_database
from cra_middleware.cli.output import Format, FormatOption, json_text, say, stop
from cra_middleware.cli.timeline import Timeline
from cra_middleware.cli.trace_files import try_verify
from cra_middleware.cli.verdicts import in_words, report_of, session_json
from cra_middleware.cli.verify import verify_command
from cra_middleware.errors import SinkError
from cra_middleware.lines import read_again
from cra_middleware.verification import FileReport

app = typer.Typer(no_args_is_help=True, help="Verify the record of sessions, or read it as a person.")


app.command("verify", short_help="Is the record whole?")(verify_command)


@app.command("show", short_help="What happened, call by call.")
def show_command(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A trace file.")],
    format: FormatOption = Format.text,
) -> None:
    """Show what happened, call by call, and whether the record can be believed.

    A broken trace is shown as far as it can be read; the place where it breaks is marked, and what follows has a ?
    in front. With --format json: the verdict and the events as they stand in the file.

    \b
    Example:  cra trace show traces/01a20426-a8e8-75a1-b6f3-04cfec203756.trace.jsonl

    Exit code: 0 when the trace is intact, 1 when it is not or cannot be read, 2 for wrong usage.
    """
    refuse_database(file, "showing one trace")
    try:
        mode = Path(file).stat().st_mode
    except OSError as error:
        raise stop(f"{file} cannot be read: {error.strerror or error}", 1) from None
    if stat.S_ISDIR(mode):
        raise stop(f"{file} is a folder; name one trace file in it", 2)
    if not stat.S_ISREG(mode):  # it is read twice: first verified, then shown
        raise stop(f"{file} is not a plain file; save it as one first", 1)
    report = try_verify(file)
    if isinstance(report, str):
        raise stop(report, 1)
    try:
        if format is Format.json:
            _print_json(report)
        else:
            _print_timeline(report)
    except SinkError as error:  # it was there a moment ago
        raise stop(error, 1) from None
    if not report.intact:
        raise typer.Exit(1)


def _print_json(report: FileReport) -> None:
    """One document, written as it is read: a trace may be larger than the memory."""
    sessions = [session_json(report_of(report.path, verdict)) for verdict in report.sessions]
    verdict = {"intact": report.intact, "sealed": report.sealed, "sessions": sessions}
    print(f'{{"verdict": {json_text(verdict)},\n"events": [', end="")
    before = "\n"
    for line in read_again(report):
        print(before + json_text(line.as_json(), indent=None), end="")
        before = ",\n"
    print("\n]}")


def _print_timeline(report: FileReport) -> None:
    timeline = Timeline(report)
    for line in read_again(report):
        timeline.add(line)
    timeline.close()
    for verdict in report.sessions:
        say(*in_words(report_of(report.path, verdict)))
