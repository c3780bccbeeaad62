"""Bearer tokens of a provider whose keys come over a real connection: changed, away, broken, and forged."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.server
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.server.serving import Caller, Serve, code, listening

jwt = pytest.importorskip("jwt")
tokens_module = pytest.importorskip("cra_middleware.server.tokens")

ISSUER, AUDIENCE = "https://issuer.example", "cra"


class Provider:
    """An identity provider: it signs, and publishes its public keys."""

    def __init__(self) -> None:
        self.private: dict[str, Any] = {}
        self.published: list[Any] = []
        self.answer: tuple[int, dict[str, str], bytes] | None = None
        self.asked = 0
        self.hangs = threading.Event()
        provider = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.asked += 1
                if provider.hangs.is_set():
                    self.rfile.read(1)
                    return
                status, headers, body = provider.answer or (200, {}, json.dumps({"keys": provider.published}).encode())
                if not status:
                    return  # the line is closed without a word
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *told: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/jwks.json"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def make(self, kid: str, kind: str = "RSA") -> Any:
        """A new key, published."""
        from cryptography.hazmat.primitives.asymmetric import ec, rsa

        if kind == "RSA":
            private: Any = rsa.generate_private_key(public_exponent=65537, key_size=2048)
            public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(private.public_key()))
        else:
            private = ec.generate_private_key(ec.SECP256R1())
            public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(private.public_key()))
        self.private[kid] = private
        self.published.append(public | {"kid": kid, "use": "sig"})
        return private

    def withdraw(self, kid: str) -> None:
        self.published = [key for key in self.published if key["kid"] != kid]

    def token(self, kid: str | None, algorithm: str = "RS256", key: str | None = None, **more: Any) -> str:
        claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "bot", "exp": int(time.time()) + 600, "roles": ["agent"]}
        claims = {name: value for name, value in (claims | more).items() if value is not None}
        headers = {} if kid is None else {"kid": kid}
        return str(jwt.encode(claims, self.private[key or kid or "one"], algorithm, headers=headers))


@pytest.fixture
def provider() -> Iterator[Provider]:
    made = Provider()
    made.make("one")
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def tokens(provider: Provider) -> Any:
    return tokens_module.JwtTokens(provider.url, issuer=ISSUER, audience=AUDIENCE)


class Later:
    """A monotonic clock that a test moves on."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.seconds = 0.0
        inner = time.monotonic
        patch.setattr(time, "monotonic", lambda: inner() + self.seconds)


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Later:
    return Later(monkeypatch)


def by(served: Any, token: str) -> Caller:
    return Caller(served, {"authorization": f"Bearer {token}"})


def test_an_agent_in_python(provider: Provider, tokens: Any, serve: Serve) -> None:
    """Names itself by a token where a key would stand; a token that does not count is told so, and so is nobody."""
    from cra_middleware import CallRefused, Runtime

    served = serve(with_keys=False, tokens=tokens)
    with listening(served) as port:
        url = f"http://127.0.0.1:{port}"
        with Runtime.connect(url, api_key=provider.token("one")) as runtime, runtime.session("bot", "Help") as session:
            assert session.call("ticket.get", lambda: "open") == "open"
        for wrong, said in ((provider.token("one", aud="others"), "does not count"), (None, "name yourself")):
            with Runtime.connect(url, api_key=wrong) as runtime, pytest.raises(CallRefused, match=said):
                runtime.session("bot", "Help")


def test_a_key_changes(provider: Provider, tokens: Any, serve: Serve, later: Later) -> None:
    """The new one is fetched when a token names it; the old one counts no more once it is gone."""
    served = serve(with_keys=False, tokens=tokens)
    old = by(served, provider.token("one"))
    name = old.session()
    assert old.execute(name).status_code == 200
    provider.make("two")
    provider.withdraw("one")
    new = by(served, provider.token("two"))
    assert code(new.get("/v1/tools")) == (401, "UNAUTHORIZED")
    later.seconds += 31
    assert new.execute(name).status_code == 200  # whose session it is says the subject, not the key
    assert code(old.execute(name)) == (401, "UNAUTHORIZED")
    assert provider.asked == 2


def test_a_key_that_was_taken_away(provider: Provider, tokens: Any, serve: Serve, later: Later) -> None:
    """Counts no more after five minutes, although nobody named another one."""
    served = serve(with_keys=False, tokens=tokens)
    bot = by(served, provider.token("one"))
    assert bot.get("/v1/tools").status_code == 200
    provider.make("two")
    provider.withdraw("one")
    later.seconds += 301
    assert code(bot.get("/v1/tools")) == (401, "UNAUTHORIZED")


def test_tokens_that_name_no_key(provider: Provider, tokens: Any, serve: Serve) -> None:
    """Are not let in, and do not make the server ask for keys each time."""
    served = serve(with_keys=False, tokens=tokens)
    for kid in (None, "other", "", "../one", "x" * 5000):
        assert code(by(served, provider.token(kid, key="one")).get("/v1/tools")) == (401, "UNAUTHORIZED")
    assert provider.asked == 1


def forged(provider: Provider, head: dict[str, Any], secret: bytes | None) -> str:
    """A token whose head says what it wants."""
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "bot", "exp": int(time.time()) + 600, "roles": ["admin"]}
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (head, claims)]
    text = b".".join(parts)
    mark = b"" if secret is None else hmac.new(secret, text, hashlib.sha256).digest()
    return (text + b"." + base64.urlsafe_b64encode(mark).rstrip(b"=")).decode()


def test_forged_tokens(provider: Provider, tokens: Any, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unsigned, signed with the public key as a secret, with another kind of key, or with one of the sender's own."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    served = serve(with_keys=False, tokens=tokens)
    provider.make("curve", "EC")
    mine = Provider()
    mine.make("one")
    public = provider.private["one"].public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    now = int(time.time())
    wrong = [
        *(forged(provider, {"alg": name, "kid": "one"}, None) for name in ("none", "None", "NONE", "", "nOnE")),
        *(forged(provider, {"alg": "HS256", "kid": "one"}, secret) for secret in (pem, der, b"")),
        *(forged(provider, {"alg": "RS256", "kid": "one"}, secret) for secret in (None, pem)),
        forged(provider, {"kid": "one"}, None),
        forged(provider, {"alg": ["RS256"], "kid": "one"}, pem),
        forged(provider, {"alg": "RS256", "kid": ["one"]}, pem),
        forged(provider, {"alg": "RS256", "kid": "one", "crit": ["x"], "x": 1}, pem),
        forged(provider, {"alg": "RS256", "kid": "curve"}, pem),
        forged(provider, {"alg": "ES256", "kid": "one"}, pem),
        provider.token("curve", key="one"),
        provider.token("one", "ES256", key="curve"),
        mine.token("one"),
        jwt.encode({"roles": ["admin"]}, mine.private["one"], "RS256", headers={"kid": "one", "jku": mine.url}),
        provider.token("one", iss="https://other.example"),
        provider.token("one", iss=None),
        provider.token("one", aud="other"),
        provider.token("one", aud=None),
        provider.token("one", exp=now - 60),
        provider.token("one", exp=None),
        provider.token("one", exp="soon"),
        provider.token("one", nbf=now + 600),
        provider.token("one", iat=now + 600),
        provider.token("one", sub=None),
        provider.token("one") + "x",
        provider.token("one").rpartition(".")[0],
        "a.b.c",
        "..",
        "x" * 10_000,
    ]
    mine.server.shutdown()
    mine.server.server_close()
    for token in wrong:
        served.service.routes.guard._failures._failed.clear()
        answer = by(served, token).post("/v1/sessions", {"agent_id": "bot", "goal": "g"})
        assert code(answer) == (401, "UNAUTHORIZED"), token
        assert answer.headers["www-authenticate"] == "Bearer"
    assert by(served, provider.token("one")).get("/v1/sessions").json()["total"] == 0
    assert by(served, provider.token("curve", "ES256")).get("/v1/tools").status_code == 200
    assert mine.asked == 0


def test_a_clock_that_is_a_little_off(provider: Provider, tokens: Any) -> None:
    """Half a minute is forgiven, no more."""
    now = int(time.time())
    for more in ({"exp": now - 10}, {"nbf": now + 10}, {"iat": now + 10}):
        assert tokens.caller(provider.token("one", **more)).name == "bot"


@pytest.mark.parametrize(
    "answer",
    [
        (0, {}, b""),
        (200, {}, b"<html>sign in</html>"),
        (200, {}, b""),
        (200, {}, b"[]"),
        (200, {}, b'{"keys": []}'),
        (200, {}, b'{"keys": 1}'),
        (200, {}, b'{"keys": [1]}'),
        (200, {}, b"\xff\xfe"),
        (200, {"content-length": "10000"}, b'{"keys"'),
        (302, {"location": "/elsewhere.json"}, b""),
        (500, {}, b"{}"),
        (404, {}, b""),
    ],
)
def test_a_provider_that_cannot_answer(
    provider: Provider, tokens: Any, serve: Serve, later: Later, answer: Any
) -> None:
    """Nobody is let in, and nobody is to blame; who has a key of ours is heard; when it is back, tokens count."""
    served = serve(tokens=tokens)
    provider.answer = answer
    bot = by(served, provider.token("one"))
    for _ in range(12):
        told = bot.get("/v1/tools")
        assert code(told) == (503, "UNAVAILABLE")
        assert told.json()["error"]["recoverable"]
    assert 0 < int(told.headers["retry-after"]) <= 10
    assert provider.asked == 1
    assert served.by("keyed").get("/v1/tools").status_code == 200
    provider.answer = None
    later.seconds += 11
    assert bot.get("/v1/tools").status_code == 200


def test_a_provider_that_is_away(provider: Provider, tokens: Any, serve: Serve, later: Later) -> None:
    """Keys that are known count on for five minutes; then nobody is let in."""
    served = serve(with_keys=False, tokens=tokens)
    bot = by(served, provider.token("one"))
    assert bot.get("/v1/tools").status_code == 200
    provider.server.shutdown()
    provider.server.server_close()
    later.seconds += 31
    assert code(by(served, provider.token("new", key="one")).get("/v1/tools")) == (503, "UNAVAILABLE")
    assert bot.get("/v1/tools").status_code == 200
    later.seconds += 270
    assert code(bot.get("/v1/tools")) == (503, "UNAVAILABLE")


def test_a_provider_that_hangs(provider: Provider, tokens: Any, serve: Serve, later: Later) -> None:
    """One waits for it, and not for long; the others are answered at once."""
    tokens._keys.timeout = 0.3
    served = serve(with_keys=False, tokens=tokens)
    provider.hangs.set()
    bot = by(served, provider.token("one"))
    assert [code(bot.get("/v1/tools")) for _ in range(20)] == [(503, "UNAVAILABLE")] * 20
    assert provider.asked == 1
    provider.hangs.clear()
    later.seconds += 11
    assert bot.get("/v1/tools").status_code == 200
