"""SemVer ranges: whether a version is one that a dependency asks for (https://semver.org, npm's range signs)."""

from __future__ import annotations


def in_range(version: str, wish: str) -> bool:
    """Whether ``version`` fits ``wish``: comparators ``^ ~ > >= < <= =`` or none, blanks between them mean and.

    Raises:
        ValueError: when ``wish`` is no such range.
    """
    have = _core(version)
    for part in wish.split() or [""]:
        sign = part[: len(part) - len(part.lstrip("^~<>="))]
        if part == "*":
            continue
        want = _core(part[len(sign) :])
        major, minor, patch = want
        upper = {
            "^": (major + 1, 0, 0) if major else (0, minor + 1, 0) if minor else (0, 0, patch + 1),
            "~": (major, minor + 1, 0),
        }
        tests = {
            "": have == want,
            "=": have == want,
            ">": have > want,
            ">=": have >= want,
            "<": have < want,
            "<=": have <= want,
            "^": want <= have < upper["^"],
            "~": want <= have < upper["~"],
        }
        if sign not in tests:
            raise ValueError(f"{wish!r} is no version range")
        if not tests[sign]:
            return False
    return True


def _core(version: str) -> tuple[int, int, int]:
    try:
        major, minor, patch = (int(part) for part in version.split("-")[0].split("+")[0].split("."))
    except ValueError:
        raise ValueError(f"{version!r} is no version") from None
    return major, minor, patch
