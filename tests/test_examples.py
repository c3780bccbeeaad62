"""The examples and every block of the README, run as a person would."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cra_middleware import Atlas, Runtime, verify
from cra_middleware.keys import generate_key
from cra_middleware.testing import FrozenClock
from tests.conftest import NOON, manifest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the examples in an empty folder."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    return tmp_path


def run(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "CRA_"))}
    return subprocess.run(
        [sys.executable, "-W", "error::UserWarning", *command],
        cwd=folder,
        env={**clean, **environment, "COLUMNS": "200"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_decorator_example(folder: Path) -> None:
    """Thirty lines without a framework: one call runs, one is refused, the trace is sealed."""
    done = run(folder, "examples/01_decorator.py")
    assert done.returncode == 0, done.stderr
    assert "never-delete" in done.stdout
    assert "INTACT, SEALED" in done.stdout
    assert len((folder / "examples/01_decorator.py").read_text().splitlines()) <= 40


def test_approvals_example(folder: Path) -> None:
    """It waits, runs once, and waits again."""
    done = run(folder, "examples/02_approvals.py")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["waits:", "250.00", "250.00", "251.00", "INTACT,"]


@pytest.mark.slow
def test_observe_example(folder: Path) -> None:
    """What was seen is proposed, and what the edited Atlas would have denied is said."""
    done = run(folder, "examples/03_observe.py")
    assert done.returncode == 0, done.stderr
    assert "  - allow: search.docs  # 2 calls by 1 agent" in done.stdout
    assert "delete_page" in done.stdout
    assert "1 of 3 calls would be decided otherwise" in done.stdout
    assert "search_docs would be denied" in done.stderr


@pytest.mark.parametrize(("flag", "refunded"), [("--approve", "250.00"), ("--reject", "0.00"), (None, "0.00")])
def test_quickstart(folder: Path, flag: str | None, refunded: str) -> None:
    """In one run: allowed, denied, invalid, failing and approved calls, and a sealed trace that says so."""
    pytest.importorskip("langchain", reason="the quickstart needs the langchain extra")
    done = run(folder, "examples/quickstart.py", *([flag] if flag else []))
    assert done.returncode == 0, done.stderr
    assert f"2 tickets are there, {refunded} was refunded" in done.stdout
    (file,) = (folder / "traces").glob("*.trace.jsonl")
    assert verify(file).sealed
    events = [json.loads(line) for line in file.read_bytes().splitlines()]
    outcomes = [
        (event["event_type"], event["payload"]["action_id"], event["payload"].get("code"))
        for event in events
        if event["event_type"] in ("action.executed", "action.failed", "action.denied")
    ]
    assert ("action.executed", "ticket.get", None) in outcomes
    assert ("action.executed", "ticket.close", None) in outcomes
    assert ("action.denied", "ticket.delete", "policy_denied") in outcomes
    assert ("action.denied", "refund.create", "invalid_parameters") in outcomes
    assert ("action.failed", "order.get", None) in outcomes
    assert (("action.executed", "refund.create", None) in outcomes) is (flag == "--approve")
    assert (("action.denied", "refund.create", "approval_rejected") in outcomes) is (flag == "--reject")
    waits = [event for event in events if event["payload"].get("effect") == "require_approval"]
    assert any(event["payload"]["action_id"] == "refund.create" for event in waits)


@pytest.mark.slow
@pytest.mark.parametrize(("answer", "refunded"), [("y", "250.00"), ("n", "0.00"), ("", "0.00")])
def test_quickstart_asks_on_a_terminal(folder: Path, answer: str, refunded: str) -> None:
    """On a terminal the person there is asked, and only y is a yes."""
    pytest.importorskip("langchain", reason="the quickstart needs the langchain extra")
    master, slave = pty.openpty()
    os.write(master, f"{answer}\n".encode())
    done = subprocess.run(
        [sys.executable, "examples/quickstart.py"], cwd=folder, stdin=slave, capture_output=True, text=True, timeout=120
    )
    os.close(slave)
    os.close(master)
    assert done.returncode == 0, done.stderr
    assert "Approve?" in done.stdout
    assert f"{refunded} was refunded" in done.stdout


PAGES = README + (ROOT / "docs" / "approvals.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGES, re.DOTALL)
PYTHON = [block for block in BLOCKS if "Runtime.connect" not in block]  # tests/client/test_frameworks.py has a server
SHELL = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines() if line]
RULES = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_readme_python(folder: Path, number: int) -> None:
    """Every Python block of the README, and of the page about approvals, runs."""
    block = PYTHON[number]
    if "cra_adapters" in block:
        pytest.importorskip("langchain", reason="this block needs the langchain extra")
    if "configure_otel" in block:
        pytest.importorskip("opentelemetry.sdk", reason="this block needs the otel extra")
    if "bot.key" in block:  # the command above it makes one
        generate_key(folder / "bot.key")
    done = run(folder, "-c", block)
    assert done.returncode == 0, done.stderr
    for comment in re.findall(r"print\(.*\)\s+# (.*)", block):
        assert comment in done.stdout


@pytest.mark.slow
def test_readme_shell(folder: Path) -> None:
    """The two set-up commands stand there as CI runs them; every other command works."""
    setups = [line for line in SHELL if line.startswith("pip install")]
    assert setups == [
        'pip install -e ".[langchain,otel]" && python examples/quickstart.py',
        'pip install -e ".[dev]" && pytest -n auto',
    ]
    assert run(folder, "examples/01_decorator.py").returncode == 0  # so that there are traces
    (signs,) = (block for block in PYTHON if "bot.key" in block)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    others = [line for line in SHELL if not line.startswith("pip install")]
    assert len(others) == 7
    for line in others:
        if line.startswith("cra trace head"):  # the block before it runs first
            assert run(folder, "-c", signs).returncode == 0
        done = subprocess.run(
            line, shell=True, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True
        )
        assert done.returncode == 0, (line, done.stdout, done.stderr)


def test_readme_rules() -> None:
    """The rules shown in the README compile, and decide what they say."""
    (block,) = RULES
    rules = yaml.safe_load(block)["rules"]
    schema = {"properties": {"amount": {"type": "number"}}, "required": ["amount"]}
    names = ("ticket.get", "ticket.list", "order.get", "refund.create", "mail.send")
    actions = [{"action_id": name, "name": name, "description": name} for name in names]
    actions[3]["parameters_schema"] = schema  # type: ignore[assignment]
    atlas = Atlas.from_dict({**manifest(actions=actions, policies=[]), "rules": rules})
    with Runtime(atlas, clock=FrozenClock(NOON)) as runtime:
        told = {
            amount: type(runtime.explain("refund.create", {"amount": amount}).decision).__name__ for amount in (50, 101)
        }
        assert told == {50: "Allow", 101: "Ask"}
    with Runtime(atlas, clock=FrozenClock("2026-01-05T23:00:00+01:00")) as runtime:
        assert runtime.explain("refund.create", {"amount": 5}).decision.policy_id == "deny-refund-create-2"


def test_readme_links() -> None:
    """Every relative link of the README leads somewhere."""
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
