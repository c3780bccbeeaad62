"""Whether something is at a path. Where that cannot be known, "no" would be a guess: a rule that cannot be looked at
would be a rule that is not there. Up to Python 3.13 ``pathlib`` raised an error there; from 3.14 on it says no.
"""

from __future__ import annotations

import errno
import stat
from pathlib import Path

_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EBADF, errno.ELOOP)


def exists(path: Path) -> bool:
    """Whether anything is there; links are followed.

    Raises:
        OSError: when that cannot be known: a folder above it is closed, the name is too long, the disk fails.
    """
    return _mode(path) is not None


def is_dir(path: Path) -> bool:
    """Whether a folder is there; links are followed.

    Raises:
        OSError: as ``exists``.
    """
    mode = _mode(path)
    return mode is not None and stat.S_ISDIR(mode)


def is_file(path: Path) -> bool:
    """Whether a plain file is there; links are followed.

    Raises:
        OSError: as ``exists``.
    """
    mode = _mode(path)
    return mode is not None and stat.S_ISREG(mode)


def _mode(path: Path) -> int | None:
    try:
        return path.stat().st_mode
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise
    except ValueError:  # a name with a NUL, which nothing has
        return None
