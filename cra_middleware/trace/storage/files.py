"""Descriptors and bytes: files that are locked, made durable, cut, and moved aside, with errors that say what to do."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from cra_middleware.errors import SinkError
from cra_middleware.trace.sink import Torn

QUARANTINE = ".torn"


def without_links(path: str, flags: int) -> int:
    """Opens a file for ``open``: no link is followed, and a pipe in its place does not keep anybody waiting."""
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, so that their names survive the death of the machine.

    Raises:
        OSError: when it cannot be made.
    """
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    with suppress(PermissionError):  # one that may not be read cannot be synced; it may still be passed through
        sync_folder(folder.parent)


def open_locked(path: Path, *, is_new: bool) -> int:
    """A descriptor of a trace file that no other writer has.

    Raises:
        SinkError: when it is there already (or is not), cannot be opened, is no plain file, or is locked.
    """
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | (os.O_CREAT | os.O_EXCL if is_new else 0)
    try:
        fd = os.open(path, flags, 0o600)
    except FileExistsError as error:
        raise SinkError(f"{path} is already there; resume the session instead") from error
    except FileNotFoundError as error:
        raise SinkError(f"there is no {path}") from error
    except OSError as error:
        raise failed(f"{path} cannot be opened", error) from error
    try:
        _lock(path, fd)
    except BaseException:  # whatever it was, nothing may stay open, nor be left that nobody writes
        if is_new:
            remove_new(path)
        os.close(fd)
        raise
    return fd


def _lock(path: Path, fd: int) -> None:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise SinkError(f"{path} is not a plain file; move it away")
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise SinkError(f"{path} has another writer: one process writes a session at a time") from error
    except OSError as error:
        raise failed(f"{path} cannot be locked", error) from error


def remove_new(path: Path) -> None:
    """Remove an empty file of ours that could not be put to use; where that fails, it stays, and says nothing."""
    with suppress(OSError):
        os.unlink(path)


def open_note(path: Path) -> int:
    """A descriptor of a small side file, made when it is not there.

    Raises:
        SinkError: when it cannot be used.
    """
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise failed(f"{path} cannot be opened", error) from error


def write_locked(path: Path, data: bytes) -> int:
    """A locked file that durably holds ``data``, in the place of what had its name before: the one or the other.

    Raises:
        OSError: when there can be none.
        SinkError: when it cannot be made.
    """
    beside = path.with_name(f"{path.name}.new")
    with suppress(FileNotFoundError):  # of an earlier try
        os.unlink(beside)
    fd = open_locked(beside, is_new=True)
    try:
        if os.pwrite(fd, data, 0) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync_data(fd)
        os.rename(beside, path)
        sync_folder(path.parent)
    except BaseException:  # whatever it was, no descriptor may stay open
        os.close(fd)
        raise
    return fd


def replace_file(path: Path, data: bytes) -> None:
    """Put ``data`` durably in the place of what ``path`` holds: all of it, or nothing.

    Raises:
        OSError: when that is not possible.
    """
    beside = path.with_name(f".{path.name}.new")
    with suppress(FileNotFoundError):
        os.unlink(beside)
    with open(
        os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600), "wb"
    ) as file:
        file.write(data)
        file.flush()
        sync_data(file.fileno())
    os.rename(beside, path)
    sync_folder(path.parent)


def move_tail(fd: int, offset: int, aside: Path) -> None:
    """Move what lies behind ``offset`` of an open file to ``aside``, behind what an earlier attempt moved there.

    Raises:
        OSError: when it could not be moved; the file is then unchanged.
    """
    if os.fstat(fd).st_size <= offset:
        return
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    with open(os.open(aside, flags, 0o600), "ab", buffering=0) as target:
        before, place = target.tell(), offset
        try:
            while piece := os.pread(fd, 1 << 20, place):
                place += target.write(piece)
            os.fsync(target.fileno())
            sync_folder(aside.parent)  # the copy is safe before the original is cut
            os.ftruncate(fd, offset)
        except OSError:  # nothing was moved; a second attempt starts afresh
            target.truncate(before)
            raise
    os.fsync(fd)


def quarantine(path: Path, offset: int) -> Path:
    """Where bytes go that are moved out of a file from ``offset`` on."""
    return path.with_name(f"{path.name}.{offset}{QUARANTINE}")


def sum_of(files: Iterable[Path]) -> Torn:
    """How many bytes some files hold, one behind the other, and their digest; one that is not there holds none.

    Raises:
        OSError: when one cannot be read.
    """
    total, hasher = 0, sha256()
    for file in files:
        with suppress(FileNotFoundError), open(file, "rb", opener=without_links) as source:
            while piece := source.read(1 << 20):
                hasher.update(piece)
                total += len(piece)
    return Torn(total, hasher.hexdigest())


def sync_data(fd: int) -> None:
    """Wait until a file's data is on the disk."""
    getattr(os, "fdatasync", os.fsync)(fd)  # macOS has no fdatasync


def sync_files(paths: Iterable[Path]) -> None:
    """Wait until the data of some files is on the disk.

    Raises:
        OSError: when it is not.
    """
    for path in paths:
        fd = without_links(str(path), os.O_RDONLY)
        try:
            sync_data(fd)
        finally:
            os.close(fd)


def let_go(fd: int) -> None:
    """Close a descriptor of what is synced already, or stands elsewhere: an error could be about nothing."""
    with suppress(OSError):
        os.close(fd)


def sync_folder(folder: Path) -> None:
    """Wait until a folder's names are on the disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def failed(what: str, error: OSError) -> SinkError:
    """The error for a file that could not be used: what, why, and what to do."""
    hints = {
        errno.ENOSPC: "free some space",
        errno.EDQUOT: "free some space",
        errno.EACCES: "check who may write there",
        errno.EROFS: "the file system is read-only",
    }
    hint = hints.get(error.errno or 0)
    transient = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EAGAIN, errno.EINTR)
    text = f"{what}: {error.strerror or error}" + (f" ({hint})" if hint else "")
    return SinkError(text, is_transient=transient)
