"""Atlases that are posted at one server are in force at all; what is deleted at one is at none."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cra_middleware.errors import AtlasError
from cra_middleware.server.postgres_atlases import PostgresAtlases
from cra_middleware.server.shared_atlases import SharedAtlases
from cra_middleware.server.shelf import Shelf, ShelfError, Stored
from tests.conftest import manifest
from tests.cutting_proxy import CuttingProxy
from tests.server.fleet import url_of
from tests.server.serving import Caller, Serve, Served, code
from tests.trace.postgres_server import database

OTHER = manifest(
    atlas_id="com.example.other",
    actions=[{"action_id": "mail.send", "name": "Mail", "description": "Send"}],
    policies=[{"policy_id": "mail", "type": "allow", "actions": ["mail.*"]}],
)
STRICT = {**OTHER, "policies": [{"policy_id": "mail", "type": "deny", "actions": ["mail.*"]}]}
PATH = "/v1/atlases/com.example.other"


class Shared(NamedTuple):
    """Two servers on one database, and an admin and an agent at each."""

    conninfo: str
    one: Served
    other: Served
    shelf: PostgresAtlases

    def boss(self, server: Served) -> Caller:
        return Caller(server, {"x-api-key": self.one.key("boss", "admin", agents=("*",))})

    def digests(self) -> list[str]:
        return [server.service.host.runtime.policy_digest for server in (self.one, self.other)]

    def tend(self) -> None:
        for server in (self.one, self.other):
            server.service.host.tend()


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Shared]:
    with database() as conninfo, ExitStack() as stack:
        shelves = [stack.enter_context(closing(PostgresAtlases(conninfo))) for _ in range(3)]
        one, other = (
            stack.enter_context(closing(Served(tmp_path / name, manifest(), shelf=shelf)))
            for name, shelf in zip(("one", "other"), shelves, strict=False)
        )
        other.service.routes.guard._keys = one.keys
        yield Shared(conninfo, one, other, shelves[2])


def ids(server: Served) -> list[str]:
    return [atlas.manifest.atlas_id for atlas in server.service.host.runtime.atlases]


def broken(server: Served) -> dict[str, str]:
    return dict(server.service.host.folder.broken)


def health(boss: Caller) -> Any:
    return boss.get("/v1/health").json()["checks"]["atlases"]


def test_posted_at_one_in_force_at_all(shared: Shared) -> None:
    """The other takes it over, with the same digest of its policies; a call there is decided by it. Nothing is written
    into a folder. Deleted at the other, it is gone at the first."""
    _, one, other, _ = shared
    here, there = shared.boss(one), shared.boss(other)
    session = there.session()
    assert code(there.execute(session, "mail.send")) == (404, "ACTION_NOT_FOUND")
    assert here.post("/v1/atlases", OTHER).status_code == 201
    assert ids(one) == ["com.example.tests", "com.example.other"]
    shared.tend()
    assert ids(other) == ids(one)
    assert len(set(shared.digests())) == 1
    assert there.execute(session, "mail.send").status_code == 200
    assert there.get(PATH).json() == here.get(PATH).json()
    for caller in (here, there):
        assert code(caller.post("/v1/atlases", OTHER)) == (409, "ATLAS_ALREADY_LOADED")
    assert [path.name for path in (one.folder / "atlases").iterdir()] == ["tests.json"]
    assert there.ask("DELETE", PATH).status_code == 204
    assert ids(other) == ["com.example.tests"]
    shared.tend()
    assert ids(one) == ["com.example.tests"]
    assert code(here.ask("DELETE", PATH)) == (404, "ATLAS_NOT_FOUND")


def test_what_another_did_is_known_to_a_post(shared: Shared) -> None:
    """Before the thread that tends has looked: no id is taken twice, no two that collide, and nobody's is lost."""
    _, one, other, _ = shared
    here, there = shared.boss(one), shared.boss(other)
    for server in (one, other):
        server.service.host.folder.refresh = lambda apply: False  # nobody looks
    assert here.post("/v1/atlases", OTHER).status_code == 201
    assert code(there.post("/v1/atlases", STRICT)) == (409, "ATLAS_ALREADY_LOADED")
    assert ids(other) == ["com.example.tests", "com.example.other"]
    assert there.ask("DELETE", PATH).status_code == 204
    colliding = manifest(atlas_id="com.example.colliding")
    assert code(there.post("/v1/atlases", colliding)) == (400, "INVALID_ATLAS_MANIFEST")
    assert list(other.service.host.folder.loaded()) == ["com.example.tests"]
    third = {**OTHER, "atlas_id": "com.example.third"}
    assert there.post("/v1/atlases", third).status_code == 201
    assert code(here.post("/v1/atlases", OTHER)) == (400, "INVALID_ATLAS_MANIFEST")  # the third has its action
    assert ids(one) == ids(other) == ["com.example.tests", "com.example.third"]


def test_a_server_that_starts_has_them(shared: Shared, serve: Serve) -> None:
    """Also those that were deleted from the files' set."""
    _, one, _, shelf = shared
    here = shared.boss(one)
    here.post("/v1/atlases", OTHER)
    assert ids(serve(shelf=shelf)) == ["com.example.tests", "com.example.other"]
    assert here.ask("DELETE", "/v1/atlases/com.example.tests").status_code == 204
    assert ids(serve(shelf=shelf)) == ["com.example.other"]


def test_an_atlas_of_the_files_is_deleted(shared: Shared) -> None:
    """At all servers, until its file says something else; the file itself stays. Posted with the same id it counts, and
    rests as soon as the files have one that is not out of force."""
    _, one, other, _ = shared
    here = shared.boss(one)
    assert here.ask("DELETE", "/v1/atlases/com.example.tests").status_code == 204
    shared.tend()
    assert ids(one) == ids(other) == []
    posted = manifest(policies=[{"policy_id": "list", "type": "allow", "actions": ["ticket.list"]}])
    assert here.post("/v1/atlases", posted).status_code == 201
    shared.tend()
    assert len(set(shared.digests())) == 1
    there = shared.boss(other)
    assert code(there.execute(there.session(), "ticket.get")) == (403, "ACTION_DENIED")
    assert health(there)["status"] == "pass"
    write(one, manifest(version="2.0.0"))
    write(other, manifest(version="2.0.0"))
    shared.tend()
    assert [server.service.host.runtime.atlases[0].manifest.version for server in (one, other)] == ["2.0.0"] * 2
    assert there.execute(there.session(), "ticket.get").status_code == 200
    assert "rests" in health(there)["message"]
    assert there.ask("DELETE", "/v1/atlases/com.example.tests").status_code == 204
    shared.tend()
    assert ids(one) == ids(other) == []
    assert health(there)["status"] == "pass"


def write(server: Served, atlas: dict[str, Any], name: str = "tests.json") -> None:
    path = server.folder / "atlases" / name
    path.write_text(json.dumps(atlas))
    os.utime(path, ns=(1, len(name) + hash(json.dumps(atlas)) % 10**9))


def store(shelf: PostgresAtlases, name: str, text: bytes) -> None:
    """As somebody writes it who does not ask a server."""
    shelf.change(name, lambda known: Stored(text, None, 5))


BROKEN: list[tuple[bytes, str]] = [
    (b"{", "unexpected end"),
    (b"[]", ""),
    (json.dumps({**OTHER, "policies": [{"policy_id": "x", "type": "odd"}]}).encode(), ""),
    (json.dumps({**OTHER, "atlas_id": "com.example.wrong"}).encode(), "calls itself"),
    (json.dumps(manifest(atlas_id="com.example.other")).encode(), ""),
]


@pytest.mark.parametrize(("text", "said"), BROKEN)
def test_a_stored_one_that_cannot_be_used(shared: Shared, text: bytes, said: str, caplog: Any) -> None:
    """A server that runs goes on by what was in force, and says so; one that starts refuses. It can be deleted."""
    _, one, other, shelf = shared
    here = shared.boss(one)
    here.post("/v1/atlases", OTHER)
    shared.tend()
    before = shared.digests()
    store(shelf, "com.example.other", text)
    caplog.set_level(logging.ERROR)
    for _ in range(2):
        shared.tend()
        assert shared.digests() == before
    assert health(here)["status"] == "warn"
    assert said in health(here)["message"]
    assert caplog.text
    session = here.session()
    assert here.execute(session, "mail.send").status_code == 200
    url = "cannot be used"
    with pytest.raises((ShelfError, ValueError)) as refused:
        one.service.host.reload(SharedAtlases([one.folder / "atlases"], lambda: 0, shelf).atlases)
    assert url in str(refused.value) or "com.example" in str(refused.value) or "ticket" in str(refused.value)
    assert here.ask("DELETE", PATH).status_code == 204
    shared.tend()
    assert ids(one) == ids(other) == ["com.example.tests"]
    assert health(here)["status"] == "pass"


def test_the_program_refuses_to_start(shared: Shared) -> None:
    """And says which Atlas it is, and what to do."""
    store(shared.shelf, "com.example.other", b"{")
    place = ("--atlas", str(shared.one.folder / "atlases"), "--store", url_of(shared.conninfo), "--counters", "c.db")
    command = [sys.executable, "-m", "cra_middleware", "serve", *place]
    env = {name: value for name, value in os.environ.items() if name not in ("CRA_TRACE", "CRA_STATE")}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=env, cwd=shared.one.folder, check=False
    )
    assert done.returncode == 2
    assert "the stored Atlas com.example.other cannot be used" in " ".join(done.stderr.split())


def test_files_that_wait_for_the_shelf(shared: Shared) -> None:
    """What did not go with a stored Atlas is taken up when that is deleted."""
    _, one, _, _ = shared
    here = shared.boss(one)
    here.post("/v1/atlases", OTHER)
    write(one, {**OTHER, "atlas_id": "com.example.third"}, "third.json")
    shared.tend()
    assert ids(one) == ["com.example.tests", "com.example.other"]
    assert "(all together)" in broken(one)
    assert here.ask("DELETE", PATH).status_code == 204
    shared.tend()
    shared.tend()
    assert ids(one) == ["com.example.tests", "com.example.third"]
    assert broken(one) == {}


def test_a_shelf_that_waits_for_the_files(shared: Shared) -> None:
    """A stored Atlas that does not go with this server's files is taken up when they change."""
    _, one, other, _ = shared
    write(other, {**OTHER, "atlas_id": "com.example.third"}, "third.json")
    shared.tend()
    assert shared.boss(one).post("/v1/atlases", OTHER).status_code == 201
    shared.tend()
    assert ids(other) == ["com.example.tests", "com.example.third"]
    assert "(all together)" in broken(other)
    write(other, manifest(version="2.0.0"))
    shared.tend()
    assert other.service.host.runtime.atlases[0].manifest.version == "2.0.0"  # its files count as ever
    (other.folder / "atlases" / "third.json").unlink()
    shared.tend()
    assert ids(other) == ids(one) == ["com.example.tests", "com.example.other"]
    assert broken(other) == {}


def test_a_database_that_is_away(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is posted or deleted that is not kept; a changed file counts all the same."""
    _, one, other, _ = shared
    here = shared.boss(one)
    here.post("/v1/atlases", OTHER)
    folder = one.service.host.folder

    def away(*given: object) -> Any:
        raise ShelfError("the database is away")

    with monkeypatch.context() as patch:
        patch.setattr(folder._shelf, "read", away)
        patch.setattr(folder._shelf, "change", away)
        assert code(here.ask("DELETE", PATH)) == (500, "STORAGE_LOCKED")
        write(one, manifest(version="2.0.0"))
        with pytest.raises(ShelfError):
            one.service.host.tend()
        assert one.service.host.runtime.atlases[0].manifest.version == "2.0.0"
    shared.tend()
    assert ids(one) == ids(other) == ["com.example.tests", "com.example.other"]


def test_nobody_knows_whether_it_was_kept(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both answers of a commit are lost: what was in force is, until the next look tells, also while there is none."""
    _, one, _, _ = shared
    here = shared.boss(one)
    folder = one.service.host.folder
    change = folder._shelf.change

    def tried(name: str, work: Callable[[Shelf], Any]) -> Any:
        def spoilt(shelf: Shelf) -> Any:
            work(shelf)
            raise ShelfError("the database is away")

        return change(name, spoilt)

    with monkeypatch.context() as patch:
        patch.setattr(folder._shelf, "change", tried)
        assert code(here.post("/v1/atlases", OTHER)) == (500, "STORAGE_LOCKED")
        assert ids(one) == list(folder.loaded()) == ["com.example.tests"]
    shared.tend()
    assert ids(one) == ["com.example.tests"]
    assert here.post("/v1/atlases", OTHER).status_code == 201
    with monkeypatch.context() as patch:
        patch.setattr(folder._shelf, "change", tried)
        assert code(here.ask("DELETE", PATH)) == (500, "STORAGE_LOCKED")
        assert ids(one) == list(folder.loaded()) == ["com.example.tests", "com.example.other"]


def test_a_lost_answer_is_done_once(tmp_path: Path) -> None:
    """Wherever the connection breaks: posted once, deleted once."""
    (tmp_path / "tests.json").write_text(json.dumps(manifest()))
    with database() as conninfo:
        proxy = CuttingProxy("127.0.0.1", 5432)
        place = conninfo.replace("port=5432", f"port={proxy.port}")
        with closing(PostgresAtlases(place)) as cut, closing(PostgresAtlases(conninfo)) as shelf:
            for answers in range(8):
                folder = SharedAtlases([tmp_path], lambda: 7, cut)
                other = SharedAtlases([tmp_path], lambda: 8, shelf)
                proxy.lose_after(answers)
                folder.post(OTHER, lambda atlases: None)
                proxy.lose_after(None)
                assert other.refresh(lambda atlases: None)
                assert sorted(other.loaded()) == ["com.example.other", "com.example.tests"]
                proxy.lose_after(answers)
                folder.delete("com.example.other", lambda atlases: None)
                proxy.lose_after(None)
                assert other.refresh(lambda atlases: None)
                assert sorted(other.loaded()) == ["com.example.tests"]
            assert proxy.lost >= 10


def test_one_change_after_the_other(shared: Shared) -> None:
    """Who changes the shelf sees what everybody before has done."""
    is_in, seen = threading.Event(), []

    def first(shelf: Shelf) -> Stored:
        is_in.set()
        time.sleep(0.3)
        return Stored(b"{}", None, 1)

    def second(shelf: Shelf) -> None:
        seen.append((shelf.revision, sorted(shelf.stored)))

    with closing(PostgresAtlases(shared.conninfo)) as shelf:
        slow = threading.Thread(target=shared.shelf.change, args=("com.example.a", first))
        slow.start()
        is_in.wait(10)
        assert shelf.change("com.example.b", second) == Shelf(2, {"com.example.a": Stored(b"{}", None, 1)})
        slow.join()
    assert seen == [(1, ["com.example.a"])]


def test_a_shelf_that_is_spoilt(shared: Shared) -> None:
    """Without its revision it is refused."""
    with shared.shelf._database.transaction() as connection:
        connection.execute("DELETE FROM cra_atlases_revision")
    with pytest.raises(ShelfError, match="one row"):
        shared.shelf.read(None)
    with shared.shelf._database.transaction() as connection:
        connection.execute("INSERT INTO cra_atlases_revision VALUES (0)")
    with pytest.raises(AtlasError):
        SharedAtlases([Path("/nowhere")], lambda: 0, shared.shelf)
