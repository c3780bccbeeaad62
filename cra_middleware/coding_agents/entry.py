"""What a coding agent starts as its hook: ``python -I …/coding_agents/entry.py claude-code --atlas A --trace T``.

It is run by its path, so that nothing of this package is imported before somebody watches over it, and with ``-I``, so
that neither the environment nor the project's folder decides what is imported. The work is done in a forked child;
this process waits for its whole answer, and blocks the tool when none comes: after an exception, an import that fails,
a crash, a signal or a deadline. These agents block on exit code 2 only; 1, and what a signal leaves, would let the tool
run.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import sys
import time

DEADLINE_SECONDS = 25.0
"""Well below the time-out that ``cra hook install`` gives to the agent."""
BLOCKED = 2
_MAX_ANSWER = 1 << 20
_VALUES = ("--approvals", "--atlas", "--deadline", "--project", "--trace")


class RefusedError(Exception):
    """The hook gives no answer; the message says why."""


def main() -> None:
    """Answer one event, and leave."""
    code, out = BLOCKED, b""
    try:
        signal.signal(signal.SIGTERM, _interrupted)
        signal.signal(signal.SIGHUP, _interrupted)
        code, out, err = _watched(sys.argv[1:])
    except RefusedError as error:
        err = f"CRA: {error}; the tool must not run".encode(errors="replace")
    except BaseException as error:  # noqa: BLE001  whatever it was, the tool must not run
        err = f"CRA: the hook failed ({type(error).__name__}); the tool must not run".encode()
    _leave(code, out, err)


def _leave(code: int, out: bytes, err: bytes) -> None:
    """Say it, and end at once: nothing that runs at an exit may change the code."""
    try:
        _write(2, err)
        _write(1, out)
    except BaseException:  # noqa: BLE001  an answer that was not heard is none
        code = BLOCKED
    finally:
        os._exit(code)


def _watched(argv: list[str]) -> tuple[int, bytes, bytes]:
    options = _read(argv)
    deadline = time.monotonic() + float(options["--deadline"][-1] if options["--deadline"] else DEADLINE_SECONDS)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _work(options, writing)
    os.close(writing)
    data, wait = b"", os.WNOHANG
    try:
        while len(data) <= _MAX_ANSWER:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([reading], [], [], left)[0]:
                raise RefusedError("no answer came in time")
            part = os.read(reading, 1 << 16)
            if not part:
                wait = 0  # it is ending: nothing of it stays behind
                return _answer(data)
            data += part
        raise RefusedError("the answer has no end")
    finally:
        os.kill(child, signal.SIGKILL)  # it has answered, or it is too late
        os.waitpid(child, wait)


def _answer(data: bytes) -> tuple[int, bytes, bytes]:
    """An answer is whole or none: a head with its lengths, and exactly that much."""
    head, _, rest = data.partition(b"\n")
    fields = head.split()
    if len(fields) != 3 or not all(field.isdigit() for field in fields):
        raise RefusedError("the deciding process died without an answer")
    code, size, other = (int(field) for field in fields)
    if len(rest) != size + other or code not in (0, BLOCKED):
        raise RefusedError("the deciding process died in the middle of its answer")
    return code, rest[:size], rest[size:]


def _work(options: dict[str, list[str]], writing: int) -> None:
    """In the child: decide, tell the parent, end."""
    try:
        gc.disable()  # it lives for one event
        os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"  # to look for them costs a walk over all that is installed
        quiet = os.open(os.devnull, os.O_RDWR)
        os.dup2(quiet, 1)  # what a library prints is no part of an answer
        os.dup2(quiet, 2)
        try:
            code, out, err = _decided(options)
        except BaseException as error:  # noqa: BLE001  an import, a recursion, no memory: the parent has to hear of it
            code, out, err = BLOCKED, b"", f"CRA: the hook failed ({type(error).__name__}: {error})".encode()[:2000]
        _write(writing, b"%d %d %d\n%b%b" % (code, len(out), len(err), out, err))
    finally:
        os._exit(0)


def _decided(options: dict[str, list[str]]) -> tuple[int, bytes, bytes]:
    _find_package()
    from cra_middleware.coding_agents.answering import MAX_EVENT_BYTES, Options, answer

    last = {name: values[-1] if values else "" for name, values in options.items()}
    atlases = options["--atlas"] or [os.environ.get("CRA_ATLAS", "")]
    trace = last["--trace"] or os.environ.get("CRA_TRACE", "")
    if not all(atlases) or not trace:
        return BLOCKED, b"", b"CRA: the hook names no Atlas (--atlas) or no folder for traces (--trace)"
    approvals = last["--approvals"] or os.environ.get("CRA_APPROVALS", "")
    asked = Options(last["agent"], tuple(atlases), trace, approvals, last["--project"])
    with open(0, "rb", closefd=False) as stdin:
        said = answer(asked, stdin.read(MAX_EVENT_BYTES + 1))
    return said.code, said.stdout.encode(errors="replace"), said.stderr.encode(errors="replace")


def _find_package() -> None:
    """Import the package that this file is a part of, and no other of its name."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    here = [path for path in sys.path if os.path.isdir(os.path.join(path, "cra_middleware"))]
    if here[:1] != [root]:
        sys.path.insert(0, root)


def _read(argv: list[str]) -> dict[str, list[str]]:
    """The command line: one agent, and options with a value each."""
    found: dict[str, list[str]] = {name: [] for name in (*_VALUES, "agent")}
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        name, has_value, value = word.partition("=")
        if not word.startswith("-"):
            found["agent"].append(word)
        elif name not in _VALUES or not (has_value or rest):
            raise RefusedError(f"{word[:80]!r} is no option of this hook")
        else:
            found[name].append(value if has_value else rest.pop(0))
    if len(found["agent"]) != 1:
        raise RefusedError("the hook's command names no agent, or several")
    return found


def _interrupted(number: int, frame: object) -> None:
    raise RefusedError(f"signal {number} came")


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


if __name__ == "__main__":
    main()
