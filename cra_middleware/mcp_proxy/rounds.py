"""Asking in the client, by the protocol of 2026: a question is the call's result, the answer comes with its repetition.

A server cannot send requests to the client there. A call that needs a person gets ``resultType: "input_required"``,
and the client repeats it with ``inputResponses``; to the server behind, only the call as it was is sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple
from uuid import uuid4

from cra_middleware.approvals.approval import ApprovalError
from cra_middleware.carp.call import ToolCall
from cra_middleware.errors import ApprovalRejected, ApprovalRequired
from cra_middleware.mcp_proxy.elicitation import NotAnsweredError, form, has_forms, understood
from cra_middleware.mcp_proxy.gate import Gate
from cra_middleware.mcp_proxy.messages import META_CAPABILITIES, META_VERSION, as_object

_KEY = "cra-approval"
_STATE = "cra-approval:"
_ROUND = ("inputResponses", "requestState")
_MOST = 1000
"""Questions that are remembered; an older one is asked again."""


class _Asked(NamedTuple):
    approval_id: str
    earlier: Mapping[str, object]
    """What the call carried for the server itself, from a round before."""


class Rounds:
    """The questions that were given as results."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._asked: dict[str, _Asked] = {}

    def question(
        self, refusal: ApprovalRequired, call: ToolCall, params: Mapping[str, object]
    ) -> dict[str, object] | None:
        """The result that asks; None when this client cannot be asked so."""
        meta = as_object(params.get("_meta"))
        if META_VERSION not in meta or not has_forms(meta.get(META_CAPABILITIES)) or refusal.approval_id is None:
            return None
        pending = self._gate.question(refusal.approval_id)
        if pending is None:
            return None
        try:  # the person is shown the values themselves, which the store may not keep
            asked = form(replace(pending, arguments=call.arguments))
        except NotAnsweredError:
            return None
        state = f"{_STATE}{uuid4()}"
        if len(self._asked) >= _MOST:
            del self._asked[next(iter(self._asked))]
        self._asked[state] = _Asked(refusal.approval_id, {key: params[key] for key in _ROUND if key in params})
        request = {"method": "elicitation/create", "params": asked}
        return {"resultType": "input_required", "inputRequests": {_KEY: request}, "requestState": state}

    def answered(self, params: dict[str, object]) -> dict[str, object]:
        """A call's parameters as the server may see them, once an answer in them is taken.

        Raises:
            ApprovalRejected: when there is no answer in them, or one that does not count.
        """
        state = params.get("requestState")
        if not isinstance(state, str) or not state.startswith(_STATE):
            return params
        asked = self._asked.pop(state, None)
        plain = {key: value for key, value in params.items() if key not in _ROUND}
        if asked is None:
            return plain
        try:
            answer = understood(as_object(params.get("inputResponses")).get(_KEY), self._gate.client)
            self._gate.answer(asked.approval_id, answer)
        except (ApprovalError, NotAnsweredError) as error:
            raise ApprovalRejected(str(error), approval_id=asked.approval_id) from None
        return {**plain, **asked.earlier}
