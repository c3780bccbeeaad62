"""Key files: made once, never overwritten, secret ones for their owner only, and never mixed up."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cra_middleware.errors import CRAError
from cra_middleware.keys import SigningKeyError, generate_key, load_public_half, load_signer, load_verifier
from cra_middleware.trace.note import Checkpoint, Signer, VerifierKey, open_note
from cra_middleware.trace.tree import EMPTY_ROOT

Load = Callable[[str | Path], object]
LOADERS: list[Load] = [load_signer, load_verifier, load_public_half]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A secret key file with its public half beside it."""
    generate_key(tmp_path / "bot.key", "example.com/bot")
    return tmp_path / "bot.key"


@pytest.fixture
def open_umask() -> Iterator[None]:
    """A process that gives everybody every right to its new files."""
    before = os.umask(0)
    yield
    os.umask(before)


def public(file: Path) -> Path:
    return file.with_name(file.name + ".pub")


@pytest.mark.usefixtures("open_umask")
def test_a_pair_is_made(tmp_path: Path) -> None:
    """The secret half is the owner's alone, whatever the umask; what it signs, the public half opens."""
    file = tmp_path / "bot.key"
    key = generate_key(file, "example.com/bot")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(public(file).stat().st_mode) == 0o644
    assert public(file).read_text() == f"{key}\n"
    head = Checkpoint("example.com/bot", 0, EMPTY_ROOT)
    assert open_note(load_signer(file).sign(head.text()), load_verifier(public(file))) == head
    assert load_verifier(str(key)) == load_verifier(f" {key}\n") == load_public_half(file) == key
    assert load_public_half(str(public(file))) == load_signer(str(file)).verifier == key


def test_a_name_is_invented(tmp_path: Path) -> None:
    """Without a name the key gets one of its own; no two keys are the same."""
    first, second = generate_key(tmp_path / "a"), generate_key(tmp_path / "b")
    assert first.name.startswith("cra/")
    assert len(first.name) == 12
    assert (first.name, first.key_id) != (second.name, second.key_id)
    assert (tmp_path / "a").read_text() != (tmp_path / "b").read_text()
    with pytest.raises(SigningKeyError, match="name of a key"):
        generate_key(tmp_path / "c", "two words")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.pub", "b", "b.pub"]


@pytest.mark.parametrize("there", ["bot.key", "bot.key.pub"])
@pytest.mark.parametrize("kind", ["file", "link", "dangling link", "folder"])
def test_nothing_is_overwritten(tmp_path: Path, there: str, kind: str) -> None:
    """When either file is there, in whatever form, it stays as it is and no half of a pair is left."""
    obstacle, other = tmp_path / there, tmp_path / "other"
    if kind == "folder":
        obstacle.mkdir()
    elif kind == "file":
        obstacle.write_text("mine")
    else:
        obstacle.symlink_to(other)
        if kind == "link":
            other.write_text("mine")
    before = sorted((path.name, path.is_file() and path.read_text()) for path in tmp_path.iterdir())
    with pytest.raises(SigningKeyError, match=f"{there} is there already"):
        generate_key(tmp_path / "bot.key", "n")
    assert sorted((path.name, path.is_file() and path.read_text()) for path in tmp_path.iterdir()) == before


def test_half_a_pair_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk is full, no file is left behind, neither empty nor alone."""

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SigningKeyError, match="cannot be written: No space left"):
        generate_key(tmp_path / "new.key", "n")
    assert list(tmp_path.iterdir()) == []


def test_places_where_no_key_can_be(tmp_path: Path) -> None:
    """A folder that is missing, and a name that no file can have, give a sentence."""
    for path in (tmp_path / "no" / "bot.key", "a\0b", tmp_path / ("x" * 300)):
        with pytest.raises(SigningKeyError, match="cannot be written"):
            generate_key(path, "n")
        for load in LOADERS:
            with pytest.raises(SigningKeyError, match="cannot be read"):
                load(path)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o644, 0o660, 0o610])
def test_a_secret_that_others_may_use(file: Path, mode: int) -> None:
    """A secret key file that is open to group or others is refused, and the sentence says how to mend it."""
    file.chmod(mode)
    for load in (load_signer, load_public_half):
        with pytest.raises(SigningKeyError, match=f"chmod 600 {file}$"):
            load(file)
    file.chmod(0o400)
    assert load_signer(file).verifier == load_public_half(file)


def test_mixed_up_files(file: Path) -> None:
    """Public for secret and secret for public are told apart, in files and as text, and no secret is repeated."""
    secret = file.read_text().strip()
    for load, source, message in (
        (load_signer, public(file), "this is a public key; give the file without .pub"),
        (load_verifier, file, "is a private key; .* give the file that ends in .pub"),
        (load_verifier, secret, "secret key: keep it to yourself"),
        (load_signer, f" {secret}", "give a file, or env:NAME, and not the text of the key"),
    ):
        with pytest.raises(SigningKeyError, match=message) as caught:
            load(source)
        assert secret.split("+", 4)[4] not in str(caught.value)
        assert isinstance(caught.value, CRAError)


CONTENTS = {
    "empty": b"",
    "a word": b"hello\n",
    "another tool's": b"-----BEGIN OPENSSH PRIVATE KEY-----\n",
    "bytes": b"\xff\xfe\0",
    "huge": b"PRIVATE+KEY+" + b"a" * 10_000_000,
    "two keys": b"",
    "a key and, far behind it, more": b"",
    "changed": b"",
    "no key": b"PRIVATE+KEY+a+b+c",
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_wrong_contents(file: Path, kind: str) -> None:
    """What `cra keys generate` did not write is named as that, secret or public."""
    secret, verifier = file.read_bytes(), public(file).read_bytes()
    for path, good in ((file, secret), (public(file), verifier)):
        path.write_bytes(
            {
                "two keys": good * 2,
                "a key and, far behind it, more": good + b" " * 5000 + b"x",
                "changed": good.replace(b"bot", b"bat"),
            }.get(kind, CONTENTS[kind])
        )
        path.chmod(0o600)
    for load, path in ((load_signer, file), (load_public_half, file), (load_public_half, public(file))):
        with pytest.raises(SigningKeyError, match=r"public key|not a key made by `cra keys generate`") as caught:
            load(path)
        assert secret.strip().split(b"+", 4)[4].decode() not in str(caught.value)
    with pytest.raises(SigningKeyError, match=r"not a key made by|is a private key"):
        load_verifier(public(file))
    if kind == "changed":
        with pytest.raises(SigningKeyError, match="a letter was changed or lost"):
            load_signer(file)


@pytest.mark.parametrize("load", LOADERS)
def test_what_is_no_plain_file(tmp_path: Path, load: Load) -> None:
    """A folder, a pipe without a writer and a link to itself are refused at once; a link to a key is read."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, message in (("", "is a folder"), ("pipe", "is no plain file"), ("loop", "cannot be read")):
        with pytest.raises(SigningKeyError, match=message):
            load(tmp_path / name)
    generate_key(tmp_path / "key", "n")
    (tmp_path / "link").symlink_to(tmp_path / ("key.pub" if load is load_verifier else "key"))
    assert load(tmp_path / "link")


def test_a_key_in_the_environment(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``env:NAME`` takes the secret from a variable; a path of that look is a file."""
    monkeypatch.setenv("CRA_TEST_KEY", file.read_text())
    assert load_signer("env:CRA_TEST_KEY").verifier == load_public_half(file)
    for name, value, message in (
        ("CRA_TEST_KEY", "  ", "variable CRA_TEST_KEY holds no key"),
        ("CRA_TEST_KEY", public(file).read_text(), "env:CRA_TEST_KEY: this is a public key"),
        ("CRA_TEST_KEY", "nonsense", "env:CRA_TEST_KEY: this is not a key made by"),
    ):
        monkeypatch.setenv(name, value)
        with pytest.raises(SigningKeyError, match=message):
            load_signer(f"env:{name}")
    monkeypatch.delenv("CRA_TEST_KEY")
    for source in ("env:CRA_TEST_KEY", "env:", "env:a=b", "env:\udc80"):
        with pytest.raises(SigningKeyError, match="holds no key"):
            load_signer(source)
    monkeypatch.chdir(file.parent)
    file.rename("env:X")
    assert isinstance(load_signer(Path("env:X")), Signer)


def test_a_text_that_is_almost_a_key(file: Path) -> None:
    """The text of a public key with a letter changed is refused as a key, not looked for as a file."""
    text = str(load_verifier(public(file)))
    with pytest.raises(SigningKeyError, match=r"this text: this is not a key made by .* a letter was changed"):
        load_verifier(text.replace("bot", "bat"))
    assert isinstance(load_verifier(text), VerifierKey)
