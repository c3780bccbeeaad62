"""Personal data and secrets that have a form."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cra_middleware.trace.patterns import FINDERS, hide

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----"
WHOLE = {
    "email": [
        "ann@example.org",
        "a.b+c@mail.example.co.uk",
        "o'neil@example.org",
        "müller@bücher.example",
        "ann%40example.org",
        "x" * 300 + "@example.org",
    ],
    "phone": [
        "+49 30 1234567",
        "+14155550123",
        "+44 (0)20 7946 0958",
        "0044 20 7946 0958",
        "(555) 123-4567",
        "555-123-4567",
        "555.123.4567",
        "1-800-555-0199",
        "01 23 45 67 89",
        "030 1234567",
        "(030) 123 45 67",
        "0151-23456789",
        "07911123456",
    ],
    "card": [
        "4111111111111111",
        "4111 1111 1111 1111",
        "4111-1111-1111-1111",
        "378282246310005",
        "3782 822463 10005",
        "3056 930902 5904",
        "5555555555554444",
        "6304000000000000",
    ],
    "key": [
        "sk-" + "proj-abcdefghij0123456789",
        "sk-" + "ant-api03-abcdefghij0123456789",
        "sk_" + "live_abcdefghij0123",
        "AKIA" + "IOSFODNN7EXAMPLE",
        "ghp_" + "abcdefghijklmnopqrst0123",
        "github_" + "pat_abcdefghijklmnopqrst0123",
        "glpat-" + "abcdefghij0123456789",
        "xoxb-" + "1234567890-abcdef",
        "AIza" + "a" * 35,
        "hf_" + "abcdefghijklmnopqrst0123",
        "npm_" + "a" * 36,
        "SG." + "abcdefghijklmnop.abcdefghijklmnop",
        "Bearer abcdefghijklmnop0123==",
        PEM,
        PEM.replace("RSA ", ""),
        PEM.replace("RSA", "EC").replace("\n", "\\n"),
        "-----BEGIN PGP PRIVATE KEY BLOCK-----\nx\n-----END PGP PRIVATE KEY BLOCK-----",
    ],
    "jwt": [JWT, JWT.rpartition(".")[0]],
    "ip": ["10.0.0.1", "255.255.255.255", "::1", "fe80::1", "2001:db8:0:0:8:800:200c:417a", "::ffff:10.0.0.1"],
}
NONE = {
    "email": ["a@b", "@example.org", "root@localhost", "a b.c", "@"],
    "phone": ["2026-01-05 12:00:00", "2026-01-05T12:00:00.500Z", "1234567890", "12", "10.0.0.1", "3.14159265358979"],
    "card": ["4111111111111112", "411111111111", "0.4111111111111111", "41111111111111111111", "1111 1111 1111 1111"],
    "key": ["sk-learn", "task-abcdefghij0123456789abc", "AKIA", "bearer of news", "-----BEGIN CERTIFICATE-----"],
    "jwt": ["eyJ", "eyJhbGciOiJI", "xeyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0"],
    "ip": ["256.1.1.1", "1.2.3", "12:30:45", "std::vector", "::", "a:b", "1.2.3.4.5", "http://x"],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in WHOLE.items() for text in texts])
def test_what_is_found(name: str, text: str) -> None:
    """All of it is replaced, alone and inside a sentence, by a tag that says what it was."""
    assert hide(text, [name]) == f"cra:redacted:{name}"
    assert hide(f"see ({text}), or: {text}", [name]) == f"see (cra:redacted:{name}), or: cra:redacted:{name}"


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in NONE.items() for text in texts])
def test_what_is_not(name: str, text: str) -> None:
    """Times, versions, fractions, wrong check digits and half a form stay as they are."""
    assert hide(text, [name]) == text


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("4111 1111 1111 1111 12/27", "C 12/27"),
        ("1234 4111 1111 1111 1111", "1234 C"),
        ("5999 4111-1111-1111-1111.", "5999 C."),
        ("41111111111111114111111111111111", "41111111111111114111111111111111"),
    ],
)
def test_a_card_among_other_numbers(text: str, left: str) -> None:
    """Neither a number before it nor one behind it hides a card."""
    assert hide(text, ["card"]) == left.replace("C", "cra:redacted:card")


def test_a_key_that_was_cut_off() -> None:
    """Half a private key is a secret: everything behind its beginning goes."""
    assert hide("a " + PEM[:40] + " more", ["key"]) == "a cra:redacted:key"
    assert hide(PEM + " b", ["key"]) == "cra:redacted:key b"


def test_several_kinds_in_one_text() -> None:
    """One text may hold them all."""
    text = " | ".join(texts[0] for texts in WHOLE.values())
    assert hide(text, list(FINDERS)) == " | ".join(f"cra:redacted:{name}" for name in WHOLE)


@given(st.text(max_size=60) | st.text("0123456789 -+().:@aeyJ", max_size=60))
def test_any_text(text: str) -> None:
    """Nothing breaks, and what is left is found no more, but where a tag itself made the form."""
    left = hide(text, list(FINDERS))
    assert "cra:redacted:" in left or left == text


HOSTILE = [
    *(
        "a",
        "1",
        "2",
        ".",
        "-",
        " ",
        "a@",
        "a@a.",
        "1.",
        "1:",
        "f:",
        "+1",
        "0 ",
        "012-",
        "(0",
        "sk-",
        "eyJ",
        "SG.",
        "a%40",
    ),
    *("2222 ", "2222-", "::1 ", "1::zz ", "1:1 ", "1.1.1.1 ", "bearer ", "eyJaaaaa.", "0123456789 ", "2222222222222 "),
    *("-----BEGIN ", "-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----", "x@y..", "2000:1:2:3:4:5:6:zz "),
]


@pytest.mark.slow
def test_no_text_takes_for_ever() -> None:
    """Every kind looks at 250,000 letters of the worst there is, and comes back: where the time grew with the square
    of the text's length, one of these alone would take longer than all of them may."""
    program = (
        "import sys; from cra_middleware.trace.patterns import FINDERS, hide\n"
        "for piece in sys.argv[1:]: hide(piece * (250_000 // len(piece)), list(FINDERS))"
    )
    subprocess.run([sys.executable, "-c", program, *HOSTILE], check=True, timeout=60)
