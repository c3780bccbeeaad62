"""``cra keys``: the key that signs what a log has recorded, and the half of it that others check with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cra_middleware.cli.output import Format, FormatOption, emit, say, stop
from cra_middleware.keys import SigningKeyError, generate_key, load_public_half, public_file
from cra_middleware.trace.note import VerifierKey

app = typer.Typer(no_args_is_help=True, help="Make the key that signs a log, and see its public half.")


@app.command(short_help="Make a new key.")
def generate(
    out: Annotated[str, typer.Option("--out", metavar="FILE", help="Where the secret half goes; never overwritten.")],
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of the log, such as example.com/support-bot. Left out: cra/<random>."),
    ] = None,
    format: FormatOption = Format.text,
) -> None:
    """Make a key that signs a log: FILE, which only you can read, and FILE.pub for those who check.

    A signed head says how long the log was and what was in it; whoever holds an older one sees when something was
    changed or cut off since. Give FILE.pub to auditors now, over a way they trust: a public key that arrives together
    with the log proves nothing. Keep FILE where the agent cannot read it.

    \b
    Example:  cra keys generate --out /etc/cra/bot.key --name example.com/support-bot

    Exit code: 0, 1 when a file is there already or cannot be written, 2 for wrong usage.
    """
    try:
        key = generate_key(out, name)
    except SigningKeyError as error:
        raise stop(error, 1) from None
    public = str(public_file(Path(out)))
    if format is Format.json:
        emit({**_as_json(key), "secret_file": out, "public_file": public})
        return
    print(key)  # as it is: `say` would wrap it on a terminal, and nobody could copy it
    say("keep it secret: it signs in your name, and there is no other copy", lead=f"  {out}", indent=4)
    say("give it to auditors: it only checks", lead=f"  {public}", indent=4)


@app.command(short_help="The public half of a key.")
def show(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A key file, secret or public.")],
    format: FormatOption = Format.text,
) -> None:
    """Print the public half of a key, from the secret file or from the .pub file: one line, safe to hand out.

    \b
    Example:  cra keys show /etc/cra/bot.key > bot.key.pub    (when the .pub file was lost)

    Exit code: 0, 1 when the file is no key, or is a secret that others can read, 2 for wrong usage.
    """
    try:
        key = load_public_half(file)
    except SigningKeyError as error:
        raise stop(error, 1) from None
    if format is Format.json:
        emit(_as_json(key))
    else:
        print(key)


def _as_json(key: VerifierKey) -> dict[str, str]:
    return {"verifier_key": str(key), "name": key.name, "key_id": key.key_id.hex()}
