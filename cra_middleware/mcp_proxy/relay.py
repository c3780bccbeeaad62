"""Routes messages between a client and a server, whatever carries them; tool calls go through the gate.

Every request of the client is remembered until it is answered. A response that answers nothing is dropped, so that a
server cannot make up the result of a call that was refused, or waits for a person.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from cra_middleware.approvals.approval import Approver
from cra_middleware.errors import ApprovalRequired, CallRefused
from cra_middleware.mcp_proxy import messages
from cra_middleware.mcp_proxy.elicitation import Elicitation, has_forms
from cra_middleware.mcp_proxy.gate import Gate
from cra_middleware.mcp_proxy.messages import Id, Message, as_object, error_line
from cra_middleware.mcp_proxy.outcomes import (
    CallCancelledError,
    ClientGoneError,
    NoAnswerInTimeError,
    Response,
    ServerGoneError,
    ServerReportedError,
    ToolReportedError,
    fail,
    outcome_of,
)
from cra_middleware.mcp_proxy.rounds import Rounds

_GLANCE_SECONDS = 0.02

Reply = Callable[[bytes | None], None]
"""Takes the response to one request; None when there is none to come."""


class Writer(Protocol):
    """One end: takes lines in order."""

    def write(self, line: bytes, /) -> None:
        """Send a line, without its end; nothing is waited for."""
        ...

    async def drain(self) -> None:
        """Wait until the other side has taken most of what was written."""
        ...


@dataclass(frozen=True)
class RelayTerms:
    """How a relay behaves."""

    timeout_seconds: float = 3600.0
    """How long a tool call may take."""
    elicit: bool = False
    """Ask the client's user where a call needs a person."""
    how_to_approve: str = "nobody can answer it: the operator has to start the proxy with --approvals FILE"


class _Waiting:
    """A request of the client that has not been answered yet."""

    __slots__ = ("answer", "method", "reply", "task")

    def __init__(self, method: str, reply: Reply) -> None:
        self.method = method
        self.reply = reply
        self.task: asyncio.Task[None] | None = None
        self.answer: asyncio.Future[Response] | None = None
        """Set once a tool call is forwarded."""


_Key = tuple[type, Id]


class Relay:
    """The messages of one connection."""

    def __init__(
        self, gate: Gate, to_client: Writer, to_server: Writer, terms: RelayTerms, warn: Callable[[str], None]
    ) -> None:
        """Route; ``warn`` hears what an operator should know."""
        self._gate = gate
        self._to_client = to_client
        self._to_server = to_server
        self._terms = terms
        self._warn = warn
        self._waiting: dict[_Key, _Waiting] = {}
        self._gone: str | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._approver: Approver | None = None
        self._rounds = Rounds(gate)
        self._elicitation = Elicitation(to_client.write, lambda: gate.client, terms.timeout_seconds)

    async def from_client(self, line: bytes | None) -> None:
        """Take a line of the client; None is one that was too long."""
        if line is not None and not line.strip():
            return
        try:
            if line is None:
                raise messages.UnreadableError(
                    messages.INVALID_REQUEST, f"a message is longer than {messages.MAX_LINE} bytes"
                )
            read = messages.read_client_line(line)
        except messages.UnreadableError as error:
            self._to_client.write(error_line(None, error.code, str(error)))
        else:
            if isinstance(read, Message):
                self._take(read, self._answer)
            else:
                self._take_batch(read)
        await asyncio.sleep(0)  # lets a call that was just taken be decided and sent before the next message
        await self._to_server.drain()
        await self._to_client.drain()

    def _answer(self, raw: bytes | None) -> None:
        if raw is not None:
            self._to_client.write(raw)

    def _take_batch(self, batch: list[Message]) -> None:
        """Take each message by itself, and give the responses back as one batch (protocols before June 2025)."""
        if not batch:
            self._answer(error_line(None, messages.INVALID_REQUEST, "a batch must not be empty"))
        left = sum(message.kind == "request" for message in batch)
        parts: list[bytes] = []

        def collect(raw: bytes | None) -> None:
            nonlocal left
            left -= 1
            if raw is not None:
                parts.append(raw)
            if left == 0 and parts:
                self._answer(b"[" + b",".join(parts) + b"]")

        for message in batch:
            self._take(message, collect if message.kind == "request" else self._answer)

    def _take(self, message: Message, reply: Reply) -> None:
        if message.kind == "response":
            self._take_response(message)
        elif message.kind == "notification":
            self._take_notification(message)
        else:
            self._take_request(message, reply)

    def _take_response(self, message: Message) -> None:
        if message.flaw is not None:
            self._warn(f"a response of the client is not passed on: {message.flaw}")
        elif not self._elicitation.take(message.value):
            self._to_server.write(message.raw)

    def _take_notification(self, message: Message) -> None:
        if message.flaw is not None or message.method is None or _is_call(message.method):
            why = message.flaw or "a tools/call without an id" if message.method else "its method is no string"
            self._warn(f"a notification of the client is not passed on: {why}")
            if message.method is not None and _is_call(message.method):
                self._record_rejected(message, why)
            return
        if message.method == "notifications/cancelled" and not self._cancel(message.params.get("requestId")):
            return
        self._to_server.write(message.raw)

    def _take_request(self, message: Message, reply: Reply) -> None:
        request_id, method = message.id, message.method
        if request_id is None:
            reply(error_line(None, messages.INVALID_REQUEST, "an id is a string or an integer"))
            return
        try:
            messages.write(request_id)
        except ValueError:
            reply(error_line(None, messages.INVALID_REQUEST, "an id is text that can be encoded"))
            return
        key = (type(request_id), request_id)
        if key in self._waiting:  # answering by its id would answer the first one
            reply(error_line(None, messages.INVALID_REQUEST, f"the id {request_id!a} waits for an answer already"))
            return
        if method is None or (message.flaw is not None and not _is_call(method)):
            reply(error_line(request_id, messages.INVALID_REQUEST, message.flaw or "a method is a string"))
            return
        if _is_call(method) and method != "tools/call":
            reply(
                error_line(request_id, messages.INVALID_REQUEST, f"the method {method!a} could be taken for tools/call")
            )
            return
        if self._gone is not None:
            reply(error_line(request_id, messages.CONNECTION_CLOSED, self._gone))
            return
        self._hear(message, method)
        waiting = self._waiting[key] = _Waiting(method, reply)
        if method != "tools/call":
            self._to_server.write(message.raw)
            return
        waiting.task = asyncio.create_task(self._call(message, request_id, waiting))
        self._tasks.add(waiting.task)
        waiting.task.add_done_callback(self._tasks.discard)

    def _hear(self, message: Message, method: str) -> None:
        params = message.params
        if method == "initialize":
            self._gate.client_is(params.get("clientInfo"))
            if self._terms.elicit and has_forms(params.get("capabilities")):
                self._approver = self._elicitation
        else:
            self._gate.client_is(as_object(params.get("_meta")).get(messages.META_CLIENT))

    def _cancel(self, request_id: object) -> bool:
        """Stop waiting for a request; whether the server should hear of it."""
        usable = messages.usable_id(request_id)
        waiting = None if usable is None else self._waiting.get((type(usable), usable))
        if waiting is None or usable is None:
            return True
        if waiting.task is None:
            self._settle(usable, waiting, None)
            return True
        if waiting.answer is None:
            waiting.task.cancel()
            return False
        fail(waiting.answer, CallCancelledError("the client cancelled the call; the tool may have run"))
        return True

    def _settle(self, request_id: Id, waiting: _Waiting, raw: bytes | None) -> None:
        if self._waiting.pop((type(request_id), request_id), None) is waiting:
            waiting.reply(raw)

    async def _call(self, message: Message, request_id: Id, waiting: _Waiting) -> None:
        """A tools/call, from its decision to its answer."""
        raw: bytes | None = None
        try:
            raw = await self._decided(message, request_id, waiting)
        except asyncio.CancelledError:  # before it was forwarded: by the client, or because an end left
            raw = None if self._gone is None else error_line(request_id, messages.CONNECTION_CLOSED, self._gone)
        except (CallCancelledError, ClientGoneError):
            raw = None
        except ServerGoneError as error:
            raw = error_line(request_id, messages.CONNECTION_CLOSED, str(error))
        except NoAnswerInTimeError as error:
            raw = error_line(request_id, messages.REQUEST_TIMEOUT, str(error))
            self._to_server.write(messages.cancelled_line(request_id, "it took too long"))
        except CallRefused as refusal:
            text = str(refusal)
            if isinstance(refusal, ApprovalRequired):
                text += " " + self._terms.how_to_approve.replace("ID", refusal.approval_id or "ID")
            raw = self._refused(message, request_id, text)
        except Exception as error:  # noqa: BLE001  whatever fails in the gate, the client gets an answer it can read
            self._warn(f"a tool call failed in the proxy: {type(error).__name__}: {error}")
            where = "before the tool was reached, so it was not run" if waiting.answer is None else "after the tool ran"
            raw = self._refused(
                message, request_id, f"The proxy failed {where} ({type(error).__name__}). Tell the operator."
            )
        finally:
            self._settle(request_id, waiting, raw)
        await self._to_client.drain()

    def _refused(self, message: Message, request_id: Id, text: str) -> bytes:
        modern = messages.META_VERSION in as_object(message.params.get("_meta"))
        return messages.refused_line(request_id, text, modern=modern)

    async def _decided(self, message: Message, request_id: Id, waiting: _Waiting) -> bytes:
        params = message.value.get("params")
        name = as_object(params).get("name")
        if not isinstance(params, dict) or not isinstance(name, str):
            return error_line(request_id, messages.INVALID_PARAMS, "params is an object with the tool's name, a string")
        arguments = params.get("arguments")
        if arguments is None:
            arguments = params["arguments"] = {}
        if not isinstance(arguments, dict):
            self._record_rejected(message, "the arguments are no object")
            return error_line(request_id, messages.INVALID_PARAMS, "arguments is an object")
        flaw = messages.flaw_of_call(message)
        if flaw is not None:
            raise self._gate.reject(self._gate.call(_encodable(name), {}, request_id), flaw)
        params = self._rounds.answered(params)
        line = messages.write({"jsonrpc": "2.0", "id": request_id, "method": "tools/call", "params": params})
        call = self._gate.call(name, arguments, request_id)
        answered: list[Response] = []

        async def forward() -> object:
            waiting.answer = asyncio.get_running_loop().create_future()
            self._to_server.write(line)
            answered.append(await self._answered(waiting.answer))
            return outcome_of(answered[0].value)

        try:
            with suppress(ToolReportedError, ServerReportedError):  # the answer itself says so
                await self._gate.run(name, call, forward, self._approver)
        except ApprovalRequired as refusal:
            question = self._rounds.question(refusal, call, params) if self._terms.elicit else None
            if question is None:
                raise
            return messages.result_line(request_id, question)
        return answered[0].raw

    async def _answered(self, answer: asyncio.Future[Response]) -> Response:
        seconds = self._terms.timeout_seconds
        try:
            async with asyncio.timeout(seconds):
                return await answer
        except TimeoutError:
            message = f"the server did not answer within {seconds:g} s; the tool may have run"
            raise NoAnswerInTimeError(message) from None

    def _record_rejected(self, message: Message, reason: str) -> None:
        """Keep a call that cannot be decided in the trace; it is not forwarded in any case."""
        name = message.params.get("name")
        try:
            call = self._gate.call(_encodable(name) if isinstance(name, str) else "?", {}, message.id)
            self._gate.reject(call, reason)
        except Exception as error:  # noqa: BLE001  what cannot be recorded either stays refused
            self._warn(f"a refused call could not be recorded: {error}")

    async def from_server(self, line: bytes | None) -> None:
        """Take a line of the server."""
        if line is None or not line.strip():
            return
        try:
            value = messages.read_server_line(line)
        except messages.UnreadableError:
            self._warn(f"a line of the server is not JSON and is dropped: {line[:120]!r}")
            return
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict):
                self._from_server(item, line if item is value else messages.write(item))
            else:
                self._warn("a message of the server is no object and is dropped")
        await self._to_client.drain()

    def _from_server(self, value: dict[str, object], raw: bytes) -> None:
        if "method" in value:
            self._to_client.write(raw)
            return
        request_id = messages.usable_id(value.get("id"))
        waiting = None if request_id is None else self._waiting.get((type(request_id), request_id))
        if waiting is None or request_id is None:
            self._warn(f"an answer of the server to no open request is dropped (id {value.get('id')!a:.80})")
            return
        if waiting.task is not None:
            if waiting.answer is None:
                self._warn("an answer of the server to a call that was not forwarded is dropped")
            elif not waiting.answer.done():
                waiting.answer.set_result(Response(value, raw))
            return
        try:
            self._gate.heard(value)
            if waiting.method == "tools/list":
                raw = self._gate.shown(value, raw, request_id)
        except Exception as error:  # noqa: BLE001  a list that cannot be looked at is not passed on
            self._warn(f"the list of tools is withheld: {type(error).__name__}: {error}")
            raw = error_line(request_id, messages.INTERNAL_ERROR, f"the proxy withholds the tools: {error}")
        self._settle(request_id, waiting, raw)

    def server_gone(self, why: str) -> None:
        """The server has ended: answer everything that waits for it, now and from now on."""
        self._gone = why
        for (_, request_id), waiting in list(self._waiting.items()):
            if waiting.answer is not None:
                fail(waiting.answer, ServerGoneError(f"{why}; the tool may have run"))
            elif waiting.task is not None:
                waiting.task.cancel()
            else:
                self._settle(request_id, waiting, error_line(request_id, messages.CONNECTION_CLOSED, why))

    async def finish(self, grace_seconds: float) -> None:
        """The client has left: give what runs a moment to end, then record it as lost."""
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_seconds):
                while self._waiting:
                    await asyncio.sleep(_GLANCE_SECONDS)
        for waiting in list(self._waiting.values()):
            if waiting.answer is not None:
                fail(waiting.answer, ClientGoneError("the client left before the answer; the tool may have run"))
            elif waiting.task is not None:
                waiting.task.cancel()
        await self.settled()

    async def settled(self) -> None:
        """Wait until every call has its outcome recorded."""
        if self._tasks:
            await asyncio.wait(list(self._tasks))


def _is_call(method: str) -> bool:
    return messages.folded(method) == "toolscall"


def _encodable(name: str) -> str:
    return name.encode(errors="backslashreplace").decode()
