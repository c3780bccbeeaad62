"""The server as an ASGI application: a thin front over ``Host``; all work is done in threads."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import WebSocketRoute

from cra_middleware.carp.quota import Counters
from cra_middleware.errors import CRAError
from cra_middleware.server.access import Guard
from cra_middleware.server.answering import Answering
from cra_middleware.server.archive import Archive
from cra_middleware.server.calls import Calls, Executor
from cra_middleware.server.expiry import EXPIRES_SECONDS, Expiry
from cra_middleware.server.faults import Fault
from cra_middleware.server.health import Health
from cra_middleware.server.host import Host
from cra_middleware.server.logins import Logins, MemoryLogins
from cra_middleware.server.pages import add_pages
from cra_middleware.server.reports import DEFAULT_TIMEOUT_SECONDS, Reports
from cra_middleware.server.routes_atlases import add_atlases, add_health
from cra_middleware.server.routes_calls import add_approvals, add_calls
from cra_middleware.server.routes_sessions import add_sessions
from cra_middleware.server.routes_traces import Stream, add_traces
from cra_middleware.server.routing import Limits, Routes, respond, said_of

WORKERS = 16
TEND_SECONDS = 1.0

_logger = logging.getLogger("cra_middleware.server")


@dataclass(frozen=True, slots=True)
class Service:
    """What the endpoints stand on; ``app.state.cra`` of an application."""

    host: Host
    calls: Calls
    reports: Reports
    answering: Answering
    archive: Archive
    health: Health
    expiry: Expiry
    routes: Routes
    logins: Logins
    stopping: threading.Event = field(default_factory=threading.Event)


Extend = Callable[[Service], None]
"""Adds endpoints of its own with ``service.routes.add``."""


def create_app(
    host: Host,
    guard: Guard,
    *,
    executors: Mapping[str, Executor] | None = None,
    record_full: bool = False,
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    expires_seconds: float = EXPIRES_SECONDS,
    counters: Counters | None = None,
    disk: Path | None = None,
    limits: Limits | None = None,
    workers: int = WORKERS,
    logins: Logins | None = None,
    extend: Extend | None = None,
) -> FastAPI:
    """The application. Started, it tends the host; stopped, it flushes every open session and keeps it.

    Args:
        host: the engine.
        guard: who is let in.
        executors: what runs here instead of at the agent, by action id: called with the call's arguments.
        record_full: whether the words of a tool's error may be recorded.
        timeout_seconds: how long a call may be out when its action does not say.
        expires_seconds: how long a session may go without a call before it is sealed; 0 is for ever.
        counters: to be looked at by the health check.
        disk: a folder on the disk that traces fill.
        limits: what a request may be.
        workers: threads for what blocks; a quarter as many more for what comes with a large body.
        logins: who is logged in at the page; left out, all are forgotten with this process.
        extend: adds endpoints.
    """
    routes = Routes(guard, limits or Limits(), workers)
    reports = Reports(host, executors or (), timeout_seconds=timeout_seconds, full=record_full)
    calls = Calls(host, reports, executors)
    health, expiry = Health(host, counters, disk), Expiry(host, reports, expires_seconds)
    kept = logins or MemoryLogins()
    service = Service(host, calls, reports, Answering(host), Archive(host), health, expiry, routes, kept)
    add_calls(routes, calls, reports)  # what is added first is found first
    add_sessions(routes, host, frozenset(executors or {}))
    add_approvals(routes, service.answering)
    add_traces(routes, service.archive)
    add_atlases(routes, host)
    add_health(routes, service.health)
    add_pages(routes, host, service.answering, service.archive, service.logins)
    if extend is not None:
        extend(service)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        tending = threading.Thread(target=_tend, args=(service,), name="cra-tend", daemon=True)
        tending.start()
        try:
            yield
        finally:
            service.stopping.set()
            await asyncio.to_thread(_stop, service, tending)

    app = FastAPI(title="CRA Runtime API", lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    app.state.cra = service
    app.router.routes.extend(routes.made)
    stream = Stream(routes, service.archive, service.stopping.is_set)
    app.router.routes.append(WebSocketRoute("/v1/traces/stream", stream.serve, name="WebSocket /v1/traces/stream"))
    app.router.redirect_slashes = False
    app.add_exception_handler(HTTPException, _no_such_thing)
    return app


async def _no_such_thing(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    if status == 405:
        fault = Fault("METHOD_NOT_ALLOWED", "this address does not take that method")
    elif status == 404:
        fault = Fault("NOT_FOUND", "there is nothing at this address")
    else:
        fault = Fault("INVALID_CARP_REQUEST", "the request cannot be read")
    said = said_of(fault, request.headers.get("x-request-id"))
    given = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    return respond(said._replace(headers={**said.headers, **given}))


def _tend(service: Service) -> None:
    """Look after what time changes, until the server stops."""
    while not service.stopping.wait(TEND_SECONDS):
        for work in (service.reports.sweep, service.expiry.sweep, service.host.tend):
            try:
                work()
            except CRAError as error:
                _logger.error("the server could not be tended: %s", error)
            except Exception:  # this thread must not end: calls would stay open for ever
                _logger.exception("the server could not be tended")


def _stop(service: Service, tending: threading.Thread) -> None:
    tending.join(10)
    service.routes.close()
    service.host.close()
    service.logins.close()
