"""``cra trace report``: what was decided, counted."""

from __future__ import annotations

from typing import Annotated

import typer

from cra_middleware.cli.html_report import LIMIT, write_page
from cra_middleware.cli.output import Format, FormatOption, emit, say, stop
from cra_middleware.cli.trace_files import events_of, intact_files
from cra_middleware.trace.report import ActionCount, Report


def report(
    files: Annotated[list[str], typer.Argument(metavar="FILE", help="Trace files, or folders of them.")],
    format: FormatOption = Format.text,
    html: Annotated[
        str | None,
        typer.Option(
            metavar="OUT", help="Write one HTML page that checks itself in the reader's browser; - is stdout."
        ),
    ] = None,
    html_limit: Annotated[int, typer.Option(min=1, help="How many events a page may hold.")] = LIMIT,
    key: Annotated[
        str | None,
        typer.Option(metavar="PUB", help="With --html: the public key whose signed head is shown, and what it covers."),
    ] = None,
) -> None:
    """Count the decisions in traces by action, policy and verdict, and what shadow policies would have refused.

    Files that do not verify are named and not counted. With --html: a page to mail to an auditor, with every call,
    decision and reason, in which the browser recomputes the hash chains, without any network; files that do not
    verify are in it, and say so.

    \b
    Example:  cra trace report traces/
              cra trace report traces/ --html report.html --key bot.pub

    Exit code: 0, 1 when a file does not verify or cannot be read (the page is written all the same), 2 for wrong
    usage.
    """
    if html is not None:
        if format is Format.json:
            raise stop("--html writes a page; leave out --format json, or ask for it alone", 2)
        write_page(files, html, html_limit, key)
        return
    if key is not None:
        raise stop("--key belongs to --html", 2)
    found, broken = intact_files(files)
    counted = Report()
    for item in found:
        counted.add(events_of(item))
    if format is Format.json:
        emit({**counted.as_json(), "broken_files": broken})
    else:
        _print(counted)
    if broken:
        raise stop(f"{broken} of {broken + len(found)} files were not counted", 1)


def _print(counted: Report) -> None:
    say(
        (f"{counted.sessions} sessions", "bold"),
        f", {counted.sealed} sealed, {len(counted.agents)} agents, "
        f"{sum(count.calls for count in counted.actions.values())} calls",
    )
    say()
    for name, count in sorted(counted.actions.items(), key=lambda item: (-item[1].calls, item[0])):
        say(*_numbers(count), lead=(f"  {name}", "cyan"), indent=30)
        if count.codes:
            say(", ".join(f"{code} {number}" for code, number in count.codes.most_common()), lead="", indent=32)
        for policy_id, number in count.shadow.most_common():
            say((f"would have been refused by {policy_id}: {number}", "yellow"), lead="", indent=32)
    if counted.policies:
        say()
        say(("Policies", "bold"))
    for (policy_id, word), number in sorted(counted.policies.items(), key=lambda item: (-item[1], item[0])):
        say(f"{word} {number}", lead=(f"  {policy_id}", "cyan"), indent=30)


def _numbers(count: ActionCount) -> list[tuple[str, str]]:
    ran = count.executed + count.failed
    parts = [(f"{count.calls} calls", ""), (f", {count.allowed} allowed", "green")]
    if count.denied:
        parts.append((f", {count.denied} denied", "bold red"))
    if count.asked:
        parts.append((f", {count.asked} asked", "yellow"))
    if count.approved_by_person:
        parts.append((f", {count.approved_by_person} approved by a person", ""))
    if count.failed:
        parts.append((f", {count.failed} failed", "red"))
    if ran:
        parts.append((f", {count.duration_ms / ran:.0f} ms on average", "dim"))
    return parts
