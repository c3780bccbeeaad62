"""Which documents an agent is given, in which order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cra_middleware import Atlas, Runtime
from cra_middleware.atlas.context import Selection, Wish, select
from cra_middleware.atlas.loader import inspect
from cra_middleware.atlas.manifest import Conditions, RiskTier
from cra_middleware.testing import FrozenClock
from tests.conftest import manifest

LOREM = "x" * 40  # ten tokens


def block(name: str, **keys: Any) -> dict[str, Any]:
    return {"context_id": name, "content": name, "inject_mode": "always", **keys}


def pack(name: str, *files: str, **keys: Any) -> dict[str, Any]:
    return {"pack_id": name, "name": name, "files": list(files), **keys}


def load(folder: Path, files: dict[str, str] | None = None, **parts: Any) -> Atlas:
    folder.mkdir(exist_ok=True)
    for name, text in (files or {}).items():
        (folder / name).write_text(text)
    (folder / "atlas.json").write_text(json.dumps(manifest(**parts)))
    return Atlas.load(folder)


def choose(
    *atlases: Atlas,
    goal: str = "do it",
    tier: RiskTier = "low",
    hints: tuple[str, ...] = (),
    required: tuple[str, ...] = (),
    holds: bool = True,
) -> Selection:
    def is_met(conditions: Conditions) -> bool:
        return holds or conditions == Conditions()

    return select(atlases, Wish(goal, tier, hints, required), is_met)


def ids(selection: Selection) -> list[str]:
    return [item.block_id for item in selection.blocks]


@pytest.mark.parametrize(
    ("keys", "wish", "chosen"),
    [
        ({"inject_mode": "always"}, {}, True),
        ({"inject_mode": "always", "keywords": ["refund"], "risk_tiers": ["high"]}, {}, True),
        ({"inject_mode": "on_match"}, {}, True),
        ({"keywords": ["refund"]}, {}, False),
        ({"keywords": ["refund"]}, {"goal": "make a Refund, please"}, True),
        ({"keywords": ["refund"]}, {"goal": "refunds"}, False),
        ({"keywords": ["refund"]}, {"goal": "pre_refund"}, False),
        ({"keywords": ["refund"]}, {"hints": ("the refund",)}, True),
        ({"keywords": ["a.b"]}, {"goal": "axb"}, False),
        ({"keywords": ["c++"]}, {"goal": "write C++ now"}, True),
        ({"keywords": ["x", "refund"]}, {"goal": "refund"}, True),
        ({"keywords": ["refund"], "risk_tiers": ["high"]}, {"goal": "refund"}, False),
        ({"keywords": ["refund"], "risk_tiers": ["high"]}, {"goal": "refund", "tier": "high"}, True),
        ({"keywords": ["refund"], "risk_tiers": ["high"]}, {"tier": "high"}, False),
        ({"risk_tiers": ["high", "critical"]}, {"tier": "critical"}, True),
        ({"inject_mode": "on_demand"}, {"goal": "b"}, False),
        ({"inject_mode": "on_demand"}, {"hints": ("b",)}, True),
        ({"inject_mode": "on_demand"}, {"hints": ("please b",)}, False),
        ({"inject_mode": "on_demand", "keywords": ["refund"]}, {"goal": "refund"}, False),
        ({"inject_mode": "risk_based", "risk_tiers": ["high"]}, {"tier": "high"}, True),
        ({"inject_mode": "risk_based", "risk_tiers": ["high"]}, {"tier": "critical"}, False),
        ({"inject_mode": "risk_based", "risk_tiers": ["high"]}, {}, False),
        ({"inject_mode": "risk_based"}, {}, False),
        ({"inject_mode": "risk_based", "risk_tiers": ["low"], "keywords": ["refund"]}, {}, True),
    ],
)
def test_modes(keys: dict[str, Any], wish: dict[str, Any], chosen: bool) -> None:
    """always; on_match by whole words and tier; on_demand by a hint that names it; risk_based by its tier."""
    keys = {"inject_mode": "on_match", **keys}
    atlas = Atlas.from_dict(manifest(context_blocks=[block("b", **keys)]))
    assert ids(choose(atlas, **wish)) == (["b"] if chosen else [])


def test_also_inject() -> None:
    """What a chosen block also injects comes with it, once, through any chain and any cycle; others do not."""
    blocks = [
        block("a", also_inject=["b", "a", "c"]),
        *(block(name, inject_mode="on_demand", also_inject=also) for name, also in (("b", ["c"]), ("c", ["a", "d"]))),
        block("d", inject_mode="on_demand"),
        block("e", inject_mode="on_demand", also_inject=["a"]),
    ]
    atlas = Atlas.from_dict(manifest(context_blocks=blocks))
    assert ids(choose(atlas)) == ["a", "b", "c", "d"]
    assert ids(choose(atlas, hints=("d",))) == ["a", "b", "c", "d"]


def test_also_inject_reaches_packs(tmp_path: Path) -> None:
    """A block may also inject a pack, whose own conditions do not hold."""
    tools = {"capability_id": "cap", "name": "cap", "context_packs": ["k"]}
    other = {"capability_id": "other", "name": "other"}
    parts = {"context_packs": [pack("k", "k.md")], "capabilities": [tools, other]}
    without = load(tmp_path / "a", {"k.md": "text"}, **parts)
    assert ids(choose(without, required=("other",))) == []
    with_block = load(tmp_path / "b", {"k.md": "text"}, context_blocks=[block("a", also_inject=["k"])], **parts)
    assert ids(choose(with_block, required=("other",))) == ["k:k.md", "a"]


def test_order(tmp_path: Path) -> None:
    """By priority, highest first; then the Atlas's order; then packs before blocks, as in the manifest."""
    first = load(
        tmp_path / "a",
        {"1.md": "1", "2.txt": "2"},
        context_packs=[pack("k", "2.txt", "1.md"), pack("low", "1.md", priority=1)],
        context_blocks=[block("late"), block("early", priority=900), block("later")],
    )
    second = load(
        tmp_path / "b",
        atlas_id="com.example.second",
        actions=[],
        context_blocks=[block("x"), block("top", priority=1000)],
    )
    assert ids(choose(first, second)) == ["top", "early", "k:2.txt", "k:1.md", "late", "later", "x", "low:1.md"]
    assert ids(choose(second, first))[:4] == ["top", "early", "x", "k:2.txt"]


def test_content_and_source(tmp_path: Path) -> None:
    """A block carries its text, whose Atlas it is, its kind, and a quarter of its letters as a token estimate."""
    atlas = load(tmp_path, {"a.md": "ä" * 5, "b.JSON": "{}", "c": ""}, context_packs=[pack("k", "a.md", "b.JSON", "c")])
    blocks = choose(atlas).blocks
    assert [item.content_type for item in blocks] == ["text/markdown", "application/json", "text/plain"]
    assert [item.token_estimate for item in blocks] == [2, 1, 0]
    assert {item.source for item in blocks} == {"com.example.tests"}


@pytest.mark.parametrize(
    ("limit", "kept", "dropped"),
    [
        (None, ["k:a.md", "k:b.md", "k:c.md"], ()),
        (25, ["k:a.md", "k:b.md", "k:c.md"], ()),
        (24, ["k:a.md", "k:b.md"], ("k:c.md",)),
        (15, ["k:a.md", "k:c.md"], ("k:b.md",)),
        (9, ["k:c.md"], ("k:a.md", "k:b.md")),
        (0, [], ("k:a.md", "k:b.md", "k:c.md")),
    ],
)
def test_max_tokens(limit: int | None, kept: list[str], dropped: tuple[str, ...], tmp_path: Path) -> None:
    """Beyond a pack's ``max_tokens`` whole files are left out and named; none is ever cut."""
    files = {"a.md": LOREM, "b.md": LOREM, "c.md": "x" * 20}
    keys = {} if limit is None else {"max_tokens": limit}
    selection = choose(load(tmp_path, files, context_packs=[pack("k", *files, **keys)]))
    assert (ids(selection), selection.dropped) == (kept, dropped)
    assert all(item.content == files[item.block_id.removeprefix("k:")] for item in selection.blocks)


def test_pack_conditions(tmp_path: Path) -> None:
    """A pack whose conditions do not hold is left out."""
    atlas = load(
        tmp_path,
        {"k.md": "k"},
        context_packs=[pack("k", "k.md", conditions={"risk_tiers": ["high"]}), pack("free", "k.md")],
    )
    assert ids(choose(atlas, holds=True)) == ["k:k.md", "free:k.md"]
    assert ids(choose(atlas, holds=False)) == ["free:k.md"]


@pytest.mark.parametrize(
    ("required", "chosen"),
    [
        ((), ["mine:k.md", "shared:k.md", "free:k.md"]),
        (("one",), ["mine:k.md", "shared:k.md", "free:k.md"]),
        (("two",), ["shared:k.md", "free:k.md"]),
        (("two", "one"), ["mine:k.md", "shared:k.md", "free:k.md"]),
        (("none",), ["free:k.md"]),
    ],
)
def test_packs_of_capabilities(required: tuple[str, ...], chosen: list[str], tmp_path: Path) -> None:
    """A pack that capabilities list is for those, once a request names what it needs."""
    capabilities = [
        {"capability_id": "one", "name": "1", "context_packs": ["mine", "shared"]},
        {"capability_id": "two", "name": "2", "context_packs": ["shared"]},
    ]
    packs = [pack(name, "k.md") for name in ("mine", "shared", "free")]
    atlas = load(tmp_path, {"k.md": "k"}, context_packs=packs, capabilities=capabilities)
    assert ids(choose(atlas, required=required)) == chosen


@pytest.mark.filterwarnings("ignore::cra_middleware.policies.AtlasWarning")
def test_one_text_and_timed_packs(tmp_path: Path) -> None:
    """A session has the documents as blocks and as one text; a pack may be for the morning only, or for a session."""
    (tmp_path / "early.md").write_text("Good morning.\n")
    morning = {"time_window": {"start": "06:00", "end": "11:00"}}
    packs = [
        pack("early", "early.md", conditions=morning, priority=200),
        pack("never", "early.md", conditions={"arguments": {"amount": 5}}),
    ]
    atlas, found = inspect(write_manifest(tmp_path, context_packs=packs, context_blocks=[block("tone")]))
    assert atlas is not None
    assert [item.code for item in found] == ["W010"]
    for hour, text in (("10:59", "Good morning.\n\ntone"), ("11:00", "tone")):
        clock = FrozenClock(f"2026-01-05T{hour}:00+00:00")
        with Runtime(atlas, clock=clock) as runtime, runtime.session() as session:
            assert session.context_text == text
            assert session.context_text == "\n\n".join(item.content.strip() for item in session.context)


def write_manifest(folder: Path, **parts: Any) -> Path:
    (folder / "atlas.json").write_text(json.dumps(manifest(**parts)))
    return folder
