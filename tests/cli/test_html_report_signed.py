"""``cra trace report --html --key``: what is signed, and what was changed since, stands in the page."""

from __future__ import annotations

from pathlib import Path

from cra_middleware import Atlas, Runtime
from cra_middleware.keys import generate_key, load_signer
from cra_middleware.trace.sinks.jsonl import JsonlSink
from tests.cli.conftest import Cra
from tests.conftest import manifest


def signed(folder: Path) -> Path:
    """A signed folder of two sessions, one of them in several files."""
    generate_key(folder / "bot.key", "example.com/bot")
    sink = JsonlSink(folder / "t", signer=load_signer(folder / "bot.key"), segment_bytes=4000)
    with Runtime(Atlas.from_dict(manifest()), trace=sink) as runtime:
        for calls in (1, 5):
            with runtime.session("bot") as session:
                for _ in range(calls):
                    session.call("ticket.get", lambda: None)
    return folder / "t"


def test_what_is_signed(cra: Cra, tmp_path: Path) -> None:
    """Each session says up to which event, and the folder's note stands there as it is, to be copied."""
    folder = signed(tmp_path)
    out = tmp_path / "page.html"
    ran = cra("trace", "report", folder, "--html", out, "--key", tmp_path / "bot.key.pub")
    assert (ran.code, ran.stderr) == (0, "")
    page = out.read_text()
    assert page.count("INTACT, SEALED, SIGNED up to event ") == 2
    assert (folder / "ledger" / "head").read_text().splitlines()[-1] in page
    assert cra("trace", "report", folder, "--key", tmp_path / "bot.key.pub").code == 2  # a table has no room for it


def test_what_was_changed_since(cra: Cra, tmp_path: Path) -> None:
    """A session that is gone, or cut, is named in the page and on stderr; exit 1."""
    folder = signed(tmp_path)
    gone = min(folder.glob("*.trace.jsonl")).name[:36]
    for path in folder.glob(f"{gone}*"):
        path.unlink()
    out = tmp_path / "page.html"
    ran = cra("trace", "report", folder, "--html", out, "--key", tmp_path / "bot.key.pub")
    assert ran.code == 1
    assert f"session {gone} is missing" in ran.stderr
    assert "CHANGED: the traces are not what was signed." in out.read_text()
    assert f"session {gone} is missing" in out.read_text()


def test_several_files_are_one_session(cra: Cra, tmp_path: Path) -> None:
    """A session in several files is one in every command: shown, counted and reported whole."""
    folder = signed(tmp_path)
    assert len(list(folder.glob("*.trace.jsonl"))) > 2
    counted = cra("trace", "report", folder, "--format", "json")
    assert counted.json["sessions"] == 2
    first = max((path for path in folder.glob("*.trace.jsonl") if path.name.count(".") == 2), key=str)
    shown = cra("trace", "show", first)
    assert shown.code == 0
    assert "INTACT, SEALED" in shown.stdout
    assert shown.stdout.count("ticket.get") == 5
    later = next(path for path in folder.glob(f"{first.name[:36]}.*.trace.jsonl"))
    assert "INTACT FROM EVENT" in cra("trace", "show", later).stdout
