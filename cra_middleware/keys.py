"""Signing keys in files: made once, kept secret, read where heads are signed or checked.

``FILE`` holds the secret half and is readable by its owner only; ``FILE.pub`` holds the public half, for everyone who
is to check what was signed. Both are one line, in the form of ``trace.note``.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from cra_middleware.errors import CRAError
from cra_middleware.trace.note import SECRET_PREFIX, SEED_BYTES, Signer, VerifierKey

PUBLIC_SUFFIX = ".pub"
FROM_ENVIRONMENT = "env:"
_MAX_KEY_BYTES = 4096
_PUBLIC_TEXT = re.compile(r"[^+\s]+\+[0-9a-f]{8}\+[A-Za-z0-9+/=]+")


class SigningKeyError(CRAError):
    """A key cannot be made or used; the message never holds a secret."""

    code = "signing_key_error"


def generate_key(path: str | Path, name: str | None = None) -> VerifierKey:
    """Make a new key: ``path`` with mode 0600, and ``path.pub``. Nothing is ever overwritten.

    Args:
        name: of the key and the log that it signs, such as ``example.com/support-bot``; ``cra/`` and 8 random hex
            digits when it is left out.

    Raises:
        SigningKeyError: when a file is there already or cannot be written, or the name cannot be one.
    """
    path = Path(path)
    try:
        signer = Signer(f"cra/{secrets.token_hex(4)}" if name is None else name, secrets.token_bytes(SEED_BYTES))
    except ValueError as error:
        raise SigningKeyError(str(error)) from error
    _write_new(path, signer.secret_text(), 0o600)
    try:
        _write_new(public_file(path), str(signer.verifier), 0o644)
    except SigningKeyError:
        _remove(path)  # half a pair would only be in the way of the next try
        raise
    return signer.verifier


def public_file(path: Path) -> Path:
    """Where the public half of the key in ``path`` is written."""
    return path.with_name(path.name + PUBLIC_SUFFIX)


def load_signer(source: str | Path) -> Signer:
    """The secret key in a file, or in the environment variable NAME when ``source`` is the text ``env:NAME``.

    Raises:
        SigningKeyError: when there is none, or others than its owner may read the file.
    """
    if isinstance(source, str) and source.startswith(FROM_ENVIRONMENT):
        variable = source.removeprefix(FROM_ENVIRONMENT)
        text = os.environ.get(variable, "").strip()
        if not text:
            raise SigningKeyError(f"the environment variable {variable} holds no key")
        return _signer(text, source)
    if str(source).lstrip().startswith(SECRET_PREFIX):
        raise SigningKeyError(
            "give a file, or env:NAME, and not the text of the key: others can see it on this machine"
        )
    return _signer(_read(source), source)


def load_verifier(source: str | Path) -> VerifierKey:
    """The public key in a ``.pub`` file, or in ``source`` itself when that is the text of a public key.

    Raises:
        SigningKeyError: when there is none.
    """
    if str(source).lstrip().startswith(SECRET_PREFIX):
        raise SigningKeyError("this is the text of a secret key: keep it to yourself, and give the public one")
    if isinstance(source, str) and _PUBLIC_TEXT.fullmatch(source.strip()):
        return _verifier(source.strip(), "this text")
    text = _read(source)
    if text.startswith(SECRET_PREFIX):
        raise SigningKeyError(f"{source} is a private key; keep it to yourself, and give the file that ends in .pub")
    return _verifier(text, source)


def load_public_half(path: str | Path) -> VerifierKey:
    """The public key in a file of either kind.

    Raises:
        SigningKeyError: as ``load_signer`` and ``load_verifier``.
    """
    text = _read(path)
    return _signer(text, path).verifier if text.startswith(SECRET_PREFIX) else _verifier(text, path)


def _signer(text: str, source: object) -> Signer:
    try:
        return Signer.parse(text)
    except ValueError as error:
        if _PUBLIC_TEXT.fullmatch(text):
            raise SigningKeyError(f"{source}: this is a public key; give the file without .pub") from error
        raise _not_ours(source, text, error) from error


def _verifier(text: str, source: object) -> VerifierKey:
    try:
        return VerifierKey.parse(text)
    except ValueError as error:
        raise _not_ours(source, text, error) from error


def _not_ours(source: object, text: str, error: ValueError) -> SigningKeyError:
    public = text.removeprefix(SECRET_PREFIX)
    why = f" ({error})" if _PUBLIC_TEXT.fullmatch(public) else ""
    return SigningKeyError(f"{source}: this is not a key made by `cra keys generate`{why}")


def _read(path: str | Path) -> str:
    """The text of a key file, without white space at its ends; empty when it is no text or too long for a key."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe must not make us wait
        try:
            mode = os.fstat(fd).st_mode
            if not stat.S_ISREG(mode):
                kind = "a folder" if stat.S_ISDIR(mode) else "no plain file"
                raise SigningKeyError(f"{path} is {kind}; name a key file")
            data = os.read(fd, _MAX_KEY_BYTES + 1)
        finally:
            os.close(fd)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise _failed(f"{path} cannot be read", error) from error
    if data.startswith(SECRET_PREFIX.encode()) and mode & 0o077:
        raise SigningKeyError(f"others may use the secret key in {path}; make it yours alone: chmod 600 {path}")
    try:
        return data.decode().strip() if len(data) <= _MAX_KEY_BYTES else ""
    except UnicodeDecodeError:
        return ""


def _write_new(path: Path, text: str, mode: int) -> None:
    """Write a file that is not there yet, down to the disk."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    except FileExistsError as error:
        raise SigningKeyError(f"{path} is there already; name another file") from error
    except (OSError, ValueError) as error:
        raise _failed(f"{path} cannot be written", error) from error
    try:
        with open(fd, "w", encoding="utf-8") as file:
            file.write(f"{text}\n")
            file.flush()
            os.fsync(fd)
    except OSError as error:
        _remove(path)
        raise _failed(f"{path} cannot be written", error) from error


def _remove(path: Path) -> None:
    with suppress(OSError):  # what went wrong before is what is told
        path.unlink()


def _failed(what: str, error: OSError | ValueError) -> SigningKeyError:
    return SigningKeyError(f"{what}: {getattr(error, 'strerror', None) or error}")
