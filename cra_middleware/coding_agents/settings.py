"""An agent's settings with our hook in them, or without: texts in, texts out. What is not ours stays as it is.

Facts, from the pages that the agents' own modules name: Claude Code reads ``settings.json`` in ``~/.claude`` and in a
project's ``.claude`` (a hook's ``timeout`` in seconds, ``onFailure``), Gemini CLI the same in ``.gemini``
(milliseconds), Codex CLI ``hooks.json`` in ``.codex`` (seconds), Cursor ``hooks.json`` in ``.cursor`` (seconds,
``failClosed``). All of them run ``command`` with a shell. ``CLAUDE_CONFIG_DIR`` and ``CODEX_HOME`` move the user's
folder.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from cra_middleware.coding_agents import entry

TIMEOUT_SECONDS = 60
"""What the agent is told to wait; the hook's own deadline is well below."""
_OURS = "coding_agents/entry.py"
Json = dict[str, object]


class SettingsError(ValueError):
    """The settings cannot be changed safely; they stay as they are."""


class _Place(NamedTuple):
    folder: str
    file: str
    moved_by: str
    before: str
    others: tuple[str, ...]


_PLACES = {
    "claude-code": _Place(
        ".claude",
        "settings.json",
        "CLAUDE_CONFIG_DIR",
        "PreToolUse",
        ("PostToolUse", "PostToolUseFailure", "SessionEnd"),
    ),
    "codex": _Place(".codex", "hooks.json", "CODEX_HOME", "PreToolUse", ("PostToolUse",)),
    "gemini": _Place(".gemini", "settings.json", "", "BeforeTool", ("AfterTool", "SessionEnd")),
    "cursor": _Place(".cursor", "hooks.json", "", "preToolUse", ("postToolUse", "postToolUseFailure", "sessionEnd")),
}


def settings_file(agent: str, project: Path | None) -> Path:
    """Where the agent reads its hooks: of one project, or (None) of the user."""
    place = _PLACES[agent]
    if project is not None:
        return project / place.folder / place.file
    moved = os.environ.get(place.moved_by) if place.moved_by else None
    return (Path(moved) if moved else Path.home() / place.folder) / place.file


def command(agent: str, options: Sequence[tuple[str, str]]) -> str:
    """The shell line that runs the hook: the interpreter's and our own full path, and nothing from the environment."""
    words = [sys.executable, "-I", str(Path(entry.__file__).absolute()), agent]
    return shlex.join([*words, *(word for pair in options for word in pair)])


def installed(text: str, agent: str, line: str) -> str:
    """``text`` with our hook, once; the same text when it is there already.

    Raises:
        SettingsError: when ``text`` cannot be read.
    """
    place = _PLACES[agent]
    wanted = {name: _entry(agent, line, name == place.before) for name in (place.before, *place.others)}
    settings = _parsed(text)
    if {name: found for name, found in _ours(settings).items() if found} == {
        name: [made] for name, made in wanted.items()
    }:
        return text
    settings = _without(settings)
    if agent == "cursor":
        settings.setdefault("version", 1)
    hooks = settings.setdefault("hooks", {})
    assert isinstance(hooks, dict)  # _parsed has looked
    for name, made in wanted.items():
        hooks.setdefault(name, []).append(made)
    return _written(settings, text)


def uninstalled(text: str, earlier: str = "") -> str:
    """``text`` without our hook; the same text when it is not there.

    ``earlier`` is what stood there before the hook came: when it says the same, it comes back as it was written.

    Raises:
        SettingsError: when ``text`` cannot be read.
    """
    settings = _parsed(text)
    if not any(_ours(settings).values()):
        return text
    rest = _without(settings)
    try:
        bare = {key: value for key, value in rest.items() if key != "version"}  # which we may have added
        is_same = bool(earlier) and _parsed(earlier) in (rest, bare)
    except SettingsError:
        is_same = False
    return earlier if is_same else _written(rest, text)


def _entry(agent: str, line: str, is_before: bool) -> Json:
    """One hook; the one before a tool blocks, where that can be said, when it cannot be run."""
    if agent == "cursor":
        made: Json = {"command": line, "timeout": TIMEOUT_SECONDS}
        return {**made, "failClosed": True} if is_before else made
    seconds = TIMEOUT_SECONDS * 1000 if agent == "gemini" else TIMEOUT_SECONDS
    made = {"type": "command", "command": line, "timeout": seconds}
    if agent == "claude-code" and is_before:
        made["onFailure"] = "block"
    return {"hooks": [made]}


def _parsed(text: str) -> Json:
    """The settings, with every place looked at that is to be changed."""
    if not text.strip():
        return {}
    try:
        settings = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"they are no plain JSON ({error}), so they must be changed by hand") from None
    hooks = settings.get("hooks", {}) if isinstance(settings, dict) else None
    if isinstance(hooks, dict) and settings.get("disableAllHooks"):
        raise SettingsError("they say disableAllHooks, so no hook would run")
    if not isinstance(hooks, dict):
        raise SettingsError("they hold no hooks where hooks belong, so they must be changed by hand")
    for name, entries in hooks.items():
        if not isinstance(entries, list) and any(name in (place.before, *place.others) for place in _PLACES.values()):
            raise SettingsError(f"hooks.{name} is no list, so they must be changed by hand")
    return settings  # type: ignore[no-any-return]


def _once(pairs: list[tuple[str, object]]) -> Json:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("one key stands there twice")
    return made


def _hooks(settings: Json) -> Mapping[str, object]:
    hooks = settings.get("hooks", {})
    return hooks if isinstance(hooks, dict) else {}


def _is_ours(item: object) -> bool:
    return isinstance(item, dict) and _OURS in str(item.get("command", ""))


def _ours(settings: Json) -> dict[str, list[object]]:
    """What of ours stands there, by event: groups that hold nothing else."""
    return {
        name: [item for item in entries if _rest(item) != item]
        for name, entries in _hooks(settings).items()
        if isinstance(entries, list)
    }


def _rest(item: object) -> object:
    """An entry without our hook; None when nothing else was in it."""
    if _is_ours(item):
        return None
    inner = item.get("hooks") if isinstance(item, dict) else None
    if not isinstance(inner, list) or not any(_is_ours(hook) for hook in inner):
        return item
    assert isinstance(item, dict)
    kept = [hook for hook in inner if not _is_ours(hook)]
    return {**item, "hooks": kept} if kept else None


def _without(settings: Json) -> Json:
    """The settings without ours; a list that held nothing else goes with it."""
    hooks: Json = {}
    for name, entries in _hooks(settings).items():
        if not isinstance(entries, list):
            hooks[name] = entries
            continue
        kept = [rest for rest in map(_rest, entries) if rest is not None]
        if kept or not entries:
            hooks[name] = kept
    rest = {key: hooks if key == "hooks" else value for key, value in settings.items()}
    if not hooks and _hooks(settings):
        del rest["hooks"]
    return rest


def _written(settings: Json, before: str) -> str:
    """JSON in the form that the text had: its indent, and its end."""
    if not settings or settings == {"version": 1}:
        return ""
    found = re.search(r"\n([ \t]+)\S", before)
    indent = found[1] if found is not None else None if "{" in before and "\n" not in before.strip() else "  "
    end = "\n" if before.endswith("\n") or not before.strip() else ""
    return json.dumps(settings, indent=indent, ensure_ascii=False) + end
