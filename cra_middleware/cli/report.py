"""``cra trace report``: what was decided, counted."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated

import typer

from cra_middleware.cli.html_report import LIMIT, write_page
from cra_middleware.cli.output import Format, FormatOption, complain, emit, say, stop
from cra_middleware.cli.stored_sessions import Database, databases_in, events_in, only_files
from cra_middleware.cli.trace_files import events_of, intact_files
from cra_middleware.evidence.folder import NOTHING
from cra_middleware.trace.report import ActionCount, Report


def report(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE", help="Trace files, folders of them, sqlite:FILE or postgresql://…")
    ],
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
    session: Annotated[
        list[str] | None,
        typer.Option("--session", metavar="ID", help="Of a database only this session; may be given again."),
    ] = None,
) -> None:
    """Count the decisions in traces by action, policy and verdict, and what shadow policies would have refused.

    Files that do not verify are named and not counted. With --html: a page to mail to an auditor, with every call,
    decision and reason, in which the browser recomputes the hash chains, without any network; files that do not
    verify are in it, and say so.

    \b
    Example:  cra trace report traces/
              cra trace report traces/ --html report.html --key bot.key.pub
    Database: cra trace report postgresql://cra@db/cra --html report.html --session 01a20426-a8e8-75a1-b6f3-04cfec203756

    Exit code: 0, 1 when a file does not verify or cannot be read (the page is written all the same), 2 for wrong
    usage.
    """
    if html is not None:
        if format is Format.json:
            raise stop("--html writes a page; leave out --format json, or ask for it alone", 2)
        write_page(files, html, html_limit, key, session or ())
        return
    if key is not None:
        raise stop("--key belongs to --html", 2)
    counted = Report()
    with ExitStack() as stack:
        databases = databases_in(files, session or (), NOTHING, stack)
        found, broken = intact_files(only_files(files))
        for item in found:
            counted.add(events_of(item))
        counts = [_count(database, counted) for database in databases]
    total = broken + len(found) + sum(map(sum, counts))
    broken += sum(left_out for _, left_out in counts)
    if format is Format.json:
        emit({**counted.as_json(), "broken_files": broken})
    else:
        _print(counted)
    if broken:
        what = "files" if not databases else "files and sessions"
        raise stop(f"{broken} of {total} {what} were not counted", 1)


def _count(database: Database, counted: Report) -> tuple[int, int]:
    """How many sessions of a database were counted, and how many were not; those are named on stderr."""
    left_out = list(database.unreadable)
    intact = {report.session_id for report in database.report.sessions if report.intact}
    for session in database.sessions:
        if session.verdict.session_id in intact:
            counted.add(events_in(session))
        else:
            left_out.append(f"session {session.verdict.session_id}: {session.verdict}; not used")
    for sentence in left_out:
        complain(sentence)
    return len(database.sessions) + len(database.unreadable) - len(left_out), len(left_out)


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
