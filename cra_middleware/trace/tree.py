"""Merkle trees over SHA-256, as RFC 6962 (section 2.1) and RFC 9162 define them.

    empty tree   SHA256("")
    leaf         SHA256(0x00 || data)
    node         SHA256(0x01 || left || right)

The left side of a tree of n leaves holds the largest power of two below n. The same tree comes out when neighbours are
hashed in pairs, level by level, and a last one without a neighbour goes up as it is: that is how it is computed here,
without recursion. Every ``leaf`` below is a leaf *hash*.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

HASH_BYTES = 32
MAX_SIZE = 2**63 - 1
"""Leaves in a tree: what other implementations keep in a signed 64-bit integer."""
EMPTY_ROOT = sha256(b"").digest()


def leaf_hash(data: bytes) -> bytes:
    """The hash of a leaf that holds ``data``."""
    return sha256(b"\0" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of a node above two others."""
    return sha256(b"\1" + left + right).digest()


class Frontier:
    """The right edge of a growing tree: at most one hash for each power of two, enough to append and for the root."""

    __slots__ = ("_peaks", "_size")

    def __init__(self) -> None:
        self._size = 0
        self._peaks: list[bytes] = []  # the roots of the full subtrees that make up the tree, the largest first

    @property
    def size(self) -> int:
        """How many leaves the tree has."""
        return self._size

    def append(self, leaf: bytes) -> None:
        """Add a leaf at the end.

        Raises:
            ValueError: when ``leaf`` is no hash.
        """
        _check_hash(leaf)
        full = self._size
        while full & 1:  # two subtrees of one height are one of the next
            leaf = node_hash(self._peaks.pop(), leaf)
            full >>= 1
        self._peaks.append(leaf)
        self._size += 1

    def root(self) -> bytes:
        """The root of the tree as it is now."""
        if not self._peaks:
            return EMPTY_ROOT
        root = self._peaks[-1]
        for peak in self._peaks[-2::-1]:
            root = node_hash(peak, root)
        return root

    def copy(self) -> Frontier:
        """Another frontier of the same tree, which grows on its own."""
        other = Frontier()
        other._size, other._peaks = self._size, self._peaks.copy()
        return other


class Leaves:
    """All leaves of a tree, 32 bytes each: what a proof is made from.

    Nothing else is kept, so a root or a proof hashes the whole tree once: about a second for a million leaves.
    """

    __slots__ = ("_hashes",)

    def __init__(self) -> None:
        self._hashes = bytearray()

    def __len__(self) -> int:
        return len(self._hashes) // HASH_BYTES

    def append(self, leaf: bytes) -> None:
        """Add a leaf at the end.

        Raises:
            ValueError: when ``leaf`` is no hash.
        """
        _check_hash(leaf)
        self._hashes += leaf

    def root(self, size: int | None = None) -> bytes:
        """The root of the first ``size`` leaves, or of all.

        Raises:
            ValueError: when there are fewer.
        """
        size = len(self) if size is None else size
        self._check_size(size)
        return self._subtree(0, size) if size else EMPTY_ROOT

    def inclusion(self, index: int, size: int) -> tuple[bytes, ...]:
        """The path that shows that leaf ``index`` is in the tree of the first ``size`` leaves, from the leaf upwards.

        Raises:
            ValueError: when there is no such leaf in it, or there are fewer leaves.
        """
        self._check_size(size)
        if not 0 <= index < size:
            raise ValueError(f"leaf {index} is not in a tree of {size}")
        path: list[bytes] = []
        level = bytes(memoryview(self._hashes)[: size * HASH_BYTES])
        while len(level) > HASH_BYTES:
            place = (index ^ 1) * HASH_BYTES
            if place < len(level):
                path.append(level[place : place + HASH_BYTES])
            level = _level_above(level)
            index >>= 1
        return tuple(path)

    def consistency(self, old: int, new: int) -> tuple[bytes, ...]:
        """The path that shows that the tree of ``new`` leaves begins with that of ``old``, from below upwards.

        It is empty when ``old`` is 0 or ``new``: then the two roots say it all.

        Raises:
            ValueError: when ``old`` is larger than ``new``, or there are fewer leaves.
        """
        self._check_size(new)
        if not 0 <= old <= new:
            raise ValueError(f"a tree of {new} leaves does not begin with one of {old}")
        if old == 0:
            return ()
        path: list[bytes] = []
        start, end = 0, new
        while end != old:
            middle = start + (1 << (end - start - 1).bit_length() - 1)
            if old <= middle:
                path.append(self._subtree(middle, end))
                end = middle
            else:
                path.append(self._subtree(start, middle))
                start = middle
        if start:  # else the old tree is a subtree of the new one, and its root is known
            path.append(self._subtree(start, end))
        return tuple(reversed(path))

    def _subtree(self, start: int, end: int) -> bytes:
        level = bytes(memoryview(self._hashes)[start * HASH_BYTES : end * HASH_BYTES])
        while len(level) > HASH_BYTES:
            level = _level_above(level)
        return level

    def _check_size(self, size: int) -> None:
        if not 0 <= size <= len(self):
            raise ValueError(f"there are {len(self)} leaves, not {size}")


def verify_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """Whether ``path`` shows that ``leaf`` stands at ``index`` in the tree of ``size`` leaves with that ``root``."""
    if not 0 <= index < size <= MAX_SIZE or not _are_hashes(leaf, root, *path):
        return False
    lefts = _left_siblings(index, size - 1)
    if len(path) != len(lefts):
        return False
    found = leaf
    for sibling, is_left in zip(path, lefts, strict=True):
        found = node_hash(sibling, found) if is_left else node_hash(found, sibling)
    return found == root


def verify_consistency(old_size: int, new_size: int, path: Sequence[bytes], old_root: bytes, new_root: bytes) -> bool:
    """Whether ``path`` shows that the tree of ``new_size`` leaves begins with that of ``old_size``."""
    if not 0 <= old_size <= new_size <= MAX_SIZE or not _are_hashes(old_root, new_root, *path):
        return False
    if old_size == new_size:
        return not path and old_root == new_root and (old_size > 0 or old_root == EMPTY_ROOT)
    if old_size == 0:
        return not path and old_root == EMPTY_ROOT
    # The climb begins at the last full subtree of the old tree, of 2**height leaves: it is whole in both trees.
    height = (old_size & -old_size).bit_length() - 1
    index, last = old_size - 1 >> height, new_size - 1 >> height
    hashes = [old_root, *path] if index == 0 else list(path)  # at index 0 that subtree is the old tree itself
    lefts = _left_siblings(index, last)
    if len(hashes) != len(lefts) + 1:
        return False
    old = new = hashes[0]
    for sibling, is_left in zip(hashes[1:], lefts, strict=True):
        if is_left:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
        else:
            new = node_hash(new, sibling)
    return old == old_root and new == new_root


def _left_siblings(index: int, last: int) -> list[bool]:
    """For each step from node ``index`` up to the root, whether the sibling is on the left.

    ``last`` is the last node on the same level. Below the point where their ways to the root meet, the bits of
    ``index`` tell left from right; above it only left siblings are met, one for each bit that is set.
    """
    inner = (index ^ last).bit_length()
    return [index >> height & 1 == 1 for height in range(inner)] + [True] * (index >> inner).bit_count()


def _level_above(level: bytes) -> bytes:
    pairs = len(level) - len(level) % (2 * HASH_BYTES)
    hashed = [sha256(b"\1" + level[at : at + 64]).digest() for at in range(0, pairs, 64)]
    return b"".join((*hashed, level[pairs:]))


def _are_hashes(*values: bytes) -> bool:
    return all(len(value) == HASH_BYTES for value in values)


def _check_hash(leaf: bytes) -> None:
    if len(leaf) != HASH_BYTES:
        raise ValueError(f"a leaf hash has {HASH_BYTES} bytes, not {len(leaf)}")
