"""The pytest plugin, in a pytest of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ATLAS = Path(__file__).resolve().parents[1] / "examples" / "atlases" / "support"
USER_TEST = """
import pytest

from cra_middleware import CallRefused

def test_calls(cra_runtime, cra_calls):
    with cra_runtime.session("bot") as session:
        with pytest.raises(CallRefused):
            session.call("ticket.delete", lambda ticket_id: None, "T-1")
        session.call("ticket.get", lambda ticket_id: None, "T-1")
        with pytest.raises(CallRefused):
            session.call("order.cancel", lambda order_id, reason: None, "A-1", "x")
    cra_calls.assert_denied("ticket.delete", "policy_denied")
    cra_calls.assert_allowed("ticket.get")
    cra_calls.assert_asked("order.cancel")
    for wrong in (cra_calls.assert_denied, cra_calls.assert_asked):
        with pytest.raises(AssertionError, match="ticket.get: wanted"):
            wrong("ticket.get")
    with pytest.raises(AssertionError, match="it was not called"):
        cra_calls.assert_allowed("refund.create")
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "pytest.ini").write_text(f"[pytest]\ncra_atlas = {ATLAS}\ntestpaths = checks\n")
    (tmp_path / "checks").mkdir()
    (tmp_path / "checks" / "test_user.py").write_text(USER_TEST)
    return tmp_path


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_cases_and_fixtures(project: Path) -> None:
    """A plain ``pytest`` runs the user's tests and the Atlas's eighteen cases."""
    done = run(project)
    assert "19 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
def test_a_case_that_differs_fails(project: Path) -> None:
    """With what was expected and what was decided, and no stack."""
    folder = project / "atlas"
    subprocess.run(["cp", "-r", str(ATLAS), str(folder)], check=True)
    (folder / "tests" / "more.yaml").write_text("- {call: ticket.delete, args: {ticket_id: T-1}, expect: allow}\n")
    (project / "pytest.ini").write_text("[pytest]\ncra_atlas = atlas\n")
    done = run(project)
    assert "expected allow, got deny: Tickets are kept for audit" in done.stdout
    assert "1 failed, 19 passed" in done.stdout
    (folder / "tests" / "more.yaml").write_text("- {cal: x}\n")
    assert "more.yaml#/0" in run(project).stdout


@pytest.mark.slow
def test_a_misspelt_path_is_an_error(project: Path) -> None:
    """A run without a case must not look like one in which all passed, also when one file is named."""
    (project / "pytest.ini").write_text("[pytest]\ncra_atlas = atlases/suport\n")
    for arguments in ((), ("checks/test_user.py",)):
        done = run(project, *arguments)
        assert (done.returncode, "there is no Atlas in" in done.stderr) == (4, True), done.stdout + done.stderr


@pytest.mark.slow
def test_an_atlas_without_tests_is_told(project: Path) -> None:
    """Its fixtures work, and a warning is seen; a manifest may be named instead of its folder."""
    folder = project / "atlas"
    subprocess.run(["cp", "-r", str(ATLAS), str(folder)], check=True)
    (project / "pytest.ini").write_text("[pytest]\ncra_atlas = atlas/atlas.yaml\n")
    assert "19 passed" in run(project).stdout
    for file in (folder / "tests").iterdir():
        file.unlink()
    done = run(project)
    assert ("1 passed" in done.stdout, "the Atlas has no tests" in done.stdout) == (True, True), done.stdout


@pytest.mark.slow
def test_named_files_only(project: Path) -> None:
    """Whoever names a file gets that file."""
    assert "1 passed" in run(project, "checks/test_user.py").stdout


@pytest.mark.slow
def test_nothing_is_imported_without_need(tmp_path: Path) -> None:
    """In a project that names no Atlas, pytest loads the plugin and nothing of the package."""
    (tmp_path / "test_x.py").write_text(
        "import sys\ndef test_x():\n    assert 'cra_adapters.pytest_plugin' in sys.modules\n"
        "    assert 'cra_middleware' not in sys.modules\n"
    )
    assert "1 passed" in run(tmp_path).stdout
