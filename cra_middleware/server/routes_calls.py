"""Calls: authorised, told of, rejected; and the questions that some of them wait for."""

from __future__ import annotations

from cra_middleware.approvals import State
from cra_middleware.server.access import Role
from cra_middleware.server.answering import Answering, all_json, as_json
from cra_middleware.server.calls import Calls
from cra_middleware.server.faults import fault_of
from cra_middleware.server.routes_sessions import AGENTS
from cra_middleware.server.routing import Ask, Routes, Rule, Said
from cra_middleware.server.wire import Execute, Reject, Reply, Report, read_body

APPROVERS: Rule = frozenset[Role]({"approver"})
ASKERS: Rule = frozenset[Role]({"agent", "approver", "auditor"})
_STATES = ("pending", "approved", "rejected", "expired", "consumed", "all")


def add_calls(routes: Routes, calls: Calls) -> None:
    """The endpoints of calls."""

    def execute(ask: Ask) -> Said:
        answer = calls.execute(ask.caller, read_body(Execute, ask.json()))
        return Said(answer.status, answer.body, _retry(answer.retry_after_seconds))

    def report(ask: Ask) -> Said:
        execution_id = ask.path["execution_id"]
        calls.report(ask.caller, execution_id, read_body(Report, ask.json()))
        return Said(200, {"execution_id": execution_id, "recorded": True})

    def reject(ask: Ask) -> Said:
        refusal = calls.reject(ask.caller, read_body(Reject, ask.json()))
        return Said(200, {"recorded": True, **fault_of(refusal).body(None)})

    routes.add("POST", "/v1/execute", AGENTS, execute)
    routes.add("POST", "/v1/executions/reject", AGENTS, reject)
    routes.add("POST", "/v1/executions/{execution_id}/report", AGENTS, report)


def add_approvals(routes: Routes, answering: Answering) -> None:
    """The endpoints of approvals."""

    def listed(ask: Ask) -> Said:
        word = ask.word("state", "pending", _STATES)
        states: dict[str, State | None] = {
            "pending": "pending",
            "approved": "approved",
            "rejected": "rejected",
            "expired": "expired",
            "consumed": "consumed",
        }
        return Said(200, all_json(answering.listed(ask.caller, states.get(word), ask.query.get("session_id"))))

    def get(ask: Ask) -> Said:
        return Said(200, as_json(answering.get(ask.caller, ask.path["approval_id"])))

    def approve(ask: Ask) -> Said:
        reply = read_body(Reply, ask.json(optional=True))
        return Said(200, as_json(answering.answer(ask.caller, ask.path["approval_id"], True, reply)))

    def reject(ask: Ask) -> Said:
        reply = read_body(Reply, ask.json(optional=True))
        return Said(200, as_json(answering.answer(ask.caller, ask.path["approval_id"], False, reply)))

    routes.add("GET", "/v1/approvals", ASKERS, listed)
    routes.add("GET", "/v1/approvals/{approval_id}", ASKERS, get)
    routes.add("POST", "/v1/approvals/{approval_id}/approve", APPROVERS, approve)
    routes.add("POST", "/v1/approvals/{approval_id}/reject", APPROVERS, reject)


def _retry(seconds: float | None) -> dict[str, str]:
    return {} if seconds is None else {"retry-after": str(max(1, -int(-seconds // 1)))}
