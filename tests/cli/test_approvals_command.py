"""``cra approvals``: a person at a terminal answers, whatever stdin holds."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest

from cra_middleware import Atlas, Runtime
from cra_middleware.errors import ApprovalRequired, CallRefused
from tests.cli.conftest import Cra
from tests.conftest import manifest, policies
from tests.trace.postgres_server import database

ASK = {"policy_id": "ask", "type": "require_approval", "actions": ["refund.*"], "parameters": {"reason": "Large."}}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "approvals.db"


@pytest.fixture
def runtime(tmp_path: Path, store: Path) -> Runtime:
    atlas = Atlas.from_dict(manifest(policies=policies(ASK)))
    return Runtime(atlas, trace=tmp_path / "traces", approvals=store)


def pending(runtime: Runtime, session_id: str | None = None, amount: object = 250) -> tuple[str, str]:
    """Make a call that waits; its session and its approval."""
    session = runtime.resume(session_id) if session_id else runtime.session(agent_id="bot")
    with pytest.raises(ApprovalRequired) as asked:
        session.call("refund.create", lambda amount: "paid", amount)
    session.detach()
    assert asked.value.approval_id is not None
    return session.id, asked.value.approval_id


def on_terminal(*args: str, typed: str = "", stdin: bytes = b"") -> tuple[int, str]:
    """Run ``cra`` with a terminal of its own, on which ``typed`` is typed; its exit code, and what was shown there."""
    return python_on_terminal("-m", "cra_middleware", *args, typed=typed, stdin=stdin)


def python_on_terminal(*args: str, typed: str = "", stdin: bytes = b"") -> tuple[int, str]:
    """The same for any Python program."""
    master, slave = pty.openpty()
    program = (
        "import os,sys,fcntl,termios; os.setsid(); fcntl.ioctl(int(sys.argv[1]), termios.TIOCSCTTY, 0); "
        "os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(slave), *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=[slave],
    )
    os.write(master, typed.encode())
    out, _ = process.communicate(stdin, timeout=60)
    os.close(slave)
    shown = b""
    os.set_blocking(master, False)
    try:
        while chunk := os.read(master, 65536):
            shown += chunk
    except OSError:
        pass
    os.close(master)
    return process.returncode, (out + shown).decode()


ASK_ON_TERMINAL = """
from cra_middleware import Pending
from cra_middleware.approvals.approvers import ask_on_terminal
answer = ask_on_terminal(Pending(
    approval_id="a", session_id="s", agent_id="bot", action_id="a.b", tool_name="t",
    arguments={"text": "x\\x1b[2J"}, policy_id="p", reason="Why.", approvers=("leads",),
))
print("ANSWER", answer.approved, answer.reason, answer.groups)
"""


@pytest.mark.parametrize(
    ("typed", "answer"),
    [("y\n", "True None ('leads',)"), ("n\nNot now\n", "False Not now ('leads',)"), ("\n\n", "False None ('leads',)")],
)
def test_the_terminal_as_an_approver(typed: str, answer: str) -> None:
    """Asked where the person sits, whatever stdin holds; the arguments cannot steer the terminal."""
    code, shown = python_on_terminal("-c", ASK_ON_TERMINAL, typed=typed, stdin=b"y\n")
    assert (code, f"ANSWER {answer}" in shown) == (0, True), shown
    assert "\x1b[2J" not in shown


def test_a_question_too_long_for_the_terminal() -> None:
    """It is not asked, so nobody says yes to what was not shown."""
    program = ASK_ON_TERMINAL.replace('"x\\x1b[2J"', '"x" * 20_001')
    assert program != ASK_ON_TERMINAL
    code, shown = python_on_terminal("-c", program, typed="y\n")
    assert (code, "too long to be read here" in shown, "ANSWER" in shown) == (1, True, False), shown


def test_approving_shows_every_letter(runtime: Runtime, store: Path) -> None:
    """What stands at the end of a long argument is seen before the question."""
    _, name = pending(runtime, amount="x" * 5000 + " END")
    code, shown = on_terminal("approvals", "approve", name, "--store", str(store), typed="y\n")
    assert (code, shown.index("END") < shown.index("[y/N]")) == (0, True), shown


@pytest.mark.slow
def test_a_call_too_long_to_show(cra: Cra, runtime: Runtime, store: Path) -> None:
    """It is approved by who names the digest of what they read elsewhere, and by nobody else; anyone may say no."""
    _, name = pending(runtime, amount="x" * 20_001 + " END")
    approve = ("approvals", "approve", name, "--store", str(store))
    code, shown = on_terminal(*approve, typed="y\n")
    assert (code, "too many to be read here" in shown, "[y/N]" in shown) == (1, True, False)
    assert runtime.approvals.list()[0].state == "pending"
    read = cra("approvals", "show", name, "--store", store, "--format", "json").json
    assert str(read["arguments"]).endswith("END'}")
    code, shown = on_terminal(*approve, "--digest", "0" * 64, typed="y\n")
    assert (code, "not the digest" in shown, "[y/N]" in shown) == (1, True, False)
    code, shown = on_terminal(*approve, "--digest", read["digest"], typed="y\n")
    assert (code, "those that you have read" in shown) == (0, True), shown


def test_list_and_show(cra: Cra, runtime: Runtime, store: Path) -> None:
    """What waits is listed with its reason, shown with its arguments, and the same as JSON."""
    assert cra("approvals", "list", "--store", store).stdout == "Nothing waits.\n"
    _, name = pending(runtime, amount="250\x1b[2J")
    listed = cra("approvals", "list", "--store", store)
    assert (listed.code, name[-8:] in listed.stdout, "Large." in listed.stdout) == (0, True, True)
    shown = cra("approvals", "show", name[-8:], "--store", store)
    assert "\x1b" not in shown.stdout
    assert "amount" in shown.stdout
    (one,) = cra("approvals", "list", "--store", store, "--format", "json").json
    assert (one["approval_id"], one["state"], one["agent_id"]) == (name, "pending", "bot")


def test_approve_on_the_terminal(runtime: Runtime, store: Path) -> None:
    """A person's y lets the identical call through, once, in a session that another process goes on with."""
    session_id, name = pending(runtime)
    code, shown = on_terminal("approvals", "approve", name, "--store", str(store), "--by", "ann", typed="y\n")
    assert (code, "bot wants to call refund.create" in shown) == (0, True), shown
    session = runtime.resume(session_id)
    assert session.call("refund.create", lambda amount: "paid", 250) == "paid"
    with pytest.raises(ApprovalRequired):
        session.call("refund.create", lambda amount: "paid", 250)
    approved = [event.payload for event in session.events if event.event_type == "action.approved"]
    assert [(item["approver"], item["approval_id"]) for item in approved] == [("ann", name)]


def test_reject_on_the_terminal(runtime: Runtime, store: Path) -> None:
    """The agent is told the reason."""
    session_id, name = pending(runtime)
    code, _ = on_terminal("approvals", "reject", name, "--store", str(store), "--reason", "Too much", typed="y\n")
    assert code == 0
    with pytest.raises(CallRefused, match="Too much"):
        runtime.resume(session_id).call("refund.create", lambda amount: "paid", 250)


@pytest.mark.parametrize("typed", ["n\n", "\n", "approve\n"])
def test_anything_but_yes_answers_nothing(runtime: Runtime, store: Path, typed: str) -> None:
    """The question stays open."""
    _, name = pending(runtime)
    code, shown = on_terminal("approvals", "approve", name, "--store", str(store), typed=typed)
    assert (code, "nothing was answered" in shown) == (1, True)
    assert runtime.approvals.list()[0].state == "pending"


def test_stdin_does_not_answer(runtime: Runtime, store: Path) -> None:
    """An agent with a shell can pipe a yes, but has no terminal of ours."""
    _, name = pending(runtime)
    done = subprocess.run(
        [sys.executable, "-m", "cra_middleware", "approvals", "approve", name, "--store", str(store)],
        input="y\n",
        capture_output=True,
        text=True,
        start_new_session=True,
    )
    assert done.returncode == 1
    assert "on a terminal" in done.stderr
    code, _ = on_terminal("approvals", "approve", name, "--store", str(store), typed="n\n", stdin=b"y\n")
    assert code == 1
    assert runtime.approvals.list()[0].state == "pending"


@pytest.mark.slow
def test_who_may_not(runtime: Runtime, store: Path) -> None:
    """The agent itself may not, and a guessed or used id is nobody's."""
    _, name = pending(runtime)
    code, shown = on_terminal("approvals", "approve", name, "--store", str(store), "--by", "BOT", typed="y\n")
    assert (code, "may not answer itself" in shown) == (1, True)
    code, shown = on_terminal("approvals", "approve", "0" * 36, "--store", str(store), typed="y\n")
    assert (code, "no approval ends with" in shown) == (1, True)
    runtime.approvals.approve(name, by="ann")
    code, shown = on_terminal("approvals", "approve", name, "--store", str(store), "--by", "ann", typed="y\n")
    assert (code, "is approved already" in shown) == (1, True)


def test_a_store_in_a_database(cra: Cra, tmp_path: Path) -> None:
    """The same commands; a database that is away, or a place that keeps no questions, is said so."""
    atlas = Atlas.from_dict(manifest(policies=policies(ASK)))
    with database() as conninfo:
        from psycopg.conninfo import conninfo_to_dict

        parts = conninfo_to_dict(conninfo)
        options = quote(str(parts["options"]))
        url = f"postgresql://{parts['user']}@{parts['host']}:{parts['port']}/{parts['dbname']}?options={options}"
        with Runtime(atlas, trace=tmp_path / "traces", approvals=url) as runtime:
            session_id, approval_id = pending(runtime)
            assert approval_id[-8:] in cra("approvals", "list", "--store", url).stdout
            code, shown = on_terminal("approvals", "approve", approval_id, "--store", url, "--by", "ann", typed="y\n")
            assert (code, "approved" in shown) == (0, True)
            session = runtime.resume(session_id)
            assert session.call("refund.create", lambda amount: "paid", 250) == "paid"
            assert "Nothing waits." in cra("approvals", "list", "--store", url).stdout
    away = cra("approvals", "list", "--store", "postgresql://cra:secret@127.0.0.1:1/none")
    assert (away.code, "cannot be used" in away.stderr, "secret" in away.stderr) == (1, True, False)
    assert "not in http://" in cra("approvals", "list", "--store", "http://cra:secret@x").stderr


def test_wrong_usage(cra: Cra, tmp_path: Path) -> None:
    """A missing store, and a file that is none."""
    assert cra("approvals", "list").code == 2
    assert cra("approvals", "list", "--store", tmp_path / "no.db").code == 1
    (tmp_path / "bad.db").write_text("not a database, but long enough to be read as one" * 50)
    bad = cra("approvals", "list", "--store", tmp_path / "bad.db")
    assert (bad.code, "is damaged" in bad.stderr) == (1, True)
