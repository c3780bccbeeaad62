"""Runs one case of the contract, and notes how it came out where a table of all adapters is being made."""

from __future__ import annotations

import json
import os
from pathlib import Path

from cra_middleware.testing import ContractCase
from cra_middleware.testing.workbench import Workbench

Bench = type[Workbench]
"""What kind of runtime a case is run with."""
TABLE = "CRA_CONTRACT_TABLE"
"""The environment variable that names the folder for the table's cells."""


def check(case: ContractCase, folder: Path, bench_type: Bench = Workbench) -> None:
    """Check ``case``."""
    case.check(folder, bench_type)
    if os.environ.get(TABLE):
        way = getattr(case.subject, "way", "")  # an adapter may have several
        row = case.subject.framework + (f", {way}" if way else "")
        cell: dict[str, object] = {"row": row, "case": case.name, "mode": case.mode, "hole": case.hole}
        if bench_type is not Workbench:  # what is no hole of the adapter's itself
            cell |= {"at_a_server": True, "hole": None if case.hole else bench_type.holes.get(case.name)}
        with (Path(os.environ[TABLE]) / f"{case.subject.framework}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(cell) + "\n")
