"""The Atlases that a server serves: read from folders and files, read again when those change, posted and deleted.

What cannot be read leaves what was in force in force, and is told by ``broken``.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import orjson
from pydantic import JsonValue

from cra_middleware import presence
from cra_middleware.atlas.loader import MANIFESTS, SUFFIXES, Atlas
from cra_middleware.errors import AtlasError
from cra_middleware.server.faults import Fault, StoreError, why_unfit
from cra_middleware.trace.storage.files import sync_data, sync_folder

_logger = logging.getLogger("cra_middleware.server")
_Stamp = tuple[tuple[str, int, int], ...]


ALL = "(all together)"
"""What is said to be broken when each Atlas is right, and they do not go together."""


class Known(NamedTuple):
    """An Atlas that was read."""

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
        self._known: dict[Path, Known] = {}
        self._seen: dict[Path, _Stamp] = {}
        self._posted: dict[str, Known] = {}  # where there is no folder to keep them in
        self._unloaded: dict[Path, _Stamp] = {}
        self._broken: dict[str, str] = {}
        self._is_closed = False
        for path in self._first_paths():
            self._known[path] = Known(self._load(path), _stamp(path), now_us())
        self._seen = {path: known.stamp for path, known in self._known.items()}

    @property
    def broken(self) -> dict[str, str]:
        """What cannot be read now, and why."""
        return dict(self._broken)

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
            try:
                found = {path: _stamp(path) for path in self._paths()}
            except OSError as error:
                return self._close(error)
            was_closed, self._is_closed = self._is_closed, False
            if found == self._seen and not was_closed:
                return False
            self._seen = found
            self._unloaded = {path: stamp for path, stamp in self._unloaded.items() if found.get(path) == stamp}
            before, was_broken, were_any = dict(self._known), self._broken, bool(self._all())
            self._broken = {}
            read = {path: self._read(path, stamp, before) for path, stamp in found.items()}
            self._known = {path: known for path, known in read.items() if known is not None}
            is_news = self._apply(apply, before)
            self._tell(was_broken, were_any)
            return is_news

    def close(self) -> None:
        """Let go of where they are kept."""

    def post(self, manifest: Mapping[str, JsonValue], apply: Callable[[list[Atlas]], None]) -> Atlas:
        """Take up one more; it is on the disk when this returns.

        Raises:
            AtlasError: when it has errors.
            Fault: when there is one of this id, its file would take the place of another, it does not go with the
                others, or no file can have its name.
            StoreError: when it cannot be kept; it is not in force then.
        """
        atlas = read_posted(manifest)
        name = atlas.manifest.atlas_id
        with self._lock:
            if name in self.loaded():
                raise Fault("ATLAS_ALREADY_LOADED", f"an Atlas {name} is loaded already")
            folder = self._folder()
            if folder is None:
                _put_in_force([*self.atlases, atlas], apply)
                self._posted[name] = Known(atlas, (), self._now_us())
                return atlas
            path = folder / f"{name}.json"
            fresh = path.with_name(f".{name}.json.new")
            try:
                _write(fresh, orjson.dumps(manifest, option=orjson.OPT_INDENT_2))
                if os.path.lexists(path):  # broken, or another's: the operator's in any case
                    raise Fault("ATLAS_ALREADY_LOADED", f"the folder has a {path.name} already, which is not in force")
                with _undone(apply, self.atlases):
                    _put_in_force([*self.atlases, atlas], apply)
                    _rename(fresh, path)
            except OSError as error:
                raise _not_kept(name, error) from error
            finally:
                with suppress(OSError):
                    fresh.unlink(missing_ok=True)
            self._unloaded.pop(path, None)
            self._known[path] = Known(atlas, _stamp(path), self._now_us())
            self._seen[path] = self._known[path].stamp
            return atlas

    def delete(self, atlas_id: str, apply: Callable[[list[Atlas]], None]) -> None:
        """Put one out of force. Only what ``post`` wrote is removed from the disk.

        Raises:
            Fault: when there is none, or others need it.
            StoreError: when its file cannot be removed, and it stays in force; or when it is out of force, and nobody
                knows whether the disk has kept that.
        """
        with self._lock:
            rest = [atlas for atlas in self.atlases if atlas.manifest.atlas_id != atlas_id]
            if len(rest) == len(self.atlases):
                raise Fault("ATLAS_NOT_FOUND", f"no Atlas {atlas_id[:256]} is loaded")
            folder, before, is_removed = self._folder(), self.atlases, False
            _put_in_force(rest, apply, "the others need it")
            for path, known in list(self._known.items()):
                if known.atlas.manifest.atlas_id == atlas_id:
                    if folder is not None and path == folder / f"{atlas_id}.json":
                        try:
                            with _undone(apply, before):
                                path.unlink(missing_ok=True)
                        except OSError as error:
                            raise StoreError(f"the file of Atlas {atlas_id} cannot be removed: {error}") from error
                        del self._known[path]
                        self._seen.pop(path, None)
                        is_removed = True
                    else:  # the operator's own files stay; it is read again when they change
                        self._unloaded[path] = known.stamp
            self._posted.pop(atlas_id, None)
            if folder is not None and is_removed:
                try:
                    sync_folder(folder)
                except OSError as error:
                    raise StoreError(f"Atlas {atlas_id} is removed, perhaps not for good: {error}") from error

    def _all(self) -> list[Known]:
        kept = [known for path, known in self._known.items() if path not in self._unloaded]
        return [*kept, *self._posted.values()]

    def _load(self, path: Path) -> Atlas:
        try:
            return Atlas.load(path)
        except AtlasError as error:
            raise AtlasError(error.findings, "" if path in self._sources else str(path)) from None

    def _read(self, path: Path, stamp: _Stamp, before: Mapping[Path, Known]) -> Known | None:
        """What there is now; what was, where that cannot be read."""
        known = before.get(path)
        if known is not None and known.stamp == stamp:
            return known
        try:
            return Known(Atlas.load(path), stamp, self._now_us())
        except AtlasError as error:
            self._broken[str(path)] = str(error)
            _logger.error("%s is not used as it is now: %s", path, error)
            return known

    def _apply(self, apply: Callable[[list[Atlas]], None], before: dict[Path, Known]) -> bool:
        if {path: known.atlas for path, known in before.items()} == {
            path: known.atlas for path, known in self._known.items()
        }:
            return bool(self._broken)
        try:
            apply(self.atlases)
        except (AtlasError, ValueError) as error:
            self._broken[ALL] = str(error)
            self._known = before
        return True

    def _tell(self, was_broken: Mapping[str, str], were_any: bool) -> None:
        """Let the log say what somebody who has mended or moved a file would have to ask for."""
        if ALL in self._broken:
            return
        for path in self._known:
            if str(path) in was_broken and str(path) not in self._broken and path not in self._unloaded:
                _logger.warning("%s is used again", path)
        if were_any and not self._all():
            _logger.warning("no Atlas is left in %s", ", ".join(map(str, self._sources)))

    def _folder(self) -> Path | None:
        return next((source for source in self._sources if presence.is_dir(source) and not _is_atlas(source)), None)

    def _close(self, error: OSError) -> bool:
        """What lies in a folder that cannot be read is not known to be gone: it stays in force."""
        is_news, self._is_closed = not self._is_closed, True
        if is_news:
            _logger.error("%s cannot be read: %s", error.filename, error.strerror)
        self._broken = {str(error.filename): f"cannot be read ({type(error).__name__})"}
        return is_news

    def _first_paths(self) -> Iterator[Path]:
        for source in self._sources:
            try:
                yield from list(_atlases_in(source))
            except OSError:  # reading it tells why
                yield source

    def _paths(self) -> list[Path]:
        return [path for source in self._sources for path in _atlases_in(source)]


def read_posted(manifest: Mapping[str, JsonValue]) -> Atlas:
    """The Atlas that a client has sent.

    Raises:
        AtlasError: when it has errors.
        Fault: when it is of another version.
    """
    if manifest.get("atlas_version", "1.0") != "1.0":
        raise Fault("ATLAS_VERSION_MISMATCH", "this server reads atlas_version 1.0")
    return Atlas.from_dict(manifest)


def _put_in_force(
    atlases: list[Atlas], apply: Callable[[list[Atlas]], None], why: str = "it does not go with the others"
) -> None:
    try:
        apply(atlases)
    except (AtlasError, ValueError) as error:
        raise Fault("INVALID_ATLAS_MANIFEST", f"{why}: {why_unfit(error)}") from error


@contextmanager
def _undone(apply: Callable[[list[Atlas]], None], before: list[Atlas]) -> Iterator[None]:
    """Where what is done in here fails, what was in force before is so again."""
    try:
        yield
    except OSError:
        apply(before)
        raise


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        sync_data(file.fileno())


def _rename(fresh: Path, path: Path) -> None:
    """Give a file its name, durably; where that fails, the name is nobody's."""
    os.replace(fresh, path)
    try:
        sync_folder(path.parent)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _not_kept(name: str, error: OSError) -> Fault | StoreError:
    if error.errno == errno.ENAMETOOLONG:
        return Fault("INVALID_ATLAS_MANIFEST", "its atlas_id is too long for the name of a file")
    return StoreError(f"Atlas {name} cannot be kept: {error}")


def _is_atlas(folder: Path) -> bool:
    return any(presence.exists(folder / name) for name in MANIFESTS)


def _atlases_in(source: Path) -> Iterator[Path]:
    if not presence.is_dir(source) or _is_atlas(source):
        yield source
        return
    for path in sorted(source.iterdir()):
        if not path.name.startswith(".") and (presence.is_dir(path) or path.suffix in SUFFIXES):
            yield path


def _stamp(path: Path) -> _Stamp:
    """What changes when anything of an Atlas does."""
    files = sorted(path.rglob("*")) if presence.is_dir(path) else [path]
    found = []
    for file in files:
        try:
            state = file.stat()
        except OSError:
            continue
        found.append((str(file), state.st_mtime_ns, state.st_size))
    return tuple(found)
