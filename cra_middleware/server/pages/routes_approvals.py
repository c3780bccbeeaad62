"""Questions that wait for a person, and their answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cra_middleware.approvals.approval import Approval, Pending
from cra_middleware.server.access import Caller, Role
from cra_middleware.server.answering import Answering
from cra_middleware.server.faults import Fault
from cra_middleware.server.host import Host
from cra_middleware.server.pages.arguments import size_of
from cra_middleware.server.pages.hearing import Hearing, Turn
from cra_middleware.server.pages.showing import Face
from cra_middleware.server.routing import Rule, Said
from cra_middleware.server.wire import Reply, read_body

READERS: Rule = frozenset[Role]({"approver", "auditor"})
APPROVERS: Rule = frozenset[Role]({"approver"})
MAX_SHOWN = 100
"""Questions on one page."""
MAX_LETTERS = 4000
"""Of arguments in the list: who answers has seen all of them."""


class Card(NamedTuple):
    """A question as the templates see it."""

    approval: Approval
    goal: str
    why_not: str
    """Why this person may not answer; empty when they may."""
    only_no: str
    """Why this person may not say yes; empty when they may."""
    is_long: bool
    is_open: bool
    is_late: bool
    """Whether its time is over, for a yes as for an answer."""

    @property
    def pending(self) -> Pending:
        return self.approval.pending


def add_approval_pages(hearing: Hearing, face: Face, host: Host, answering: Answering) -> None:
    """The pages of questions."""

    def waiting(caller: Caller) -> list[Approval]:
        now_us = host.clock.wall_us()
        found = answering.listed(caller, "pending", None)
        return [approval for approval in found if approval.pending.expires_us > now_us]

    def card(caller: Caller, approval: Approval) -> Card:
        pending = approval.pending
        why_not = ""
        try:
            answering.check(caller, pending)
        except Fault as fault:
            why_not = str(fault)
        row = host.session_row(pending.session_id)
        is_late = pending.expires_us <= host.clock.wall_us()
        is_long = size_of(pending.arguments) > MAX_LETTERS
        goal = row.goal if row is not None else ""
        is_open = approval.state == "pending" and not is_late
        return Card(approval, goal, why_not, _only_no(caller, pending), is_long, is_open, is_late)

    def home(turn: Turn) -> Said:
        found = waiting(turn.person)
        answered = None
        if "answered" in turn.query:
            answered = host.runtime.approvals.get(turn.query["answered"])
        cards = [card(turn.person, approval) for approval in found[:MAX_SHOWN]]
        return face.page(
            *(turn, "approvals"),
            script="approvals.js",
            cards=cards,
            more=len(found) - len(cards),
            answered=answered if answered is not None and answered.decided_us is not None else None,
        )

    def ids(turn: Turn) -> Said:
        """What the script looks at every few seconds."""
        found = [approval.pending.approval_id for approval in waiting(turn.person)]
        return Said(200, {"waiting": found[:MAX_SHOWN], "count": len(found), "now_ms": host.clock.wall_us() // 1000})

    def one(turn: Turn) -> Said:
        approval = answering.get(turn.person, turn.path["approval_id"])
        return face.page(turn, "approval", script="approvals.js", card=card(turn.person, approval))

    def answer(turn: Turn) -> Said:
        approval_id, word = turn.path["approval_id"], turn.form.get("answer")
        if word not in ("approve", "reject"):
            raise Fault("INVALID_CARP_REQUEST", "an answer is approve or reject")
        reason = turn.form.get("reason", "").replace("\r\n", "\n").strip() or None
        groups = _named(answering.get(turn.person, approval_id).pending) if turn.person.is_local else []
        reply = read_body(Reply, {"reason": reason, "groups": groups})
        answering.answer(turn.person, approval_id, word == "approve", reply)
        return Said(303, None, {"location": f"/?answered={approval_id}"})

    hearing.add("GET", "/", READERS, home)
    hearing.add("GET", "/waiting", READERS, ids, is_data=True)
    hearing.add("GET", "/approvals/{approval_id}", READERS, one)
    hearing.add("POST", "/approvals/{approval_id}", APPROVERS, answer)


def _only_no(caller: Caller, pending: Pending) -> str:
    """Without keys nobody says who they are, so whoever is there speaks for all that are named."""
    speaks_for = {caller.name, *caller.groups}
    for wanted in () if caller.is_local else _wanted(pending):
        if speaks_for.isdisjoint(wanted):
            return f"wants the yes of {' or '.join(wanted)}"
    return ""


def _wanted(pending: Pending) -> Sequence[tuple[str, ...]]:
    return [names for names in (pending.approvers, *pending.also_needed) if names]


def _named(pending: Pending) -> list[str]:
    return list(dict.fromkeys(name for names in _wanted(pending) for name in names))
