"""The examples run unchanged when their runtime is one at a server, and say the same."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HERE_ONLY = {"03_observe.py": "it looks on, needs no rules, and reads its own traces from a folder"}
QUICK = "02_approvals.py"
EXAMPLES = [
    ("01_decorator.py", []),
    (QUICK, []),
    ("quickstart.py", []),
    ("quickstart.py", ["--approve"]),
    ("quickstart.py", ["--reject"]),
]


def run(folder: Path, *command: str) -> str:
    """What a program prints, without what differs from run to run."""
    shutil.copytree(ROOT / "examples", folder / "examples")
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "CRA_"))}
    path = os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "adapters"), clean.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", *command],
        cwd=folder,
        env={**clean, "PYTHONPATH": path, "COLUMNS": "200"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}|\bin \d+ ms| +", " ", done.stdout)


def test_every_example_is_run() -> None:
    """Or it is said why not."""
    known = {name for name, _ in EXAMPLES} | set(HERE_ONLY)
    assert {file.name for file in (ROOT / "examples").glob("*.py")} == known


@pytest.mark.parametrize(
    ("example", "options"),
    [pytest.param(*one, marks=[] if one[0] == QUICK else pytest.mark.slow) for one in EXAMPLES],
    ids=[" ".join([name, *options]) for name, options in EXAMPLES],
)
def test_example(tmp_path: Path, example: str, options: list[str]) -> None:
    """Both ways, word by word, but for the order of calls that were made at once."""
    if example == "quickstart.py":
        pytest.importorskip("langchain", reason="the quickstart needs the langchain extra")
    here = run(tmp_path / "here", f"examples/{example}", *options)
    there = run(tmp_path / "there", "-m", "tests.client.at_a_server", f"examples/{example}", *options)
    assert "INTACT" in here
    assert sorted(there.splitlines()) == sorted(here.splitlines())
