"""Paths after ``~``, ``..`` and links; what cannot be told is neither inside nor outside."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cra_middleware.carp.paths import glob_test, within_test


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project, the working directory, with links of every kind; beside it a secret and a home."""
    folder = tmp_path / "project"
    (folder / "src" / "deep").mkdir(parents=True)
    (folder / ".env").write_text("x")
    (tmp_path / "outside").mkdir()
    (tmp_path / "home" / ".ssh").mkdir(parents=True)
    (tmp_path / "project-other").mkdir()
    links = {
        "harmless.txt": ".env",
        "out": "../outside",
        "loop": "loop",
        "back": "src/deep",
        "src/.env.link": "../src",
        "dangling": "nowhere",
    }
    for name, target in links.items():
        (folder / name).symlink_to(target)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return folder


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        (".", True),
        ("src/main.py", True),
        ("new/folder/file", True),
        ("src/../src/x", True),
        ("./../project/x", True),
        ("..", False),
        ("../x", False),
        ("src/../../x", False),
        ("../project-other/x", False),
        ("/etc/passwd", False),
        ("/", False),
        ("out", False),
        ("out/x", False),
        ("out/../x", False),
        ("back/../../x", True),
        ("back/../../../x", False),
        ("dangling", True),
        ("~", False),
        ("~/x", False),
        ("harmless.txt", True),
        ("loop", None),
        ("loop/x", None),
        ("~root/x", None),
        ("~nobody", None),
        ("", None),
        ("a\0b", None),
        ("\ud800", None),
        ("x" * 5000, None),
        (5, None),
        (None, None),
        (["src"], None),
        (b"src", None),
    ],
)
def test_within(project: Path, path: Any, answer: bool | None) -> None:
    """Inside is what a link leads to inside; ``..`` is taken after links, as the kernel takes it."""
    assert within_test("$PROJECT", str(project))(path) is answer
    if isinstance(path, str) and answer is not None and not path.startswith(("/", "~")):
        assert within_test("$PROJECT", str(project))(f"{project}/{path}") is answer


@pytest.mark.parametrize(
    "path", ["/proc/self/cwd/x", "//proc/self/cwd/../x", "src/../../../../../../../../proc/self/cwd/x", "/dev/fd/3"]
)
def test_a_path_of_one_process_cannot_be_told(project: Path, path: str) -> None:
    """The tool may run in another process, whose working directory and open files are others."""
    assert within_test("$PROJECT", str(project))(path) is None
    assert within_test("$PROJECT", str(project))(f"/proc/{os.getpid()}/cwd/x") is None
    assert glob_test(["**/x"], str(project))(path) is None


def test_within_is_about_the_folder_itself(project: Path, tmp_path: Path) -> None:
    """A folder that is named by a link, a part of the project, a home folder."""
    (tmp_path / "link").symlink_to(project)
    assert within_test(str(tmp_path / "link"), None)("src/x") is True
    assert within_test("$PROJECT/src", str(project))("src/x") is True
    assert within_test("$PROJECT/src", str(project))(".env") is False
    assert within_test("~/.ssh", None)("~/.ssh/id") is True
    assert within_test("/", None)("/etc/x") is True
    if str(project) != str(project).upper():  # on a disk that does not tell cases apart it would be inside
        assert within_test("$PROJECT", str(project))(str(project).upper() + "/x") is None


SECRETS = ["**/.env*", "~/.ssh/**", "**/*.pem", "$PROJECT/private/**", "notes/*.txt"]


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        (".env", True),
        ("src/deep/.env.local", True),
        ("src/deep/../../.env", True),
        ("/etc/.env", True),
        ("~/.ssh/id_ed25519", True),
        ("~/.ssh", True),
        ("~/.ssh/a/b/c", True),
        ("x.pem", True),
        ("private", True),
        ("private/a/b", True),
        ("notes/x.txt", True),
        ("harmless.txt", None),
        ("src/.env.link", None),
        (".ENV", None),
        ("X.PEM", None),
        ("notes/a/x.txt", False),
        ("src/notes/x.txt", False),
        ("env", False),
        ("src/main.py", False),
        ("~/ssh", False),
        ("privateer/x", False),
        ("x.pem.txt", False),
        ("loop", None),
        (5, None),
        ("", None),
    ],
)
def test_glob(project: Path, path: Any, answer: bool | None) -> None:
    """As written and after links: a deny holds when either fits, an allow when both do."""
    assert glob_test(SECRETS, str(project))(path) is answer


def test_a_home_that_is_a_link(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pattern's own folder is followed, too."""
    (tmp_path / "user").symlink_to(tmp_path / "home")
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    test = glob_test(["~/.ssh/**"], None)
    assert test("~/.ssh/id") is True
    assert test(str(tmp_path / "home" / ".ssh" / "id")) is True


def test_a_link_made_later_counts(project: Path) -> None:
    """The disk is looked at anew each time."""
    test = within_test("$PROJECT", str(project))
    assert test("later/x") is True
    os.symlink("/etc", project / "later")
    assert test("later/x") is False


NAMES = st.sampled_from(["a", "b", "ab", "x.y", ".env"])


@given(
    st.lists(st.sampled_from(["**", "*", "?", "a", "b*", "*b", "x.?"]), min_size=1, max_size=5),
    st.lists(NAMES, min_size=1, max_size=6),
)
def test_globs_as_a_simple_reader_reads_them(pattern: list[str], path: list[str]) -> None:
    """Segment by segment, ``**`` any number of them, ``x/**`` x itself."""

    def segment(one: str, name: str) -> bool:
        if not one:
            return not name
        if one[0] == "*":
            return any(segment(one[1:], name[start:]) for start in range(len(name) + 1))
        return bool(name) and one[0] in ("?", name[0]) and segment(one[1:], name[1:])

    def fits(rest: list[str], names: list[str]) -> bool:
        if not rest:
            return not names
        if rest[0] == "**":
            return any(fits(rest[1:], names[start:]) for start in range(len(names) + 1))
        return bool(names) and segment(rest[0], names[0]) and fits(rest[1:], names[1:])

    root = "/nowhere-of-this-name"
    answer = glob_test([root + "/" + "/".join(pattern)], None)(root + "/" + "/".join(path))
    assert answer is fits(pattern, path)


@pytest.mark.parametrize(
    ("pattern", "path", "answer"),
    [
        ("/nowhere/**/a/**/b", "/nowhere/ab/a/b", True),
        ("/nowhere/**/a/**/b", "/nowhere/ab/b", False),
        ("/nowhere/**/a*/**", "/nowhere/x/ab", True),
    ],
)
def test_a_part_is_a_whole_name(pattern: str, path: str, answer: bool) -> None:
    """What begins alike is not taken for it."""
    assert glob_test([pattern], None)(path) is answer


def test_many_stars_and_a_long_path() -> None:
    """Nothing hangs."""
    test = glob_test(["/" + "/".join(["**", "a*a*a*a"] * 6)], None)
    assert test("/" + "a" * 250 + "/b" * 1800) is False
    assert glob_test(["/**/a/**/a/**/a/**/a/**/a/b"], None)("/a" * 2000) is False
