"""The whole core in thirty lines, without any framework: decide, run once, record, verify."""

from pathlib import Path

from cra_middleware import ActionDenied, Runtime, governed, verify

ATLAS = Path(__file__).parent / "atlases/support"
TICKETS = {"T-42": "My lamp arrived broken"}


@governed("ticket.get")
def lookup(ticket_id: str) -> str:
    return TICKETS[ticket_id]


@governed("ticket.delete")
def delete(ticket_id: str) -> None:
    del TICKETS[ticket_id]


with Runtime(ATLAS, trace="traces") as runtime, runtime.session(agent_id="bot", goal="Answer T-42") as session:
    print("ran:    ", lookup("T-42"))
    try:
        delete("T-42")
    except ActionDenied as denial:
        print("refused:", denial)

assert TICKETS == {"T-42": "My lamp arrived broken"}  # the tool did not run
print("trace:  ", verify(f"traces/{session.id}.trace.jsonl").sessions[0])
