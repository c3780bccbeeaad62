"""What tools stand for and which of them were looked at, as the server says it; asked again by its ETag."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass

from cra_middleware._fork import tell_child
from cra_middleware.atlas.lock import Lock
from cra_middleware.carp.call import Target
from cra_middleware.carp.tool_map import ToolMap
from cra_middleware.client.connection import Connection
from cra_middleware.client.refusals import refusal_of
from cra_middleware.errors import CallRefused, RuntimeUnreachable

FRESH_SECONDS = 30.0
"""How long what is known counts without asking whether it has changed; then that is asked in another thread."""
STALE_SECONDS = 60.0
"""How long it counts where no such question was answered: then whoever wants to know waits for the answer."""
RETRY_SECONDS = 5.0
"""How long a server that did not answer one who waited is not waited for again: many tools are looked at in a row."""

_logger = logging.getLogger("cra_middleware")


@dataclass(frozen=True, slots=True, eq=False)
class Tools(ToolMap):
    """What a server said at one time."""

    etag: str
    actions: frozenset[str]
    at_server: frozenset[str]
    """Actions that the server runs by itself."""
    maps: Mapping[str, Mapping[str, Target]]
    lock: Lock
    on_arguments: tuple[str, ...]
    observing: bool

    @property
    def argument_policies(self) -> tuple[str, ...]:
        return self.on_arguments

    @property
    def declared(self) -> Container[str]:
        return self.actions

    def mapped(self, tool_name: str, framework: str) -> Target | None:
        sections = [self.maps.get(section, {}) for section in dict.fromkeys((framework, "any"))]
        return next((section[tool_name] for section in sections if tool_name in section), None)

    def distrust(self, source: str, tool_name: str, described: Callable[[], str]) -> str | None:
        return self.lock.problem(source, tool_name, described()) if self.lock.holds(source) else None


class ToolBook:
    """The newest of them. Safe under threads."""

    def __init__(
        self, connection: Connection, later: Callable[[Callable[[], None]], None], *, may_be_old: bool = False
    ) -> None:
        """``later`` does something that waits for the network, in another thread; what ``may_be_old`` counts on while
        the server is not to be reached."""
        self._connection = connection
        self._later = later
        self._may_be_old = may_be_old
        self._lock = threading.Lock()
        self._waiting = threading.Lock()
        self._known: Tools | None = None
        self._checked = 0.0
        """When the server last said that it is the newest."""
        self._asked = 0.0
        """When that was last asked in another thread."""
        self._missed: tuple[float, str] = (0.0, "")
        """Until when the server is not waited for, and why it did not answer."""
        tell_child(self)

    def forked(self) -> None:
        """In a forked child: another thread of the parent's may have held a lock."""
        self._lock = threading.Lock()
        self._waiting = threading.Lock()

    @property
    def now(self) -> Tools:
        """What the server said at most ``STALE_SECONDS`` ago; asked for where that is longer ago.

        Raises:
            CallRefused: when it cannot be had, and what is known must not be old.
        """
        known = self._known
        if known is None:
            return self.renew()
        if time.monotonic() - self._checked > STALE_SECONDS:
            return self._renewed(known)
        return self._looked_after(known)

    @property
    def latest(self) -> Tools:
        """What is known, however old, for what decides nothing; asked for when nothing is.

        Raises:
            CallRefused: when it cannot be had.
        """
        known = self._known
        return self.renew() if known is None else self._looked_after(known)

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

    def _looked_after(self, known: Tools) -> Tools:
        now = time.monotonic()
        if now - max(self._checked, self._asked) > FRESH_SECONDS:
            self._asked = now
            self._later(self._renew_quietly)
        return known

    def _renewed(self, known: Tools) -> Tools:
        """What is newest; of many who wait, one asks for all."""
        began = time.monotonic()
        with self._waiting:
            if self._known is not None and self._checked >= began:
                return self._known
            until, why = self._missed
            if began >= until:
                try:
                    return self.renew()
                except RuntimeUnreachable as error:
                    self._missed = time.monotonic() + RETRY_SECONDS, error.reason
                    why = error.reason
            if not self._may_be_old:
                raise RuntimeUnreachable(why)
            return self._looked_after(known)

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
            frozenset(_text(name) for name in _items(body["at_server"])),
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
