"""A disk that loses its power: what a process did to its files, and what could be left of it at any moment.

Everything is done for real as well, so the code under test sees an ordinary folder. What is not synced may be lost
sector by sector, in any order: each sector of a file holds what it held after any one of the writes since the last
sync, its size is that after any of them or lies at a sector between, and of the names that were made, changed or
removed since their folder was synced, any may be as before.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest

SECTOR = 512


class Write(NamedTuple):
    node: int
    offset: int
    data: bytes


class Cut(NamedTuple):
    node: int
    size: int


class Synced(NamedTuple):
    node: int
    content: bytes


class Named(NamedTuple):
    """``path`` leads to ``node`` now, or nowhere; ``source`` is the name that it had before."""

    path: str
    node: int | None
    source: str | None = None


class FolderSynced(NamedTuple):
    folder: str


class Said(NamedTuple):
    """What somebody was promised at this moment."""

    promise: object


Step = Write | Cut | Synced | Named | FolderSynced | Said


class Disk:
    """Notes every step that is taken below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.steps: list[Step] = []
        self.failing: Callable[[int], bool] = lambda node: False
        """Whether a sync of this file fails."""
        self.promise: Callable[[], object] = lambda: None
        """Asked before each step what holds now; noted when it has changed."""
        self._lock = threading.RLock()
        self._promised: object = None

    def say(self, promise: object) -> None:
        """Note what somebody was promised."""
        self.steps.append(Said(promise))

    def _note(self, *steps: Step) -> None:
        promise = self.promise()
        if promise != self._promised:
            self._promised = promise
            self.say(promise)
        self.steps.extend(steps)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """While it lasts, the calls of ``os`` are noted."""
        with pytest.MonkeyPatch.context() as patch:
            for name in ("open", "pwrite", "ftruncate", "rename", "unlink"):
                patch.setattr(os, name, self._noted(getattr(os, name), getattr(self, f"_{name}")))
            for name in ("fsync", "fdatasync"):
                patch.setattr(os, name, self._syncing(getattr(os, name)))
            yield

    def _noted(self, real: Callable[..., Any], note: Callable[..., None]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                before = os.path.lexists(args[0]) if real.__name__ == "open" else None
                result = real(*args, **kwargs)
                note(result, before, *args)
                return result

        return call

    def _open(self, fd: int, before: bool, path: Any, *_: Any) -> None:
        if not before and self._is_ours(path):
            self._note(Named(os.fspath(path), os.fstat(fd).st_ino))

    def _pwrite(self, written: int, _: None, fd: int, data: bytes, offset: int) -> None:
        self._note(Write(os.fstat(fd).st_ino, offset, bytes(data[:written])))

    def _ftruncate(self, _: None, __: None, fd: int, size: int) -> None:
        self._note(Cut(os.fstat(fd).st_ino, size))

    def _rename(self, _: None, __: None, source: Any, target: Any) -> None:
        if self._is_ours(target):
            self._note(Named(os.fspath(target), os.stat(target).st_ino, os.fspath(source)))

    def _unlink(self, _: None, __: None, path: Any) -> None:
        if self._is_ours(path):
            self._note(Named(os.fspath(path), None))

    def _syncing(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def sync(fd: int) -> None:
            with self._lock:
                path = os.readlink(f"/proc/self/fd/{fd}")
                if os.path.isdir(path):
                    self._note(FolderSynced(path))
                    return
                node = os.fstat(fd).st_ino
                if self.failing(node):
                    raise OSError(5, "the disk failed")
                # what a file object wrote was not seen: what is there now is what counts
                with open(f"/proc/self/fd/{fd}", "rb") as file:
                    self._note(Synced(node, file.read()))

        return sync

    def _is_ours(self, path: Any) -> bool:
        return isinstance(path, (str, Path)) and Path(path).is_relative_to(self.folder)

    def left(self, moment: int, random: Random) -> tuple[dict[str, bytes], list[object]]:
        """What may lie in the folder when the power fails before step ``moment``, and what had been promised."""
        histories: dict[int, list[bytes]] = {}
        names: dict[str, int] = {}
        open_names: list[Named] = []
        promises: list[object] = []
        for step in self.steps[:moment]:
            if isinstance(step, Said):
                promises.append(step.promise)
            elif isinstance(step, Synced):
                histories[step.node] = [step.content]
            elif isinstance(step, (Write, Cut)):
                history = histories.setdefault(step.node, [b""])
                history.append(_after(history[-1], step))
            elif isinstance(step, Named):
                open_names.append(step)
            else:
                for named in [item for item in open_names if os.path.dirname(item.path) == step.folder]:
                    open_names.remove(named)
                    _rename(names, named)
        mood = random.choice((0.0, 0.5, 0.5, 0.9, 1.0))
        for named in open_names:
            if random.random() < mood:
                _rename(names, named)
        return {path: _torn(histories.get(node, [b""]), random) for path, node in names.items()}, promises


def _after(content: bytes, step: Write | Cut) -> bytes:
    if isinstance(step, Cut):
        return content[: step.size].ljust(step.size, b"\0")
    head = content[: step.offset].ljust(step.offset, b"\0")
    return head + step.data + content[step.offset + len(step.data) :]


def _rename(names: dict[str, int], named: Named) -> None:
    if named.source is not None:
        names.pop(named.source, None)
    if named.node is None:
        names.pop(named.path, None)
    else:
        names[named.path] = named.node


def _torn(history: list[bytes], random: Random) -> bytes:
    """One of the things that a file may hold after these contents, of which only the first is on the disk."""
    if len(history) == 1:
        return history[0]
    mood = random.choice(("first", "last", "cut", "sectors", "sectors", "sectors"))
    if mood in ("first", "last"):
        return history[0] if mood == "first" else history[-1]
    size = len(random.choice(history))
    if mood == "cut":
        least = min(map(len, history))
        size = max(least, size // SECTOR * SECTOR if random.random() < 0.5 else random.randint(least, max(size, least)))
    kept = random.choice((0.2, 0.5, 0.8))
    pieces = []
    for begin in range(0, size, SECTOR):
        content = random.choice(history) if random.random() > kept else history[-1]
        pieces.append(content[begin : begin + SECTOR].ljust(SECTOR, b"\0"))
    return b"".join(pieces)[:size]
