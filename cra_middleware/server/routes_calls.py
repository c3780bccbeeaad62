"""Calls: authorised, told of, rejected; and the questions that some of them wait for."""

from __future__ import annotations

from typing import get_args

from cra_middleware.approvals.approval import State
from cra_middleware.server.access import Role
from cra_middleware.server.answering import Answering, all_json, as_json
from cra_middleware.server.calls import Calls
from cra_middleware.server.faults import fault_of
from cra_middleware.server.reports import Reports
from cra_middleware.server.routes_sessions import AGENTS
from cra_middleware.server.routing import Ask, Routes, Rule, Said, retry_after
from cra_middleware.server.wire import Execute, Reject, Reply, Report, WouldWait, read_body

APPROVERS: Rule = frozenset[Role]({"approver"})
ANSWERERS: Rule = frozenset[Role]({"agent", "approver"})
"""Who may say no: an agent only to what it asked itself."""
ASKERS: Rule = frozenset[Role]({"agent", "approver", "auditor"})
_STATES: tuple[State, ...] = get_args(State)


def add_calls(routes: Routes, calls: Calls, reports: Reports) -> None:
    """The endpoints of calls."""

    def execute(ask: Ask) -> Said:
        answer = calls.execute(ask.caller, read_body(Execute, ask.json()))
        return Said(answer.status, answer.body, retry_after(answer.retry_after_seconds))

    def report(ask: Ask) -> Said:
        execution_id = ask.path["execution_id"]
        reports.report(ask.caller, execution_id, read_body(Report, ask.json()))
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
        word = ask.word("state", "pending", (*_STATES, "all"))
        state = next((state for state in _STATES if state == word), None)
        return Said(200, all_json(answering.listed(ask.caller, state, ask.query.get("session_id"))))

    def get(ask: Ask) -> Said:
        return Said(200, as_json(answering.get(ask.caller, ask.path["approval_id"])))

    def would_wait(ask: Ask) -> Said:
        return Said(200, {"waits": answering.would_wait(ask.caller, read_body(WouldWait, ask.json()))})

    def approve(ask: Ask) -> Said:
        reply = read_body(Reply, ask.json(optional=True))
        return Said(200, as_json(answering.answer(ask.caller, ask.path["approval_id"], True, reply)))

    def reject(ask: Ask) -> Said:
        reply = read_body(Reply, ask.json(optional=True))
        return Said(200, as_json(answering.answer(ask.caller, ask.path["approval_id"], False, reply)))

    routes.add("POST", "/v1/executions/would-wait", AGENTS, would_wait)
    routes.add("GET", "/v1/approvals", ASKERS, listed)
    routes.add("GET", "/v1/approvals/{approval_id}", ASKERS, get)
    routes.add("POST", "/v1/approvals/{approval_id}/approve", APPROVERS, approve)
    routes.add("POST", "/v1/approvals/{approval_id}/reject", ANSWERERS, reject)
