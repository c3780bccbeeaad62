"""The words of a report: never more than is known."""

from __future__ import annotations

from typing import Any

import pytest

from cra_middleware.evidence.reports import FolderReport, SessionReport
from cra_middleware.trace.chain import Problem, Recovery, Verdict

UNSEALED = "INTACT, NOT SEALED: the end may be missing"


def verdict(**fields: Any) -> Verdict:
    return Verdict(**{"session_id": "s", "profile": "cra", "events": 9, "intact": True, "sealed": True, **fields})


def report(**fields: Any) -> SessionReport:
    return SessionReport(**{"session_id": "s", "paths": ("p",), "verdict": verdict(), "total_events": 9, **fields})


BROKEN = verdict(intact=False, sealed=False, error=Problem("chain_broken", 4, "why"))


@pytest.mark.parametrize(
    ("found", "words", "is_so"),
    [  # intact, sealed, signed, witnessed
        (report(), "INTACT, SEALED", (True, True, False, False)),
        (report(verdict=verdict(sealed=False)), UNSEALED, (True, False, False, False)),
        (report(signed_events=9), "INTACT, SEALED, SIGNED up to event 8", (True, True, True, False)),
        (
            report(signed_events=8),
            "INTACT, SEALED, SIGNED up to event 7, and not the 1 behind it",
            (True, True, False, False),
        ),
        (report(witnessed_events=9), "INTACT, SEALED, WITNESSED up to event 8", (True, True, False, True)),
        (
            report(verdict=verdict(sealed=False), signed_events=9, witnessed_events=7),
            f"{UNSEALED}, SIGNED up to event 8, WITNESSED up to event 6, and not the 2 behind it",
            (True, False, True, False),
        ),
        (report(verdict=BROKEN), "BROKEN at event 4: chain_broken: why", (False, False, False, False)),
        (
            report(verdict=BROKEN, signed_events=9, witnessed_events=9),
            "BROKEN at event 4: chain_broken: why",
            (False, False, False, False),
        ),
        (
            report(problems=("one", "two"), signed_events=9, witnessed_events=9),
            "CHANGED: one; two",
            (False, False, False, False),
        ),
        (
            report(verdict=None, pruned_events=9),
            "PRUNED: 9 events were removed, and their hashes kept",
            (True, False, False, False),
        ),
        (report(verdict=None, problems=("one",)), "CHANGED: one", (False, False, False, False)),
        (
            report(verdict=None, total_events=0),
            "PRUNED: 0 events were removed, and their hashes kept",
            (True, False, False, False),
        ),
        (
            report(verdict=verdict(recovered=Recovery(8, "x"), first_sequence=3), signed_events=9),
            "INTACT FROM EVENT 3, SEALED, RECOVERED (8 torn bytes set aside), SIGNED up to event 8",
            (True, True, True, False),
        ),
    ],
)
def test_words(found: SessionReport, words: str, is_so: tuple[bool, bool, bool, bool]) -> None:
    """What is wrong comes alone; what is signed and witnessed, up to where."""
    assert str(found) == words
    assert (found.intact, found.sealed, found.signed, found.witnessed) == is_so


@pytest.mark.parametrize(
    ("fields", "intact"),
    [
        ({}, True),
        ({"missing": ("m",)}, False),
        ({"problems": ("p",)}, False),
        ({"sessions": (report(verdict=BROKEN),)}, False),
    ],
)
def test_a_folder_is_as_good_as_all_in_it(fields: dict[str, Any], intact: bool) -> None:
    """And as what should be in it."""
    assert FolderReport(**{"path": "p", "sessions": (report(), report()), **fields}).intact is intact
