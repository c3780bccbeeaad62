"""A runner for the command line, and Atlases and traces to run it on."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from cra_middleware import Atlas, CallRefused, Runtime
from cra_middleware.cli import app
from cra_middleware.testing import FrozenClock
from tests.cli.browser import NAMES, Browser, find
from tests.conftest import NOON, manifest, policies
from tests.evidence.fixtures import made_plain as made_plain
from tests.evidence.fixtures import made_signed as made_signed
from tests.evidence.fixtures import plain as plain
from tests.evidence.fixtures import signed as signed
from tests.evidence.fixtures import spans as spans

COMMAND = get_command(app)
SCRIPT = Path(sys.executable).with_name("cra")
HOSTILE = "\x1b[31mred\x07[bold]x[/bold]\u202eabc\x9b\x7f\nnext\r\ud800"
"""What a terminal, rich or a careless printer would act on."""

RULES = policies(
    {"policy_id": "no-delete", "type": "deny", "actions": ["*.delete"], "parameters": {"reason": "Never."}},
    {
        "policy_id": "ask-refund",
        "type": "require_approval",
        "actions": ["refund.*"],
        "conditions": {"parameters": {"properties": {"amount": {"exclusiveMinimum": 100}}, "required": ["amount"]}},
    },
    {
        "policy_id": "slow-list",
        "type": "rate_limit",
        "actions": ["ticket.list"],
        "parameters": {"max_calls": 1, "window_seconds": 60},
    },
)


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """The one document on stdout; Infinity and NaN are no JSON."""
        return json.loads(self.stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


Cra = Callable[..., Ran]


@pytest.fixture
def cra(monkeypatch: pytest.MonkeyPatch) -> Cra:
    """Runs a command in this process; anything but a clean exit is an error."""
    monkeypatch.delenv("CRA_ATLAS", raising=False)
    # typer would make the commands anew for each run, which costs more than most runs
    monkeypatch.setattr("typer.testing._get_command", lambda _: COMMAND, raising=False)

    def run(*args: object, stdin: str = "") -> Ran:
        result = CliRunner().invoke(app, [str(arg) for arg in args], input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Ran(result.exit_code, result.stdout, result.stderr)

    return run


def environment(**extra: str) -> dict[str, str]:
    """This process's, without what would change the script's behaviour."""
    unwanted = ("COLUMNS", "CRA_ATLAS", "NO_COLOR", "PYTHONUNBUFFERED")
    return {key: value for key, value in os.environ.items() if key not in unwanted} | extra


def script(*args: object, stdin: bytes = b"", **extra: str) -> Ran:
    """Runs the installed console script."""
    env = environment(**extra)
    done = subprocess.run([SCRIPT, *map(str, args)], input=stdin, capture_output=True, env=env, timeout=60, check=False)
    return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture
def write_atlas(tmp_path: Path) -> Callable[..., Path]:
    """Writes an Atlas folder: the named parts over the tests' manifest."""

    def write(name: str = "atlas", **parts: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        text = json.dumps(manifest(**{"policies": RULES, **parts}))
        (folder / "atlas.json").write_text(text)
        return folder

    return write


@pytest.fixture
def atlas(write_atlas: Callable[..., Path]) -> Path:
    return write_atlas()


def boom(amount: object) -> None:
    raise ValueError("secret")


def look(amount: object) -> object:
    return amount


CALLS: Sequence[tuple[str, Callable[[object], object], object]] = (
    ("ticket.get", look, 1),
    ("ticket.delete", look, 1),
    ("refund.create", look, 250),
    ("ticket.list", look, 1),
    ("ticket.list", look, 1),
    ("ticket.update", boom, 1),
)


@pytest.fixture
def recorded(tmp_path: Path) -> Iterator[Path]:
    """The trace of one ended session with an allowed, a denied, an asked, a limited and a failed call."""
    with Runtime(
        Atlas.from_dict(manifest(policies=RULES)), trace=tmp_path / "traces", clock=FrozenClock(NOON)
    ) as runtime:
        with runtime.session("bot", "Answer ticket 42", "high", external_id="thread-7") as session:
            for action, tool, amount in CALLS:
                with contextlib.suppress(CallRefused, ValueError):
                    session.call(action, tool, amount)
        yield tmp_path / "traces" / f"{session.id}.trace.jsonl"


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find()
    if program is None:
        message = f"no browser: none of {', '.join(NAMES)} is installed"
        if os.environ.get("CRA_REQUIRE_SERVICES") == "1":
            pytest.fail(message)
        pytest.skip(message)
    started = Browser(program, tmp_path_factory.mktemp("browser"))
    yield started
    started.close()


def rewrite(path: Path, change: Callable[[list[bytes]], object]) -> None:
    """Edit a trace line by line, the way a forger would."""
    lines = path.read_bytes().splitlines(keepends=True)
    change(lines)
    path.write_bytes(b"".join(lines))


def an_id(number: int) -> str:
    return str(UUID(int=number))


def foreign(session: int, payloads: Sequence[dict[str, Any]], kind: str = "session.started") -> list[bytes]:
    """A chain as the published pseudo-code writes it (profile ``appendix-b``)."""
    previous, lines = "0" * 64, []
    for sequence, payload in enumerate(payloads):
        ids = [an_id(session * 1000 + sequence), an_id(1), an_id(2), an_id(session)]
        time = "2026-01-05T12:00:00.5Z"
        text = "".join(
            (
                "1.0",
                *ids,
                str(sequence),
                time,
                kind,
                json.dumps(payload, sort_keys=True, separators=(",", ":")),
                previous,
            )
        )
        event_hash = sha256(text.encode(errors="surrogatepass")).hexdigest()
        fields = {
            "payload": payload,
            "trace_version": "1.0",
            **dict(zip(("event_id", "trace_id", "span_id", "session_id"), ids, strict=True)),
            "parent_span_id": None,
            "sequence": sequence,
            "timestamp": time,
            "event_type": kind,
            "event_hash": event_hash,
            "previous_event_hash": previous,
        }
        lines.append(json.dumps(fields).encode() + b"\n")
        previous = event_hash
    return lines


def assert_harmless(text: str) -> None:
    """Nothing in ``text`` acts on a terminal."""
    assert [letter for letter in text if not letter.isprintable() and letter != "\n"] == []
