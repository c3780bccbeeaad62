"""Runs one case of the contract, and notes how it came out where a table of all adapters is being made."""

from __future__ import annotations

import json
import os
from pathlib import Path

from cra_middleware.testing import ContractCase

TABLE = "CRA_CONTRACT_TABLE"
"""The environment variable that names the folder for the table's cells."""


def check(case: ContractCase, folder: Path) -> None:
    """Check ``case``."""
    case.check(folder)
    if os.environ.get(TABLE):
        way = getattr(case.subject, "way", "")  # an adapter may have several
        row = case.subject.framework + (f", {way}" if way else "")
        cell = {"row": row, "case": case.name, "mode": case.mode, "hole": case.hole}
        with (Path(os.environ[TABLE]) / f"{case.subject.framework}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(cell) + "\n")
