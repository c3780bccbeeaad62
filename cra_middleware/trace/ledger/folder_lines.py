"""The lines of a session in a folder of traces, over all of its files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cra_middleware.trace.ledger.session_tree import SessionTree
from cra_middleware.trace.profiles import MAX_LINE_BYTES
from cra_middleware.trace.storage.files import failed, without_links
from cra_middleware.trace.storage.segments import segments_of


class FolderLines:
    """Reads what the current file has, and opens the one that begins where it ends."""

    def __init__(self, folder: Path, session_id: str) -> None:
        self._folder = folder
        self._session_id = session_id
        self.restart()

    def restart(self) -> None:
        self._path: Path | None = None
        self._offset = 0

    def read(self, first: int, size: int, /) -> Iterator[bytes]:
        files = {known.first: known for known in segments_of(self._folder, self._session_id)}
        following = files.get(first)
        if following is not None and following.path != self._path:
            self._path, self._offset = following.path, 0
        if self._path is None:
            return
        # A file counts up to where the next one begins.
        end = min(size, min((begin for begin in files if begin > first), default=size))
        try:
            with open(self._path, "rb", opener=without_links) as file:
                file.seek(self._offset)
                for _ in range(first, end):
                    line = file.readline(MAX_LINE_BYTES + 1)
                    if not line.endswith(b"\n"):
                        return
                    yield line
                    self._offset += len(line)
        except OSError as error:
            raise failed(f"{self._path} cannot be read", error) from error


def folder_tree(folder: Path, session_id: str) -> SessionTree:
    """The tree of a session in a folder of traces, not grown yet."""
    return SessionTree(session_id, FolderLines(folder, session_id))
