"""The installed script, as a shell runs it: exit codes, streams, pipes, terminals."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from fcntl import ioctl
from pathlib import Path
from struct import pack
from termios import TIOCSWINSZ

import pytest

from cra_middleware import __version__
from tests.cli.conftest import SCRIPT, Cra, Ran, environment, foreign, rewrite, script

pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="the console script is not installed")

Write = Callable[..., Path]


def on_terminal(*args: object, columns: int = 80) -> tuple[int, str]:
    """Runs the script with all three streams on a terminal."""
    child, terminal = pty.fork()
    if child == 0:  # pragma: no cover  the other process
        os.execve(SCRIPT, [str(SCRIPT), *map(str, args)], environment(TERM="xterm-256color"))
    ioctl(terminal, TIOCSWINSZ, pack("HHHH", 24, columns, 0, 0))
    output = b""
    while True:
        try:
            piece = os.read(terminal, 1 << 16)
        except OSError:  # Linux: the other side is gone
            break
        if not piece:
            break
        output += piece
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), output.decode().replace("\r\n", "\n")


def plain(text: str) -> str:
    """Without colours and cursor movements."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", text)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A trace of more than 8 MB."""
    path = tmp_path / "large.jsonl"
    path.write_bytes(b"".join(foreign(1, [{"n": n, "x": "y" * 100_000} for n in range(90)])))
    return path


@pytest.mark.slow
def test_version_and_help() -> None:
    """--version prints it; no arguments print the help; both exit 0 with nothing on stderr."""
    assert script("--version") == Ran(0, f"cra-middleware {__version__}\n", "")
    bare = script()
    assert (bare.code, bare.stderr) == (0, "")
    assert bare.stdout == script("--help").stdout
    assert all(word in bare.stdout for word in ("atlas", "check", "trace"))


@pytest.mark.parametrize(
    "command",
    [
        ("atlas", "validate"),
        ("atlas", "show"),
        ("check",),
        ("trace", "verify"),
        ("trace", "show"),
        ("trace", "export"),
        ("trace", "import"),
    ],
)
def test_every_help_has_an_example_and_the_exit_codes(cra: Cra, command: tuple[str, ...]) -> None:
    """--help teaches: an example to copy, and what the exit code means."""
    ran = cra(*command, "--help")
    assert ran.code == 0
    assert f"Example:  cra {' '.join(command)} " in ran.stdout
    assert "Exit code:" in ran.stdout


def test_python_m_is_the_same() -> None:
    """python -m cra_middleware is cra."""
    done = subprocess.run([sys.executable, "-m", "cra_middleware", "--version"], capture_output=True, check=True)
    assert done.stdout.decode() == f"cra-middleware {__version__}\n"


def test_no_framework_is_imported() -> None:
    """The command line needs neither a framework's adapter nor, until it prints to a terminal, rich."""
    code = "import sys, cra_middleware.cli; print([n for n in sys.modules if n.split('.')[0] in sys.argv])"
    names = ["cra_adapters", "langchain", "langchain_core", "langgraph", "rich", "openai", "opentelemetry.sdk"]
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, check=True, text=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("args", [("nope",), ("trace", "nope"), ("trace", "verify"), ("check",), ("--nope",)])
def test_wrong_usage_is_exit_2(cra: Cra, args: tuple[str, ...]) -> None:
    """Unknown commands, missing arguments, unknown options: exit 2, a sentence on stderr, nothing on stdout."""
    ran = cra(*args)
    assert (ran.code, ran.stdout) == (2, "")
    assert "Error: " in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.slow
def test_exit_codes_and_streams(atlas: Path, recorded: Path) -> None:
    """0, 1, 2, 3 and 4 come out of the process, and findings and refusals are told apart by stream."""
    assert script("atlas", "validate", atlas).code == 0
    assert script("check", atlas, "ticket.get").code == 0
    assert script("check", atlas, "ticket.delete").code == 3
    assert script("check", atlas, "refund.create", "--args", "-", stdin=b'{"amount": 250}').code == 4
    assert script("check", "ticket.get", CRA_ATLAS=str(atlas)).code == 0
    assert script("trace", "verify", recorded).code == 0
    bad = script("check", recorded, "ticket.get")
    assert (bad.code, bad.stdout) == (1, "")
    usage = script("check", atlas, "ticket.get", "--args", "[]")
    assert (usage.code, usage.stdout) == (2, "")


def test_a_reader_that_goes_away(recorded: Path, large: Path) -> None:
    """`cra … | head` ends without a word on stderr, whether the pipe breaks in the middle or at the very end."""
    for options, reader, wanted in (
        (f"show --format json '{large}'", "head -c 100", 100),
        (f"verify '{recorded}'", "true", 0),
    ):
        command = f"'{SCRIPT}' trace {options} | {reader}"
        done = subprocess.run(["bash", "-c", command], capture_output=True, env=environment(), timeout=60, check=False)
        assert (len(done.stdout), done.stderr) == (wanted, b"")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_output_that_cannot_be_written(recorded: Path, large: Path) -> None:
    """A full disk is exit 1 and one sentence: an intact trace must not look verified when nothing was printed."""
    for command in (("verify", recorded), ("show", "--format", "json", large)):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [SCRIPT, "trace", *command], stdout=full, stderr=subprocess.PIPE, env=environment(), check=False
            )
        assert done.returncode == 1
        assert done.stderr == b"cra: the output cannot be written: No space left on device\n"


@pytest.mark.slow
def test_closed_streams(recorded: Path, tmp_path: Path) -> None:
    """Without stdout or stderr the exit code is still right, and nothing lands in a file that got their number."""
    for path, code, closed in ((recorded, 0, ">&-"), (tmp_path / "nowhere", 1, "2>&-"), (recorded, 0, ">&- 2>&- <&-")):
        done = subprocess.run(
            ["bash", "-c", f"'{SCRIPT}' trace verify '{path}' {closed}"], env=environment(), check=False
        )
        assert done.returncode == code


def test_a_terminal_that_is_not_utf_8(write_atlas: Write) -> None:
    """What the encoding lacks is escaped, not an error."""
    ran = script("atlas", "show", write_atlas(description="Größe"), PYTHONIOENCODING="ascii")
    assert ran.code == 0
    assert "Gr\\xf6\\xdfe" in ran.stdout


def test_colours_on_a_terminal_only(recorded: Path) -> None:
    """A terminal gets colours; a pipe gets the same words without, whatever TERM says."""
    code, seen = on_terminal("trace", "verify", recorded, columns=300)
    assert code == 0
    assert "\x1b[1;32mINTACT, SEALED\x1b[0m" in seen
    piped = script("trace", "verify", recorded, TERM="xterm-256color", FORCE_COLOR="1")
    assert "\x1b" not in piped.stdout
    assert "INTACT, SEALED" in piped.stdout


@pytest.mark.slow
def test_rows_wrap_below_their_own_beginning(atlas: Path, recorded: Path) -> None:
    """On a narrow terminal no row is wider than it, and nothing is lost."""
    for command in (("trace", "show", recorded), ("atlas", "show", atlas), ("check", atlas, "ticket.get")):
        code, seen = on_terminal(*command, columns=60)
        assert code == 0
        rows = plain(seen).splitlines()
        assert max(map(len, rows)) <= 60
        assert "".join(plain(seen).split()) == "".join(script(*command).stdout.split())


def test_a_hostile_name_on_a_terminal(write_atlas: Write) -> None:
    """On a terminal, too, markup and escapes in an Atlas are shown as text."""
    rule = {"policy_id": "[blink]x[/]", "type": "deny", "parameters": {"reason": "\x1b[2J\x1b]0;title\x07 :smile:"}}
    code, seen = on_terminal("check", write_atlas(policies=[rule]), "ticket.get")
    assert code == 3
    assert "\x1b[2J" not in seen
    assert "\x1b]" not in seen
    assert "[blink]x[/]" in plain(seen)
    assert "\\x1b[2J\\x1b]0;title\\x07 :smile:" in plain(seen)


@pytest.mark.slow
def test_progress_for_a_large_file(large: Path, recorded: Path) -> None:
    """A large file shows how far its verification is, on a terminal's stderr; a small one, and a pipe, do not."""
    code, seen = on_terminal("trace", "verify", large)
    assert code == 0
    assert "verifying" in seen
    assert "MB" in seen
    assert "INTACT, NOT SEALED: the end may be missing (90 events, " in plain(seen)
    assert "verifying" not in on_terminal("trace", "verify", recorded)[1]
    piped = script("trace", "verify", large)
    assert (piped.code, piped.stderr) == (0, "")


def test_a_large_tampered_file(large: Path, cra: Cra) -> None:
    """Progress does not hide a verdict: a change in the middle is found."""
    rewrite(large, lambda lines: lines.__setitem__(45, lines[45].replace(b"yyy", b"yyz", 1)))
    code, seen = on_terminal("trace", "verify", large)
    assert code == 1
    assert "BROKEN at event 45: hash_mismatch" in plain(seen)
