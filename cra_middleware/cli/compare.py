"""``cra trace diff`` and ``cra trace replay``: what is, or would be, different."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated

import typer

from cra_middleware.carp.resolver import Resolver
from cra_middleware.cli.atlas import load
from cra_middleware.cli.output import Format, FormatOption, emit, json_text, say, shown, stop
from cra_middleware.cli.trace_files import intact_files, sessions_of
from cra_middleware.errors import CRAError
from cra_middleware.replay import Replay, Step, Verdict, replay
from cra_middleware.trace.diff import Change, Difference, Significance, diff
from cra_middleware.trace.event import Event

_STYLES: dict[Significance, str] = {"breaking": "bold red", "major": "red", "minor": "yellow", "ignored": "dim"}
_WORDS = {"allow": "green", "deny": "bold red", "ask": "bold yellow", "undecidable": "dim"}


def diff_command(
    a: Annotated[str, typer.Argument(metavar="A", help="A trace file.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another, of what should be the same run.")],
    everything: Annotated[bool, typer.Option("--all", help="Also show ids, times and hashes.")] = False,
    format: FormatOption = Format.text,
) -> None:
    """Compare two traces of what should be the same run.

    Ids, times and hashes do not count; durations are minor; text and documents are major; the sequence of events,
    decisions, actions, policies and counts are breaking.

    \b
    Example:  cra trace diff before.trace.jsonl after.trace.jsonl

    Exit code: 0 identical or semantically_equivalent, 1 different or incompatible, or a file does not verify,
    2 for wrong usage.
    """
    first, second = (_one(name) for name in (a, b))
    found = diff(first, second)
    if format is Format.json:
        emit({"verdict": found.likeness, "changes": [change._asdict() for change in _shown(found, everything)]})
    else:
        for change in _shown(found, everything):
            _print_change(change)
        good = found.likeness in ("identical", "semantically_equivalent")
        say((found.likeness, "bold green" if good else "bold red"))
    if found.likeness in ("different", "incompatible"):
        raise typer.Exit(1)


def replay_command(
    files: Annotated[list[str], typer.Argument(metavar="FILE", help="Trace files, or folders of them.")],
    atlas: Annotated[list[str], typer.Option("--atlas", metavar="PATH", help="The Atlas to decide by; repeatable.")],
    baseline: Annotated[str, typer.Option(metavar="PATH", help="An Atlas that the others may only tighten.")] = "",
    project: Annotated[str, typer.Option(metavar="DIR", help="The folder that $PROJECT stands for.")] = "",
    expect_same: Annotated[
        bool, typer.Option("--expect-same", help="Exit with 1 when anything would change, or is undecidable.")
    ] = False,
    everything: Annotated[bool, typer.Option("--all", help="Also show the calls that stay as they are.")] = False,
    format: FormatOption = Format.text,
) -> None:
    """Decide every recorded request and call again, by another Atlas: what would change?

    Clock and counters are the recorded ones. Traces with record="full" replay exactly; with hashes only, calls whose
    decision depends on their arguments are undecidable, and never guessed.

    \b
    Example:  cra trace replay traces/ --atlas atlases/support
    In CI:    cra trace replay golden/ --atlas atlases/support --expect-same

    Exit code: 0, 1 when a file does not verify, the Atlas has errors or --expect-same finds a change or a call
    that cannot be decided, 2 for wrong usage.
    """
    resolver = _resolver(atlas, baseline, project)
    found, broken = intact_files(files)
    told = replay(sessions_of(found), resolver)
    if format is Format.json:
        emit(_as_json(told, everything))
    else:
        _print_replay(told, everything)
    if broken:
        raise stop(f"{broken} of {broken + len(found)} files were not replayed", 1)
    if expect_same and told.undecidable:
        count = f"{len(told.undecidable)} of {len(told.steps)} calls"
        raise stop(f'{count} cannot be decided, so nobody can say "same"; record with record="full"', 1)
    if expect_same and not told.is_same:
        raise typer.Exit(1)


def _one(name: str) -> list[Event]:
    if os.path.isdir(name):
        raise stop(f"{name} is a folder; name one trace file in it", 2)
    found, broken = intact_files([name])
    if broken:
        raise typer.Exit(1)
    return [event for session in sessions_of(found) for event in session]


def _shown(found: Difference, everything: bool) -> list[Change]:
    order: tuple[Significance, ...] = ("breaking", "major", "minor", "ignored")
    return [
        change
        for significance in order
        for change in found.changes
        if change.significance == significance and (everything or significance != "ignored")
    ]


def _print_change(change: Change) -> None:
    lead = (change.significance, _STYLES[change.significance])
    if change.what == "changed":
        what = f"{_value(change.before)} -> {_value(change.after)}"
    else:
        what = f"{change.what}: {_value(change.before if change.what == 'removed' else change.after)}"
    say((change.pointer, "cyan"), f"  {what}", lead=lead, indent=10)


def _value(value: object) -> str:
    text = value if isinstance(value, str) else json_text(value, indent=None)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _resolver(paths: Sequence[str], baseline: str, project: str) -> Resolver:
    atlases = [load(path) for path in paths]
    floor = load(baseline) if baseline else None
    try:
        return Resolver(atlases, baseline=floor, project=project or None)
    except (CRAError, ValueError) as error:
        raise stop(error, 1) from None


def _print_replay(told: Replay, everything: bool) -> None:
    for step in told.steps:
        if everything or step.is_changed or step.now.word == "undecidable":
            _print_step(step)
    for item in told.requests:
        if item.recorded != item.now:
            before, after = (
                f"{kind} ({allowed} allowed, {denied} denied)" for kind, allowed, denied in (item.recorded, item.now)
            )
            say(
                f"{before} -> {after}",
                lead=(f"  {shown(item.session_id)[:8]} #{item.sequence}  resolution", "cyan"),
                indent=40,
            )
    counts = f"{len(told.changed)} of {len(told.steps)} calls would be decided otherwise"
    style = "bold green" if told.is_same else "bold yellow"
    say((counts, style), f", {len(told.undecidable)} undecidable" if told.undecidable else "")


def _print_step(step: Step) -> None:
    lead = (f"  {step.session_id[:8]} #{step.sequence}  {step.action_id}", "cyan")
    say(_in_words(step.recorded), " -> ", _in_words(step.now), lead=lead, indent=40)
    if step.now.reason:
        say((step.now.reason, "dim"), indent=42)


def _in_words(verdict: Verdict) -> tuple[str, str]:
    text = verdict.word + (f" {verdict.code}" if verdict.code else "")
    return (f"{text} ({verdict.policy_id})" if verdict.policy_id else text, _WORDS[verdict.word])


def _as_json(told: Replay, everything: bool) -> dict[str, object]:
    return {
        "same": told.is_same,
        "calls": len(told.steps),
        "changed": len(told.changed),
        "undecidable": len(told.undecidable),
        "steps": [
            {**step._asdict(), "recorded": step.recorded._asdict(), "now": step.now._asdict()}
            for step in told.steps
            if everything or step.is_changed or step.now.word == "undecidable"
        ],
        "requests": [item._asdict() for item in told.requests if everything or item.recorded != item.now],
    }
