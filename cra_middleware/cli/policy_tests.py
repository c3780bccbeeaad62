"""``cra atlas test``: does an Atlas decide as its own tests say?"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from cra_middleware.atlas.loader import Atlas
from cra_middleware.carp.resolver import Resolver
from cra_middleware.cli.atlas import load
from cra_middleware.cli.output import Format, FormatOption, emit, say, stop
from cra_middleware.errors import CRAError
from cra_middleware.policy_tests import BadCaseError, Told, read_cases, run_case


def run_tests(
    path: Annotated[str | None, typer.Argument(metavar="PATH", help="An Atlas folder. Left out: $CRA_ATLAS.")] = None,
    project: Annotated[str, typer.Option(metavar="DIR", help="The folder that $PROJECT stands for.")] = ".",
    format: FormatOption = Format.text,
) -> None:
    """Run the cases in an Atlas's tests/*.yaml, and print what differed.

    \b
    A case:   - {call: refund.create, args: {amount: 250}, expect: ask, policy: large-refund}
    Example:  cra atlas test atlases/support

    Also: agent, risk_tier, context, at (a time with its offset), repeat, approved, code, name.

    Exit code: 0 when all are as expected, 1 when one is not, the Atlas has errors or no tests, 2 for wrong usage.
    """
    chosen = path or os.environ.get("CRA_ATLAS")
    if not chosen:
        raise stop("name an Atlas folder, or set CRA_ATLAS", 2)
    folder = os.path.abspath(project)
    resolver = _resolver(load(chosen), folder)
    try:
        told = [(file, run_case(case, resolver, folder)) for file, case in read_cases(Path(chosen))]
    except BadCaseError as error:
        raise stop(error, 1) from None
    if not told:
        raise stop(f"{chosen} has no tests; write {chosen}/tests/first.yaml: - {{call: ACTION, expect: deny}}", 1)
    failed = [(file, item) for file, item in told if item.difference is not None]
    if format is Format.json:
        emit({"passed": len(told) - len(failed), "failed": [_as_json(file, item) for file, item in failed]})
    else:
        for file, item in failed:
            say(("FAILED", "bold red"), f"  {file}  {item.case.title}")
            say(item.difference or "", indent=8)
        style = "bold red" if failed else "bold green"
        say((f"{len(told) - len(failed)} of {len(told)} cases are decided as expected", style))
    if failed:
        raise typer.Exit(1)


def _resolver(atlas: Atlas, project: str) -> Resolver:
    try:
        return Resolver([atlas], project=project)
    except (CRAError, ValueError) as error:
        raise stop(error, 1) from None


def _as_json(file: str, item: Told) -> dict[str, object]:
    return {"file": file, "case": item.case.model_dump(mode="json", exclude_unset=True), "difference": item.difference}
