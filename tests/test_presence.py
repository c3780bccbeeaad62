"""What cannot be looked at is not called absent: a rule that was there stays in force, or nothing does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cra_middleware import Atlas, presence
from cra_middleware.atlas.loader import inspect
from cra_middleware.errors import SinkError
from cra_middleware.policy_tests import read_cases
from cra_middleware.server.atlas_folder import AtlasFolder
from cra_middleware.sinks import JsonlSink
from cra_middleware.trace.ledger.folder import FolderPlace
from tests.atlas.test_loader import write
from tests.conftest import manifest

UNKNOWN = "x" * 300
"""No system says what is at such a name; it may as well be a folder that is closed, or a disk that fails."""


@pytest.fixture
def atlas(tmp_path: Path) -> Path:
    folder = tmp_path / "atlas"
    write(folder, manifest())
    return folder


@pytest.mark.parametrize("ask", [presence.exists, presence.is_dir, presence.is_file])
def test_there_or_not_or_an_error(ask: Any, tmp_path: Path) -> None:
    """The three answers; a loop, a NUL and a file for a folder are known to lead nowhere."""
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    assert ask(tmp_path) is (ask is not presence.is_file)
    assert ask(tmp_path / "file") is (ask is not presence.is_dir)
    for name in ("none", "loop", "loop/a", "file/a", "a\0b"):
        assert not ask(tmp_path / name)
    with pytest.raises(OSError, match="too long"):
        ask(tmp_path / UNKNOWN)


@pytest.mark.parametrize("key", ["policies", "adapters"])
def test_an_atlas_whose_rules_cannot_be_looked_at_is_none(key: str, atlas: Path) -> None:
    """Without them, it would be another Atlas, which allows more."""
    (atlas / key).symlink_to(UNKNOWN)
    read, [finding] = inspect(atlas)
    assert (read, finding.code, finding.file) == (None, "E001", key)


@pytest.mark.parametrize("key", ["policies", "adapters"])
@pytest.mark.parametrize("what", ["a link to nowhere", "a file"])
def test_an_atlas_whose_rules_are_no_folder_is_none(what: str, key: str, atlas: Path) -> None:
    """Somebody meant something to be there."""
    if what == "a file":
        (atlas / key).write_text("rules: []")
    else:
        (atlas / key).symlink_to("nowhere")
    read, [finding] = inspect(atlas)
    assert (read, finding.code, finding.file) == (None, "E001", key)


def test_and_so_are_its_cases(atlas: Path) -> None:
    """None of them is not a pass."""
    (atlas / "tests").symlink_to(UNKNOWN)
    with pytest.raises(OSError, match="too long"):
        list(read_cases(atlas))
    assert Atlas.load(atlas)


def test_a_server_keeps_what_was_in_force(atlas: Path, tmp_path: Path) -> None:
    """Where its folder went, it is not known to be gone."""
    place = tmp_path / "place"
    place.symlink_to(atlas)
    folder = AtlasFolder([place], lambda: 0)
    known = [one.manifest.atlas_id for one in folder.atlases]
    place.unlink()
    place.symlink_to(UNKNOWN)
    assert folder.refresh(lambda atlases: pytest.fail("nothing was read"))
    assert [one.manifest.atlas_id for one in folder.atlases] == known == ["com.example.tests"]
    assert folder.broken == {str(place): "cannot be read (OSError)"}


def test_what_may_still_wait_is_not_noted(tmp_path: Path) -> None:
    """An entry of the ledger is noted when it has left the inbox, not when the inbox cannot be seen."""
    place, inbox = FolderPlace(tmp_path), tmp_path / "ledger" / "inbox"
    assert not place.is_waiting(["one"])
    inbox.rmdir()
    inbox.symlink_to(UNKNOWN)
    with pytest.raises(OSError, match="too long"):
        place.is_waiting(["one"])


def test_an_id_that_may_be_pruned_is_not_used_again(tmp_path: Path) -> None:
    """What is kept of a pruned session forbids its id."""
    session_id = "01900000-0000-7000-8000-000000000001"
    (tmp_path / f"{session_id}.pruned").symlink_to(UNKNOWN)
    sink = JsonlSink(tmp_path)
    with pytest.raises(SinkError, match="too long"):
        sink.create(session_id)
