"""Whatever goes wrong in the hook, the tool does not run, in the terms of each agent."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cra_middleware import verify
from cra_middleware.coding_agents import answering, sittings
from cra_middleware.coding_agents.answering import Options, answer
from tests.coding_agents.events import AGENTS, ENTRY, Hook, after, before, blocks, passes, shell

pytestmark = pytest.mark.slow  # each starts processes

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def good(agent: str, hook: Hook) -> Any:
    tool, given_ = shell(agent, "git status", hook.project)
    return before(agent, tool, given_, hook.project)


@pytest.mark.parametrize("agent", AGENTS)
@given(data=st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
@settings(max_examples=60)
def test_any_bytes(agent: str, data: bytes) -> None:
    """No bytes that are no event are let pass, and nothing is raised."""
    said = answer(Options(agent, ("/nowhere",), "/nowhere"), data)
    assert said.code == 2
    assert said.stderr


@pytest.mark.parametrize("agent", AGENTS)
@given(key=st.sampled_from(range(12)), value=JSON)
@settings(max_examples=60)
def test_any_value_for_any_key(agent: str, key: int, value: Any) -> None:
    """An event with something else in one place is refused, or is an event still: then no Atlas is there."""
    event = before(agent, *shell(agent, "git status", "/"), "/")
    names = sorted(event)
    data = json.dumps({**event, names[key % len(names)]: value}).encode()
    here = os.getcwd()
    try:
        said = answer(Options(agent, ("/nowhere",), "/dev/null/x"), data)
    finally:
        os.chdir(here)  # it goes to where the tool runs
    assert said.code == 2
    assert said.stderr


@pytest.mark.parametrize("agent", AGENTS)
def test_a_process_that_cannot_read(real: Hook, agent: str) -> None:
    """As a process: what is no event, an unknown event, a key that stands there twice, too deep a nest, nothing."""
    twice = json.dumps(good(agent, real)).replace('"command":', '"command": "ls", "command":', 1).encode()
    for data in (b"", b"\xff{", b"[" * 100_000, {**good(agent, real), "hook_event_name": "Future"}, twice):
        assert blocks(agent, real.tell(agent, data)), data
    assert not list(real.trace.glob("*.trace.jsonl"))


@pytest.mark.parametrize("agent", AGENTS)
def test_no_atlas(real: Hook, agent: str, tmp_path: Path) -> None:
    """Missing, broken, or not named at all."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "atlas.yaml").write_text("atlas_id: [")
    for atlas in (tmp_path / "nowhere", broken):
        real.atlas = atlas
        assert blocks(agent, real.tell(agent, good(agent, real)))
    words = [sys.executable, "-I", ENTRY, agent]
    clean = {key: value for key, value in os.environ.items() if not key.startswith("CRA_")}
    done = subprocess.run(words, input=b"{}", capture_output=True, env=clean, check=False)
    assert blocks(agent, done)
    assert b"--atlas" in done.stderr


@pytest.mark.parametrize(
    "words",
    [[], ["claude"], ["codex", "cursor"], ["codex", "--atlas"], ["codex", "--what", "x"], ["codex", "--deadline", "x"]],
)
def test_wrong_usage(words: list[str]) -> None:
    """A command line that cannot be read blocks, too."""
    done = subprocess.run([sys.executable, "-I", ENTRY, *words], input=b"{}", capture_output=True, check=False)
    assert done.returncode == 2
    assert b"CRA" in done.stderr


def test_the_environment_names_the_atlas(real: Hook) -> None:
    """CRA_ATLAS and CRA_TRACE count where the command line says nothing."""
    done = subprocess.run(
        [sys.executable, "-I", ENTRY, "codex", "--project", str(real.project)],
        input=json.dumps(good("codex", real)).encode(),
        capture_output=True,
        env={**os.environ, "CRA_ATLAS": str(real.atlas), "CRA_TRACE": str(real.trace)},
        check=False,
    )
    assert passes("codex", done)
    assert len(list(real.trace.glob("*.trace.jsonl"))) == 1


SAYS = "import os\nfor fd in range(3, 20):\n  try: os.write(fd, {!r})\n  except OSError: pass\nos._exit(0)"
BREAKS = {
    "an import that fails": "import no_such_module",
    "a syntax error": "def (",
    "an exit": "raise SystemExit(0)",
    "an exit at once": "import os; os._exit(0)",
    "a crash": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "too deep": "def again(): again()\nagain()",
    "no memory": "raise MemoryError",
    "an interrupt": "raise KeyboardInterrupt",
    "a hang": "import time; time.sleep(60)",
    "a hang that holds the interpreter": "import re; re.match('(a+)+$', 'a' * 64 + 'b')",
    "half an answer": SAYS.format(b"0 10 0\nhalf"),
    "a foreign code": SAYS.format(b"1 0 0\n"),
    "a name that is not there": "",
}


@pytest.mark.parametrize("broken", BREAKS.values(), ids=BREAKS)
def test_a_broken_installation(broken: str, tmp_path: Path) -> None:
    """Whatever the package does when it is imported, its entry blocks, in time."""
    package = tmp_path / "cra_middleware" / "coding_agents"
    package.mkdir(parents=True)
    (tmp_path / "cra_middleware" / "__init__.py").write_text("")
    (package / "__init__.py").write_text("")
    shutil.copy(ENTRY, package / "entry.py")
    (package / "answering.py").write_text(broken)
    words = [sys.executable, "-I", str(package / "entry.py"), "codex", "--atlas=a", "--trace=t", "--deadline=1.5"]
    began = time.monotonic()
    done = subprocess.run(words, input=b"{}", capture_output=True, cwd=tmp_path, timeout=20, check=False)
    assert blocks("codex", done), done
    assert time.monotonic() - began < 10


def test_a_file_that_is_not_there() -> None:
    """Python itself leaves 2 for a script that it cannot open."""
    done = subprocess.run(
        [sys.executable, "-I", f"{ENTRY}.gone", "codex"], input=b"{}", capture_output=True, check=False
    )
    assert blocks("codex", done)


def test_the_project_decides_nothing_that_is_imported(real: Hook) -> None:
    """Modules in the folder where the agent works, or named in the environment, are not ours."""
    for name in ("json", "orjson", "pydantic", "sitecustomize", "cra_middleware"):
        (real.project / f"{name}.py").write_text("import os; os._exit(0)")
    event = good("codex", real)
    assert passes("codex", real.tell("codex", event, PYTHONPATH=str(real.project), PYTHONSTARTUP="x", PYTHONHOME=""))
    tool, given_ = shell("codex", "rm -rf /", real.project)
    done = real.tell("codex", before("codex", tool, given_, real.project), PYTHONPATH=str(real.project))
    assert blocks("codex", done)


def test_an_event_that_never_ends(real: Hook) -> None:
    """An agent that does not close stdin is answered at the deadline."""
    process = real.start("codex", "--deadline", "1")
    assert process.stdin is not None
    process.stdin.write(b"{")
    process.stdin.flush()
    assert process.wait(20) == 2
    process.stdin.close()
    process.stdin = None
    assert b"no answer came in time" in process.communicate()[1]


def _is_caught(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal, as Linux tells it."""
    status = Path(f"/proc/{pid}/status").read_text()
    (caught,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")]
    return bool(int(caught, 16) >> (number - 1) & 1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux which signals a process catches")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal(real: Hook, number: int) -> None:
    """Whoever asks the hook to stop gets a block."""
    process = real.start("codex")
    while not _is_caught(
        process.pid, signal.SIGHUP
    ):  # the last to be; a Python that has only just started can only die
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(20) == 2
    process.communicate()


def test_nobody_listens(real: Hook) -> None:
    """An allow that cannot be said is none."""
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.Popen(real.words("cursor"), stdin=subprocess.PIPE, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    process.communicate(json.dumps(good("cursor", real)).encode())
    assert process.returncode == 2


def test_a_session_that_is_busy(hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that waits for its session too long is blocked, and says so."""
    assert passes("codex", hook.tell("codex", good("codex", hook)))
    (file,) = (hook.trace / sittings.FOLDER).iterdir()
    with file.open("rb") as locked, monkeypatch.context() as patched:
        patched.setattr(answering, "LOCK_SECONDS", 0.05)
        fcntl.flock(locked, fcntl.LOCK_EX)
        done = hook.tell("codex", good("codex", hook))
    assert blocks("codex", done)
    assert b"busy for too long" in done.stderr
    assert passes("codex", hook.tell("codex", good("codex", hook)))


def test_a_trace_that_is_locked(hook: Hook) -> None:
    """Another writer has the trace itself."""
    assert passes("codex", hook.tell("codex", good("codex", hook)))
    (trace,) = hook.trace.glob("*.trace.jsonl")
    with trace.open("rb") as locked:
        fcntl.flock(locked, fcntl.LOCK_EX)
        assert blocks("codex", hook.tell("codex", good("codex", hook)))


def test_a_trace_that_was_changed(hook: Hook) -> None:
    """Nothing runs in a session whose trace does not verify, or whose own file says something else."""
    assert passes("codex", hook.tell("codex", good("codex", hook)))
    (trace,) = hook.trace.glob("*.trace.jsonl")
    whole = trace.read_bytes()
    changed = whole.replace(b'"action_id":"shell.at"', b'"action_id":"shell.ta"', 1)
    assert changed != whole
    trace.write_bytes(changed)
    assert blocks("codex", hook.tell("codex", good("codex", hook)))
    trace.write_bytes(whole)
    assert passes("codex", hook.tell("codex", good("codex", hook)))
    (file,) = (hook.trace / sittings.FOLDER).iterdir()
    file.write_text("../../etc")
    done = hook.tell("codex", good("codex", hook))
    assert blocks("codex", done)
    assert b"damaged" in done.stderr


@pytest.mark.parametrize("agent", ["claude-code", "cursor"])
def test_a_full_disk(real: Hook, agent: str) -> None:
    """What cannot be written down does not run; once there is room again, the same session goes on."""
    assert passes(agent, real.tell(agent, good(agent, real)))
    (trace,) = real.trace.glob("*.trace.jsonl")
    limit = trace.stat().st_size + 10  # as far as a file may grow: the next event does not fit
    done = subprocess.run(
        real.words(agent),
        input=json.dumps(good(agent, real)).encode(),
        capture_output=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        check=False,
    )
    assert blocks(agent, done)
    assert passes(agent, real.tell(agent, good(agent, real)))
    assert verify(trace).intact


def test_a_trace_folder_that_cannot_be(hook: Hook, tmp_path: Path) -> None:
    """A file where the folder should be."""
    (tmp_path / "file").write_text("")
    hook.trace = tmp_path / "file" / "traces"
    for event in (good("codex", hook), after("codex", *shell("codex", "ls", "/"), "/")):
        assert blocks("codex", hook.tell("codex", event))


def test_an_end_that_dies_halfway(hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sealed, but the agent's session still names it: the next call begins a new one, and is no error."""
    event = good("codex", hook)
    assert passes("codex", hook.tell("codex", event))
    (file,) = (hook.trace / sittings.FOLDER).iterdir()
    name = file.read_text()
    assert hook.tell("claude-code", {**good("claude-code", hook)}).returncode == 0
    file.write_text(f"{name} ending")
    assert passes("codex", hook.tell("codex", event))  # not sealed yet: gone on with
    assert len(list(hook.trace.glob("*.trace.jsonl"))) == 2
    from cra_middleware import Runtime

    with Runtime(hook.atlas, trace=hook.trace, project=hook.project) as runtime:
        runtime.resume(name).end()
    assert passes("codex", hook.tell("codex", event))
    assert len(list(hook.trace.glob("*.trace.jsonl"))) == 3
