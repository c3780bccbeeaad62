"""How a browser's request is heard: where it comes from, who it is, its form's token, its rule; then its work."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, urlsplit

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from cra_middleware.server.access import Caller
from cra_middleware.server.faults import Fault, fault_of
from cra_middleware.server.pages.showing import Face
from cra_middleware.server.pages.visits import Ticket, Visits
from cra_middleware.server.routing import PUBLIC, Routes, Rule, Said, check_origin, respond, said_of

FORM_BYTES = 16 * 1024
MAX_FIELDS = 16
_READS = ("GET", "HEAD")
_FORM = "application/x-www-form-urlencoded"
_logger = logging.getLogger("cra_middleware.server")


class Turn(NamedTuple):
    """One request of a browser, heard."""

    caller: Caller | None
    """None for who has not logged in; a page that has a rule never sees that."""
    ticket: Ticket
    token: str
    """What the forms of its answer carry."""
    path: Mapping[str, str]
    query: Mapping[str, str]
    form: Mapping[str, str]
    address: str
    here: str
    """Its path."""
    cookie: Callable[[Ticket | None], str]
    """A header that keeps a ticket in the browser, or takes it away."""

    @property
    def person(self) -> Caller:
        """Who it is.

        Raises:
            Fault: when nobody has logged in.
        """
        if self.caller is None:
            raise Fault("UNAUTHORIZED", "log in first")
        return self.caller

    def whole_number(self, name: str, least: int, most: int) -> int:
        """A number of the query, ``least`` where there is none that can be read."""
        text = self.query.get(name, "")
        return min(max(int(text), least), most) if text.isascii() and text.isdigit() and len(text) < 10 else least


Work = Callable[[Turn], Said]


class Hearing:
    """Collects the pages of one server; there is none without a rule."""

    def __init__(self, api: Routes, visits: Visits, face: Face) -> None:
        self._api = api
        self._visits = visits
        self._face = face

    def add(self, method: str, path: str, rule: Rule, work: Work, *, is_data: bool = False) -> None:
        """Do ``work`` for whom ``rule`` lets in; the script asks for what ``is_data``, and is told errors as JSON."""

        async def endpoint(request: Request) -> Response:
            return await self._answer(request, rule, work, is_data)

        endpoint.__dict__["cra_rule"] = rule
        self._api.made.append(Route(path, endpoint, methods=[method], name=f"page {method} {path}"))

    async def _answer(self, request: Request, rule: Rule, work: Work, is_data: bool) -> Response:
        data: bytes | None = None
        try:
            data = b"" if request.method in _READS else await self._api.body(request, FORM_BYTES)

            def act() -> Said:
                return self._turn(request, rule, work, data or b"", is_data)

            said = await asyncio.get_running_loop().run_in_executor(self._api.pool, act)
        except ClientDisconnect:
            return Response(status_code=499)
        except Exception as error:  # the border: whatever it is, the browser is told
            fault = fault_of(error)
            if fault.http_status >= 500:
                _logger.error("%s %s: %s", request.method, request.url.path, error, exc_info=error)
            said = said_of(fault, None)
            if not is_data:
                headers = {name: value for name, value in said.headers.items() if name == "retry-after"}
                said = self._face.sorry(fault, headers)
        return respond(said, is_unread=data is None)

    def _turn(self, request: Request, rule: Rule, work: Work, data: bytes, is_data: bool) -> Said:
        check_origin(request, self._visits.is_open)
        given = self._visits.read(request.cookies.get(_name(request)))
        ticket = given or self._visits.issue()
        form: Mapping[str, str] = {}
        if request.method not in _READS:
            form = self._form(request, data, given)
        caller = self._visits.caller(given)
        if rule is not PUBLIC and caller is None:
            return self._turn_away(request, is_data)
        if rule is not PUBLIC and caller is not None and not caller.is_any(*rule):
            raise Fault("FORBIDDEN", f"this needs the role {' or '.join(sorted(rule))}")
        said = work(
            Turn(
                caller,
                ticket,
                self._visits.token(ticket),
                request.path_params,
                request.query_params,
                form,
                request.client.host if request.client is not None else "",
                request.url.path,
                lambda kept: self._set_cookie(request, kept),
            )
        )
        if given is None and "set-cookie" not in said.headers:
            said = said._replace(headers={**said.headers, "set-cookie": self._set_cookie(request, ticket)})
        return said

    def _form(self, request: Request, data: bytes, given: Ticket | None) -> Mapping[str, str]:
        """The fields of a form of ours.

        Raises:
            Fault: when it comes from elsewhere, or was made for another visit.
        """
        headers = request.headers
        if headers.get("origin") is None or headers.get("sec-fetch-site", "same-origin") != "same-origin":
            raise Fault("FORBIDDEN", "this form was not sent from a page of this server")
        if headers.get("content-type", "").partition(";")[0].strip().lower() != _FORM:
            raise Fault("UNSUPPORTED_MEDIA_TYPE", f"a form is {_FORM}")
        try:
            fields = parse_qsl(data.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict")
        except ValueError:
            raise Fault("INVALID_CARP_REQUEST", "the form cannot be read") from None
        form = dict(fields)
        if len(form) != len(fields):
            raise Fault("INVALID_CARP_REQUEST", "a field occurs twice")
        if given is None:
            raise Fault("FORBIDDEN", "your browser sent no cookie, or your login has ended: load the page again")
        if not self._visits.is_token(given, form.get("token", "")):
            raise Fault("FORBIDDEN", "this form was made for another login: load the page again")
        return form

    def _turn_away(self, request: Request, is_data: bool) -> Said:
        if is_data or request.method not in _READS:
            raise Fault("UNAUTHORIZED", "your login has ended: log in again")
        if request.headers.get("sec-fetch-site") == "cross-site":
            # a link in a chat: the browser keeps our cookie back until the request comes from a page of ours
            return self._face.once_more(_here(request))
        return Said(303, None, {"location": f"/login?next={quote(_here(request), safe='')}"})

    def _set_cookie(self, request: Request, ticket: Ticket | None) -> str:
        value, age = ("", 0) if ticket is None else ticket
        secure = "; Secure" if request.url.scheme == "https" else ""
        return f"{_name(request)}={value}; Path=/; Max-Age={age}; HttpOnly; SameSite=Strict{secure}"


def way_back(path: str) -> str:
    """``path`` when it is one of this server's, else its first page."""
    parts = urlsplit(path)
    is_ours = path.startswith("/") and not path.startswith("//") and not parts.netloc and not parts.scheme
    return path if is_ours and path.isascii() and path.isprintable() and "\\" not in path else "/"


def _here(request: Request) -> str:
    query = request.url.query
    return way_back(quote(request.url.path) + (f"?{query}" if query else ""))


def _name(request: Request) -> str:
    """A cookie that only this host can have set, where the browser can be told so."""
    return "__Host-cra" if request.url.scheme == "https" else "cra"
