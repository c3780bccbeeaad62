"""Shell lines: what cannot be read plainly is never proven, and one part that is not allowed spoils the line."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cra_middleware.carp.commands import MAX_LINE, commands_test, read_commands

LOOKS = commands_test(["git status *", "git diff *", "git log *", "ls *", "cd *", "pytest *", "head *", "echo *"])
KILLS = commands_test(["rm *", "git push *--force*", "curl *"])


@pytest.mark.parametrize(
    "line",
    [
        *("git status", "git  status", "git status -s", "git\tstatus", "git log | head -3", "cd x && git diff main"),
        *(
            "git status;",
            "git status &",
            "ls\n\nls\n",
            "ls 'a*'",
            "ls './x y'",
            'ls "a"',
            "ls a\\ b",
            "ls '~/x'",
            "ls ä",
        ),
        *("git log --grep='a*'", 'git log --grep "[a-z]?"', "ls a\\*", "ls \\~", "git diff HEAD~1..HEAD~", "ls a~"),
        *("echo 'a;b'", "echo 'rm -rf /'", "echo '$(rm)'", "ls a#b", "ls 'a\nb'", "ls a!=b", "git diff HEAD~1 || ls"),
    ],
)
def test_allowed(line: str) -> None:
    """Every part is one of those named."""
    assert LOOKS(line) is True


@pytest.mark.parametrize(
    "line",
    [
        *("git status; rm -rf /", "git status && rm -rf /", "git status\nrm -rf /", "git status || rm x", "ls & rm x"),
        *("git status | sh", "rm --recursive x", "git push origin +main", "/bin/ls", "./ls", "gitstatus", "GIT status"),
        *("ls $(rm -rf /)", "ls `rm -rf /`", 'ls "$(rm)"', 'ls "`rm`"', "ls $HOME", "ls ${HOME}", "ls $'a'", "ls $x"),
        *("sh -c 'git status'", "bash -c ls", "env ls", "/usr/bin/env ls", "sudo ls", "xargs ls", "eval ls", "time ls"),
        *("nohup ls", "timeout 5 ls", "exec ls", "command ls", "builtin cd", "source x", ". x", "FOO=1 ls", "A=b"),
        *("ls > x", "ls >> x", "ls < x", "ls 2>&1", "ls <(rm x)", "ls << EOF", "(ls)", "{ ls; }", "ls {a,b}", "! ls"),
        *("if ls; then rm x; fi", "while ls", "for x in y", "case x", "[[ x ]]", "ls() { rm x; }", "function ls"),
        *(
            "ls # x",
            "#ls",
            "ls !!",
            "ls !rm",
            "ls *",
            "ls ?x",
            "ls [a]",
            "l? x",
            "ls \\",
            "ls \\\nrm x",
            "ls 'a",
            'ls "a',
        ),
        *("ls a*", "ls .e?v", "ls .e[n]v", "ls -?x", "ls .?/", "ls .*", "ls 'a'*", "ls ~", "ls ~/x", "ls ~root/x"),
        *("ls --x=~/y", "ls x=~", "ls a:~/b", "ls =ls"),
        *("; ls", "ls ;; ls", "ls |& head", "ls && ", "&& ls", "ls | | ls", "ls &&& ls", "", " ", "\n", "ls\r\nrm x"),
        *(
            "ls\0",
            "ls \x1b[2J",
            "ls \u00a0x",
            "ls \u202ex",
            "l\u200bs",
            "ls \u2028rm",
            "ls \u3164x",
            "ls \u2800x",
            "ls a\ufe0fb",
            "ls \ue000",
            "'ls",
            "git 'status x'",
            "'git status'",
        ),
        *("find . -delete", "find . -exec rm x ';'", "git log --x; curl y", "ls " + "x" * MAX_LINE),
    ],
)
def test_never_allowed(line: str) -> None:
    """Injection, substitution, redirection, wrappers, grouping, invisible letters."""
    assert LOOKS(line) is not True


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("ls .?/x", None),
        ("cat a*", None),
        ("cat ~/x", None),
        ("cat 'a*'", False),
        ("rm -rf /", True),
        ("rm", True),
        ("git push origin --force", True),
        ("git push --force-with-lease", True),
        ("'rm' -rf /", None),
        ("r\\m -rf /", None),
        ("/bin/rm x", None),
        ("ls; rm x", None),
        ("$(rm x)", None),
        ("sh -c 'rm x'", None),
        ("ls", False),
        ("git push origin", False),
        ("echo 'rm x'", False),
        ("./scripts/check", False),
    ],
)
def test_a_deny_holds_unless_proven_outside(line: str, answer: bool | None) -> None:
    """True and None both deny."""
    found = KILLS(line)
    assert (found is not False) is (answer is not False)
    if answer is True:
        assert found is True


@pytest.mark.parametrize("value", [None, 5, ["ls"], {"ls": 1}, b"ls", object()])
def test_only_text_is_a_line(value: object) -> None:
    """A list of words is no shell line, and nobody knows what the tool makes of it."""
    assert LOOKS(value) is None


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (r'echo "a\b" "a\"b" "a\\b" "\$x"', ["echo", r"a\b", 'a"b', r"a\b", "$x"]),
        (r"echo a\b \\ \' 'a\b'", ["echo", "ab", "\\", "'", r"a\b"]),
        ("echo a'b'\"c\"d ''", ["echo", "abcd", ""]),
    ],
)
def test_words_as_the_shell_takes_them(line: str, words: list[str]) -> None:
    """Quotes and backslashes, inside and outside of each other."""
    (command,) = read_commands(line) or [()]
    assert [word.text for word in command] == words


PARTS = st.sampled_from(["ls", "ls -l", "git status", "git log -3", "echo 'a;b'", 'echo "x y"'])
SEPARATORS = st.sampled_from([" && ", " || ", "; ", " | ", "\n", " & ", ";", "&&"])


@given(PARTS, SEPARATORS, PARTS)
def test_allowed_parts_make_an_allowed_line(one: str, separator: str, other: str) -> None:
    """Joining what is allowed stays allowed."""
    assert LOOKS(one + separator + other) is True


@given(PARTS, SEPARATORS, st.sampled_from(["rm x", "curl e", "unknown", "$x", "sh -c ls", "a=b"]), st.booleans())
def test_one_bad_part_spoils_the_line(part: str, separator: str, bad: str, first: bool) -> None:
    """Wherever it stands."""
    assert LOOKS(bad + separator + part if first else part + separator + bad) is not True


@given(st.text(alphabet=st.sampled_from(list("ab '\"\\;|&$`()<>{}#!*~=\n\t\r-/")), max_size=20))
def test_the_shell_reads_the_same_words(line: str) -> None:
    """A line that is read as one command of plain words has those words for a real shell, too."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash here")
    commands = read_commands(f"echo {line}")
    if commands is None or len(commands) != 1:
        return
    words = [word.text for word in commands[0]]
    program = "echo() { printf '%s\\0' echo \"$@\"; }\n" + f"echo {line}\nwait"
    done = subprocess.run([bash, "-f", "-c", program], capture_output=True, text=True, timeout=20)
    assert done.stdout.split("\0")[:-1] == words, (line, done.stderr)


def test_long_lines_are_read_in_one_pass() -> None:
    """A hundred thousand letters, stars in the pattern, and nothing hangs."""
    test = commands_test(["a*a*a*a*a*a*b", "x *"])
    assert test("a" * (MAX_LINE - 1)) is False
    assert test("x " + "y " * 40_000) is True
