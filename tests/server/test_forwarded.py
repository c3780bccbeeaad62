"""For whom a proxy asks: believed from the addresses that an option names, and from nobody else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.server.serving import Process
from tests.server.test_program import cra

pytest.importorskip("uvicorn")
pytestmark = pytest.mark.slow  # every test starts programs, one after the other

Start = Callable[..., Process]
WRONG = {"x-api-key": "cra_00000000_" + "0" * 43}


def with_a_key(start: Start, *options: str) -> Process:
    """A server that asks who somebody is."""
    server = start()
    place = ("--trace", str(server.folder / "traces"))
    assert cra("apikeys", "create", "ann", "--role", "admin", *place).returncode == 0
    server.stop()
    server.options = options
    server.start()
    return server


def failed(server: Process, forwarded: Callable[[int], str]) -> list[int]:
    """The answers to twelve wrong keys, each sent with what ``forwarded`` says."""
    with httpx.Client(base_url=server.url, headers=WRONG) as client:
        return [client.get("/v1/sessions", headers={"x-forwarded-for": forwarded(n)}).status_code for n in range(12)]


def test_nobody_is_believed(process: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve tries from this machine are of one address, whatever they say, and whatever uvicorn's variable says."""
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    server = with_a_key(process)
    assert failed(server, lambda n: f"192.0.2.{n}") == [401] * 10 + [429] * 2


def test_a_named_proxy_is_believed(process: Start) -> None:
    """Each of its clients is counted by itself; what a client adds in front changes nothing."""
    server = with_a_key(process, "--forwarded-from", "127.0.0.1, ::1")
    assert failed(server, lambda n: f"192.0.2.{n}") == [401] * 12
    assert failed(server, lambda n: f"198.51.100.{n}, 203.0.113.9") == [401] * 10 + [429] * 2


def test_another_proxy_is_not(process: Start) -> None:
    """What the option names is all."""
    server = with_a_key(process, "--forwarded-from", "10.0.0.7,10.1.0.0/16")
    assert failed(server, lambda n: f"192.0.2.{n}") == [401] * 10 + [429] * 2


@pytest.mark.parametrize("given", ["proxy", "10.0.0.7,", "10.0.0.7 10.0.0.8", "*,10.0.0.7", "10.0.0.7/8"])
def test_what_names_nobody(tmp_path: Path, given: str) -> None:
    """A name would never match: it is refused, and not left out without a word."""
    place = ("--atlas", str(tmp_path), "--trace", str(tmp_path / "traces"))
    done = cra("serve", *place, "--forwarded-from", given)
    assert (done.returncode, "--forwarded-from names addresses" in done.stderr) == (2, True)
