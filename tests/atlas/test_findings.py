"""What is wrong with an Atlas is told with code, pointer and file, all at once, and without a value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cra_middleware import Atlas
from cra_middleware.atlas.findings import Finding, as_json, in_range
from cra_middleware.atlas.loader import inspect
from cra_middleware.carp.resolver import Resolver
from cra_middleware.errors import AtlasError
from tests.conftest import manifest, policies

SECRET = "s3cr3t-value"


def look(folder: Path, atlas: Any, files: dict[str, Any] | None = None) -> tuple[Finding, ...]:
    """The findings about a folder with this manifest and these files, written as JSON or as they are."""
    for name, content in {"atlas.json": atlas, **(files or {})}.items():
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(content if isinstance(content, str) else json.dumps(content))
    return inspect(folder)[1]


def action(**keys: Any) -> dict[str, Any]:
    return {"action_id": "ticket.get", "name": "n", "description": "d", **keys}


def policy(**keys: Any) -> dict[str, Any]:
    return {"policy_id": "p", "type": "deny", **keys}


def capability(**keys: Any) -> dict[str, Any]:
    return {"capability_id": "c", "name": "c", **keys}


def pack(**keys: Any) -> dict[str, Any]:
    return {"pack_id": "k", "name": "k", "files": ["context/k.md"], **keys}


def block(**keys: Any) -> dict[str, Any]:
    return {"context_id": "b", "content": "c", **keys}


def when(**schema: Any) -> dict[str, Any]:
    return policies(policy(conditions={"parameters": schema}))


TYPED = action(parameters_schema={"properties": {"a": {}, "b": {"type": "string"}}})
LOOK_AROUND = {"properties": {"a": {"pattern": f"(?={SECRET})"}}}
AMOUNT = {"properties": {"amount": {"minimum": 1}}}

# code, pointer, file, manifest (a dict of parts, or the text of the file), more files
TABLE: list[tuple[str, str, str, Any, dict[str, Any]]] = [
    ("E001", "", "atlas.json", "{", {}),
    ("E001", "", "atlas.json", f'{{"a": 1, "a": "{SECRET}"}}', {}),
    ("E001", "", "atlas.json", '{"a": NaN}', {}),
    ("E001", "", "policies/x.json", {}, {"policies/x.json": "["}),
    ("E002", "/context_packs/0/files/1", "atlas.json", {"context_packs": [pack(files=["context/k.md", "../x"])]}, {}),
    ("E002", "", "policies/x.toml", {}, {"policies/x.toml": "a: b"}),
    ("E003", "/context_packs/0/files/0", "atlas.json", {"context_packs": [pack(files=["context/none.md"])]}, {}),
    ("E004", "", "atlas.json", "[]", {}),
    ("E004", "", "atlas.json", "null", {}),
    ("E004", "/version", "atlas.json", {"version": SECRET}, {}),
    ("E004", "/atlas_version", "atlas.json", {"atlas_version": SECRET}, {}),
    ("E004", "/atlas_id", "atlas.json", {"atlas_id": f"A {SECRET}"}, {}),
    ("E004", "/actions/0/description", "atlas.json", {"actions": [{"action_id": "a.b", "name": "n"}]}, {}),
    ("E004", "/actions/0/action_id", "atlas.json", {"actions": [action(action_id=f"A {SECRET}")]}, {}),
    ("E004", "/actions/0/risk_tier", "atlas.json", {"actions": [action(risk_tier=SECRET)]}, {}),
    ("E004", "/actions/0/timeout_seconds", "atlas.json", {"actions": [action(timeout_seconds=301)]}, {}),
    (
        "E004",
        "/actions/0/rate_limit/max_calls",
        "atlas.json",
        {"actions": [action(rate_limit={"max_calls": 0, "window_seconds": 1})]},
        {},
    ),
    ("E004", "/policies/1/priorty", "atlas.json", {"policies": policies(policy(priorty=SECRET))}, {}),
    ("E004", "/policies/1/priority", "atlas.json", {"policies": policies(policy(priority="7"))}, {}),
    ("E004", "/policies/1/type", "atlas.json", {"policies": policies(policy(type=SECRET))}, {}),
    ("E004", "/policies/1/actions", "atlas.json", {"policies": policies(policy(actions=[]))}, {}),
    ("E004", "/policies/1/actions", "atlas.json", {"policies": policies(policy(actions=SECRET))}, {}),
    (
        "E004",
        "/policies/1/conditions/agent",
        "atlas.json",
        {"policies": policies(policy(conditions={"agent": ["x"]}))},
        {},
    ),
    (
        "E004",
        "/policies/1/conditions/agents",
        "atlas.json",
        {"policies": policies(policy(conditions={"agents": []}))},
        {},
    ),
    (
        "E004",
        "/policies/1/conditions/risk_tiers/0",
        "atlas.json",
        {"policies": policies(policy(conditions={"risk_tiers": [SECRET]}))},
        {},
    ),
    (
        "E004",
        "/policies/1/conditions/context_matches/a~1b",
        "atlas.json",
        {"policies": policies(policy(conditions={"context_matches": {"a/b": 5}}))},
        {},
    ),
    ("E004", "/redact/1", "atlas.json", {"redact": ["context.x", f"pattern:{SECRET}"]}, {}),
    ("E004", "/redact/0", "atlas.json", {"redact": [f"a.b#{SECRET}"]}, {}),
    ("E004", "/redact/0", "atlas.json", {"redact": [f"a b.{SECRET}"]}, {}),
    ("E004", "/personal/0", "atlas.json", {"personal": ["pattern:email"]}, {}),
    ("E004", "/personal/0", "atlas.json", {"personal": [f"*#/{SECRET}/"]}, {}),
    ("E004", "/policies/1/policy_id", "atlas.json", {"policies": policies(policy(policy_id="default"))}, {}),
    ("E004", "/policies/1/policy_id", "atlas.json", {"policies": policies(policy(policy_id="action:x"))}, {}),
    ("E004", "/policies/1/policy_id", "atlas.json", {"policies": policies(policy(policy_id=f"{SECRET}\n"))}, {}),
    ("E004", "/context_packs/0/priority", "atlas.json", {"context_packs": [pack(priority=1001)]}, {}),
    ("E004", "/context_blocks/0/inject_mode", "atlas.json", {"context_blocks": [block(inject_mode=SECRET)]}, {}),
    ("E004", "/adapters/any/tools/t", "atlas.json", {"adapters": {"any": {"tools": {"t": 5}}}}, {}),
    (
        "E004",
        "/adapters/any/tools/t/actoin",
        "atlas.json",
        {"adapters": {"any": {"tools": {"t": {"action": "ticket.get", "actoin": SECRET}}}}},
        {},
    ),
    ("E004", "/priorty", "policies/x.json", {}, {"policies/x.json": policy(priorty=SECRET)}),
    (
        "E004",
        "/1/priorty",
        "policies/x.json",
        {},
        {"policies/x.json": [policy(), policy(policy_id="q", priorty=SECRET)]},
    ),
    ("E004", "/policies/0/type", "policies/x.json", {}, {"policies/x.json": {"policies": [policy(type=SECRET)]}}),
    ("E004", "", "actions/x.json", {}, {"actions/x.json": "null"}),
    *(
        ("E008", "/policies/0/parameters/window_seconds", "atlas.json", {"policies": [long]}, {})
        for long in (
            policy(type="rate_limit", parameters={"max_calls": 1, "window_seconds": 10**15}),
            policy(type="budget", parameters={"max_cost": 1, "cost": 1, "window_seconds": 316_224_001}),
        )
    ),
    (
        "E004",
        "/actions/0/rate_limit/window_seconds",
        "atlas.json",
        {"actions": [action(rate_limit={"max_calls": 1, "window_seconds": 10**15})]},
        {},
    ),
    ("E005", "/actions/1/action_id", "atlas.json", {"actions": [action(), action()], "policies": policies()}, {}),
    ("E005", "/policies/1/policy_id", "atlas.json", {"policies": policies(policy(policy_id="allow-all"))}, {}),
    ("E005", "/capabilities/1/capability_id", "atlas.json", {"capabilities": [capability(), capability()]}, {}),
    ("E005", "/context_packs/1/pack_id", "atlas.json", {"context_packs": [pack(), pack()]}, {}),
    ("E005", "/context_blocks/1/context_id", "atlas.json", {"context_blocks": [block(), block()]}, {}),
    (
        "E005",
        "/context_blocks/0/context_id",
        "atlas.json",
        {"context_packs": [pack()], "context_blocks": [block(context_id="k")]},
        {},
    ),
    ("E005", "/policy_id", "policies/x.json", {}, {"policies/x.json": policy(policy_id="allow-all")}),
    ("E005", "/action_id", "actions/x.json", {}, {"actions/x.json": action()}),
    ("E006", "/capabilities/0/actions/0", "atlas.json", {"capabilities": [capability(actions=["no.such"])]}, {}),
    (
        "E006",
        "/capabilities/0/context_packs/0",
        "atlas.json",
        {"capabilities": [capability(context_packs=["none"])]},
        {},
    ),
    ("E006", "/context_blocks/0/also_inject/0", "atlas.json", {"context_blocks": [block(also_inject=["none"])]}, {}),
    ("E006", "/adapters/any/tools/a~1b", "atlas.json", {"adapters": {"any": {"tools": {"a/b": "no.such"}}}}, {}),
    ("E006", "/adapters/any/tools/t", "atlas.json", {"adapters": {"any": {"tools": {"t": {"action": "no.such"}}}}}, {}),
    (
        "E006",
        "/policies/1/conditions/capabilities/0",
        "atlas.json",
        {"policies": policies(policy(conditions={"capabilities": ["none"]}))},
        {},
    ),
    (
        "E007",
        "/actions/0/parameters_schema/type",
        "atlas.json",
        {"actions": [action(parameters_schema={"type": SECRET})], "policies": policies()},
        {},
    ),
    (
        "E007",
        "/actions/0/parameters_schema/properties",
        "atlas.json",
        {"actions": [action(parameters_schema={"properties": 5})], "policies": when(**AMOUNT)},
        {},
    ),
    (
        "E007",
        "/actions/0/returns_schema/minLength",
        "atlas.json",
        {"actions": [action(returns_schema={"minLength": SECRET})], "policies": policies()},
        {},
    ),
    (
        "E007",
        "/actions/0/parameters_schema/properties/a/pattern",
        "atlas.json",
        {"actions": [action(parameters_schema=LOOK_AROUND)], "policies": policies()},
        {},
    ),
    (
        "E007",
        "/actions/0/parameters_schema",
        "atlas.json",
        {"actions": [action(parameters_schema={"$ref": f"http://{SECRET}.invalid/x"})], "policies": policies()},
        {},
    ),
    (
        "E007",
        "/parameters_schema/type",
        "actions/x.json",
        {},
        {"actions/x.json": action(action_id="x.y", parameters_schema={"type": SECRET})},
    ),
    (
        "E007",
        "/policies/1/conditions/parameters/properties/a/pattern",
        "atlas.json",
        {"policies": when(**LOOK_AROUND)},
        {},
    ),
    (
        "E007",
        "/policies/1/conditions/parameters/properties/a/pattern",
        "atlas.json",
        {"policies": when(properties={"a": {"pattern": f"({SECRET})\\1"}})},
        {},
    ),
    (
        "E007",
        "/policies/1/conditions/parameters/properties/a/minimun",
        "atlas.json",
        {"policies": when(properties={"a": {"minimun": SECRET}})},
        {},
    ),
    (
        "E007",
        "/policies/1/conditions/parameters/anyOf/0/minimun",
        "atlas.json",
        {"policies": when(anyOf=[{"minimun": 1}], **AMOUNT)},
        {},
    ),
    (
        "E007",
        "/policies/1/conditions/parameters/properties/a/format",
        "atlas.json",
        {"policies": when(properties={"a": {"format": "email"}})},
        {},
    ),
    (
        "E007",
        "/policies/1/conditions/parameters/$schema",
        "atlas.json",
        {"policies": when(**{"$schema": "http://json-schema.org/draft-06/schema#"}, **AMOUNT)},
        {},
    ),
    (
        "E007",
        "/policies/1/conditions/parameters/properties/a/$ref",
        "atlas.json",
        {"policies": when(properties={"a": {"$ref": "https://json-schema.org/draft/2020-12/schema"}})},
        {},
    ),
    (
        "E007",
        "/policies/1/conditions/parameters/$defs/x/$anchor",
        "atlas.json",
        {"policies": when(**{"$defs": {"x": {"$anchor": "x"}}}, **AMOUNT)},
        {},
    ),
    ("E007", "/policies/1/conditions/parameters", "atlas.json", {"policies": when(minProperties=1)}, {}),
    (
        "E007",
        "/policies/1/conditions/parameters",
        "atlas.json",
        {"policies": when(properties={"a": {"$ref": f"#/{SECRET}"}})},
        {},
    ),
    (
        "E007",
        "/context_packs/0/conditions/parameters/type",
        "atlas.json",
        {"context_packs": [pack(conditions={"parameters": {"type": SECRET, **AMOUNT}})]},
        {},
    ),
    (
        "E007",
        "/conditions/parameters/properties/a/pattern",
        "policies/x.json",
        {},
        {"policies/x.json": policy(conditions={"parameters": LOOK_AROUND})},
    ),
    (
        "E008",
        "/policies/1/parameters/max_calls",
        "atlas.json",
        {"policies": policies(policy(type="rate_limit", parameters={"window_seconds": 60}))},
        {},
    ),
    (
        "E008",
        "/policies/1/parameters/window_seconds",
        "atlas.json",
        {"policies": policies(policy(type="rate_limit", parameters={"max_calls": 1}))},
        {},
    ),
    (
        "E008",
        "/policies/1/parameters/max_calls",
        "atlas.json",
        {"policies": policies(policy(type="rate_limit", parameters={"max_calls": SECRET, "window_seconds": 1}))},
        {},
    ),
    (
        "E008",
        "/policies/1/parameters/scope",
        "atlas.json",
        {
            "policies": policies(
                policy(type="rate_limit", parameters={"max_calls": 1, "window_seconds": 1, "scope": SECRET})
            )
        },
        {},
    ),
    (
        "E008",
        "/policies/1/parameters/reasn",
        "atlas.json",
        {"policies": policies(policy(parameters={"reasn": SECRET}))},
        {},
    ),
    (
        "E008",
        "/policies/1/parameters/enforcement",
        "atlas.json",
        {"policies": policies(policy(parameters={"enforcement": SECRET}))},
        {},
    ),
    (
        "E008",
        "/policies/1/parameters/max_cost",
        "atlas.json",
        {"policies": policies(policy(type="budget", parameters={"cost": 1}))},
        {},
    ),
    (
        "E008",
        "/policies/1/parameters",
        "atlas.json",
        {"policies": policies(policy(type="budget", parameters={"max_cost": 1}))},
        {},
    ),
    (
        "E008",
        "/policies/1/parameters",
        "atlas.json",
        {"policies": policies(policy(type="budget", parameters={"max_cost": 1, "cost": 1, "cost_parameter": "a"}))},
        {},
    ),
    (
        "E004",
        "/policies/1/conditions/time_window/timezone",
        "atlas.json",
        {"policies": policies(policy(conditions={"time_window": {"timezone": "Europe/Berlim"}}))},
        {},
    ),
    (
        "E004",
        "/policies/1/conditions/time_window",
        "atlas.json",
        {"policies": policies(policy(conditions={"time_window": {"start": "09:00", "end": "09:00:00"}}))},
        {},
    ),
    (
        "E010",
        "/policies/1/conditions/arguments/amount",
        "atlas.json",
        {"policies": policies(policy(conditions={"arguments": {"amount": "> lots"}}))},
        {},
    ),
    (
        "E010",
        "/context_packs/0/conditions/arguments/path",
        "atlas.json",
        {"context_packs": [pack(conditions={"arguments": {"path": {"inside": "/x"}}})]},
        {},
    ),
    ("E008", "/parameters/reasn", "policies/x.json", {}, {"policies/x.json": policy(parameters={"reasn": SECRET})}),
    ("W001", "/polices", "atlas.json", {"polices": [SECRET]}, {}),
    (
        "W002",
        "/actions/0/action_id",
        "atlas.json",
        {"actions": [action(action_id="ticket.get_all")], "policies": policies()},
        {},
    ),
    ("W002", "/capabilities/0/capability_id", "atlas.json", {"capabilities": [capability(capability_id="a-b")]}, {}),
    (
        "W003",
        "/policies/1/actions/1",
        "atlas.json",
        {"policies": policies(policy(actions=["ticket.*", "Ticket.*"]))},
        {},
    ),
    ("W003", "/actions/0", "policies/x.json", {}, {"policies/x.json": policy(actions=["no.such"])}),
    (
        "W004",
        "/policies/1",
        "atlas.json",
        {
            "policies": [
                policy(type="allow", actions=["ticket.*"]),
                policy(policy_id="q", type="require_approval", actions=["refund.*"]),
            ]
        },
        {},
    ),
    (
        "W004",
        "/policies/1",
        "atlas.json",
        {
            "policies": [
                policy(type="allow", actions=["ticket.*"]),
                policy(
                    policy_id="q",
                    type="rate_limit",
                    actions=["refund.*"],
                    parameters={"max_calls": 1, "window_seconds": 1},
                ),
            ]
        },
        {},
    ),
    ("W005", "/policies", "atlas.json", {"policies": []}, {}),
    (
        "W006",
        "/actions/0/parameters_schema/properties/a/minimun",
        "atlas.json",
        {
            "actions": [action(parameters_schema={"properties": {"a": {"type": "number", "minimun": SECRET}}})],
            "policies": policies(),
        },
        {},
    ),
    (
        "W006",
        "/actions/0/returns_schema/nullable",
        "atlas.json",
        {"actions": [action(returns_schema={"nullable": True})], "policies": policies()},
        {},
    ),
    (
        "W007",
        "/policies/1/conditions/parameters",
        "atlas.json",
        {"actions": [TYPED], "policies": when(properties={"a": {"const": SECRET}, "b": {"const": "x"}})},
        {},
    ),
]


@pytest.mark.parametrize(("code", "pointer", "file", "parts", "files"), TABLE)
def test_table(code: str, pointer: str, file: str, parts: Any, files: dict[str, Any], tmp_path: Path) -> None:
    """Each fault is found once, by its code, at its own place in its own file, and no message holds the value."""
    whole = parts if isinstance(parts, str) else manifest(**parts)
    findings = look(tmp_path, whole, {"context/k.md": "text", **files})
    places = [(item.code, item.pointer, item.file) for item in findings]
    assert places.count((code, pointer, file)) >= 1, places
    assert all(item.severity == ("error" if item.code.startswith("E") else "warning") for item in findings)
    assert all(SECRET not in str(item) for item in findings)
    loaded = inspect(tmp_path)[0]
    assert (loaded is None) is any(item.severity == "error" for item in findings)


def test_every_code_has_a_row() -> None:
    """The table covers every code; E009 needs two Atlases and has its own tests."""
    codes = {row[0] for row in TABLE}
    assert codes | {"E009"} == {
        *(f"E{number:03}" for number in range(1, 11)),
        *(f"W{number:03}" for number in range(1, 8)),
    }


def test_a_sound_atlas_has_no_findings(tmp_path: Path) -> None:
    """A full manifest without a fault has no finding at all."""
    schema = {"type": "object", "properties": {"amount": {"type": "number", "x-unit": "EUR"}}}
    whole = manifest(
        actions=[
            action(parameters_schema=schema, returns_schema={"$schema": "https://json-schema.org/draft/2020-12/schema"})
        ],
        capabilities=[capability(actions=["ticket.get"], context_packs=["k"])],
        context_packs=[pack()],
        context_blocks=[block(also_inject=["k"]), {"block_id": "older", "content": "c"}],
        adapters={"any": {"tools": {"t": "ticket.get", "u": {"action": "ticket.get", "args": {"a": "b"}}}}},
        policies=policies(
            policy(
                conditions={
                    "capabilities": ["c"],
                    "agents": ["x*"],
                    "parameters": {"properties": {"amount": {"$ref": "#/$defs/big"}}, "$defs": {"big": {"minimum": 5}}},
                }
            ),
            policy(policy_id="s", type="scope", parameters={"anything": {"goes": True}}),
            policy(policy_id="a", type="requires_approval"),
            policy(policy_id="b", type="approval"),
        ),
    )
    assert look(tmp_path, whole, {"context/k.md": "text"}) == ()


def test_all_findings_at_once(tmp_path: Path) -> None:
    """One reading tells everything: faults in several files, of shape and of reading, errors and warnings."""
    broken = look(
        tmp_path,
        manifest(atlas_id=5, version="1", polices=[]),
        {"policies/a.json": policy(priorty=1), "policies/b.json": "{", "actions/c.txt": ""},
    )
    assert sorted((item.code, item.file, item.pointer) for item in broken) == [
        ("E001", "policies/b.json", ""),
        ("E002", "actions/c.txt", ""),
        ("E004", "atlas.json", "/atlas_id"),
        ("E004", "atlas.json", "/version"),
        ("E004", "policies/a.json", "/priorty"),
    ]


def test_all_meanings_at_once(tmp_path: Path) -> None:
    """When the shape is right, every other fault is told together."""
    found = look(
        tmp_path,
        manifest(
            actions=[action(), action(parameters_schema={"type": "nonsense"})],
            capabilities=[capability(actions=["no.such"])],
            context_packs=[pack(files=["none.md", "../x"])],
            policies=[
                policy(conditions={"parameters": {"minimun": 1}, "arguments": {"a": []}}),
                policy(actions=["x.*"]),
            ],
            extra=1,
        ),
        {"policies/a.json": policy(policy_id="r", type="rate_limit")},
    )
    codes = ["E002", "E003", "E005", "E005", "E006", "E007", "E007", "E007", "E008", "E008", "E010"]
    assert sorted(item.code for item in found) == [*codes, "W001", "W003", "W004", "W005"]


def test_the_error_carries_all(tmp_path: Path) -> None:
    """AtlasError holds warnings too, and prints the errors only, a line each."""
    file = tmp_path / "atlas.json"
    file.write_text(json.dumps(manifest(policies=[policy(policy_id="default"), policy(parameters={"reasn": "x"})])))
    with pytest.raises(AtlasError) as caught:
        Atlas.load(file)
    assert [item.code for item in caught.value.findings] == ["E004", "E008", "W005"]  # type: ignore[attr-defined]
    assert len(str(caught.value).splitlines()) == 2
    assert str(caught.value).startswith("E004 atlas.json#/policies/0/policy_id: ")


def test_findings_as_json(tmp_path: Path) -> None:
    """Machines get every field."""
    found = look(tmp_path, manifest(polices=[]))
    (row,) = json.loads(as_json(found))
    assert row.keys() == {"code", "severity", "pointer", "file", "message", "hint"}
    assert (row["code"], row["pointer"]) == ("W001", "/polices")


@pytest.mark.parametrize(
    ("wish", "there", "fits"),
    [
        ("^1.2.0", "1.9.0", True),
        ("^1.2.0", "2.0.0", False),
        ("^1.2.0", "1.1.9", False),
        ("^0.2.0", "0.3.0", False),
        ("^0.0.3", "0.0.4", False),
        ("~1.2.0", "1.2.9", True),
        ("~1.2.0", "1.3.0", False),
        (">=1.0.0 <2.0.0", "1.5.0", True),
        (">=1.0.0 <2.0.0", "2.0.0", False),
        (">1.0.0", "1.0.0", False),
        ("<=1.0.0", "1.0.0", True),
        ("=1.0.0", "1.0.0", True),
        ("1.0.0", "1.0.1", False),
        ("*", "7.0.0", True),
    ],
)
def test_ranges(wish: str, there: str, fits: bool) -> None:
    """A dependency's version is inside its range or not."""
    assert in_range(there, wish) is fits


@pytest.mark.parametrize("wish", ["^2.0.0", "", "latest", "1.x", ">= 1.0.0", "=>1.0.0"])
def test_dependency_that_does_not_fit(wish: str) -> None:
    """E009: a version outside the range, or a range that is none."""
    needing = Atlas.from_dict(
        manifest(atlas_id="com.example.needing", actions=[], dependencies={"com.example.tests": wish})
    )
    with pytest.raises(AtlasError) as caught:
        Resolver([needing, Atlas.from_dict(manifest())])
    (found,) = caught.value.findings
    assert (found.code, found.pointer) == ("E009", "/dependencies/com.example.tests")  # type: ignore[attr-defined]


def test_dependency_that_is_missing() -> None:
    """E009: what an Atlas needs has to be loaded beside it; a fitting one is enough."""
    needing = Atlas.from_dict(
        manifest(atlas_id="com.example.needing", actions=[], dependencies={"com.example.tests": "^1.0.0"})
    )
    with pytest.raises(AtlasError, match="E009"):
        Resolver([needing])
    assert Resolver([needing, Atlas.from_dict(manifest())]).actions


def test_hidden_arguments_that_nothing_declares() -> None:
    """Perhaps misspelt; what every action has, the session's facts, and places in results are not warned about."""
    entries = ["*.email", "context.email", "*.*", "*#/email", "a.b#/*/email"]
    for key in ("redact", "personal"):
        found = Atlas.from_dict(manifest(**{key: entries})).findings
        assert [(item.code, item.pointer) for item in found if item.code == "W008"] == [("W008", f"/{key}/0")]


def test_a_schema_that_takes_exponential_time_never_loads() -> None:
    """A chain of alternatives, each twice, would hang the first call."""
    links = {str(n): {"anyOf": [{"$ref": f"#/$defs/{n + 1}"}] * 2} for n in range(30)}
    schema = {"$defs": {**links, "30": {"type": "string"}}, "properties": {"amount": {"$ref": "#/$defs/0"}}}
    action = {**manifest()["actions"][0], "parameters_schema": schema}
    with pytest.raises(AtlasError) as refused:
        Atlas.from_dict(manifest(actions=[action]))
    assert [(finding.code, finding.pointer) for finding in refused.value.findings if finding.code == "E007"] == [
        ("E007", "/actions/0/parameters_schema")
    ]
