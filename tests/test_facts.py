"""The facts of a session: what conditions see of them, whoever opens it and however often it goes on."""

from __future__ import annotations

from datetime import date
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from cra_middleware import Atlas, Runtime
from cra_middleware._ids import new_id
from cra_middleware.carp.messages import Request
from cra_middleware.carp.recorded import recorded_facts
from cra_middleware.carp.resolver import Resolver
from cra_middleware.errors import CallRefused
from cra_middleware.replay import replay
from cra_middleware.sessions.session import Session
from tests.conftest import manifest, policies

pytestmark = pytest.mark.filterwarnings("ignore::cra_middleware.policies.AtlasWarning")


class Place(Enum):
    PROD = "prod"


def looking_at(wanted: str, kind: str = "deny") -> Atlas:
    """An Atlas that denies, or allows, where the fact ``env`` is ``wanted``."""
    one = {"policy_id": "env", "type": kind, "conditions": {"context_matches": {"env": wanted}}}
    return Atlas.from_dict(manifest(policies=[one] if kind == "allow" else policies(one)))


def runs(session: Session) -> bool:
    try:
        session.call("ticket.get", lambda: None)
    except CallRefused:
        return False
    return True


@pytest.mark.parametrize("kind", ["deny", "allow"])
@pytest.mark.parametrize("wanted", ["cra:prod", "prod", "2026-01-05", "00000000-0000-7000-8000-000000000000"])
@pytest.mark.parametrize(
    "fact",
    [
        "cra:prod",
        "prod",
        "\ud800 half",
        date(2026, 1, 5),
        Path("prod"),
        b"prod",
        2**60,
        1e-9,
        UUID(int=0x7000_8000_0000_0000_0000),
        Place.PROD,
        {"prod"},
        object(),
        None,
    ],
    ids=lambda fact: type(fact).__name__,
)
def test_a_session_that_goes_on_is_decided_as_before(fact: Any, wanted: str, kind: str, tmp_path: Path) -> None:
    """Also where a trace has a fact as a tag; and so is its replay."""
    atlas = looking_at(wanted, kind)
    with Runtime(atlas, trace=tmp_path, record="full") as runtime:
        session = runtime.session(context={"env": fact})
        before = runs(session)
        for _ in range(2):
            session.detach()
            session = runtime.resume(session.id)
            assert runs(session) is before
        events = session.events
    found = replay([events], Resolver([atlas], "deny")).steps
    assert [step.now.word for step in found] == ["allow" if before else "deny"] * 3


@pytest.mark.parametrize("record", ["full", "hash"])
def test_what_a_request_supposes_is_no_fact_of_the_session(record: Any, tmp_path: Path) -> None:
    """A deny that holds because a fact is missing holds after such a request, and in another process, too."""
    atlas = looking_at("prod")
    with Runtime(atlas, trace=tmp_path, record=record) as runtime:
        session = runtime.session("bot", "Help")
        assert not runs(session)
        supposed = {
            "request_id": new_id(),
            "requester": {"agent_id": "bot", "session_id": session.id},
            "task": {"goal": "Help", "risk_tier": "high"},
            "context": {"env": "dev"},
        }
        session.resolve(Request.model_validate(supposed))
        for _ in range(2):
            assert not runs(session)
            assert (session.facts.risk_tier, dict(session.facts.context)) == ("low", {})
            session.detach()
            session = runtime.resume(session.id)
        events = session.events
    told = {step.now.word for step in replay([events], Resolver([atlas], "deny")).steps}
    assert told == {"deny" if record == "full" else "undecidable"}  # without values nobody can know


def test_recorded_facts() -> None:
    """Texts are texts again; what only a tag is left of, or looks like one, is left out."""
    told = {"a": "cra:str:cra:x", "b": "cra:date:2026-01-05", "c": "cra:bytes:00", "d": "cra:new:x", "e": "cra:int:5"}
    assert recorded_facts({**told, "f": "cra:redacted:00", "g": "x", "h": None}) == {
        "a": "cra:x",
        "e": 5,
        "g": "x",
        "h": None,
    }
    assert recorded_facts(None) == {}


def test_a_session_below_has_no_more_atlases(tmp_path: Path) -> None:
    """What its parent is refused, it is refused too: it may leave Atlases out, and name none that the parent lacks."""
    door = {"atlas_id": "com.example.door", "actions": [{"action_id": "door.open", "name": "d", "description": "d"}]}
    with Runtime([Atlas.from_dict(manifest()), Atlas.from_dict(manifest(**door, policies=policies()))]) as runtime:
        with runtime.session() as parent:
            assert runtime.session(atlas_ids=["com.example.door"]).call("door.open", lambda: "ran") == "ran"
        with runtime.session(atlas_ids=["com.example.tests"]) as parent:
            for wanted in (["com.example.door"], ["com.example.tests", "com.example.door"]):
                with pytest.raises(ValueError, match="the parent has no Atlas"):
                    runtime.session(atlas_ids=wanted)
            for wanted in (None, [], ["com.example.tests"]):
                assert runtime.session(atlas_ids=wanted).facts.atlas_ids == parent.facts.atlas_ids


TESTS, DOOR = "com.example.tests", "com.example.door"


@pytest.mark.parametrize("above", [None, [TESTS], [TESTS, DOOR]])
@pytest.mark.parametrize("named", [None, [], [TESTS], [DOOR]])
@pytest.mark.parametrize("asked", [None, {}, {"atlas_ids": []}, {"atlas_ids": [TESTS]}, {"atlas_ids": [DOOR]}])
def test_a_session_goes_on_with_its_own_atlases(
    tmp_path: Path, above: list[str] | None, named: list[str] | None, asked: dict[str, Any] | None
) -> None:
    """Whether it had them from the session above, from what was said or from what it began by asking."""
    door = {"atlas_id": DOOR, "actions": [{"action_id": "door.open", "name": "d", "description": "d"}]}
    atlases = [Atlas.from_dict(manifest()), Atlas.from_dict(manifest(**door, policies=policies()))]
    with Runtime(atlases, trace=tmp_path) as runtime:
        parent = runtime.session("boss", atlas_ids=above) if above else None
        request = None if asked is None else asking(**asked)
        wanted = (asked or {}).get("atlas_ids") or named
        if above == [TESTS] and wanted == [DOOR]:
            with pytest.raises(ValueError, match="the parent has no Atlas"):
                runtime.session("bot", "Help", atlas_ids=named, parent=parent, request=request)
            return
        session = runtime.session("bot", "Help", atlas_ids=named, parent=parent, request=request)
        before, known = session.facts.atlas_ids, wanted or above or wanted
        session.detach()
        assert runtime.resume(session.id).facts.atlas_ids == before == (None if known is None else tuple(known))


def asking(agent_id: str = "bot", goal: str = "Help", **more: Any) -> Request:
    who = {"agent_id": agent_id, "session_id": new_id(), "parent_session_id": more.pop("parent", None)}
    task = {"goal": goal, "risk_tier": more.pop("risk_tier", "low")}
    return Request.model_validate({"request_id": new_id(), "requester": who, "task": task, **more})


def test_a_session_that_begins_with_a_request_is_the_one_it_names() -> None:
    """Its id, its facts and its tier are the request's; what is said beside it must be about the same."""
    with Runtime(looking_at("prod")) as runtime:
        asked = asking(risk_tier="high", context={"env": "prod", "a": "1"})
        session = runtime.session("bot", "Help", "medium", {"a": "2"}, request=asked)
        assert session.id == asked.requester.session_id
        assert session.facts.risk_tier == "high"
        assert session.facts.context == {"env": "prod", "a": "2"}
        assert session.resolution.request_id == asked.request_id
        for wrong in ({"agent_id": "other"}, {"goal": "Else"}, {"session_id": new_id()}, {"parent": session}):
            given = {"agent_id": "bot", "goal": "Help", **wrong}
            with pytest.raises(ValueError, match="request speaks of another"):
                runtime.session(**given, request=asking(parent=new_id()))
        with pytest.raises(ValueError, match="risk_tier"):
            runtime.session("bot", "Help", "none", request=asking())  # type: ignore[arg-type]


@pytest.mark.parametrize("by", ["resolve", "session"])
def test_a_request_below_a_session(by: str) -> None:
    """It has the facts, the tier, the Atlases and the budgets of that session, and ends with it."""
    few = {"policy_id": "few", "type": "budget", "parameters": {"max_cost": 1, "cost": 1}}
    with Runtime(Atlas.from_dict(manifest(policies=policies(few)))) as runtime:

        def begin(asked: Request) -> Session:
            if by == "session":
                return runtime.session("bot", "Help", request=asked)
            runtime.resolve(asked)
            found = runtime.find(asked.requester.session_id)
            assert found is not None
            return found

        parent = runtime.session("boss", risk_tier="high", context={"env": "prod"}, atlas_ids=["com.example.tests"])
        child = begin(asking(parent=parent.id, context={"more": "x"}))
        assert child.facts == parent.facts._replace(agent_id="bot", context={"env": "prod", "more": "x"})
        assert child.events[0].payload["metadata"]["parent_session_id"] == parent.id  # type: ignore[index]
        assert (runs(child), runs(parent)) == (True, False)
        for wrong in (asking(parent=parent.id, context={"env": "dev"}), asking(parent=new_id())):
            with pytest.raises(ValueError, match=r"parent's|no open session"):
                begin(wrong)
        parent.end()
        assert not child.is_open
        with pytest.raises(ValueError, match="no open session"):
            begin(asking(parent=parent.id))
