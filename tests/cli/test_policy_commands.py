"""init, build, test, doctor, learn, report, diff and replay, from the command line."""

from __future__ import annotations

import json
import shutil
import textwrap
from contextlib import suppress
from pathlib import Path

import pytest

from cra_middleware import Atlas, Runtime
from cra_middleware.errors import CallRefused
from tests.cli.conftest import Cra
from tests.conftest import manifest, policies

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "atlases"


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    """One session: an allowed call, and one that is denied."""
    deny = {"policy_id": "no", "type": "deny", "actions": ["refund.*"]}
    with Runtime(Atlas.from_dict(manifest(policies=policies(deny))), trace=tmp_path / "t", record="full") as runtime:
        with runtime.session("bot") as session:
            session.call("ticket.get", lambda id: None, "T-1")
            with suppress(CallRefused):
                session.call("refund.create", lambda amount: None, 5)
    return tmp_path / "t"


def test_init_makes_an_atlas_that_passes_its_tests(cra: Cra, tmp_path: Path) -> None:
    """Everything is denied until somebody edits it; nothing is overwritten."""
    folder = tmp_path / "first"
    made = cra("atlas", "init", folder)
    assert made.code == 0
    assert cra("atlas", "validate", folder).code == 0
    assert "2 of 2 cases" in cra("atlas", "test", folder).stdout
    assert cra("check", folder, "ticket.get", "--args", '{"ticket_id": "T"}').code == 3
    rules = folder / "rules" / "rules.yaml"
    rules.write_text(rules.read_text().replace("# - allow", "- allow"))
    assert cra("check", folder, "ticket.get", "--args", '{"ticket_id": "T"}').code == 0
    again = cra("atlas", "init", folder)
    assert (again.code, "is there already" in again.stderr) == (1, True)


def test_init_from_tools(cra: Cra, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Actions with the tools' own schemas; doctor then finds every tool governed."""
    pytest.importorskip("langchain", reason="needs the langchain extra")
    (tmp_path / "my_first_agent.py").write_text(
        textwrap.dedent('''
            from langchain_core.tools import tool

            @tool
            def search_docs(query: str, limit: int = 5) -> str:
                """Search."""
                return ""

            tools = [search_docs]
            broken = [5]
        ''')
    )
    monkeypatch.chdir(tmp_path)
    assert cra("atlas", "init", "atlas", "--from", "langchain:my_first_agent:tools").code == 0
    (action,) = Atlas.load(tmp_path / "atlas").manifest.actions
    assert action.action_id == "search.docs"
    assert action.parameters_schema is not None
    assert (action.parameters_schema["required"], action.parameters_schema["additionalProperties"]) == (
        ["query"],
        False,
    )
    told = cra("doctor", "atlas", "--from", "langchain:my_first_agent:tools")
    assert (told.code, "is governed as search.docs" in told.stdout) == (0, True)
    told = cra("doctor", EXAMPLES / "support", "--from", "langchain:my_first_agent:tools", "--format", "json")
    assert told.code == 1
    assert {"state": "problem", "about": "search_docs"}.items() <= told.json[-1].items()
    for source, code in (
        ("langchain:my_first_agent:broken", 1),
        ("langchain:my_first_agent:none", 1),
        ("langchain:no.such:x", 1),
        ("nothing:x:y", 1),
        ("langchain:x", 2),
    ):
        assert cra("doctor", "atlas", "--from", source).code == code, source


def test_doctor_on_rules(cra: Cra, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules in the shadow, actions that nothing allows, switches in the environment."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    told = cra("doctor", EXAMPLES / "support")
    assert told.code == 0
    for words in ("not-at-night is only tried out", "ticket.delete", "OTEL_SDK_DISABLED"):
        assert words in told.stdout
    assert cra("doctor").code == 2


def test_build(cra: Cra, tmp_path: Path) -> None:
    """Plain JSON, to stdout or a file; --check says when a file is behind."""
    plain = cra("atlas", "build", EXAMPLES / "support")
    assert (plain.code, "rules" in plain.json) == (0, False)
    out = tmp_path / "out.json"
    assert cra("atlas", "build", EXAMPLES / "support", "-o", out).code == 0
    assert json.loads(out.read_text()) == plain.json
    assert cra("atlas", "build", EXAMPLES / "support", "--check", out).code == 0
    out.write_text("{}")
    behind = cra("atlas", "build", EXAMPLES / "support", "--check", out)
    assert (behind.code, "cra atlas build" in behind.stderr) == (1, True)
    assert cra("atlas", "build", EXAMPLES / "support", "-o", tmp_path / "no" / "x").code == 1


def test_atlas_test(cra: Cra, tmp_path: Path) -> None:
    """What differed, and why; files that are no cases."""
    folder = tmp_path / "support"
    shutil.copytree(EXAMPLES / "support", folder)
    assert "18 of 18" in cra("atlas", "test", folder).stdout
    extra = folder / "tests" / "extra.yaml"
    extra.write_text("- {call: ticket.delete, expect: allow, name: Hope}\n")
    failed = cra("atlas", "test", folder)
    assert failed.code == 1
    assert "FAILED  extra.yaml  Hope" in failed.stdout
    assert "expected allow, got deny: Tickets are kept for audit" in failed.stdout
    assert cra("atlas", "test", folder, "--format", "json").json["failed"][0]["file"] == "extra.yaml"
    for text, place in (
        ("- {call: x, expect: maybe}", "#/0/expect"),
        ("- {expect: deny}", "#/0/call"),
        ("a: b", "a list of cases"),
        ("- {call: x, expect: deny, at: noon}", "#/0/at"),
        ("- {call: x, expect: deny, wen: 5}", "#/0/wen"),
        ("[", "not YAML"),
    ):
        extra.write_text(text)
        told = cra("atlas", "test", folder)
        assert (told.code, place in told.stderr) == (1, True), (text, told.stderr)
    shutil.rmtree(folder / "tests")
    assert "has no tests" in cra("atlas", "test", folder).stderr


def test_what_cannot_be_decided_is_not_the_same(cra: Cra, tmp_path: Path) -> None:
    """With hashes only, nobody can say that a decision about arguments would stay."""
    atlas, traces = tmp_path / "checks.json", tmp_path / "t"
    large = {"policy_id": "large", "type": "deny", "conditions": {"arguments": {"amount": "> 100"}}}
    atlas.write_text(json.dumps(manifest(policies=policies(large))))
    with Runtime(atlas, trace=traces) as runtime, runtime.session("bot") as session:
        session.call("refund.create", lambda amount: None, 5)
    told = cra("trace", "replay", traces, "--atlas", atlas, "--expect-same")
    assert (told.code, "1 of 1 calls cannot be decided" in told.stderr) == (1, True)
    told = cra("trace", "replay", traces, "--atlas", atlas, "--format", "json")
    assert (told.code, told.json["same"], told.json["changed"], told.json["undecidable"]) == (0, False, 0, 1)


def test_report_learn_replay_diff(cra: Cra, traces: Path, tmp_path: Path) -> None:
    """One trace, read in four ways."""
    counted = cra("trace", "report", traces, "--format", "json").json
    assert counted["actions"]["refund.create"]["codes"] == {"policy_denied": 1}
    assert "refund.create" in cra("trace", "report", traces).stdout
    learned = tmp_path / "learned.yaml"
    assert cra("trace", "learn", traces, "-o", learned).code == 0
    assert [action.action_id for action in Atlas.load(learned).manifest.actions] == ["ticket.get", "refund.create"]
    assert cra("trace", "learn", traces, "-o", learned).code == 1  # nothing is overwritten
    open_atlas = tmp_path / "open.json"
    open_atlas.write_text(json.dumps(manifest(policies=policies())))
    told = cra("trace", "replay", traces, "--atlas", open_atlas)
    assert told.code == 0
    assert "deny policy_denied (no) -> allow (allow-all)" in told.stdout
    assert "1 of 2 calls would be decided otherwise" in told.stdout
    assert cra("trace", "replay", traces, "--atlas", open_atlas, "--expect-same").code == 1
    assert cra("trace", "replay", traces, "--atlas", open_atlas, "--format", "json").json["changed"] == 1
    (file,) = traces.iterdir()
    assert cra("trace", "diff", file, file).stdout == "identical\n"
    assert cra("trace", "diff", traces, file).code == 2


def test_broken_traces_are_not_used(cra: Cra, traces: Path, tmp_path: Path) -> None:
    """They are named, and the command fails."""
    (file,) = traces.iterdir()
    whole = tmp_path / "whole.trace.jsonl"
    shutil.copy(file, whole)
    file.write_bytes(file.read_bytes().replace(b"T-1", b"T-2"))
    atlas = EXAMPLES / "support"
    for command in (("report",), ("learn",), ("replay", "--atlas", atlas)):
        told = cra("trace", command[0], traces, *command[1:])
        assert (told.code, "BROKEN" in told.stderr) == (1, True), told
    assert cra("trace", "diff", whole, file).code == 1


def test_replay_needs_a_good_atlas(cra: Cra, traces: Path) -> None:
    """A project that is not named, an Atlas that is none."""
    told = cra("trace", "replay", traces, "--atlas", EXAMPLES / "developer")
    assert (told.code, "--project DIR" in told.stderr) == (1, True)
    assert cra("trace", "replay", traces, "--atlas", "/no/such").code == 1
