"""``cra trace``: is the record whole, and what happened?"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cra_middleware.cli.lines import read_again
from cra_middleware.cli.output import Format, FormatOption, Part, complain, emit, json_text, say, stop
from cra_middleware.cli.timeline import Timeline
from cra_middleware.cli.trace_files import trace_files, try_verify
from cra_middleware.errors import SinkError
from cra_middleware.trace.chain import Verdict
from cra_middleware.trace.sinks.segments import SUFFIX
from cra_middleware.verification import FileReport

app = typer.Typer(no_args_is_help=True, help="Verify the record of sessions, or read it as a person.")


class Require(StrEnum):
    """What a trace must be, beside intact."""

    sealed = "sealed"


@app.command("verify", short_help="Is the record whole?")
def verify_command(
    files: Annotated[list[str], typer.Argument(metavar="FILE", help=f"Trace files, or folders of *{SUFFIX} files.")],
    require: Annotated[
        Require | None, typer.Option(help="Also fail when a session was not ended: its last events may be missing.")
    ] = None,
    format: FormatOption = Format.text,
) -> None:
    """Recompute the hash chain of every session, and say what can be said about it.

    INTACT means that nothing before the last event was changed, moved or removed. Only SEALED, that the session
    was ended, says that the end is there too.

    \b
    Example:  cra trace verify traces/
    For CI:   cra trace verify --require sealed --format json traces/ > verdicts.json

    Exit code: 0 when all are intact (and sealed, when required), 1 when not or when a file cannot be read,
    2 for wrong usage.
    """
    sealed = require is Require.sealed
    checked = [(path, problem or try_verify(path)) for path, problem in trace_files(files)]
    if format is Format.json:
        emit({"files": [_file_json(path, result) for path, result in checked]})
    else:
        for path, result in checked:
            if isinstance(result, str):
                complain(result)
            else:
                for verdict in result.sessions:
                    say(*_in_words(verdict, path, sealed), lead=f"{path}:", indent=2)
    if not all(_passes(result, sealed) for _, result in checked):
        raise typer.Exit(1)


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


def _passes(result: FileReport | str, sealed: bool) -> bool:
    return not isinstance(result, str) and result.intact and (result.sealed or not sealed)


def _in_words(verdict: Verdict, path: str, sealed: bool = False) -> Iterator[Part]:
    style = "bold red" if not verdict.intact else "bold green" if verdict.sealed else "bold yellow"
    yield (str(verdict), style)
    count = f"{verdict.events} event{'' if verdict.events == 1 else 's'}"
    facts = [count if verdict.intact else f"{count} verified"]
    if verdict.profile != "cra":
        facts.append(f"profile {verdict.profile}")
    if verdict.session_id is not None and verdict.session_id not in Path(path).name:
        facts.append(f"session {verdict.session_id}")
    if sealed and verdict.intact and not verdict.sealed:
        facts.append("required: SEALED")
    yield f" ({', '.join(facts)})"


def _file_json(path: str, result: FileReport | str) -> dict[str, object]:
    if isinstance(result, str):
        return {"path": path, "sessions": [], "error": result}
    return {"path": path, "sessions": [_session_json(verdict) for verdict in result.sessions]}


def _session_json(verdict: Verdict) -> dict[str, object]:
    error, recovered = verdict.error, verdict.recovered
    fields: dict[str, object] = {
        "session_id": verdict.session_id,
        "events": verdict.events,
        "profile": verdict.profile,
        "intact": verdict.intact,
        "sealed": verdict.sealed,
        "error": error and {"kind": error.kind, "sequence": error.sequence, "message": error.message},
    }
    if recovered is not None:
        fields["recovered"] = {"bytes": recovered.bytes, "sha256": recovered.sha256}
    return fields


def _print_json(report: FileReport) -> None:
    """One document, written as it is read: a trace may be larger than the memory."""
    sessions = [_session_json(verdict) for verdict in report.sessions]
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
        say(*_in_words(verdict, report.path))
