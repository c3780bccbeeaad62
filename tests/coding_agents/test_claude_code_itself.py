"""Claude Code itself, offline, with a scripted model and the hook as ``cra hook install`` puts it there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from cra_middleware import verify
from cra_middleware.coding_agents.settings import command, installed
from tests.coding_agents.conftest import DEVELOPER
from tests.coding_agents.scripted_api import Call, Model, anthropic, serving

pytestmark = pytest.mark.slow  # each starts processes


@pytest.fixture(scope="module")
def claude() -> str:
    """The CLI: named by CRA_CLAUDE_CLI, or the one that claude-agent-sdk brings."""
    named = os.environ.get("CRA_CLAUDE_CLI")
    spec = find_spec("claude_agent_sdk")
    if named is None and spec is not None and spec.origin is not None:
        named = str(Path(spec.origin).parent / "_bundled" / "claude")
    if named is None or not Path(named).is_file():
        pytest.skip("Claude Code is not here: install claude-agent-sdk, or set CRA_CLAUDE_CLI to its path")
    return named


def run(claude: str, tmp_path: Path, line: str, calls: list[Call], settings: str = "") -> Model:
    """One session of the agent in ``tmp_path/project``, whose user allows every tool that is called."""
    project, home = tmp_path / "project", tmp_path / "home"
    (project / ".claude").mkdir(parents=True, exist_ok=True)
    home.mkdir(exist_ok=True)
    (project / ".claude" / "settings.json").write_text(settings or installed("", "claude-code", line))
    with serving(anthropic, calls) as model:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "CLAUDE_CONFIG_DIR": str(home),
            "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{model.port}",
            "ANTHROPIC_API_KEY": "not-a-key",
            "DISABLE_AUTOUPDATER": "1",
            "DISABLE_TELEMETRY": "1",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "ENABLE_TOOL_SEARCH": "false",
        }
        words = [claude, "-p", "go", "--model", "claude-sonnet-4-5", "--allowedTools", "Bash", "Write"]
        done = subprocess.run(
            words, cwd=project, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=120, check=False
        )
    assert done.returncode == 0, done.stderr
    return model


def test_calls_are_decided(claude: str, tmp_path: Path) -> None:
    """What is allowed runs, what is denied does not and says why, what needs a person waits; the trace is sealed."""
    project, trace = tmp_path / "project", tmp_path / "traces"
    options = [("--atlas", str(DEVELOPER)), ("--trace", str(trace)), ("--project", str(project))]
    calls: list[Call] = [
        ("Write", {"file_path": str(project / "a.txt"), "content": "x"}),
        ("Bash", {"command": "touch b.txt"}),
        ("Write", {"file_path": str(project / ".claude" / "settings.local.json"), "content": "{}"}),
        ("Bash", {"command": "pytest -q"}),
        ("Bash", {"command": "ls nowhere"}),
    ]
    model = run(claude, tmp_path, command("claude-code", options), calls)
    assert (project / "a.txt").read_text() == "x"
    assert not (project / "b.txt").exists()
    assert not (project / ".claude" / "settings.local.json").exists()
    assert "no_allow_policy" in model.results[1]
    assert str(trace) not in model.results[1]  # the model reads the reason, not the hook's command
    assert "belong to people" in model.results[2]
    assert "cra approvals approve" in model.results[3]
    (file,) = trace.glob("*.trace.jsonl")
    assert verify(file).sealed
    events = [json.loads(line) for line in file.read_bytes().splitlines()]
    told = [event["event_type"] for event in events if event["event_type"] in ("action.executed", "action.failed")]
    assert sorted(told) == ["action.executed", "action.failed"]


@pytest.mark.parametrize(
    "broken", ["kill -SEGV $$", "exit 1", "/nowhere/python -I hook.py", "sleep 3", "echo '{}'; exit 127"]
)
def test_a_broken_hook_blocks(claude: str, tmp_path: Path, broken: str) -> None:
    """The settings that are installed block when the hook crashes, is gone or is late."""
    settings = installed("", "claude-code", f"{broken} # coding_agents/entry.py").replace(": 60", ": 1")
    model = run(claude, tmp_path, "", [("Bash", {"command": "touch b.txt"})], settings)
    assert not (tmp_path / "project" / "b.txt").exists()
    assert 0 in model.results


def test_without_a_hook_it_would_run(claude: str, tmp_path: Path) -> None:
    """The scripted model and the user's permissions are such that only the hook stands in the way."""
    run(claude, tmp_path, "", [("Bash", {"command": "touch b.txt"})], "{}")
    assert (tmp_path / "project" / "b.txt").exists()


def test_an_installation_that_cannot_be_imported(claude: str, tmp_path: Path) -> None:
    """Our entry blocks by itself, also where the settings know no onFailure."""
    line = f"{sys.executable} -I -c 'import os; os._exit(2)'"
    entry = command("claude-code", [("--atlas", "/nowhere"), ("--trace", str(tmp_path / "t"))])
    for settings in (line, entry):
        text = installed("", "claude-code", f"{settings} # coding_agents/entry.py").replace("onFailure", "unknownKey")
        model = run(claude, tmp_path, "", [("Bash", {"command": "touch b.txt"})], text)
        assert not (tmp_path / "project" / "b.txt").exists()
    assert "could be decided" in model.results[0]
