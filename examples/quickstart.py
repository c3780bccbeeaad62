"""A support agent under an Atlas, from the first tool call to a verified trace. Needs no key.

    python examples/quickstart.py                  asks you about the refund when it runs on a terminal
    python examples/quickstart.py --approve        answers yes; --reject answers no
    python examples/quickstart.py --model openai:gpt-5    a real model instead of the scripted one

With OTEL_EXPORTER_OTLP_ENDPOINT set, every span goes to that collector.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from langchain.agents import create_agent
from langchain.chat_models import init_chat_model
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import BaseTool, tool
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cra_adapters.langchain import CRAMiddleware
from cra_middleware import Answer, Pending, Runtime, Session, configure_otel, verify

HERE = Path(__file__).parent
GOAL = "Work through ticket T-42: a customer wants a refund for a broken lamp"
SCHEMA = """
CREATE TABLE tickets (id TEXT PRIMARY KEY, status TEXT, subject TEXT, reply TEXT);
CREATE TABLE orders (id TEXT PRIMARY KEY, item TEXT, price REAL, refunded REAL DEFAULT 0);
INSERT INTO tickets VALUES ('T-42', 'open', 'My lamp arrived broken (order A-1001)', NULL);
INSERT INTO tickets VALUES ('T-43', 'closed', 'Thanks', NULL);
INSERT INTO orders (id, item, price) VALUES ('A-1001', 'Desk lamp', 250.0), ('A-1002', 'Chair', 90.0);
"""
SCRIPT: list[list[tuple[str, dict[str, object]]]] = [
    [("list_tickets", {"status": "open"}), ("lookup_ticket", {"ticket_id": "T-42"})],
    [("delete_ticket", {"ticket_id": "T-42"})],
    [("create_refund", {"order_id": "A-1001", "amount": -250, "reason": "Broken on arrival"})],
    [("lookup_order", {"order_id": "A-9999"})],
    [("create_refund", {"order_id": "A-1001", "amount": 250, "reason": "Broken on arrival"})],
    [("reply_to_ticket", {"ticket_id": "T-42", "body": "We are sorry. We have looked into your refund."})],
    [("close_ticket", {"ticket_id": "T-42"})],
]


class ScriptedModel(BaseChatModel):
    """Stands in for a language model: makes the calls of SCRIPT, turn by turn, and then reports on them."""

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Any:
        return self

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        turn = sum(isinstance(message, AIMessage) for message in messages)
        if turn < len(SCRIPT):
            calls = [
                {"name": name, "args": args, "id": f"call-{turn}-{index}", "type": "tool_call"}
                for index, (name, args) in enumerate(SCRIPT[turn])
            ]
            return _result(AIMessage("", tool_calls=calls))
        failed = [
            message.name or "?"
            for message in messages
            if isinstance(message, ToolMessage) and message.status == "error"
        ]
        return _result(AIMessage(f"Ticket T-42 is done. What I could not do: {', '.join(failed) or 'nothing'}."))


def _result(message: AIMessage) -> ChatResult:
    return ChatResult(generations=[ChatGeneration(message=message)])


def make_tools(database: sqlite3.Connection) -> list[BaseTool]:
    """Eight tools on a real SQLite file."""

    def one(query: str, *values: object) -> dict[str, object]:
        row = database.execute(query, values).fetchone()
        if row is None:
            raise LookupError(f"nothing found for {values[-1]}")
        return dict(row)

    @tool
    def list_tickets(status: str = "open") -> list[dict[str, object]]:
        """List tickets: open, closed or all."""
        rows = database.execute("SELECT id, subject, status FROM tickets WHERE ? IN (status, 'all')", (status,))
        return [dict(row) for row in rows]

    @tool
    def lookup_ticket(ticket_id: str) -> dict[str, object]:
        """Read one ticket."""
        return one("SELECT * FROM tickets WHERE id = ?", ticket_id)

    @tool
    def reply_to_ticket(ticket_id: str, body: str) -> str:
        """Answer the customer."""
        database.execute("UPDATE tickets SET reply = ? WHERE id = ?", (body, ticket_id))
        return "sent"

    @tool
    def close_ticket(ticket_id: str) -> str:
        """Close a ticket."""
        database.execute("UPDATE tickets SET status = 'closed' WHERE id = ?", (ticket_id,))
        return "closed"

    @tool
    def delete_ticket(ticket_id: str) -> str:
        """Delete a ticket for good."""
        database.execute("DELETE FROM tickets WHERE id = ?", (ticket_id,))
        return "deleted"

    @tool
    def lookup_order(order_id: str) -> dict[str, object]:
        """Read one order."""
        return one("SELECT * FROM orders WHERE id = ?", order_id)

    @tool
    def cancel_order(order_id: str, reason: str) -> str:
        """Cancel an order."""
        database.execute("DELETE FROM orders WHERE id = ?", (order_id,))
        return f"cancelled: {reason}"

    @tool
    def create_refund(order_id: str, amount: float, reason: str) -> str:
        """Pay money back."""
        database.execute("UPDATE orders SET refunded = refunded + ? WHERE id = ?", (amount, order_id))
        return f"refunded {amount:.2f}: {reason}"

    return [
        list_tickets,
        lookup_ticket,
        reply_to_ticket,
        close_ticket,
        delete_ticket,
        lookup_order,
        cancel_order,
        create_refund,
    ]


def choose_approver(options: argparse.Namespace, console: Console) -> Callable[[Pending], Answer] | None:
    """Who answers: the flag, the person at the terminal, or nobody."""
    if options.approve or options.reject:
        reason = None if options.approve else "Rejected by flag"
        return lambda pending: Answer(options.approve, by="command line", reason=reason, groups=pending.approvers)
    if not sys.stdin.isatty():
        return None

    def ask(pending: Pending) -> Answer:
        arguments = ", ".join(f"{key}={value!r}" for key, value in pending.arguments.items())
        console.print(f"\n[bold yellow]Approve?[/] {escape(pending.action_id)}({escape(arguments)})")
        console.print(f"  {escape(pending.reason)} [dim]({escape(pending.policy_id)})[/]")
        yes = console.input("  [bold]y/N[/] ").strip().lower() == "y"
        return Answer(yes, by=os.environ.get("USER", "terminal"), groups=pending.approvers)

    return ask


def show(session: Session, console: Console) -> None:
    """What happened, call by call, read back from the trace."""
    table = Table(
        "call", "what happened", "policy, or why", title="What the agent did", title_justify="left", expand=True
    )
    resolved = False
    for event in session.events:
        payload = event.payload
        name = str(payload.get("action_id", ""))
        resolved = resolved or event.event_type == "carp.resolution.completed"
        match event.event_type:
            case "action.executed":
                table.add_row(name, f"[green]ran[/] in {payload['duration_ms']} ms", "")
            case "action.failed":
                table.add_row(name, "[yellow]ran and failed[/]", escape(str(payload["error_code"])))
            case "action.denied":
                table.add_row(
                    name, f"[red]not run[/] ({payload['code']})", escape(f"{payload['policy_id']}: {payload['reason']}")
                )
            case "action.approved" if "approver" in payload:
                table.add_row(name, "[cyan]approved[/]", escape(f"by {payload['approver']}"))
            case "policy.evaluated" if resolved and payload.get("effect") == "require_approval":
                table.add_row(name, "[cyan]waits for a person[/]", escape(str(payload["policy_id"])))
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    answer = parser.add_mutually_exclusive_group()
    answer.add_argument("--approve", action="store_true", help="approve what needs a person")
    answer.add_argument("--reject", action="store_true", help="reject what needs a person")
    parser.add_argument("--model", help="a real model, as langchain's init_chat_model names it")
    parser.add_argument("--trace", default="traces", help="folder for the trace (default: traces)")
    options = parser.parse_args()
    console = Console()
    provider = configure_otel("cra-quickstart") if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") else None

    with tempfile.TemporaryDirectory() as folder:
        # LangChain runs sync tools in pool threads; each statement here is its own transaction
        database = sqlite3.connect(Path(folder) / "support.db", check_same_thread=False, isolation_level=None)
        database.row_factory = sqlite3.Row
        database.executescript(SCHEMA)
        model: BaseChatModel = init_chat_model(options.model) if options.model else ScriptedModel()
        with Runtime(
            HERE / "atlases/support", trace=options.trace, approver=choose_approver(options, console)
        ) as runtime:
            agent = create_agent(model, make_tools(database), middleware=[CRAMiddleware(runtime)])
            with runtime.session(agent_id="support-bot", goal=GOAL) as session:
                state = agent.invoke({"messages": [HumanMessage(GOAL)]})
            show(session, console)
        console.print(f"[bold]The agent says:[/] {escape(str(state['messages'][-1].content))}")
        order = database.execute("SELECT refunded FROM orders WHERE id = 'A-1001'").fetchone()
        left = database.execute("SELECT count(*) AS n FROM tickets").fetchone()
        console.print(
            f"[bold]The database says:[/] {left['n']} tickets are there, {order['refunded']:.2f} was refunded."
        )
        database.close()

    report = verify(Path(options.trace) / f"{session.id}.trace.jsonl")
    console.print(f"[bold]The trace says:[/] {report.sessions[0]} ({report.sessions[0].events} events)")
    console.print(f"Look at it:  cra trace show {report.path}", soft_wrap=True)
    if provider is not None:
        provider.shutdown()
        console.print(f"Spans were sent to {os.environ['OTEL_EXPORTER_OTLP_ENDPOINT']}")
    return 0 if report.intact and report.sealed else 1


if __name__ == "__main__":
    sys.exit(main())
