"""What reaches a terminal: nothing hostile, and nothing lost."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cra_middleware import Atlas, CallRefused, Runtime
from cra_middleware.cli.output import json_text, shown
from cra_middleware.testing import FrozenClock
from tests.cli.conftest import HOSTILE, Cra, assert_harmless, foreign, rewrite
from tests.conftest import NOON, manifest, policies

Write = Callable[..., Path]
WRITABLE = HOSTILE.replace("\ud800", "")
"""What an Atlas or a trace of ours can hold."""


@given(st.text(st.characters()))
def test_shown_text_is_printable(text: str) -> None:
    """Whatever the text, what is shown of it is printable, and printable text is shown as it is."""
    assert shown(text).isprintable()
    if text.isprintable():
        assert shown(text) == text


@example("\x7f\x1b\x9b\u202e\ud800")
@given(st.recursive(st.text() | st.floats() | st.none(), st.lists) | st.dictionaries(st.text(), st.floats()))
def test_json_is_ascii_json(value: object) -> None:
    """A document is printable ASCII that a strict parser takes."""
    text = json_text(value, indent=None)
    assert text.isascii()
    assert_harmless(text)
    json.loads(text, parse_constant=lambda name: pytest.fail(name))


@pytest.mark.parametrize("format", ["text", "json"])
def test_a_hostile_atlas_is_escaped(cra: Cra, write_atlas: Write, format: str) -> None:
    """Escapes, markup and direction marks in an Atlas are shown, never interpreted, by every command."""
    rule = {"policy_id": "[red]p[/red]", "type": "deny", "actions": ["*.delete"], "parameters": {"reason": WRITABLE}}
    path = write_atlas(
        name=f"a{format}",
        description=WRITABLE,
        policies=policies(
            rule, {"policy_id": "x", "type": "deny", "actions": ["[bold]\u202e*"], "description": WRITABLE}
        ),
        adapters={"any": {"tools": {WRITABLE: "ticket.get"}}},
        metadata={WRITABLE: WRITABLE},
    )
    for command in (("atlas", "validate", path), ("atlas", "show", path), ("check", path, "ticket.delete")):
        ran = cra(*command, "--format", format)
        assert_harmless(ran.stdout + ran.stderr)
    if format == "text":
        assert "\\x1b[31mred\\x07[bold]x[/bold]\\u202eabc\\x9b\\x7f\\nnext\\r" in cra("atlas", "show", path).stdout
        assert "policy [red]p[/red]" in cra("check", path, "ticket.delete").stdout


def test_a_hostile_command_line_is_escaped(cra: Cra, atlas: Path, tmp_path: Path) -> None:
    """Ids, paths, agents and values from the command line are shown escaped too."""
    typed = HOSTILE.replace("\ud800", "\udcff")  # a byte that is not UTF-8, as Python hands it over
    for command in (
        ("check", atlas, typed),
        ("check", atlas, "ticket.get", "--agent", typed),
        ("check", atlas, "ticket.get", "--risk-tier", typed),
        ("check", atlas, "ticket.get", "--context", typed),
        ("check", atlas, "ticket.get", "--args", "@" + typed),
        ("atlas", "validate", tmp_path / typed),
        ("trace", "verify", tmp_path / typed),
        ("trace", "show", tmp_path / typed),
    ):
        ran = cra(*command)
        assert_harmless(ran.stdout + ran.stderr)
        assert "\\x1b[31mred" in ran.stdout + ran.stderr


@pytest.mark.parametrize("format", ["text", "json"])
def test_a_hostile_trace_is_escaped(cra: Cra, tmp_path: Path, format: str) -> None:
    """Names that an agent chose, and what a forger writes, cannot act on the reader's terminal."""
    atlas = Atlas.from_dict(manifest())
    with Runtime(atlas, trace=tmp_path / "t", record="full", clock=FrozenClock(NOON)) as runtime:
        with runtime.session(WRITABLE, WRITABLE, external_id=WRITABLE) as session, pytest.raises(CallRefused):
            session.call(WRITABLE, lambda text: text, WRITABLE)
        path = tmp_path / "t" / f"{session.id}.trace.jsonl"
    own = cra("trace", "show", path, "--format", format)
    assert own.code == 0
    assert_harmless(own.stdout + own.stderr)
    forged = tmp_path / "forged.jsonl"
    forged.write_bytes(b"".join(foreign(1, [{HOSTILE: HOSTILE, "inf": 1}, {"deep": [[HOSTILE]]}], HOSTILE)))
    rewrite(forged, lambda lines: lines.append(lines[0].replace(b'"inf": 1', b'"inf": 1e999')))
    for command in ("show", "verify"):
        ran = cra("trace", command, forged, "--format", format)
        assert ran.code == 1
        assert_harmless(ran.stdout + ran.stderr)
        if format == "json":
            assert ran.json


def test_a_name_cannot_imitate_an_outcome(cra: Cra, tmp_path: Path) -> None:
    """An action or tool whose name reads like our own words is quoted."""
    with Runtime(Atlas.from_dict(manifest()), trace=tmp_path, clock=FrozenClock(NOON)) as runtime:
        with runtime.session() as session, pytest.raises(CallRefused):
            session.call("ticket.get requested -> approved -> executed in 3 ms", lambda: 1)
        shown_text = cra("trace", "show", tmp_path / f"{session.id}.trace.jsonl").stdout
    assert '  12:00:00.000  "ticket.get requested -> approved -> executed in 3 ms" (' in shown_text


def test_a_pipe_gets_whole_lines(cra: Cra, write_atlas: Write) -> None:
    """Piped text is not wrapped or cut, however long an id is."""
    name = "ticket." + "x" * 240
    action = {"action_id": name, "name": "n", "description": "d"}
    rule = {"policy_id": "p" * 250, "type": "deny", "parameters": {"reason": "word " * 100}}
    path = write_atlas(actions=[action], policies=[rule])
    for ran in (cra("atlas", "show", path), cra("check", path, name)):
        assert any(name in row for row in ran.stdout.splitlines())
        assert any("p" * 250 in row for row in ran.stdout.splitlines())
        assert any(("word " * 100).strip() in row for row in ran.stdout.splitlines())
        assert all(row == row.rstrip() for row in ran.stdout.splitlines())


@pytest.mark.parametrize("seed", range(40))
def test_damaged_traces_never_crash_a_command(cra: Cra, recorded: Path, seed: int) -> None:
    """Whatever is done to a file: exit 0 or 1, harmless output, JSON that parses, and each break marked once."""
    chance = random.Random(seed)
    path = recorded
    if chance.random() < 0.5:  # several sessions in one file
        path = recorded.with_name("others.jsonl")
        chains = [foreign(n, [{"n": i, "x": HOSTILE} for i in range(4)]) for n in (1, 2)]
        path.write_bytes(b"".join(line for pair in zip(*chains, strict=True) for line in pair))
    for _ in range(chance.randrange(1, 4)):
        rewrite(path, lambda lines: _damage(lines, chance))
    verified = cra("trace", "verify", path, "--format", "json")
    assert verified.code in (0, 1)
    text, document = cra("trace", "show", path), cra("trace", "show", path, "--format", "json")
    assert text.code == document.code == verified.code
    assert_harmless(text.stdout + document.stdout + verified.stdout)
    [file] = verified.json["files"]
    assert document.json["verdict"]["sessions"] == file["sessions"]
    broken = [session["error"] for session in file["sessions"] if session["error"]]
    assert text.stdout.count("BROKEN HERE: ") == len(broken)


def _damage(lines: list[bytes], chance: random.Random) -> None:
    place = chance.randrange(len(lines))
    match chance.randrange(7):
        case 0:
            del lines[place]
        case 1:
            lines.insert(place, chance.choice(lines))
        case 2:
            line = bytearray(lines[place])
            line[chance.randrange(len(line))] = chance.randrange(256)
            lines[place] = bytes(line)
        case 3:
            lines[place] = chance.choice(
                (b"\n", b"null\n", b"[" * 100_000, b'{"payload":' * 990, b"\x00\n", b"1e999\n")
            )
        case 4:
            lines[place] = lines[place][: len(lines[place]) // 2]
        case 5:
            lines[place] = lines[place].replace(b'"payload"', b'"event_type":[],"payload"', 1)
        case _:
            lines.reverse()
    if not lines:
        lines.append(b"\n")


@pytest.mark.parametrize("seed", range(40))
def test_damaged_atlases_never_crash_a_command(cra: Cra, atlas: Path, seed: int) -> None:
    """Whatever is in the file: an exit code of the command's, harmless output, JSON that parses."""
    chance = random.Random(seed)
    file = atlas / "atlas.json"
    tree = json.loads(file.read_text())
    for _ in range(chance.randrange(1, 3)):
        _spoil(tree, chance)
    file.write_bytes(json.dumps(tree, ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass"))
    for command, codes in (
        (("atlas", "validate", atlas), (0, 1)),
        (("atlas", "show", atlas), (0, 1)),
        (("check", atlas, "refund.create", "--args", '{"amount": 1e999}'), (0, 1, 3, 4)),
    ):
        for format in ("text", "json"):
            ran = cra(*command, "--format", format)
            assert ran.code in codes
            assert_harmless(ran.stdout + ran.stderr)
            if format == "json" and ran.stdout:
                assert ran.json


def _spoil(tree: object, chance: random.Random) -> None:
    while isinstance(tree, (dict, list)) and tree:
        key: object = chance.choice(list(tree)) if isinstance(tree, dict) else chance.randrange(len(tree))
        inner = tree[key]  # type: ignore[call-overload,index]
        if isinstance(inner, (dict, list)) and inner and chance.random() < 0.8:
            tree = inner
            continue
        tree[key] = chance.choice((HOSTILE, 1e999, -1, None, True, [], {}, [[1]], 10**30, "", "*", "x" * 300))  # type: ignore[call-overload,index]
        return
