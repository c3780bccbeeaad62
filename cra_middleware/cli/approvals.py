"""``cra approvals``: what waits for a person, and the answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

import typer

from cra_middleware._canonical import canonical, digest
from cra_middleware._clock import SystemClock
from cra_middleware.approvals.approval import Answer, Approval, ApprovalError, ApprovalStore, Pending, State
from cra_middleware.approvals.approvers import MAX_READ, NoTerminalError, Terminal, describe_pending, person
from cra_middleware.cli.output import Format, FormatOption, emit, say, stop
from cra_middleware.stores import open_approvals

app = typer.Typer(no_args_is_help=True, help="See which calls wait for a person, and answer them.")

StoreOption = Annotated[
    str,
    typer.Option(
        "--store",
        metavar="FILE|URL",
        envvar="CRA_APPROVALS",
        help="What Runtime(approvals=…) keeps, or a server: traces/server/approvals.db, postgresql://…",
    ),
]
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="An approval's id, or enough of its end.")]
ByOption = Annotated[str, typer.Option("--by", metavar="NAME", help="Who answers. Left out: the login name.")]
GroupOption = Annotated[
    list[str] | None, typer.Option("--group", metavar="NAME", help="Whom you speak for; may be repeated.")
]
_STYLES: dict[State, str] = {"pending": "bold yellow", "approved": "bold green", "rejected": "bold red"}


@app.command("list", short_help="What waits.")
def list_command(
    store: StoreOption = "",
    everything: Annotated[bool, typer.Option("--all", help="Also what was answered, used or has expired.")] = False,
    format: FormatOption = Format.text,
) -> None:
    """List the calls that wait for a person, oldest first.

    \b
    Example:  cra approvals list --store approvals.db
    Example:  CRA_APPROVALS=postgresql://cra@db/cra cra approvals list

    Exit code: 0, 1 when the store cannot be read, 2 for wrong usage.
    """
    with _open(store) as opened:
        found = _listed(opened, None if everything else "pending")
    if format is Format.json:
        emit([_as_json(item) for item in found])
        return
    now_us = SystemClock().wall_us()
    for item in found:
        pending = item.pending
        left = max(0, pending.expires_us - now_us) // 60_000_000
        when = f"expires in {left} min" if item.state == "pending" else f"by {item.by}" if item.by else ""
        say(
            (item.state, _STYLES.get(item.state, "dim")),
            f"  {pending.agent_id}  {pending.action_id}  {when}",
            lead=(f"  ...{pending.approval_id[-8:]}", "cyan"),
            indent=15,
        )
        say((pending.reason, "dim"), indent=15)
    if not found:
        say("Nothing waits.")


@app.command(short_help="One of them, with its arguments.")
def show(approval: IdArgument, store: StoreOption = "", format: FormatOption = Format.text) -> None:
    """Show one question: who asks, for what, with which arguments, and what became of it.

    Exit code: 0, 1 when there is none or more than one, 2 for wrong usage.
    """
    with _open(store) as opened:
        found = _one(opened, approval)
    if format is Format.json:
        emit(_as_json(found))
        return
    for line in _described(found):
        say(line)


@app.command(short_help="Let the call through, once.")
def approve(
    approval: IdArgument,
    store: StoreOption = "",
    by: ByOption = "",
    group: GroupOption = None,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Kept with the answer.")] = "",
    has_read: Annotated[
        str,
        typer.Option(
            "--digest", metavar="SHA256", help="For a call too long to be shown here: what show --format json says."
        ),
    ] = "",
) -> None:
    """Let the identical call through, once. Shows all of it and asks on the terminal, never on stdin.

    A call of more than 20,000 letters is not shown: read it with cra approvals show ID --format json, and give the
    digest that stands there. An agent that runs commands as you could run this one: give it an identity of its own.

    \b
    Example:  cra approvals approve 3f9c11aa --store approvals.db --by ann --group team-leads

    Exit code: 0 approved, 1 not (no terminal, a no, expired, answered, not yours to answer), 2 for wrong usage.
    """
    with _open(store) as opened:
        found = _one(opened, approval)
        lines = _to_read(found, has_read.lower())
        _answer(opened, found, lines, Answer(True, by or person(), reason or None, tuple(group or ())))


@app.command(short_help="Say no.")
def reject(
    approval: IdArgument,
    store: StoreOption = "",
    by: ByOption = "",
    group: GroupOption = None,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="The agent is told.")] = "",
) -> None:
    """Say no; the agent is told why. Asks on the terminal first, never on stdin.

    Exit code: as approve.
    """
    with _open(store) as opened:
        found = _one(opened, approval)
        _answer(opened, found, _described(found), Answer(False, by or person(), reason or None, tuple(group or ())))


def _to_read(found: Approval, has_read: str) -> list[str]:
    """What a person is shown before a yes: all of it, or, where that is too long, the digest of what they have read."""
    pending = found.pending
    if has_read and has_read != _digest(pending):
        raise stop("that is not the digest of this call's arguments: read them again, show ID --format json", 1)
    lines = _described(found)
    letters = sum(map(len, lines))
    if letters <= MAX_READ:
        return lines
    if has_read:
        head = describe_pending(replace(pending, arguments={}))
        return [*head, f"  arguments: those that you have read, {has_read}", *_about(found)]
    name = pending.approval_id[-8:]
    raise stop(
        f"the call has {letters} letters, too many to be read here: read cra approvals show {name} --format json, then "
        f"say that you did: cra approvals approve {name} --digest and the digest that stands there",
        1,
    )


def _answer(store: ApprovalStore, found: Approval, lines: Sequence[str], answer: Answer) -> None:
    approved = answer.approved
    try:
        with Terminal() as terminal:
            for line in lines:
                terminal.say(line)
            verb = "Approve" if approved else "Reject"
            if terminal.ask(f"{verb} {found.pending.action_id}, as {answer.by}? [y/N]").lower() not in ("y", "yes"):
                raise stop("nothing was answered", 1)
        store.answer(found.pending.approval_id, answer, SystemClock().wall_us())
    except NoTerminalError:
        raise stop("a person answers on a terminal, and there is none here", 1) from None
    except ApprovalError as error:
        raise stop(error, 1) from None
    say(
        ("approved" if approved else "rejected", "bold green" if approved else "bold red"),
        f"  {found.pending.action_id}",
    )


@contextmanager
def _open(name: str) -> Iterator[ApprovalStore]:
    if not name:
        raise stop("name the store: --store FILE or postgresql://…, or set CRA_APPROVALS", 2)
    if "://" not in name and not Path(name).is_file():
        raise stop(f"{name} is no file; a runtime makes it: Runtime(..., approvals={name!r})", 1)
    try:
        store = open_approvals(name)
    except ApprovalError as error:
        raise stop(error, 1) from None
    with closing(store):
        yield store


def _listed(store: ApprovalStore, state: State | None) -> list[Approval]:
    try:
        return store.listed(state)
    except ApprovalError as error:
        raise stop(error, 1) from None


def _one(store: ApprovalStore, name: str) -> Approval:
    wanted = name.lower().lstrip(".")
    found = [item for item in _listed(store, None) if item.pending.approval_id.endswith(wanted)] if wanted else []
    if len(found) != 1:
        many = f"{len(found)} approvals end" if found else "no approval ends"
        raise stop(f"{many} with {name!r}; see: cra approvals list --all", 1)
    return found[0]


def _described(item: Approval) -> list[str]:
    return [*describe_pending(item.pending), *_about(item)]


def _about(item: Approval) -> list[str]:
    pending = item.pending
    lines = [f"  session {pending.session_id}", f"  approval {pending.approval_id}"]
    lines.append(f"  {item.state}{f' by {item.by}' if item.by else ''}{f': {item.reason}' if item.reason else ''}")
    if item.state == "pending":
        lines.append(f"  expires {_time(pending.expires_us)}")
    return lines


def _digest(pending: Pending) -> str:
    """Of the arguments as they are shown; the store's own is of what the tool gets, redacted values too."""
    return digest(canonical(pending.arguments))


def _time(us: int) -> str:
    return datetime.fromtimestamp(us / 1_000_000, timezone.utc).strftime("%Y-%m-%d %H:%M:%SZ")


def _as_json(item: Approval) -> dict[str, object]:
    pending = item.pending
    return {
        "approval_id": pending.approval_id,
        "state": item.state,
        "session_id": pending.session_id,
        "agent_id": pending.agent_id,
        "action_id": pending.action_id,
        "tool_name": pending.tool_name,
        "arguments": dict(pending.arguments),
        "digest": _digest(pending),
        "policy_id": pending.policy_id,
        "reason": pending.reason,
        "approvers": list(pending.approvers),
        "also_needed": [list(names) for names in pending.also_needed],
        "requested": _time(pending.requested_us),
        "expires": _time(pending.expires_us),
        "by": item.by,
        "answer": item.reason,
    }
