"""``cra trace erase`` and ``cra trace reveal``: the personal values that a trace holds only commitments to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from cra_middleware.approvals.approvers import NoTerminalError, Terminal
from cra_middleware.cli.output import Format, FormatOption, emit, say, stop
from cra_middleware.cli.trace_files import events_of, try_verify
from cra_middleware.sidecar import Sidecar, SidecarError, WithheldError
from cra_middleware.trace.commitments import as_commitment
from cra_middleware.trace.event import Event

SidecarOption = Annotated[
    str, typer.Option("--sidecar", metavar="FILE", envvar="CRA_SIDECAR", help="What Runtime(sidecar=FILE) keeps.")
]
_STYLES = {"revealed": "green", "erased": "dim", "unknown": "bold yellow", "altered": "bold red"}
_WORDS = {
    "erased": "erased",
    "unknown": "not in this sidecar",
    "altered": "DOES NOT MATCH: the sidecar was changed, or the trace names another value",
}
_RECORDED = ("parameters", "result", "context")
"""The keys of payloads that hold a caller's values."""


class _Found(NamedTuple):
    """One commitment in a trace, and what became of its value."""

    event: Event
    pointer: str
    """RFC 6901, inside the payload."""
    commitment: str
    ref: str
    state: str
    value: str | None
    """JSON."""
    salt: str | None
    """Hex."""


def erase_command(
    subject: Annotated[str, typer.Option(metavar="NAME", help="As in runtime.session(subject=NAME), or a session id.")],
    sidecar: SidecarOption = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    format: FormatOption = Format.text,
) -> None:
    """Destroy a person's values, salts and key, so that nobody can read or guess them from a trace any more.

    No trace is touched: it holds commitments only, and verifies as before. What is not reached: copies of the sidecar
    (backups, snapshots of the disk), the approvals' file, and the subject's own name in session.started. Asks on the
    terminal first, never on stdin. After an error, run it again: it finishes what was begun.

    \b
    Example:  cra trace erase --subject customer-7 --sidecar personal.db

    Exit code: 0 erased (or nothing was there), 1 not, 2 for wrong usage.
    """
    store = _open(sidecar)
    try:
        if not yes:
            _confirm(store, subject)
        count = store.erase(subject)
    except SidecarError as error:
        raise stop(error, 1) from None
    finally:
        store.close()
    if format is Format.json:
        emit({"subject": subject, "erased": count})
    else:
        say((f"{_values(count)} of {subject} erased", "bold green" if count else "bold yellow"))


def reveal_command(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A trace file.")],
    sidecar: SidecarOption = "",
    format: FormatOption = Format.text,
) -> None:
    """Show the personal values behind a trace's commitments, each checked against the trace.

    The trace is verified first. With --format json each value comes with its salt, so that anybody can check it:
    SHA-256 of "cra-redact/1", a zero byte, the 16 bytes of the salt, and the value as it is printed.

    \b
    Example:  cra trace reveal traces/01a20426-a8e8-75a1-b6f3-04cfec203756.trace.jsonl --sidecar personal.db

    Exit code: 0 when every value is shown or was erased, 1 when one does not match or is not there, or the trace is
    not intact, 2 for wrong usage.
    """
    store = _open(sidecar)
    try:
        report = try_verify(file)
        if isinstance(report, str):
            raise stop(report, 1)
        if not report.intact:
            verdicts = " ".join(str(verdict) for verdict in report.sessions)
            raise stop(f"{file}: {verdicts}; nothing is revealed for it", 1)
        found = [item for event in events_of(report) for item in _revealed(event, store)]
    except SidecarError as error:
        raise stop(error, 1) from None
    finally:
        store.close()
    if format is Format.json:
        emit({"values": [_as_json(item) for item in found]})
    else:
        _print(found)
    if any(item.state in ("altered", "unknown") for item in found):
        raise typer.Exit(1)


def _open(path: str) -> Sidecar:
    if not path:
        raise stop("name the sidecar: --sidecar FILE, or set CRA_SIDECAR", 2)
    if not Path(path).is_file():
        raise stop(f"{path} is no file; a runtime makes it: Runtime(..., sidecar={path!r})", 1)
    try:
        return Sidecar(path)
    except SidecarError as error:
        raise stop(error, 1) from None


def _confirm(store: Sidecar, subject: str) -> None:
    count = store.count(subject)
    try:
        with Terminal() as terminal:
            question = f"Erase {_values(count)} of {subject} for good? [y/N]"
            terminal.say(f"  subject {subject}")
            if terminal.ask("".join(c if c.isprintable() else "?" for c in question)).lower() not in ("y", "yes"):
                raise stop("nothing was erased", 1)
    except NoTerminalError:
        raise stop("there is no terminal to ask on; say --yes", 1) from None


def _values(count: int) -> str:
    return f"{count} value{'' if count == 1 else 's'}"


def _revealed(event: Event, store: Sidecar) -> Iterator[_Found]:
    for key in _RECORDED:
        for pointer, commitment, ref in _commitments(event.payload.get(key), f"/{key}"):
            try:
                found = store.reveal(ref)
            except WithheldError as error:
                yield _Found(event, pointer, commitment, ref, error.why, None, None)
                continue
            state = "revealed" if found.commitment == commitment else "altered"
            value = found.value.decode() if state == "revealed" else None
            yield _Found(event, pointer, commitment, ref, state, value, found.salt.hex() if value is not None else None)


def _commitments(value: object, at: str) -> Iterator[tuple[str, str, str]]:
    """Pointer, commitment and ref of every value that is kept elsewhere; in the order of the text."""
    waiting = [(value, at)]
    while waiting:
        value, at = waiting.pop()
        made = as_commitment(value)
        if made is not None:
            yield at, *made
        elif isinstance(value, dict):
            named = [(item, f"{at}/{key.replace('~', '~0').replace('/', '~1')}") for key, item in value.items()]
            waiting += reversed(named)
        elif isinstance(value, list):
            waiting += reversed([(item, f"{at}/{index}") for index, item in enumerate(value)])


def _print(found: list[_Found]) -> None:
    for item in found:
        about = item.event.payload.get("action_id") or item.event.event_type
        say(
            f"{about} {item.pointer}: ",
            (item.value if item.value is not None else _WORDS[item.state], _STYLES[item.state]),
            lead=(f"{item.event.sequence:>6}", "cyan"),
            indent=8,
        )
    if not found:
        say("No personal values.")


def _as_json(item: _Found) -> dict[str, object]:
    return {
        "sequence": item.event.sequence,
        "session_id": item.event.session_id,
        "event_type": item.event.event_type,
        "action_id": item.event.payload.get("action_id"),
        "pointer": item.pointer,
        "commitment": item.commitment,
        "ref": item.ref,
        "state": item.state,
        "value": item.value,
        "salt": item.salt,
    }
