"""``cra doctor``: is everything governed that should be?"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from cra_middleware.atlas.loader import Atlas
from cra_middleware.carp.resolver import Resolver
from cra_middleware.cli.atlas import load
from cra_middleware.cli.output import Format, FormatOption, emit, say, stop
from cra_middleware.cli.tools import SOURCES, tools_from
from cra_middleware.errors import CRAError
from cra_middleware.policies import LoadTerms, begin_epoch

ENVIRONMENT = {
    "CRA_ATLAS": "the Atlas of commands that are given none",
    "CRA_APPROVALS": "the store of cra approvals and cra mcp-proxy",
    "CRA_TRACE": "where cra mcp-proxy records",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "where configure_otel, cra serve and cra mcp-proxy send spans and metrics",
    "OTEL_SDK_DISABLED": "when true, OpenTelemetry sends nothing; decisions and traces are not affected",
}
_STYLES = {"problem": "bold red", "warning": "yellow", "ok": "green"}


def doctor(
    atlas: Annotated[list[str] | None, typer.Argument(metavar="ATLAS", help="Left out: $CRA_ATLAS.")] = None,
    source: Annotated[
        str, typer.Option("--from", metavar="SOURCE", help=f"The tools that an agent has: {SOURCES}")
    ] = "",
    project: Annotated[str, typer.Option(metavar="DIR", help="The folder that $PROJECT stands for.")] = ".",
    format: FormatOption = Format.text,
) -> None:
    """Say which tools are not governed, which rules match nothing, and what the environment changes.

    \b
    Example:  cra doctor atlases/support --from langchain:my_agent:tools

    Exit code: 0, 1 when there is a problem, 2 for wrong usage.
    """
    paths = atlas or [path for path in (os.environ.get("CRA_ATLAS"),) if path]
    if not paths and not source:
        raise stop("name an Atlas (or set CRA_ATLAS), and --from for the tools", 2)
    told = list(_diagnoses([load(path) for path in paths], source, project))
    if format is Format.json:
        emit([{"state": state, "about": about, "message": message} for state, about, message in told])
    else:
        for state, about, message in told:
            say((about, "bold"), f"  {message}", lead=(state, _STYLES[state]), indent=10)
    if any(state == "problem" for state, _, _ in told):
        raise typer.Exit(1)


_Told = tuple[str, str, str]


def _diagnoses(atlases: list[Atlas], source: str, project: str) -> Iterator[_Told]:
    yield "ok", "python", f"{sys.version.split()[0]}"
    try:
        epoch = begin_epoch(atlases, LoadTerms("deny", None, os.path.abspath(project), {}, False, ()))
    except (CRAError, ValueError) as error:
        yield "problem", "atlases", str(error)
        return
    for item in atlases:
        for finding in item.findings:
            yield "warning", f"{finding.code} {finding.file}#{finding.pointer}", finding.message
    yield from _actions(epoch.resolver)
    if source:
        found = tools_from(source)
        for tool in found.sketches:
            target = epoch.target_for(tool.name, found.framework, None)
            if target.action_id in epoch.resolver.actions:
                yield "ok", tool.name, f"is governed as {target.action_id}"
            else:
                hint = f"map it: adapters: {{any: {{tools: {{{tool.name}: <action>}}}}}}, or declare its action"
                yield "problem", tool.name, f"stands for no declared action: every call is denied; {hint}"
    for name, meaning in ENVIRONMENT.items():
        if name in os.environ:
            yield "warning", name, f"is set: {meaning}"


def _actions(resolver: Resolver) -> Iterator[_Told]:
    for name, action in resolver.actions.items():
        if not action.allow:
            yield "warning", name, "is allowed by no rule: every call is denied"
        elif action.violation is None:
            yield "warning", name, "has no schema: whatever arguments come are taken"
        for rule in action.rules:
            if not rule.is_enforced:
                yield "warning", name, f"policy {rule.policy_id} is only tried out (shadow)"
