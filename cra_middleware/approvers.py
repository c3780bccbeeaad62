"""Ways to ask a person: at the terminal, or from another thread by a queue.

An approver is any callable that takes a ``Pending`` and gives a bool or an ``Answer``, sync or async. One that raises
has not answered: the call is refused, and the question stays open.
"""

from __future__ import annotations

import getpass
import json
import queue
import threading
import time

from cra_middleware._canonical import UnrepresentableError, canonical
from cra_middleware.approvals import Answer, Pending

_SHOWN = 400
"""Letters of one argument that a person is shown."""


class NoTerminalError(RuntimeError):
    """There is no terminal to ask on."""


def ask_on_terminal(pending: Pending) -> Answer:
    """Ask on the process's terminal, never on stdin, which a program may have filled.

    Whoever sits there is taken to speak for every group that the policy names.

    Raises:
        NoTerminalError: when there is none; the question stays open.
    """
    with Terminal() as terminal:
        for line in describe_pending(pending):
            terminal.say(line)
        by = person()
        approved = terminal.ask(f"Approve, as {by}? [y/N]").lower() in ("y", "yes")
        reason = None if approved else terminal.ask("Why not? (the agent is told)") or None
    return Answer(
        approved, by, reason, (*pending.approvers, *(name for names in pending.also_needed for name in names))
    )


class Terminal:
    """The process's own terminal: one file to read and one to write, because a terminal cannot seek."""

    def __init__(self) -> None:
        """Open it.

        Raises:
            NoTerminalError: when there is none.
        """
        try:
            self._in = open("/dev/tty", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115  closed on exit
            self._out = open("/dev/tty", "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115  the same
        except OSError:
            raise NoTerminalError("there is no terminal to ask on") from None

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *error: object) -> None:
        self._in.close()
        self._out.close()

    def say(self, text: str) -> None:
        """One line; nothing in it can steer the terminal."""
        print("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text), file=self._out)

    def ask(self, question: str) -> str:
        """What the person types."""
        print(question, file=self._out, end=" ", flush=True)
        return self._in.readline().strip()


def describe_pending(pending: Pending) -> list[str]:
    """A question as lines for a person."""
    lines = [
        f"{pending.agent_id} wants to call {pending.action_id} ({pending.tool_name})",
        f"  {pending.reason}  [policy {pending.policy_id}]",
    ]
    lines += [f"  {name}: {_shown(value)}" for name, value in pending.arguments.items()]
    for names in (pending.approvers, *pending.also_needed):
        if names:
            lines.append(f"  to be answered by {' or '.join(names)}")
    return lines


def person() -> str:
    """Who sits at this terminal: the login name."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user id without a name
        return "terminal"


def _shown(value: object) -> str:
    try:
        text = json.dumps(json.loads(canonical(value)), ensure_ascii=False)
    except (UnrepresentableError, ValueError, RecursionError):
        text = f"an object of type {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text)} letters)"


class ApprovalQueue:
    """An approver that waits until another thread answers: ``Runtime(approver=ApprovalQueue())``."""

    def __init__(self, timeout_seconds: float = 3600.0) -> None:
        """Wait for at most ``timeout_seconds``; after that the call is refused, and the question stays open."""
        self._timeout = timeout_seconds
        self._questions: queue.Queue[Pending] = queue.Queue()
        self._lock = threading.Lock()
        self._waiting: dict[str, queue.SimpleQueue[bool | Answer]] = {}

    def __call__(self, pending: Pending) -> bool | Answer:
        """Wait for the answer.

        Raises:
            TimeoutError: when nobody answers in time.
        """
        answers: queue.SimpleQueue[bool | Answer] = queue.SimpleQueue()
        with self._lock:
            self._waiting[pending.approval_id] = answers
        self._questions.put(pending)
        try:
            return answers.get(timeout=self._timeout)
        except queue.Empty:
            raise TimeoutError("nobody answered in time") from None
        finally:
            with self._lock:
                self._waiting.pop(pending.approval_id, None)

    def next(self, timeout_seconds: float | None = None) -> Pending | None:
        """The next question that still waits; None when there is none in time."""
        until = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while True:
            left = None if until is None else max(0.0, until - time.monotonic())
            try:
                pending = self._questions.get(timeout=left)
            except queue.Empty:
                return None
            with self._lock:
                if pending.approval_id in self._waiting:
                    return pending

    def answer(self, approval_id: str, answer: bool | Answer) -> bool:
        """Answer a question; False when it does not wait any more."""
        with self._lock:
            answers = self._waiting.get(approval_id)
        if answers is None:
            return False
        answers.put(answer)
        return True

    def waiting(self) -> tuple[str, ...]:
        """The ids of the questions that wait."""
        with self._lock:
            return tuple(self._waiting)
