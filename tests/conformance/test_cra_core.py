"""The Rust implementation's traces verify in their own profile, and one changed byte in them does not."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest

from cra_middleware.evidence.folder import verify_folder
from cra_middleware.trace.chain import Problem, Start, Verifier, verify_lines
from cra_middleware.trace.profiles import read
from tests.cli.conftest import Cra
from tests.cli.conftest import cra as cra


@pytest.fixture
def traces(conformance: Path) -> list[Path]:
    found = sorted((conformance / "cra-core").glob("*.trace.jsonl"))
    assert found
    return found


def test_the_command_reads_them(cra: Cra, traces: list[Path]) -> None:
    """By their files and by their folder, to their seal."""
    for args in (traces, [traces[0].parent]):
        ran = cra("trace", "verify", *args, "--require", "sealed", "--format", "json")
        assert ran.code == 0
        for file in ran.json["files"]:
            for session in file["sessions"]:
                assert (session["profile"], session["intact"], session["sealed"]) == ("cra-core", True, True)


def test_under_the_name_of_their_session(traces: list[Path], tmp_path: Path) -> None:
    """As a file of a folder of sessions they are the same."""
    for trace in traces:
        [verdict] = verify_lines(trace.read_bytes().splitlines(keepends=True))
        shutil.copy(trace, tmp_path / f"{verdict.session_id}.trace.jsonl")
        [report] = verify_folder(tmp_path, only=verdict.session_id).sessions
        assert report.verdict == verdict
        assert report.sealed


def flipped(line: bytes) -> Iterator[bytes]:
    """The line with each of its bytes changed, in turn, and read as a file is read."""
    for place in range(len(line)):
        yield line[:place] + bytes([line[place] ^ (1 + place % 255)]) + line[place + 1 :]


def test_no_byte_can_change(traces: list[Path]) -> None:
    """Each byte of each file, in turn: whatever it becomes, the chain is broken there."""
    for trace in traces:
        first, *rest = BytesIO(trace.read_bytes()).readlines()
        for changed in flipped(first):
            lines = [*BytesIO(changed).readlines(), *rest]
            assert not all(verdict.intact for verdict in verify_lines(lines)), changed
        event = read(first[:-1], "cra-core").event
        for line in rest:
            start = Start(event.sequence + 1, event.event_hash)
            assert line.endswith(b"}\n")
            for changed in flipped(line[:-1]):
                chain = Verifier("cra-core", event.session_id, start)
                assert any(isinstance(chain.add(part), Problem) for part in changed.split(b"\n")), changed
            event = read(line[:-1], "cra-core").event
