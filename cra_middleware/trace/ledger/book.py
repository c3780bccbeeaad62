"""What a ledger holds, as it lies in its folder. Reading only; nothing here is believed before it is checked.

ledger/entries        88 bytes an entry, in the order in which the owner read them
ledger/head           the last signed head
ledger/lock           whoever holds its ``flock`` is the owner
ledger/inbox/<name>   entries that a process wants noted; each file is complete when it has its name
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cra_middleware.trace.entry import ENTRY_BYTES, Entry
from cra_middleware.trace.note import MAX_NOTE_BYTES
from cra_middleware.trace.storage.files import failed, without_links
from cra_middleware.trace.tree import Leaves

FOLDER = "ledger"
MAX_INBOX_BYTES = 100_000 * ENTRY_BYTES


class LedgerBook:
    """The entries of one ledger, as they were when it was read."""

    def __init__(self, data: bytes) -> None:
        """``data`` is the file's content; an entry that was cut short at its end does not count."""
        self._data = data

    def __len__(self) -> int:
        return len(self._data) // ENTRY_BYTES

    def __iter__(self) -> Iterator[Entry]:
        """The entries in their order.

        Raises:
            ValueError: at one whose bytes are none.
        """
        for place in range(len(self)):
            yield self.entry(place)

    def entry(self, place: int) -> Entry:
        """One entry.

        Raises:
            ValueError: when its bytes are none.
        """
        return Entry.unpack(self._data[place * ENTRY_BYTES : (place + 1) * ENTRY_BYTES])

    def leaves(self, size: int | None = None) -> Leaves:
        """The leaves of its tree, or of the first ``size`` entries only.

        Raises:
            ValueError: as ``entry``.
        """
        leaves = Leaves()
        for place in range(len(self) if size is None else size):
            leaves.append(self.entry(place).leaf())
        return leaves

    def last_about(self, session_id: str) -> Entry | None:
        """The last entry about a session.

        Raises:
            ValueError: as ``entry``.
        """
        wanted, end = bytes.fromhex(session_id.replace("-", "")), len(self) * ENTRY_BYTES
        while (found := self._data.rfind(wanted, 0, end)) >= 0:
            if found % ENTRY_BYTES == 0:
                return self.entry(found // ENTRY_BYTES)
            end = found + len(wanted) - 1
        return None


def read_book(traces: Path) -> LedgerBook | None:
    """The ledger of a folder of traces, or None when it has none.

    Raises:
        SinkError: when it cannot be read.
    """
    data = _read(traces / FOLDER / "entries", None)
    return None if data is None else LedgerBook(data)


def read_head(traces: Path) -> bytes | None:
    """The signed head that lies in a folder of traces, or None; not checked.

    Raises:
        SinkError: when it cannot be read.
    """
    return _read(traces / FOLDER / "head", MAX_NOTE_BYTES + 1)


def read_inbox_file(path: Path) -> bytes:
    """What one process wants noted.

    Raises:
        SinkError: when it cannot be read.
    """
    return _read(path, MAX_INBOX_BYTES) or b""


def _read(path: Path, most: int | None) -> bytes | None:
    try:
        with open(path, "rb", opener=without_links) as file:
            return file.read() if most is None else file.read(most)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise failed(f"{path} cannot be read", error) from error
