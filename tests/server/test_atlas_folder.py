"""The folder of Atlases: where the disk does not let it be read or written, and how often it is read."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cra_middleware import Atlas
from cra_middleware.errors import AtlasError
from cra_middleware.server import atlas_folder
from cra_middleware.server.atlas_folder import AtlasFolder
from tests.conftest import manifest
from tests.server.serving import Caller, Serve, code

POSTED = manifest(
    atlas_id="com.example.posted",
    actions=[{"action_id": "mail.send", "name": "Mail", "description": "Send"}],
    policies=[{"policy_id": "mail", "type": "allow", "actions": ["mail.*"]}],
)


def closed(folder: Path) -> Any:
    """In place of ``Path.iterdir``: root could read everything."""
    raise PermissionError(13, "Permission denied", str(folder))


def test_a_folder_that_cannot_be_read(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Leaves what was in force in force; health says so until it can be read again, the log once."""
    served = serve()
    bot, host = served.by("bot"), served.service.host
    name = bot.session()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", closed)
        for _ in range(2):
            host.tend()
            assert bot.get("/v1/health").json()["checks"]["atlases"]["status"] == "warn"
        assert [bot.execute(name, f"ticket.{what}").status_code for what in ("delete", "get")] == [403, 200]
    assert caplog.text.count("cannot be read") == 1
    host.tend()
    assert bot.get("/v1/health").json()["status"] == "healthy"
    assert [bot.execute(name, f"ticket.{what}").status_code for what in ("delete", "get")] == [403, 200]


def test_one_that_cannot_be_read_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is an error of the Atlas, as a broken file is."""
    monkeypatch.setattr(Path, "iterdir", closed)
    with pytest.raises(AtlasError):
        AtlasFolder([tmp_path], lambda: 0)


def check_not_in_force(boss: Caller, atlas_id: str) -> None:
    assert boss.get(f"/v1/atlases/{atlas_id}").status_code == 404
    assert code(boss.execute(boss.session(), "mail.send")) == (404, "ACTION_NOT_FOUND")
    assert code(boss.ask("DELETE", f"/v1/atlases/{atlas_id}")) == (404, "ATLAS_NOT_FOUND")
    assert os.listdir(boss.served.folder / "atlases") == ["tests.json"]


def test_a_posted_one_whose_name_is_too_long_for_a_file(serve: Serve) -> None:
    """Is refused, and not in force."""
    boss = serve().by("boss", "admin", "agent")
    name = "com." + "b" * 246
    assert code(boss.post("/v1/atlases", {**POSTED, "atlas_id": name})) == (400, "INVALID_ATLAS_MANIFEST")
    check_not_in_force(boss, name)


def full(*given: object, **more: object) -> Any:
    """In place of what writes to the disk."""
    raise OSError(errno.ENOSPC, "No space left on device")


WRITES = ["sync_data", "os.replace", "sync_folder"]


@pytest.mark.parametrize("where", WRITES)
def test_a_posted_one_on_a_full_disk(serve: Serve, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Is not in force either; once there is room, it is taken."""
    boss = serve().by("boss", "admin", "agent")
    with monkeypatch.context() as patch:
        patch.setattr(f"cra_middleware.server.atlas_folder.{where}", full)
        assert code(boss.post("/v1/atlases", POSTED)) == (500, "STORAGE_LOCKED")
        check_not_in_force(boss, "com.example.posted")
    assert boss.post("/v1/atlases", POSTED).status_code == 201
    assert boss.execute(boss.session(), "mail.send").status_code == 200


def test_a_deleted_one_whose_file_stays(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is in force, as it would be after a restart."""
    boss = serve().by("boss", "admin", "agent")
    boss.post("/v1/atlases", POSTED)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", full)
        assert code(boss.ask("DELETE", "/v1/atlases/com.example.posted")) == (500, "STORAGE_LOCKED")
    assert boss.execute(boss.session(), "mail.send").status_code == 200
    assert boss.ask("DELETE", "/v1/atlases/com.example.posted").status_code == 204
    check_not_in_force(boss, "com.example.posted")


def test_a_posted_and_a_deleted_one_are_on_the_disk_before_that_is_told(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file's bytes before its name, and the folder's names before the answer."""
    boss, done = serve().by("boss", "admin"), list[str]()
    atlases = boss.served.folder / "atlases"

    def noted(name: str) -> None:
        whole: Any = getattr(atlas_folder, name)

        def work(given: Any) -> None:
            whole(given)
            is_named = (atlases / "com.example.posted.json").exists()
            done.append(f"{name}, {'with' if is_named else 'without'} the name")

        monkeypatch.setattr(atlas_folder, name, work)

    noted("sync_data")
    noted("sync_folder")
    assert boss.post("/v1/atlases", POSTED).status_code == 201
    assert done == ["sync_data, without the name", "sync_folder, with the name"]
    assert boss.ask("DELETE", "/v1/atlases/com.example.posted").status_code == 204
    assert done[2:] == ["sync_folder, without the name"]


def test_a_deleted_one_whose_folder_is_not_synced(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is out of force; who deleted it is told that this may not last."""
    boss = serve().by("boss", "admin", "agent")
    boss.post("/v1/atlases", POSTED)
    with monkeypatch.context() as patch:
        patch.setattr(atlas_folder, "sync_folder", full)
        assert code(boss.ask("DELETE", "/v1/atlases/com.example.posted")) == (500, "STORAGE_LOCKED")
    check_not_in_force(boss, "com.example.posted")


LYING_THERE: dict[str, Callable[[Path], object]] = {
    "broken": lambda path: path.write_text('{"atlas_id": "com.example.posted", "rules": [{"dney": "*"}]}'),
    "another's": lambda path: path.write_text(json.dumps({**POSTED, "atlas_id": "com.example.other"})),
    "a folder": lambda path: path.mkdir(),
    "a link to nothing": lambda path: path.symlink_to("gone.json"),
}


@pytest.mark.parametrize("kind", LYING_THERE)
def test_a_posted_one_whose_name_is_taken_on_the_disk(serve: Serve, kind: str) -> None:
    """Is refused: what lies there is the operator's, whether it is in force or not."""
    boss = serve().by("boss", "admin")
    path = boss.served.folder / "atlases" / "com.example.posted.json"
    LYING_THERE[kind](path)
    boss.served.service.host.tend()
    before = (path.lstat().st_ino, os.listdir(path.parent))
    assert code(boss.post("/v1/atlases", POSTED)) == (409, "ATLAS_ALREADY_LOADED")
    assert (path.lstat().st_ino, os.listdir(path.parent)) == before
    assert boss.get("/v1/atlases/com.example.posted").status_code == 404
    (path.rmdir if kind == "a folder" else path.unlink)()
    boss.served.service.host.tend()
    assert boss.post("/v1/atlases", POSTED).status_code == 201


def test_many_findings_are_counted(serve: Serve) -> None:
    """Of thousands of mistakes the first are told, errors before warnings, each shortened, and how many more."""
    boss = serve().by("boss", "admin")
    idle = {f"idle{number}": 1 for number in range(3000)}  # warnings, which are found first
    answer = boss.post("/v1/atlases", {**POSTED, **idle, "adapters": {"any": {"tools": {"x" * 5000: "no.such"}}}})
    assert code(answer) == (400, "INVALID_ATLAS_MANIFEST")
    first, *told, rest = answer.json()["error"]["details"]["findings"]
    assert (first[:4], len(first), len(told), rest) == ("E006", 1000, 49, "and 2951 more")
    lacking = {**POSTED, "dependencies": {f"com.example.no{number}": "^1.0.0" for number in range(3000)}}
    answer = boss.post("/v1/atlases", lacking)
    assert code(answer) == (400, "INVALID_ATLAS_MANIFEST")
    assert answer.json()["error"]["message"].count("\n") == 50
    assert answer.json()["error"]["message"].endswith("and 2950 more")


def test_each_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed one is read once for a change, and the others not at all."""
    for name in ("one", "other"):
        (tmp_path / f"{name}.json").write_text(json.dumps({**POSTED, "atlas_id": f"com.example.{name}"}))
    folder = AtlasFolder([tmp_path], lambda: 0)
    read, load = list[str](), Atlas.load

    def counted(path: Path) -> Atlas:
        read.append(path.name)
        return load(path)

    monkeypatch.setattr(Atlas, "load", counted)
    (tmp_path / "other.json").write_text(json.dumps({**POSTED, "atlas_id": "com.example.changed"}))
    (tmp_path / "third.json").write_text("{")
    assert folder.refresh(lambda atlases: None)
    assert read == ["other.json", "third.json"]
    assert sorted(folder.loaded()) == ["com.example.changed", "com.example.one"]
    assert list(folder.broken) == [str(tmp_path / "third.json")]


def test_the_log_says_what_became_of_a_file(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """That one is used again, and that none is left: who mended or moved it need not ask."""
    served = serve()
    (path,) = (served.folder / "atlases").iterdir()
    whole = path.read_text()
    for text in ("no JSON", whole + " "):
        path.write_text(text)
        served.service.host.tend()
    assert f"{path} is not used as it is now" in caplog.text
    assert caplog.text.count(f"{path} is used again") == 1
    path.unlink()
    for _ in range(2):
        served.service.host.tend()
    assert caplog.text.count(f"no Atlas is left in {path.parent}") == 1
