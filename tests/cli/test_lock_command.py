"""``cra atlas lock``: what changed is shown, and nothing is written that nobody has looked at."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cra_middleware import Atlas
from tests.cli.conftest import Cra
from tests.conftest import manifest


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An Atlas, and an adapter of a framework that this test makes."""
    (tmp_path / "atlas").mkdir()
    (tmp_path / "atlas" / "atlas.json").write_text(json.dumps(manifest()))
    (tmp_path / "my_tools.py").write_text('tools = [("peek", "Look", {"type": "object"}), ("poke", "Touch", None)]\n')
    adapter: Any = ModuleType("cra_adapters.made_up")
    adapter.describe_tools = lambda found: found
    monkeypatch.setitem(sys.modules, "cra_adapters.made_up", adapter)
    monkeypatch.delitem(sys.modules, "my_tools", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "atlas"


def lock(cra: Cra, *more: str) -> Any:
    sys.modules.pop("my_tools", None)
    return cra("atlas", "lock", "atlas", "--from", "made_up:my_tools:tools", *more)


def test_nothing_is_written_unseen(folder: Path, cra: Cra) -> None:
    """Without a terminal and without --yes it only shows."""
    done = lock(cra)
    assert done.code == 1
    assert "new" in done.stdout
    assert "peek" in done.stdout
    assert "Touch" in done.stdout
    assert not (folder / "atlas.lock").exists()


def test_what_was_looked_at_is_locked(folder: Path, cra: Cra, tmp_path: Path) -> None:
    """Then --check is quiet, until a tool says something else."""
    assert lock(cra, "--yes").code == 0
    written = Atlas.load(folder).lock
    assert written is not None
    assert set(written.tools["made_up"]) == {"peek", "poke"}
    assert lock(cra, "--check").code == 0
    (tmp_path / "my_tools.py").write_text('tools = [("peek", "Look, and tell me", {"type": "object"})]\n')
    done = lock(cra, "--check")
    assert done.code == 1
    assert "changed" in done.stdout
    assert "gone" in done.stdout
    assert "Look, and tell me" in done.stdout
    assert Atlas.load(folder).lock == written


def test_a_document_is_no_tool(folder: Path, cra: Cra) -> None:
    """No adapter meets an OpenAPI document at run time."""
    done = cra("atlas", "lock", "atlas", "--from", "openapi:x.yaml")
    assert done.code == 2
    assert "lock the tools themselves" in done.stderr


def test_a_framework_may_be_named_as_its_extra(folder: Path, cra: Cra) -> None:
    """made-up is made_up; the lock knows it by one name."""
    assert lock(cra, "--yes").code == 0
    sys.modules.pop("my_tools", None)
    assert cra("atlas", "lock", "atlas", "--from", "made-up:my_tools:tools", "--check").code == 0
