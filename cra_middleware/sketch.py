"""A first Atlas, as text to edit: from the tools of a framework, or from what traces say was called.

Names come from tools and traces and are hostile: whatever is not plainly a word is written in quotes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import JsonValue

from cra_middleware.atlas.manifest import ACTION_ID
from cra_middleware.trace.event import Event

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]*")
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_RESERVED = frozenset(("true", "false", "null", "yes", "no", "on", "off", "y", "n", "none"))
_CHANGES = re.compile(
    r"(?i)(create|delete|remove|drop|update|write|edit|send|post|put|pay|refund|cancel|close|run|exec|shell|push|move)"
)
_TYPES: tuple[tuple[type, str], ...] = (
    (bool, "boolean"),
    (int, "number"),  # that only whole ones were seen says little
    (float, "number"),
    (str, "string"),
    (list, "array"),
    (dict, "object"),
)


@dataclass(frozen=True, slots=True)
class ToolSketch:
    """One tool: what is known of it."""

    name: str
    description: str = ""
    schema: Mapping[str, JsonValue] | None = None
    notes: tuple[str, ...] = ()
    """Comments for the person who edits."""
    verb: str | None = None
    """What a rule about it should begin with; None leaves it to its name."""


@dataclass(slots=True)
class _Seen:
    calls: int = 0
    ran: int = 0
    failed: int = 0
    refused: int = 0
    asked: int = 0
    agents: set[str] = field(default_factory=set)
    hours: dict[str, int] = field(default_factory=dict)
    arguments: dict[str, set[str]] = field(default_factory=dict)
    given: dict[str, int] = field(default_factory=dict)
    described: int = 0


def learn(sessions: Iterable[Iterable[Event]]) -> list[ToolSketch]:
    """What traces say about each tool or action: how often it was called, by whom, with which arguments."""
    seen: dict[str, _Seen] = {}
    for events in sessions:
        agent = "agent"
        spans: set[str] = set()
        for event in events:
            if event.event_type == "session.started":
                agent = str(event.payload.get("agent_id"))
            name = event.payload.get("action_id")
            if event.event_type == "action.requested":
                spans.add(event.span_id)
                _requested(seen.setdefault(str(name), _Seen()), event, agent)
            elif event.span_id in spans and isinstance(name, str):
                _followed(seen[name], event)
    return [_learned(name, counted) for name, counted in sorted(seen.items(), key=lambda item: -item[1].calls)]


def _requested(counted: _Seen, event: Event, agent: str) -> None:
    counted.calls += 1
    counted.agents.add(agent)
    hour = event.timestamp[:13]
    counted.hours[hour] = counted.hours.get(hour, 0) + 1
    parameters = event.payload.get("parameters")
    if isinstance(parameters, dict):
        counted.described += 1
        for key, value in parameters.items():
            counted.given[key] = counted.given.get(key, 0) + 1
            counted.arguments.setdefault(key, set()).add(_type(value))


def _followed(counted: _Seen, event: Event) -> None:
    match event.event_type:
        case "action.executed":
            counted.ran += 1
        case "action.failed":
            counted.ran += 1
            counted.failed += 1
        case "action.denied":
            counted.refused += 1
        case "policy.evaluated" if event.payload.get("effect") == "require_approval":
            counted.asked += 1


def _learned(name: str, counted: _Seen) -> ToolSketch:
    agents = f"{len(counted.agents)} agent{'' if len(counted.agents) == 1 else 's'}"
    notes = [f"{counted.calls} calls by {agents}, at most {max(counted.hours.values())} in an hour"]
    if counted.failed * 2 > counted.ran:
        notes.append(f"{counted.failed} of {counted.ran} failed")
    if counted.refused:
        notes.append(f"{counted.refused} were refused")
    schema: dict[str, JsonValue] | None = None
    if counted.described:
        properties: dict[str, JsonValue] = {key: _schema(types) for key, types in counted.arguments.items()}
        required: list[JsonValue] = [key for key, times in counted.given.items() if times == counted.described]
        schema = {"type": "object", "properties": properties, "additionalProperties": False}
        if required:
            schema["required"] = required
    verb = "ask" if counted.asked else "allow" if counted.ran and not counted.refused else None
    return ToolSketch(name, "", schema, tuple(notes), verb)


def _type(value: object) -> str:
    if isinstance(value, str) and value.startswith("cra:"):
        return "any"  # a value of another kind, or one that was hidden
    return next((name for kind, name in _TYPES if isinstance(value, kind)), "null")


def _schema(types: set[str]) -> JsonValue:
    if "any" in types:
        return {}
    names: list[JsonValue] = [*sorted(types)]
    return {"type": names[0] if len(names) == 1 else names}


def action_ids(names: Sequence[str]) -> dict[str, str]:
    """A legal action id for each tool's name; a name that is one stays."""
    found: dict[str, str] = {name: name for name in names if re.fullmatch(ACTION_ID, name)}
    taken = set(found.values())
    for name in names:
        if name in found:
            continue
        words = [word.lower() for word in _WORDS.findall(name)] or ["tool"]
        words = [word if word[0].isalpha() else f"n{word}" for word in words]
        base = ".".join(words if len(words) > 1 else ("tool", *words))[:200]
        number, wanted = 1, base
        while wanted in taken:
            number += 1
            wanted = f"{base}.n{number}"
        taken.add(wanted)
        found[name] = wanted
    return found


def atlas_text(tools: Sequence[ToolSketch], title: str, atlas_id: str = "com.example.agent") -> str:
    """A whole Atlas as one YAML text."""
    ids = action_ids([tool.name for tool in tools])
    lines = [*_head(title, atlas_id), "", *_rules(tools, ids), "", *_actions(tools, ids), *_map(tools, ids)]
    return "\n".join(lines) + "\n"


def atlas_files(tools: Sequence[ToolSketch], title: str, atlas_id: str = "com.example.agent") -> dict[str, str]:
    """The same as a folder: by path, the texts of its files."""
    ids = action_ids([tool.name for tool in tools])
    first = ids[tools[0].name] if tools else "no.such.action"
    files = {
        "atlas.yaml": [*_head(title, atlas_id), "", *_actions(tools, ids), *_map(tools, ids)],
        "rules/rules.yaml": [*_INTRODUCTION, "", *_rules(tools, ids)],
        "tests/first.yaml": [
            "# What must stay so. Run: cra atlas test",
            "- {call: no.such.action, expect: deny, code: unknown_action}",
            f"- {{call: {_quoted(first)}, agent: a-stranger, expect: deny}}",
        ],
    }
    return {path: "\n".join(lines) + "\n" for path, lines in files.items()}


_INTRODUCTION = (
    "# What no rule allows is denied. Take away the # in front of what you allow; add, for example:",
    "#",
    "#   - ask: refund.create",
    '#     when: {amount: "> 100"}',
    "#     why: Refunds over 100 wait for a person.",
    "#   - limit: mail.send",
    "#     to: 30/hour per action",
    "#   - deny: order.cancel",
    "#     outside: mon-fri 09:00-18:00 Europe/Berlin",
)


def _head(title: str, atlas_id: str) -> list[str]:
    return [
        f"# {_comment(title)}",
        "# Change it, then: cra atlas validate, cra atlas test, and cra check for one call.",
        'atlas_version: "1.0"',
        f"atlas_id: {_quoted(atlas_id)}",
        "version: 0.1.0",
        "name: My agent",
        "description: What my agent may do",
    ]


def _rules(tools: Sequence[ToolSketch], ids: Mapping[str, str]) -> Iterator[str]:
    yield "rules:"
    for tool in tools:
        notes = [*tool.notes, *(["it seems to change something: consider ask"] if _CHANGES.search(tool.name) else [])]
        comment = f"  # {_comment('; '.join(notes))}" if notes else ""
        mark = "  - " if tool.verb is not None else "  # - "
        yield f"{mark}allow: {_quoted(ids[tool.name])}{comment}"
        if tool.verb == "ask":
            yield f"  - ask: {_quoted(ids[tool.name])}"
            yield "    why: A person decides about this."


def _actions(tools: Sequence[ToolSketch], ids: Mapping[str, str]) -> Iterator[str]:
    yield "actions:" if tools else "actions: []"
    for tool in tools:
        yield f"  - action_id: {_quoted(ids[tool.name])}"
        yield f"    name: {_quoted(tool.name)}"
        yield f"    description: {_quoted(tool.description or tool.name)}"
        if tool.schema is not None:
            yield f"    parameters_schema: {_flow(dict(tool.schema))}"


def _map(tools: Sequence[ToolSketch], ids: Mapping[str, str]) -> Iterator[str]:
    mapped = [tool for tool in tools if ids[tool.name] != tool.name]
    if mapped:
        yield ""
        yield "adapters:"
        yield "  any:"
        yield "    tools:  # a tool's name, and the action it stands for"
        for tool in mapped:
            yield f"      {_quoted(tool.name)}: {_quoted(ids[tool.name])}"


def _quoted(text: str) -> str:
    if _PLAIN.fullmatch(text) and text.lower() not in _RESERVED:
        return text
    return _flow(text)


def _flow(value: JsonValue) -> str:
    """JSON that YAML reads alike: outside of ASCII, and invisible, letters are written as YAML escapes them."""
    text = json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isascii() and c.isprintable() else f"\\U{ord(c):08x}" for c in text)


def _comment(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)[:200]
