"""A session's end, and who tells of its calls at the same moment."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from cra_middleware.calls.keeping import Recorder
from cra_middleware.errors import SinkError
from cra_middleware.server.book import SessionRow
from tests.server.serving import Serve, code


def test_an_outcome_that_is_told_while_the_session_ends_is_in_it(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last event waits for it; behind that nothing is written, or the trace would be broken."""
    served = serve()
    bot = served.by("bot")
    name = bot.session()
    execution_id = bot.execute(name).json()["execution_id"]
    keep, told, may_go = Recorder.keep_now, threading.Event(), threading.Event()

    def waits(recorder: Recorder, *entries: Any, **more: Any) -> Any:
        if entries and entries[0].event_type == "action.executed":
            told.set()
            may_go.wait(10)
        return keep(recorder, *entries, **more)

    monkeypatch.setattr(Recorder, "keep_now", waits)
    answers: dict[str, Any] = {}
    report = threading.Thread(target=lambda: answers.update(report=bot.report(name, execution_id)))
    end = threading.Thread(target=lambda: answers.update(end=bot.ask("DELETE", f"/v1/sessions/{name}")))
    report.start()
    assert told.wait(10)
    end.start()
    end.join(1)  # long enough to end it, were it not waiting
    may_go.set()
    report.join()
    end.join()
    assert (answers["report"].status_code, answers["end"].status_code) == (200, 204)
    assert bot.kinds(name)[-2:] == ["action.executed", "session.ended"]
    assert bot.post(f"/v1/traces/{name}/verify").json()["valid"]


def test_a_call_that_another_server_lets_run_while_the_session_ends_is_closed(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was let run behind the look at what is out, and before the last event."""
    served = serve()
    bot = served.by("bot")
    name = bot.session()
    assert bot.execute(name).status_code == 200
    session = served.service.host.table.peek(name)
    assert session is not None
    (late,) = session.untold
    session._untold.take(late.execution_id)
    keep, is_let = Recorder.keep_now, threading.Event()

    def lets(recorder: Recorder, *entries: Any, **more: Any) -> Any:
        if entries and entries[0].event_type == "session.ended" and not is_let.is_set():
            is_let.set()
            session._untold.put(late)
        return keep(recorder, *entries, **more)

    monkeypatch.setattr(Recorder, "keep_now", lets)
    assert bot.ask("DELETE", f"/v1/sessions/{name}").status_code == 204
    assert bot.kinds(name)[-2:] == ["action.failed", "session.ended"]


def test_a_session_that_begins_below_one_that_ends_ends_with_it(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of the two is faster: none stays open below one that is sealed."""
    served = serve()
    bot = served.by("bot")
    book = served.service.host.book
    keep = book.add_session

    def begins_meanwhile(parent: str, is_noted: bool) -> Any:
        """Ask for a session below ``parent``, which is ended before or behind the note of the new one."""

        def adds(row: SessionRow) -> bool:
            if is_noted:
                keep(row)
            monkeypatch.setattr(book, "add_session", keep)
            assert bot.ask("DELETE", f"/v1/sessions/{parent}").status_code == 204
            return bool(keep(row))

        monkeypatch.setattr(book, "add_session", adds)
        return bot.post("/v1/sessions", {"agent_id": "bot", "goal": "Help", "parent_session_id": parent})

    for is_noted in (True, False):
        answer = begins_meanwhile(bot.session(), is_noted)
        assert code(answer) == (409, "SESSION_ALREADY_ENDED")
    assert bot.get("/v1/sessions?status=active").json()["total"] == 0


def test_one_that_begins_behind_the_look_at_those_below_is_ended_too(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another server begins it while this one seals what is above it."""
    served = serve()
    bot = served.by("bot")
    parent, child = bot.session(), bot.session()
    book = served.service.host.book
    children, looks = book.children, list[str]()

    def sees_late(session_id: str) -> Any:
        looks.append(session_id)
        return [child] if looks.count(parent) == 2 and session_id == parent else children(session_id)

    monkeypatch.setattr(book, "children", sees_late)
    assert bot.ask("DELETE", f"/v1/sessions/{parent}").status_code == 204
    assert bot.kinds(child)[-1] == "session.ended"


def test_an_end_that_cannot_be_kept_is_none(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is told that a session has ended whose trace is not sealed; the end may be asked for again."""
    served = serve()
    bot = served.by("bot")
    name = bot.session()
    keep = Recorder.keep_now

    def fails(recorder: Recorder, *entries: Any, **more: Any) -> Any:
        if entries and entries[0].event_type == "session.ended":
            raise SinkError("the disk is full")
        return keep(recorder, *entries, **more)

    with monkeypatch.context() as patched:
        patched.setattr(Recorder, "keep_now", fails)
        assert code(bot.ask("DELETE", f"/v1/sessions/{name}")) == (500, "STORAGE_LOCKED")
    assert bot.get(f"/v1/sessions/{name}").json()["status"] == "active"
    assert bot.ask("DELETE", f"/v1/sessions/{name}").status_code == 204
    assert bot.kinds(name)[-1] == "session.ended"


def test_who_calls_a_session_that_is_being_ended_hears_that_it_has_ended(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is asked in it while its last event is being kept: nothing is broken, and nothing else is said."""
    served = serve()
    bot = served.by("bot")
    name = bot.session()
    keep, ends, may_go = Recorder.keep_now, threading.Event(), threading.Event()

    def waits(recorder: Recorder, *entries: Any, **more: Any) -> Any:
        if entries and entries[0].event_type == "session.ended":
            ends.set()
            may_go.wait(10)
        return keep(recorder, *entries, **more)

    monkeypatch.setattr(Recorder, "keep_now", waits)
    answers: dict[str, Any] = {}
    child = {"agent_id": "bot", "goal": "Help", "parent_session_id": name}
    asked = {
        "end": lambda: bot.ask("DELETE", f"/v1/sessions/{name}"),
        "child": lambda: bot.post("/v1/sessions", child),
        "call": lambda: bot.execute(name),
        "again": lambda: bot.ask("DELETE", f"/v1/sessions/{name}"),
    }

    def ask(word: str) -> None:
        answers[word] = asked[word]()

    threads = [threading.Thread(target=ask, args=(word,)) for word in asked]
    threads[0].start()
    assert ends.wait(10)
    for thread in threads[1:]:
        thread.start()
    threads[1].join(1)  # long enough to answer, were it not waiting
    may_go.set()
    for thread in threads:
        thread.join(30)
    assert code(answers["child"]) == (409, "SESSION_ALREADY_ENDED")
    assert code(answers["call"]) == (409, "SESSION_ALREADY_ENDED")
    assert (answers["end"].status_code, answers["again"].status_code) == (204, 204)
    assert bot.get("/v1/sessions?status=active").json()["total"] == 0


def test_a_session_whose_parent_ends_before_it_is_begun_is_not_begun(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parent was open when it was looked up; that it ended since is what is said."""
    served = serve()
    bot = served.by("bot")
    name = bot.session()
    begin = served.service.host.runtime.session

    def ends_first(*asked: Any, **more: Any) -> Any:
        assert bot.ask("DELETE", f"/v1/sessions/{name}").status_code == 204
        return begin(*asked, **more)

    monkeypatch.setattr(served.service.host.runtime, "session", ends_first)
    answer = bot.post("/v1/sessions", {"agent_id": "bot", "goal": "Help", "parent_session_id": name})
    assert code(answer) == (409, "SESSION_ALREADY_ENDED")
    assert bot.get("/v1/sessions?status=all").json()["total"] == 1
