"""Atlases that are kept for several servers: posted at one, in force at all; or put out of force at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from cra_middleware.server.faults import StoreError


class Stored(NamedTuple):
    """What is kept about one Atlas id."""

    manifest: bytes | None
    """JSON, as it was posted; None when none was, or it was deleted."""
    hides: str | None
    """The policy digest of an Atlas in the servers' files that is out of force, until the files say something else."""
    changed_us: int


class Shelf(NamedTuple):
    """All that is kept, at one moment."""

    revision: int
    """Another one after each change."""
    stored: Mapping[str, Stored]
    """By Atlas id."""


class ShelfError(StoreError):
    """The Atlases that servers share cannot be read or written, or one of them cannot be used."""


class AtlasShelf(Protocol):
    """Where they are kept. Safe under threads and processes; raises ``ShelfError``."""

    def read(self, known: int | None) -> Shelf | None:
        """What is kept now; None when its revision is the ``known`` one."""
        ...

    def change(self, atlas_id: str, work: Callable[[Shelf], Stored | None]) -> Shelf:
        """Keep what ``work`` makes of what is kept, and nothing when it raises; nobody else changes it meanwhile.

        ``work`` is done once more where it is not sure that the first time was kept.
        """
        ...

    def close(self) -> None:
        """Let go of the place; it is opened again when it is used again."""
        ...
