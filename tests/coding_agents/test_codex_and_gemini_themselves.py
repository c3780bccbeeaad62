"""Codex CLI and Gemini CLI themselves, offline, with scripted models and the hook as ``cra hook install`` puts it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from cra_middleware import verify
from cra_middleware.coding_agents.settings import command, installed
from tests.coding_agents.conftest import DEVELOPER
from tests.coding_agents.scripted_api import Call, Model, gemini, responses, serving

pytestmark = pytest.mark.slow  # each starts processes


def found(variable: str, package: str) -> str:
    """The CLI that ``variable`` names."""
    named = os.environ.get(variable)
    if named is None or not Path(named).is_file():
        pytest.skip(f"{package} is not here: install it with npm, and set {variable} to its command")
    return named


def hook_line(agent: str, tmp_path: Path) -> str:
    options = [("--atlas", str(DEVELOPER)), ("--trace", str(tmp_path / "traces"))]
    return command(agent, [*options, ("--project", str(tmp_path / "project"))])


def environment(home: Path) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": str(home), "CODEX_HOME": str(home), "CRA_TEST_KEY": "not-a-key"}


def run_codex(tmp_path: Path, line: str, calls: list[Call], *more: str) -> Model:
    codex = found("CRA_CODEX_CLI", "@openai/codex")
    project, home = tmp_path / "project", tmp_path / "home"
    project.mkdir(exist_ok=True)
    home.mkdir(exist_ok=True)
    (home / "hooks.json").write_text(installed("", "codex", line))
    with serving(responses, calls) as model:
        url = f"http://127.0.0.1:{model.port}/v1"
        provider = f'{{name="x",base_url="{url}",wire_api="responses",env_key="CRA_TEST_KEY",request_max_retries=0}}'
        words = [codex, "exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", *more]
        words += ["-m", "gpt-5-codex", "-c", f"model_providers.x={provider}", "-c", 'model_provider="x"', "go"]
        done = subprocess.run(
            words,
            cwd=project,
            env=environment(home),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    return model


def run_gemini(tmp_path: Path, line: str, calls: list[Call]) -> Model:
    cli = found("CRA_GEMINI_CLI", "@google/gemini-cli")
    project, home = tmp_path / "project", tmp_path / "home"
    (project / ".gemini").mkdir(parents=True, exist_ok=True)
    home.mkdir(exist_ok=True)
    settings = json.dumps({"security": {"auth": {"selectedType": "gemini-api-key"}}})
    (project / ".gemini" / "settings.json").write_text(installed(settings, "gemini", line))
    with serving(gemini, calls) as model:
        more = {"GEMINI_API_KEY": "not-a-key", "GOOGLE_GEMINI_BASE_URL": f"http://127.0.0.1:{model.port}"}
        done = subprocess.run(
            [cli, "-p", "go", "--approval-mode", "yolo", "-m", "gemini-2.5-flash"],
            cwd=project,
            env={**environment(home), **more, "GEMINI_CLI_TRUST_WORKSPACE": "true"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    return model


def outcomes(tmp_path: Path) -> list[str]:
    (file,) = (tmp_path / "traces").glob("*.trace.jsonl")
    assert verify(file).intact
    kinds = [json.loads(line)["event_type"] for line in file.read_bytes().splitlines()]
    return sorted(kind for kind in kinds if kind in ("action.executed", "action.failed", "action.denied"))


TRUSTED = "--dangerously-bypass-hook-trust"


def test_codex(tmp_path: Path) -> None:
    """What is allowed runs; what is denied, and what runs elsewhere, does not."""
    calls: list[Call] = [
        ("exec_command", {"cmd": "touch b.txt"}),
        ("exec_command", {"cmd": "pwd"}),
        ("exec_command", {"cmd": "ls", "workdir": "/etc"}),
        ("view_image", {"path": "/etc/passwd"}),
    ]
    model = run_codex(tmp_path, hook_line("codex", tmp_path), calls, TRUSTED)
    assert not (tmp_path / "project" / "b.txt").exists()
    assert "no_allow_policy" in model.results[0]
    assert str(tmp_path / "project") in model.results[1]
    assert "no_allow_policy" in model.results[2]
    assert "unknown_action" in model.results[3]
    assert outcomes(tmp_path) == ["action.denied"] * 3 + ["action.executed"]


@pytest.mark.parametrize(
    ("broken", "runs"), [("exit 1", True), ("/nowhere/python", True), ("exit 2", True), ("echo no >&2; exit 2", False)]
)
def test_codex_fails_open(tmp_path: Path, broken: str, runs: bool) -> None:
    """The hole of this agent: a command that cannot be started lets the tool run, so our entry always says why."""
    run_codex(tmp_path, f"{broken} # coding_agents/entry.py", [("exec_command", {"cmd": "touch b.txt"})], TRUSTED)
    assert (tmp_path / "project" / "b.txt").exists() is runs


def test_codex_runs_no_hook_that_nobody_trusted(tmp_path: Path) -> None:
    """The other hole: until a person has trusted it, the hook is not asked."""
    run_codex(tmp_path, hook_line("codex", tmp_path), [("exec_command", {"cmd": "touch b.txt"})])
    assert (tmp_path / "project" / "b.txt").exists()
    assert not (tmp_path / "traces").exists()


def test_gemini(tmp_path: Path) -> None:
    """What is allowed runs, what is denied does not; the end of the session seals the trace."""
    project = tmp_path / "project"
    calls: list[Call] = [
        ("write_file", {"file_path": str(project / "a.txt"), "content": "x"}),
        ("run_shell_command", {"command": "touch b.txt"}),
        ("write_file", {"file_path": str(project / ".gemini" / "other.json"), "content": "x"}),
    ]
    model = run_gemini(tmp_path, hook_line("gemini", tmp_path), calls)
    assert (project / "a.txt").read_text() == "x"
    assert not (project / "b.txt").exists()
    assert "no_allow_policy" in model.results[1]
    assert "not-your-keepers" in model.results[2]
    assert outcomes(tmp_path) == ["action.denied"] * 2 + ["action.executed"]


@pytest.mark.parametrize(
    ("broken", "runs"),
    [
        ("exit 1", True),
        ("echo no >&2; exit 1", True),
        ("exit 2", True),
        ("echo no >&2; exit 2", False),
        ("/nowhere/python", False),
    ],
)
def test_gemini_fails_open(tmp_path: Path, broken: str, runs: bool) -> None:
    """The hole of this agent: a silent failure, or 1, lets the tool run; our entry always says why, and leaves 2."""
    calls: list[Call] = [("write_file", {"file_path": str(tmp_path / "project" / "a.txt"), "content": "x"})]
    run_gemini(tmp_path, f"{broken} # coding_agents/entry.py", calls)
    assert (tmp_path / "project" / "a.txt").exists() is runs
