"""What is kept of events that were removed when their time was over: their hashes, so that what follows still verifies.

``<session_id>.pruned`` is the line ``cra-pruned/1`` and then the event_hash of every removed event, 32 bytes each, from
the session's first event on.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from cra_middleware.errors import SinkError
from cra_middleware.trace.chain import Start
from cra_middleware.trace.sinks.files import failed, without_links
from cra_middleware.trace.tree import HASH_BYTES

SUFFIX = ".pruned"
_MAGIC = b"cra-pruned/1\n"


class Pruned(NamedTuple):
    """The hashes of a session's first events, which are not there any more."""

    hashes: bytes

    def __len__(self) -> int:
        return len(self.hashes) // HASH_BYTES

    def hash(self, place: int) -> str:
        """The event_hash of one of them."""
        return self.hashes[place * HASH_BYTES : (place + 1) * HASH_BYTES].hex()

    @property
    def start(self) -> Start:
        """Where what is left begins."""
        return Start(len(self), self.hash(len(self) - 1))


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
    if len(hashes) == len(data) or not hashes or len(hashes) % HASH_BYTES:
        raise SinkError(f"{path} is not what `cra trace prune` writes")
    return Pruned(hashes)


def pruned_text(hashes: bytes) -> bytes:
    """The content of such a file."""
    return _MAGIC + hashes
