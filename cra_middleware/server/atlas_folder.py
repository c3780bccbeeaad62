"""The Atlases that a server serves: read from folders and files, read again when those change, posted and deleted.

What cannot be read leaves what was in force in force, and is told by ``broken``.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import orjson
from pydantic import JsonValue

from cra_middleware.atlas.loader import MANIFESTS, SUFFIXES, Atlas
from cra_middleware.errors import AtlasError
from cra_middleware.server.faults import Fault

_logger = logging.getLogger("cra_middleware.server")
_Stamp = tuple[tuple[str, int, int], ...]


class _Known(NamedTuple):
    atlas: Atlas
    stamp: _Stamp
    loaded_us: int


class AtlasFolder:
    """Each source is an Atlas (a folder or a file), or a folder of such."""

    def __init__(self, sources: Sequence[str | Path], now_us: Callable[[], int]) -> None:
        """Read them all.

        Raises:
            AtlasError: when one has errors.
        """
        self._sources = [Path(source) for source in sources]
        self._now_us = now_us
        self._lock = threading.RLock()
        self._known: dict[Path, _Known] = {}
        self._seen: dict[Path, _Stamp] = {}
        self._posted: dict[str, _Known] = {}  # where there is no folder to keep them in
        self._unloaded: dict[Path, _Stamp] = {}
        self.broken: dict[str, str] = {}
        """What cannot be read now, and why."""
        for path in self._paths():
            self._known[path] = _Known(Atlas.load(path), _stamp(path), now_us())
        self._seen = {path: known.stamp for path, known in self._known.items()}

    @property
    def atlases(self) -> list[Atlas]:
        """Those that are to be in force."""
        with self._lock:
            return [known.atlas for known in self._all()]

    def loaded(self) -> dict[str, int]:
        """When each was read, by Atlas id."""
        with self._lock:
            return {known.atlas.manifest.atlas_id: known.loaded_us for known in self._all()}

    def refresh(self, apply: Callable[[list[Atlas]], None]) -> bool:
        """Read what has changed, and ``apply`` the new set; whether there was a change."""
        with self._lock:
            found = {path: _stamp(path) for path in self._paths()}
            if found == self._seen:
                return False
            self._seen = found
            self._unloaded = {path: stamp for path, stamp in self._unloaded.items() if found.get(path) == stamp}
            before = dict(self._known)
            self.broken = {}
            self._known = {
                path: self._read(path, stamp, before)
                for path, stamp in found.items()
                if self._is_readable(path, stamp, before)
            }
            return self._apply(apply, before)

    def post(self, manifest: Mapping[str, JsonValue], apply: Callable[[list[Atlas]], None]) -> Atlas:
        """Take up one more.

        Raises:
            AtlasError: when it has errors.
            Fault: when there is one of this id, or it does not go with the others.
        """
        if manifest.get("atlas_version", "1.0") != "1.0":
            raise Fault("ATLAS_VERSION_MISMATCH", "this server reads atlas_version 1.0")
        atlas = Atlas.from_dict(manifest)
        name = atlas.manifest.atlas_id
        with self._lock:
            if name in self.loaded():
                raise Fault("ATLAS_ALREADY_LOADED", f"an Atlas {name} is loaded already")
            folder = self._folder()
            try:
                apply([*self.atlases, atlas])
            except (AtlasError, ValueError) as error:
                raise Fault("INVALID_ATLAS_MANIFEST", f"it does not go with the others: {error}") from error
            if folder is None:
                self._posted[name] = _Known(atlas, (), self._now_us())
                return atlas
            path = folder / f"{name}.json"
            fresh = path.with_name(f".{name}.json.new")
            fresh.write_bytes(orjson.dumps(manifest, option=orjson.OPT_INDENT_2))
            os.replace(fresh, path)
            self._unloaded.pop(path, None)
            self._known[path] = _Known(atlas, _stamp(path), self._now_us())
            self._seen[path] = self._known[path].stamp
            return atlas

    def delete(self, atlas_id: str, apply: Callable[[list[Atlas]], None]) -> None:
        """Put one out of force. Only what ``post`` wrote is removed from the disk.

        Raises:
            Fault: when there is none, or others need it.
        """
        with self._lock:
            rest = [atlas for atlas in self.atlases if atlas.manifest.atlas_id != atlas_id]
            if len(rest) == len(self.atlases):
                raise Fault("ATLAS_NOT_FOUND", f"no Atlas {atlas_id[:256]} is loaded")
            try:
                apply(rest)
            except (AtlasError, ValueError) as error:
                raise Fault("INVALID_ATLAS_MANIFEST", f"the others need it: {error}") from error
            self._posted.pop(atlas_id, None)
            folder = self._folder()
            for path, known in list(self._known.items()):
                if known.atlas.manifest.atlas_id == atlas_id:
                    if folder is not None and path == folder / f"{atlas_id}.json":
                        path.unlink(missing_ok=True)
                        del self._known[path]
                        self._seen.pop(path, None)
                    else:  # the operator's own files stay; it is read again when they change
                        self._unloaded[path] = known.stamp

    def _all(self) -> list[_Known]:
        kept = [known for path, known in self._known.items() if path not in self._unloaded]
        return [*kept, *self._posted.values()]

    def _is_readable(self, path: Path, stamp: _Stamp, before: Mapping[Path, _Known]) -> bool:
        known = before.get(path)
        if known is not None and known.stamp == stamp:
            return True
        try:
            Atlas.load(path)
        except AtlasError as error:
            self.broken[str(path)] = str(error)
            _logger.error("%s is not used as it is now: %s", path, error)
        return known is not None or str(path) not in self.broken

    def _read(self, path: Path, stamp: _Stamp, before: Mapping[Path, _Known]) -> _Known:
        known = before.get(path)
        if known is not None and (known.stamp == stamp or str(path) in self.broken):
            return known
        return _Known(Atlas.load(path), stamp, self._now_us())

    def _apply(self, apply: Callable[[list[Atlas]], None], before: dict[Path, _Known]) -> bool:
        if {path: known.atlas for path, known in before.items()} == {
            path: known.atlas for path, known in self._known.items()
        }:
            return bool(self.broken)
        try:
            apply(self.atlases)
        except (AtlasError, ValueError) as error:
            self.broken["(all together)"] = str(error)
            self._known = before
        return True

    def _folder(self) -> Path | None:
        return next((source for source in self._sources if source.is_dir() and not _is_atlas(source)), None)

    def _paths(self) -> list[Path]:
        return [path for source in self._sources for path in _atlases_in(source)]


def _is_atlas(folder: Path) -> bool:
    return any((folder / name).exists() for name in MANIFESTS)


def _atlases_in(source: Path) -> Iterator[Path]:
    if not source.is_dir() or _is_atlas(source):
        yield source
        return
    for path in sorted(source.iterdir()):
        if not path.name.startswith(".") and (path.is_dir() or path.suffix in SUFFIXES):
            yield path


def _stamp(path: Path) -> _Stamp:
    """What changes when anything of an Atlas does."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    found = []
    for file in files:
        try:
            state = file.stat()
        except OSError:
            continue
        found.append((str(file), state.st_mtime_ns, state.st_size))
    return tuple(found)
