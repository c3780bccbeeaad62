"""The sidecar: personal values that a trace holds only commitments to, until their subject is erased.

One SQLite file beside the traces, never among them. Values and salts are encrypted (AES-256-GCM) under a key of their
subject's own, which lies in the same file: who can read the file can read the values. Erasing destroys the key, the
values, the salts and the subject's name, and writes the file anew; the refs stay, to tell an erased value from an
unknown one. The trace is not touched, and verifies as before.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from sqlite3 import Connection
from typing import Literal, NamedTuple

from cra_middleware._canonical import UnrepresentableError, canonical
from cra_middleware._sqlite_file import SqliteFile
from cra_middleware.errors import SinkError
from cra_middleware.trace.commitments import SALT_BYTES, Commitment, commit, commitment_text

_VERSION = 7701
"""Not 1, so that no other store's file is taken for a sidecar."""
_SCHEMA = """
CREATE TABLE subjects (number INTEGER PRIMARY KEY, subject TEXT UNIQUE NOT NULL, key BLOB NOT NULL);
CREATE TABLE personal (ref TEXT PRIMARY KEY, commitment TEXT NOT NULL, subject INTEGER, sealed BLOB) WITHOUT ROWID;
CREATE INDEX by_subject ON personal (subject)"""
_KEY_BYTES = 32
_NONCE_BYTES = 12
"""96 bits, as NIST SP 800-38D wants them; random, so one key is good for 2^32 values."""


class SidecarError(SinkError):
    """The sidecar cannot be used, so what needs it is not recorded and does not run."""


class WithheldError(SidecarError):
    """A value is not given: it was erased, was never here, or is not what was committed to."""

    def __init__(self, message: str, why: Literal["erased", "unknown", "altered"]) -> None:
        super().__init__(message)
        self.why: Literal["erased", "unknown", "altered"] = why


class Revealed(NamedTuple):
    """A personal value, with what an auditor needs to check it against the trace."""

    value: bytes
    """Canonical JSON."""
    salt: bytes

    @property
    def commitment(self) -> str:
        """What stands in the trace, if this is the value."""
        return commitment_text(self.salt, self.value)


class Sidecar:
    """Safe under threads, tasks and processes of one machine."""

    def __init__(self, path: str | Path, timeout_seconds: float = 5.0) -> None:
        """Open or make the file, with mode 0600.

        Raises:
            SidecarError: when it cannot be used.
        """
        self._file = SqliteFile(path, _SCHEMA, _VERSION, timeout_seconds, SidecarError, survives_power_loss=True)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def commit(self, subject: str, value: object) -> dict[str, str]:
        """Keep one value, and return what stands for it in a trace.

        Raises:
            SidecarError: when it cannot be kept.
        """
        try:
            made = commit(canonical(value))
        except UnrepresentableError as error:
            raise SidecarError(f"the value cannot be written down: {error}") from error
        self.keep(subject, (made,))
        return made.mapping()

    def keep(self, subject: str, commitments: Sequence[Commitment]) -> None:
        """Keep what commitments stand for. When this returns, a power loss does not undo it.

        Raises:
            SidecarError: when they cannot be kept; then none is.
        """
        with self._file.transaction() as connection:
            number, key = _key(connection, _utf8(subject))
            rows = [(made.ref, made.text, number, _sealed(key, made)) for made in commitments]
            connection.executemany("INSERT INTO personal VALUES (?, ?, ?, ?)", rows)

    def reveal(self, ref: str) -> Revealed:
        """The value and the salt that ``ref`` names. Compare ``commitment`` with the trace: this file can be changed.

        Raises:
            WithheldError: when it was erased, was never here, or does not match the commitment kept with it.
            SidecarError: when the file cannot be used.
        """
        with self._file.transaction(writes=False) as connection:
            row = connection.execute(
                "SELECT commitment, sealed, key FROM personal LEFT JOIN subjects ON number = personal.subject "
                "WHERE ref = ?",
                (_utf8(ref),),
            ).fetchone()
        if row is None:
            raise WithheldError("this sidecar never had the value; is it another trace's?", "unknown")
        if row[1] is None:
            raise WithheldError("the value was erased", "erased")
        from cryptography.exceptions import InvalidTag

        try:
            found = _opened(row[2], row[1], ref, row[0])
        except (InvalidTag, ValueError, TypeError):  # a key, a nonce or a text that somebody has changed
            found = None
        if found is None or found.commitment != row[0]:
            raise WithheldError("the sidecar was changed: the value is not what was committed to", "altered")
        return found

    def subjects(self) -> tuple[str, ...]:
        """Those whose values are here.

        Raises:
            SidecarError: when the file cannot be used.
        """
        with self._file.transaction(writes=False) as connection:
            return tuple(str(name) for (name,) in connection.execute("SELECT subject FROM subjects ORDER BY subject"))

    def count(self, subject: str) -> int:
        """How many values of a subject are here.

        Raises:
            SidecarError: when the file cannot be used.
        """
        with self._file.transaction(writes=False) as connection:
            (found,) = connection.execute(
                "SELECT count(*) FROM personal JOIN subjects ON number = personal.subject WHERE subjects.subject = ?",
                (_utf8(subject),),
            ).fetchone()
        return int(found)

    def erase(self, subject: str) -> int:
        """Destroy a subject's key, values, salts and name; how many values there were.

        The file is written anew even when there is nothing, so that an erasure that was interrupted can be finished.

        Raises:
            SidecarError: when it cannot be done, or old pages are still there because another process is reading.
        """
        with self._file.transaction() as connection:
            connection.execute("PRAGMA secure_delete=ON")
            row = connection.execute("SELECT number FROM subjects WHERE subject = ?", (_utf8(subject),)).fetchone()
            changed = connection.execute(
                "UPDATE personal SET subject = NULL, sealed = NULL WHERE subject = ?", row or (None,)
            )
            connection.execute("DELETE FROM subjects WHERE number = ?", row or (None,))
        self._file.scrub()
        return changed.rowcount


def _key(connection: Connection, subject: str) -> tuple[int, bytes]:
    """Read in each transaction, never remembered: another process may have erased the subject."""
    fresh = secrets.token_bytes(_KEY_BYTES)
    connection.execute("INSERT OR IGNORE INTO subjects (subject, key) VALUES (?, ?)", (subject, fresh))
    number, key = connection.execute("SELECT number, key FROM subjects WHERE subject = ?", (subject,)).fetchone()
    return int(number), bytes(key)


def _sealed(key: bytes, made: Commitment) -> bytes:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # costs more than most runtimes' start can spare

    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, made.salt + made.value, _bound(made.ref, made.text))


def _opened(key: bytes, sealed: bytes, ref: str, text: str) -> Revealed:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    plain = AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], _bound(ref, text))
    return Revealed(plain[SALT_BYTES:], plain[:SALT_BYTES])


def _bound(ref: str, text: str) -> bytes:
    """What a sealed value belongs to: it opens nowhere else."""
    return f"{ref} {text}".encode()


def _utf8(text: str) -> str:
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise SidecarError("a subject or a ref holds a lone surrogate, which no file can keep")
    return text
