"""Merkle trees: the published vectors, the recursive definition of RFC 6962, and every proof altered."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cra_middleware.trace.tree import (
    EMPTY_ROOT,
    MAX_SIZE,
    Frontier,
    Leaves,
    leaf_hash,
    node_hash,
    verify_consistency,
    verify_inclusion,
)

MOST = 40
# The test tree of Certificate Transparency's implementations: eight inputs and the root after each of them.
INPUTS = [
    bytes.fromhex(text)
    for text in (
        *("", "00", "10", "2021", "3031", "40414243", "5051525354555657"),
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)
LEAVES = [sha256(b"leaf %d" % number).digest() for number in range(MOST)]


def tree_of(leaves: list[bytes]) -> Leaves:
    tree = Leaves()
    for leaf in leaves:
        tree.append(leaf)
    return tree


FULL = tree_of(LEAVES)
SIZES = range(MOST + 1)


def half(size: int) -> int:
    """The largest power of two below ``size``."""
    power = 1
    while power * 2 < size:
        power *= 2
    return power


def naive_root(leaves: list[bytes]) -> bytes:
    """MTH, as the RFC writes it."""
    if len(leaves) <= 1:
        return leaves[0] if leaves else sha256(b"").digest()
    middle = half(len(leaves))
    return sha256(b"\x01" + naive_root(leaves[:middle]) + naive_root(leaves[middle:])).digest()


def naive_path(index: int, leaves: list[bytes]) -> list[bytes]:
    """PATH, as the RFC writes it."""
    if len(leaves) == 1:
        return []
    middle = half(len(leaves))
    if index < middle:
        return [*naive_path(index, leaves[:middle]), naive_root(leaves[middle:])]
    return [*naive_path(index - middle, leaves[middle:]), naive_root(leaves[:middle])]


def naive_proof(old: int, leaves: list[bytes], known: bool = True) -> list[bytes]:
    """SUBPROOF, as the RFC writes it."""
    if old == len(leaves):
        return [] if known else [naive_root(leaves)]
    middle = half(len(leaves))
    if old <= middle:
        return [*naive_proof(old, leaves[:middle], known), naive_root(leaves[middle:])]
    return [*naive_proof(old - middle, leaves[middle:], False), naive_root(leaves[:middle])]


def flipped(value: bytes) -> bytes:
    return value[:-1] + bytes([value[-1] ^ 1])


def altered(path: tuple[bytes, ...]) -> list[tuple[bytes, ...]]:
    """A path with one hash changed, missing, too much, twice, cut short, or in another's place."""
    junk = sha256(b"junk").digest()
    found = [(*path, junk), (junk, *path)]
    for place, item in enumerate(path):
        before, after = path[:place], path[place + 1 :]
        found += [
            (*before, *new, *after) for new in ((), (flipped(item),), (item, item), (item[:-1],), (item + b"\0",))
        ]
        if after and after[0] != item:
            found.append((*before, after[0], item, *after[1:]))
    return found


def test_the_published_tree() -> None:
    """The roots of the published tree of eight leaves come out, from both forms of a tree."""
    frontier, tree = Frontier(), Leaves()
    assert frontier.root() == tree.root() == EMPTY_ROOT == sha256(b"").digest()
    for data, root in zip(INPUTS, ROOTS, strict=True):
        frontier.append(leaf_hash(data))
        tree.append(leaf_hash(data))
        assert frontier.root().hex() == tree.root().hex() == root


def test_the_published_paths() -> None:
    """The published inclusion and consistency paths of that tree come out, and verify."""
    tree = tree_of([leaf_hash(data) for data in INPUTS])
    first = (
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    )
    sixth = (
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    )
    growth = (
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    )
    assert tuple(item.hex() for item in tree.inclusion(0, 8)) == first
    assert tuple(item.hex() for item in tree.inclusion(5, 8)) == sixth
    assert tuple(item.hex() for item in tree.consistency(6, 8)) == growth
    root = bytes.fromhex(ROOTS[7])
    assert verify_inclusion(leaf_hash(INPUTS[5]), 5, 8, tree.inclusion(5, 8), root)
    assert verify_consistency(6, 8, tree.consistency(6, 8), bytes.fromhex(ROOTS[5]), root)


@pytest.mark.parametrize("size", SIZES)
def test_roots_follow_the_definition(size: int) -> None:
    """Root and frontier are what the RFC's recursion gives; a copy of a frontier grows on its own."""
    frontier = Frontier()
    for leaf in LEAVES[:size]:
        frontier.append(leaf)
    copy = frontier.copy()
    copy.append(LEAVES[0])
    assert frontier.root() == FULL.root(size) == naive_root(LEAVES[:size])
    assert (frontier.size, copy.size) == (size, size + 1)
    assert copy.root() == naive_root([*LEAVES[:size], LEAVES[0]])


@pytest.mark.parametrize("size", SIZES)
def test_every_inclusion(size: int) -> None:
    """Every leaf's path is the RFC's and verifies; altered, or with another leaf, place, size or root, it does not."""
    root = FULL.root(size)
    for index in range(size):
        path, leaf = FULL.inclusion(index, size), LEAVES[index]
        assert list(path) == naive_path(index, LEAVES[:size])
        assert verify_inclusion(leaf, index, size, path, root)
        for other in altered(path):
            assert not verify_inclusion(leaf, index, size, other, root)
        assert not verify_inclusion(flipped(leaf), index, size, path, root)
        assert not verify_inclusion(leaf, index, size, path, flipped(root))
        assert not any(
            verify_inclusion(leaf, place, size, path, root) for place in range(-2, size + 2) if place != index
        )


@pytest.mark.parametrize("new", SIZES)
def test_every_consistency(new: int) -> None:
    """Every growth's path is the RFC's and verifies; altered, or with another old size or root, it does not."""
    new_root = FULL.root(new)
    for old in range(new + 1):
        path, old_root = FULL.consistency(old, new), FULL.root(old)
        assert list(path) == (naive_proof(old, LEAVES[:new]) if old else [])
        assert verify_consistency(old, new, path, old_root, new_root)
        for other in altered(path):
            assert not verify_consistency(old, new, other, old_root, new_root)
        assert not verify_consistency(old, new, path, flipped(old_root), new_root)
        assert not any(
            verify_consistency(size, new, path, old_root, new_root) for size in range(-2, new + 2) if size != old
        )
        # from nothing any tree may grow
        assert verify_consistency(old, new, path, old_root, flipped(new_root)) is (old == 0 < new)


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=300), st.data())
def test_growth(texts: list[bytes], data: st.DataObject) -> None:
    """A tree proves every leaf it holds and every size it once had."""
    tree = tree_of([leaf_hash(text) for text in texts])
    size = data.draw(st.integers(1, len(texts)))
    index = data.draw(st.integers(0, size - 1))
    root = naive_root([leaf_hash(text) for text in texts[:size]])
    assert tree.root(size) == root
    assert verify_inclusion(leaf_hash(texts[index]), index, size, tree.inclusion(index, size), root)
    assert verify_consistency(size, len(texts), tree.consistency(size, len(texts)), root, tree.root())


NUMBERS = st.integers() | st.integers(-2, 70) | st.sampled_from((MAX_SIZE, MAX_SIZE + 1, 10**400))
TEXTS = st.binary(max_size=33) | st.sampled_from(LEAVES)


@given(NUMBERS, NUMBERS, st.lists(TEXTS, max_size=70), TEXTS, TEXTS)
def test_hostile_proofs(first: int, second: int, path: list[bytes], left: bytes, right: bytes) -> None:
    """Whatever is claimed, a verifier answers yes or no; and no, unless the claim is trivially true."""
    if verify_inclusion(left, first, second, path, right):
        assert (first, second, path, left) == (0, 1, [], right)
    if verify_consistency(first, second, path, left, right):
        assert (first, left) == (0, EMPTY_ROOT) or (first, left, path) == (second, right, [])


def test_sizes_have_a_limit() -> None:
    """A claim about more leaves than others can count is refused, be its path as it may."""
    lefts = [LEAVES[0]] * 63
    root = LEAVES[1]
    for sibling in lefts:
        root = node_hash(root, sibling)
    assert verify_inclusion(LEAVES[1], 0, MAX_SIZE, lefts, root)
    assert not verify_inclusion(LEAVES[1], 0, MAX_SIZE + 1, lefts, root)
    assert not verify_consistency(MAX_SIZE + 1, MAX_SIZE + 1, [], root, root)


def test_no_byte_moves_from_one_hash_to_the_next() -> None:
    """Hashes of other lengths are refused, though the bytes that a node hashes would be the same."""
    left, right, root = *LEAVES[:2], FULL.root(2)
    assert verify_inclusion(left, 0, 2, [right], root)
    assert not verify_inclusion(left + right[:1], 0, 2, [right[1:]], root)
    assert not verify_inclusion(b"short", 0, 1, [], b"short")
    path, new_root = FULL.consistency(1, 2), FULL.root(2)
    assert verify_consistency(1, 2, path, left, new_root)
    assert not verify_consistency(1, 2, [path[0][1:]], left + path[0][:1], new_root)


def test_an_empty_tree_has_one_root() -> None:
    """Nothing is consistent with an empty tree that claims another root."""
    assert verify_consistency(0, 0, [], EMPTY_ROOT, EMPTY_ROOT)
    assert not verify_consistency(0, 0, [], LEAVES[0], LEAVES[0])
    assert not verify_consistency(0, 5, [], LEAVES[0], LEAVES[1])


@pytest.mark.parametrize("size", [-1, MOST + 1])
def test_what_is_not_there_cannot_be_proved(size: int) -> None:
    """Sizes and places outside the tree, and leaves that are no hash, are the caller's error."""
    for ask in (FULL.root, lambda size: FULL.inclusion(0, size), lambda size: FULL.consistency(0, size)):
        with pytest.raises(ValueError, match="there are 40 leaves"):
            ask(size)
    with pytest.raises(ValueError, match="not in a tree"):
        FULL.inclusion(size, MOST)
    with pytest.raises(ValueError, match="does not begin"):
        FULL.consistency(size, MOST)
    for tree in (Frontier(), Leaves()):
        with pytest.raises(ValueError, match="32 bytes"):
            tree.append(b"short")
