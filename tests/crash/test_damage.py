"""Every place of a trace and of a ledger is cut and flipped: a verdict says so, every time."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from cra_middleware import Atlas, Runtime
from cra_middleware.evidence.folder import Against, verify_folder
from cra_middleware.keys import generate_key, load_signer
from cra_middleware.trace.note import VerifierKey
from cra_middleware.trace.sinks.jsonl import JsonlSink
from tests.conftest import manifest
from tests.crash.rounds import rounds

BITS = (0x01, 0x20, 0x80)


class Sealed(NamedTuple):
    """A folder with one sealed session in two segments, signed."""

    folder: Path
    key: VerifierKey

    def file(self, name: str) -> Path:
        if name in ("entries", "head"):
            return self.folder / "ledger" / name
        first, *_, second = sorted(self.folder.glob("*.trace.jsonl"), key=lambda path: len(path.name))
        return first if name == "first" else second


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sealed]:
    place = tmp_path_factory.mktemp("sealed")
    key = generate_key(place / "key", "example.com/crash")
    sink = JsonlSink(place / "traces", signer=load_signer(place / "key"), segment_bytes=2800)
    with Runtime(Atlas.from_dict(manifest()), trace=sink) as runtime:
        runtime.session()
    yield Sealed(place / "traces", key)
    shutil.rmtree(place)


def holds(sealed: Sealed, *, with_key: bool) -> bool:
    """Whether a reader is told that all is as it was: sealed, and signed to its end."""
    report = verify_folder(sealed.folder, Against(sealed.key if with_key else None))
    if report.missing or report.problems or len(report.sessions) != 1:  # a bit may make it another form's several
        return False
    (session,) = report.sessions
    return session.sealed and (session.signed or not with_key)


def test_what_is_left_alone_holds(sealed: Sealed) -> None:
    """Before anything is changed, all is well, in two files, with the key and without."""
    assert holds(sealed, with_key=True)
    assert holds(sealed, with_key=False)
    assert sealed.file("first") != sealed.file("second")


@rounds(25, 1_000_000)
@pytest.mark.parametrize("name", ["first", "second", "entries", "head"])
def test_every_cut_is_seen(sealed: Sealed, name: str, rounds: int) -> None:
    """However many bytes are missing at the end of a file, it does not hold any more."""
    path, with_key = sealed.file(name), name in ("entries", "head")
    whole = path.read_bytes()
    try:
        for size in range(0, len(whole), max(1, len(whole) // rounds)):
            path.write_bytes(whole[:size])
            assert not holds(sealed, with_key=with_key), size
    finally:
        path.write_bytes(whole)


@rounds(25, 1_000_000)
@pytest.mark.parametrize("name", ["first", "second", "entries", "head"])
def test_every_flipped_bit_is_seen(sealed: Sealed, name: str, rounds: int) -> None:
    """Three bits of every byte are flipped, and each of them is found."""
    path, with_key = sealed.file(name), name in ("entries", "head")
    whole = path.read_bytes()
    try:
        for place in range(0, len(whole), max(1, len(whole) // rounds)):
            for bit in BITS:
                path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
                assert not holds(sealed, with_key=with_key), (place, bit)
    finally:
        path.write_bytes(whole)
