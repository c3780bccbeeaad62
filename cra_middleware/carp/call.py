"""A tool call as it is decided: the arguments that the tool's body gets, their one canonical text, its digest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from datetime import date, time
from enum import Enum
from hashlib import sha256
from pathlib import PurePath
from typing import Literal, NamedTuple
from uuid import UUID

import orjson
from pydantic import BaseModel

from cra_middleware._canonical import MAX_INTEGER, UnrepresentableError, canonical, digest
from cra_middleware.carp.quota import Reservation

DenyCode = Literal[
    "policy_denied",
    "no_allow_policy",
    "unknown_action",
    "rate_limit_exceeded",
    "budget_exceeded",
    "invalid_parameters",
    "arguments_changed",
    "approval_rejected",
    "approval_expired",
    "policy_error",
    "session_ended",
    "runtime_unreachable",
]
ViolationType = Literal["rate_limit", "budget", "invalid_parameters"]


class Shadow(NamedTuple):
    """What a policy would have done, had it been enforced."""

    policy_id: str
    verdict: Literal["deny", "require_approval"]
    code: str
    reason: str


class Allow(NamedTuple):
    """The tool may run."""

    policy_id: str | None
    """None when only ``default_decision="allow"`` let it."""
    reservations: tuple[Reservation, ...] = ()
    """What the call will use up; to be committed or released."""
    shadows: tuple[Shadow, ...] = ()


class Deny(NamedTuple):
    """The tool must not run."""

    code: DenyCode
    policy_id: str
    reason: str
    retry_after_seconds: float | None = None
    violation: ViolationType | None = None
    """Recorded as ``policy.violated`` when it is one."""
    shadows: tuple[Shadow, ...] = ()


class Ask(NamedTuple):
    """A person has to approve."""

    policy_id: str
    reason: str
    approvers: tuple[str, ...] = ()
    """Who may; empty means anyone but the agent itself."""
    also_needed: tuple[tuple[str, ...], ...] = ()
    """Who else's yes other policies want for the same call."""
    expires_seconds: int | None = None
    shadows: tuple[Shadow, ...] = ()


Decision = Allow | Deny | Ask


UNWRITABLE = b'"cra:opaque:arguments"'
"""Stands for arguments that cannot be written down, so that their call can be recorded and denied."""


class ToolCall(NamedTuple):
    """One call, frozen before it is decided."""

    action_id: str
    tool_name: str
    """Module and qualified name, or server and tool."""
    arguments: Mapping[str, object]
    """What conditions and schemas see: real values; containers are copies that nobody else can change."""
    text: bytes
    """Canonical JSON of the arguments."""
    digest: str
    live: Mapping[str, object] | None
    """The caller's own objects, when they can still change before the tool runs."""
    problem: str | None = None
    """Why the arguments cannot be written down; such a call is denied."""
    tool_call_id: str | None = None
    agent_name: str | None = None
    distrust: str | None = None
    """Why the tool is not the one that was looked at; such a call is denied."""
    is_held: Callable[[], bool] | None = None
    """Whether the caller's own mapping still holds the objects that the arguments were taken from, where it can say."""
    request_key: str | None = None
    """By which the request for it is known when it comes again, where one may."""

    @classmethod
    def freeze(
        cls,
        action_id: str,
        tool_name: str,
        arguments: Mapping[str, object],
        tool_call_id: str | None = None,
        agent_name: str | None = None,
    ) -> ToolCall:
        """A call whose arguments are ``arguments``, as the tool's body will get them.

        Arguments that cannot be written down become the call's ``problem``.

        Raises:
            TypeError: when ``action_id`` or ``tool_name`` is no string.
        """
        if not (type(action_id) is type(tool_name) is str and tool_call_id is agent_name is None):
            _check_names(action_id, tool_name, tool_call_id or "", agent_name or "")
        for key, value in arguments.items():
            kind = type(value)
            if kind is str:
                if not value.isascii() or value[:4] == "cra:":  # type: ignore[attr-defined,index]
                    break
            elif kind is int:
                if not -MAX_INTEGER <= value <= MAX_INTEGER:  # type: ignore[operator]
                    break
            elif kind is float:
                if not 1e-4 <= value < 1e16:  # type: ignore[operator]
                    break
            elif kind is not bool and value is not None:
                break
            if not (type(key) is str and key.isidentifier() and key.isascii()):
                break
        else:  # plain scalars, which nobody can change: the bytes are canonical as they come
            plain = dict(arguments)
            text = orjson.dumps(plain, option=orjson.OPT_SORT_KEYS)
            return cls(
                action_id, tool_name, plain, text, sha256(text).hexdigest(), None, None, tool_call_id, agent_name
            )
        try:
            text = canonical(arguments)
            view = {key: decision_view(value) for key, value in arguments.items()}
        except Exception as error:  # noqa: BLE001  a hostile value may raise anything when it is looked at
            return cls(
                action_id, tool_name, {}, UNWRITABLE, digest(UNWRITABLE), None, _why(error), tool_call_id, agent_name
            )
        return cls(action_id, tool_name, view, text, digest(text), arguments, None, tool_call_id, agent_name)

    def changed(self) -> bool:
        """Whether the caller holds other objects now, or its objects no longer have the text that was decided."""
        try:
            if self.is_held is not None and not self.is_held():
                return True
            return self.live is not None and canonical(self.live) != self.text
        except Exception:  # noqa: BLE001  what can no longer be read is not what was decided
            return True


class Target(NamedTuple):
    """What a framework's tool stands for: an action, and what the action calls the tool's arguments."""

    action_id: str
    renames: Mapping[str, str] = {}
    """The tool's argument names to the action's."""

    def call(self, tool_name: str, arguments: Mapping[str, object], tool_call_id: str | None = None) -> ToolCall:
        """The frozen call of a tool whose body gets ``arguments``.

        Raises:
            TypeError: when two arguments would have one name.
        """
        if self.renames:
            renamed = {self.renames.get(key, key): value for key, value in arguments.items()}
            if len(renamed) != len(arguments):
                raise TypeError(f"two arguments of {tool_name} would have one name in {self.action_id}")
            arguments = renamed
        return ToolCall.freeze(self.action_id, tool_name, arguments, tool_call_id)


def _check_names(*names: object) -> None:
    """Frameworks are foreign code: types are wishes there."""
    if not all(isinstance(name, str) for name in names):
        raise TypeError("an action id, a tool name and a call id are strings")


def _why(error: Exception) -> str:
    if isinstance(error, UnrepresentableError):
        return str(error)
    if isinstance(error, RecursionError):
        return "nested too deeply, or circular"
    return f"reading them raised {type(error).__name__}"


def decision_view(value: object) -> object:
    """A copy for conditions to look at: containers copied, models and dataclasses as their fields,
    times, paths and UUIDs as their text, kinds of text and number as plain ones, the rest as it is."""
    if isinstance(value, Enum):
        return decision_view(value.value)
    if isinstance(value, (UUID, PurePath)):
        return str(value)
    if isinstance(value, (date, time)):  # a schema generated from such a parameter says "string"
        return value.isoformat()
    if isinstance(value, str):  # a schema validator knows the plain types only
        return str.__str__(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return int.__index__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {key: decision_view(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [decision_view(item) for item in value]
    if isinstance(value, BaseModel):
        return {key: decision_view(item) for key, item in BaseModel.__iter__(value)}
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: decision_view(getattr(value, field.name)) for field in fields(value)}
    return value
