"""What tools stand for and which of them were looked at, as the server says it; asked again by its ETag."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from cra_middleware.atlas.lock import Lock
from cra_middleware.carp.call import Target, ToolCall, find_target
from cra_middleware.client.connection import Connection
from cra_middleware.client.refusals import refusal_of
from cra_middleware.errors import CallRefused, RuntimeUnreachable

FRESH_SECONDS = 30.0
"""How long what is known counts without asking whether it has changed."""

_logger = logging.getLogger("cra_middleware")


class Tools(NamedTuple):
    """What a server said at one time."""

    etag: str
    actions: frozenset[str]
    maps: Mapping[str, Mapping[str, Target]]
    lock: Lock
    argument_policies: tuple[str, ...]
    observing: bool

    def target_for(
        self,
        tool_name: str,
        framework: str,
        declared: str | None,
        actions: Mapping[str, str] | None = None,
        server: str | None = None,
    ) -> Target:
        """What a tool stands for, as ``Runtime.target_for`` says."""
        sections = [self.maps.get(section, {}) for section in dict.fromkeys((framework, "any"))]

        def mapped(name: str) -> Target | None:
            return next((section[name] for section in sections if name in section), None)

        return find_target(mapped, tool_name, declared, actions, server)

    def freeze(self, action_id: str, tool_name: str, arguments: Mapping[str, object]) -> ToolCall:
        """The call of a function as an action, or as a tool that the Atlases map to one.

        Raises:
            TypeError: when ``action_id`` is no string, or two arguments would have one name.
        """
        if action_id in self.actions:
            return ToolCall.freeze(action_id, tool_name, arguments)
        return self.target_for(action_id, "any", None).call(tool_name, arguments)

    def distrust(self, source: str, tool_name: str, described: Callable[[], str]) -> str | None:
        """Why a tool is not one that was looked at; ``described`` gives its digest."""
        return self.lock.problem(source, tool_name, described()) if self.lock.holds(source) else None


class ToolBook:
    """The newest of them. Safe under threads."""

    def __init__(self, connection: Connection, later: Callable[[Callable[[], None]], None]) -> None:
        """``later`` does something that waits for the network, in another thread."""
        self._connection = connection
        self._later = later
        self._lock = threading.Lock()
        self._known: Tools | None = None
        self._checked = 0.0

    def forked(self) -> None:
        """In a forked child: another thread of the parent's may have held the lock."""
        self._lock = threading.Lock()

    @property
    def now(self) -> Tools:
        """What is known; asked for when nothing is.

        Raises:
            CallRefused: when it cannot be had.
        """
        known = self._known
        if known is None:
            return self.renew()
        if time.monotonic() - self._checked > FRESH_SECONDS:
            self._checked = time.monotonic()
            self._later(self._renew_quietly)
        return known

    def seen(self, etag: object) -> None:
        """The server says that this is the newest.

        Raises:
            CallRefused: when that cannot be had.
        """
        if self._known is None or self._known.etag != etag:
            self.renew()
        else:
            self._checked = time.monotonic()

    def renew(self) -> Tools:
        """Ask whether there is something newer.

        Raises:
            CallRefused: when there is no answer.
        """
        with self._lock:
            known = self._known
            headers = {} if known is None else {"if-none-match": f'"{known.etag}"'}
            reply = self._connection.ask("GET", "/v1/tools", headers=headers)
            if reply.problem is not None:
                raise refusal_of(reply.problem, None)
            if reply.status != 304 or known is None:
                known = self._known = _read(reply.json())
            self._checked = time.monotonic()
            return known

    def _renew_quietly(self) -> None:
        try:
            self.renew()
        except CallRefused as error:  # the calls themselves find out
            _logger.warning("whether tools stand for something else now is not known: %s", error.reason)


def _read(body: Mapping[str, object]) -> Tools:
    try:
        return Tools(
            _text(body["etag"]),
            frozenset(_text(name) for name in _items(body["actions"])),
            {
                framework: {tool: _target(told) for tool, told in _fields(tools).items()}
                for framework, tools in _fields(body["maps"]).items()
            },
            Lock(
                {
                    source: {name: _text(digest) for name, digest in _fields(tools).items()}
                    for source, tools in _fields(body["lock"]).items()
                }
            ),
            tuple(_text(name) for name in _items(body["argument_policies"])),
            body["observing"] is True,
        )
    except (KeyError, TypeError) as error:
        raise RuntimeUnreachable("what the server says about tools cannot be read") from error


def _target(told: object) -> Target:
    if isinstance(told, str):
        return Target(told)
    fields = _fields(told)
    renames = fields.get("args")
    return Target(
        _text(fields["action"]), {} if renames is None else {key: _text(name) for key, name in _fields(renames).items()}
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("no text")
    return value


def _items(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError("no list")
    return value


def _fields(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise TypeError("no object")
    return value
