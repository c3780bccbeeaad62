"""``cra trace head``, ``prove`` and ``verify-proof``: what is signed, and proofs that stand alone."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from cra_middleware._ids import is_id
from cra_middleware.cli.databases import is_database, open_traces
from cra_middleware.cli.output import Format, FormatOption, emit, say, stop
from cra_middleware.errors import CRAError
from cra_middleware.evidence.proving import head_of, prove_event, prove_growth
from cra_middleware.keys import load_verifier
from cra_middleware.trace.note import MAX_NOTE_BYTES, VerifierKey
from cra_middleware.trace.proof import CONSISTENCY, MAX_PROOF_BYTES, verify_consistency_proof, verify_inclusion_proof
from cra_middleware.trace.storage.segments import segment_at
from cra_middleware.trace.strict_json import StrictJSONError, read_object


def head_command(
    place: Annotated[str, typer.Argument(metavar="PLACE", help="A folder of traces, or postgresql://…")],
) -> None:
    """Print the last signed head of the traces, and nothing else: a C2SP checkpoint, to be kept elsewhere.

    A head proves what was there when it was signed, as long as whoever may change the traces cannot change the head:
    mail it, commit it, send it to another machine. Give it to `cra trace verify --head` later.

    \b
    Example:  cra trace head traces/ > kept.head
              cra trace head postgresql://cra@db/cra > kept.head

    Exit code: 0, or 1 when there is no head.
    """
    try:
        with open_traces(place) as traces:
            note = head_of(traces).decode()
            name = traces.name
    except CRAError as error:
        raise stop(error, 1) from None
    if not note.replace("\n", "").isprintable():  # a terminal would act on it, and no head of ours has such letters
        raise stop(f"the head in {name} holds letters that cannot be printed: it was not made by a runtime", 1)
    sys.stdout.write(note)


def prove_command(
    place: Annotated[
        str,
        typer.Argument(metavar="PLACE", help="A session's trace file; with --since or --session, where traces are."),
    ],
    sequence: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="The event to prove, by its sequence number.")
    ] = None,
    session: Annotated[
        str | None, typer.Option(metavar="ID", help="The session, where PLACE is a folder or postgresql://…")
    ] = None,
    since: Annotated[
        Path | None, typer.Option(metavar="HEAD", help="An earlier signed head: prove that the log only grew since.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="PROOF", help="Write it there instead of to stdout.")] = None,
) -> None:
    """Write a proof that can be checked without the traces: of one event, or that nothing was taken back.

    The proof of an event holds that event, the hashes that lead from it to the signed head, and the head. It shows
    nothing else of the session.

    \b
    One event:   cra trace prove traces/01a2….trace.jsonl --sequence 12 --out event-12.json
    Or:          cra trace prove postgresql://cra@db/cra --session 01a2… --sequence 12 --out event-12.json
    Growth:      cra trace prove traces/ --since kept.head --out growth.json
    Check it:    cra trace verify-proof event-12.json --key bot.key.pub

    Exit code: 0, 1 when no signed head covers the event or the traces were changed, 2 for wrong usage.
    """
    if (sequence is None) == (since is None) or (session is not None and since is not None):
        raise stop("say what to prove: --sequence N of a session's file, or --since HEAD of a folder", 2)
    try:
        if since is not None:
            with open_traces(place) as traces:
                proof = prove_growth(traces, read_held(since))
        else:
            assert sequence is not None
            where, session = (place, session) if session is not None else _session_at(place)
            if not is_id(session):
                raise stop("--session is the id of a session, a lower-case UUID", 2)
            with open_traces(where) as traces:
                proof = prove_event(traces, session, sequence)
    except CRAError as error:
        raise stop(error, 1) from None
    except OSError as error:
        raise stop(f"{since} cannot be read: {error.strerror or error}", 1) from None
    if out is None:
        sys.stdout.write(_printable(proof.decode()))
        return
    try:
        fd = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise stop(f"{out} cannot be written: {error.strerror or error}", 1) from None
    with open(fd, "wb") as file:
        file.write(proof)


def _session_at(place: str) -> tuple[str, str]:
    """The folder and the session of a trace file."""
    if is_database(place):
        raise stop("say which session: --session ID", 2)
    path = Path(place)
    known = segment_at(path)
    if known is None or not path.is_file():
        raise stop(f"{place} is not the trace file of a session; it is named after the session's id", 2)
    return str(path.parent), known.session_id


def verify_proof_command(
    proof: Annotated[Path, typer.Argument(metavar="PROOF", help="What `cra trace prove` wrote.")],
    key: Annotated[str, typer.Option(metavar="PUB", help="The public key (a .pub file, or its text) that signed.")],
    format: FormatOption = Format.text,
) -> None:
    """Check a proof with the public key alone; no trace is needed, and none is looked at.

    \b
    Example:  cra trace verify-proof event-12.json --key bot.key.pub

    Exit code: 0 when it proves what it says, 1 when it does not, 2 for wrong usage.
    """
    try:
        verifier = load_verifier(key)
        with proof.open("rb") as file:
            data = file.read(MAX_PROOF_BYTES + 1)
        kind = _kind_of(data)
        found = _growth(data, verifier) if kind == CONSISTENCY else _event(data, verifier)
    except CRAError as error:
        raise stop(error, 1) from None
    except OSError as error:
        raise stop(f"{proof} cannot be read: {error.strerror or error}", 1) from None
    if format is Format.json:
        emit(found)
        return
    say((str(found["sentence"]), "bold green"))
    if "event" in found:
        say(json.dumps(found["event"], ensure_ascii=False))


def read_held(path: Path) -> bytes:
    """A head that was held elsewhere; of what is longer, only so much that it is seen to be none.

    Raises:
        OSError: when it cannot be read.
    """
    with path.open("rb") as file:
        return file.read(MAX_NOTE_BYTES + 1)


def _printable(document: str) -> str:
    """The same JSON, with escapes for what a terminal would act on."""
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in document)


def _kind_of(data: bytes) -> object:
    """Which proof it says it is; whoever verifies it looks again, and says what is wrong with it."""
    if len(data) > MAX_PROOF_BYTES:
        return None
    try:
        return read_object(data).get("kind")
    except StrictJSONError:
        return None


def _event(data: bytes, key: VerifierKey) -> dict[str, object]:
    found = verify_inclusion_proof(data, key)
    sentence = f"PROVEN: event {found.sequence} of session {found.session_id} is in the log that {key.name} signed"
    head = {"origin": found.head.origin, "size": found.head.size, "root": found.head.root.hex()}
    return {"sentence": sentence, "proven": True, "event": found.event._asdict(), "head": head}


def _growth(data: bytes, key: VerifierKey) -> dict[str, object]:
    old, new = verify_consistency_proof(data, key)
    sentence = f"PROVEN: the log of {new.size} entries begins with the one of {old.size}; {key.name} signed both"
    return {"sentence": sentence, "proven": True, "old_size": old.size, "new_size": new.size}
