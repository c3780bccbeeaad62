"""Personal data and secrets that have a form: found inside any text, and replaced there by a tag without a hash.

Every expression looks at a letter a bounded number of times: a run that may be long is entered at its beginning only,
and never given back (``++``). What a form alone cannot tell (a checksum, an address) is checked afterwards, in code.
Better a number too many hidden than one too few: ``1.2.3.4`` may be a version.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

TAG = "cra:redacted:"


class Finder(NamedTuple):
    """One kind of data."""

    form: re.Pattern[str]
    length: Callable[[str], int] | None = None
    """How much of what the form matched is such data, from its beginning; 0: none of it."""


_EMAIL = re.compile(r"(?<![\w.!#$&'*+/=?^`{|}~-])[\w.!#$&'*+/=?^`{|}~-]++(?:@|%40)[\w-][\w.-]*+")
# International with + or 00; North American; French; other national numbers with the area code set off; or in one.
_PHONE = re.compile(
    r"(?<![\w.+])(?:"
    r"\+\d[\d ().\-/]{5,22}\d"
    r"|00[1-9][\d ().\-/]{5,22}\d"
    r"|(?:1[ .-])?(?:\(\d{3}\) ?|\d{3}[ .\-/])\d{3}[ .-]\d{4}"
    r"|0[1-9][ .-]\d\d[ .-]\d\d[ .-]\d\d[ .-]\d\d"
    r"|(?:\(0\d{2,5}\)|0\d{2,5})[ \-/][\d \-/]{3,12}\d"
    r"|0\d{9,10}"
    r")(?!\w)",
    re.ASCII,
)
# ISO/IEC 7812: 13 to 19 digits, in one or in the groups that are printed on cards.
_CARD = re.compile(
    r"(?<!\d)(?<!\d\.)[2-6](?:"
    r"\d{12,18}"
    r"|\d{3}[ -]\d{4}[ -]\d{4}[ -]\d{1,4}(?:[ -]\d{1,3}(?!\d))?"
    r"|\d{3}[ -]\d{6}[ -]\d{4,5}"
    r")(?!\d)",
    re.ASCII,
)
_KEY = re.compile(
    r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
    r"(?s:.*?-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|.*)"  # one that was cut off is a key all the same
    r"|(?<![A-Za-z0-9_-])(?:"
    r"sk-[\w-]{20,}"  # OpenAI, Anthropic, OpenRouter
    r"|(?:sk|rk|pk)_(?:live|test)_\w{10,}|whsec_\w{16,}"  # Stripe
    r"|(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}"  # Amazon
    r"|gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}"  # GitHub, GitLab
    r"|xox[a-z]-[\w-]{10,}|xapp-[\w-]{10,}"  # Slack
    r"|AIza[\w-]{35}|ya29\.[\w-]{16,}|GOCSPX-[\w-]{16,}"  # Google
    r"|hf_\w{20,}|gsk_\w{20,}|r8_\w{20,}|lsv2_[a-z]{2}_\w{16,}"  # Hugging Face, Groq, Replicate, LangSmith
    r"|npm_\w{30,}|pypi-[\w-]{16,}|dop_v1_\w{32,}"  # npm, PyPI, DigitalOcean
    r"|SG\.[\w-]{16,}+\.[\w-]{16,}"  # SendGrid
    r"|(?i:bearer)[ \t]{1,4}[\w.~+/-]{16,}={0,2}"  # RFC 6750
    r")",
    re.ASCII,
)
_JWT = re.compile(r"(?<![\w-])eyJ[\w-]{5,}+\.[\w.-]{10,}", re.ASCII)  # RFC 7519: {" in base64url
_OCTET = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
_IP = re.compile(
    rf"(?<![\w.]){_OCTET}\.{_OCTET}\.{_OCTET}\.{_OCTET}(?!\d|\.\d)|(?<![\w:.])[0-9A-Fa-f]{{0,4}}:[0-9A-Fa-f:.]{{1,41}}",
    re.ASCII,
)
_TWICE = str.maketrans("0123456789", "0246813579")
_JOINED = str.maketrans("", "", " -")


def _email(found: str) -> int:
    name, at, host = found.partition("@") if "@" in found else found.partition("%40")
    host = host.rstrip(".-_")
    return len(name) + len(at) + len(host) if "." in host else 0


def _card(found: str) -> int:
    digits = found.translate(_JOINED)
    if _checks(digits):
        return len(found)
    if len(found) - len(digits) < 4:
        return 0
    shorter = found[: max(found.rfind(" "), found.rfind("-"))]  # the fifth group may be another number
    return len(shorter) if _checks(shorter.translate(_JOINED)) else 0


def _checks(digits: str) -> bool:
    """ISO/IEC 7812-1, annex B: every second digit from the end doubled, and their sum."""
    if not 13 <= len(digits) <= 19:
        return False
    summed = digits[::-2] + digits[-2::-2].translate(_TWICE)
    return (sum(summed.encode()) - 48 * len(digits)) % 10 == 0


def _ip(found: str) -> int:
    if ":" not in found:
        return len(found)
    text = found.rstrip(".")
    text = text if text.endswith("::") else text.rstrip(":")
    if len(text) < 3 or ("::" not in text and text.count(":") < 6):
        return 0
    try:
        socket.inet_pton(socket.AF_INET6, text)
    except OSError:
        return 0
    return len(text)


FINDERS: Mapping[str, Finder] = {
    "key": Finder(_KEY),
    "jwt": Finder(_JWT),
    "email": Finder(_EMAIL, _email),
    "card": Finder(_CARD, _card),
    "ip": Finder(_IP, _ip),
    "phone": Finder(_PHONE),
}
"""In the order in which they look: a card's digits must not be taken for a phone number."""


def hide(text: str, names: Sequence[str]) -> str:
    """``text``, with ``cra:redacted:<name>`` in the place of each find."""
    for name in names:
        text = _hide(text, name, FINDERS[name])
    return text


def _hide(text: str, name: str, finder: Finder) -> str:
    form, length = finder
    if length is None:
        return form.sub(TAG + name, text)
    parts: list[str] = []
    begin, found = 0, form.search(text)
    while found is not None:
        size = length(found[0])
        if size:
            parts += (text[begin : found.start()], TAG, name)
            begin = found.start() + size
        # what was no card may hide the beginning of one
        found = form.search(text, begin if size else found.start() + 1 if name == "card" else found.end())
    return "".join(parts) + text[begin:] if parts else text
