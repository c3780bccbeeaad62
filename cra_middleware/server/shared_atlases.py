"""The Atlases of several servers: each one's own files, and what was posted or deleted at any of them.

The files have the last word: while they hold an Atlas of an id, a stored one of that id rests, and ``broken`` says so.
A stored one that cannot be used leaves in force what was; a server that starts refuses to.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import orjson
from pydantic import JsonValue

from cra_middleware.atlas.loader import Atlas
from cra_middleware.errors import AtlasError
from cra_middleware.server.atlas_folder import ALL, AtlasFolder, Known, read_posted
from cra_middleware.server.faults import Fault, why_unfit
from cra_middleware.server.shelf import AtlasShelf, Shelf, ShelfError, Stored

_logger = logging.getLogger("cra_middleware.server")
Apply = Callable[[list[Atlas]], None]


class SharedAtlases(AtlasFolder):
    """Files as in ``AtlasFolder``; what is posted goes to the shelf, and never into a folder."""

    def __init__(self, sources: Sequence[str | Path], now_us: Callable[[], int], shelf: AtlasShelf) -> None:
        """Read them all.

        Raises:
            AtlasError: when one in the files has errors.
            ShelfError: when what is stored cannot be read, or one that would be in force has errors.
        """
        self._shelf = shelf
        self._revision: int | None = None
        self._manifests: dict[str, bytes] = {}
        self._stored: dict[str, Known] = {}
        self._hidden: dict[str, str] = {}
        self._unread: dict[str, str] = {}
        super().__init__(sources, now_us)
        found = shelf.read(None)
        assert found is not None
        self._take(found)
        in_files = {known.atlas.manifest.atlas_id for known in self._files()}
        wrong = {name: why for name, why in self._unread.items() if name not in in_files}
        if wrong:
            name, why = min(wrong.items())
            raise ShelfError(
                f"the stored Atlas {name} cannot be used: {why}; delete it at a server that runs, put it right in the "
                "files, or remove its row from cra_atlases"
            )

    @property
    def broken(self) -> dict[str, str]:
        """What cannot be used now, and why; stored Atlases by their id."""
        with self._lock:
            in_files = {known.atlas.manifest.atlas_id for known in self._files()}
            rest = "stored, but rests: the files of this server have an Atlas of this id"
            return {**self._broken, **self._unread, **{name: rest for name in self._stored if name in in_files}}

    def refresh(self, apply: Apply) -> bool:
        """Read what has changed in the files and on the shelf, and ``apply`` the new set; whether there was a change.

        Raises:
            ShelfError: when the shelf cannot be read now; the files are.
        """
        in_files = super().refresh(apply)
        known = None if in_files and ALL in self._unread else self._revision
        found = self._shelf.read(known)
        with self._lock:
            if found is None or known not in (None, self._revision):  # or somebody was faster
                return in_files
            self._adopt(found, apply)
            return True

    def close(self) -> None:
        self._shelf.close()

    def post(self, manifest: Mapping[str, JsonValue], apply: Apply) -> Atlas:
        """Take up one more, at all servers.

        Raises:
            AtlasError: when it has errors.
            Fault: when there is one of this id, or it does not go with the others.
            ShelfError: when it cannot be kept.
        """
        atlas = read_posted(manifest)
        name = atlas.manifest.atlas_id
        text, now_us = orjson.dumps(manifest), self._now_us()

        def work(shelf: Shelf) -> Stored:
            known = shelf.stored.get(name)
            row = Stored(text, None if known is None else known.hides, now_us)
            if known == row:  # kept by a try whose connection broke
                return row
            self._adopt(shelf, apply)
            if name in self.loaded():
                raise Fault("ATLAS_ALREADY_LOADED", f"an Atlas {name} is loaded already")
            self._try(Shelf(shelf.revision, {**shelf.stored, name: row}), apply, "it does not go with the others")
            return row

        self._change(name, work, apply)
        return atlas

    def delete(self, atlas_id: str, apply: Apply) -> None:
        """Put one out of force, at all servers; the operator's own files stay, and count again when they change.

        Raises:
            Fault: when there is none, or others need it.
            ShelfError: when that cannot be kept.
        """
        passed: list[Stored | None] = []

        def work(shelf: Shelf) -> Stored | None:
            if passed and (shelf.stored.get(atlas_id) == passed[0]):  # kept by a try whose connection broke
                return passed[0]
            self._adopt(shelf, apply)
            if atlas_id not in self.loaded():
                raise Fault("ATLAS_NOT_FOUND", f"no Atlas {atlas_id[:256]} is loaded")
            files = [known.atlas for known in AtlasFolder._all(self)]
            hides = [atlas.policy_digest for atlas in files if atlas.manifest.atlas_id == atlas_id]
            row = Stored(None, hides[0], self._now_us()) if hides else None
            rest = {name: known for name, known in shelf.stored.items() if name != atlas_id}
            wanted = rest if row is None else {**rest, atlas_id: row}
            self._try(Shelf(shelf.revision, wanted), apply, "the others need it")
            passed[:] = [row]
            return row

        self._change(atlas_id, work, apply)

    def _all(self) -> list[Known]:
        files = self._files()
        ids = {known.atlas.manifest.atlas_id for known in files}
        return [*files, *(self._stored[name] for name in sorted(self._stored) if name not in ids)]

    def _files(self) -> list[Known]:
        return [
            known
            for known in super()._all()
            if self._hidden.get(known.atlas.manifest.atlas_id) != known.atlas.policy_digest
        ]

    def _change(self, atlas_id: str, work: Callable[[Shelf], Stored | None], apply: Apply) -> None:
        with self._lock:
            before, in_force = (self._stored, self._manifests, self._hidden), self.atlases
            try:
                self._revision = self._shelf.change(atlas_id, work).revision
            except ShelfError:
                is_changed = self.atlases != in_force
                self._stored, self._manifests, self._hidden = before
                self._revision = None  # nobody knows whether it was kept: the next look tells
                if is_changed:
                    apply(in_force)
                raise

    def _take(self, shelf: Shelf) -> None:
        """Read a shelf; what cannot be read stays as it was."""
        stored: dict[str, Known] = {}
        manifests: dict[str, bytes] = {}
        self._unread = {}
        for name, row in shelf.stored.items():
            if row.manifest is None:
                continue
            known = self._stored.get(name)
            if known is None or self._manifests.get(name) != row.manifest:
                try:
                    known = Known(_named(name, row.manifest), (), row.changed_us)
                except (AtlasError, ValueError) as error:
                    self._unread[name] = str(error)
                    _logger.error("the stored Atlas %s is not used as it is now: %s", name, error)
            if known is not None:
                stored[name] = known
            if name not in self._unread:
                manifests[name] = row.manifest
        self._hidden = {name: row.hides for name, row in shelf.stored.items() if row.hides is not None}
        self._stored, self._manifests, self._revision = stored, manifests, shelf.revision

    def _adopt(self, shelf: Shelf, apply: Apply) -> None:
        """Put in force what others have changed; what does not go together leaves in force what was."""
        try:
            self._try(shelf, apply, "")
        except Fault as fault:
            self._revision, self._unread = shelf.revision, {**self._unread, ALL: str(fault)}

    def _try(self, shelf: Shelf, apply: Apply, why: str) -> None:
        before = (self._stored, self._manifests, self._hidden, self._revision)
        in_force = [known.atlas for known in self._all()]
        self._take(shelf)
        wanted = self.atlases
        if wanted == in_force:
            return
        try:
            apply(wanted)
        except BaseException as error:  # whatever it was, what is known here is what is in force
            self._stored, self._manifests, self._hidden, self._revision = before
            if not isinstance(error, AtlasError | ValueError):
                raise
            unfit = why_unfit(error)
            raise Fault("INVALID_ATLAS_MANIFEST", f"{why}: {unfit}" if why else unfit) from error
        if ALL in self._broken:  # files that did not go with what was stored may go with this: they are read again
            self._seen = {}


def _named(name: str, manifest: bytes) -> Atlas:
    atlas = Atlas.from_dict(orjson.loads(manifest))
    if atlas.manifest.atlas_id != name:
        raise ValueError(f"it calls itself {atlas.manifest.atlas_id}")
    return atlas
