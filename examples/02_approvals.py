"""A call that needs a person: it waits, somebody says yes, and exactly that call runs, once. No key, no network."""

import tempfile
from pathlib import Path

from cra_middleware import ApprovalRequired, Runtime, governed

ATLAS = Path(__file__).parent / "atlases" / "support"


@governed("refund.create")
def refund(order_id: str, amount: float, reason: str) -> str:
    return f"{amount:.2f} paid back for {order_id}"


with (
    tempfile.TemporaryDirectory() as folder,
    Runtime(ATLAS, approvals=Path(folder) / "approvals.db") as runtime,
    runtime.session(agent_id="support-bot", goal="Answer ticket T-42") as session,
):
    try:
        refund("A-1001", 250.0, "Broken")
    except ApprovalRequired as waiting:
        print(f"waits: {waiting.reason}")
        # in another terminal: cra approvals approve ID --store approvals.db --by ann --group team-leads
        runtime.approvals.approve(str(waiting.approval_id), by="ann", groups=["team-leads"])
    print(refund("A-1001", 250.0, "Broken"))
    for amount in (250.0, 251.0):  # the same again, and another amount: each is a question of its own
        try:
            refund("A-1001", amount, "Broken")
        except ApprovalRequired:
            print(f"{amount:.2f} waits for a person")
    told = session.verify()

print(told)
