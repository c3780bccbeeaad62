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
from collections.abc import Iterator

from cra_middleware._canonical import UnrepresentableError, canonical
from cra_middleware.approvals.approval import Answer, Pending

MAX_READ = 20_000
"""Letters of one question that a person can be expected to read at a terminal."""
_WIDTH = 100
"""Letters of an argument in one line."""


class NoTerminalError(RuntimeError):
    """There is no terminal to ask on."""


class TooLongToReadError(RuntimeError):
    """A question is longer than what a person reads at a terminal; nobody may say yes to what was not shown."""


def ask_on_terminal(pending: Pending) -> Answer:
    """Ask on the process's terminal, never on stdin, which a program may have filled.

    Whoever sits there is taken to speak for every group that the policy names.

    Raises:
        NoTerminalError: when there is none; the question stays open.
        TooLongToReadError: when it is longer than ``MAX_READ`` letters; it stays open, too.
    """
    with Terminal() as terminal:
        lines = describe_pending(pending)
        letters = sum(map(len, lines))
        if letters > MAX_READ:
            message = (
                f"{pending.agent_id} wants to call {pending.action_id} with {letters} letters of arguments, which is "
                "too long to be read here; keep approvals in a file, Runtime(approvals=FILE) without an approver, and "
                "answer with cra approvals show and approve"
            )
            terminal.say(message)
            raise TooLongToReadError(message)
        for line in lines:
            terminal.say(line)
        by = person()
        approved = terminal.ask(f"Approve {pending.action_id}, as {by}? [y/N]").lower() in ("y", "yes")
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
        print(_plain(text), file=self._out)

    def ask(self, question: str) -> str:
        """What the person types."""
        print(_plain(question), file=self._out, end=" ", flush=True)
        return self._in.readline().strip()


def describe_pending(pending: Pending) -> list[str]:
    """A question as lines for a person, whole: nobody can say yes to what was not shown."""
    lines = [
        f"{pending.agent_id} wants to call {pending.action_id} ({pending.tool_name})",
        f"  {pending.reason}  [policy {pending.policy_id}]",
    ]
    for name, value in pending.arguments.items():
        named = name if name.isidentifier() else _as_text(name)
        lines += _folded(_plain(f"{named}: {_as_text(value)}"))
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


def _folded(text: str) -> Iterator[str]:
    """One argument, in lines that cannot be taken for another's."""
    for begin in range(0, len(text), _WIDTH):
        yield ("    | " if begin else "  ") + text[begin : begin + _WIDTH]


def _as_text(value: object) -> str:
    try:
        return json.dumps(json.loads(canonical(value)), ensure_ascii=False)
    except (UnrepresentableError, ValueError, RecursionError):
        return f"an object of type {type(value).__name__}"


def _plain(text: str) -> str:
    """With whatever could steer a terminal, or cannot be seen, as an escape."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


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
