"""What is wrong with an Atlas: every finding, each with a code, a JSON pointer, a file and a hint.

E001 unreadable     no such file, not JSON, a duplicate key, a number JSON does not have, too deep
E002 path           a path that leaves the Atlas's folder, or is no plain file
E003 missing_file   a context file that is not there
E004 shape          a key is missing, unknown, or of the wrong type or form
E005 duplicate_id   two entries share an id
E006 dangling       a capability, block, tool map or condition names something that does not exist
E007 json_schema    not a valid JSON Schema, a reference outside itself, or a keyword that a condition cannot enforce
E008 parameters     a policy's ``parameters`` lack a key, have an unknown one, or a value of the wrong kind
E009 dependency     a required Atlas is missing or has a version outside the range
E010 argument_test  a test of an argument that is none
E011 rule           a rule that cannot be understood
W001 unknown_key    an unknown top-level key (kept)
W002 loose_id       ``_`` or ``-`` in an action or capability id: not every implementation reads it
W003 idle_glob      a glob that matches no action: perhaps a misspelt restriction
W004 idle_rule      an approval or limit on actions that nothing allows
W005 no_allow       no allow policy: everything will be denied
W006 loose_keyword  an unknown JSON-Schema keyword in an action's schema
W007 untyped        a restrictive argument condition on a property that the action's schema does not type
W008 unknown_name   an argument that no action it is about declares: perhaps misspelt
W009 idle_shadow    an allow in the shadow grants nothing
W010 idle_pack      a context pack with conditions on arguments is never injected
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import JsonValue, ValidationError
from pydantic_core import ErrorDetails

from cra_middleware.atlas.argument_tests import parse_argument_test
from cra_middleware.atlas.globs import any_glob, glob
from cra_middleware.atlas.manifest import Action, Conditions, Manifest, Policy
from cra_middleware.atlas.redactions import FACTS, Argument, parse_personal, parse_redaction
from cra_middleware.atlas.schema_work import work_problems
from cra_middleware.atlas.schemas import condition_problems, named_arguments, schema_problem, unknown_keywords
from cra_middleware.atlas.versions import in_range

Severity = Literal["error", "warning", "info"]
RESTRICTIVE = ("deny", "require_approval", "rate_limit", "budget")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to mend."""

    code: str
    severity: Severity
    pointer: str
    """RFC 6901, inside ``file``."""
    file: str
    message: str
    hint: str

    def __str__(self) -> str:
        hint = f" ({self.hint})" if self.hint else ""
        return f"{self.code} {self.file}#{self.pointer}: {self.message}{hint}"


@dataclass(frozen=True, slots=True)
class Place:
    """Where the entries of one list came from: list items may live in files of their own."""

    file: str
    pointer: str


class Origins:
    """Maps a position in the merged manifest back to the file and pointer a person can open."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._items: dict[tuple[str, int], Place] = {}

    def add(self, key: str, index: int, place: Place) -> None:
        self._items[key, index] = place

    def at(self, *path: str | int) -> Place:
        """The place of a path such as ``("policies", 3, "type")``."""
        rest: tuple[str | int, ...] = path
        base = Place(self._file, "")
        if len(path) > 1 and isinstance(path[0], str) and isinstance(path[1], int):
            known = self._items.get((path[0], path[1]))
            if known is not None:
                base, rest = known, path[2:]
        tokens = (str(part).replace("~", "~0").replace("/", "~1") for part in rest)
        return Place(base.file, base.pointer + "".join(f"/{token}" for token in tokens))


def finding(code: str, place: Place, message: str, hint: str = "") -> Finding:
    """A finding whose severity is its code's first letter."""
    severity: Severity = "error" if code.startswith("E") else "warning"
    return Finding(code, severity, place.pointer, place.file, message, hint)


def shape_findings(error: ValidationError, raw: JsonValue, origins: Origins) -> Iterator[Finding]:
    """What pydantic found in ``raw``, as findings that never quote a value."""
    for detail in error.errors(include_url=False, include_context=True, include_input=False):
        yield _shape(detail, origins.at(*_path(detail, raw)), "E004")


def _path(detail: ErrorDetails, raw: JsonValue) -> Iterator[str | int]:
    """The keys that lead to the fault: pydantic also names the branches of a union, which no file has."""
    here = raw
    for part in detail["loc"]:
        if isinstance(here, dict) and part in here:
            here = here[str(part)]
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            here = here[part]
        elif detail["type"] != "missing" or part != detail["loc"][-1]:
            continue
        yield part


def _shape(detail: ErrorDetails, place: Place, code: str) -> Finding:
    key = place.pointer.rsplit("/", 1)[-1]
    match detail["type"]:
        case "extra_forbidden":
            return finding(
                code, place, f"unknown key {key!r}", "a misspelt restriction must never load; correct or remove it"
            )
        case "missing":
            return finding(code, place, f"required key {key!r} is missing", "add it")
        case "string_pattern_mismatch":
            return finding(code, place, "not of the required form", f"it must match {detail['ctx']['pattern']}")
        case _:
            return finding(code, place, detail["msg"], "")


def check(manifest: Manifest, origins: Origins) -> Iterator[Finding]:
    """Every finding about a manifest whose shape is right."""
    yield from _top_level(manifest, origins)
    yield from _ids(manifest, origins)
    yield from _references(manifest, origins)
    for index, action in enumerate(manifest.actions):
        yield from _action(action, index, origins)
    for index, policy in enumerate(manifest.policies):
        yield from _policy(policy, index, manifest, origins)
    for index, pack in enumerate(manifest.context_packs):
        yield from _conditions(pack.conditions, ("context_packs", index, "conditions"), origins)
        if pack.conditions.parameters is not None or pack.conditions.arguments is not None:
            place = origins.at("context_packs", index, "conditions")
            hint = (
                "documents are chosen before there is a call; use risk_tiers, agents, capabilities or context_matches"
            )
            yield finding("W010", place, "a context pack with conditions on arguments is never injected", hint)
    for key, entries in (("redact", manifest.redact), ("personal", manifest.personal)):
        for index, entry in enumerate(entries):
            yield from _redacted(key, entry, origins.at(key, index), manifest)
    if not any(policy.type == "allow" for policy in manifest.policies):
        hint = "add a policy of type allow, or run with default_decision='allow'"
        yield finding("W005", origins.at("policies"), "no allow policy: everything will be denied", hint)


def check_dependencies(manifests: Mapping[str, tuple[Manifest, str]]) -> Iterator[Finding]:
    """Whether what each Atlas depends on is loaded too, in a fitting version; by atlas id, with its file."""
    for manifest, file in manifests.values():
        for wanted, wish in manifest.dependencies.items():
            place = Origins(file).at("dependencies", wanted)
            found = manifests.get(wanted)
            try:
                fits = found is not None and in_range(found[0].version, wish)
            except ValueError as error:
                yield finding("E009", place, str(error), "write for example ^1.2.0, ~1.2.0 or >=1.0.0 <2.0.0")
                continue
            if found is None:
                yield finding("E009", place, f"{wanted} {wish} is not loaded", f"load it beside {manifest.atlas_id}")
            elif not fits:
                yield finding("E009", place, f"{wanted} is {found[0].version}, not {wish}", "load a fitting version")


def _top_level(manifest: Manifest, origins: Origins) -> Iterator[Finding]:
    for key in manifest.model_extra or {}:
        yield finding(
            "W001", origins.at(key), f"unknown key {key!r}: kept, and not used", "correct it if it is misspelt"
        )


def _ids(manifest: Manifest, origins: Origins) -> Iterator[Finding]:
    lists: tuple[tuple[str, str, Iterable[str]], ...] = (
        ("actions", "action_id", (entry.action_id for entry in manifest.actions)),
        ("policies", "policy_id", (entry.policy_id for entry in manifest.policies)),
        ("capabilities", "capability_id", (entry.capability_id for entry in manifest.capabilities)),
        ("context_packs", "pack_id", (entry.pack_id for entry in manifest.context_packs)),
        ("context_blocks", "context_id", (entry.context_id for entry in manifest.context_blocks)),
    )
    packs = {pack.pack_id for pack in manifest.context_packs}
    for key, field, ids in lists:
        seen: set[str] = set()
        for index, name in enumerate(ids):
            place = origins.at(key, index, field)
            if name in seen:
                yield finding("E005", place, f"{field} {name!r} is used twice", "give each its own")
            seen.add(name)
            if field in ("action_id", "capability_id") and ("_" in name or "-" in name):
                yield finding(
                    "W002", place, f"{name!r} has _ or - in it", "other implementations read only a-z, 0-9 and dots"
                )
            if field == "context_id" and name in packs:
                yield finding("E005", place, f"{name!r} is a context pack too", "give each its own")
            if field == "policy_id" and (name == "default" or name.startswith("action:")):
                yield finding("E004", place, f"policy_id {name!r} is reserved", "choose another")


def _references(manifest: Manifest, origins: Origins) -> Iterator[Finding]:
    actions = {action.action_id for action in manifest.actions}
    packs = {pack.pack_id for pack in manifest.context_packs}
    blocks = {block.context_id for block in manifest.context_blocks}
    for index, capability in enumerate(manifest.capabilities):
        for key, names, known in (
            ("actions", capability.actions, actions),
            ("context_packs", capability.context_packs, packs),
        ):
            for position, name in enumerate(names):
                if name not in known:
                    place = origins.at("capabilities", index, key, position)
                    yield finding("E006", place, f"{name!r} does not exist", f"declare it under {key}, or correct it")
    for index, block in enumerate(manifest.context_blocks):
        for position, name in enumerate(block.also_inject):
            if name not in blocks and name not in packs:
                place = origins.at("context_blocks", index, "also_inject", position)
                yield finding("E006", place, f"{name!r} does not exist", "name a context block or pack")
    capabilities = {capability.capability_id for capability in manifest.capabilities}
    for index, policy in enumerate(manifest.policies):
        for position, name in enumerate(policy.conditions.capabilities or ()):
            if name not in capabilities:
                place = origins.at("policies", index, "conditions", "capabilities", position)
                yield finding("E006", place, f"capability {name!r} does not exist", "the policy would never apply")
    for name, adapter in manifest.adapters.items():
        for tool, target in adapter.tools.items():
            action = target if isinstance(target, str) else target.action
            if action not in actions:
                place = origins.at("adapters", name, "tools", tool)
                yield finding(
                    "E006", place, f"action {action!r} does not exist", "declare it under actions, or correct it"
                )


def _action(action: Action, index: int, origins: Origins) -> Iterator[Finding]:
    for key, schema in (("parameters_schema", action.parameters_schema), ("returns_schema", action.returns_schema)):
        if schema is None:
            continue
        problem = schema_problem(schema)
        if problem is not None:
            place = origins.at("actions", index, key, *problem.at)
            yield finding("E007", place, problem.message, "see https://json-schema.org/draft/2020-12")
        for problem in work_problems(schema):
            place = origins.at("actions", index, key, *problem.at)
            yield finding("E007", place, problem.message, "name each alternative once, without $id and $anchor")
        for pointer in unknown_keywords(schema):
            place = origins.at("actions", index, key, *pointer)
            yield finding("W006", place, f"unknown JSON-Schema keyword {pointer[-1]!r}", "it checks nothing")


def _policy(policy: Policy, index: int, manifest: Manifest, origins: Origins) -> Iterator[Finding]:
    at = ("policies", index)
    yield from _conditions(policy.conditions, (*at, "conditions"), origins)
    yield from _parameters(policy, at, origins)
    matching = [action for action in manifest.actions if any_glob(policy.actions)(action.action_id)]
    for position, pattern in enumerate(policy.actions):
        if pattern != "*" and not any(glob(pattern)(action.action_id) for action in manifest.actions):
            place = origins.at(*at, "actions", position)
            yield finding("W003", place, f"{pattern!r} matches no action", "is it misspelt? Case counts")
    if policy.type in ("require_approval", "rate_limit", "budget"):
        allowing = [any_glob(other.actions) for other in manifest.policies if other.type == "allow"]
        if matching and not any(allow(action.action_id) for action in matching for allow in allowing):
            message = f"{policy.type} on actions that nothing allows: they are denied anyway"
            yield finding("W004", origins.at(*at), message, "an approval grants nothing by itself; add an allow policy")
    yield from _arguments(policy, at, matching, origins)
    if policy.type == "allow" and policy.parameters.get("enforcement") == "shadow":
        yield finding("W009", origins.at(*at), "an allow in the shadow grants nothing", "remove shadow, or the policy")


def _arguments(
    policy: Policy, at: tuple[str | int, ...], matching: list[Action], origins: Origins
) -> Iterator[Finding]:
    """Whether the actions that a condition is about have the arguments it names, and say of what type."""
    conditions = policy.conditions
    tested = {
        "parameters": named_arguments(conditions.parameters or {}),
        "arguments": frozenset(conditions.arguments or {}),
    }
    known = [action for action in matching if action.parameters_schema is not None]
    for key, names in tested.items():
        for name in sorted(names):
            place = origins.at(*at, "conditions", key)
            declaring = [action for action in known if name in named_arguments(action.parameters_schema or {})]
            if known and not declaring and len(known) == len(matching):
                message = f"no action it is about declares an argument {name!r}"
                yield finding("W008", place, message, "is it misspelt? Case counts")
            for action in declaring if policy.type in RESTRICTIVE else ():
                if name in _untyped(action):
                    message = f"{action.action_id} does not type its argument {name!r}"
                    yield finding("W007", place, message, "give it a type in the action's parameters_schema")


def _redacted(key: str, entry: str, place: Place, manifest: Manifest) -> Iterator[Finding]:
    try:
        named = parse_redaction(entry) if key == "redact" else parse_personal(entry)
    except ValueError as error:
        yield finding("E004", place, str(error), "see docs/atlas.md")
        return
    if isinstance(named, Argument) and named.actions != FACTS and named.name != "*":
        about = [action for action in manifest.actions if glob(named.actions)(action.action_id)]
        if not any(named.name in named_arguments(action.parameters_schema or {}) for action in about):
            yield finding(
                "W008", place, f"no action it is about declares an argument {named.name!r}", "is it misspelt?"
            )


def _untyped(action: Action) -> set[str]:
    properties = (action.parameters_schema or {}).get("properties")
    if not isinstance(properties, dict):
        return set()
    return {
        name
        for name, schema in properties.items()
        if not isinstance(schema, dict) or not {"type", "enum", "const", "$ref"} & schema.keys()
    }


def _conditions(conditions: Conditions, at: tuple[str | int, ...], origins: Origins) -> Iterator[Finding]:
    schema = conditions.parameters
    if schema is not None:
        place = origins.at(*at, "parameters")
        problem = schema_problem(schema)
        if problem is not None:
            where = origins.at(*at, "parameters", *problem.at)
            yield finding("E007", where, problem.message, "a condition that cannot be compiled must never load")
        for unenforced in condition_problems(schema):
            where = origins.at(*at, "parameters", *unenforced.at)
            yield finding("E007", where, unenforced.message, "correct it: it would restrict nothing")
        if not named_arguments(schema):
            yield finding("E007", place, "names no argument", "put the arguments under properties or required")
    for name, test in (conditions.arguments or {}).items():
        try:
            parse_argument_test(test)
        except ValueError as error:
            yield finding("E010", origins.at(*at, "arguments", name), str(error), "see docs/atlas.md, arguments")


def _parameters(policy: Policy, at: tuple[str | int, ...], origins: Origins) -> Iterator[Finding]:
    try:
        policy.rules_of()
    except ValidationError as error:
        for detail in error.errors(include_url=False, include_input=False):
            yield _shape(detail, origins.at(*at, "parameters", *detail["loc"]), "E008")
        return
    costs = [key for key in ("cost", "cost_parameter", "cost_function") if policy.parameters.get(key) is not None]
    if policy.type == "budget" and len(costs) != 1:
        hint = "write cost, cost_parameter or cost_function: one of them"
        yield finding("E008", origins.at(*at, "parameters"), "a budget needs to know what a call costs", hint)


def as_json(findings: Iterable[Finding]) -> str:
    """Findings as a JSON array, for machines."""
    keys = ("code", "severity", "pointer", "file", "message", "hint")
    return json.dumps([{key: getattr(item, key) for key in keys} for item in findings], indent=2)
