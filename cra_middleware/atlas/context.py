"""Which documents an agent is given. Pure: the loader has read them already.

First what is unconditional, then what matches, then what those also inject (breadth first, no repeats);
sorted by priority, highest first, then by the Atlas's order, then the manifest's.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from cra_middleware.atlas.loader import Atlas
from cra_middleware.atlas.manifest import Conditions, ContentType, ContextBlock, ContextPack, RiskTier


@dataclass(frozen=True, slots=True)
class Block:
    """One document to inject."""

    block_id: str
    source: str
    """The Atlas it comes from."""
    content_type: ContentType
    content: str
    priority: int

    @property
    def token_estimate(self) -> int:
        """A rough size in model tokens: a quarter of the letters, rounded up."""
        return -(-len(self.content) // 4)


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request says that context is chosen by."""

    goal: str
    risk_tier: RiskTier
    hints: tuple[str, ...] = ()
    required_capabilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Selection:
    """What is injected, and what was left out because a pack's ``max_tokens`` was used up."""

    blocks: tuple[Block, ...]
    dropped: tuple[str, ...]


def select(atlases: Sequence[Atlas], wish: Wish, holds: Callable[[Conditions], bool]) -> Selection:
    """Choose blocks; ``holds`` says whether a pack's conditions are met."""
    chosen: list[tuple[int, int, int, Block]] = []
    dropped: list[str] = []
    for order, atlas in enumerate(atlases):
        names = _wanted(atlas, wish, holds)
        manifest = atlas.manifest
        entries: tuple[ContextPack | ContextBlock, ...] = (*manifest.context_packs, *manifest.context_blocks)
        for position, entry in enumerate(entries):
            if _name(entry) not in names:
                continue
            for block in _render(atlas, entry, dropped):
                chosen.append((-block.priority, order, position, block))
    chosen.sort(key=lambda item: item[:3])
    return Selection(tuple(item[3] for item in chosen), tuple(dropped))


def _name(entry: ContextPack | ContextBlock) -> str:
    return entry.pack_id if isinstance(entry, ContextPack) else entry.context_id


def _wanted(atlas: Atlas, wish: Wish, holds: Callable[[Conditions], bool]) -> set[str]:
    manifest = atlas.manifest
    queue = deque(
        pack.pack_id for pack in manifest.context_packs if _pack_fits(atlas, pack, wish) and holds(pack.conditions)
    )
    queue.extend(block.context_id for block in manifest.context_blocks if _block_fits(block, wish))
    follow = {block.context_id: block.also_inject for block in manifest.context_blocks}
    names: set[str] = set()
    while queue:
        name = queue.popleft()
        if name not in names:
            names.add(name)
            queue.extend(follow.get(name, ()))
    return names


def _pack_fits(atlas: Atlas, pack: ContextPack, wish: Wish) -> bool:
    """A pack that capabilities list is for those capabilities, once a request names the ones it needs."""
    owners = {entry.capability_id for entry in atlas.manifest.capabilities if pack.pack_id in entry.context_packs}
    return not owners or not wish.required_capabilities or not owners.isdisjoint(wish.required_capabilities)


def _block_fits(block: ContextBlock, wish: Wish) -> bool:
    if block.inject_mode == "always":
        return True
    if block.inject_mode == "on_demand":
        return block.context_id in wish.hints
    tier = not block.risk_tiers or wish.risk_tier in block.risk_tiers
    if block.inject_mode == "risk_based":
        return bool(block.risk_tiers) and tier
    return tier and (not block.keywords or any(_mentions(wish, keyword) for keyword in block.keywords))


def _mentions(wish: Wish, keyword: str) -> bool:
    pattern = re.compile(rf"(?<!\w){re.escape(keyword)}(?!\w)", re.IGNORECASE)
    return any(pattern.search(text) for text in (wish.goal, *wish.hints))


def _render(atlas: Atlas, entry: ContextPack | ContextBlock, dropped: list[str]) -> Iterator[Block]:
    source = atlas.manifest.atlas_id
    if isinstance(entry, ContextBlock):
        yield Block(entry.context_id, source, entry.content_type, entry.content, entry.priority)
        return
    left = entry.max_tokens
    for file in entry.files:
        block = Block(f"{entry.pack_id}:{file}", source, _content_type(file), atlas.documents[file], entry.priority)
        if left is not None:
            if block.token_estimate > left:
                dropped.append(block.block_id)
                continue
            left -= block.token_estimate
        yield block


def _content_type(file: str) -> ContentType:
    suffix = file.rsplit(".", 1)[-1].lower()
    if suffix == "json":
        return "application/json"
    return "text/markdown" if suffix in ("md", "markdown") else "text/plain"
