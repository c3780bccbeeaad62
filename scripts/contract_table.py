"""The contract's table in docs/frameworks.md: rows are adapters, columns are cases, and every cell was run.

    python scripts/contract_table.py --write docs/frameworks.md CELLS…    put what was run into the page
    python scripts/contract_table.py --check docs/frameworks.md CELLS…    say what in the page was not run so

CELLS are folders that tests wrote with CRA_CONTRACT_TABLE. Rows that were not run stay as they are.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from cra_middleware.testing.contract import CASES

BEGIN, END = "<!-- contract: written by scripts/contract_table.py -->", "<!-- end of contract -->"
Cells = dict[tuple[str, str], dict[str, frozenset[str]]]
"""By row and case: for each mode, why it is a hole, once for every reason a subject of the row has."""
AT_A_SERVER = "S"
"""The last column."""


def read_cells(folders: list[str]) -> tuple[Cells, Cells]:
    """What the tests wrote, in whatever order: of runtimes in the process, and of those at a server."""
    cells: Cells = {}
    remote: Cells = {}
    for folder in folders:
        for file in sorted(Path(folder).glob("*.jsonl")):
            for line in file.read_text(encoding="utf-8").splitlines():
                cell = json.loads(line)
                found = remote if cell.get("at_a_server") else cells
                modes = found.setdefault((cell["row"], cell["case"]), {})
                said = frozenset(filter(None, [cell["hole"]]))
                modes[cell["mode"]] = modes.get(cell["mode"], frozenset()) | said  # a row may have several subjects
    return cells, remote


def at_a_server(row: str, cells: Cells, remote: Cells) -> tuple[str, list[str]]:
    """The mark of a row's last column, and the holes that only a runtime at a server has."""
    mine = {case: modes for (name, case), modes in cells.items() if name == row}
    if any(not modes.keys() <= remote.get((row, case), {}).keys() for case, modes in mine.items()):
        return "–", []
    holes = [
        f"- {row} · {AT_A_SERVER}, {number}: {hole}"
        for number, case in enumerate(CASES, 1)
        for hole in sorted(frozenset().union(*remote.get((row, case), {}).values()))
    ]
    return ("○" if holes else "●"), holes


def rows(cells: Cells, remote: Cells) -> dict[str, list[str]]:
    """Each row of the table, with its holes."""
    made: dict[str, list[str]] = {}
    for row in sorted({row for row, _ in cells}):
        marks, holes = [], []
        for number, case in enumerate(CASES, 1):
            modes = cells.get((row, case))
            if modes is None:
                marks.append("–")
                continue
            wrong = sorted(frozenset().union(*modes.values()))
            marks.append("○" if wrong else "●")
            for hole in wrong:
                where = [mode for mode, said in modes.items() if hole in said]
                only = "" if len(where) == len(modes) else f" ({', '.join(sorted(where))})"
                holes.append(f"- {row} · {number}{only}: {hole}")
        mark, more = at_a_server(row, cells, remote)
        made[row] = [f"| {row} | {' | '.join([*marks, mark])} |", *holes, *more]
    return made


def table(known: dict[str, list[str]]) -> str:
    """The whole block of the page."""
    names = [*map(str, range(1, len(CASES) + 1)), AT_A_SERVER]
    head = [f"| | {' | '.join(names)} |", f"|---|{'|'.join('-' for _ in names)}|"]
    holes = [hole for _, lines in sorted(known.items()) for hole in lines[1:]]
    legend = [
        f"{number}. `{name}`: {' '.join((check.__doc__ or '').split())}"
        for number, (name, (_, check)) in enumerate(CASES.items(), 1)
    ]
    legend.append(f"{len(CASES) + 1}. {AT_A_SERVER}: every case of the row again, with ``Runtime.connect``.")
    marks = "● kept in every mode · ○ a hole, named below · – the framework has no such thing"
    parts = [BEGIN, marks, "", *head, *(lines[0] for _, lines in sorted(known.items())), "", *legend, ""]
    return "\n".join([*parts, "Holes:", "", *(holes or ["- none"]), END])


def known_rows(block: str) -> dict[str, list[str]]:
    """The rows that a page has, with their holes."""
    found: dict[str, list[str]] = {}
    for line in block.splitlines():
        if line.startswith("| ") and line.count("|") == len(CASES) + 3 and not line.startswith("| |"):
            found[line.split("|")[1].strip()] = [line]
        elif line.startswith("- ") and " · " in line:
            found.get(line[2:].split(" · ")[0], []).append(line)
    return found


def main(mode: str, page: str, *folders: str) -> int:
    """Write or check the page; the exit code."""
    text = Path(page).read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    block, _, after = rest.partition(END)
    run = rows(*read_cells(list(folders)))
    if not run:
        print("no cells were found: run the tests with CRA_CONTRACT_TABLE=FOLDER", file=sys.stderr)
        return 2
    known = known_rows(block)
    if mode == "--check":
        wrong = [row for row, lines in run.items() if known.get(row) != lines]
        for row in wrong:
            print(f"{page} says of {row}:", *known.get(row, ["nothing"]), sep="\n  ")
            print("but this was run:", *run[row], sep="\n  ")
        return 1 if wrong else 0
    Path(page).write_text(before + table({**known, **run}) + after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    if len(sys.argv) < 4 or sys.argv[1] not in ("--write", "--check"):
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    sys.exit(main(*sys.argv[1:]))
