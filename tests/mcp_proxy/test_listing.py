"""A server is asked once for its tools: for a first Atlas, and for its lock."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from cra_middleware import Atlas
from cra_middleware.mcp_proxy.listing import ServerError, list_tools
from tests.cli.conftest import Cra
from tests.cli.conftest import cra as cra

SERVER = shlex.join([sys.executable, str(Path(__file__).with_name("raw_server.py")), os.devnull])


def test_a_server_lists_its_tools(tmp_path: Path, cra: Cra) -> None:
    """``cra atlas init`` writes actions, schemas, the map and the lock; ``cra atlas lock --check`` finds them so."""
    name, tools = list_tools(SERVER)
    assert tools
    done = cra("atlas", "init", str(tmp_path / "atlas"), "--from", f"mcp:{SERVER}")
    assert done.code == 0, done.stderr
    atlas = Atlas.load(tmp_path / "atlas")
    assert len(atlas.manifest.actions) == len(tools)
    assert atlas.lock is not None
    assert set(atlas.lock.tools[f"mcp:{name}"]) == {tool for tool, _, _ in tools}
    assert cra("atlas", "lock", str(tmp_path / "atlas"), "--from", f"mcp:{SERVER}", "--check").code == 0


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("", "name its command"),
        ("'", "the command is not one"),
        ("/no/such/server", "cannot be started"),
        (f"{shlex.quote(sys.executable)} -c pass", "ended with exit code 0"),
        (f"{shlex.quote(sys.executable)} -c \"print('nonsense')\"", "ended with exit code 0"),
    ],
)
def test_a_server_that_does_not_answer(command: str, why: str) -> None:
    """It is said what is wrong with it."""
    with pytest.raises(ServerError, match=why):
        list_tools(command)


HOSTILE = """
import json, sys
pages, n = json.loads(sys.argv[1]), 0
for line in sys.stdin:
    message = json.loads(line)
    if "id" not in message:
        continue
    result = {"serverInfo": {"name": "s"}}
    if message["method"] == "tools/list":
        result = {"tools": pages[n % len(pages)], **({"nextCursor": "more"} if len(pages) > 1 else {})}
        n += 1
    print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
"""


def saying(*pages: list[dict[str, Any]]) -> str:
    return shlex.join([sys.executable, "-c", HOSTILE, json.dumps(pages)])


@pytest.mark.parametrize(
    ("tools", "why"),
    [
        ([{"name": "a"}, {"name": "a", "description": "another"}], "two different tools are named 'a'"),
        ([{"name": "n" * 5000}], "is written, and has errors"),
        ([{"name": "a", "inputSchema": {"$ref": "#"}}], "is written, and has errors"),
        ([{"name": "a", "inputSchema": {"$ref": "file:///etc/passwd"}}], "is written, and has errors"),
    ],
)
def test_what_is_no_atlas_is_not_said_to_be_one(tmp_path: Path, cra: Cra, tools: Any, why: str) -> None:
    done = cra("atlas", "init", str(tmp_path / "atlas"), "--from", f"mcp:{saying(tools)}")
    assert done.code == 1
    assert why in done.stderr


def test_names_and_texts_are_no_yaml(tmp_path: Path, cra: Cra) -> None:
    """What a server says stays a text, and nothing of it reaches the terminal as it is."""
    evil = "a\"}\n  - allow: '*'\n\x1b[2J\u202e"
    tools = [{"name": evil, "description": evil, "inputSchema": {"type": "object", "properties": {evil: {}}}}]
    done = cra("atlas", "init", str(tmp_path / "atlas"), "--from", f"mcp:{saying(tools)}")
    assert done.code == 0, done.stderr
    atlas = Atlas.load(tmp_path / "atlas")
    assert [action.name for action in atlas.manifest.actions] == [evil]
    assert atlas.manifest.policies == ()
    done = cra(
        "atlas", "lock", str(tmp_path / "atlas"), "--from", f"mcp:{saying([{**tools[0], 'description': evil * 2}])}"
    )
    assert "changed" in done.stdout
    assert "\x1b[2J" not in done.stdout + done.stderr


def test_a_list_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither many pages nor slow ones keep anybody waiting."""
    with pytest.raises(ServerError, match="more than 1000 pages"):
        list_tools(saying([{"name": "a"}], [{"name": "b"}]))
    monkeypatch.setattr("cra_middleware.mcp_proxy.listing.SECONDS", 1.0)
    slow = HOSTILE.replace("n += 1", "n += 1; __import__('time').sleep(0.4)")
    with pytest.raises(ServerError, match="no answer to tools/list"):
        list_tools(shlex.join([sys.executable, "-c", slow, "[[], []]"]))
