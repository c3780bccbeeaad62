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

from cra_middleware.carp.redis_counters import PREFIX, REDIS
from cra_middleware.cli.exporting import exporting
from cra_middleware.cli.output import complain, stop
from cra_middleware.errors import CRAError

_MOST_FILES = 65_536
_logger = logging.getLogger("cra_middleware.server")


def serve(
    context: typer.Context,
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
            help="postgresql://…, instead of --trace: all that several servers keep, but for what is counted.",
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
    redis_prefix: Annotated[
        str,
        typer.Option(
            metavar="TEXT",
            envvar="CRA_REDIS_PREFIX",
            help="Begins every key in Redis; one for each set of servers that share a Redis. Left out: cra.",
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
        str, typer.Option(metavar="FILE", envvar="CRA_SIGNING_KEY", help="Signs heads over a folder, or the store.")
    ] = "",
    project: Annotated[str, typer.Option(metavar="DIR", envvar="CRA_PROJECT", help="What $PROJECT stands for.")] = "",
    timeout: Annotated[
        float,
        typer.Option(metavar="SECONDS", envvar="CRA_CALL_TIMEOUT", min=1, help="Until a call must be reported."),
    ] = 900.0,
    session_expires: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            envvar="CRA_SESSION_EXPIRES",
            min=0,
            help="Without a call for so long, a session is over: 86400 is a day; 0: never.",
        ),
    ] = 86_400.0,
    streams: Annotated[
        int,
        typer.Option(
            metavar="COUNT",
            envvar="CRA_STREAMS",
            min=1,
            help="Traces that one key may listen to at once, as they grow.",
        ),
    ] = 64,
    jwks: Annotated[
        str, typer.Option(metavar="URL", envvar="CRA_JWKS_URL", help="Public keys of who issues bearer tokens.")
    ] = "",
    issuer: Annotated[str, typer.Option(metavar="TEXT", envvar="CRA_JWT_ISSUER", help="With --jwks.")] = "",
    audience: Annotated[str, typer.Option(metavar="TEXT", envvar="CRA_JWT_AUDIENCE", help="With --jwks.")] = "",
    forwarded_from: Annotated[
        str,
        typer.Option(
            metavar="ADDRESSES",
            envvar="CRA_FORWARDED_FROM",
            help="Proxies that say for whom they ask (X-Forwarded-For, -Proto): 10.0.0.7,10.1.0.0/16. Left out: none.",
        ),
    ] = "",
    observe: Annotated[bool, typer.Option("--observe", help="Refuse nothing; record what would be refused.")] = False,
) -> None:
    """Serve decisions, approvals and traces to agents in any language, on any machine.

    Agents are let in by API key (cra apikeys create) or bearer token. As long as no key was ever made, the server
    answers on loopback only, and asks nobody who they are; no proxy may be in front then. What agents send and get
    is in /v1/openapi.yaml; people see and answer in a browser, at /, what waits for them.

    A changed Atlas is in force within two seconds; a broken one leaves the old one in force, and /v1/health says so.
    Servers with the same --store and --counters behave as one, behind any balancer; give them the same Atlases.
    A --trace and its --state belong to one server: a second one refuses to start.
    SIGTERM and SIGINT answer what is being asked, flush every open session and keep it: the next server goes on with
    it. A second one ends the server at once.

    With OTEL_EXPORTER_OTLP_ENDPOINT set, spans and metrics go to a collector.

    \b
    Example:  cra serve --atlas atlases/ --trace traces/
              cra apikeys create bot --role agent --agent '*' --trace traces/
              cra serve --atlas atlases/ --trace traces/ --host 0.0.0.0
              cra serve --atlas atlases/ --store postgresql://cra@db/cra --counters redis://redis:6379/0

    Exit code: 0 when stopped, 1 when it cannot listen or not everything could be flushed, 2 for wrong usage or a place
    that cannot be used.
    """
    try:
        import uvicorn

        from cra_middleware.cli.stopping import GRACE_SECONDS, StoppingServer
        from cra_middleware.server.access import Tokens
        from cra_middleware.server.assembly import assemble
        from cra_middleware.server.one_process import locks_of, only_process
        from cra_middleware.server.places import check_never_made, open_keys, open_shared_keys, state_folder
        from cra_middleware.server.postgres_atlases import PostgresAtlases
        from cra_middleware.server.postgres_book import PostgresBook
        from cra_middleware.server.postgres_logins import PostgresLogins
        from cra_middleware.server.routing import Limits
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
    if jwks and not (issuer and audience):
        raise stop("--jwks goes with --issuer and --audience: whose tokens count, and for whom they are made", 2)
    if (issuer or audience) and not jwks:
        raise stop("--issuer and --audience go with --jwks: without it no token counts", 2)
    if redis_prefix and not counters.startswith(REDIS):
        raise stop("--redis-prefix goes with --counters redis://…", 2)
    for option, value, known in (
        ("--record", record, ("hash", "full")),
        ("--durability", durability, ("write_through", "sync")),
    ):
        if value not in known:
            raise stop(f"{option} is {known[0]} or {known[1]}", 2)
    if not _names_addresses(forwarded_from):
        raise stop("--forwarded-from names addresses or networks, as in 10.0.0.7,10.1.0.0/16, or * for everybody", 2)
    _log()
    context.with_resource(exporting("cra-serve", complain))
    try:
        own = None if store else state_folder(trace, state or None)
        if own is not None:
            context.with_resource(only_process(locks_of(trace, own)))
        keys = open_shared_keys(store) if own is None else open_keys(own)
        tokens: Tokens | None = None
        if jwks:
            from cra_middleware.server.tokens import JwtTokens

            tokens = JwtTokens(jwks, issuer=issuer, audience=audience)
        is_open = tokens is None and not keys.listed()
        if is_open and own is not None:
            check_never_made(own)
        if is_open and not _is_loopback(host):
            raise stop(f"{host} is not loopback: make a key first (cra apikeys create), or name --jwks", 2)
        app = assemble(
            atlas or [],
            store or trace,
            state=own,
            approvals=open_approvals(store) if store else None,
            counters=open_counters(counters, redis_prefix or PREFIX) if counters else None,
            book=PostgresBook(store, sees_traces=True) if store else None,
            logins=PostgresLogins(store) if store else None,
            shelf=PostgresAtlases(store) if store else None,
            keys=None if is_open else keys,
            tokens=tokens,
            record=cast(Literal["hash", "full"], record),
            durability=cast(Literal["write_through", "sync"], durability),
            mode="observe" if observe else "enforce",
            sidecar=sidecar or None,
            signing_key=signing_key or None,
            project=Path(project).resolve() if project else None,
            timeout_seconds=timeout,
            expires_seconds=session_expires,
            limits=Limits(streams=streams),
        )
    except (CRAError, ValueError) as error:
        raise stop(error, 2) from None
    if not app.state.cra.host.runtime.atlases and not observe:
        complain(f"no Atlas lies in {', '.join(atlas or ())}: every call is denied")
    if is_open:
        complain("no key was made: everybody on this machine may do everything here, approving included")
    _allow_files()
    server = StoppingServer(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            access_log=False,
            log_level="warning",
            server_header=False,
            ws="websockets-sansio",
            ws_max_size=65_536,
            timeout_graceful_shutdown=GRACE_SECONDS,
            proxy_headers=bool(forwarded_from),  # uvicorn's default would believe everybody on this machine
            forwarded_allow_ips=forwarded_from,
        ),
        complain,
    )
    with suppress(SystemExit):  # a start that failed: uvicorn has said why, and its code is none of ours
        server.run()
    if server.has_failed:
        raise typer.Exit(1)
    if not server.started:
        raise stop(f"it cannot listen on {host}, port {port}: choose another --host or --port", 1)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _names_addresses(text: str) -> bool:
    """Whether each part is an address, or a network; a name would never match, and nobody would notice."""
    if text in ("", "*"):
        return True
    try:
        return all(ipaddress.ip_network(part.strip()) for part in text.split(","))
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
    warnings.showwarning = _warn
    warnings.simplefilter("default", UserWarning)


def _warn(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    """Without the line of code that it comes from: an operator has no use for it."""
    _logger.warning("%s: %s", category.__name__, message)
