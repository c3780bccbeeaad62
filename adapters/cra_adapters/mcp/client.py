"""The client's side: what an agent sends by a session, a ``mcp.Client`` or a ``fastmcp.Client`` is decided here."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4
from weakref import WeakSet

from mcp import Client, ClientSession, ClientSessionGroup
from mcp_types import ListToolsResult, PaginatedRequestParams

from cra_adapters.mcp.listed import Caller, Listed
from cra_adapters.mcp.outcome import ServerReportedError, reported
from cra_adapters.mcp.server import denied, listings
from cra_middleware import CallRefused
from cra_middleware.enforcement import EnforcementPoint

_PAGES = 100


class Sessions:
    """Governs sessions: one of ours for each of the client's."""

    def __init__(self, point: EnforcementPoint, *, server: str | None, agent: str | None, hide_denied: bool) -> None:
        self._point = point
        self._server = server
        self._agent = agent
        self._hide_denied = hide_denied
        self._known: WeakSet[ClientSession] = WeakSet()

    def govern(self, session: ClientSession) -> str:
        """Decide what ``session`` sends from now on; the id of its run."""
        run = uuid4().hex
        if session in self._known:  # some transports keep theirs from one connection to the next
            return run
        self._known.add(session)
        send = session.send_request
        caller = Caller(agent=self._agent, run=run)
        heard: dict[str, Listed] = {}

        def listed() -> Listed:
            told = None if session.server_info is None else session.server_info.name
            name = self._server or told or "server"
            if name not in heard:
                heard[name] = Listed(self._point, name, names_itself=self._server is None)
            return heard[name]

        def shown(result: ListToolsResult, is_first: bool) -> ListToolsResult:
            known = listed()
            known.see(listings(result.tools), is_first=is_first)
            if self._hide_denied:
                try:
                    ours = self._point.session(run=run, agent=self._agent)
                    result.tools = [tool for tool in result.tools if known.tool(tool.name).is_shown(ours)]
                except CallRefused:
                    result.tools = []
            return result

        async def learn(name: str, arguments: Any) -> None:
            """List the tools: what a server makes of arguments, only its schemas tell."""
            cursor: str | None = None
            try:
                for _ in range(_PAGES):
                    params = None if cursor is None else PaginatedRequestParams(cursor=cursor)
                    cursor = (await session.list_tools(params=params)).next_cursor
                    if cursor is None:
                        return
            except Exception as error:  # whatever a connection raises, the tool is not known
                call = listed().tool(name).call(arguments or {}, agent=self._agent, run=run)
                raise call.reject(f"the server's tools could not be listed ({type(error).__name__})") from error

        async def send_request(request: Any, result_type: Any, *args: Any, **kwargs: Any) -> Any:
            asked = request.model_copy(deep=True)
            data = asked.model_dump(by_alias=True, mode="json", exclude_none=True)
            params = data.get("params") or {}
            if data.get("method") == "tools/list":
                result = await send(asked, result_type, *args, **kwargs)
                return shown(result, "cursor" not in params) if isinstance(result, ListToolsResult) else result
            if data.get("method") != "tools/call":
                return await send(asked, result_type, *args, **kwargs)
            name = str(params.get("name"))
            try:
                if not listed().knows(name):
                    await learn(name, params.get("arguments"))
                call = listed().call(name, params.get("arguments") or {}, caller)
                if not _is_written_as_given(asked):
                    raise call.reject("an argument holds what cannot be written as text")
                return await call.arun(lambda: reported(send(asked, result_type, *args, **kwargs)))
            except CallRefused as refusal:
                return denied(refusal)
            except ServerReportedError as error:
                return error.result

        session.send_request = send_request  # type: ignore[method-assign,assignment]
        return run

    def end(self, run: str) -> None:
        """A client's session is over."""
        self._point.end(run, can_wait=False)


def _is_written_as_given(asked: Any) -> bool:
    """Half a character is written as another one: what the model said is not what would be sent."""
    try:
        json.dumps(asked.params.arguments, ensure_ascii=False, default=str).encode()
    except (AttributeError, UnicodeEncodeError, TypeError, ValueError, RecursionError):
        return False
    return True


def govern_sessions(client: Any, sessions: Sessions) -> None:
    """Govern a session, or every session that a client has and will have.

    Raises:
        TypeError: when it is none that is known.
    """
    if isinstance(client, ClientSession):
        sessions.govern(client)
    elif isinstance(client, Client):
        _govern_client(client, sessions)
    elif isinstance(client, ClientSessionGroup):
        _govern_group(client, sessions)
    elif hasattr(getattr(client, "transport", None), "connect_session"):
        _govern_fastmcp(client, sessions)
    else:
        raise TypeError(
            f"{type(client).__name__} is no ClientSession, ClientSessionGroup, mcp.Client or fastmcp.Client"
        )


def _govern_client(client: Client, sessions: Sessions) -> None:
    build = client._build_session

    async def build_session(exit_stack: Any) -> ClientSession:
        session = await build(exit_stack)
        exit_stack.callback(sessions.end, sessions.govern(session))
        return session

    client._build_session = build_session  # type: ignore[method-assign]
    if client._session is not None:
        sessions.govern(client._session)


def _govern_group(group: ClientSessionGroup, sessions: Sessions) -> None:
    connect = group.connect_with_session

    async def connect_with_session(server_info: Any, session: ClientSession) -> ClientSession:
        sessions.govern(session)
        return await connect(server_info, session)

    group.connect_with_session = connect_with_session  # type: ignore[method-assign]
    for session in group.sessions:
        sessions.govern(session)


def _govern_fastmcp(client: Any, sessions: Sessions) -> None:
    connect = client.transport.connect_session

    @asynccontextmanager
    async def connect_session(*args: Any, **kwargs: Any) -> AsyncIterator[ClientSession]:
        async with connect(*args, **kwargs) as session:
            run = sessions.govern(session)
            try:
                yield session
            finally:
                sessions.end(run)

    client.transport.connect_session = connect_session
    if client.is_connected():
        sessions.govern(client.session)
