"""Who may do what: every endpoint has a rule, and the rules hold."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from cra_middleware._ids import new_id
from cra_middleware.server.access import ROLES, ApiKeyError, Guard, make_key
from cra_middleware.server.faults import Fault
from cra_middleware.server.tokens import JwtTokens
from cra_middleware.testing import FrozenClock
from tests.conftest import NOON
from tests.server.serving import Caller, Serve, Served, code

jwt = pytest.importorskip("jwt")

# What each role may ask for at all; an admin everything. None is for everybody.
RULES: dict[str, set[str] | None] = {
    "POST /v1/sessions": {"agent"},
    "GET /v1/sessions": {"agent", "auditor"},
    "GET /v1/sessions/{session_id}": {"agent", "auditor"},
    "DELETE /v1/sessions/{session_id}": {"agent"},
    "POST /v1/sessions/{session_id}/end": {"agent"},
    "POST /v1/resolve": {"agent"},
    "GET /v1/tools": {"agent", "auditor"},
    "POST /v1/execute": {"agent"},
    "POST /v1/executions/reject": {"agent"},
    "POST /v1/executions/would-wait": {"agent"},
    "POST /v1/executions/{execution_id}/report": {"agent"},
    "GET /v1/approvals": {"agent", "approver", "auditor"},
    "GET /v1/approvals/{approval_id}": {"agent", "approver", "auditor"},
    "POST /v1/approvals/{approval_id}/approve": {"approver"},
    "POST /v1/approvals/{approval_id}/reject": {"agent", "approver"},
    "GET /v1/traces/{session_id}": {"agent", "auditor"},
    "PUT /v1/traces/{session_id}": {"agent"},
    "POST /v1/traces/{session_id}/verify": {"agent", "auditor"},
    "GET /v1/traces/{session_id}/verify": {"agent", "auditor"},
    "POST /v1/traces/{session_id}/note": {"agent"},
    "WebSocket /v1/traces/stream": {"agent", "auditor"},
    "GET /v1/atlases": {"agent", "approver", "auditor"},
    "POST /v1/atlases": {"admin"},
    "GET /v1/atlases/{atlas_id}": {"agent", "approver", "auditor"},
    "DELETE /v1/atlases/{atlas_id}": {"admin"},
    "GET /v1/health": None,
    "GET /health": None,
    "GET /v1/openapi.yaml": None,
}


def rule_of(route: Any) -> object:
    endpoint = route.endpoint
    return endpoint.cra_rule if hasattr(endpoint, "cra_rule") else endpoint.__self__.rule


def test_every_route_has_its_rule(served: Served) -> None:
    """No way in without one, and none that is not listed here; the pages for people are in ``test_pages``."""
    found = {route.name: rule_of(route) for route in served.app.routes if not route.name.startswith("page ")}
    assert {name: None if rule is None else set(rule) for name, rule in found.items()} == RULES


@pytest.mark.parametrize("role", ROLES)
def test_roles(served: Served, role: Any) -> None:
    """Each role is refused at exactly the endpoints that are not its own, before anything else is looked at."""
    caller = served.by(f"a-{role}", role)
    for name, roles in RULES.items():
        method, path = name.split(" ")
        if method == "WebSocket":
            continue
        path = path.format(session_id=uuid4(), execution_id=uuid4(), approval_id=uuid4(), atlas_id="com.example.none")
        answer = caller.ask(method, path)
        is_allowed = roles is None or role in roles or role == "admin"
        needs = answer.status_code == 403 and "needs the role" in answer.text
        assert needs is not is_allowed, f"{role} at {name}: {answer.status_code} {answer.text}"
        assert answer.status_code < 500


def test_nobody_comes_in_without_a_key(served: Served) -> None:
    """Nothing but health and the document is told to who does not say who it is."""
    nobody = Caller(served, {})
    for name, roles in RULES.items():
        method, path = name.split(" ")
        if method != "WebSocket" and roles is not None:
            answer = nobody.ask(method, path.format(session_id=1, execution_id=1, approval_id=1, atlas_id=1))
            assert code(answer) == (401, "UNAUTHORIZED"), name
            assert answer.headers["www-authenticate"] == "Bearer"
    health = nobody.get("/v1/health")
    assert health.status_code == 200
    assert "message" not in health.text  # which may name places


def test_health_while_nobody_can_be_known(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that cannot be looked up keep nobody from the health, which says nothing in full then."""
    bot = served.by("bot")

    def away(prefix: str) -> Any:
        raise ApiKeyError("the database is away")

    monkeypatch.setattr(served.keys, "by_prefix", away)
    assert code(bot.get("/v1/tools")) == (500, "STORAGE_LOCKED")
    health = bot.get("/v1/health")
    assert health.status_code == 200
    assert "message" not in health.text


def test_keys_that_do_not_count(served: Served) -> None:
    """Expired, revoked, changed by a letter, or none at all."""
    clock = served.clock
    bot = served.by("bot")
    expiring = served.by("short", expires_us=clock.wall_us() + 60_000_000)
    assert bot.get("/v1/tools").status_code == expiring.get("/v1/tools").status_code == 200
    clock.advance(61)
    assert code(expiring.get("/v1/tools")) == (401, "UNAUTHORIZED")
    text = served.texts["bot"]
    for wrong in (text[:-1], text + "x", text[:13], text[:12], "cra_", "", text.upper(), "x" * 5000):
        assert Caller(served, {"x-api-key": wrong}).get("/v1/tools").status_code == 401
        served.service.routes.guard._failures._failed.clear()
    assert Caller(served, {"authorization": f"Bearer {text}"}).get("/v1/tools").status_code == 200
    assert served.keys.revoke("bot", clock.wall_us())
    time.sleep(1.1)  # a key that was just looked up is believed for a second
    assert code(bot.get("/v1/tools")) == (401, "UNAUTHORIZED")
    assert not served.keys.revoke("bot", clock.wall_us())


def test_secrets_are_not_kept(served: Served) -> None:
    """Neither in the keys' file nor in what is listed."""
    text = served.key("bot")
    kept = b"".join(path.read_bytes() for path in (served.folder / "traces" / "server").glob("api-keys.db*"))
    assert text[13:].encode() not in kept
    assert text[13:] not in repr(served.keys.listed())


def test_too_many_failed_logins(served: Served) -> None:
    """After ten from one address it is told to wait; who has a key is heard all the same."""
    wrong = Caller(served, {"x-api-key": "cra_00000000_" + "x" * 43})
    answers = [wrong.get("/v1/tools") for _ in range(12)]
    assert [answer.status_code for answer in answers] == [401] * 10 + [429] * 2
    assert 0 < int(answers[-1].headers["retry-after"]) <= 60
    assert served.by("bot").get("/v1/tools").status_code == 200


def test_an_agent_s_key_is_bound(served: Served) -> None:
    """To agent ids and to Atlases."""
    support = served.by("support", agents=("support-*",), atlas_ids=("com.other.*",))
    assert code(support.post("/v1/sessions", {"agent_id": "bot", "goal": "g"})) == (403, "FORBIDDEN")
    asked = {"agent_id": "support-1", "goal": "g", "atlas_id": "com.example.tests"}
    assert code(support.post("/v1/sessions", asked)) == (404, "ATLAS_NOT_FOUND")
    assert support.get("/v1/tools").json()["actions"] == []
    assert support.get("/v1/atlases").json()["items"] == []
    assert support.get("/v1/atlases/com.example.tests").status_code == 404


def test_another_s_session_is_not_there(served: Served) -> None:
    """For another agent's key it is 404 everywhere; an auditor reads it; an admin ends it."""
    bot, other = served.by("bot"), served.by("other")
    name = bot.session()
    for answer in (
        other.get(f"/v1/sessions/{name}"),
        other.ask("DELETE", f"/v1/sessions/{name}"),
        other.post(f"/v1/sessions/{name}/end"),
        other.get(f"/v1/traces/{name}"),
        other.post(f"/v1/traces/{name}/verify"),
        other.post(f"/v1/traces/{name}/note", {"error_code": "x", "message": "y"}),
        other.execute(name),
        other.post("/v1/resolve", request_of(served, name, "bot")),
        other.post("/v1/sessions", {"agent_id": "bot", "goal": "g", "parent_session_id": name}),
        bot.execute(name, agent_id="somebody"),
        bot.post("/v1/resolve", request_of(served, name, "somebody")),
        served.by("auditor", "auditor").get(f"/v1/sessions/{new_id()}"),
        other.get(f"/v1/approvals?session_id={name}"),
    ):
        assert code(answer) == (404, "SESSION_NOT_FOUND")
    assert other.get("/v1/sessions").json()["total"] == 0
    assert other.get("/v1/approvals").json()["items"] == []
    auditor = served.by("auditor", "auditor")
    assert auditor.get("/v1/sessions").json()["total"] == 1
    assert auditor.kinds(name)[0] == "session.started"
    assert auditor.ask("DELETE", f"/v1/sessions/{name}").status_code == 403
    assert served.by("boss", "admin").ask("DELETE", f"/v1/sessions/{name}").status_code == 204


def test_whose_it_is_outlives_the_index(served: Served) -> None:
    """The trace itself says who opened it."""
    bot, other = served.by("bot"), served.by("other")
    name = bot.session()
    served.stop()
    for file in (served.folder / "traces" / "server").glob("book.db*"):
        file.unlink()
    served.start()
    assert other.execute(name).status_code == 404
    assert bot.execute(name).status_code == 200
    assert bot.get(f"/v1/sessions/{name}").json()["goal"] == "Help"


def request_of(served: Served, session_id: str, agent_id: str) -> dict[str, Any]:
    return {
        "carp_version": "1.0",
        "request_id": str(uuid4()),
        "timestamp": served.now(),
        "operation": "resolve",
        "requester": {"agent_id": agent_id, "session_id": session_id},
        "task": {"goal": "Help"},
    }


@pytest.mark.parametrize("name", ["X-Forwarded-For", "x-forwarded-host", "Forwarded", "x-real-ip", "via"])
def test_without_keys_a_proxy_lets_nobody_in(serve: Serve, name: str) -> None:
    """A proxy on this machine comes from loopback, perhaps under its name: whom it asks for is somebody else."""
    told = {name: "192.0.2.7", "host": "127.0.0.1:8420"}
    anyone = Caller(serve(with_keys=False), told)
    for path in ("/v1/sessions", "/v1/health", "/"):
        assert anyone.get(path).status_code == 403, path
    assert "make a key" in anyone.get("/v1/sessions").json()["error"]["message"]
    bot = serve().by("bot")
    assert bot.get("/v1/sessions", headers=told).status_code == 200


def test_pages_of_other_sites_get_nothing(serve: Serve) -> None:
    """A browser that is led to this server carries the page's origin; without keys, only localhost is answered."""
    served = serve(with_keys=False)
    anyone = Caller(served, {})
    assert anyone.get("/v1/sessions").status_code == 200
    assert code(anyone.post("/v1/sessions", {}, headers={"origin": "http://evil.example"})) == (403, "FORBIDDEN")
    assert code(anyone.get("/v1/sessions", headers={"host": "evil.example"})) == (403, "FORBIDDEN")
    assert code(anyone.get("/v1/health", headers={"host": "evil.example"})) == (403, "FORBIDDEN")
    same = anyone.post("/v1/sessions", {"agent_id": "a", "goal": "g"}, headers={"origin": "http://localhost"})
    assert same.status_code == 201
    assert "access-control-allow-origin" not in same.headers
    plain = anyone.post("/v1/sessions", content=b'{"agent_id":"a","goal":"g"}', headers={"content-type": "text/plain"})
    assert code(plain) == (415, "UNSUPPORTED_MEDIA_TYPE")


# Bearer tokens


class OneKey:
    """A provider's public keys, without a network."""

    def __init__(self, key: Any) -> None:
        self.key = key

    def get_signing_key_from_jwt(self, token: str | bytes) -> Any:
        return self.key


@pytest.fixture(scope="module")
def provider() -> tuple[Any, JwtTokens]:
    from cryptography.hazmat.primitives.asymmetric import rsa

    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = jwt.PyJWK(json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(private.public_key())) | {"alg": "RS256"})
    return private, JwtTokens(OneKey(public), issuer="https://issuer.example", audience="cra")


def claims(**more: Any) -> dict[str, Any]:
    now = int(time.time())
    return {
        "iss": "https://issuer.example",
        "aud": "cra",
        "sub": "bot",
        "exp": now + 600,
        "roles": ["agent", "king"],
        **more,
    }


def test_a_token_counts(provider: tuple[Any, JwtTokens], serve: Serve) -> None:
    """Its claims are the caller: without agent_ids it may be what its subject is named, and nothing else."""
    private, tokens = provider
    caller = tokens.caller(jwt.encode(claims(), private, "RS256"))
    assert (caller.name, caller.roles, caller.agent_ids) == ("bot", frozenset({"agent"}), ("bot",))
    assert tokens.caller(jwt.encode(claims(sub="*"), private, "RS256")).may_be("anything") is False
    wide = tokens.caller(jwt.encode(claims(agent_ids=["a-*"], atlas_ids=[], groups="x y"), private, "RS256"))
    assert (wide.may_be("a-1"), wide.may_be("bot"), wide.may_use("any"), wide.groups) == (
        True,
        False,
        False,
        ("x", "y"),
    )
    served = serve(with_keys=False, tokens=tokens)
    bot = Caller(served, {"authorization": "Bearer " + jwt.encode(claims(), private, "RS256")})
    assert bot.execute(bot.session()).status_code == 200
    assert bot.post("/v1/sessions", {"agent_id": "other", "goal": "g"}).status_code == 403


def test_tokens_that_do_not_count(provider: tuple[Any, JwtTokens], serve: Serve) -> None:
    """Unsigned, signed with a shared secret, of another issuer or audience, expired, without expiry or subject."""
    private, tokens = provider
    now = int(time.time())
    signed = jwt.encode(claims(), private, "RS256")
    head, body, mark = signed.split(".")
    wrong = [
        jwt.encode(claims(), None, "none"),
        jwt.encode(claims(), "s" * 64, "HS256"),
        jwt.encode(claims(iss="https://other.example"), private, "RS256"),
        jwt.encode(claims(aud="other"), private, "RS256"),
        jwt.encode(claims(exp=now - 60), private, "RS256"),
        jwt.encode(claims(nbf=now + 600), private, "RS256"),
        jwt.encode({key: value for key, value in claims().items() if key != "exp"}, private, "RS256"),
        jwt.encode({key: value for key, value in claims().items() if key != "sub"}, private, "RS256"),
        f"{head}.{body}.",
        f"{head}.{body}.{mark[::-1]}",
        "a.b.c",
        "\x00",
    ]
    for token in wrong:
        with pytest.raises(Fault) as refused:
            tokens.caller(token)
        assert refused.value.code == "UNAUTHORIZED", token
    served = serve(with_keys=False, tokens=tokens)
    unsigned = Caller(served, {"authorization": f"Bearer {wrong[0]}"})
    assert code(unsigned.get("/v1/tools")) == (401, "UNAUTHORIZED")


def test_what_a_provider_must_be() -> None:
    """Its keys come over TLS, and it is known for whom its tokens are."""
    with pytest.raises(ValueError, match="https"):
        JwtTokens("http://issuer.example/jwks", issuer="i", audience="a")
    with pytest.raises(ValueError, match="audience"):
        JwtTokens(OneKey(None), issuer="i", audience="")


def test_keys_are_made_with_care(tmp_path: Path) -> None:
    """A name is used once for ever; an agent's key says for whom."""
    for name, roles, agents in (("a:b", ["agent"], ["*"]), ("", ["agent"], ["*"]), ("a", [], []), ("a", ["agent"], [])):
        with pytest.raises(ValueError, match="key"):
            make_key(name, roles, 0, agent_ids=agents)  # type: ignore[arg-type]


def test_a_guard_without_keys_knows_nobody_else() -> None:
    """Who needs not say who they are may be anybody, under one name."""
    guard = Guard(None, None, FrozenClock(NOON).wall_us)
    assert guard.caller({}, "127.0.0.1").is_local
