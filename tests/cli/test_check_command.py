"""``cra check``: the decision, and why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cra_middleware import Atlas, Runtime
from tests.cli.conftest import Cra
from tests.conftest import manifest, policies

Write = Callable[..., Path]
SCHEMA = {
    "type": "object",
    "properties": {"id": {"type": "string"}},
    "required": ["id"],
    "additionalProperties": False,
}


def with_schema() -> list[dict[str, object]]:
    return [{"action_id": "ticket.get", "name": "g", "description": "d", "parameters_schema": SCHEMA}]


def test_an_allowed_call(cra: Cra, atlas: Path) -> None:
    """Exit 0, and the policy that allows."""
    ran = cra("check", atlas, "ticket.get")
    assert ran.code == 0
    assert ran.stdout.endswith("\nALLOWED  by policy allow-all, in the phase allow\n")


PLAIN = {"holds": True, "is_enforced": True, "conditions": []}
ALLOWS = "policy allow-all is about ticket.delete"


def test_a_denied_call_says_why(cra: Cra, atlas: Path) -> None:
    """Exit 3; every policy about the action in the order they are looked at, then code, policy and reason."""
    ran = cra("check", atlas, "ticket.delete", "--agent", "bot", "--risk-tier", "high")
    assert ran.code == 3
    assert ran.stdout.splitlines() == [
        "ticket.delete  by bot, high risk",
        "",
        "  deny              no-delete applies: no conditions",
        "  schema            the action has no schema",
        "  allow             allow-all applies: no conditions",
        "",
        "DENIED  policy_denied, policy no-delete, in the phase deny",
        "  Never.",
        "  To change that: nothing the agent can do: the policy has no conditions.",
    ]


def test_a_call_that_a_person_must_approve(cra: Cra, atlas: Path) -> None:
    """Exit 4, with the policy that asks; below its threshold the same policy does not apply."""
    ran = cra("check", atlas, "refund.create", "--args", '{"amount": 250}')
    assert ran.code == 4
    assert "  require_approval  ask-refund applies\n" in ran.stdout
    assert "parameters holds: wants amount > 100, saw amount = 250\n" in ran.stdout
    assert "To change that: a person has to say yes to exactly these arguments." in ran.stdout
    assert "APPROVAL REQUIRED  policy ask-refund, in the phase require_approval\n" in ran.stdout
    below = cra("check", atlas, "refund.create", "--args", '{"amount": 50}')
    assert below.code == 0
    assert "  require_approval  ask-refund does not apply\n" in below.stdout


def test_the_verdict_as_json(cra: Cra, atlas: Path) -> None:
    """JSON has verdict, code, policy, reason, wait and every policy; keys without a value are null."""
    denied = cra("check", atlas, "ticket.delete", "--format", "json")
    assert (denied.code, denied.stderr) == (3, "")
    assert denied.json == {
        "verdict": "deny",
        "code": "policy_denied",
        "policy_id": "no-delete",
        "reason": "Never.",
        "retry_after_seconds": None,
        "policies": [
            {"policy_id": "no-delete", "type": "deny", "reason": "Never.", **PLAIN},
            {"policy_id": "allow-all", "type": "allow", "reason": ALLOWS, **PLAIN},
        ],
        "phase": "deny",
        "schema": None,
        "would_change": "nothing the agent can do: the policy has no conditions",
    }
    allowed = cra("check", atlas, "ticket.get", "--format", "json").json
    assert (allowed["verdict"], allowed["code"], allowed["policy_id"]) == ("allow", None, "allow-all")
    asked = cra("check", atlas, "refund.create", "--args", '{"amount": 101}', "--format", "json").json
    assert (asked["verdict"], asked["code"]) == ("require_approval", "approval_required")


def test_an_unknown_action_is_denied_and_similar_ids_named(cra: Cra, atlas: Path) -> None:
    """Exit 3, unknown_action, and what was perhaps meant."""
    ran = cra("check", atlas, "ticket.gte")
    assert ran.code == 3
    assert "DENIED  unknown_action, policy default, in the phase unknown action\n" in ran.stdout
    assert "Did you mean ticket.get" in ran.stdout
    assert "Did you mean" not in cra("check", atlas, "zzz").stdout
    assert cra("check", atlas, "ticket.gte", "--format", "json").json["policies"] == []


def test_arguments_that_do_not_fit_the_schema(cra: Cra, write_atlas: Write) -> None:
    """The schema has its own row behind the denials; the verdict is invalid_parameters."""
    path = write_atlas(actions=with_schema(), policies=policies())
    ran = cra("check", path, "ticket.get", "--args", '{"idd": "T-1"}')
    assert ran.code == 3
    assert "  schema            the arguments do not fit the action's schema: " in ran.stdout
    assert "DENIED  invalid_parameters, policy action:ticket.get, in the phase schema\n" in ran.stdout
    fits = cra("check", path, "ticket.get", "--args", '{"id": "T-1"}')
    assert fits.code == 0
    assert "  schema            the arguments fit\n" in fits.stdout


def test_arguments_that_cannot_be_written_down(cra: Cra, atlas: Path) -> None:
    """They are refused before any policy is looked at, so none is shown."""
    ran = cra("check", atlas, "ticket.delete", "--args", '{"\\ud800": 1}', "--format", "json")
    assert ran.code == 3
    assert (ran.json["code"], ran.json["policies"]) == ("invalid_parameters", [])
    assert "cannot be recorded" in cra("check", atlas, "ticket.delete", "--args", '{"\\ud800": 1}').stdout


def test_arguments_from_stdin_and_from_a_file(cra: Cra, atlas: Path, tmp_path: Path) -> None:
    """--args - reads stdin, --args @FILE reads a file."""
    assert cra("check", atlas, "refund.create", "--args", "-", stdin='{"amount": 250}').code == 4
    (tmp_path / "args.json").write_text('{"amount": 250}')
    assert cra("check", atlas, "refund.create", "--args", f"@{tmp_path / 'args.json'}").code == 4


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1]", "7", "null", '"x"', "{'a': 1}", '{"a": 1, "a": 2}', '{"a": NaN}', "[" * 5000, '{"a": 1} x'],
)
def test_arguments_that_are_no_json_object(cra: Cra, atlas: Path, text: str) -> None:
    """Exit 2, nothing on stdout, and a message that shows what to write."""
    ran = cra("check", atlas, "ticket.get", "--args", text)
    assert (ran.code, ran.stdout) == (2, "")
    assert "--args '{\"id\": 7}'" in ran.stderr


def test_argument_files_that_cannot_be_read(cra: Cra, atlas: Path, tmp_path: Path) -> None:
    """A missing file, a folder, bytes that are not UTF-8: exit 2."""
    (tmp_path / "latin").write_bytes(b'{"a": "\xe9"}')
    for name in ("nowhere", "", "latin", "x" * 5000):
        ran = cra("check", atlas, "ticket.get", "--args", f"@{tmp_path / name}")
        assert (ran.code, ran.stdout) == (2, ""), name
        assert "cannot be read" in ran.stderr, name


@pytest.mark.parametrize(
    "options",
    [
        ("--risk-tier", "huge"),
        ("--context", "region"),
        ("--context", "=eu"),
        ("--context", "a=1", "--context", "a=2"),
        ("--agent", ""),
        ("--agent", "x" * 256),
        ("--format", "yaml"),
        ("--nope",),
    ],
)
def test_wrong_usage(cra: Cra, atlas: Path, options: tuple[str, ...]) -> None:
    """Exit 2 and nothing on stdout."""
    ran = cra("check", atlas, "ticket.get", *options)
    assert (ran.code, ran.stdout) == (2, "")
    assert ran.stderr


def test_facts_reach_the_conditions(cra: Cra, write_atlas: Write) -> None:
    """--agent, --risk-tier and --context are what conditions look at; an unknown fact counts against the call."""
    rules = policies(
        {"policy_id": "bots", "type": "deny", "conditions": {"agents": ["bot-*"]}},
        {"policy_id": "high", "type": "deny", "conditions": {"risk_tiers": ["high"]}},
        {"policy_id": "us", "type": "deny", "conditions": {"context_matches": {"region": "us"}}},
    )
    path = write_atlas(policies=rules)

    def by(*options: str) -> str | None:
        return cra("check", path, "ticket.get", *options, "--format", "json").json["policy_id"]  # type: ignore[no-any-return]

    eu = ("--context", "region=eu")
    assert by(*eu) == "allow-all"
    assert by(*eu, "--agent", "bot-1") == "bots"
    assert by(*eu, "--risk-tier", "high") == "high"
    assert by("--context", "region=us") == "us"
    assert by() == "us"


def test_the_environment_may_name_the_atlas(cra: Cra, atlas: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With CRA_ATLAS the action alone is enough; without it that is wrong usage."""
    ran = cra("check", "ticket.get")
    assert (ran.code, ran.stdout) == (2, "")
    assert "CRA_ATLAS" in ran.stderr
    monkeypatch.setenv("CRA_ATLAS", str(atlas))
    assert cra("check", "ticket.get").code == 0
    assert cra("check", "ticket.delete").code == 3


def test_a_bad_atlas_is_exit_1(cra: Cra, write_atlas: Write, tmp_path: Path) -> None:
    """An Atlas with errors decides nothing: exit 1, findings on stderr."""
    ran = cra("check", write_atlas(version="1"), "ticket.get")
    assert (ran.code, ran.stdout) == (1, "")
    assert "#/version" in ran.stderr
    assert cra("check", tmp_path / "nowhere", "ticket.get").code == 1


def test_atlases_that_belong_together(cra: Cra, write_atlas: Write) -> None:
    """A missing dependency is exit 1 and names --with; with it the call is decided; a clash is exit 1."""
    wants = write_atlas("wants", dependencies={"com.example.base": "^1.0.0"})
    other = [{"action_id": "base.get", "name": "g", "description": "d"}]
    base = write_atlas("base", atlas_id="com.example.base", actions=other, policies=policies())
    alone = cra("check", wants, "ticket.get")
    assert alone.code == 1
    assert "--with" in alone.stderr
    assert cra("check", wants, "base.get", "--with", base).code == 0
    clash = cra("check", wants, "ticket.get", "--with", write_atlas("clash", atlas_id="com.example.clash"))
    assert (clash.code, clash.stdout) == (1, "")


def test_nothing_is_counted(cra: Cra, atlas: Path) -> None:
    """Asking twice about an action with one call a minute gives the same answer."""
    assert [cra("check", atlas, "ticket.list").code for _ in range(2)] == [0, 0]


@pytest.mark.parametrize(("action", "amount"), [("ticket.get", 1), ("ticket.delete", 1), ("refund.create", 50)])
def test_it_decides_as_the_runtime_does(cra: Cra, atlas: Path, action: str, amount: int) -> None:
    """The exit code is what a session would do with the same call."""
    code = cra("check", atlas, action, "--args", f'{{"amount": {amount}}}').code
    ran = []
    with Runtime(atlas) as runtime, runtime.session() as session:
        try:
            session.call(action, lambda amount: ran.append(amount), amount)
        except Exception:
            ran.clear()
    assert (code == 0) == bool(ran)


def test_the_default_manifest_is_valid() -> None:
    """What these tests run on loads without findings."""
    assert Atlas.from_dict(manifest()).findings == ()
