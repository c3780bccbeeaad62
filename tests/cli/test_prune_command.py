"""``cra trace prune``."""

from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import Cra
from tests.evidence.test_pruning import KEY, recorded


def test_the_command(cra: Cra, tmp_path: Path) -> None:
    """It looks first when asked, removes, says what is kept and why, and refuses spans that are none."""
    (tmp_path / "key.pub").write_text(str(KEY))
    recorded(tmp_path / "t")
    options = ("--key", tmp_path / "key.pub")
    rehearsed = cra("trace", "prune", tmp_path / "t", "--older-than", "30d", *options, "--rehearse")
    assert rehearsed.code == 0
    assert "would be removed" in rehearsed.stdout
    done = cra("trace", "prune", tmp_path / "t", "--older-than", "30d", *options, "--format", "json")
    assert done.code == 0
    assert done.json["sessions"][0]["files"]
    assert not list((tmp_path / "t").glob("*.trace.jsonl"))
    recorded(tmp_path / "u", ends=False)
    kept = cra("trace", "prune", tmp_path / "u", "--older-than", "30d", *options)
    assert kept.code == 1
    assert "was not ended" in kept.stderr
    for span in ("30", "d", "-1d", "30 d", "", "1y", "100000d", "٣d"):
        assert cra("trace", "prune", tmp_path / "u", "--older-than", span, *options).code == 2
    assert cra("trace", "prune", tmp_path / "nowhere", "--older-than", "1d", *options).code == 1
