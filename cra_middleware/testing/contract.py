"""What every adapter must do, as cases to be run against the real framework.

    @pytest.mark.parametrize("case", adapter_contract(MySubject()), ids=str)
    def test_contract(case, tmp_path):
        case.check(tmp_path)

Whatever a case is about, the traces must verify, and each run of a tool's body must have its own decision, about the
very arguments that the body got, and its own outcome.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cra_middleware.testing.approval_cases import APPROVAL_CASES
from cra_middleware.testing.call_cases import CALL_CASES
from cra_middleware.testing.framework_cases import FRAMEWORK_CASES
from cra_middleware.testing.scenario import ABILITIES, Mode, Subject
from cra_middleware.testing.workbench import Workbench

Check = Callable[[Workbench], None]
CASES: dict[str, tuple[str | None, Check]] = {**CALL_CASES, **APPROVAL_CASES, **FRAMEWORK_CASES}
"""By name, each with the ability that a framework needs for it."""


@dataclass(frozen=True)
class ContractCase:
    """One case, in one mode, for one adapter."""

    subject: Subject
    name: str
    mode: Mode

    def __str__(self) -> str:
        return f"{self.name}-{self.mode}"

    @property
    def hole(self) -> str | None:
        """Why the case cannot be met, where the adapter says so."""
        return self.subject.holes.get(str(self)) or self.subject.holes.get(self.name)

    @property
    def promise(self) -> str:
        """What the case is about."""
        return (CASES[self.name][1].__doc__ or "").strip()

    def check(self, folder: Path, bench_type: type[Workbench] = Workbench) -> None:
        """Run it; ``folder`` is an empty one, ``bench_type`` says what kind of runtime it is run with.

        Raises:
            AssertionError: when the promise is not kept, or a hole that was named is none any more.
        """
        hole = self.hole or bench_type.holes.get(self.name)
        try:
            with bench_type(self.subject, self.mode, folder) as bench:
                CASES[self.name][1](bench)
        except AssertionError:
            if hole is None:
                raise
            return
        assert hole is None, f"{self} is met now: it is no hole any more ({hole})"


def adapter_contract(subject: Subject) -> list[ContractCase]:
    """Every case that applies to ``subject``, in each of its modes.

    Raises:
        ValueError: when an ability or a hole of the subject is none that the contract knows.
    """
    unknown = set(subject.abilities) - set(ABILITIES)
    named = {hole.rpartition("-")[0] if hole.rpartition("-")[2] in _MODES else hole for hole in subject.holes}
    unknown |= named - set(CASES)
    if unknown:
        raise ValueError(f"the contract knows no {', '.join(sorted(unknown))}")
    return [
        ContractCase(subject, name, mode)
        for name, (ability, _) in CASES.items()
        if ability is None or ability in subject.abilities
        for mode in subject.modes
    ]


_MODES = ("sync", "async", "stream")
