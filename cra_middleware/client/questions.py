"""The questions that wait at a server, as ``Runtime.approvals`` lists and answers them.

A question is opened and used up by the server alone. Who answers is whom the key belongs to, whatever name is given
here, and never who asked.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import get_args

from cra_middleware._clock import parse_us
from cra_middleware.approvals.approval import Answer, Approval, ApprovalError, Pending, State
from cra_middleware.carp.call import ToolCall
from cra_middleware.client.connection import Connection, Reply, segment
from cra_middleware.errors import ApprovalRequired, RuntimeUnreachable
from cra_middleware.observer import Subject

_logger = logging.getLogger("cra_middleware")
_STATES: tuple[State, ...] = get_args(State)


class Questions:
    """An ``ApprovalStore`` of which only the half that a client may use does anything."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self, approval_id: str) -> Approval | None:
        """One question."""
        reply = self._ask("GET", f"/v1/approvals/{segment(approval_id)}", again=True)
        if reply.status == 404:
            return None
        return _approval(_said(reply))

    def listed(self, state: State | None = None, session_id: str | None = None) -> list[Approval]:
        """Questions, oldest first; without ``session_id`` those that the key may see."""
        query = {"state": state or "all", **({} if session_id is None else {"session_id": session_id})}
        items = _said(self._ask("GET", "/v1/approvals", query=query, again=True)).get("items")
        if not isinstance(items, list):
            raise ApprovalError("the server's answer cannot be read")
        return [_approval(item) for item in items]

    def answer(self, approval_id: str, answer: Answer, now_us: int) -> Approval:
        """Answer in the name of the key."""
        body: dict[str, object] = {"groups": list(answer.groups)}
        if answer.reason is not None:
            body["reason"] = answer.reason
        word = "approve" if answer.approved else "reject"
        return _approval(_said(self._ask("POST", f"/v1/approvals/{segment(approval_id)}/{word}", body)))

    def pending(self, call: ToolCall, refusal: ApprovalRequired, subject: Subject) -> Pending:
        """The question that a call was stopped for, to be shown to a person."""
        name = str(refusal.approval_id)
        try:
            waiting = [item.pending for item in self.listed("pending", subject.session_id)]
        except ApprovalError as error:
            _logger.warning("approval %s cannot be read: %s", name, error)
            waiting = []
        for pending in waiting:
            if pending.approval_id == name:
                return replace(pending, arguments=dict(call.arguments), others_pending=len(waiting) - 1)
        return Pending(
            approval_id=name,
            session_id=subject.session_id,
            agent_id=subject.agent_id,
            action_id=call.action_id,
            tool_name=call.tool_name,
            arguments=dict(call.arguments),
            policy_id=refusal.policy_id or "default",
            reason=refusal.reason,
            tool_call_id=call.tool_call_id,
        )

    def find(self, session_id: str, action_id: str, arguments_digest: str) -> Approval | None:
        """Only the server looks questions up by what they are about."""
        raise _elsewhere()

    def add(self, pending: Pending, most: int) -> bool:
        """Only the server asks."""
        raise _elsewhere()

    def consume(self, approval_id: str, now_us: int) -> bool:
        """Only the server uses a yes up."""
        raise _elsewhere()

    def give_back(self, approval_id: str) -> None:
        """Only the server gives a yes back."""
        raise _elsewhere()

    def expire(self, approval_id: str, reason: str) -> None:
        """Only the server lets a question expire."""
        raise _elsewhere()

    def _ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        query: dict[str, str] | None = None,
        *,
        again: bool = False,
    ) -> Reply:
        try:
            return self._connection.ask(method, path, body, query=query, again=again)
        except RuntimeUnreachable as error:
            raise ApprovalError(error.reason) from error


def _said(reply: Reply) -> dict[str, object]:
    if reply.problem is not None:
        raise ApprovalError(reply.problem.message or reply.problem.code)
    try:
        return reply.json()
    except RuntimeUnreachable as error:
        raise ApprovalError(error.reason) from error


def _approval(told: object) -> Approval:
    try:
        if not isinstance(told, dict):
            raise TypeError("no object")
        arguments, state = told["arguments"], told["state"]
        if not isinstance(arguments, dict) or state not in _STATES:
            raise TypeError("no question")
        call_id = told.get("tool_call_id")
        pending = Pending(
            approval_id=str(told["approval_id"]),
            session_id=str(told["session_id"]),
            agent_id=str(told["agent_id"]),
            action_id=str(told["action_id"]),
            tool_name=str(told["tool_name"]),
            arguments=arguments,
            policy_id=str(told["policy_id"]),
            reason=str(told["reason"]),
            requested_us=parse_us(str(told["requested_at"])),
            expires_us=parse_us(str(told["expires_at"])),
            approvers=_names(told["approvers"]),
            also_needed=tuple(_names(names) for names in told.get("also_needed", [])),
            tool_call_id=call_id if isinstance(call_id, str) else None,
        )
        by, reason, decided = told.get("by"), told.get("answer_reason"), told.get("decided_at")
        return Approval(
            pending=pending,
            state=state,
            by=by if isinstance(by, str) else None,
            reason=reason if isinstance(reason, str) else None,
            decided_us=parse_us(decided) if isinstance(decided, str) else None,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ApprovalError("the server's answer cannot be read") from error


def _names(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError("no list")
    return tuple(str(name) for name in value)


def _elsewhere() -> ApprovalError:
    return ApprovalError("questions are asked and used up at the server")
