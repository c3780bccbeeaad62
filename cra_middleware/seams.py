"""Is this framework one that can be governed: new enough, and with the hooks that an adapter stands on?"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version


def require(distribution: str, floor: str, seams: Mapping[object, tuple[str, ...]] | None = None) -> None:
    """Refuse to govern with a framework that is too old, or that lost a hook.

    Args:
        distribution: as PyPI names it.
        floor: the oldest version that was tested.
        seams: classes or modules of the framework, each with the names that the adapter stands on.

    Raises:
        RuntimeError: when the version is below ``floor``, or a name is missing.
    """
    try:
        found = version(distribution)
    except PackageNotFoundError:
        raise RuntimeError(f"{distribution} is not installed; this adapter needs {distribution}>={floor}") from None
    if _numbers(found) < _numbers(floor):
        raise RuntimeError(f"{distribution} {found} is too old to be governed; this adapter needs >={floor}")
    missing = [
        f"{getattr(owner, '__name__', owner)}.{name}"
        for owner, names in (seams or {}).items()
        for name in names
        if not hasattr(owner, name)
    ]
    if missing:
        raise RuntimeError(f"{distribution} {found} has no {', '.join(missing)}: tools cannot be governed with it")


def _numbers(text: str) -> tuple[int, ...]:
    numbers = []
    for part in text.split("."):
        digits = "".join(letter for letter in part if letter.isdigit()) if part[:1].isdigit() else ""
        if not digits:
            break
        numbers.append(int(digits))
        if digits != part:  # 1.0rc2 and the like
            break
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
