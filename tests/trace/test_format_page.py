"""The trace written out in the documentation is a real one."""

from __future__ import annotations

import re
from pathlib import Path

from cra_middleware.trace.chain import verify_lines
from cra_middleware.trace.commitments import commitment_text
from cra_middleware.trace.entry import Entry, event_leaf
from cra_middleware.trace.note import Checkpoint, Signer, open_note
from cra_middleware.trace.profiles import read
from cra_middleware.trace.tree import Frontier

PAGE = Path(__file__).resolve().parents[2] / "docs" / "trace-format.md"


def block(kind: str) -> str:
    """What stands in the page's block of that kind."""
    found = re.search(rf"```{kind}\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    return found[1]


def test_the_vector_verifies() -> None:
    """The two lines of the page are whole and sealed, byte for byte."""
    (verdict,) = verify_lines([line + b"\n" for line in block("").encode().splitlines()])
    assert (verdict.intact, verdict.sealed, verdict.events) == (True, True, 2), verdict.error


def test_the_vectors_of_trees_and_heads() -> None:
    """From the two lines follow the root, the entry, the ledger's root and the signed head that the page names."""
    given = dict(re.split(r"  +", line, maxsplit=1) for line in block("vectors").splitlines())
    events = [read(line.encode(), "cra").event for line in block("").splitlines()]
    tree, ledger = Frontier(), Frontier()
    for event in events:
        tree.append(event_leaf(event.event_hash))
    entry = Entry(events[0].session_id, len(events), events[-1].event_hash, tree.root())
    ledger.append(entry.leaf())
    signer = Signer("example.com/bot", bytes(range(32)))
    assert given == {
        "session root": tree.root().hex(),
        "entry": entry.pack().hex(),
        "ledger root": ledger.root().hex(),
        "verifier key": str(signer.verifier),
    }
    head = Checkpoint(signer.name, 1, ledger.root())
    assert signer.sign(head.text()).decode() == block("head")
    assert open_note(block("head").encode(), signer.verifier) == head


def test_the_vector_of_a_commitment() -> None:
    """The hash that the page gives is that of its salt and value."""
    found = re.search(r"salt `([0-9a-f]{32})` and value `(.*?)` .*?`([0-9a-f]{64})`", PAGE.read_text(), re.DOTALL)
    assert found is not None
    assert commitment_text(bytes.fromhex(found[1]), found[2].encode()).endswith(found[3])
