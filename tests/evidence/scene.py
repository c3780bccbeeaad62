"""A folder of traces as an attacker finds it, with what others held elsewhere; and what thieves can do to it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cra_middleware import ActionDenied, Atlas, Runtime
from cra_middleware.keys import generate_key, load_signer
from cra_middleware.trace.entry import ENTRY_BYTES, Entry, event_leaf
from cra_middleware.trace.note import Checkpoint, Signer
from cra_middleware.trace.tree import Frontier
from tests.conftest import manifest
from tests.trace.forge import Event, lines_of, parse, rewrite

GOAL = "Answer ticket 42"


@dataclass
class Scene:
    """Two sessions: ``a`` from beginning to end, then ``b``, which was let go of in the middle and ended later."""

    folder: Path
    key: Path
    """The file of the secret key; ``.pub`` lies beside it."""
    a: str
    b: str
    middle: Path
    """The ledger as it was when ``b`` was let go of; not there when nothing is signed."""
    cut: int
    """How many events ``b`` had then."""
    noted: int = 0
    """How many entries the ledger has."""
    kept: bytes = b""
    """The head that is held elsewhere."""

    def file(self, session_id: str) -> Path:
        return self.folder / f"{session_id}.trace.jsonl"

    def lines(self, session_id: str) -> list[bytes]:
        return lines_of(self.file(session_id))

    @property
    def ledger(self) -> Path:
        return self.folder / "ledger"

    @property
    def signer(self) -> Signer:
        return load_signer(self.key)

    def entries(self) -> list[Entry]:
        data = (self.ledger / "entries").read_bytes()
        return [Entry.unpack(data[place : place + ENTRY_BYTES]) for place in range(0, len(data), ENTRY_BYTES)]

    def copy(self, place: Path) -> Scene:
        """The same in another folder, to be spoilt."""
        shutil.copytree(self.folder, place)
        return Scene(place, self.key, self.a, self.b, self.middle, self.cut, self.noted, self.kept)


def work(runtime: Runtime, session: Any, calls: int) -> None:
    """``calls`` times a tool that runs, and one that may not."""
    for number in range(calls):
        session.call("ticket.get", lambda n: n, number)
        try:
            session.call("ticket.delete", print)
        except ActionDenied:
            continue


def build(place: Path, *, signed: bool, key: Path | None = None, **options: Any) -> Scene:
    """A scene in ``place``; ``options`` go to the runtimes."""
    place.mkdir(exist_ok=True)
    folder = place / "traces"
    if key is None:
        key = place / "bot.key"
        generate_key(key, "example.com/bot")
    if signed:
        options["signing_key"] = key
    with runtime_of(folder, options) as runtime:
        with runtime.session("bot", GOAL) as first:
            work(runtime, first, 2)
        second = runtime.session("bot", GOAL, keep=True)
        work(runtime, second, 2)
    scene = Scene(folder, key, first.id, second.id, place / "middle", 0)
    scene.cut = len(scene.lines(second.id))
    if signed:
        shutil.copytree(scene.ledger, scene.middle)
    with runtime_of(folder, options) as runtime:
        session = runtime.resume(second.id)
        work(runtime, session, 1)
        session.end()
    if signed:
        scene.noted = len(scene.entries())
        scene.kept = (scene.ledger / "head").read_bytes()
    return scene


def runtime_of(folder: Path, options: dict[str, Any]) -> Runtime:
    return Runtime(Atlas.from_dict(manifest()), trace=folder, **options)


def rewrite_all(scene: Scene, change: Callable[[list[Event]], object] | None = None) -> None:
    """Another goal in every session; whoever knows the hash rule can do that."""
    for session_id in (scene.a, scene.b):
        lines = rewrite(scene.lines(session_id), change or _other_goal)
        scene.file(session_id).write_bytes(b"".join(lines))


def _other_goal(events: list[Event]) -> None:
    events[0]["payload"]["goal"] = "Answer ticket 43"


def rewrite_ledger(scene: Scene, signer: Signer | None) -> None:
    """As many entries as there were, about the sessions as they are now; the head is signed anew with ``signer``."""
    trees = {name: hashes_of(scene, name) for name in (scene.a, scene.b)}
    log, data = Frontier(), b""
    for old in scene.entries():
        tree, hashes = Frontier(), trees[old.session_id][: old.size]
        for item in hashes:
            tree.append(event_leaf(item))
        entry = Entry(old.session_id, len(hashes), hashes[-1], tree.root())
        log.append(entry.leaf())
        data += entry.pack()
    (scene.ledger / "entries").write_bytes(data)
    if signer is not None:
        text = Checkpoint(signer.name, log.size, log.root()).text()
        (scene.ledger / "head").write_bytes(signer.sign(text))


def hashes_of(scene: Scene, session_id: str) -> list[str]:
    return [event["event_hash"] for event in parse(scene.lines(session_id))]


def as_sdk_json(spans: list[Any]) -> str:
    """What ``ConsoleSpanExporter`` writes: one document after the other."""
    return "\n".join(span.to_json() for span in spans)


def as_otlp_json(spans: list[Any]) -> str:
    """What a collector's file exporter writes: one document a line."""
    from google.protobuf.json_format import MessageToDict
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

    half = len(spans) // 2
    return "".join(json.dumps(MessageToDict(encode_spans(part))) + "\n" for part in (spans[:half], spans[half:]))
