"""A session's tree is that of the lines on the disk, over all of its files, wherever reading stopped."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cra_middleware import Atlas, Runtime
from cra_middleware.errors import ChainBroken, SinkError
from cra_middleware.trace.entry import Entry, event_leaf
from cra_middleware.trace.event import GENESIS
from cra_middleware.trace.ledger.folder_lines import folder_tree
from cra_middleware.trace.sinks.jsonl import JsonlSink
from cra_middleware.trace.tree import EMPTY_ROOT, Frontier
from tests.conftest import manifest
from tests.trace.forge import lines_of, parse
from tests.trace.ledger.conftest import session_of, tree_of


def expected(lines: list[bytes], session_id: str) -> Entry:
    """The entry about a session with these lines, from its events alone."""
    tree = Frontier()
    hashes = [event["event_hash"] for event in parse(lines)]
    for item in hashes:
        tree.append(event_leaf(item))
    return Entry(session_id, len(lines), hashes[-1], tree.root())


def test_nothing_was_read(tmp_path: Path) -> None:
    """An empty tree has the root of nothing; growing to 0 reads nothing."""
    tree = folder_tree(tmp_path / "nowhere", "s")
    tree.grow(0)
    assert tree.entry() == Entry("s", 0, GENESIS, EMPTY_ROOT)


@given(st.data())
def test_grown_in_any_steps(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """However it grew, and over however many files, it is the tree of the first events."""
    lines = LINES[0]
    cuts = sorted(data.draw(st.sets(st.integers(1, len(lines) - 1), max_size=4)))
    folder = tmp_path_factory.mktemp("segments")
    session_id = parse(lines)[0]["session_id"]
    for first, following in zip([0, *cuts], [*cuts, len(lines)], strict=True):
        surplus = data.draw(st.integers(0, 2))  # what a failed disk left behind stands again in the next
        name = f"{session_id}.{first}" if first else session_id
        (folder / f"{name}.trace.jsonl").write_bytes(b"".join(lines[first : following + surplus]))
    tree = folder_tree(folder, session_id)
    for size in sorted(data.draw(st.lists(st.integers(1, len(lines)), min_size=1, max_size=4))):
        tree.grow(size)
        assert (tree.size, tree.entry()) == (size, expected(lines[:size], session_id))


LINES: list[list[bytes]] = []


@pytest.fixture(scope="module", autouse=True)
def _lines(tmp_path_factory: pytest.TempPathFactory) -> None:
    from tests.trace.forge import write_trace

    LINES[:] = [lines_of(write_trace(tmp_path_factory.mktemp("lines"), calls=2))]


def test_growing_again_changes_nothing(trace: Path) -> None:
    """To be asked for less than there is is no reason to read."""
    tree = tree_of(trace)
    before = tree.entry()
    trace.unlink()
    tree.grow(1)
    assert tree.entry() == before


def test_only_what_is_new_is_read(trace: Path) -> None:
    """What was read before may be changed: the tree remembers it."""
    lines = lines_of(trace)
    tree = tree_of(trace, 3)
    trace.write_bytes(b"x" * sum(map(len, lines[:3])) + b"".join(lines[3:]))
    tree.grow(len(lines))
    assert tree.entry() == expected(lines, session_of(trace))


def test_a_session_that_goes_on_in_a_new_file(folder: Path) -> None:
    """Segments that a writer made while the tree grew."""
    sink = JsonlSink(folder, segment_bytes=2000)
    with Runtime(Atlas.from_dict(manifest()), trace=sink) as runtime:
        session = runtime.session()
        tree = folder_tree(folder, session.id)
        for number in range(12):
            session.call("ticket.get", lambda n: n, number)
            tree.grow(sink.count(session.id))
        files = sorted(folder.glob("*.trace.jsonl"))
        lines = list(sink.lines(session.id))
    assert len(files) > 3
    assert tree.entry() == expected(lines, session.id)


def test_fewer_events_than_there_were(trace: Path) -> None:
    """A session that shrank, or is gone, is one that was changed."""
    lines = lines_of(trace)
    trace.write_bytes(b"".join(lines[:-1]))
    with pytest.raises(ChainBroken, match=f"has {len(lines) - 1} events where {len(lines)} were written"):
        tree_of(trace, len(lines))
    trace.unlink()
    with pytest.raises(ChainBroken, match=f"has 0 events where {len(lines)} were written"):
        tree_of(trace, len(lines))


def test_a_file_that_shrinks_below_what_was_read(trace: Path) -> None:
    """Nothing is found where more should be."""
    lines = lines_of(trace)
    tree = tree_of(trace, 4)
    trace.write_bytes(b"".join(lines[:2]))
    with pytest.raises(ChainBroken, match=f"has 4 events where {len(lines)} were written"):
        tree.grow(len(lines))


def test_a_torn_line_does_not_count(trace: Path) -> None:
    """Until it is whole; then the tree goes on where it was."""
    data, lines = trace.read_bytes(), lines_of(trace)
    trace.write_bytes(data[:-1])
    tree = tree_of(trace, len(lines) - 1)
    with pytest.raises(ChainBroken):
        tree.grow(len(lines))
    trace.write_bytes(data)
    tree.grow(len(lines))
    assert tree.entry() == expected(lines, session_of(trace))


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line.replace(b'"event_hash"', b'"event_hesh"'),
        lambda line: line.replace(b'"previous_event_hash"', b'"previous_event_hesh"'),
        lambda line: line[:-40] + bytes([line[-40] ^ 1]) + line[-39:],  # of the hash before
        lambda line: line[:-156] + line[-156:-92].upper().replace(b"0", b"A") + line[-92:],
        lambda line: line[:-156] + b"g" + line[-155:],
        lambda line: line[:-156] + b" " * 64 + line[-92:],
        lambda line: line[:-156] + b"\xff" + line[-155:],
        lambda line: line[:-2] + b"]\n",
        lambda line: b"\n",
        lambda line: b"{}\n",
    ],
)
def test_lines_that_do_not_go_on(trace: Path, damage: Callable[[bytes], bytes]) -> None:
    """A line whose end is no link to the one before, with a hash in its only form, stops the tree before it."""
    lines = lines_of(trace)
    lines[2] = damage(lines[2])
    trace.write_bytes(b"".join(lines))
    tree = folder_tree(trace.parent, session_of(trace))
    with pytest.raises(ChainBroken, match=r"does not go on from event [23]: it was changed"):
        tree.grow(len(lines))
    assert tree.size in (2, 3)
    tree.entry().pack()


def test_what_is_no_plain_file(trace: Path) -> None:
    """A link is not followed, and a pipe keeps nobody waiting."""
    session_id, aside = session_of(trace), trace.with_name("aside")
    trace.rename(aside)
    trace.symlink_to(aside)
    with pytest.raises(SinkError, match="cannot be read"):
        folder_tree(trace.parent, session_id).grow(1)
    trace.unlink()
    os.mkfifo(trace)
    with pytest.raises(SinkError, match=r"cannot be read: .* not seekable"):
        folder_tree(trace.parent, session_id).grow(1)


def test_a_line_without_an_end(trace: Path) -> None:
    """A file of zeros, however long, is no event, and not read to its end."""
    with trace.open("wb") as file:
        file.truncate(1 << 33)
    with pytest.raises(ChainBroken, match="has 0 events where 1 were written"):
        folder_tree(trace.parent, session_of(trace)).grow(1)
