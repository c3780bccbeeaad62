"""``cra hook``: into an agent's settings and out again, with nothing else touched."""

from __future__ import annotations

import json
import os
import shlex
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cra_middleware.coding_agents import settings as places
from cra_middleware.coding_agents.formats import MODULES
from cra_middleware.coding_agents.settings import SettingsError, installed, settings_file, uninstalled
from tests.cli.conftest import Cra, script
from tests.coding_agents.events import ENTRY, before

DEVELOPER = Path(__file__).resolve().parents[2] / "examples" / "atlases" / "developer"
LINE = "python -I /x/coding_agents/entry.py"
FOREIGN = {
    "claude-code": {"PreToolUse": [{"matcher": "Bash", "hooks": [{"type": "command", "command": "mine"}]}]},
    "codex": {"PreToolUse": [{"hooks": [{"type": "command", "command": "mine"}]}], "Stop": []},
    "gemini": {"BeforeTool": [{"matcher": "*", "hooks": [{"type": "command", "command": "mine", "name": "é"}]}]},
    "cursor": {"preToolUse": [{"command": "mine"}], "afterFileEdit": [{"command": "format"}]},
}
AGENTS = sorted(MODULES)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "a project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("CRA_TRACE", "CRA_APPROVALS", "CLAUDE_CONFIG_DIR", "CODEX_HOME"):
        monkeypatch.delenv(name, raising=False)
    return folder


def hooks_in(text: str) -> list[Any]:
    """Every hook with a command, wherever it stands."""
    found: list[Any] = []

    def look(value: Any) -> None:
        if isinstance(value, dict) and "command" in value:
            found.append(value)
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            look(item)

    look(json.loads(text))
    return found


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("indent", [None, "\t", "    "])
def test_there_and_back(agent: str, indent: str | None) -> None:
    """What is there stays; twice is once; the way back leads to the same text."""
    text = json.dumps({"theme": "é", "hooks": FOREIGN[agent], "last": 1}, indent=indent, ensure_ascii=False) + "\n"
    there = installed(text, agent, LINE)
    assert installed(there, agent, LINE) == there
    ours = [hook for hook in hooks_in(there) if hook["command"] == LINE]
    assert len(ours) == len(hooks_in(there)) - len(hooks_in(text)) >= 2
    assert list(json.loads(there)) == [*json.loads(text), *(["version"] if agent == "cursor" else [])]
    assert ("\n" in there.strip()) == (indent is not None)
    assert uninstalled(there, text) == text
    assert agent == "cursor" or uninstalled(there) == text
    assert json.loads(uninstalled(there))["hooks"] == FOREIGN[agent]
    moved = installed(there, agent, f"{LINE} --atlas other")
    assert len(hooks_in(moved)) == len(hooks_in(there))
    assert uninstalled(text) == text
    assert uninstalled(installed("", agent, LINE)) == ""


@pytest.mark.parametrize("agent", AGENTS)
@given(rest=st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text())))
def test_any_settings(agent: str, rest: dict[str, Any]) -> None:
    """Whatever else stands there comes back as it was."""
    rest.pop("hooks", None)
    rest.pop("disableAllHooks", None)
    there = installed(json.dumps(rest), agent, LINE)
    back = uninstalled(there)
    version = {"version": 1} if agent == "cursor" else {}
    assert (json.loads(back) if back else {}) in (rest, {**version, **rest}, {})


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "// a comment\n{}",
        '{"a": 1, "a": 2}',
        '{"hooks": []}',
        '{"hooks": {"PreToolUse": {}}}',
        '{"disableAllHooks": true}',
        "[" * 100_000,
    ],
)
def test_settings_that_are_left_alone(text: str) -> None:
    """What cannot be read as it is, is not written."""
    with pytest.raises(SettingsError):
        installed(text, "claude-code", LINE)


def test_a_failure_blocks_where_an_agent_can_be_told_so() -> None:
    """Beside exit code 2: Claude Code's onFailure, Cursor's failClosed, for the event before a tool."""
    assert json.loads(installed("", "claude-code", LINE))["hooks"]["PreToolUse"][0]["hooks"][0]["onFailure"] == "block"
    assert json.loads(installed("", "cursor", LINE))["hooks"]["preToolUse"][0]["failClosed"] is True
    for agent in AGENTS:
        for hook in hooks_in(installed("", agent, LINE)):
            assert hook["timeout"] == (60_000 if agent == "gemini" else 60)


def test_where_settings_are(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the project, in the user's folder, or where the agent's own variable says."""
    home = Path(os.environ["HOME"])
    assert settings_file("codex", project) == project / ".codex" / "hooks.json"
    assert settings_file("gemini", None) == home / ".gemini" / "settings.json"
    assert settings_file("cursor", None) == home / ".cursor" / "hooks.json"
    monkeypatch.setenv("CLAUDE_CONFIG_DIR", str(project / "x"))
    assert settings_file("claude-code", None) == project / "x" / "settings.json"


@pytest.mark.slow
@pytest.mark.parametrize("agent", AGENTS)
def test_install_and_uninstall(cra: Cra, project: Path, agent: str) -> None:
    """The command that is written works, from a folder with a blank in its name; the way back restores the file."""
    file = settings_file(agent, project)
    file.parent.mkdir()
    text = json.dumps({"hooks": FOREIGN[agent]}, indent=7)
    file.write_text(text)
    file.chmod(0o600)
    ran = cra("hook", "install", agent, "--atlas", DEVELOPER, "--trace", project / "traces", "--yes")
    assert ran.code == 0, ran.stderr
    assert "+" in ran.stdout
    assert "blocks what it cannot read" in ran.stdout
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.with_name(f"{file.name}.before-cra").read_text() == text
    again = cra("hook", "install", agent, "--atlas", DEVELOPER, "--trace", project / "traces", "--yes")
    assert "nothing to change" in again.stdout
    line = next(hook["command"] for hook in hooks_in(file.read_text()) if "entry.py" in hook["command"])
    assert line.split()[0] == sys.executable
    event = before(agent, "no-such-tool", {}, project)
    done = subprocess.run(line, shell=True, input=json.dumps(event).encode(), capture_output=True, check=False)
    assert done.returncode == 2
    assert b"no loaded Atlas declares the action" in done.stderr
    assert len(list((project / "traces").glob("*.trace.jsonl"))) == 1
    ran = cra("hook", "uninstall", agent, "--yes")
    assert ran.code == 0
    assert file.read_text() == text
    assert sorted(path.name for path in file.parent.iterdir()) == [file.name]
    assert "nothing to change" in cra("hook", "uninstall", agent, "--yes").stdout


def test_a_file_that_was_not_there_goes_again(cra: Cra, project: Path) -> None:
    """And a link stays a link."""
    assert cra("hook", "install", "codex", "--user", "--atlas", DEVELOPER, "--yes").code == 0
    file = settings_file("codex", None)
    assert "--project" not in file.read_text()
    assert str(Path(os.environ["HOME"]) / ".cra" / "traces") in file.read_text()
    assert cra("hook", "uninstall", "codex", "--user", "--yes").code == 0
    assert not file.exists()
    real = project / "real.json"
    real.write_text('{"a": 1}')
    link = settings_file("gemini", project)
    link.parent.mkdir()
    link.symlink_to(real)
    assert cra("hook", "install", "gemini", "--atlas", DEVELOPER, "--yes").code == 0
    assert link.is_symlink()
    assert "entry.py" in real.read_text()


def test_nothing_is_written_without_a_yes(cra: Cra, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody can be asked, the change is shown, and that is all."""
    done = subprocess.run(
        [Path(sys.executable).with_name("cra"), "hook", "install", "claude-code", "--atlas", DEVELOPER],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "onFailure" in done.stdout
    assert "nothing was written" in done.stderr
    assert not settings_file("claude-code", project).exists()


def test_what_cannot_be_installed(cra: Cra, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No Atlas, a broken one, unreadable settings, an installation that does not start."""
    assert cra("hook", "install", "codex", "--yes").code == 2
    assert cra("hook", "install", "codex", "--atlas", project / "nowhere", "--yes").code == 1
    assert cra("hook", "install", "nobody", "--atlas", DEVELOPER, "--yes").code == 2
    file = settings_file("codex", project)
    file.parent.mkdir()
    file.write_text("{ // mine\n}")
    ran = cra("hook", "install", "codex", "--atlas", DEVELOPER, "--yes")
    assert ran.code == 1
    assert "by hand" in ran.stderr
    assert file.read_text() == "{ // mine\n}"
    assert cra("hook", "uninstall", "codex", "--yes").code == 1
    file.unlink()
    monkeypatch.setattr(places.sys, "executable", "/bin/true")
    ran = cra("hook", "install", "codex", "--atlas", DEVELOPER, "--yes")
    assert ran.code == 1
    assert "does not work" in ran.stderr


@pytest.mark.slow
def test_run_by_hand(project: Path) -> None:
    """The same answer as the agent gets, in one process of the console script."""
    event = json.dumps(before("cursor", "Read", {"file_path": str(project / "a")}, project)).encode()
    options = ("--atlas", DEVELOPER, "--trace", project / "t", "--project", project)
    assert script("hook", "run", "cursor", *options, stdin=event).stdout == '{"permission":"allow"}'
    assert script("hook", "run", "cursor", *options, stdin=b"x").code == 2


def test_the_help_teaches(cra: Cra) -> None:
    """It names the steps, and the limit."""
    told = cra("hook", "--help").stdout
    assert "cra hook install claude-code" in told
    assert "account" in told
    assert Path(ENTRY).is_file()


def test_what_judges_the_agent_is_named_and_kept_apart(cra: Cra, project: Path) -> None:
    """The store of approvals is written down, whatever the environment says; what lies in the project is warned of."""
    ran = cra("hook", "install", "gemini", "--atlas", DEVELOPER, "--trace", project / "traces", "--yes")
    store = shlex.quote(str(project / "traces" / "approvals.db"))
    assert f"--approvals {store}" in hooks_in(settings_file("gemini", project).read_text())[0]["command"]
    assert "Keep it elsewhere" in ran.stdout
    ran = cra("hook", "install", "codex", "--atlas", DEVELOPER, "--trace", project.parent / "traces", "--yes")
    assert "Keep it elsewhere" not in ran.stdout
