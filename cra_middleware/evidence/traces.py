"""Where traces and their ledger lie, as whoever verifies them reads them: a folder, or a store. Nothing is written."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Protocol, runtime_checkable

from cra_middleware._ids import is_id
from cra_middleware.errors import SinkError
from cra_middleware.trace.entry import Entry
from cra_middleware.trace.ledger.book import LedgerBook, read_book, read_head
from cra_middleware.trace.pruned import SUFFIX as PRUNED
from cra_middleware.trace.pruned import KeepsHashes, Pruned, read_pruned
from cra_middleware.trace.sink import TraceStore
from cra_middleware.trace.storage.segments import Segment, durable_events, read_segments, segments_in, segments_of


class Record(Protocol):
    """One session as it is kept. Every method may raise ``SinkError``."""

    session_id: str

    @property
    def paths(self) -> tuple[str, ...]:
        """Its files, where it has some."""
        ...

    def unfit(self) -> str | None:
        """Why it must not be read at all."""
        ...

    def is_gone(self) -> bool:
        """Whether nothing of it is there but, maybe, what pruning left."""
        ...

    def pruned(self) -> Pruned | None:
        """What is kept of removed events."""
        ...

    def durable(self) -> int | None:
        """How many events it had for sure, as was noted beside them."""
        ...

    def lines(self, first: int, /) -> Iterator[bytes]:
        """The lines from event ``first`` on."""
        ...

    def one_file(self) -> Path | None:
        """The file that is all of it, if it is one; its parts may be verified at once."""
        ...


class Traces(Protocol):
    """Sessions and the ledger over them. Every method may raise ``SinkError``."""

    @property
    def name(self) -> str:
        """For messages; holds no password."""
        ...

    @property
    def kind(self) -> str:
        """``folder`` or ``database``."""
        ...

    def book(self) -> LedgerBook | None:
        """The ledger, or None when there is none."""
        ...

    def has_ledger(self) -> bool:
        """Whether there is one."""
        ...

    def head(self) -> bytes | None:
        """The signed head that lies with it, or None; not checked."""
        ...

    def session_ids(self) -> set[str]:
        """Those of which something is there."""
        ...

    def gone(self) -> set[str]:
        """Those of which nothing but hashes is left."""
        ...

    def record(self, session_id: str, /) -> Record:
        """One of them, or one that is not there."""
        ...


class LedgerEntries(Protocol):
    """A ledger, page by page. Every method may raise ``SinkError``, and ``ValueError`` at what is no entry."""

    def is_empty(self) -> bool:
        """Whether nothing was ever noted."""
        ...

    def in_order(self) -> Iterator[Entry]:
        """All entries; ``ValueError`` also where one is not there."""
        ...

    def by_session(self) -> Iterator[tuple[int, Entry]]:
        """All entries, those about one session one behind the other, each with its place."""
        ...

    def about(self, session_id: str, /) -> list[tuple[int, Entry]]:
        """Those about one session, each with its place."""
        ...


@runtime_checkable
class SignedStore(Protocol):
    """A store that keeps a ledger, and notes how many events it was given."""

    def read_entries(self) -> LedgerEntries:
        """The ledger, page by page."""
        ...

    def read_book(self) -> LedgerBook | None:
        """The ledger."""
        ...

    def read_head(self) -> bytes | None:
        """The last signed head."""
        ...

    def noted_events(self, session_id: str, /) -> int | None:
        """How many events of a session were committed."""
        ...


@runtime_checkable
class PrunableStore(KeepsHashes, Protocol):
    """A store whose sessions may be pruned, each as a whole. Every method may raise ``SinkError``."""

    def last_lines(self) -> Iterator[tuple[str, bytes]]:
        """Every session that was not pruned, with its last line."""
        ...

    def prune(self, session_id: str, pruned: Pruned, /) -> str | None:
        """Put hashes in the place of a session, or say why it stays; ``PrunedError`` when it is gone already."""
        ...

    def pruned_ids(self) -> list[str]:
        """The sessions that were pruned."""
        ...


class FolderTraces:
    """A folder of trace files."""

    kind = "folder"

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        self._files: dict[str, list[Segment]] | None = None  # as they were when all sessions were asked for

    @property
    def name(self) -> str:
        return str(self._folder)

    def book(self) -> LedgerBook | None:
        return read_book(self._folder)

    def has_ledger(self) -> bool:
        return self.book() is not None

    def head(self) -> bytes | None:
        return read_head(self._folder)

    def session_ids(self) -> set[str]:
        self._files = segments_in(self._folder)
        try:
            names = {path.name.removesuffix(PRUNED) for path in self._folder.iterdir() if path.name.endswith(PRUNED)}
        except OSError as error:
            raise SinkError(f"{self._folder} cannot be read: {error.strerror}") from error
        return set(self._files) | {name for name in names if is_id(name)}

    def gone(self) -> set[str]:
        return self.session_ids() - set(self._files or ())

    def record(self, session_id: str, /) -> FolderRecord:
        files = segments_of(self._folder, session_id) if self._files is None else self._files.get(session_id, [])
        return FolderRecord(self._folder, session_id, files)


class FolderRecord:
    """The files of a session."""

    def __init__(self, folder: Path, session_id: str, files: list[Segment]) -> None:
        self.session_id = session_id
        self._folder = folder
        self._files = files

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(str(known.path) for known in self._files)

    def unfit(self) -> str | None:
        for known in self._files:
            if not known.path.is_file():  # a pipe or a device planted there would never end
                return f"{known.path} is not a plain file"
        return None

    def is_gone(self) -> bool:
        return not self._files

    def pruned(self) -> Pruned | None:
        return read_pruned(self._folder, self.session_id)

    def durable(self) -> int | None:
        return durable_events(self._folder, self.session_id)

    def lines(self, first: int, /) -> Iterator[bytes]:
        """A file that should have been removed with others counts for what was not."""
        surplus = max(0, first - self._files[0].first) if self._files else 0
        return islice(read_segments(self._files), surplus, None)

    def one_file(self) -> Path | None:
        return self._files[0].path if len(self._files) == 1 else None


class StoreTraces:
    """A store that keeps no files: a database."""

    kind = "database"

    def __init__(self, store: TraceStore, name: str) -> None:
        """``name`` is for messages: give it without a password."""
        self._store = store
        self._signed = store if isinstance(store, SignedStore) else None
        self.prunable = store if isinstance(store, PrunableStore) else None
        self.name = name

    def has_ledger(self) -> bool:
        return self._signed is not None and not self._signed.read_entries().is_empty()

    def entries(self) -> LedgerEntries | None:
        """The ledger, page by page; None where there can be none."""
        return None if self._signed is None else self._signed.read_entries()

    def book(self) -> LedgerBook | None:
        return None if self._signed is None else self._signed.read_book()

    def head(self) -> bytes | None:
        return None if self._signed is None else self._signed.read_head()

    def session_ids(self) -> set[str]:
        return self.gone() | set(self._store.session_ids())

    def gone(self) -> set[str]:
        return set() if self.prunable is None else set(self.prunable.pruned_ids())

    def record(self, session_id: str, /) -> StoreRecord:
        return StoreRecord(self._store, self._signed, self.prunable, session_id)


class StoreRecord:
    """The rows of a session."""

    paths = ()

    def __init__(
        self, store: TraceStore, signed: SignedStore | None, prunable: PrunableStore | None, session_id: str
    ) -> None:
        self.session_id = session_id
        self._store = store
        self._signed = signed
        self._prunable = prunable

    def unfit(self) -> str | None:
        return None

    def is_gone(self) -> bool:
        return self.pruned() is not None

    def pruned(self) -> Pruned | None:
        return None if self._prunable is None else self._prunable.read_pruned(self.session_id)

    def durable(self) -> int | None:
        return None if self._signed is None else self._signed.noted_events(self.session_id)

    def lines(self, first: int, /) -> Iterator[bytes]:
        return islice(self._store.lines(self.session_id), first, None)

    def one_file(self) -> Path | None:
        return None


def traces_of(place: str | Path | Traces) -> Traces:
    """The traces in a folder; whatever else is given is what it is."""
    return FolderTraces(place) if isinstance(place, (str, Path)) else place
