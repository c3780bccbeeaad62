"""The table of docs/frameworks.md says the same in whatever order its cells were written."""

from __future__ import annotations

import importlib.util
import json
from itertools import permutations
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "contract_table.py"


def test_a_hole_of_one_subject_is_one_of_the_row(tmp_path: Path) -> None:
    """Several subjects share a row, and their cases run in several processes."""
    if not SCRIPT.is_file():
        pytest.skip("scripts/ is only in the repository")
    found = importlib.util.spec_from_file_location("contract_table", SCRIPT)
    assert found is not None
    assert found.loader is not None
    script = importlib.util.module_from_spec(found)
    found.loader.exec_module(script)
    cell = {"row": "mcp", "case": "deny", "mode": "async"}
    for number, holes in enumerate(permutations(["why", None, "and why"])):
        folder = tmp_path / str(number)
        folder.mkdir()
        lines = [json.dumps({**cell, "hole": hole}) for hole in holes]
        (folder / "mcp.jsonl").write_text("\n".join(lines) + "\n")
        assert script.read_cells([str(folder)]) == ({("mcp", "deny"): {"async": {"why", "and why"}}}, {})
        holes_of_mcp = script.rows(*script.read_cells([str(folder)]))["mcp"][1:]
        assert [line.rsplit(": ", 1)[1] for line in holes_of_mcp] == ["and why", "why"]
