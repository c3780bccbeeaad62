"""``cra trace prune``."""

from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import Cra
from tests.evidence.test_pruning import KEY, recorded


def test_the_command(cra: Cra, tmp_path: Path) -> None:
    """It looks first when asked, removes, says what is kept and why, and refuses spans that are none."""
    (tmp_path / "key.pub").write_text(str(KEY))
    recorded(tmp_path / "t")
    options = ("--key", tmp_path / "key.pub")
    rehearsed = cra("trace", "prune", tmp_path / "t", "--older-than", "30d", *options, "--rehearse")
    assert rehearsed.code == 0
    assert "would be removed" in rehearsed.stdout
    done = cra("trace", "prune", tmp_path / "t", "--older-than", "30d", *options, "--format", "json")
    assert done.code == 0
    assert done.json["sessions"][0]["files"]
    assert not list((tmp_path / "t").glob("*.trace.jsonl"))
    recorded(tmp_path / "u", ends=False)
    kept = cra("trace", "prune", tmp_path / "u", "--older-than", "30d", *options)
    assert kept.code == 1
    assert "was not ended" in kept.stderr
    for span in ("30", "d", "-1d", "30 d", "", "1y", "100000d", "٣d"):
        assert cra("trace", "prune", tmp_path / "u", "--older-than", span, *options).code == 2
    assert cra("trace", "prune", tmp_path / "nowhere", "--older-than", "1d", *options).code == 1


def test_databases(cra: Cra, tmp_path: Path) -> None:
    """A SQLite file needs to be told that nothing is signed; the same words, the same codes, no password shown."""
    from cra_middleware import Atlas, Runtime
    from cra_middleware.testing import FrozenClock
    from tests.conftest import NOON, manifest

    (tmp_path / "key.pub").write_text(str(KEY))
    name = f"sqlite:{tmp_path}/t.db"
    with Runtime(Atlas.from_dict(manifest()), trace=name, clock=FrozenClock(NOON)) as runtime:
        runtime.session("bot").end()
        runtime.session("bot", keep=True)
    words = ("trace", "prune", name, "--older-than", "12h")
    assert cra(*words).code == 2
    assert cra(*words, "--unsigned", "--key", tmp_path / "key.pub").code == 2
    assert cra(*words, "--unsigned", "--head", tmp_path / "key.pub").code == 2
    refused = cra(*words, "--key", tmp_path / "key.pub")
    assert (refused.code, refused.stderr.count("no signed head covers all of it")) == (1, 1)
    rehearsed = cra(*words, "--unsigned", "--rehearse")
    assert rehearsed.code == 1
    assert "1 session with 5 events" in rehearsed.stdout
    assert "would be removed" in rehearsed.stdout
    done = cra(*words, "--unsigned", "--format", "json")
    assert done.code == 1
    assert sorted((session["events"], bool(session["why_not"])) for session in done.json["sessions"]) == [
        (0, True),
        (5, False),
    ]
    assert not (tmp_path / "t.db.server").exists()
    verified = cra("trace", "verify", name)
    assert verified.code == 0
    assert "PRUNED: 5 events were removed" in verified.stdout
    for place in (f"sqlite:{tmp_path}/none.db", "postgresql://ann:secret@127.0.0.1:1/x"):
        away = cra("trace", "prune", place, "--older-than", "12h", "--unsigned")
        assert away.code == 1
        assert "secret" not in away.stderr
