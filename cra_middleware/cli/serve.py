"""``cra serve``: one governed runtime for many agents, over HTTP."""

from __future__ import annotations

import ipaddress
import logging
import resource
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from cra_middleware.cli.output import complain, stop
from cra_middleware.errors import CRAError

_MOST_FILES = 65_536


def serve(
    atlas: Annotated[
        list[str] | None,
        typer.Option(metavar="DIR", envvar="CRA_ATLAS_DIR", help="An Atlas, or a folder of them; may be repeated."),
    ] = None,
    trace: Annotated[
        str,
        typer.Option(metavar="PLACE", envvar="CRA_TRACE", help="A folder, sqlite:FILE or postgresql://…"),
    ] = "",
    store: Annotated[
        str,
        typer.Option(
            metavar="URL",
            envvar="CRA_STORE",
            help="postgresql://…, instead of --trace: keeps traces, approvals, keys and sessions of several servers.",
        ),
    ] = "",
    counters: Annotated[
        str,
        typer.Option(
            metavar="PLACE",
            envvar="CRA_COUNTERS",
            help="Where limits are counted, if not beside the traces: redis://…, or a file. Wanted with --store.",
        ),
    ] = "",
    host: Annotated[str, typer.Option(metavar="ADDRESS", envvar="CRA_HOST", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="PORT", envvar="CRA_PORT", min=0, max=65_535)] = 8420,
    state: Annotated[
        str, typer.Option(metavar="DIR", envvar="CRA_STATE", help="The server's own files, if not beside the traces.")
    ] = "",
    record: Annotated[
        str, typer.Option(envvar="CRA_RECORD", help="hash, or full: also records arguments and results.")
    ] = "hash",
    durability: Annotated[
        str, typer.Option(envvar="CRA_DURABILITY", help="write_through, or sync: on the disk before a tool runs.")
    ] = "write_through",
    sidecar: Annotated[
        str, typer.Option(metavar="FILE", envvar="CRA_SIDECAR", help="With --record full: keeps personal values.")
    ] = "",
    signing_key: Annotated[
        str, typer.Option(metavar="FILE", envvar="CRA_SIGNING_KEY", help="Signs heads over a folder of traces.")
    ] = "",
    project: Annotated[str, typer.Option(metavar="DIR", envvar="CRA_PROJECT", help="What $PROJECT stands for.")] = "",
    timeout: Annotated[
        float,
        typer.Option(metavar="SECONDS", envvar="CRA_CALL_TIMEOUT", min=1, help="Until a call must be reported."),
    ] = 900.0,
    jwks: Annotated[
        str, typer.Option(metavar="URL", envvar="CRA_JWKS_URL", help="Public keys of who issues bearer tokens.")
    ] = "",
    issuer: Annotated[str, typer.Option(metavar="TEXT", envvar="CRA_JWT_ISSUER", help="With --jwks.")] = "",
    audience: Annotated[str, typer.Option(metavar="TEXT", envvar="CRA_JWT_AUDIENCE", help="With --jwks.")] = "",
    observe: Annotated[bool, typer.Option("--observe", help="Refuse nothing; record what would be refused.")] = False,
) -> None:
    """Serve decisions, approvals and traces to agents in any language, on any machine.

    Agents are let in by API key (cra apikeys create) or bearer token. As long as no key was ever made, the server
    answers on loopback only, and asks nobody who they are. What agents send and get is in /v1/openapi.yaml.

    A changed Atlas is in force within two seconds; a broken one leaves the old one in force, and /v1/health says so.
    Servers with the same --store and --counters behave as one, behind any balancer; give them the same Atlases.
    SIGTERM answers what is being asked, flushes every open session and keeps it: the next server goes on with it.

    \b
    Example:  cra serve --atlas atlases/ --trace traces/
              cra apikeys create bot --role agent --agent '*' --trace traces/
              cra serve --atlas atlases/ --trace traces/ --host 0.0.0.0
              cra serve --atlas atlases/ --store postgresql://cra@db/cra --counters redis://redis:6379/0

    Exit code: 0 when stopped, 1 when the address is in use, 2 for wrong usage.
    """
    try:
        import uvicorn

        from cra_middleware.server.access import Tokens
        from cra_middleware.server.assembly import assemble
        from cra_middleware.server.places import open_keys, open_shared_keys, state_folder
        from cra_middleware.server.postgres_book import PostgresBook
        from cra_middleware.stores import open_approvals, open_counters
    except ImportError as error:
        raise stop(f"the server needs more packages: pip install 'cra-middleware[server]' ({error.name})", 2) from None
    if not atlas and not observe:
        raise stop("name the Atlases: --atlas DIR (or set CRA_ATLAS_DIR), or --observe to refuse nothing", 2)
    if not trace and not store:
        raise stop("name where traces are kept: --trace PLACE (or set CRA_TRACE), or --store URL", 2)
    if store and (trace or state):
        raise stop("with --store everything is in that database: leave --trace and --state out", 2)
    if store and not counters:
        raise stop("servers that share a store count in one place: --counters redis://… (or set CRA_COUNTERS)", 2)
    for option, value, known in (
        ("--record", record, ("hash", "full")),
        ("--durability", durability, ("write_through", "sync")),
    ):
        if value not in known:
            raise stop(f"{option} is {known[0]} or {known[1]}", 2)
    _log()
    try:
        own = None if store else state_folder(trace, state or None)
        keys = open_shared_keys(store) if own is None else open_keys(own)
        tokens: Tokens | None = None
        if jwks:
            from cra_middleware.server.tokens import JwtTokens

            tokens = JwtTokens(jwks, issuer=issuer, audience=audience)
        is_open = tokens is None and not keys.listed()
        if is_open and not _is_loopback(host):
            raise stop(f"{host} is not loopback: make a key first (cra apikeys create), or name --jwks", 2)
        app = assemble(
            atlas or [],
            store or trace,
            state=own,
            approvals=open_approvals(store) if store else None,
            counters=open_counters(counters) if counters else None,
            book=PostgresBook(store) if store else None,
            keys=None if is_open else keys,
            tokens=tokens,
            record=cast(Literal["hash", "full"], record),
            durability=cast(Literal["write_through", "sync"], durability),
            mode="observe" if observe else "enforce",
            sidecar=sidecar or None,
            signing_key=signing_key or None,
            project=Path(project).resolve() if project else None,
            timeout_seconds=timeout,
        )
    except (CRAError, ValueError) as error:
        raise stop(error, 2) from None
    if is_open:
        complain("no key was made: everybody on this machine may do everything here, approving included")
    _allow_files()
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            access_log=False,
            log_level="warning",
            server_header=False,
            ws="websockets-sansio",
            ws_max_size=65_536,
            timeout_graceful_shutdown=30,
        )
    )
    complain(f"listens on http://{host}:{port}")
    server.run()
    if not server.started:
        raise typer.Exit(1)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _allow_files() -> None:
    """Each open session of a folder is an open file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft < most:
        with suppress(ValueError, OSError):  # a container may forbid it
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _log() -> None:
    """What the server notices goes to stderr, a line each."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.captureWarnings(True)
    warnings.simplefilter("default", UserWarning)
