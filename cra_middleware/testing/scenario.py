"""What an adapter is tried with: a scripted model, a few tools, and what has to come back from the real framework."""

# No `from __future__ import annotations`: frameworks read the tools' annotations, and some cannot resolve text.
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from cra_middleware.runtime import Runtime

Mode = Literal["sync", "async", "stream"]
Neighbour = Literal["retry", "change"]
Tool = Callable[..., Any]


@dataclass(frozen=True)
class Scripted:
    """A tool call that the scripted model makes."""

    tool: str
    arguments: Mapping[str, Any]
    call_id: str


@dataclass(frozen=True)
class Task:
    """One run of an agent, to be done with the real framework and a model that follows ``turns``."""

    runtime: Runtime
    turns: Sequence[Sequence[Scripted]]
    """What the model calls in each of its turns; then it says "done"."""
    tools: Sequence[Tool]
    """Plain Python functions; coroutine functions where the mode is not ``sync``."""
    mode: Mode = "async"
    agent: str = "worker"
    run: str | None = None
    """A thread's or conversation's id, for frameworks that know such a thing."""
    neighbour: Neighbour | None = None
    """``retry``: a neighbour of the adapter's that runs a failed call twice more. ``change``: one that, as late as the
    framework lets it, sets every argument ``amount`` to 500 and ``ticket_id`` to ``T-9``."""
    nested: "Task | None" = None
    """A second agent, which the tool ``delegate`` runs (or to which the call ``handoff`` hands over)."""
    pauses: bool = False
    """Let a call that needs a person stop the run, the framework's own way."""
    adds_context: bool = False
    """Filter the tools and add the Atlas's documents to the prompt, where the adapter can."""


@dataclass(frozen=True)
class Outcome:
    """How the run went."""

    seen: Sequence[str] = ()
    """What the model was given as the results of its calls, as text, in order."""
    final: str = ""
    """The model's last words."""
    error: BaseException | None = None
    """What the run raised, if it did."""
    shown: Sequence[str] = ()
    """The names of the tools that the model was shown in its first turn."""
    prompt: str = ""
    """The system prompt of its first turn."""
    paused: Any = None
    """Where the run stopped for a person: the framework's own state, serialised as far as it can be."""


class Subject(Protocol):
    """An adapter under test, with the framework that it governs."""

    framework: str
    """The section of an Atlas's ``adapters`` that maps this framework's tools."""
    modes: Sequence[Mode]
    """Those that the framework has."""
    abilities: frozenset[str]
    """What of ``ABILITIES`` the framework gives the adapter; cases about others are not made."""
    holes: Mapping[str, str]
    """Cases that cannot be met, by name (``unknown_tool``, or ``unknown_tool-stream``), each with a sentence that says
    why. Their test passes only as long as the case fails."""

    def run(self, task: Task) -> Outcome:
        """Run a task. What the framework raises goes into the outcome; nothing of the adapter may be replaced."""
        ...

    def resume(self, task: Task, paused: Any, approved: bool | None) -> Outcome:
        """Go on with a run that stopped for a person; only asked where ``pause`` is among the abilities.

        ``approved`` answers by the framework's own means; None: the answer was given through ``runtime.approvals``.
        """
        ...


ABILITIES = {
    "call_ids": "the trace names the framework's own id of a call",
    "agent_names": "the trace names the agent that calls",
    "pause": "a call that needs a person stops the run, which can be gone on with later",
    "retry": "the framework has neighbours that may run a call again",
    "change": "the framework has neighbours that may change a call",
    "nested": "an agent may run inside a tool of another",
    "handoff": "an agent may hand over to another",
    "hide": "denied tools are not shown to the model",
    "context": "the Atlas's documents are added to the prompt",
}


@dataclass
class Bodies:
    """The tools of the contract, and every run of their bodies."""

    mode: Mode
    ran: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """Name and arguments, as the body got them."""
    fails: int = 0
    """How often ``flaky`` fails before it works."""

    def tools(self, *names: str) -> list[Tool]:
        """Fresh functions; coroutine functions where the mode is not ``sync``."""
        made = self._functions()
        return [made[name] if self.mode == "sync" else _asynchronous(made[name]) for name in names]

    def runs(self, name: str) -> list[dict[str, Any]]:
        """The arguments of each run of one tool."""
        return [arguments for tool, arguments in self.ran if tool == name]

    def note(self, name: str, **arguments: Any) -> None:
        """A body was entered."""
        self.ran.append((name, arguments))

    def _functions(self) -> dict[str, Tool]:
        def lookup(ticket_id: str) -> str:
            """Look a ticket up.

            Args:
                ticket_id: the ticket's id
            """
            self.note("lookup", ticket_id=ticket_id)
            return f"ticket {ticket_id} is open"

        def remove(ticket_id: str) -> str:
            """Delete a ticket.

            Args:
                ticket_id: the ticket's id
            """
            self.note("remove", ticket_id=ticket_id)
            return "gone"

        def pay(order_id: str, amount: float = 500.0) -> str:
            """Pay a refund.

            Args:
                order_id: the order's id
                amount: how much
            """
            self.note("pay", order_id=order_id, amount=amount)
            return f"paid {amount}"

        def broken(ticket_id: str) -> str:
            """Update a ticket, which fails.

            Args:
                ticket_id: the ticket's id
            """
            self.note("broken", ticket_id=ticket_id)
            raise TimeoutError("the database is slow")

        def flaky(ticket_id: str) -> str:
            """Update a ticket, which may fail.

            Args:
                ticket_id: the ticket's id
            """
            self.note("flaky", ticket_id=ticket_id)
            if len(self.runs("flaky")) <= self.fails:
                raise TimeoutError("the database is slow")
            return "updated"

        def notify(ticket_id: str, people: list[str]) -> str:
            """Tell people about a ticket.

            Args:
                ticket_id: the ticket's id
                people: who is told
            """
            self.note("notify", ticket_id=ticket_id, people=list(people))
            return f"told {len(people)}"

        return {tool.__name__: tool for tool in (lookup, remove, pay, broken, flaky, notify)}


def _asynchronous(fn: Tool) -> Tool:
    """The same tool as a coroutine function, of which nothing tells that there is another inside."""

    @functools.wraps(fn)
    async def coroutine_function(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    del coroutine_function.__wrapped__
    coroutine_function.__signature__ = inspect.signature(fn)  # type: ignore[attr-defined]
    return coroutine_function
