"""Tests of shell lines: is every command of a line one of those named?

A line is read by the rules of the POSIX shell, as far as it is plainly a list of simple commands between
``&& || ; | &`` and new lines. Whatever may run something else, or other words than those written (substitution,
expansion, redirection, grouping, a wrapper such as ``env`` or ``sh -c``), cannot be judged. It is no sandbox: what a
permitted program does with its own options (``git log --output=FILE``) is its own affair.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from cra_middleware.atlas.globs import Match, glob

MAX_LINE = 100_000
CommandTest = Callable[[object], bool | None]

WRAPPERS = frozenset(
    (
        *("sudo", "doas", "su", "env", "nohup", "time", "timeout", "xargs", "command", "exec", "eval", "source", "."),
        *("bash", "sh", "zsh", "dash", "ksh", "fish", "csh", "tcsh", "busybox", "nice", "ionice", "setsid", "stdbuf"),
        *("builtin", "watch", "parallel", "trap", "alias", "unalias", "export", "set", "unset", "shopt", "enable"),
        *("declare", "typeset", "local", "readonly", "chroot", "unshare", "nsenter", "script", "flock", "strace"),
        *("ssh", "hash", "noglob", "nocorrect", "-", "let", "at", "batch"),
    )
)
"""Commands that run other commands, or change what a later word means."""
_RUNS_FROM_OPTIONS = {"find": ("-exec", "-execdir", "-ok", "-okdir", "-delete", "-fprint", "-fprintf", "-fls")}
_RESERVED = frozenset(
    (
        *("if", "then", "else", "elif", "fi", "for", "while", "until", "do", "done", "case", "esac", "in", "select"),
        *("function", "time", "coproc", "!", "[[", "]]", "{", "}"),
    )
)
_UNREADABLE = "`$<>(){}*?[\r"
"""Unquoted, the shell makes other words of it than those written: ``.e?v`` may be ``.env``, ``-?x`` an option."""
_UNSEEN_KINDS = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"))
"""Unicode categories of what has no shape of its own."""
_UNSEEN = (
    *("HANGUL FILLER", "HANGUL CHOSEONG FILLER", "HANGUL JUNGSEONG FILLER", "HALFWIDTH HANGUL FILLER"),
    *("BRAILLE PATTERN BLANK", "VARIATION SELECTOR", "COMBINING GRAPHEME JOINER"),
)
"""Names of letters and marks that are blank to the eye all the same."""


class Word(NamedTuple):
    """One word of a command."""

    text: str
    is_plain: bool
    """Written without quotes, backslashes or blanks."""


Command = tuple[Word, ...]


class _UnreadableError(ValueError):
    """Not plainly a list of simple commands."""


def commands_test(patterns: Sequence[str]) -> CommandTest:
    """True when every command of a line fits one of ``patterns``, False when none does, None between and when the
    line cannot be read.

    ``*`` is any run of characters; a pattern that ends in `` *`` fits the command without arguments, too.
    """
    tests = tuple(_pattern(pattern) for pattern in patterns)

    def fits(text: str) -> bool:
        return any(test(text) for test in tests)

    def test(line: object) -> bool | None:
        commands = read_commands(line) if isinstance(line, str) else None
        if commands is None:
            return None
        answers = {_fits(command, fits) for command in commands}
        return answers.pop() if len(answers) == 1 else None

    return test


def read_commands(line: str) -> list[Command] | None:
    """The simple commands of a shell line; None when it is anything else."""
    try:
        commands = list(_commands(line))
        for command in commands:
            _check(command)
    except _UnreadableError:
        return None
    return commands or None


def _pattern(pattern: str) -> Match:
    matches = glob(pattern)
    if not pattern.endswith(" *"):
        return matches
    alone = glob(pattern[:-2])
    return lambda text: matches(text) or alone(text)


def _fits(command: Command, fits: Callable[[str], bool]) -> bool | None:
    """One command against the patterns; its readings must agree."""
    head, *rest = command
    raw = " ".join(word.text for word in command)
    quoted = " ".join(word.text if word.is_plain else repr(word.text) for word in command)
    readings = {fits(raw), fits(quoted)}
    if "/" in head.text:  # a path is also its program
        name = head.text.rsplit("/", 1)[-1]
        readings.add(fits(" ".join((name, *(word.text for word in rest)))))
    return readings.pop() if len(readings) == 1 else None


def _check(command: Command) -> None:
    head, *rest = command
    name = head.text.rsplit("/", 1)[-1]
    if "=" in head.text or not name or head.text in _RESERVED or name in WRAPPERS:
        raise _UnreadableError
    if any(word.text in _RUNS_FROM_OPTIONS.get(name, ()) for word in rest):
        raise _UnreadableError


def _commands(line: str) -> Iterator[Command]:
    """Split at separators; two of them without a command between are an error, but for new lines and a last ``;``."""
    words: list[Word] = []
    expects = False
    for token in _tokens(line):
        if isinstance(token, Word):
            words.append(token)
            expects = False
            continue
        if words:
            yield tuple(words)
            words = []
            expects = token in ("&&", "||", "|")
        elif token != "\n":
            raise _UnreadableError
    if words:
        yield tuple(words)
    elif expects:
        raise _UnreadableError


def _tokens(line: str) -> Iterator[Word | str]:
    """Words and separators."""
    if not line or len(line) > MAX_LINE:
        raise _UnreadableError
    place, end = 0, len(line)
    while place < end:
        letter = line[place]
        if letter in " \t":
            place += 1
        elif letter in "&|;\n":
            pair = line[place : place + 2]
            separator = pair if pair in ("&&", "||") else letter
            place += len(separator)
            # |&, ;;, ;& and the like are other things
            if separator != "\n" and place < end and line[place] in "&|;":
                raise _UnreadableError
            yield separator
        else:
            place, word = _word(line, place)
            yield word


def _word(line: str, place: int) -> tuple[int, Word]:
    """The word that begins at ``place``, and where it ends."""
    begin, end = place, len(line)
    if line[place] == "#":  # a comment, or not: that depends on the shell's settings
        raise _UnreadableError
    text: list[str] = []
    while place < end and line[place] not in " \t\n&|;":
        letter = line[place]
        if letter == "'":
            close = line.find("'", place + 1)
            if close < 0:
                raise _UnreadableError
            text.append(_readable(line[place + 1 : close]))
            place = close + 1
        elif letter == '"':
            place = _double_quoted(line, place + 1, text)
        elif letter == "\\":
            if place + 1 >= end or line[place + 1] == "\n":
                raise _UnreadableError
            text.append(_readable(line[place + 1]))
            place += 2
        elif letter in _UNREADABLE or _is_expanded(line, begin, place):
            raise _UnreadableError
        else:
            text.append(_readable(letter))
            place += 1
    whole = "".join(text)
    is_plain = whole == line[begin:place] and " " not in whole
    return place, Word(whole, is_plain)


def _is_expanded(line: str, begin: int, place: int) -> bool:
    """Whether the unquoted letter at ``place`` stands where a shell makes something else of it: a home folder of
    ``~``, an earlier line of ``!``, a program's path of a first ``=`` (zsh)."""
    match line[place]:
        case "~":
            return place == begin or line[place - 1] in "=:"
        case "!":
            return place + 1 < len(line) and line[place + 1] not in " \t\n&|;="
        case "=":
            return place == begin
        case _:
            return False


def _double_quoted(line: str, place: int, text: list[str]) -> int:
    while place < len(line):
        letter = line[place]
        if letter == '"':
            return place + 1
        if letter in "$`!":
            raise _UnreadableError
        if letter == "\\":
            following = line[place + 1 : place + 2]
            if following in ("", "\n"):
                raise _UnreadableError
            if following in '$`"\\':
                text.append(following)
                place += 2
                continue
        text.append(_readable(letter))
        place += 1
    raise _UnreadableError


def _readable(text: str) -> str:
    """Refuse what a person would not see, or see as something else."""
    for letter in text:
        if letter in "\t\n" or " " <= letter <= "~":
            continue
        if unicodedata.category(letter) in _UNSEEN_KINDS or unicodedata.name(letter, "").startswith(_UNSEEN):
            raise _UnreadableError
    return text
