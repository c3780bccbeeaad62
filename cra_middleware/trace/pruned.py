"""What is kept of events that were removed when their time was over: their hashes, so that what follows still verifies.

``<session_id>.pruned`` is the line ``cra-pruned/1`` and then the event_hash of every removed event, 32 bytes each, from
the session's first event on. A database keeps the same hashes in a row, and the session's own row, with ``pruned``
where the name of its writer stood: nobody opens it any more, and its id is not used again.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from cra_middleware.errors import SinkError
from cra_middleware.trace.chain import Start
from cra_middleware.trace.storage.files import failed, without_links
from cra_middleware.trace.tree import HASH_BYTES

SUFFIX = ".pruned"
WRITER = "pruned"
"""Stands where the name of a session's writer stood, in a database."""
_MAGIC = b"cra-pruned/1\n"


class PrunedError(SinkError):
    """A session is not there any more: its time was over. Its id stays taken."""

    def __init__(self, session_id: str) -> None:
        super().__init__(f"session {session_id} was here, and was pruned: take another id")


class Pruned(NamedTuple):
    """The hashes of a session's first events, which are not there any more."""

    hashes: bytes

    @classmethod
    def read(cls, hashes: bytes, name: str) -> Pruned:
        """The same, from what was kept under ``name``.

        Raises:
            SinkError: when it is no hashes.
        """
        if not hashes or len(hashes) % HASH_BYTES:
            raise SinkError(f"{name} is not what `cra trace prune` writes")
        return cls(hashes)

    def __len__(self) -> int:
        return len(self.hashes) // HASH_BYTES

    def hash(self, place: int) -> str:
        """The event_hash of one of them."""
        return self.hashes[place * HASH_BYTES : (place + 1) * HASH_BYTES].hex()

    @property
    def start(self) -> Start:
        """Where what is left begins."""
        return Start(len(self), self.hash(len(self) - 1))


@runtime_checkable
class KeepsHashes(Protocol):
    """A store that says what is kept of removed events."""

    def read_pruned(self, session_id: str, /) -> Pruned | None:
        """What is kept of a session's first events, where they were removed.

        Raises:
            SinkError: when it cannot be read.
        """
        ...


def pruned_file(folder: Path, session_id: str) -> Path:
    """Where the hashes of a session's removed events are kept."""
    return folder / f"{session_id}{SUFFIX}"


def read_pruned(folder: Path, session_id: str) -> Pruned | None:
    """What is kept of a session's removed events, or None when none were removed.

    Raises:
        SinkError: when it cannot be read, or is no such file.
    """
    path = pruned_file(folder, session_id)
    try:
        with open(path, "rb", opener=without_links) as file:
            data = file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise failed(f"{path} cannot be read", error) from error
    hashes = data.removeprefix(_MAGIC)
    return Pruned.read(b"" if len(hashes) == len(data) else hashes, str(path))


def pruned_text(hashes: bytes) -> bytes:
    """The content of such a file."""
    return _MAGIC + hashes
