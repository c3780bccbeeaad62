"""Signed heads: a tree's size and root as a text that standard tools read and check.

    <origin>\\n<size>\\n<base64 of the root>\\n\\n— <key name> <base64 of key id and signature>\\n

The forms are C2SP's signed-note and tlog-checkpoint (https://c2sp.org/signed-note, https://c2sp.org/tlog-checkpoint),
with Ed25519; keys are written as Go's ``golang.org/x/mod/sumdb/note`` writes them:

    secret     PRIVATE+KEY+<name>+<key id>+<base64 of 0x01 and the 32-byte seed>
    public     <name>+<key id>+<base64 of 0x01 and the 32-byte public key>
    key id     the first 4 bytes of SHA256(name || 0x0A || 0x01 || public key), as 8 hex digits in a key's text
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from hashlib import sha256
from typing import NamedTuple

from cra_middleware.errors import TraceError
from cra_middleware.trace.tree import EMPTY_ROOT, HASH_BYTES, MAX_SIZE

MAX_NOTE_BYTES = 1_000_000
MAX_SIGNATURES = 100
MAX_NAME_LETTERS = 200
SEED_BYTES = 32
SECRET_PREFIX = "PRIVATE+KEY+"
_ED25519 = b"\1"
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)
_UNFIT = re.compile(r"[\0-\x09\x0b-\x1f\ud800-\udfff]")  # control characters but newline, and broken text
_KEY = re.compile(r"([^+]+)\+([0-9a-f]{8})\+([A-Za-z0-9+/=]{44})", re.ASCII)
_SIGNATURE_LINE = re.compile(r"— ([^\s+]+) ([A-Za-z0-9+/]+={0,2})")


class NoteError(TraceError):
    """A signed head cannot be read, or is not signed by the key that was given."""

    code = "head_invalid"
    http_status = 422


class Checkpoint(NamedTuple):
    """What a head says: this log has ``size`` entries, and ``root`` is the root of their tree."""

    origin: str
    """The log's name; ours is the name of its key."""
    size: int
    root: bytes
    extension: tuple[str, ...] = ()
    """Further lines of others, signed with the rest; we write none."""

    def text(self) -> str:
        """What is signed."""
        lines = (self.origin, str(self.size), b64encode(self.root).decode(), *self.extension)
        return "".join(f"{line}\n" for line in lines)

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """The head that ``text`` says.

        Raises:
            NoteError: when it is not exactly in the form of a checkpoint.
        """
        origin, *rest = text.split("\n")
        if len(rest) < 3 or rest[-1] or not all((origin, *rest[:-1])):
            raise NoteError("the head is not a checkpoint: it needs an origin, a size and a root, each on its line")
        size, root = rest[:2]
        if not _SIZE.fullmatch(size) or int(size) > MAX_SIZE:
            raise NoteError("the head is not a checkpoint: its second line is not a tree size")
        hash_ = _decode(root)
        if hash_ is None or len(hash_) != HASH_BYTES:
            raise NoteError("the head is not a checkpoint: its third line is not a SHA-256 in base64")
        if size == "0" and hash_ != EMPTY_ROOT:
            raise NoteError("the head is not a checkpoint: the tree is empty, but its root is that of another tree")
        return cls(origin, int(size), hash_, tuple(rest[2:-1]))


class VerifierKey:
    """The public half of a key: tells whether a note was signed with the other."""

    __slots__ = ("_key", "_public", "key_id", "name")

    def __init__(self, name: str, public: bytes) -> None:
        """A key from its parts.

        Args:
            public: the 32 bytes of an Ed25519 public key.

        Raises:
            ValueError: when the name or the key has not its form.
        """
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # most runtimes sign nothing

        check_name(name)
        self.name = name
        self.key_id = sha256(name.encode() + b"\n" + _ED25519 + public).digest()[:4]
        self._public = public
        self._key = Ed25519PublicKey.from_public_bytes(public)

    @classmethod
    def parse(cls, text: str) -> VerifierKey:
        """The key whose text is ``text``.

        Raises:
            ValueError: when it is none, or its key id belongs to another key; the message never holds the text.
        """
        name, key_id, public = _parse_key(text)
        key = cls(name, public)
        if key.key_id != key_id:
            raise ValueError("the id in the key's text is not that of the key: a letter was changed or lost")
        return key

    def __str__(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{b64encode(_ED25519 + self._public).decode()}"

    def __repr__(self) -> str:
        return f"VerifierKey({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VerifierKey) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def verify(self, text: bytes, signature: bytes) -> bool:
        """Whether ``signature`` is this key's over ``text``."""
        from cryptography.exceptions import InvalidSignature

        try:
            self._key.verify(signature, text)
        except InvalidSignature:
            return False
        return True


class Signer:
    """A secret key. Its ``repr`` does not show it; ``secret_text`` does."""

    __slots__ = ("_key", "_seed", "verifier")

    def __init__(self, name: str, seed: bytes) -> None:
        """A key from its parts.

        Args:
            seed: 32 random bytes.

        Raises:
            ValueError: when the name or the seed has not its form.
        """
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        self._seed = seed
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.verifier = VerifierKey(name, self._key.public_key().public_bytes_raw())

    @classmethod
    def parse(cls, text: str) -> Signer:
        """The key whose secret text is ``text``.

        Raises:
            ValueError: when it is none, or its key id belongs to another key; the message never holds the text.
        """
        if not text.startswith(SECRET_PREFIX):
            raise ValueError("this is not the text of a secret key")
        name, key_id, seed = _parse_key(text.removeprefix(SECRET_PREFIX))
        signer = cls(name, seed)
        if signer.key_id != key_id:
            raise ValueError("the id in the key's text is not that of the key: a letter was changed or lost")
        return signer

    @property
    def name(self) -> str:
        """The name of the key, and the origin of the heads that it signs."""
        return self.verifier.name

    @property
    def key_id(self) -> bytes:
        """Four bytes that tell keys of one name apart."""
        return self.verifier.key_id

    def __repr__(self) -> str:
        return f"<Signer {self.name}+{self.key_id.hex()}>"

    def secret_text(self) -> str:
        """The text to keep secret: whoever has it signs in this key's name."""
        return f"{SECRET_PREFIX}{self.name}+{self.key_id.hex()}+{b64encode(_ED25519 + self._seed).decode()}"

    def sign(self, text: str) -> bytes:
        """The whole note: ``text``, an empty line, and one signature.

        Raises:
            NoteError: when ``text`` cannot be the text of a note.
        """
        if not text.endswith("\n") or _UNFIT.search(text):
            raise NoteError("this text cannot be signed: it must end in a newline and hold no other control character")
        signed = text.encode()
        signature = b64encode(self.key_id + self._key.sign(signed)).decode()
        return signed + f"\n— {self.name} {signature}\n".encode()


def open_note(note: bytes, key: VerifierKey) -> Checkpoint:
    """What a signed head says, once its signature by ``key`` is verified.

    Signatures by other keys are passed over: a witness may have added its own.

    Raises:
        NoteError: when the note is malformed, is not signed by ``key``, or is the head of a log of another name.
    """
    text, signatures = _split(note)
    signed = text.encode()
    known = [raw[4:] for name, raw in signatures if name == key.name and raw[:4] == key.key_id]
    if not known:
        raise NoteError(f"the head is not signed by {key.name}+{key.key_id.hex()}; is this the key of that log?")
    if not all(key.verify(signed, signature) for signature in known):
        raise NoteError(
            f"the signature of {key.name}+{key.key_id.hex()} does not fit the head: it was changed or forged"
        )
    checkpoint = Checkpoint.parse(text)
    if checkpoint.origin != key.name:
        raise NoteError(f"the head is of the log {checkpoint.origin[:MAX_NAME_LETTERS]!r}, not of {key.name!r}")
    return checkpoint


class Unverified(NamedTuple):
    """What a signed head says, and who is said to have signed it."""

    head: Checkpoint
    keys: frozenset[tuple[str, bytes]]
    """Name and key id of each signature."""


def read_note(note: bytes) -> Unverified:
    """A signed head as it is written; no signature is verified.

    Raises:
        NoteError: when it is malformed.
    """
    text, signatures = _split(note)
    return Unverified(Checkpoint.parse(text), frozenset((name, raw[:4]) for name, raw in signatures))


def check_name(name: str) -> None:
    """Refuse what cannot be the name of a key.

    Raises:
        ValueError: when it is empty, too long, or holds a space, a plus or what cannot be printed.
    """
    if not 0 < len(name) <= MAX_NAME_LETTERS or not name.isprintable() or " " in name or "+" in name:
        raise ValueError(
            f"the name of a key has 1 to {MAX_NAME_LETTERS} printable letters, without spaces and plus signs"
        )


def _split(note: bytes) -> tuple[str, list[tuple[str, bytes]]]:
    """The text of a note and its signatures: names, and key id with signature."""
    if len(note) > MAX_NOTE_BYTES:
        raise NoteError(f"the head is longer than {MAX_NOTE_BYTES} bytes")
    try:
        whole = note.decode()
    except UnicodeDecodeError as error:
        raise NoteError("the head is not UTF-8") from error
    if _UNFIT.search(whole):
        raise NoteError("the head holds a control character")
    text, gap, block = whole.rpartition("\n\n")
    if not gap or not block.endswith("\n"):
        raise NoteError("the head is no signed note: it does not end in an empty line and signatures, each on its line")
    lines = block[:-1].split("\n")
    if len(lines) > MAX_SIGNATURES:
        raise NoteError(f"the head has more than {MAX_SIGNATURES} signatures")
    return text + "\n", [_signature(line) for line in lines]


def _signature(line: str) -> tuple[str, bytes]:
    match = _SIGNATURE_LINE.fullmatch(line)
    raw = _decode(match[2]) if match else None
    if match is None or raw is None or len(raw) < 5:
        raise NoteError("the head is no signed note: a line of its last part is not a signature")
    return match[1], raw


def _parse_key(text: str) -> tuple[str, bytes, bytes]:
    """The name, the key id and the 32 bytes of a key's text."""
    match = _KEY.fullmatch(text)
    raw = _decode(match[3]) if match else None
    if match is None or raw is None or len(raw) != 1 + SEED_BYTES or raw[:1] != _ED25519:
        raise ValueError("this is not the text of an Ed25519 key")
    return match[1], bytes.fromhex(match[2]), raw[1:]


def _decode(text: str) -> bytes | None:
    """The bytes of a base64 text; None when it is none, or not the one text of its bytes."""
    try:
        raw = b64decode(text, validate=True)
    except ValueError:
        return None
    return raw if b64encode(raw).decode() == text else None
