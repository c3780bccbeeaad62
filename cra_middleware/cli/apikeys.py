"""``cra apikeys``: who may use a server, and as what."""

from __future__ import annotations

import re
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, cast

import typer

from cra_middleware._clock import SystemClock, timestamp_text
from cra_middleware.cli.output import Format, FormatOption, emit, say, stop
from cra_middleware.errors import CRAError

if TYPE_CHECKING:
    from cra_middleware.server.access import ApiKey, Role
    from cra_middleware.server.postgres_api_keys import PostgresApiKeys
    from cra_middleware.server.sqlite_api_keys import SqliteApiKeys

app = typer.Typer(no_args_is_help=True, help="The keys of a server: make, list and revoke them.")

_UNITS = {"m": 60, "h": 3600, "d": 86_400}
Trace = Annotated[
    str, typer.Option("--trace", metavar="PLACE", envvar="CRA_TRACE", help="Where the server keeps its traces.")
]
State = Annotated[
    str, typer.Option("--state", metavar="DIR", envvar="CRA_STATE", help="The server's own files, if not beside them.")
]
Store = Annotated[
    str, typer.Option("--store", metavar="URL", envvar="CRA_STORE", help="The database that several servers share.")
]


@app.command(short_help="Make a key.")
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose it is; never used again for another.")],
    role: Annotated[
        list[str], typer.Option(metavar="ROLE", help="agent, approver, auditor or admin; may be repeated.")
    ],
    agent: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="For agents: who it may be; may be repeated.")
    ] = None,
    atlas: Annotated[list[str] | None, typer.Option(metavar="GLOB", help="Atlases it may use; left out: all.")] = None,
    group: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="For approvers: whom it speaks for; may be repeated.")
    ] = None,
    expires: Annotated[str, typer.Option(metavar="TIME", help="From now: 90d, 12h, 30m. Left out: never.")] = "",
    trace: Trace = "",
    state: State = "",
    store: Store = "",
    format: FormatOption = Format.text,
) -> None:
    """Make a key and print it, once: only a digest of it is kept.

    An agent's key is bound to the agents it may be and the Atlases it may use. Who has a key of the role approver may
    answer questions of others, never its own. An auditor reads everything, an admin may do everything.

    \b
    Example:  cra apikeys create support-bot --role agent --agent 'support-*' --trace traces/
              cra apikeys create ann --role approver --role auditor --group team-leads --trace traces/

    Exit code: 0, 1 when the name is taken or the keys cannot be written, 2 for wrong usage.
    """
    from cra_middleware.server.access import make_key

    now_us = SystemClock().wall_us()
    found = re.fullmatch(r"(\d{1,5})([mhd])", expires)
    if expires and (found is None or not int(found[1])):
        raise stop("--expires is a time from now: 90d, 12h, 30m", 2)
    until = None if found is None else now_us + int(found[1]) * _UNITS[found[2]] * 1_000_000
    roles = cast("list[Role]", role)
    try:
        text, key = make_key(
            name, roles, now_us, agent_ids=agent or (), atlas_ids=atlas or ("*",), groups=group or (), expires_us=until
        )
    except ValueError as error:
        raise stop(error, 2) from None
    with closing(_keys(trace, state, store, is_new=True)) as keys:
        try:
            keys.add(key)
        except CRAError as error:
            raise stop(error, 1) from None
    if format is Format.json:
        emit({"api_key": text, **_as_json(key, now_us)})
        return
    print(text)  # as it is: `say` would wrap it on a terminal, and nobody could copy it
    say("it is not shown again", lead="  keep it secret:", indent=4)


@app.command(short_help="Make a key count no more.")
def revoke(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the key.")],
    trace: Trace = "",
    state: State = "",
    store: Store = "",
) -> None:
    """Make a key count no more, within a second, also at a server that runs.

    \b
    Example:  cra apikeys revoke support-bot --trace traces/

    Exit code: 0, 1 when there is no such key that counts, 2 for wrong usage.
    """
    with closing(_keys(trace, state, store)) as keys:
        try:
            done = keys.revoke(name, SystemClock().wall_us())
        except CRAError as error:
            raise stop(error, 1) from None
    if not done:
        raise stop(f"no key named {name} counts; see cra apikeys list", 1)
    say("counts no more", lead=name, indent=2)


@app.command("list", short_help="See the keys.")
def list_keys(trace: Trace = "", state: State = "", store: Store = "", format: FormatOption = Format.text) -> None:
    """List the keys: their names, roles and bounds, never what they are.

    \b
    Example:  cra apikeys list --trace traces/

    Exit code: 0, 1 when the keys cannot be read, 2 for wrong usage.
    """
    now_us = SystemClock().wall_us()
    with closing(_keys(trace, state, store)) as keys:
        try:
            found = [_as_json(key, now_us) for key in keys.listed()]
        except CRAError as error:
            raise stop(error, 1) from None
    if format is Format.json:
        emit({"api_keys": found})
        return
    if not found:
        say("there are no keys: a server answers on loopback only, without asking who it is")
    width = max((len(str(item["name"])) for item in found), default=0)
    for item in found:
        parts = [f"{word}: {', '.join(cast('list[str]', item[word]))}" for word in _LISTS if item[word]]
        say(
            f"{item['prefix']}…  {item['state']}  {'; '.join(parts)}",
            lead=f"{str(item['name']).ljust(width)}  ",
            indent=4,
        )


_LISTS = ("roles", "agent_ids", "atlas_ids", "groups")


def _keys(trace: str, state: str, store: str, *, is_new: bool = False) -> SqliteApiKeys | PostgresApiKeys:
    from cra_middleware.server.places import open_keys, open_shared_keys, state_folder

    if not trace and not state and not store:
        wanted = "--trace PLACE, --state DIR or --store URL (or set CRA_TRACE, CRA_STATE or CRA_STORE)"
        raise stop(f"name the server's place: {wanted}", 2)
    if store and (trace or state):
        raise stop("with --store the keys are in that database: leave --trace and --state out", 2)
    try:
        if store:
            return open_shared_keys(store)
        return open_keys(state_folder(trace or ".", state or None, is_new=is_new))
    except CRAError as error:
        raise stop(error, 1) from None


def _as_json(key: ApiKey, now_us: int) -> dict[str, object]:
    is_over = key.expires_us is not None and now_us >= key.expires_us
    return {
        "name": key.name,
        "prefix": key.prefix,
        "state": "revoked" if key.revoked_us is not None else "expired" if is_over else "counts",
        "roles": list(key.roles),
        "agent_ids": list(key.agent_ids),
        "atlas_ids": list(key.atlas_ids),
        "groups": list(key.groups),
        "created_at": timestamp_text(key.created_us),
        "expires_at": None if key.expires_us is None else timestamp_text(key.expires_us),
    }
