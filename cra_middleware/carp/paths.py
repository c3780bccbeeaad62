"""Tests of paths, after ``~``, ``..`` and symbolic links.

This is the one place below the runtime that looks at the disk: what a link leads to cannot be known otherwise. A link
that is made between the decision and the tool's run is not seen, so this is no sandbox. A relative path is taken
from the process's working directory, as the tool's own ``open()`` takes it. Where ``/proc/self`` and ``/dev/fd`` lead
cannot be told, for the tool may run in another process.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Sequence

from cra_middleware.atlas.argument_tests import PROJECT

MAX_PATH = 4096
_OF_A_PROCESS = re.compile(r"/+(?:proc/(?:self|thread-self|[0-9]+)|dev/fd)(?:/.*)?", re.DOTALL)
"""What such a path leads to is another thing in the process of the tool than here."""
PathTest = Callable[[object], bool | None]


def within_test(folder: str, project: str | None) -> PathTest:
    """Whether a path is ``folder`` or below it.

    Raises:
        ValueError: when ``folder`` speaks of ``$PROJECT`` and there is none.
    """
    root = _expanded(folder, project)

    def test(value: object) -> bool | None:
        found = _readings(value)
        if found is None:
            return None
        real_root = os.path.realpath(root)  # looked up anew: the folder may be made, or linked, later
        return _all(_is_below(found[0], real_root), _is_below(found[0].casefold(), real_root.casefold()))

    return test


def glob_test(patterns: Sequence[str], project: str | None) -> PathTest:
    """Whether a path fits one of ``patterns``, as it is written and as it is after links.

    ``*`` and ``?`` do not cross ``/``, ``**`` crosses any number of folders, and ``x/**`` is ``x`` itself, too.

    Raises:
        ValueError: when a pattern speaks of ``$PROJECT`` (a relative one does), and there is none.
    """
    whole = [_placed(pattern, project) for pattern in patterns]
    texts = sorted({*whole, *(_real_prefix(pattern) for pattern in whole)})
    exact = re.compile("|".join(f"(?:{_regex(text)})" for text in texts), re.DOTALL)
    folded = re.compile("|".join(f"(?:{_regex(text.casefold())})" for text in texts), re.DOTALL)

    def test(value: object) -> bool | None:
        found = _readings(value)
        if found is None:
            return None
        answers = [
            answer
            for path in found
            for answer in (exact.fullmatch(path) is not None, folded.fullmatch(path.casefold()) is not None)
        ]
        return _all(*answers)

    return test


def _all(*answers: bool) -> bool | None:
    """What all readings agree on."""
    return answers[0] if all(answer is answers[0] for answer in answers) else None


def _readings(value: object) -> tuple[str, str] | None:
    """The path after links, and as it is written (absolute, without ``..``); None when it cannot be told."""
    if not isinstance(value, str) or not value or "\0" in value or len(value) > MAX_PATH:
        return None
    if value.startswith("~") and value != "~" and not value.startswith("~/"):
        return None  # another user's home
    try:
        value.encode()
        written = os.path.join(os.getcwd(), os.path.expanduser(value))
        real, plain = os.path.realpath(written, strict=False), os.path.normpath(written)
        if not _can_be_followed(real) or _OF_A_PROCESS.fullmatch(plain):
            return None
        return real, plain
    except (OSError, ValueError):
        return None


def _can_be_followed(path: str) -> bool:
    """Whether nothing but its own absence stands in the way: a link to itself, say."""
    try:
        os.stat(path)
    except OSError as error:
        return error.errno in (errno.ENOENT, errno.ENOTDIR)
    return True


def _is_below(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip("/") + "/")


def _expanded(text: str, project: str | None) -> str:
    if text == PROJECT or text.startswith(f"{PROJECT}/"):
        if not project:
            raise ValueError(f"it speaks of {PROJECT}: give Runtime(project=...), or --project DIR")
        return os.path.abspath(project) + text[len(PROJECT) :]
    return os.path.expanduser(text)


def _placed(pattern: str, project: str | None) -> str:
    """A pattern as a whole path's; a relative one is about the project."""
    if pattern.startswith(("/", "~", PROJECT)):
        return _expanded(pattern, project)
    if pattern.startswith("**/") or pattern == "**":
        return f"/{pattern}"
    return _expanded(f"{PROJECT}/{pattern}", project)


def _real_prefix(pattern: str) -> str:
    """The pattern with the folders before its first star after links: a home folder may be one."""
    parts = pattern.split("/")
    fixed = next((place for place, part in enumerate(parts) if "*" in part or "?" in part), len(parts) - 1)
    prefix = "/".join(parts[:fixed])
    return "/".join([os.path.realpath(prefix).rstrip("/"), *parts[fixed:]]) if prefix else pattern


def _regex(pattern: str) -> str:
    """The earliest place for what stands between two ``**`` is as good as any later one, so none is tried again
    (``?>``): matching stays linear in the path."""
    chunks: list[list[str]] = [[]]
    for part in pattern.split("/"):
        if part == "**":
            chunks.append([])
        elif part:
            chunks[-1].append("/" + _segment(part))
    first, *rest = ("".join(chunk) for chunk in chunks)
    if not rest:
        return first or "/"
    *middle, last = rest
    inner = "".join(rf"(?>(?:/[^/]+)*?{chunk}(?=/|\Z))" for chunk in middle if chunk)
    return first + inner + (rf"(?:/[^/]+)*?{last}" if last else r"(?:/.*)?")


def _segment(part: str) -> str:
    pieces = [re.escape(piece).replace(r"\?", "[^/]") for piece in re.split(r"\*+", part)]
    if len(pieces) == 1:
        return pieces[0]
    head, *middle, tail = pieces
    return head + "".join(f"(?>[^/]*?{piece})" for piece in middle if piece) + f"[^/]*{tail}"
