"""A project, and the hook that governs an agent in it by the developer's example Atlas."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.coding_agents.events import Hook

DEVELOPER = Path(__file__).resolve().parents[2] / "examples" / "atlases" / "developer"


@pytest.fixture
def real(tmp_path: Path) -> Hook:
    """As a process of its own."""
    project = tmp_path / "project"
    project.mkdir()
    return Hook(DEVELOPER, tmp_path / "traces", project)


@pytest.fixture
def hook(real: Hook, monkeypatch: pytest.MonkeyPatch) -> Hook:
    """The work of the same process, done in this one."""
    monkeypatch.chdir(real.project)  # and back: it goes to where the tool runs
    real.is_inside = True
    return real
