"""Traces and keys for the ledger's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cra_middleware.trace.ledger.folder import FolderPlace
from cra_middleware.trace.ledger.folder_lines import folder_tree
from cra_middleware.trace.ledger.follower import LedgerFollower
from cra_middleware.trace.ledger.owner import Owner
from cra_middleware.trace.ledger.session_tree import SessionTree
from cra_middleware.trace.note import Signer
from tests.trace.forge import lines_of, write_trace

SIGNER = Signer("example.com/bot", bytes(range(32)))
OTHER = Signer("example.com/other", bytes(range(1, 33)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for traces, with an empty ledger."""
    made = tmp_path / "traces"
    (made / "ledger" / "inbox").mkdir(parents=True)
    return made


@pytest.fixture
def trace(folder: Path) -> Path:
    """A sealed session in it."""
    return write_trace(folder)


def session_of(trace: Path) -> str:
    return trace.name.split(".")[0]


def tree_of(trace: Path, size: int | None = None) -> SessionTree:
    """The tree of a session's first events; of all of them by default."""
    tree = folder_tree(trace.parent, session_of(trace))
    tree.grow(len(lines_of(trace)) if size is None else size)
    return tree


def ask(trace: Path, *sizes: int, name: str = "a") -> None:
    """Put entries about a session into the inbox."""
    data = b"".join(tree_of(trace, size).entry().pack() for size in sizes)
    (trace.parent / "ledger" / "inbox" / name).write_bytes(data)


@pytest.fixture
def owners(folder: Path) -> Iterator[Owners]:
    made = Owners(folder)
    yield made
    made.close()


class Owners:
    """One owner of the folder's ledger after the other."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._last: Owner | None = None

    def new(self, signer: Signer = SIGNER) -> Owner:
        """As a new process would be it; the last one lets go before."""
        self.close()
        place = FolderPlace(self._folder)
        hold = place.take()
        assert hold is not None
        trees: dict[str, SessionTree] = {}
        try:
            self._last = Owner(
                place, hold, signer, lambda name: trees.setdefault(name, folder_tree(self._folder, name))
            )
        except BaseException:
            hold.close()
            raise
        return self._last

    def close(self) -> None:
        if self._last is not None:
            self._last.close()
            self.forget()

    def forget(self) -> None:
        """The last one was closed already."""
        self._last = None


@pytest.fixture
def followers(folder: Path) -> Iterator[list[LedgerFollower]]:
    """Those that are appended to it are closed at the end."""
    made: list[LedgerFollower] = []
    yield made
    for follower in made:
        follower.close()
