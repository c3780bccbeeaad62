"""Signed heads and key texts: the published forms, a strict grammar, and no signature that is not ours."""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cra_middleware.errors import TraceError
from cra_middleware.trace.note import (
    MAX_NAME_LETTERS,
    MAX_NOTE_BYTES,
    MAX_SIGNATURES,
    Checkpoint,
    NoteError,
    Signer,
    VerifierKey,
    open_note,
)
from cra_middleware.trace.tree import EMPTY_ROOT, MAX_SIZE

# The key that the documentation of Go's note package shows.
GO_SECRET = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
GO_PUBLIC = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
ROOT = sha256(b"root").digest()
SIGNER = Signer("example.com/bot", bytes(range(32)))
KEY = SIGNER.verifier
HEAD = Checkpoint("example.com/bot", 7, ROOT)
NOTE = SIGNER.sign(HEAD.text())
WITNESS = Signer("witness.example", b"w" * 32)


def signature_line(signer: Signer, text: str) -> bytes:
    return signer.sign(text).rpartition(b"\n\n")[2]


def signed(text: str) -> bytes:
    """A note with our signature over any text."""
    return SIGNER.sign(text)


def test_the_published_key() -> None:
    """Go's own example key is read, leads to its public half, and both are written again as they were."""
    signer = Signer.parse(GO_SECRET)
    assert (signer.name, signer.key_id.hex()) == ("PeterNeumann", "c74f20a3")
    assert signer.secret_text() == GO_SECRET
    assert str(signer.verifier) == str(VerifierKey.parse(GO_PUBLIC)) == GO_PUBLIC
    assert signer.verifier == VerifierKey.parse(GO_PUBLIC) != KEY
    assert len({signer.verifier, VerifierKey.parse(GO_PUBLIC), KEY}) == 2


def test_the_note_is_the_published_form() -> None:
    """Text, empty line, em dash, name, base64 of key id and signature; it opens to what was signed."""
    text, _, block = NOTE.decode().rpartition("\n\n")
    assert text.split("\n") == ["example.com/bot", "7", b64encode(ROOT).decode()]
    dash, name, signature = block.removesuffix("\n").split(" ")
    assert (dash, name) == ("\u2014", "example.com/bot")
    assert signature.startswith(b64encode(KEY.key_id + b"\0\0").decode()[:5])
    public = bytes.fromhex("03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8")  # of seed 00 01 02 ...
    assert KEY.key_id == sha256(b"example.com/bot\n\x01" + public).digest()[:4]
    assert open_note(NOTE, KEY) == HEAD


def test_secrets_are_not_shown() -> None:
    """Neither ``repr`` nor an error says the secret."""
    secret = SIGNER.secret_text().split("+", 4)[4]
    assert secret not in f"{SIGNER!r} {SIGNER} {KEY!r}"
    with pytest.raises(ValueError, match="changed or lost") as caught:
        Signer.parse(SIGNER.secret_text().replace("bot", "cot"))
    assert secret not in str(caught.value)


def test_a_witness_may_sign_too() -> None:
    """Signatures of other keys, before or after ours, are passed over, even under our name or with our key id."""
    line, text = signature_line(WITNESS, HEAD.text()), NOTE.partition(b"\n\n")[0] + b"\n\n"
    ours = NOTE.removeprefix(text)
    for block in (
        line + ours,
        ours + line,
        line * 15 + ours,
        ours + signature_line(Signer(KEY.name, b"x" * 32), "y\n"),
    ):
        assert open_note(text + block, KEY) == HEAD
    shared_id = "\u2014 other.example " + b64encode(KEY.key_id + b"z" * 64).decode() + "\n"
    assert open_note(NOTE + shared_id.encode(), KEY) == HEAD


def test_extension_lines_are_kept() -> None:
    """Lines that others add below the root are signed, so they are read, kept and written again."""
    text = HEAD.text() + "time 5\nmore\n"
    head = open_note(signed(text), KEY)
    assert head == HEAD._replace(extension=("time 5", "more"))
    assert head.text() == text


@pytest.mark.parametrize("place", range(len(NOTE)))
def test_no_byte_can_change(place: int) -> None:
    """A note with any byte changed or taken out is refused."""
    for other in {NOTE[place] ^ 1, NOTE[place] ^ 0x20, 0, 10} - {NOTE[place]}:
        with pytest.raises(NoteError):
            open_note(NOTE[:place] + bytes([other]) + NOTE[place + 1 :], KEY)
    with pytest.raises(NoteError):
        open_note(NOTE[:place] + NOTE[place + 1 :], KEY)


LINE = NOTE.rpartition(b"\n\n")[2].decode()
BASE64 = LINE.split(" ")[2].removesuffix("\n")
MALFORMED = {
    "is no signed note": (
        b"",
        b"text\n",
        HEAD.text().encode(),
        HEAD.text().encode() + b"\n",
        NOTE[:-1],
        NOTE + b"\n",
        NOTE + b"x\n",
        NOTE.replace("\u2014".encode(), b"-"),
        NOTE.replace("\u2014 ".encode(), "\u2014".encode()),
        NOTE.replace("\u2014 ".encode(), "\u2014\u00a0".encode()),
        NOTE + "\u2014 a+b AAAAAAAA\n".encode(),
        NOTE + "\u2014 \u2003 AAAAAAAA\n".encode(),
        NOTE + "\u2014  AAAAAAAA\n".encode(),
        NOTE + "\u2014 a \n".encode(),
        NOTE + "\u2014 a AAAA\n".encode(),
        NOTE + "\u2014 a AAAAAAB=\n".encode(),  # another text of the same five bytes
        NOTE + "\u2014 a AAAAAAA\n".encode(),
        NOTE + "\u2014 a AAAA AAAA\n".encode(),
        NOTE + "\u2014 a AAAAAAA\u0661\n".encode(),
        NOTE.replace(BASE64.encode(), BASE64.encode() + b"===="),
    ),
    "control character": (b"\0" + NOTE, NOTE.replace(b"\n7\n", b"\r\n7\n"), NOTE.replace(b"\n7\n", b"\n7\t\n")),
    "not UTF-8": (b"\xff" + NOTE, NOTE.decode().encode("utf-16"), b"\xed\xa0\x80" + NOTE),
    "longer than": (b"a" * MAX_NOTE_BYTES + NOTE,),
    "more than 100 signatures": (NOTE + LINE.encode() * MAX_SIGNATURES,),
    "not signed by example.com/bot": (
        WITNESS.sign(HEAD.text()),
        Signer("example.com/bot", b"x" * 32).sign(HEAD.text()),
        Signer("example.com/bob", bytes(range(32))).sign(HEAD.text()),
    ),
    "changed or forged": (
        NOTE.replace(b"\n7\n", b"\n8\n"),
        b"\n" + NOTE,
        NOTE + f"\u2014 {KEY.name} {b64encode(KEY.key_id + b'z' * 64).decode()}\n".encode(),
        NOTE.replace(BASE64.encode(), b64encode(KEY.key_id + b"z").decode().encode()),
        NOTE.replace(BASE64.encode(), b64encode(KEY.key_id + b"z" * 5000).decode().encode()),
    ),
    "of the log 'example.com/other', not of 'example.com/bot'": (
        signed(HEAD._replace(origin="example.com/other").text()),
    ),
    "is not a checkpoint: it needs": (
        *map(signed, ("\n", "a\n", "a\n7\n", f"\n7\n{b64encode(ROOT).decode()}\n", HEAD.text() + "\n")),
        signed(HEAD.text() + "\nlate\n"),
    ),
    "not a tree size": tuple(
        signed(f"a\n{size}\n{b64encode(ROOT).decode()}\n")
        for size in ("07", "-1", "+7", " 7", "7 ", "7.0", "0x7", "\u0667", "1_0", str(MAX_SIZE + 1), "9" * 5000)
    ),
    "not a SHA-256": tuple(
        signed(f"a\n7\n{root}\n")
        for root in (
            *(
                ROOT.hex(),
                b64encode(ROOT[:31]).decode(),
                b64encode(ROOT + b"\0").decode(),
                " " + b64encode(ROOT).decode(),
            ),
            b64encode(ROOT).decode().rstrip("="),
            b64encode(b"\xff" * 32).decode().replace("/8=", "/9="),
        )
    ),
    "the tree is empty": (signed(HEAD._replace(size=0).text()),),
}


@pytest.mark.parametrize(
    ("message", "note"), [(message, note) for message, notes in MALFORMED.items() for note in notes], ids=lambda _: ""
)
def test_malformed_notes(message: str, note: bytes) -> None:
    """What is no head, or not ours, is refused with a sentence that says which."""
    with pytest.raises(NoteError, match=message) as caught:
        open_note(note, KEY)
    assert isinstance(caught.value, TraceError)
    assert (caught.value.code, caught.value.http_status) == ("head_invalid", 422)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "\n\n\n", HEAD.text()[:-1], HEAD.text() + "late"])
def test_a_checkpoint_ends_with_its_last_line(text: str) -> None:
    """A text that was cut, or goes on after its last newline, is no checkpoint."""
    assert Checkpoint.parse(HEAD.text()) == HEAD
    with pytest.raises(NoteError, match="is not a checkpoint"):
        Checkpoint.parse(text)


def test_the_largest_and_the_smallest_tree() -> None:
    """Sizes from 0 to 2^63-1 are read as they were written."""
    for size, root in ((0, EMPTY_ROOT), (1, ROOT), (MAX_SIZE, ROOT)):
        head = Checkpoint(KEY.name, size, root)
        assert open_note(signed(head.text()), KEY) == head


@given(st.binary(max_size=400) | st.text(alphabet="\u2014 a+\n=AB", max_size=60).map(str.encode))
def test_hostile_bytes(data: bytes) -> None:
    """Any bytes are refused with a ``NoteError``."""
    for note in (data, NOTE[:-30] + data, HEAD.text().encode() + b"\n" + data):
        if note != NOTE:
            with pytest.raises(NoteError):
                open_note(note, KEY)


@pytest.mark.parametrize("text", ["", "no newline", "tab\t\n", "cr\r\n", "nul\0\n", "half \ud800\n"])
def test_what_cannot_be_signed(text: str) -> None:
    """A text that no note can hold is not signed."""
    with pytest.raises(NoteError, match="cannot be signed"):
        SIGNER.sign(text)


@pytest.mark.parametrize(
    "name", ["", "a b", "a+b", "a\n", "a\x7f", "\u202ea", "a\u00a0b", "a\u3000", "\ud800", "a" * (MAX_NAME_LETTERS + 1)]
)
def test_names(name: str) -> None:
    """A name is what a signature line, a key's text and a terminal can hold."""
    with pytest.raises(ValueError, match="name of a key"):
        Signer(name, b"s" * 32)
    for good in ("example.com/bot", "é", "a" * MAX_NAME_LETTERS, "\u2014"):
        signer = Signer(good, b"s" * 32)
        head = Checkpoint(good, 1, ROOT)
        assert open_note(signer.sign(head.text()), VerifierKey.parse(str(signer.verifier))) == head


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "a",
            "a+b",
            "PRIVATE+KEY+",
            GO_SECRET,
            GO_PUBLIC + "\n",
            " " + GO_PUBLIC,
            GO_PUBLIC[:-1],
            GO_PUBLIC + "A",
        ),
        *(GO_PUBLIC.replace("c74f20a3", "C74F20A3"), GO_PUBLIC.replace("+AR", "+BR"), GO_PUBLIC.replace("+AR", "+-_")),
        *(GO_PUBLIC.replace("c74f20a3", "c74f20a4"), GO_PUBLIC.replace("Peter", "Pete"), GO_PUBLIC.replace("r", "r ")),
        "a+00000000+" + b64encode(b"\1" + b"k" * 33).decode(),
    ],
)
def test_key_texts_are_strict(text: str) -> None:
    """What is not exactly a public key's text, or carries another key's id, is refused; so for secret ones."""
    with pytest.raises(ValueError, match="key"):
        VerifierKey.parse(text)
    with pytest.raises(ValueError, match="key"):
        Signer.parse("PRIVATE+KEY+" + text)
    with pytest.raises(ValueError, match="key"):
        Signer.parse(text.removeprefix("PRIVATE+KEY+"))
