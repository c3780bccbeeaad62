"""A call that needs a person: by ``cra approvals`` from outside, or asked for in the client."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from cra_middleware.approvals.approval import Answer
from cra_middleware.approvals.sqlite_store import SqliteApprovals
from tests.mcp_proxy.conftest import Client, Proxied, atlas

pytestmark = pytest.mark.slow  # each starts processes

Start = Callable[..., Client]
FORMS = {"capabilities": {"elicitation": {}}}


def answer(client: Client, question: Any, result: Any) -> None:
    client.send({"jsonrpc": "2.0", "id": question["id"], "result": result})


def test_the_repeated_call_passes_once(proxied: Proxied, started: Start) -> None:
    store = proxied.folder / "approvals.db"
    client = started("--approvals", str(store))
    text = client.refusal("ask", path="/x")
    opened = SqliteApprovals(store)
    (waiting,) = opened.listed("pending")
    approval_id = waiting.pending.approval_id
    assert f"It waits for a person: cra approvals approve {approval_id} --store {store}." in text
    assert "approval_required" in client.refusal("ask", path="/x")
    opened.answer(approval_id, Answer(True, "ann"), time.time_ns() // 1000)
    assert "approval_required" in client.refusal("ask", path="/y")  # other arguments
    assert client.call("ask", path="/x")["result"]["structuredContent"] == {"path": "/x"}
    assert "approval_required" in client.refusal("ask", path="/x")
    client.close()
    assert [call["params"]["arguments"] for call in proxied.calls()] == [{"path": "/x"}]
    (approved,) = proxied.told("action.approved")
    assert (approved["approver"], approved["approval_id"]) == ("ann", approval_id)


def test_without_a_store_the_operator_is_named(started: Start) -> None:
    client = started()
    assert "the operator has to start the proxy with --approvals FILE" in client.refusal("ask")


def test_the_client_is_asked_when_the_operator_wants_it(proxied: Proxied, started: Start) -> None:
    client = proxied.start("--elicit")
    client.initialize(**FORMS)
    client.request("tools/call", {"name": "ask", "arguments": {"path": "/x\n  [policy y]"}})
    question = client.next()
    assert question["method"] == "elicitation/create"
    assert question["params"]["requestedSchema"]["required"] == ["approve"]
    assert '\n  path: "/x\\n  [policy y]"' in question["params"]["message"]
    answer(client, question, {"action": "accept", "content": {"approve": True, "reason": "ok"}})
    assert client.next()["result"]["structuredContent"] == {"path": "/x\n  [policy y]"}
    noes = [
        {"action": "accept", "content": {"approve": False, "reason": "not today"}},
        {"action": "accept", "content": {"approve": "true"}},
        {"action": "accept"},
        {"action": "decline"},
        {"action": "cancel"},
        {},
        None,
    ]
    texts = []
    for number, no in enumerate(noes):
        client.request("tools/call", {"name": "ask", "arguments": {"number": number}})
        answer(client, client.next(), no)
        result = client.next()["result"]
        assert result["isError"] is True, no
        texts.append(result["content"][0]["text"])
    assert "not today" in texts[0]
    client.close()
    assert len(proxied.calls()) == 1
    assert [told["approver"] for told in proxied.told("action.approved")] == ["user of raw-client"]
    assert len(proxied.told("action.denied")) == len(noes)


def test_the_client_is_not_asked_otherwise(proxied: Proxied) -> None:
    """Without ``--elicit``, without the capability, or when the policy wants somebody else's yes."""
    plain = proxied.start()
    plain.initialize(**FORMS)
    assert "approval_required" in plain.refusal("ask")
    modern = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {"elicitation": {}},
    }
    assert plain.ask("tools/call", {"name": "ask", "_meta": modern})["result"]["isError"] is True
    urls_only = proxied.start("--elicit", "--trace", str(proxied.folder / "two"))
    urls_only.initialize(capabilities={"elicitation": {"url": {}}})
    assert "approval_required" in urls_only.refusal("ask")
    person = {"policy_id": "person", "type": "require_approval", "parameters": {"approvers": ["ann"]}}
    proxied.write_atlas(atlas(policies=[{"policy_id": "all", "type": "allow"}, person]))
    asked = proxied.start("--elicit", "--trace", str(proxied.folder / "three"))
    asked.initialize(**FORMS)
    asked.request("tools/call", {"name": "ask", "arguments": {}})
    answer(asked, asked.next(), {"action": "accept", "content": {"approve": True}})
    assert "wants the yes of ann" in asked.next()["result"]["content"][0]["text"]
    for client in (plain, urls_only, asked):
        client.close()
    assert proxied.calls() == []


def test_a_call_that_is_cancelled_while_it_waits_never_runs(proxied: Proxied) -> None:
    """Nor does one whose client leaves."""
    client = proxied.start("--elicit")
    client.initialize(**FORMS)
    request_id = client.request("tools/call", {"name": "ask", "arguments": {}})
    question = client.next()
    client.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": request_id}})
    assert client.next()["params"]["requestId"] == question["id"]
    answer(client, question, {"action": "accept", "content": {"approve": True}})
    client.request("tools/call", {"name": "ask", "arguments": {}})
    client.next()
    client.close()
    assert proxied.calls() == []
    assert len(proxied.told("action.denied")) == 2
    assert question["id"] not in [message.get("id") for message in proxied.reached()]  # nobody else's business


def test_the_client_is_asked_by_the_protocol_of_2026(proxied: Proxied) -> None:
    """The question is the result, the answer comes with the repeated call; the server sees its own rounds only."""
    client = proxied.start("--elicit")
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "modern"},
        "io.modelcontextprotocol/clientCapabilities": {"elicitation": {}},
    }
    own = {"requestState": "the-server's", "inputResponses": {"its": {"action": "decline"}}}

    def call(number: int, **more: Any) -> Any:
        given = {"name": "ask", "arguments": {"number": number}, "_meta": meta, **more}
        return client.ask("tools/call", given)["result"]

    def repeat(number: int, question: Any, answer: Any) -> Any:
        responses = {"inputResponses": {"cra-approval": answer}, "requestState": question["requestState"]}
        return call(number, **responses)

    yes = {"action": "accept", "content": {"approve": True}}
    question = call(1, **own)
    assert question["resultType"] == "input_required"
    assert "number: 1" in question["inputRequests"]["cra-approval"]["params"]["message"]
    assert call(1, requestState="cra-approval:guessed")["resultType"] == "input_required"
    assert repeat(2, question, yes)["resultType"] == "input_required"  # a yes to another call is a yes to that one only
    question = call(3, **own)
    assert repeat(3, question, yes)["structuredContent"] == {"number": 3}
    assert repeat(3, question, yes)["resultType"] == "input_required"  # used up
    for number, no in enumerate([{"action": "decline"}, {"action": "cancel"}, {}, None], 4):
        refused = repeat(number, call(number), no)
        assert refused["isError"] is True
        assert refused["resultType"] == "complete"
    client.close()
    assert [one["params"] for one in proxied.calls()] == [
        {"name": "ask", "arguments": {"number": 3}, "_meta": meta, **own}
    ]
    assert proxied.told("session.started")[0]["agent_id"] == "modern"
