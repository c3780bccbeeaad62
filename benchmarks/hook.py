"""What one event costs a coding agent: a whole process, from its start to its exit. Prints JSON.

Beside it stand the interpreter's own start and ``import pydantic``, without which none of it goes. Rows take turns
round by round; quote medians and the ratios. ``long`` is a session whose trace already holds ``--events`` events: each
process verifies all of them before it goes on.

    python benchmarks/hook.py [--rounds 15] [--events 10000]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from cra_middleware import Runtime
from cra_middleware.coding_agents import answering, entry
from cra_middleware.coding_agents.answering import Options

ATLAS = Path(__file__).resolve().parents[1] / "examples" / "atlases" / "developer"
NEEDS_NO = ("typer", "rich", "jinja2", "opentelemetry", "cryptography")


def event(name: str, session: str, call: str, folder: Path) -> bytes:
    """One of Claude Code's."""
    told = {"session_id": session, "cwd": str(folder), "hook_event_name": name, "tool_name": "Bash"}
    more = {"tool_input": {"command": "git status"}, "tool_use_id": call}
    return json.dumps({**told, **more}).encode()


def lengthen(trace: Path, session: str, folder: Path, events: int) -> None:
    """Give a session's trace so many events."""
    options = Options("claude-code", (str(ATLAS),), str(trace), project=str(folder))
    answering.answer(options, event("PreToolUse", session, "first", folder))
    (file,) = trace.glob("*.trace.jsonl")
    with Runtime(ATLAS, trace=trace, project=folder) as runtime:
        ours = runtime.resume(file.name.removesuffix(".trace.jsonl"), keep=True, renew=False)
        call = ours.freeze("file.find", "bench", {"path": str(folder)})
        while ours.accepted_sequence < events:
            ours.run(call, lambda: None)


def took(words: list[str], data: bytes = b"") -> float:
    """Milliseconds of one process."""
    began = time.perf_counter()
    done = subprocess.run(words, input=data, capture_output=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{words} left {done.returncode}: {done.stderr.decode()}")
    return (time.perf_counter() - began) * 1000


def loaded() -> list[str]:
    """What a decision has no use for, and loads all the same."""
    program = (
        f"import sys; import cra_middleware.coding_agents.answering; print([n for n in {NEEDS_NO} if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    found: list[str] = json.loads(done.stdout.replace("'", '"'))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--events", type=int, default=10_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        short, long = folder / "short", folder / "long"
        lengthen(long, "s", folder, given.events)
        python = [sys.executable, "-I"]
        hook = [*python, str(entry.__file__), "claude-code", "--atlas", str(ATLAS), "--project", str(folder), "--trace"]
        took([*hook, str(short)], event("PreToolUse", "s", "warm", folder))
        times: dict[str, list[float]] = {}
        for number in range(given.rounds):
            call = f"call-{number}"
            for row, words, data in (
                ("python -c pass", [*python, "-c", "pass"], b""),
                ("import pydantic", [*python, "-c", "import pydantic"], b""),
                ("first event", [*hook, str(short)], event("PreToolUse", f"new-{number}", call, folder)),
                ("before", [*hook, str(short)], event("PreToolUse", "s", call, folder)),
                ("after", [*hook, str(short)], event("PostToolUse", "s", call, folder)),
                ("before, long", [*hook, str(long)], event("PreToolUse", "s", call, folder)),
            ):
                times.setdefault(row, []).append(took(words, data))
    medians = {row: statistics.median(values) for row, values in times.items()}
    rows = {
        row: {
            "ms": round(median, 1),
            "min_ms": round(min(times[row]), 1),
            "ratio_to_python": round(median / medians["python -c pass"], 1),
            "ratio_to_pydantic": round(median / medians["import pydantic"], 1),
        }
        for row, median in medians.items()
    }
    about = {"python": platform.python_version(), "pydantic": version("pydantic"), "machine": platform.machine()}
    print(
        json.dumps(
            {**about, "rounds": given.rounds, "events": given.events, "loaded": loaded(), "rows": rows}, indent=2
        )
    )


if __name__ == "__main__":
    main()
