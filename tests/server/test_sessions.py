"""Sessions over HTTP: begun, found, gone on with, ended; Atlases that change meanwhile."""

from __future__ import annotations

import json
import re
from typing import Any
from uuid import uuid4

import pytest

from cra_middleware.errors import SinkError
from cra_middleware.server.host import Host
from cra_middleware.testing import FrozenClock
from tests.conftest import NOON, manifest, policies
from tests.server.serving import Serve, Served, code, listening


def test_a_session_is_created_resolved_and_ended(served: Served) -> None:
    """The answer is the published Session with its resolution; the end is sealed, and nothing may follow."""
    bot = served.by("bot")
    made = bot.post("/v1/sessions", {"agent_id": "bot", "goal": "Help", "metadata": {"team": "a"}, "external_id": "t1"})
    told = made.json()
    name = told["session_id"]
    assert made.headers["location"] == f"/v1/sessions/{name}"
    assert (told["status"], told["metadata"], told["agent_id"]) == ("active", {"team": "a"}, "bot")
    assert told["resolution"]["decision"]["type"] == "partial"
    assert told["tools_etag"] == bot.get("/v1/tools").json()["etag"]
    started = bot.get(f"/v1/traces/{name}").json()["events"][0]["payload"]["metadata"]
    assert (started["creator"], started["given"], started["external_id"]) == ("key:bot", {"team": "a"}, "t1")
    assert bot.ask("DELETE", f"/v1/sessions/{name}").status_code == 204
    assert bot.ask("DELETE", f"/v1/sessions/{name}").status_code == 204  # it is ended already
    ended = bot.get(f"/v1/sessions/{name}").json()
    assert (ended["status"], "ended_at" in ended) == ("ended", True)
    assert bot.post(f"/v1/traces/{name}/verify").json()["verdict"] == "INTACT, SEALED"
    for answer in (bot.execute(name), bot.post(f"/v1/traces/{name}/note", {"error_code": "x", "message": "y"})):
        assert code(answer) == (409, "SESSION_ALREADY_ENDED")
    assert len(served.service.host.table) == 0


def test_an_id_may_be_chosen(served: Served) -> None:
    """So that creating can be retried: the same caller is given the same session, another one a conflict."""
    bot, name = served.by("bot"), str(uuid4())
    body = {"agent_id": "bot", "goal": "Help", "session_id": name}
    first, again = bot.post("/v1/sessions", body), bot.post("/v1/sessions", body)
    assert first.json()["resolution"] == again.json()["resolution"]
    assert code(served.by("other").post("/v1/sessions", body)) == (409, "SESSION_ALREADY_EXISTS")
    assert code(bot.post("/v1/sessions", {**body, "goal": "Else"})) == (409, "SESSION_ALREADY_EXISTS")
    assert bot.kinds(name).count("session.started") == 1


def test_an_id_that_only_the_trace_knows_is_given_again(served: Served) -> None:
    """To its creator, where the server's index was lost; to another one it is a conflict as ever."""
    bot, name = served.by("bot"), str(uuid4())
    body = {"agent_id": "bot", "goal": "Help", "session_id": name}
    assert bot.post("/v1/sessions", body).status_code == 201
    for caller in (served.by("other"), bot):
        served.stop()
        for file in (served.folder / "traces" / "server").glob("book.db*"):
            file.unlink()
        served.start()
        again = caller.post("/v1/sessions", body)
        if caller is bot:
            assert (again.status_code, again.json()["session_id"]) == (201, name)
        else:
            assert code(again) == (409, "SESSION_ALREADY_EXISTS")
    assert bot.kinds(name).count("session.started") == 1


def test_lists_have_pages(served: Served) -> None:
    """The newest first; active ones by default."""
    bot = served.by("bot")
    names = []
    for _ in range(5):
        served.clock.advance(1)
        names.append(bot.session())
    bot.ask("DELETE", f"/v1/sessions/{names[0]}")
    page = bot.get("/v1/sessions?limit=2&offset=1").json()
    assert [item["session_id"] for item in page["items"]] == [names[3], names[2]]
    assert (page["total"], page["limit"], page["offset"]) == (4, 2, 1)
    assert bot.get("/v1/sessions?status=ended").json()["total"] == 1
    assert bot.get("/v1/sessions?status=all").json()["total"] == 5
    for query in ("limit=0", "limit=101", "limit=x", "offset=-1", "status=some", "limit=1e1", "limit=²"):
        assert bot.get(f"/v1/sessions?{query}").status_code == 400


def test_children_spend_their_root_s_budget_and_end_with_it(serve: Serve) -> None:
    """Also when both were let go of in between."""
    budget = {
        "policy_id": "few",
        "type": "budget",
        "actions": ["ticket.get"],
        "parameters": {"max_cost": 2, "cost": 1},
    }
    served = serve(manifest(policies=policies(budget)), clock=FrozenClock(NOON))
    bot = served.by("bot")
    parent = bot.session(context={"a": "1"})
    child = bot.session(parent_session_id=parent)
    assert bot.execute(parent).status_code == 200
    served.stop()
    served.start()
    assert bot.execute(child).status_code == 200
    assert code(bot.execute(child)) == (429, "BUDGET_EXCEEDED")
    assert code(bot.execute(parent)) == (429, "BUDGET_EXCEEDED")
    assert bot.get(f"/v1/sessions/{child}").json()["parent_session_id"] == parent
    bot.post(f"/v1/sessions/{parent}/end", {"reason": "error", "error": "gave up"})
    assert bot.get(f"/v1/sessions/{child}").json()["status"] == "ended"
    changed = bot.post("/v1/sessions", {"agent_id": "bot", "goal": "g", "parent_session_id": parent})
    assert code(changed) == (409, "SESSION_ALREADY_ENDED")


def test_facts_outlive_a_restart(serve: Serve) -> None:
    """A trace without values does not hold them; the server does, until the session ends."""
    rule = {"policy_id": "eu", "type": "allow", "conditions": {"context_matches": {"region": "eu"}}}
    served = serve(manifest(policies=[rule]), clock=FrozenClock(NOON))
    bot = served.by("bot")
    name, other = bot.session(context={"region": "eu"}, risk_tier="high"), bot.session(context={"region": "us"})
    served.stop()
    served.start()
    assert bot.execute(name).status_code == 200
    assert bot.execute(other).status_code == 403
    bot.ask("DELETE", f"/v1/sessions/{name}")
    assert served.service.host.book.session(name).context == "{}"


def test_idle_sessions_are_let_go_of(serve: Serve) -> None:
    """And opened again when they are wanted; those with a call out stay."""
    clock = FrozenClock(NOON)
    served = serve(clock=clock, max_open=2, idle_seconds=60)
    host: Host = served.service.host
    bot = served.by("bot")
    names = [bot.session() for _ in range(4)]
    call = bot.execute(names[0]).json()["execution_id"]
    host.tend()
    assert len(host.table) == 2
    clock.advance(61)
    host.tend()
    assert [host.table.peek(name) is not None for name in names] == [True, False, False, False]
    assert bot.report(names[0], call).status_code == 200
    clock.advance(61)
    host.tend()
    assert len(host.table) == 0
    for name in names:
        assert bot.execute(name).status_code == 200


def test_resolving(served: Served) -> None:
    """A whole request in a session; of another version, of another time, or of an unknown Atlas it is refused."""
    bot = served.by("bot")
    name = bot.session()
    body: dict[str, Any] = {
        "carp_version": "1.0",
        "request_id": str(uuid4()),
        "timestamp": served.now(),
        "operation": "resolve",
        "requester": {"agent_id": "bot", "session_id": name},
        "task": {"goal": "Help", "required_capabilities": []},
    }
    answer = bot.post("/v1/resolve", body)
    assert answer.status_code == 200
    assert answer.json()["request_id"] == body["request_id"]
    for change, expected in (
        ({"carp_version": "2.0"}, (400, "INVALID_CARP_REQUEST")),
        ({"timestamp": "2026-01-05T12:05:01+00:00"}, (400, "INVALID_CARP_REQUEST")),
        ({"timestamp": "2026-01-05T11:54:59Z"}, (400, "INVALID_CARP_REQUEST")),
        ({"timestamp": "yesterday"}, (400, "INVALID_CARP_REQUEST")),
        ({"atlas_ids": ["com.example.none"]}, (404, "ATLAS_NOT_FOUND")),
        ({"surprise": 1}, (400, "INVALID_CARP_REQUEST")),
        ({"requester": {"agent_id": "bot", "session_id": str(uuid4())}}, (404, "SESSION_NOT_FOUND")),
    ):
        assert code(bot.post("/v1/resolve", body | change)) == expected
    for seconds in (-299, 299):
        body["timestamp"] = f"2026-01-05T{12 if seconds > 0 else 11}:{4 if seconds > 0 else 55:02}:59+00:00"
        assert bot.post("/v1/resolve", body).status_code == 200


def test_tools_have_an_etag(serve: Serve) -> None:
    """What a client maps by is sent once, and again when the Atlases change."""
    atlas = manifest(
        adapters={"any": {"tools": {"get": "ticket.get", "put": {"action": "ticket.update", "args": {"a": "b"}}}}}
    )
    served = serve(atlas)
    bot = served.by("bot")
    first = bot.get("/v1/tools")
    told = first.json()
    assert told["maps"] == {"any": {"get": "ticket.get", "put": {"action": "ticket.update", "args": {"a": "b"}}}}
    assert told["actions"][:2] == ["ticket.get", "ticket.list"]
    assert (told["observing"], told["argument_policies"], told["lock"]) == (False, [], {})
    same = bot.get("/v1/tools", headers={"if-none-match": first.headers["etag"]})
    assert (same.status_code, same.content) == (304, b"")
    write(served, "tests.json", manifest(policies=policies()))
    served.service.host.tend()
    assert bot.get("/v1/tools", headers={"if-none-match": first.headers["etag"]}).status_code == 200


def write(served: Served, name: str, atlas: Any) -> None:
    (served.folder / "atlases" / name).write_text(atlas if isinstance(atlas, str) else json.dumps(atlas))


def test_atlases_are_read_again(serve: Serve) -> None:
    """A changed one is in force at once; a broken one leaves the old one in force, and health says so."""
    served = serve()
    bot, host = served.by("bot"), served.service.host
    name = bot.session()
    assert bot.execute(name, "ticket.delete").status_code == 403
    write(served, "tests.json", manifest(policies=policies()))
    host.tend()
    assert bot.execute(name, "ticket.delete").status_code == 200
    write(served, "tests.json", "{ this is no Atlas")
    host.tend()
    assert bot.execute(name, "ticket.delete").status_code == 200
    health = bot.get("/v1/health").json()
    assert (health["status"], health["checks"]["atlases"]["status"]) == ("degraded", "warn")
    write(served, "more.json", {**manifest(), "atlas_id": "com.example.more"})  # declares the same actions
    host.tend()
    assert "all together" in bot.get("/v1/health").text
    (served.folder / "atlases" / "more.json").unlink()
    write(served, "tests.json", manifest())
    host.tend()
    assert bot.get("/v1/health").json()["status"] == "healthy"
    assert bot.execute(name, "ticket.delete").status_code == 403


def test_atlases_are_posted_and_deleted(serve: Serve) -> None:
    """By an admin; what was posted is on the disk, and is there after a restart."""
    served = serve()
    boss = served.by("boss", "admin")
    actions = [{"action_id": "door.open", "name": "n", "description": "d"}]
    more = {**manifest(actions=actions, policies=policies()), "atlas_id": "com.example.more"}
    made = boss.post("/v1/atlases", more)
    assert (made.status_code, made.json()["action_count"]) == (201, 1)
    assert code(boss.post("/v1/atlases", more)) == (409, "ATLAS_ALREADY_LOADED")
    assert code(boss.post("/v1/atlases", {**more, "atlas_version": "2.0"})) == (400, "ATLAS_VERSION_MISMATCH")
    broken = boss.post("/v1/atlases", {"atlas_id": "com.example.x"})
    assert code(broken) == (400, "INVALID_ATLAS_MANIFEST")
    assert broken.json()["error"]["details"]["findings"]
    clash = {**manifest(), "atlas_id": "com.example.clash"}
    assert code(boss.post("/v1/atlases", clash)) == (400, "INVALID_ATLAS_MANIFEST")
    served.stop()
    served.start()
    assert [item["atlas_id"] for item in boss.get("/v1/atlases").json()["items"]] == [
        "com.example.more",
        "com.example.tests",
    ]
    assert boss.get("/v1/atlases/com.example.more").json()["actions"][0]["action_id"] == "door.open"
    assert boss.ask("DELETE", "/v1/atlases/com.example.more").status_code == 204
    assert code(boss.ask("DELETE", "/v1/atlases/com.example.more")) == (404, "ATLAS_NOT_FOUND")
    assert boss.ask("DELETE", "/v1/atlases/com.example.tests").status_code == 204
    assert (served.folder / "atlases" / "tests.json").exists()  # the operator's own files stay
    served.service.host.tend()
    assert boss.get("/v1/atlases").json()["total"] == 0
    write(served, "tests.json", manifest(policies=policies()))
    served.service.host.tend()
    assert boss.get("/v1/atlases").json()["total"] == 1


@pytest.mark.parametrize("accept", ["application/json", "application/x-ndjson"])
def test_a_trace_that_goes_on_says_so(served: Served, accept: str) -> None:
    """A page that is not the last names the next one: a part of a trace must not be taken for the whole."""
    bot = served.by("bot")
    name = bot.session()
    for _ in range(2):
        bot.execute(name)

    def page(path: str) -> tuple[list[dict[str, Any]], str | None]:
        answer = bot.get(path, headers={"accept": accept})
        lines = [json.loads(line) for line in answer.content.splitlines()]
        link = re.fullmatch('<(.*)>; rel="next"', answer.headers.get("link", ""))
        return (lines[0]["events"] if accept == "application/json" else lines), None if link is None else link[1]

    whole, after_it = page(f"/v1/traces/{name}")
    assert (len(whole) > 5, after_it) == (True, None)
    assert page(f"/v1/traces/{name}?limit={len(whole)}") == (whole, None)
    for kind in ("", "&event_type=action.approved"):
        wanted = [event for event in whole if not kind or event["event_type"] == "action.approved"]
        found, path = page(f"/v1/traces/{name}?limit=1{kind}")
        while path is not None:
            assert path.startswith(f"/v1/traces/{name}?")
            more, path = page(path)
            assert len(more) == 1
            found += more
        assert found == wanted


def test_traces_are_read_in_parts(served: Served) -> None:
    """By type, from a sequence on, so many; as JSON, or as the very lines that are hashed."""
    bot = served.by("bot")
    name = bot.session()
    for _ in range(3):
        bot.execute(name)
    told = bot.get(f"/v1/traces/{name}?limit=2").json()
    assert [event["sequence"] for event in told["events"]] == [0, 1]
    assert told["total"] == told["last_sequence"] + 1
    later = bot.get(f"/v1/traces/{name}?since_sequence=1&limit=1").json()["events"]
    assert [event["sequence"] for event in later] == [2]  # only those behind it
    assert {e["event_type"] for e in bot.get(f"/v1/traces/{name}?event_type=action.approved").json()["events"]} == {
        "action.approved"
    }
    lines = bot.get(f"/v1/traces/{name}", headers={"accept": "application/x-ndjson"})
    assert lines.headers["content-type"].startswith("application/x-ndjson")
    assert lines.content == (served.folder / "traces" / f"{name}.trace.jsonl").read_bytes()
    assert bot.get(f"/v1/traces/{name}?since_sequence=-1").status_code == 400


def test_a_changed_trace_shows(served: Served) -> None:
    """Verified from the bytes on the disk."""
    bot = served.by("bot")
    name = bot.session()
    served.stop()
    file = served.folder / "traces" / f"{name}.trace.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"goal":"Help"', b'"goal":"Harm"', 1))
    served.start()
    told = bot.get(f"/v1/traces/{name}/verify").json()
    assert not told["valid"]
    assert told["errors"][0] | {"details": ""} == {"sequence": 0, "error": "hash_mismatch", "details": ""}
    assert code(bot.execute(name)) == (422, "TRACE_CHAIN_INTEGRITY_ERROR")


def test_notes(served: Served) -> None:
    """About the session itself."""
    bot = served.by("bot")
    name = bot.session()
    assert (
        bot.post(f"/v1/traces/{name}/note", {"error_code": "lost", "message": "The link was down."}).status_code == 204
    )
    assert bot.kinds(name)[-1] == "error.occurred"


@pytest.mark.parametrize("key", ["status", "version", "uptime_seconds", "checks"])
def test_health(served: Served, key: str) -> None:
    """Under both names."""
    bot = served.by("bot")
    assert key in bot.get("/v1/health").json()
    assert bot.get("/health").json()["status"] == "healthy"
    assert set(bot.get("/v1/health").json()["checks"]) == {"store", "book", "atlases", "counters", "disk"}


def test_health_notices(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be used is a failure, and the server says so with its status."""
    from cra_middleware.server.book import BookError

    def gone(session_id: str) -> None:
        raise BookError("the disk is gone")

    monkeypatch.setattr(served.service.host.book, "session", gone)
    served.service.health.also("extra", lambda: 1 / 0)  # type: ignore[arg-type,return-value]
    answer = served.by("bot").get("/v1/health")
    assert (answer.status_code, answer.json()["status"]) == (503, "unhealthy")
    assert answer.json()["checks"]["book"] == {"status": "fail", "message": "the disk is gone"}
    assert answer.json()["checks"]["extra"]["status"] == "fail"


def test_a_key_without_an_atlas_gets_no_session(served: Served) -> None:
    """None at all must never become all of them, not even after a restart."""
    support = served.by("support", atlas_ids=("com.other.*",))
    assert code(support.post("/v1/sessions", {"agent_id": "bot", "goal": "g"})) == (404, "ATLAS_NOT_FOUND")
    bound = served.by("bound", atlas_ids=("com.example.*",))
    name = bound.session()
    extra = {**manifest(actions=[{"action_id": "door.open", "name": "n", "description": "d"}], policies=policies())}
    write(served, "extra.json", {**extra, "atlas_id": "com.example2.door"})
    served.stop()
    served.start()
    assert code(bound.execute(name, "door.open")) == (404, "ACTION_NOT_FOUND")
    assert bound.execute(name).status_code == 200
    child = {"agent_id": "bot", "goal": "g", "parent_session_id": name, "atlas_id": "com.example2.door"}
    assert code(bound.post("/v1/sessions", child)) == (404, "ATLAS_NOT_FOUND")


def test_a_session_below_has_no_more_atlases(served: Served) -> None:
    """Also where the key may use more, and the child names none."""
    extra = {**manifest(actions=[{"action_id": "door.open", "name": "n", "description": "d"}], policies=policies())}
    write(served, "extra.json", {**extra, "atlas_id": "com.example.door"})
    served.stop()
    served.start()
    for bot in (served.by("bot"), served.by("bound", atlas_ids=("com.example.*",))):
        assert bot.execute(bot.session(), "door.open").status_code == 200
        parent = bot.session(atlas_ids=["com.example.tests"])
        wider = {"agent_id": "bot", "goal": "g", "parent_session_id": parent, "atlas_ids": ["com.example.door"]}
        assert code(bot.post("/v1/sessions", wider)) == (404, "ATLAS_NOT_FOUND")
        child = bot.session(parent_session_id=parent)
        assert code(bot.execute(child, "door.open")) == (404, "ACTION_NOT_FOUND")
        assert bot.execute(child).status_code == 200


def test_a_session_below_goes_on_with_the_facts_above_it(served: Served) -> None:
    """On whichever server: what it may not change, what is below it may not change either."""
    bot = served.by("bot")
    parent = bot.session(context={"env": "prod"})
    child = bot.session(parent_session_id=parent, context={"more": 1})
    for _ in range(2):
        below = {"agent_id": "bot", "goal": "g", "parent_session_id": child}
        for context in ({"env": "dev"}, {"more": 2}):
            assert code(bot.post("/v1/sessions", {**below, "context": context})) == (400, "INVALID_CARP_REQUEST")
        assert bot.post("/v1/sessions", {**below, "context": {"env": "prod", "other": 1}}).status_code == 201
        served.stop()
        served.start()


def test_a_request_that_names_no_atlas(served: Served) -> None:
    """It leaves the session what the key, the body or the session above lets it use, on whichever server it goes on."""
    extra = {**manifest(actions=[{"action_id": "door.open", "name": "n", "description": "d"}], policies=policies())}
    write(served, "extra.json", {**extra, "atlas_id": "com.other.door"})
    served.stop()
    served.start()
    bot, bound = served.by("bot"), served.by("bound", atlas_ids=("com.example.*",))

    def begun(who: Any, asked: dict[str, Any], **beside: Any) -> str:
        requester = {"agent_id": "bot", "session_id": str(uuid4())}
        request = {"request_id": str(uuid4()), "timestamp": served.now(), "requester": requester, **asked}
        request["task"] = {"goal": "Help"}
        answer = who.post("/v1/sessions", {"agent_id": "bot", "goal": "Help", "request": request, **beside})
        assert answer.status_code == 201, answer.text
        return requester["session_id"]

    parent = bot.session(atlas_ids=["com.example.tests"])
    names = [
        (who, begun(who, asked, **beside))
        for asked in ({}, {"atlas_ids": []})
        for who, beside in (
            (bound, {}),
            (bot, {"atlas_ids": ["com.example.tests"]}),
            (bot, {"parent_session_id": parent}),
        )
    ]
    for _ in range(2):
        for who, name in names:
            assert code(who.execute(name, "door.open")) == (404, "ACTION_NOT_FOUND")
            assert who.execute(name).status_code == 200
        served.stop()
        served.start()


def test_a_request_may_name_the_session_above(served: Served) -> None:
    """As the body may, and of the same one."""
    bot = served.by("bot")
    parent, other = bot.session(context={"env": "prod"}), bot.session()

    def begun(named: str, **beside: Any) -> Any:
        requester = {"agent_id": "bot", "session_id": str(uuid4()), "parent_session_id": named}
        request = {"request_id": str(uuid4()), "timestamp": served.now(), "requester": requester}
        request["task"] = {"goal": "Help"}
        return bot.post("/v1/sessions", {"agent_id": "bot", "goal": "Help", "request": request, **beside})

    for beside in ({}, {"parent_session_id": parent}):
        child = begun(parent, **beside).json()["session_id"]
        assert bot.get(f"/v1/sessions/{child}").json()["parent_session_id"] == parent
    assert code(begun(parent, context={"env": "dev"})) == (400, "INVALID_CARP_REQUEST")
    assert code(begun(parent, parent_session_id=other)) == (400, "INVALID_CARP_REQUEST")
    assert code(begun(str(uuid4()))) == (404, "SESSION_NOT_FOUND")
    bot.ask("DELETE", f"/v1/sessions/{parent}")
    assert bot.get(f"/v1/sessions/{child}").json()["status"] == "ended"


def test_an_end_closes_the_calls_that_are_out(served: Served) -> None:
    """Nothing that was let run is left without an outcome in a sealed trace; grandchildren end, too."""
    bot = served.by("bot")
    parent = bot.session()
    child = bot.session(parent_session_id=parent)
    grandchild = bot.session(parent_session_id=child)
    call = bot.execute(grandchild).json()["execution_id"]
    bot.ask("DELETE", f"/v1/sessions/{parent}")
    assert bot.kinds(grandchild)[-2:] == ["action.failed", "session.ended"]
    assert code(bot.report(grandchild, call)) == (409, "SESSION_ALREADY_ENDED")


def test_a_session_that_could_not_begin_may_be_tried_again(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the same id."""
    bot, name = served.by("bot"), str(uuid4())
    store = served.service.host.store

    def full(session_id: str) -> None:
        raise SinkError("the disk is full", is_transient=True)

    monkeypatch.setattr(store, "create", full)
    body = {"agent_id": "bot", "goal": "Help", "session_id": name}
    assert code(bot.post("/v1/sessions", body)) == (500, "STORAGE_LOCKED")
    monkeypatch.undo()
    assert bot.post("/v1/sessions", body).status_code == 201


def test_events_are_streamed(served: Served) -> None:
    """Those that are there, those that come, until the last."""
    connect = pytest.importorskip("websockets.sync.client").connect
    exceptions = pytest.importorskip("websockets.exceptions")
    bot = served.by("bot")
    name = bot.session()
    key = {"X-API-Key": served.key("bot")}
    with listening(served) as port:
        address = f"ws://localhost:{port}/v1/traces/stream"
        with connect(f"{address}?session_id={name}", additional_headers=key) as link:
            assert json.loads(link.recv(5))["event_type"] == "session.started"
            bot.execute(name)
            bot.ask("DELETE", f"/v1/sessions/{name}")
            kinds = [json.loads(text)["event_type"] for text in link]
        assert kinds[-4:] == ["action.requested", "action.approved", "action.failed", "session.ended"]
        with connect(f"{address}?session_id={name}&since_sequence=2", additional_headers=key) as link:
            assert json.loads(link.recv(5))["sequence"] == 3
        for query, headers in (
            (f"session_id={uuid4()}", key),
            (f"session_id={name}", {}),
            (f"session_id={name}", {"X-API-Key": served.key("other")}),
            (f"session_id={name}", {**key, "Origin": "http://evil.example"}),
        ):
            with pytest.raises(exceptions.InvalidStatus), connect(f"{address}?{query}", additional_headers=headers):
                pass


def test_a_fact_that_looks_like_a_tag(serve: Serve) -> None:
    """It is what it was, also when the server has let go of the session and opens it again."""
    rule = {"policy_id": "no", "type": "deny", "conditions": {"context_matches": {"env": "cra:prod"}}}
    served = serve(manifest(policies=policies(rule)))
    bot = served.by("bot")
    name = bot.session(context={"env": "cra:prod"})
    assert code(bot.execute(name)) == (403, "ACTION_DENIED")
    served.service.host.table.let_go(name)
    assert code(bot.execute(name)) == (403, "ACTION_DENIED")
