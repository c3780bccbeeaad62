"""``docs/coding-agents.md``: what it shows works, and it names what does not."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cra_middleware.coding_agents import entry
from cra_middleware.coding_agents.settings import TIMEOUT_SECONDS

pytestmark = pytest.mark.slow  # each starts processes

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "coding-agents.md").read_text()


def test_every_command_works(tmp_path: Path) -> None:
    """In the order of the page, as a reader would type them."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    lines = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    said = []
    for line in lines:
        done = subprocess.run(
            line,
            shell=True,
            cwd=tmp_path,
            env={**os.environ, "PATH": path, "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (line, done.stdout, done.stderr)
        said.append(done.stdout)
    assert len(said) == 4
    assert "INTACT" in said[2]
    assert not (tmp_path / ".claude" / "settings.json").exists()


def test_the_page_says_what_the_code_does() -> None:
    """The deadline, the time-out, and how far below it is."""
    assert f"{entry.DEADLINE_SECONDS:.0f} seconds" in PAGE
    assert f"({TIMEOUT_SECONDS} s)" in PAGE
    assert entry.DEADLINE_SECONDS < TIMEOUT_SECONDS / 2


def test_the_limits_are_named() -> None:
    """A reader learns that a hook is no wall before they rely on it."""
    assert "It is no wall" in PAGE
    assert PAGE.count("**the tool runs**") == 4
