"""Whether a call would be left for a person, asked before it is made; and a question that is taken back."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from tests.conftest import manifest
from tests.server.serving import ASKED, Caller, Serve, Served, code

WAIT = "/v1/executions/would-wait"


def asked(caller: Caller, session_id: str, action_id: str = "refund.create", **more: Any) -> Any:
    return caller.post(WAIT, {"session_id": session_id, "action_id": action_id, "parameters": {"n": 1}, **more})


def waits(caller: Caller, session_id: str, action_id: str = "refund.create", **more: Any) -> object:
    answer = asked(caller, session_id, action_id, **more)
    assert answer.status_code == 200, answer.text
    return answer.json()["waits"]


def test_a_call_that_would_wait(served: Served) -> None:
    """One that a person is wanted for, and only as long as nobody has answered; nothing is recorded."""
    bot, ann = served.by("bot"), served.by("ann", "approver")
    name = bot.session()
    before = bot.kinds(name)
    assert waits(bot, name) is True
    assert waits(bot, name, "ticket.get") is False
    assert waits(bot, name, "ticket.delete") is False
    assert waits(bot, name, "ticket.nothing") is False
    assert waits(bot, name, distrust="it has changed") is False
    assert bot.kinds(name) == before
    assert bot.get("/v1/approvals").json()["items"] == []
    question = bot.execute(name, "refund.create").json()["error"]["details"]["approval_id"]
    assert waits(bot, name) is True
    ann.post(f"/v1/approvals/{question}/approve")
    assert waits(bot, name) is False
    assert waits(bot, name, parameters={"n": 2}) is True


def test_it_is_asked_by_who_opened_the_session(served: Served) -> None:
    """And about one that is there, in a body that can be read."""
    bot, other = served.by("bot"), served.by("other")
    name = bot.session()
    assert code(asked(other, name)) == (404, "SESSION_NOT_FOUND")
    assert code(asked(bot, str(uuid4()))) == (404, "SESSION_NOT_FOUND")
    assert code(asked(bot, name, surprise=1)) == (400, "INVALID_CARP_REQUEST")
    bot.post(f"/v1/sessions/{name}/end", {})
    assert code(asked(bot, name)) == (409, "SESSION_ALREADY_ENDED")


def test_tags_count_there_too(serve: Serve) -> None:
    """A value that no JSON can hold is decided as what it is."""
    big = {"policy_id": "big", "type": "require_approval", "actions": ["refund.create"]}
    big["conditions"] = {"parameters": {"properties": {"n": {"exclusiveMinimum": 2**60}}, "required": ["n"]}}  # type: ignore[assignment]
    bot = serve(manifest(policies=[*manifest()["policies"], big])).by("bot")
    name = bot.session()
    assert waits(bot, name, parameters={"n": f"cra:int:{2**61}"}, tagged=True) is True
    assert waits(bot, name, parameters={"n": "cra:int:5"}, tagged=True) is False


def test_a_question_is_taken_back_by_who_asked(served: Served) -> None:
    """That is a no, and never a yes; the call is denied with the reason."""
    bot, other, ann = served.by("bot"), served.by("other"), served.by("ann", "approver")
    name = bot.session()
    question = bot.execute(name, "refund.create").json()["error"]["details"]["approval_id"]
    assert other.post(f"/v1/approvals/{question}/reject", {}).status_code == 404
    assert code(bot.post(f"/v1/approvals/{question}/approve", {})) == (403, "FORBIDDEN")
    answer = bot.post(f"/v1/approvals/{question}/reject", {"reason": "The customer went away."})
    assert (answer.status_code, answer.json()["state"], answer.json()["by"]) == (200, "rejected", "who asked")
    assert code(ann.post(f"/v1/approvals/{question}/approve")) == (409, "APPROVAL_CONFLICT")
    refused = bot.execute(name, "refund.create")
    assert code(refused) == (403, "ACTION_DENIED")
    assert "The customer went away." in refused.json()["error"]["message"]


def test_another_agents_question_is_not_taken_back(served: Served) -> None:
    """Not even by a key that may answer questions, and could be the agent that asked."""
    bot = served.by("bot")
    question = bot.execute(bot.session(), "refund.create").json()["error"]["details"]["approval_id"]
    twin = served.by("twin", "agent", "approver", agents=("b*",))
    assert code(twin.post(f"/v1/approvals/{question}/reject", {})) == (403, "FORBIDDEN")


@pytest.mark.parametrize("value", ["cra:bytes:00", ["cra:opaque:a.B"], {"deep": "cra:set:00"}], ids=str)
def test_what_the_server_runs_needs_its_values(serve: Serve, value: object) -> None:
    """An executor is not given a tag instead of what the agent holds: the call is denied, and recorded."""
    ran: list[object] = []
    served = serve(
        manifest(policies=[*manifest()["policies"], ASKED]), executors={"ticket.get": lambda value: ran.append(value)}
    )
    bot = served.by("bot")
    name = bot.session()
    answer = bot.execute(name, parameters={"value": value}, tagged=True)
    assert code(answer) == (400, "INVALID_PARAMETERS")
    assert ran == []
    assert bot.kinds(name)[-1] == "action.denied"
