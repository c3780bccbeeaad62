"""A server is asked once for its tools: for a first Atlas, and for its lock."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

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
