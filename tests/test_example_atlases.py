"""The Atlases under examples/atlases: dozens of calls, each allowed, asked or denied, by the policy that should."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cra_middleware import Atlas, Runtime
from cra_middleware.approvals.approval import ApprovalError
from cra_middleware.carp.resolver import Resolver
from cra_middleware.errors import ApprovalRequired, CallRefused
from cra_middleware.policy_tests import read_cases, run_cases
from cra_middleware.testing import FrozenClock
from tests.conftest import NOON

ATLASES = Path(__file__).resolve().parents[1] / "examples" / "atlases"


@pytest.fixture(scope="module")
def support() -> Iterator[Runtime]:
    with Runtime(ATLASES / "support", clock=FrozenClock(NOON)) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    (folder / "src").mkdir()
    (folder / ".env").write_text("SECRET=1")
    (folder / "harmless.txt").symlink_to(".env")
    (folder / "out").symlink_to("/etc")
    (folder / "loop").symlink_to("loop")
    return folder


@pytest.fixture
def developer(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    monkeypatch.chdir(project)
    with Runtime(ATLASES / "developer", clock=FrozenClock(NOON), project=project) as runtime:
        yield runtime


def decide(runtime: Runtime, action: str, agent: str = "agent", **arguments: Any) -> str:
    """``allow``, ``ask <policy>`` or ``<code> <policy>``; and that the tool ran only when allowed."""
    ran: list[dict[str, Any]] = []
    with runtime.session(agent_id=agent) as session:
        try:
            session.call(action, lambda **given: ran.append(given), **arguments)
        except ApprovalRequired as asked:
            assert ran == []
            return f"ask {asked.policy_id}"
        except CallRefused as denied:
            assert ran == []
            return f"{denied.code} {denied.policy_id}"
    assert ran == [arguments]
    return "allow"


@pytest.mark.parametrize("name", ["support", "developer"])
def test_no_findings(name: str) -> None:
    """An example Atlas has no error and no warning."""
    assert Atlas.load(ATLASES / name).findings == ()


@pytest.mark.parametrize("name", ["support", "developer"])
def test_every_schema_is_closed_and_typed(name: str) -> None:
    """Every action is described and takes only arguments that it declares and types."""
    for action in Atlas.load(ATLASES / name).manifest.actions:
        schema = action.parameters_schema
        assert schema is not None
        assert schema["additionalProperties"] is False
        assert len(action.description) > 20
        properties = schema["properties"]
        assert isinstance(properties, dict)
        assert all("type" in value for value in properties.values() if isinstance(value, dict))


def test_context_is_injected(support: Runtime) -> None:
    """The documents beside the Atlas reach the agent, the refund policy first."""
    with support.session() as session:
        names = [block.block_id for block in session.context]
    assert names == ["refunds:context/refund-policy.md", "tone:context/tone-of-voice.md"]


def test_tool_names() -> None:
    """Every tool of the quickstart stands for its action; a name that is not mapped stands for none."""
    with Runtime(ATLASES / "support") as runtime:
        found = {
            name: runtime.target_for(name, "langchain").action_id
            for name in ("lookup_ticket", "create_refund", "refund")
        }
        assert found == {"lookup_ticket": "ticket.get", "create_refund": "refund.create", "refund": "refund"}
        tools = runtime.atlases[0].manifest.adapters["any"].tools
        assert sorted(map(str, tools.values())) == sorted(runtime.resolver.actions)


REFUND = {"order_id": "A-1001", "reason": "Broken"}
INVALID = "invalid_parameters action:"


@pytest.mark.parametrize(
    ("action", "arguments", "verdict"),
    [
        ("ticket.get", {"ticket_id": "T-42"}, "allow"),
        ("ticket.get", {"ticket_id": "42"}, INVALID + "ticket.get"),
        ("ticket.get", {"ticket_id": "T-42\n"}, INVALID + "ticket.get"),
        ("ticket.get", {"ticket_id": "T-42'; DROP TABLE tickets"}, INVALID + "ticket.get"),
        ("ticket.get", {"ticket_id": "T-４２"}, INVALID + "ticket.get"),
        ("ticket.get", {"ticket_id": ["T-42"]}, INVALID + "ticket.get"),
        ("ticket.get", {"ticket_id": None}, INVALID + "ticket.get"),
        ("ticket.get", {}, INVALID + "ticket.get"),
        ("ticket.get", {"ticket_id": "T-42", "verbose": True}, INVALID + "ticket.get"),
        ("ticket.list", {}, "allow"),
        ("ticket.list", {"status": "open"}, "allow"),
        ("ticket.list", {"status": "OPEN"}, INVALID + "ticket.list"),
        ("ticket.reply", {"ticket_id": "T-42", "body": "Hello"}, "allow"),
        ("ticket.reply", {"ticket_id": "T-42", "body": ""}, INVALID + "ticket.reply"),
        ("ticket.reply", {"ticket_id": "T-42", "body": "x" * 10_001}, INVALID + "ticket.reply"),
        ("ticket.close", {"ticket_id": "T-42"}, "allow"),
        ("ticket.delete", {"ticket_id": "T-42"}, "policy_denied never-delete"),
        ("ticket.delete", {}, "policy_denied never-delete"),
        ("order.get", {"order_id": "A-1001"}, "allow"),
        ("order.get", {"order_id": "T-1001"}, INVALID + "order.get"),
        ("order.cancel", {"order_id": "A-1001", "reason": "Twice"}, "ask ask-order-cancel"),
        ("order.cancel", {"order_id": "A-1001"}, INVALID + "order.cancel"),
        ("refund.create", {**REFUND, "amount": 0.01}, "allow"),
        ("refund.create", {**REFUND, "amount": 100}, "allow"),
        ("refund.create", {**REFUND, "amount": 100.01}, "ask large-refund"),
        ("refund.create", {**REFUND, "amount": 10_000}, "ask large-refund"),
        ("refund.create", {**REFUND, "amount": 10_000.01}, "policy_denied refund-limit"),
        ("refund.create", {**REFUND, "amount": 10**30}, "policy_denied refund-limit"),
        ("refund.create", {**REFUND, "amount": 0}, INVALID + "refund.create"),
        ("refund.create", {**REFUND, "amount": -250}, INVALID + "refund.create"),
        ("refund.create", {**REFUND, "amount": "50"}, "policy_denied refund-limit"),
        ("refund.create", {**REFUND, "amount": True}, "policy_denied refund-limit"),
        ("refund.create", {**REFUND, "amount": None}, "policy_denied refund-limit"),
        ("refund.create", {**REFUND, "amount": float("nan")}, "policy_denied refund-limit"),
        ("refund.create", {**REFUND, "amount": float("inf")}, "policy_denied refund-limit"),
        ("refund.create", {**REFUND, "amount": [50]}, "policy_denied refund-limit"),
        ("refund.create", REFUND, "policy_denied refund-limit"),
        ("refund.create", {"order_id": "A-1001", "amount": 50}, INVALID + "refund.create"),
        ("refund.create", {**REFUND, "amount": 50, "currency": "USD"}, INVALID + "refund.create"),
        ("refund.create", {**REFUND, "reason": "x" * 501, "amount": 50}, INVALID + "refund.create"),
        ("refund.delete", {}, "unknown_action default"),
        ("Ticket.get", {"ticket_id": "T-42"}, "unknown_action default"),
        ("*", {}, "unknown_action default"),
    ],
)
def test_support(support: Runtime, action: str, arguments: dict[str, Any], verdict: str) -> None:
    """Reads, replies and small refunds run; what is larger is asked; what is unclear or forbidden is denied."""
    assert decide(support, action, **arguments) == verdict


@pytest.mark.parametrize(
    ("agent", "action", "arguments", "verdict"),
    [
        ("suspended-bot", "ticket.get", {"ticket_id": "T-42"}, "policy_denied suspended-agents"),
        ("Suspended-bot", "ticket.get", {"ticket_id": "T-42"}, "allow"),
        ("sandbox-7", "ticket.get", {"ticket_id": "T-42"}, "allow"),
        ("sandbox-7", "ticket.close", {"ticket_id": "T-42"}, "policy_denied sandbox-reads-only"),
        ("sandbox-7", "refund.create", {**REFUND, "amount": 5}, "policy_denied sandbox-reads-only"),
        ("my-sandbox-7", "ticket.close", {"ticket_id": "T-42"}, "allow"),
    ],
)
def test_support_agents(support: Runtime, agent: str, action: str, arguments: dict[str, Any], verdict: str) -> None:
    """Suspended agents may do nothing, agents in the sandbox may only look."""
    assert decide(support, action, agent, **arguments) == verdict


def test_deleting_says_what_to_do(support: Runtime) -> None:
    """A denial names the way that is open."""
    with support.session() as session, pytest.raises(CallRefused, match="close the ticket instead"):
        session.call("ticket.delete", lambda ticket_id: None, "T-42")


def test_thirty_replies_an_hour() -> None:
    """The reply after the thirtieth is refused until the hour is over; another agent has its own thirty."""
    clock = FrozenClock(NOON)
    with Runtime(ATLASES / "support", clock=clock) as runtime:
        verdicts = [decide(runtime, "ticket.reply", ticket_id="T-1", body="x") for _ in range(31)]
        assert verdicts == ["allow"] * 30 + ["rate_limit_exceeded limit-ticket-reply"]
        assert decide(runtime, "ticket.reply", "other", ticket_id="T-1", body="x") == "allow"
        clock.advance(3600)
        assert decide(runtime, "ticket.reply", ticket_id="T-1", body="x") == "allow"


def test_refunds_of_a_day() -> None:
    """All agents together refund no more than the budget says; a refused refund has spent nothing."""
    with Runtime(ATLASES / "support", clock=FrozenClock(NOON)) as runtime:
        verdicts = [decide(runtime, "refund.create", f"bot-{n % 3}", **REFUND, amount=100) for n in range(201)]
    assert verdicts == ["allow"] * 200 + ["budget_exceeded refunds-a-day"]


def test_only_team_leads_approve_large_refunds() -> None:
    """Somebody else's yes does not count; a team lead's does, once."""
    with Runtime(ATLASES / "support", clock=FrozenClock(NOON)) as runtime, runtime.session() as session:
        arguments = {**REFUND, "amount": 250}
        with pytest.raises(ApprovalRequired) as asked:
            session.call("refund.create", lambda **given: given, **arguments)
        assert asked.value.approval_id is not None
        with pytest.raises(ApprovalError, match="wants the yes of team-leads"):
            runtime.approvals.approve(asked.value.approval_id, by="bob")
        runtime.approvals.approve(asked.value.approval_id, by="ann", groups=["team-leads"])
        assert session.call("refund.create", lambda **given: given, **arguments) == arguments
        with pytest.raises(ApprovalRequired):
            session.call("refund.create", lambda **given: given, **arguments)


def test_the_night_rule_is_only_tried_out() -> None:
    """What it would refuse is recorded, and runs."""
    clock = FrozenClock("2026-01-05T23:30:00+01:00")
    with Runtime(ATLASES / "support", clock=clock) as runtime, runtime.session() as session:
        session.call("refund.create", lambda **given: None, **REFUND, amount=5)
        shadows = [event.payload for event in session.events if event.payload.get("effect") == "shadow_deny"]
    assert [payload["policy_id"] for payload in shadows] == ["not-at-night"]


DENIED = "no_allow_policy default"
SECRET = "policy_denied secrets"


@pytest.mark.parametrize(
    ("action", "path", "verdict"),
    [
        ("file.read", "src/main.py", "allow"),
        ("file.read", "src/./../src/main.py", "allow"),
        ("file.read", "", SECRET),
        ("file.read", "..", DENIED),
        ("file.read", "../main.py", DENIED),
        ("file.read", "src/../../main.py", DENIED),
        ("file.read", "/etc/passwd", DENIED),
        ("file.read", "out/passwd", DENIED),
        ("file.read", "loop", SECRET),
        ("file.read", "~root/x", SECRET),
        ("file.read", "src/main.py\0", SECRET),
        ("file.read", "~/.ssh/id_ed25519", SECRET),
        ("file.read", ".env", SECRET),
        ("file.read", ".ENV", SECRET),
        ("file.read", "src/../.env", SECRET),
        ("file.read", "harmless.txt", SECRET),
        ("file.read", ".git/config", SECRET),
        ("file.read", 5, SECRET),
        ("file.read", None, SECRET),
        ("file.search", "src", "allow"),
        ("file.delete", "src/old.py", "ask ask-file-delete"),
        ("file.delete", "atlas.yaml", "policy_denied not-yours"),
    ],
)
def test_developer_files(developer: Runtime, action: str, path: Any, verdict: str) -> None:
    """Only files of the project, after links and ``..``; never secrets, however they are named."""
    more = {"query": "x"} if action == "file.search" else {}
    assert decide(developer, action, path=path, **more) == verdict


def test_a_search_without_a_path_is_denied(developer: Runtime) -> None:
    """Nobody can say where it would look."""
    assert decide(developer, "file.search", query="password") == SECRET


@pytest.mark.parametrize("command", [5, None, ["ls"], "", "ls\0", "ls \u202e x", "l\u200bs", "ls\x1b[2J"])
def test_developer_shell_reads_plain_text_only(developer: Runtime, command: Any) -> None:
    """What a person could not read is not run."""
    assert not decide(developer, "shell.run", command=command).startswith(("allow", "ask"))


@pytest.mark.parametrize("name", ["support", "developer"])
def test_the_atlas_passes_its_own_tests(name: str, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every case in the Atlas's ``tests/`` is decided as it says."""
    monkeypatch.chdir(project)
    resolver = Resolver([Atlas.load(ATLASES / name)], project=str(project))
    cases = [case for _, case in read_cases(ATLASES / name)]
    assert len(cases) > 15
    assert [told.difference for told in run_cases(cases, resolver, str(project)) if told.difference] == []


@pytest.mark.parametrize("name", ["support", "developer"])
def test_rules_are_short(name: str) -> None:
    """A page that a person reads."""
    assert len((ATLASES / name / "rules" / f"{name}.yaml").read_text().splitlines()) < 40


def test_the_developer_atlas_says_that_it_is_no_sandbox() -> None:
    """Where agents and people read it."""
    assert "no sandbox" in Atlas.load(ATLASES / "developer").documents["context/working-here.md"]
    assert "no sandbox" in (ATLASES / "developer" / "README.md").read_text()


def test_a_search_is_not_seen_into() -> None:
    """What only the tool itself can do is said to who writes the tool."""
    actions = {action.action_id: action for action in Atlas.load(ATLASES / "developer").manifest.actions}
    assert "skipped by the tool itself" in actions["file.search"].description
    assert "the tool\nitself must skip `.env`" in (ATLASES / "developer" / "README.md").read_text()


@pytest.mark.parametrize("name", ["support", "developer"])
def test_readme(name: str) -> None:
    """A README of 20 to 40 lines says how to validate and try the Atlas; its --args are JSON."""
    lines = (ATLASES / name / "README.md").read_text().splitlines()
    assert 20 <= len(lines) <= 40
    assert any(f"cra atlas validate examples/atlases/{name}" in line for line in lines)
    tried = [line.split("--args ")[1].strip("' ") for line in lines if "cra check" in line]
    assert tried
    assert all(isinstance(json.loads(text), dict) for text in tried)
