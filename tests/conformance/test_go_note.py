"""Heads and proofs, checked by another implementation: the note and tlog packages of Go's checksum database.

They come with Go itself (``GOROOT/src/cmd/vendor``) or with Debian's ``golang-golang-x-mod-dev``; nothing is fetched.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cra_middleware.keys import generate_key, load_signer
from cra_middleware.trace.entry import Entry, event_leaf
from cra_middleware.trace.note import Checkpoint, Signer, open_note
from cra_middleware.trace.proof import Place, inclusion_document, verify_inclusion_proof
from cra_middleware.trace.tree import Leaves
from tests.trace.forge import lines_of, parse, write_trace

PROGRAM = Path(__file__).with_name("go_note") / "main.go"
PACKAGES = "golang.org/x/mod/sumdb"
Document = dict[str, Any]
Ask = Callable[[Document], "subprocess.CompletedProcess[str]"]


def packages(go: str) -> Path | None:
    """The ``golang.org`` folder of this machine that holds the two packages, and what they need."""
    goroot = subprocess.run(
        [go, "env", "GOROOT"], capture_output=True, text=True, check=True, timeout=60
    ).stdout.strip()
    places = (Path(goroot) / "src" / "cmd" / "vendor", Path("/usr/share/gocode/src"))
    return next((place / "golang.org" for place in places if (place / PACKAGES / "note" / "note.go").is_file()), None)


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Ask:
    """Builds the program, outside of any module, and runs it on a document."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("there is no go here: install golang-go to have heads checked by another implementation")
    source = packages(go)
    if source is None:
        pytest.skip(f"{PACKAGES} is neither in GOROOT nor in /usr/share/gocode: install golang-golang-x-mod-dev")
    folder = tmp_path_factory.mktemp("go")
    (folder / "src").mkdir()
    (folder / "src" / "golang.org").symlink_to(source)
    environment = {**os.environ, "GO111MODULE": "off", "GOPATH": str(folder), "GOFLAGS": "", "GOTOOLCHAIN": "local"}
    environment.setdefault("GOCACHE", str(folder / "cache"))
    subprocess.run(
        [go, "build", "-o", folder / "go_note", PROGRAM], env=environment, check=True, timeout=300, cwd=folder
    )

    def run(document: Document) -> subprocess.CompletedProcess[str]:
        text = json.dumps(document)
        return subprocess.run([folder / "go_note"], input=text, capture_output=True, text=True, timeout=60, check=False)

    return run


def base64(data: bytes) -> str:
    return b64encode(data).decode()


def record(tree: Leaves, data: bytes, index: int, size: int) -> Document:
    return {"Data": base64(data), "Index": index, "Path": [base64(item) for item in tree.inclusion(index, size)]}


def head_of(signer: Signer, tree: Leaves, size: int) -> bytes:
    return signer.sign(Checkpoint(signer.name, size, tree.root(size)).text())


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Signer:
    """A key as `cra keys generate` makes it."""
    file = tmp_path_factory.mktemp("keys") / "bot.key"
    generate_key(file)
    return load_signer(file)


@pytest.fixture(scope="module")
def document(signer: Signer, tmp_path_factory: pytest.TempPathFactory) -> Document:
    """A ledger of 21 entries with a real session in it: all its inclusions, and its growth from every size."""
    hashes = [event["event_hash"] for event in parse(lines_of(write_trace(tmp_path_factory.mktemp("traces"), 2)))]
    session, ledger = Leaves(), Leaves()
    for event_hash in hashes:
        session.append(event_leaf(event_hash))
    entries = [
        Entry(
            "01900000-0000-7000-8000-00000000000a",
            1 + number % len(hashes),
            hashes[number % len(hashes)],
            session.root(),
        )
        for number in range(21)
    ]
    for entry in entries:
        ledger.append(entry.leaf())
    return {
        "Key": str(signer.verifier),
        "Head": head_of(signer, ledger, 21).decode(),
        "Records": [record(ledger, entry.pack(), index, 21) for index, entry in enumerate(entries)],
        "Growths": [
            {
                "Old": head_of(signer, ledger, old).decode(),
                "Path": [base64(item) for item in ledger.consistency(old, 21)],
            }
            for old in range(1, 22)  # an empty tree is nothing that tlog compares
        ],
        "Session": {
            "Size": len(hashes),
            "Root": base64(session.root()),
            "Records": [record(session, bytes.fromhex(text), index, len(hashes)) for index, text in enumerate(hashes)],
        },
    }


def test_go_agrees(ask: Ask, document: Document) -> None:
    """Go opens our head, and finds every entry, every event and every growth proved."""
    assert len(document["Records"]) == len(document["Growths"]) == 21
    assert len(document["Session"]["Records"]) > 10
    done = ask(document)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


@pytest.mark.parametrize(
    ("part", "message"),
    [("Head", "invalid signature"), ("Records", "record 5"), ("Growths", "growth 5"), ("Session", "session: record 5")],
)
def test_go_disagrees(ask: Ask, document: Document, part: str, message: str) -> None:
    """The program does look at each part: a changed one is refused."""
    changed = json.loads(json.dumps(document))
    if part == "Head":
        changed["Head"] = changed["Head"].replace("\n21\n", "\n22\n")
    else:
        items = changed["Session"]["Records"] if part == "Session" else changed[part]
        items[5]["Path"] = items[6]["Path"]
    done = ask(changed)
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr


def test_we_read_what_go_signed(ask: Ask, signer: Signer) -> None:
    """A note that Go signs with our key is, byte for byte, the note that we sign, and opens."""
    head = Checkpoint(signer.name, 5, bytes(range(32)))
    done = ask({"Secret": signer.secret_text(), "Text": head.text()})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.encode() == signer.sign(head.text())
    assert open_note(done.stdout.encode(), signer.verifier) == head


def test_go_follows_a_proof_document(ask: Ask, signer: Signer, tmp_path: Path) -> None:
    """The parts of one proof document, taken apart by the rules of its description, convince Go of the same event."""
    lines = [line.rstrip(b"\n") for line in lines_of(write_trace(tmp_path))]
    events, session, ledger = parse(lines), Leaves(), Leaves()
    for event in events:
        session.append(event_leaf(event["event_hash"]))
    entry = Entry(events[0]["session_id"], len(events), events[-1]["event_hash"], session.root())
    ledger.append(entry.leaf())
    in_session, in_ledger = Place(2, len(events), session.inclusion(2, len(events))), Place(0, 1, ())
    proof = inclusion_document(lines[2], in_session, entry, in_ledger, head_of(signer, ledger, 1))
    assert verify_inclusion_proof(proof, signer.verifier).sequence == 2
    parts = json.loads(proof)
    packed = bytes.fromhex(parts["ledger"]["entry"])

    def as_record(part: str, data: bytes) -> Document:
        path = [base64(bytes.fromhex(item)) for item in parts[part]["path"]]
        return {"Data": base64(data), "Index": parts[part]["index"], "Path": path}

    event_hash = bytes.fromhex(json.loads(parts["event"])["event_hash"])
    done = ask(
        {
            "Key": str(signer.verifier),
            "Head": parts["head"],
            "Records": [as_record("ledger", packed)],
            "Session": {
                "Size": int.from_bytes(packed[16:24], "big"),
                "Root": base64(packed[56:]),
                "Records": [as_record("session", event_hash)],
            },
        }
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")
