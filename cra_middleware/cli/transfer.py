"""``cra trace export`` and ``cra trace import``: sessions move between stores, verified on the way, byte for byte."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Annotated, NamedTuple, Protocol

import typer

from cra_middleware.cli.databases import without_password
from cra_middleware.cli.output import Format, FormatOption, complain, emit, say, stop
from cra_middleware.errors import SinkError
from cra_middleware.sinks_by_name import open_existing, open_sink
from cra_middleware.trace.chain import verify_lines
from cra_middleware.trace.sink import SessionLog, TraceStore
from cra_middleware.trace.storage.segments import segment_at
from cra_middleware.verification import trace_lines

_BATCH_BYTES = 1 << 20
_LARGE_EVENTS = 20_000
"""From here on a line on stderr says how far it is."""

Source = Annotated[
    str, typer.Argument(metavar="FROM", help="A folder of traces, one trace file, sqlite:FILE or postgresql://…")
]
Target = Annotated[str, typer.Option("--to", metavar="TO", help="A folder, sqlite:FILE or postgresql://…")]
Session = Annotated[
    list[str] | None, typer.Option("--session", metavar="ID", help="Only this session; may be given again.")
]


class Readable(Protocol):
    """Where sessions come from."""

    def session_ids(self) -> list[str]:
        """Those that are there."""
        ...

    def lines(self, session_id: str, /) -> Iterator[bytes]:
        """Every line of one.

        Raises:
            SinkError: when it cannot be read.
        """
        ...


class Moved(NamedTuple):
    """What became of one session."""

    session_id: str
    outcome: str
    """``copied``, ``continued``, ``already there``, or ``not copied``."""
    events: int
    reason: str | None = None


def export_command(source: Source, to: Target, session: Session = None, format: FormatOption = Format.text) -> None:
    """Copy sessions from one store to another, and verify each on the way.

    The bytes stay what they are, so the copy verifies like the original. A session that is broken is not copied, and
    is named. One that the target already has is left alone when it is the same, continued when an earlier copy
    stopped in the middle, and an error when it differs. Nothing is ever removed from FROM.

    \b
    Example:  cra trace export traces/ --to sqlite:traces.db
    One only: cra trace export sqlite:traces.db --to for-the-auditor/ --session 01a20426-a8e8-75a1-b6f3-04cfec203756

    Exit code: 0 when every session is in TO, 1 when one is not or a store cannot be used, 2 for wrong usage.
    """
    _transfer(source, to, session or [], format)


def import_command(source: Source, to: Target, session: Session = None, format: FormatOption = Format.text) -> None:
    """Bring sessions into a store from another one: what `cra trace export` does, said from the other side.

    \b
    Example:  cra trace import from-a-worker/ --to postgresql://cra@db.internal/traces

    Exit code: 0 when every session is in TO, 1 when one is not or a store cannot be used, 2 for wrong usage.
    """
    _transfer(source, to, session or [], format)


def _transfer(source: str, to: str, wanted: list[str], format: Format) -> None:
    try:
        with ExitStack() as stack:
            readable = _source(source, stack)
            session_ids = _chosen(readable, wanted, source)
            target = stack.enter_context(closing(open_sink(to)))
            there = set(target.session_ids())
            moved = [_move(session_id, readable, target, session_id in there) for session_id in session_ids]
    except SinkError as error:
        raise stop(error, 1) from None
    if format is Format.json:
        emit({"sessions": [item._asdict() for item in moved]})
    else:
        for item in moved:
            if item.reason is None:
                say(f"{item.outcome} ({item.events} events)", lead=item.session_id, indent=38)
    for item in moved:
        if item.reason is not None:
            complain(f"session {item.session_id} was not copied: {item.reason}")
    if any(item.reason is not None for item in moved):
        raise typer.Exit(1)


def _source(name: str, stack: ExitStack) -> Readable:
    try:
        is_file = Path(name).is_file()
    except (OSError, ValueError):
        is_file = False
    return _OneFile(Path(name)) if is_file else stack.enter_context(closing(open_existing(name)))


class _OneFile:
    """A trace file, with the later files of its session; the session is the one that its first line names."""

    def __init__(self, path: Path) -> None:
        self._path = path
        known = segment_at(path)
        if known is not None and known.first:
            raise SinkError(f"{path} is a later part of a session; name its folder")
        verdicts = verify_lines(trace_lines(path), None if known is None else known.session_id)
        self._ids = [verdict.session_id for verdict in verdicts if verdict.session_id is not None]
        if len(verdicts) != 1 or len(self._ids) != 1:
            raise SinkError(f"{path} does not hold one session")

    def session_ids(self) -> list[str]:
        return self._ids

    def lines(self, session_id: str, /) -> Iterator[bytes]:
        return trace_lines(self._path)


def _chosen(source: Readable, wanted: list[str], name: str) -> list[str]:
    there = source.session_ids()
    missing = [session_id for session_id in wanted if session_id not in there]
    if missing:
        raise stop(f"{without_password(name)} holds no session {missing[0]}", 2)
    if not there:
        raise stop(f"{without_password(name)} holds no sessions", 2)
    return [session_id for session_id in there if not wanted or session_id in wanted]


def _move(session_id: str, source: Readable, target: TraceStore, is_there: bool) -> Moved:
    try:
        with _progress(session_id) as progress:
            hasher = sha256()
            verdict, *others = verify_lines(_seen(source.lines(session_id), hasher.update, progress), session_id)
            if verdict.error is not None or verdict.session_id != session_id or others:
                reason = str(verdict) if verdict.error is not None else "its lines belong to another session"
                return Moved(session_id, "not copied", verdict.events, reason)
            outcome = _copy(session_id, source, target, is_there, hasher.digest(), progress)
    except SinkError as error:
        return Moved(session_id, "not copied", 0, str(error))
    return Moved(session_id, outcome, verdict.events)


def _copy(
    session_id: str,
    source: Readable,
    target: TraceStore,
    is_there: bool,
    digest: bytes,
    progress: Callable[[int], None],
) -> str:
    """Copy what the target lacks; the source must be, byte for byte, what was verified."""
    place = events = 0
    if is_there:
        place, events, is_whole = _compare(session_id, source, target)
        if is_whole:
            return "already there"
    log = target.reopen(session_id) if is_there else target.create(session_id)
    try:
        if is_there:
            log.set_aside(place)  # a torn line, where the earlier copy was cut short by more than a process's end
        hasher = sha256()
        _append(log, _seen(source.lines(session_id), hasher.update, progress), place, events)
        if hasher.digest() != digest:
            log.append(place, b"", events)
            raise SinkError("it changed while it was read; try again when nobody writes it")
        log.flush()
    finally:
        log.close()
    return "continued" if is_there else "copied"


def _compare(session_id: str, source: Readable, target: TraceStore) -> tuple[int, int, bool]:
    """How many bytes and events of the source the target has, and whether that is all.

    Raises:
        SinkError: when the target has something else.
    """
    place = events = 0
    theirs = target.lines(session_id)
    for line in source.lines(session_id):
        other = next(theirs, None)
        if other is None or (not other.endswith(b"\n") and line.startswith(other) and next(theirs, None) is None):
            return place, events, False
        if other != line:
            raise SinkError(f"the target has another session of this id: event {events} differs")
        place, events = place + len(line), events + 1
    if next(theirs, None) is not None:
        raise SinkError(f"the target has more of this session than the source, which ends after {events} events")
    return place, events, True


def _append(log: SessionLog, lines: Iterable[bytes], place: int, events: int) -> None:
    passed, parts, size = 0, list[bytes](), 0
    for line in lines:
        if passed < place:
            passed += len(line)
            continue
        parts.append(line)
        size += len(line)
        if size >= _BATCH_BYTES:
            events += len(parts)
            log.append(place, b"".join(parts), events)
            place, passed, parts, size = place + size, place + size, [], 0
    if parts:
        log.append(place, b"".join(parts), events + len(parts))


def _seen(lines: Iterable[bytes], update: Callable[[bytes], None], progress: Callable[[int], None]) -> Iterator[bytes]:
    for count, line in enumerate(lines, 1):
        update(line)
        progress(count)
        yield line


@contextmanager
def _progress(session_id: str) -> Iterator[Callable[[int], None]]:
    """A line on stderr, rewritten as a large session goes by, when somebody looks."""
    was_shown = False

    def show(count: int) -> None:
        nonlocal was_shown
        if count % _LARGE_EVENTS == 0 and sys.stderr.isatty():
            was_shown = True
            print(f"\r{session_id}: {count} events", end="", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        if was_shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
