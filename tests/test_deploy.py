"""The files of deploy/: they name what there is, and hold what they promise. No engine is needed."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import typer
import yaml

from cra_middleware.cli import app

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
if not DEPLOY.is_dir():
    pytest.skip("deploy/ is only in the repository", allow_module_level=True)
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
CONTAINERFILE = (DEPLOY / "Containerfile").read_text()
CADDYFILE = (DEPLOY / "Caddyfile").read_text()
UVICORN_IDLE_SECONDS = 5  # From: https://www.uvicorn.org/settings/#timeouts


def options() -> set[str]:
    """The environment variables of ``cra serve``."""
    command: Any = typer.main.get_command(app)
    return {str(parameter.envvar) for parameter in command.commands["serve"].params if parameter.envvar}


def environment() -> dict[str, str]:
    """What the image sets."""
    (line,) = re.findall(r"^ENV (.*)$", CONTAINERFILE, re.MULTILINE)
    return dict(part.split("=", 1) for part in line.split())


def test_what_the_image_is_made_of() -> None:
    """Every file that is copied is there, and so is every extra that is installed."""
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", CONTAINERFILE, re.MULTILINE)
    sources = [source for line in copied for source in line.split()]
    assert sources
    assert [source for source in sources if not (ROOT / source).exists()] == []
    (extras,) = re.findall(r"'\.\[(.*)\]'", CONTAINERFILE)
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras.split(",")) <= set(known)


@pytest.mark.parametrize("given", [environment(), COMPOSE["services"]["cra"]["environment"]], ids=["image", "compose"])
def test_options_are_known(given: dict[str, str]) -> None:
    """A misspelt one would be ignored without a word."""
    assert {name for name in given if name.startswith("CRA_")} <= options()


def test_names_agree() -> None:
    """The proxy asks the service that there is, at the port that the image listens on; the stores are services."""
    port = environment()["CRA_PORT"]
    assert f"dynamic a cra {port} " in CADDYFILE
    assert f"EXPOSE {port}\n" in CONTAINERFILE
    services = COMPOSE["services"]
    stores = [services["cra"]["environment"][name] for name in ("CRA_STORE", "CRA_COUNTERS")]
    assert [urlsplit(url).hostname for url in stores] == ["db", "redis"]
    assert (DEPLOY / services["cra"]["build"]["context"] / services["cra"]["build"]["dockerfile"]).is_file()


def test_only_the_proxy_is_reached() -> None:
    """Who is believed to speak for clients cannot be anybody, and the proxy reaches no store."""
    services = COMPOSE["services"]
    assert [name for name, service in services.items() if "ports" in service] == ["proxy"]
    assert {name: service["networks"] for name, service in services.items()} == {
        "proxy": ["front"],
        "cra": ["front", "back"],
        "db": ["back"],
        "redis": ["back"],
    }
    assert COMPOSE["networks"]["back"] == {"internal": True}
    assert services["cra"]["environment"]["CRA_FORWARDED_FROM"] == "*"


def test_a_server_may_do_little() -> None:
    """It is nobody, writes nowhere, and is given the time that its stop takes."""
    service = COMPOSE["services"]["cra"]
    assert re.search(r"^USER cra$", CONTAINERFILE, re.MULTILINE)
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert service["volumes"] == ["../atlases:/atlases:ro"]
    assert int(service["stop_grace_period"].removesuffix("s")) > 30


def test_the_proxy() -> None:
    """It logs no key, waits for no header for ever, and lets go of connections before the server does."""
    assert "request>headers>X-Api-Key delete" in CADDYFILE
    assert "read_header" in CADDYFILE
    (idle,) = re.findall(r"keepalive (\d+)s", CADDYFILE)
    assert int(idle) < UVICORN_IDLE_SECONDS
    assert "fail_duration" not in CADDYFILE  # a body that is too large looks like a failure of the server


def test_the_password_is_not_committed() -> None:
    """``deploy/.env``, which the pages have people write, is none of the repository's files."""
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()
