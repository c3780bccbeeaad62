"""The interpreter ends in the middle: what was accepted is there, and another process goes on with the session."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from cra_middleware import Atlas, Runtime, verify
from tests.conftest import manifest

ROOT = Path(__file__).resolve().parents[2]

HEAD = """
import asyncio, os, signal, sys, threading
from cra_middleware import Atlas, Runtime
from tests.conftest import manifest
runtime = Runtime(Atlas.from_dict(manifest()), trace=sys.argv[1], handle_sigterm={handle_sigterm})
session = runtime.session()
def call():
    session.call("ticket.get", lambda: None)
for _ in range(100):
    call()
print(session.id, flush=True)
"""

ENDS = {
    "the end of the program": ("", 0),
    "sys.exit": ("sys.exit(3)", 3),
    "an exception": ("raise LookupError('of the program')", 1),
    "os._exit": ("os._exit(4)", 4),
    "SIGTERM": ("os.kill(os.getpid(), signal.SIGTERM); signal.pause()", -signal.SIGTERM),
    "SIGKILL": ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    "sys.exit inside a tool": ("session.call('ticket.list', lambda: sys.exit(5))", 5),
    "a thread that calls": (
        """
        begun = threading.Event()
        from cra_middleware.errors import SessionEnded
        def work():
            try:
                while True:
                    call()
                    begun.set()
            except SessionEnded:  # the exit has let go of it
                pass
        threading.Thread(target=work, daemon=True).start()
        begun.wait()
        sys.exit(6)
        """,
        6,
    ),
    "a thread inside a tool": (
        """
        begun = threading.Event()
        def tool():
            begun.set()
            threading.Event().wait()
        threading.Thread(target=lambda: session.call("ticket.get", tool), daemon=True).start()
        begun.wait()
        sys.exit(7)
        """,
        7,
    ),
    "a stream that is open": (
        """
        from cra_middleware import governed
        @governed("ticket.list")
        def items():
            yield 1
            yield 2
        with session:
            stream = items()
            next(stream)
            sys.exit(8)
        """,
        8,
    ),
    "Ctrl-C in asyncio.run": (
        """
        async def tool():
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(30)
        async def main():
            await asyncio.gather(*(session.acall("ticket.get", tool) for _ in range(3)))
        try:
            asyncio.run(main())
        except KeyboardInterrupt:
            sys.exit(9)
        """,
        9,
    ),
    "a forked child that exits": (
        """
        pid = os.fork()
        if pid == 0:
            sys.exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        call()
        sys.exit(10)
        """,
        10,
    ),
}


def run(folder: Path, body: str, *, handle_sigterm: bool = False) -> tuple[int, str, str]:
    """A program's exit code, the id of its session, and what it complained of."""
    program = HEAD.format(handle_sigterm=handle_sigterm) + textwrap.dedent(body)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
    )
    return done.returncode, done.stdout.strip(), done.stderr


def go_on(folder: Path, session_id: str) -> None:
    """What was accepted is there, unsealed; another process ends it."""
    path = folder / f"{session_id}.trace.jsonl"
    (verdict,) = verify(path).sessions
    assert verdict.intact
    assert not verdict.sealed
    assert verdict.events >= 302
    with Runtime(Atlas.from_dict(manifest()), trace=folder) as runtime:
        runtime.resume(session_id).call("ticket.get", lambda: None)
    (verdict,) = verify(path).sessions
    assert str(verdict) == "INTACT, SEALED"


FEW = ("a thread that calls",)
"""The ends that are tried by default."""


@pytest.mark.parametrize("how", [pytest.param(how, marks=() if how in FEW else pytest.mark.slow) for how in ENDS])
def test_exits(tmp_path: Path, how: str) -> None:
    """However a program ends, its code is its own, nothing of ours is printed, and the session can be resumed."""
    body, code = ENDS[how]
    returned, session_id, complaint = run(tmp_path, body)
    assert returned == code, complaint
    assert "cra_middleware" not in complaint.replace("LookupError", "")
    if how == "an exception":
        assert complaint.endswith("LookupError: of the program\n")
    else:
        assert complaint == ""
    if how == "a stream that is open":  # its session was left by `with`, and so it was ended
        assert verify(tmp_path / f"{session_id}.trace.jsonl").sealed
    else:
        go_on(tmp_path, session_id)


@pytest.mark.parametrize("how", [pytest.param("the end of the program", marks=pytest.mark.slow), "SIGTERM"])
def test_sigterm_that_is_handled(tmp_path: Path, how: str) -> None:
    """With handle_sigterm=True the program leaves as by sys.exit(143); otherwise nothing changes."""
    body, _ = ENDS[how]
    returned, session_id, complaint = run(tmp_path, body, handle_sigterm=True)
    assert returned == (143 if how == "SIGTERM" else 0)
    assert complaint == ""
    durable = int((tmp_path / f"{session_id}.durable").read_bytes())
    assert durable == len((tmp_path / f"{session_id}.trace.jsonl").read_bytes().splitlines())
    go_on(tmp_path, session_id)
