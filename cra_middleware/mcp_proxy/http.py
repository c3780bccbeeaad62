"""Messages over streamable HTTP, by the MCP SDK's own client transport.

What is sent is built from the message that was decided, its headers too: a server that looks at ``Mcp-Name`` or at an
``Mcp-Param-…`` header sees the same call as in the body.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from cra_middleware.mcp_proxy.catalogue import Catalogue
from cra_middleware.mcp_proxy.messages import MAX_LINE, META_VERSION, as_object, write
from cra_middleware.mcp_proxy.stdio import Deliver, ServerError

_CONNECT_SECONDS = 30.0


class HttpServer:
    """A server behind a URL."""

    def __init__(self, url: str, headers: Mapping[str, str], catalogue: Catalogue) -> None:
        """``catalogue`` knows which arguments a tool wants mirrored in headers."""
        self._url = url
        parts = urlsplit(url)
        self._shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        """Without what may be a secret."""
        self._headers = dict(headers)
        self._catalogue = catalogue
        self._outgoing: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._version: str | None = None
        self._failure: str | None = None

    async def start(self) -> None:
        """Look whether the SDK is there; the first message connects.

        Raises:
            ServerError: when it is not.
        """
        try:
            import mcp.client.streamable_http
            import mcp.shared.inbound  # noqa: F401
        except ImportError:
            raise ServerError("--url needs the MCP SDK: pip install 'cra-middleware[mcp]'") from None

    async def run(self, deliver: Deliver) -> None:
        """Deliver every message until the connection fails."""
        import httpx2
        from mcp.client.streamable_http import streamable_http_client

        patience = httpx2.Timeout(_CONNECT_SECONDS, read=None)  # how long a call may take, the relay knows
        many = httpx2.Limits(max_connections=None)
        try:
            async with (
                httpx2.AsyncClient(headers=self._headers, timeout=patience, limits=many) as client,
                streamable_http_client(self._url, http_client=client, max_sse_event_size=MAX_LINE) as (read, send),
                asyncio.TaskGroup() as group,
            ):
                group.create_task(self._send(send))
                async for item in read:
                    if not isinstance(item, Exception):
                        await deliver(self._received(item.message))
                self._outgoing.put_nowait(None)
        except Exception as error:  # noqa: BLE001  the transport raises groups of whatever its HTTP library raises
            self._failure = f"the MCP server at {self._shown} cannot be reached: {_innermost(error)}"

    def write(self, line: bytes) -> None:
        self._outgoing.put_nowait(line)

    async def drain(self) -> None:
        while self._outgoing.qsize() > 64 and self._failure is None:
            await asyncio.sleep(0.01)

    async def why(self) -> str:
        """Why it gives no more answers."""
        return self._failure or f"the MCP server at {self._shown} closed the connection"

    async def close(self, grace_seconds: float) -> None:
        """Nothing: whoever cancels ``run`` ends the connection."""

    async def _send(self, stream: Any) -> None:
        from mcp.shared.message import ClientMessageMetadata, SessionMessage
        from mcp.types import jsonrpc_message_adapter

        while (line := await self._outgoing.get()) is not None:
            value = json.loads(line)
            message = jsonrpc_message_adapter.validate_python(value)
            await stream.send(SessionMessage(message, ClientMessageMetadata(headers=self._headers_of(value))))

    def _headers_of(self, value: Mapping[str, object]) -> dict[str, str]:
        """The headers that mirror a message: by the protocol of 2026 if it says so itself, else the version agreed."""
        from mcp.shared import inbound

        method, params = value.get("method"), as_object(value.get("params"))
        version = as_object(params.get("_meta")).get(META_VERSION)
        if not isinstance(version, str) or not isinstance(method, str):
            agreed = self._version is not None and method != "initialize"
            return {inbound.MCP_PROTOCOL_VERSION_HEADER: self._version} if agreed and self._version else {}
        headers = {inbound.MCP_PROTOCOL_VERSION_HEADER: version, inbound.MCP_METHOD_HEADER: method}
        name = params.get(inbound.NAME_BEARING_METHODS.get(method, ""))
        if isinstance(name, str):
            headers[inbound.MCP_NAME_HEADER] = inbound.encode_header_value(name)
        definition = self._catalogue.get(name) if method == "tools/call" and isinstance(name, str) else None
        schema = None if definition is None else definition.fields.get("inputSchema")
        if schema is not None and inbound.find_invalid_x_mcp_header(schema) is None:
            mirrored = inbound.x_mcp_header_map(schema)
            headers.update(inbound.mcp_param_headers(mirrored, as_object(params.get("arguments"))))
        return headers

    def _received(self, message: Any) -> bytes:
        value = message.model_dump(by_alias=True, mode="json", exclude_unset=True)
        result = as_object(value.get("result"))
        if "serverInfo" in result and isinstance(result.get("protocolVersion"), str):
            self._version = str(result["protocolVersion"])
        with suppress(ValueError):
            return write(value)
        return json.dumps(value).encode()


def _innermost(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"
