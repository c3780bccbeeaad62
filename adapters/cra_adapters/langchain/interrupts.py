"""Asking a person by LangGraph's own pause: the run stops, is checkpointed, and goes on with ``Command(resume=...)``.

The question is bound as every approval is: to the session, the arguments, the policies, and one use. A resume value
is ``True``, ``False``, or a mapping: ``{"approved": True, "by": "ann", "groups": ["team-leads"], "reason": "…"}``;
with ``"approval_id"`` in it, it counts for that question only. A person may as well answer through
``runtime.approvals`` or ``cra approvals``; the run then goes on whatever it is resumed with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langgraph.config import get_config
from langgraph.errors import GraphBubbleUp
from langgraph.types import interrupt

from cra_middleware import Answer, Pending

_CHECKPOINTER = "__pregel_checkpointer"  # where LangGraph keeps it in a run's configuration


class AskByInterrupt:
    """An approver that suspends the graph it is called in."""

    suspends = (GraphBubbleUp,)

    def __init__(self, *, one_call_per_task: bool = False) -> None:
        """``one_call_per_task`` says that a bare ``True`` can mean one call only.

        In a plain ``ToolNode`` several calls share a task, and LangGraph hands the value to whichever asks first:
        there, with several questions open, the value has to name its ``approval_id``.
        """
        self._one_call_per_task = one_call_per_task

    def __call__(self, pending: Pending) -> Answer:
        """Stop the run, or give what it was resumed with.

        Raises:
            LookupError: when the value is for another question, or does not say for which.
        """
        value = interrupt(_question(pending))
        named = value.get("approval_id") if isinstance(value, Mapping) else None
        if named is None and pending.others_pending and not self._one_call_per_task:
            raise LookupError("several questions are open: the resume value must name its approval_id")
        if named is not None and named != pending.approval_id:
            raise LookupError("the resume value is the answer to another question")
        return _answer(value)


def can_interrupt() -> bool:
    """Whether this is a graph's run that can be stopped and resumed."""
    try:
        return get_config().get("configurable", {}).get(_CHECKPOINTER) is not None
    except RuntimeError:  # not in a graph
        return False


def _question(pending: Pending) -> dict[str, Any]:
    return {
        "type": "cra_approval",
        "approval_id": pending.approval_id,
        "action_id": pending.action_id,
        "tool_name": pending.tool_name,
        "agent_id": pending.agent_id,
        "arguments": {key: value if _is_json(value) else str(value) for key, value in pending.arguments.items()},
        "policy_id": pending.policy_id,
        "reason": pending.reason,
        "approvers": list(pending.approvers),
        "also_needed": [list(names) for names in pending.also_needed],
    }


def _is_json(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_json(item) for key, item in value.items())
    if isinstance(value, list):
        return all(_is_json(item) for item in value)
    return value is None or isinstance(value, (str, int, float, bool))


def _answer(value: Any) -> Answer:
    if isinstance(value, Answer):
        return value
    if isinstance(value, bool):
        return Answer(value, "resume")
    if isinstance(value, Mapping) and isinstance(value.get("approved"), bool):
        groups = value.get("groups") or ()
        reason = value.get("reason")
        return Answer(
            value["approved"],
            str(value.get("by") or "resume"),
            None if reason is None else str(reason),
            (groups,) if isinstance(groups, str) else tuple(str(name) for name in groups),
        )
    return Answer(False, "resume", 'the run was resumed with neither True nor {"approved": True}')
