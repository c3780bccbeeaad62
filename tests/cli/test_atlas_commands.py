"""``cra atlas validate`` and ``cra atlas show``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cra_middleware import Atlas
from tests.cli.conftest import RULES, Cra
from tests.conftest import policies

Write = Callable[..., Path]
FINDING_KEYS = {"code", "severity", "pointer", "file", "message", "hint"}


def test_a_valid_atlas_is_counted(cra: Cra, write_atlas: Write) -> None:
    """One line says valid and counts actions, policies and context documents; the exit code is 0."""
    block = {"context_id": "tone", "content": "Be kind."}
    ran = cra("atlas", "validate", path := write_atlas(context_blocks=[block]))
    assert (ran.code, ran.stdout, ran.stderr) == (
        0,
        f"{path}: valid (5 actions, 4 policies, 1 context document)\n",
        "",
    )


def test_every_finding_is_shown_with_its_place(cra: Cra, write_atlas: Write) -> None:
    """Code, severity, file#pointer, message and hint of every finding, errors and warnings; exit 1."""
    bad = [*policies(), {"policy_id": "allow-all", "type": "deny", "actions": ["*.delte"]}]
    ran = cra("atlas", "validate", path := write_atlas(policies=bad))
    assert ran.code == 1
    assert "E005 error  atlas.json#/policies/1/policy_id\n" in ran.stdout
    assert "     policy_id 'allow-all' is used twice\n" in ran.stdout
    assert "  -> give each its own\n" in ran.stdout
    assert "W003 warning  atlas.json#/policies/1/actions/0\n" in ran.stdout
    assert ran.stdout.endswith(f"{path}: not valid (1 error, 1 warning)\n")


def test_warnings_alone_are_no_failure(cra: Cra, write_atlas: Write) -> None:
    """Warnings are shown, and the exit code is 0."""
    ran = cra("atlas", "validate", write_atlas(policies=[]))
    assert ran.code == 0
    assert "W005 warning" in ran.stdout
    assert "valid (5 actions, 0 policies, 0 context documents, 1 warning)" in ran.stdout


def test_findings_as_json(cra: Cra, write_atlas: Write) -> None:
    """JSON for one path is one object with path, valid and findings."""
    ran = cra("atlas", "validate", path := write_atlas(policies=[]), "--format", "json")
    assert ran.json.keys() == {"path", "valid", "findings"}
    assert (ran.json["path"], ran.json["valid"]) == (str(path), True)
    assert [item.keys() for item in ran.json["findings"]] == [FINDING_KEYS]


def test_several_atlases_are_listed(cra: Cra, write_atlas: Write) -> None:
    """JSON for several paths is a list under "atlases"; one bad Atlas is exit 1."""
    good, bad = write_atlas("good"), write_atlas("bad", version="1")
    ran = cra("atlas", "validate", good, bad, "--format", "json")
    assert ran.code == 1
    assert [(item["path"], item["valid"]) for item in ran.json["atlases"]] == [(str(good), True), (str(bad), False)]


def test_dependencies_are_looked_for_among_the_paths(cra: Cra, write_atlas: Write) -> None:
    """A dependency that is not named too is an error of the Atlas that wants it, and of no other."""
    wants = write_atlas("wants", dependencies={"com.example.base": "^1.0.0"})
    base = write_atlas("base", atlas_id="com.example.base")
    alone = cra("atlas", "validate", wants, "--format", "json")
    assert alone.code == 1
    assert [item["code"] for item in alone.json["findings"]] == ["E009"]
    assert cra("atlas", "validate", wants, base).code == 0
    other = write_atlas("other", atlas_id="com.example.other")
    ran = cra("atlas", "validate", wants, other, "--format", "json")
    assert [item["valid"] for item in ran.json["atlases"]] == [False, True]


@pytest.mark.parametrize("command", ["validate", "show"])
def test_what_cannot_be_read_is_a_finding(cra: Cra, tmp_path: Path, command: str) -> None:
    """No file, an empty folder, broken JSON, another encoding, a name too long: exit 1 and a sentence."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.json").write_text('{"atlas_version":')
    (tmp_path / "latin.json").write_bytes(b'{"name": "\xe9"}')
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "list.json").write_text("[]")
    for name in ("nowhere", "empty", "broken.json", "latin.json", "deep.json", "list.json", "x" * 5000):
        ran = cra("atlas", command, tmp_path / name)
        assert ran.code == 1, name
        assert "E00" in (ran.stdout if command == "validate" else ran.stderr), name


def test_the_environment_may_name_the_atlas(
    cra: Cra, atlas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CRA_ATLAS stands in for a PATH that is left out, and for no other."""
    monkeypatch.setenv("CRA_ATLAS", str(atlas))
    assert cra("atlas", "validate").code == 0
    assert cra("atlas", "show").code == 0
    assert cra("atlas", "validate", tmp_path / "nowhere").code == 1


@pytest.mark.parametrize("command", ["validate", "show"])
def test_no_path_at_all_is_wrong_usage(cra: Cra, command: str) -> None:
    """Without PATH and CRA_ATLAS the exit code is 2, and the message says what to name."""
    ran = cra("atlas", command)
    assert (ran.code, ran.stdout) == (2, "")
    assert "CRA_ATLAS" in ran.stderr


def test_show_reads_like_the_decision(cra: Cra, write_atlas: Write) -> None:
    """Policies come phase by phase, inside by priority, with conditions and limits in words."""
    more = {"policy_id": "first", "type": "deny", "priority": 9, "actions": ["nope.*", "ticket.*"]}
    more["conditions"] = {"risk_tiers": ["high", "critical"], "agents": ["bot-*"], "context_matches": {"region": "eu"}}
    ran = cra("atlas", "show", write_atlas(policies=[*RULES, more]))
    assert ran.code == 0
    found = [
        ran.stdout.index(text)
        for text in (
            "    first       nope.*, ticket.*; when the risk tier is high or critical and the agent is bot-* "
            'and context region = "eu"; priority 9\n',
            "    no-delete   *.delete; always\n",
            "                Never.\n",
            "    ask-refund  refund.*; when amount > 100\n",
            "    slow-list   ticket.list; always; at most 1 call in 60 s, per agent and action\n",
            "    allow-all   *; always\n",
            "whatever no policy allows is denied",
        )
    ]
    assert found == sorted(found)
    assert "1 warning; see them with: cra atlas validate" in ran.stderr


def test_show_tells_what_an_action_takes(cra: Cra, write_atlas: Write, tmp_path: Path) -> None:
    """An action's row has its risk, what it demands by itself, its limit, and its arguments with their limits."""
    close = {
        "action_id": "account.close",
        "name": "c",
        "description": "d",
        "risk_tier": "critical",
        "requires_confirmation": True,
        "rate_limit": {"max_calls": 2, "window_seconds": 60},
        "parameters_schema": {
            "type": "object",
            "properties": {
                "id": {"type": "string", "pattern": "^A-[0-9]+$", "maxLength": 9},
                "why": {"enum": ["fraud", "wish"]},
                "limit": {"type": ["integer", "null"], "minimum": 1, "maximum": 5},
                "any": True,
            },
            "required": ["id"],
        },
    }
    path = write_atlas(
        actions=[close],
        policies=policies(),
        capabilities=[{"capability_id": "accounts", "name": "a", "actions": ["account.close"]}],
        context_packs=[{"pack_id": "rules", "name": "r", "files": ["rules.md"]}],
        context_blocks=[{"context_id": "tone", "content": "Be kind."}],
        adapters={"any": {"tools": {"close": "account.close", "shut": {"action": "account.close"}}}},
    )
    (path / "rules.md").write_text("Rules.")
    shown = cra("atlas", "show", path).stdout
    assert "critical risk; a person confirms every call; at most 2 calls in 60 s, per agent and action\n" in shown
    assert (
        "id: string (matches /^A-[0-9]+$/ and has at most 9 characters), "
        'why?: "fraud" or "wish", limit?: integer or null (>= 1 and <= 5), any?: anything, and any other\n'
    ) in shown
    for row in (
        "  accounts  account.close\n",
        "    action:account.close  account.close; always\n",
        "  rules  rules.md; always\n",
        "  tone   inline, on_match\n",
        "  any: close  account.close\n",
        "  any: shut   account.close\n",
    ):
        assert row in shown


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"properties": {"a": {"const": 1}}}, "when a = 1\n"),
        ({"required": ["a"]}, "when a is given\n"),
        ({"properties": {"a": {"type": "string"}}}, "when a is string\n"),
        ({"properties": {"a": {"not": {"pattern": "^x"}}}}, "when a not (matches /^x/)\n"),
        (
            {"properties": {"a": {"anyOf": [{"minimum": 3}, {"$comment": "odd", "multipleOf": 2}]}}},
            "a (>= 3) or (odd)\n",
        ),
        (
            {"properties": {"a": {"minLength": 2, "multipleOf": 3}}},
            'has at least 2 characters and fits {"multipleOf": 3}',
        ),
        ({"properties": {"a": {"pattern": "x" * 99}}}, f"when a matches /{'x' * 57}.../\n"),
        ({"allOf": [{"properties": {"a": {"minimum": 1}}}, {"required": ["b"]}]}, "when (a >= 1) and (b is given)\n"),
    ],
)
def test_schemas_in_words(cra: Cra, write_atlas: Write, schema: object, words: str) -> None:
    """What a condition demands of arguments is said in words where there are any, else as JSON."""
    rule = {"policy_id": "p", "type": "deny", "actions": ["ticket.get"], "conditions": {"parameters": schema}}
    assert words in cra("atlas", "show", write_atlas(policies=policies(rule))).stdout


def test_a_schema_nested_out_of_all_reason(cra: Cra, write_atlas: Write) -> None:
    """Deep alternatives are cut short in words, and no crash; JSON has them whole."""
    schema: dict[str, object] = {"minimum": 1}
    for _ in range(240):
        schema = {"not": schema}
    rule = {"policy_id": "p", "type": "deny", "conditions": {"parameters": {"properties": {"a": schema}}}}
    path = write_atlas(policies=policies(rule), metadata={"number": float("inf")})
    (path / "atlas.json").write_text((path / "atlas.json").read_text().replace("Infinity", "1e999"))
    ran = cra("atlas", "show", path)
    assert ran.code == 0
    assert "when a not (not (not (not (" in ran.stdout
    assert cra("atlas", "show", path, "--format", "json").json["metadata"] == {"number": "Infinity"}


def test_show_json_is_the_merged_manifest(cra: Cra, atlas: Path) -> None:
    """--format json is the manifest with policies/ and actions/ merged in: another program can load it."""
    (atlas / "policies").mkdir()
    extra = {"policy_id": "from-a-file", "type": "deny", "actions": ["ticket.update"]}
    (atlas / "policies" / "10.json").write_text(json.dumps(extra))
    ran = cra("atlas", "show", atlas, "--format", "json")
    assert ran.code == 0
    assert ran.json["policies"][-1] == extra
    assert Atlas.from_dict(ran.json).policy_digest == Atlas.load(atlas).policy_digest


def test_a_bad_atlas_is_not_shown(cra: Cra, write_atlas: Write) -> None:
    """show prints nothing of an Atlas with errors: they go to stderr, with the command that explains them."""
    ran = cra("atlas", "show", path := write_atlas(version="1"), "--format", "json")
    assert (ran.code, ran.stdout) == (1, "")
    assert "atlas.json#/version" in ran.stderr
    assert f"cra atlas validate {path}" in ran.stderr
