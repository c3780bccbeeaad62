"""A consumer's view: mypy must accept every line of this file."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import assert_type

from cra_middleware import Answer, Pending, Runtime, Session, governed, verify
from cra_middleware.approvals.approval import State


@governed("ticket.get")
def get(ticket_id: str, limit: int = 3) -> list[str]:
    return [ticket_id] * limit


@governed("ticket.get")
async def aget(ticket_id: str) -> bytes:
    return ticket_id.encode()


@governed("ticket.list")
def listing(count: int) -> Iterator[int]:
    yield from range(count)


@governed("ticket.list")
async def alisting(count: int) -> AsyncIterator[int]:
    for number in range(count):
        yield number


def approver(pending: Pending) -> Answer:
    return Answer(pending.arguments["amount"] == 1, by="ann")


async def use(session: Session) -> None:
    assert_type(get("T", limit=2), list[str])
    assert_type(await aget("T"), bytes)
    assert_type(session.call("ticket.get", get, "T"), list[str])
    assert_type(await session.acall("ticket.get", aget, "T"), bytes)
    assert_type([number for number in listing(3)], list[int])
    assert_type([number async for number in alisting(3)], list[int])


runtime = Runtime("atlas", approver=approver, approvals="a.db", counters="c.db", mode="observe", costs={"f": len})
assert_type(runtime.approvals.approve("id", by="ann", groups=["leads"]).state, State)
assert_type([item.pending.approval_id for item in runtime.approvals.list()], list[str])
assert_type(runtime.explain("a.b", {"amount": 5}).would_change, str)
assert_type(Runtime.observe(trace="t").session().context_text, str)
runtime.reload(["one", "two"])
assert_type(runtime.session().id, str)
assert_type(verify("file").sessions[0].intact, bool)
