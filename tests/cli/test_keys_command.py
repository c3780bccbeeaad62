"""``cra keys``: makes a pair, says what each half is for, and never prints the secret."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cra_middleware.cli.keys import app
from cra_middleware.keys import load_signer, load_verifier
from tests.cli.conftest import HOSTILE, Ran, assert_harmless


def keys(*args: object) -> Ran:
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ran(result.exit_code, result.stdout, result.stderr)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    assert keys("generate", "--out", tmp_path / "bot.key", "--name", "example.com/bot").code == 0
    return tmp_path / "bot.key"


def test_generate(tmp_path: Path) -> None:
    """The public half is printed on a line of its own, and each file with what to do with it; the secret is not."""
    file = tmp_path / "bot.key"
    ran = keys("generate", "--out", file, "--name", "example.com/bot")
    assert (ran.code, ran.stderr) == (0, "")
    first, secret, public = ran.stdout.splitlines()
    assert load_verifier(first) == load_signer(file).verifier
    assert secret.split()[:4] == [str(file), "keep", "it", "secret:"]
    assert public.split()[:4] == [f"{file}.pub", "give", "it", "to"]
    assert load_signer(file).secret_text().split("+", 4)[4] not in ran.stdout


def test_generate_for_programs(tmp_path: Path) -> None:
    """One document names the key and both files; a name is invented when none is given."""
    ran = keys("generate", "--out", tmp_path / "k", "--format", "json")
    key = load_signer(tmp_path / "k").verifier
    assert key.name.startswith("cra/")
    assert ran.json == {
        "verifier_key": str(key),
        "name": key.name,
        "key_id": key.key_id.hex(),
        "secret_file": str(tmp_path / "k"),
        "public_file": str(tmp_path / "k.pub"),
    }


def test_show(file: Path) -> None:
    """The public half comes out of either file, alone on stdout, so that it can be written to a file."""
    text = (file.parent / "bot.key.pub").read_text()
    for path in (file, f"{file}.pub"):
        assert keys("show", path) == Ran(0, text, "")
        assert keys("show", path, "--format", "json").json["verifier_key"] == text.strip()
        assert json.loads(keys("show", path, "--format", "json").stdout)["name"] == "example.com/bot"


def test_refusals(file: Path, tmp_path: Path) -> None:
    """Each is one harmless line on stderr and exit code 1; wrong usage is 2."""
    (tmp_path / "other").write_text(HOSTILE.replace("\ud800", ""))
    open_key = tmp_path / "open"
    open_key.write_text(file.read_text())
    open_key.chmod(0o644)
    for args, message in (
        (("generate", "--out", file), "is there already; name another file"),
        (("generate", "--out", tmp_path / "no" / "k"), "cannot be written"),
        (("generate", "--out", tmp_path / "k", "--name", HOSTILE), "the name of a key has"),
        (("show", tmp_path / "missing"), "cannot be read"),
        (("show", tmp_path / "\x1b[31m"), "cannot be read"),
        (("show", tmp_path / "other"), "this is not a key made by `cra keys generate`"),
        (("show", open_key), "chmod 600"),
        (("show", tmp_path), "is a folder"),
    ):
        ran = keys(*args)
        assert (ran.code, ran.stdout) == (1, "")
        assert message in ran.stderr
        assert ran.stderr.count("\n") == 1
        assert_harmless(ran.stderr)
    assert keys("generate").code == keys("show").code == keys("generate", "--out").code == 2
