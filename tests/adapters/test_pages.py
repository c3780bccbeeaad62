"""The pages about frameworks: every block of Python runs as it stands, where its framework is installed."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs" / "frameworks").glob("*.md"))


def is_installed(module: str) -> bool:
    """Whether it can be imported; what stands above it may be missing, too."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize("way", [[], ["-m", "tests.client.at_a_server"]], ids=["embedded", "connect"])
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page(page: Path, tmp_path: Path, way: list[str]) -> None:
    """Each block is a program of its own, started where the examples are; with a runtime at a server, too."""
    text = page.read_text()
    needs = re.match(r"<!-- needs: ([\w. ]+) -->\n", text)
    assert needs, 'the first line says what the page needs: <!-- needs: module -->, or "nothing"'
    for module in needs[1].split():
        if module != "nothing" and not is_installed(module):
            pytest.skip(f"{module} is not installed")
    if way and not all(map(is_installed, ("fastapi", "uvicorn", "httpx"))):
        pytest.skip("a runtime at a server needs the extras server and http")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert blocks or needs[1] == "nothing", "a page shows how it is done"
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "CRA_"))}
    clean["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), clean.get("PYTHONPATH", "")]))
    for number, block in enumerate(blocks):
        done = subprocess.run(
            [sys.executable, *way, "-c", block], cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, f"block {number} of {page.name}:\n{done.stderr}"
