"""``cra atlas``: is it valid, and what does it say?"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cra_middleware.atlas.findings import Finding, check_dependencies
from cra_middleware.atlas.loader import Atlas, inspect
from cra_middleware.atlas.manifest import Manifest, PolicyType
from cra_middleware.atlas.words import arguments_in_words, conditions_in_words, limit_in_words, policy_in_words
from cra_middleware.cli.output import Format, FormatOption, complain, emit, say, shown, stop

app = typer.Typer(no_args_is_help=True, help="Validate an Atlas, or read it as a person.")

PHASES: tuple[PolicyType, ...] = ("deny", "require_approval", "rate_limit", "budget", "allow", "scope")
_SEVERITY_STYLES = {"error": "bold red", "warning": "yellow", "info": "cyan"}
_NO_PATH = "name an Atlas (a folder with atlas.yaml or atlas.json, or such a file), or set CRA_ATLAS"


@app.command(short_help="Every finding, with the place to mend.")
def validate(
    paths: Annotated[
        list[str] | None, typer.Argument(metavar="PATH", help="Atlas folders or files. Left out: $CRA_ATLAS.")
    ] = None,
    format: FormatOption = Format.text,
) -> None:
    """Show every finding about Atlases, with the place to mend and a hint.

    Several Atlases are also held against each other's "dependencies".

    \b
    Example:  cra atlas validate atlases/support
    In CI:    cra atlas validate --format json atlases/* > findings.json

    Exit code: 0 when there are no errors (warnings are shown), 1 when there are, 2 for wrong usage.
    """
    chosen = paths or [path for path in (os.environ.get("CRA_ATLAS"),) if path]
    if not chosen:
        raise stop(_NO_PATH, 2)
    checked = _checked(chosen)
    if format is Format.json:
        reports = [
            {"path": path, "valid": atlas is not None, "findings": [asdict(item) for item in found]}
            for path, atlas, found in checked
        ]
        emit(reports[0] if len(reports) == 1 else {"atlases": reports})
    else:
        for path, atlas, found in checked:
            _print_report(path, atlas, found)
    if any(atlas is None for _, atlas, _ in checked):
        raise typer.Exit(1)


@app.command(short_help="What exists, and what is allowed.")
def show(
    path: Annotated[
        str | None, typer.Argument(metavar="PATH", help="An Atlas folder or file. Left out: $CRA_ATLAS.")
    ] = None,
    format: FormatOption = Format.text,
) -> None:
    """Show what exists and what is allowed: actions, policies in the order they are looked at, context, tools.

    With --format json: the manifest, with the entries of actions/ and policies/ merged into it.

    \b
    Example:  cra atlas show atlases/support

    Exit code: 0, or 1 when the Atlas has errors, or 2 for wrong usage.
    """
    chosen = path or os.environ.get("CRA_ATLAS")
    if not chosen:
        raise stop(_NO_PATH, 2)
    atlas = load(chosen)
    if format is Format.json:
        emit(atlas.manifest.model_dump(mode="json", exclude_unset=True))
    else:
        _print_manifest(atlas.manifest)


@app.command(short_help="Rules to plain Atlas/1.0 JSON.")
def build(
    path: Annotated[
        str | None, typer.Argument(metavar="PATH", help="An Atlas folder or file. Left out: $CRA_ATLAS.")
    ] = None,
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="Write there, not to stdout.")] = "",
    check: Annotated[str, typer.Option(metavar="FILE", help="Only say whether FILE is what would be written.")] = "",
) -> None:
    """Write the plain Atlas/1.0 JSON that an Atlas stands for: rules compiled, YAML and folders gone.

    Other implementations read that; digests in traces cover it. Documents of context packs stay beside it.

    \b
    Example:  cra atlas build atlases/support -o support.json
    In CI:    cra atlas build atlases/support --check support.json

    Exit code: 0, or 1 when the Atlas has errors, or --check found a difference, or 2 for wrong usage.
    """
    chosen = path or os.environ.get("CRA_ATLAS")
    if not chosen:
        raise stop(_NO_PATH, 2)
    text = built(load(chosen))
    try:
        if check:
            if Path(check).read_bytes() != text.encode():
                raise stop(f"{check} is not what {chosen} stands for; run: cra atlas build {chosen} -o {check}", 1)
        elif output:
            Path(output).write_text(text, encoding="utf-8")
        else:
            print(text, end="")
    except OSError as error:
        raise stop(f"{check or output} cannot be used: {error.strerror or error}", 1) from None


def built(atlas: Atlas) -> str:
    """The plain manifest, as JSON."""
    manifest = atlas.manifest.model_dump(mode="json", exclude_unset=True)
    return json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"


def load(path: str) -> Atlas:
    """The Atlas at ``path``; its errors go to stderr, and the command ends with 1."""
    atlas, found = inspect(Path(path))
    if atlas is None:
        for item in found:
            if item.severity == "error":
                complain(item)
        raise stop(f"{path} has errors and was not used; mend them, then run: cra atlas validate {path}", 1)
    if found:
        complain(f"{path} has {_count(len(found), 'warning')}; see them with: cra atlas validate {path}")
    return atlas


_Checked = tuple[str, Atlas | None, tuple[Finding, ...]]


def _checked(paths: Sequence[str]) -> list[_Checked]:
    """Each Atlas with its findings, those about its dependencies on the others included."""
    checked = [(path, *inspect(Path(path))) for path in paths]
    together = {atlas.manifest.atlas_id: (atlas.manifest, "") for _, atlas, _ in checked if atlas is not None}
    result: list[_Checked] = []
    for path, atlas, found in checked:
        if atlas is not None:
            name = atlas.manifest.atlas_id
            # only this one's findings are wanted, so it alone gets a file name
            missing = check_dependencies({**together, name: (atlas.manifest, atlas.file)})
            more = tuple(item for item in missing if item.file == atlas.file)
            if more:
                atlas, found = None, (*found, *more)
        result.append((path, atlas, found))
    return result


def _print_report(path: str, atlas: Atlas | None, found: Sequence[Finding]) -> None:
    for item in found:
        style = _SEVERITY_STYLES[item.severity]
        say((item.code, style), " ", (item.severity, style), f"  {item.file}#{item.pointer}")
        say(item.message, indent=5)
        if item.hint:
            say((item.hint, "dim"), lead="  ->", indent=5)
    counted = [
        _count(sum(item.severity == severity for item in found), severity)
        for severity in ("error", "warning")
        if any(item.severity == severity for item in found)
    ]
    if atlas is None:
        say(f"{path}: ", ("not valid", "bold red"), f" ({', '.join(counted)})")
        return
    manifest = atlas.manifest
    documents = len(atlas.documents) + len(manifest.context_blocks)
    content = [
        _count(len(manifest.actions), "action"),
        _count(len(manifest.policies), "policy", "policies"),
        _count(documents, "context document"),
    ]
    say(f"{path}: ", ("valid", "bold green"), f" ({', '.join([*content, *counted])})")


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def _print_manifest(manifest: Manifest) -> None:
    say((manifest.name, "bold"), f"  {manifest.atlas_id} {manifest.version}")
    say(manifest.description)
    _print_actions(manifest)
    _print_policies(manifest)
    packs = ((pack.pack_id, (*pack.files, conditions_in_words(pack.conditions))) for pack in manifest.context_packs)
    blocks = ((block.context_id, (f"inline, {block.inject_mode}",)) for block in manifest.context_blocks)
    _print_list("Context", ((name, "; ".join(words)) for name, words in (*packs, *blocks)))
    _print_list(
        "Tools and the actions they stand for",
        (
            (f"{framework}: {tool}", target if isinstance(target, str) else target.action)
            for framework, adapter in manifest.adapters.items()
            for tool, target in adapter.tools.items()
        ),
    )


def _print_actions(manifest: Manifest) -> None:
    say()
    say(("Actions", "bold"), "" if manifest.actions else "  none: every call will be denied")
    indent = _indent(action.action_id for action in manifest.actions)
    for action in manifest.actions:
        tier = (f"{action.risk_tier} risk", {"high": "yellow", "critical": "bold red"}.get(action.risk_tier, ""))
        more = "; a person confirms every call" if action.requires_confirmation else ""
        if action.rate_limit is not None:
            more += f"; {limit_in_words(action.rate_limit)}"
        say(tier, more, lead=(f"  {action.action_id}", "cyan"), indent=indent)
        say((arguments_in_words(action), "dim"), indent=indent)
    members = ((item.capability_id, ", ".join(item.actions)) for item in manifest.capabilities)
    _print_list("Capabilities", members)


def _print_policies(manifest: Manifest) -> None:
    say()
    say(("Policies", "bold"), ", in the order they are looked at")
    ordered = sorted(manifest.policies, key=lambda policy: -policy.priority)
    entries = [
        (policy.type, policy.policy_id, policy_in_words(policy), policy.rules_of().reason or policy.description)
        for policy in ordered
    ]
    for action in manifest.actions:
        itself = f"action:{action.action_id}"
        if action.requires_confirmation:
            entries.append(("require_approval", itself, f"{action.action_id}; always", None))
        if action.rate_limit is not None:
            limit = f"{action.action_id}; always; {limit_in_words(action.rate_limit)}"
            entries.append(("rate_limit", itself, limit, None))
    indent = _indent(f"  {name}" for _, name, _, _ in entries)
    for phase in PHASES:
        inside = [entry for entry in entries if entry[0] == phase]
        if inside:
            say((f"  {phase}", "bold"))
        for _, name, words, reason in inside:
            say(words, lead=(f"    {name}", "cyan"), indent=indent)
            if reason:
                say((reason, "dim"), indent=indent)
        if phase == "deny" and any(action.parameters_schema is not None for action in manifest.actions):
            say(("  (here, arguments that do not fit their action's schema are denied)", "dim"))
    say(("  (whatever no policy allows is denied)", "dim"))


def _print_list(title: str, entries: Iterable[tuple[str, str]]) -> None:
    known = list(entries)
    if not known:
        return
    say()
    say((title, "bold"))
    indent = _indent(name for name, _ in known)
    for name, words in known:
        say(words, lead=(f"  {name}", "cyan"), indent=indent)


def _indent(names: Iterable[str]) -> int:
    """Where the second column begins: behind the longest name, but never far out."""
    return min(max((len(shown(name)) for name in names), default=0), 30) + 4
