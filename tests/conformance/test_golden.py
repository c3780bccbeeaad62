"""The published golden case, as a whole request, compared as the contract says (ids, times and hashes aside)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cra_middleware import Runtime, verify


@pytest.fixture
def golden(conformance: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The case's folder, and a copy of its Atlas with the document that is not shipped."""
    case = conformance / "reference" / "golden" / "simple-resolve"
    atlas = tmp_path / "atlas"
    (atlas / "context").mkdir(parents=True)
    shutil.copy(case / "atlas.json", atlas)
    (atlas / "context" / "overview.md").write_text("# Resources\nThings one may read and write.\n")
    return case, atlas


def same(expected: Any, found: Any) -> None:
    """Equal, but for what the case calls dynamic and for keys we add to a payload."""
    if expected == "$dynamic":
        return
    if isinstance(expected, dict):
        for key, value in expected.items():
            if key != "$comment":
                assert key in found, key
                same(value, found[key])
    elif isinstance(expected, list):
        assert len(expected) == len(found)
        for left, right in zip(expected, found, strict=True):
            same(left, right)
    else:
        assert expected == found


def test_resolution_and_trace(golden: tuple[Path, Path], tmp_path: Path) -> None:
    case, atlas = golden
    request = json.loads((case / "request.json").read_text())
    with Runtime(atlas, trace=tmp_path / "traces") as runtime:
        resolution = runtime.resolve(request)
    expected = json.loads((case / "expected-resolution.json").read_text())
    found = json.loads(resolution.model_dump_json())
    same(expected, found)
    assert found.keys() == expected.keys() - {"$comment"}
    for left, right in zip(expected["allowed_actions"], found["allowed_actions"], strict=True):
        assert left == right  # absent values are left out, none is added

    file = tmp_path / "traces" / f"{request['requester']['session_id']}.trace.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    wanted = [json.loads(line) for line in (case / "expected-trace.jsonl").read_text().splitlines()]
    for left, right in zip(wanted, lines, strict=False):
        assert list(left) == list(right)
        same(left, right)
        added = right["payload"].keys() - left["payload"].keys()
        assert added <= {"metadata"}
    assert [line["event_type"] for line in lines[len(wanted) :]] == ["session.ended"]
    assert lines[1]["trace_id"] == found["trace_id"]
    report = verify(file)
    assert (report.intact, report.sealed) == (True, True)
