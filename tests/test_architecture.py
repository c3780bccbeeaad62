"""The house rules, held by a test: floors, sizes, names, and what the core may import."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

import cra_middleware
from cra_middleware import errors

ROOT = Path(cra_middleware.__file__).resolve().parents[1]
CORE = ROOT / "cra_middleware"
ADAPTERS = ROOT / "adapters" / "cra_adapters"

# Every floor may import the floors before it, and its own.
FLOORS: list[set[str]] = [
    {"errors", "_canonical", "_clock", "_fork", "_ids", "_sqlite_file", "_postgres", "_silence", "leaving", "presence"},
    {"seams", "signatures"},
    {"atlas"},  # atlas and trace do not know each other
    {"trace"},
    {"carp"},
    {"approvals", "observer", "policies", "sidecar"},
    {"interceptor", "open_call", "keys", "observing", "stores", "sinks", "sinks_by_name"},
    {"calls"},
    {"sessions"},
    {"telemetry", "spans", "metrics"},
    {"evidence", "verification"},
    {"runtime", "connecting", "client", "decorators"},
    {"run_sessions"},
    {"enforcement"},
    {"dispatch"},
    {"lines", "openapi_tools", "policy_tests", "replay", "sketch", "testing", "trace_page"},
    {"coding_agents", "mcp_proxy", "server"},
    {"cli"},
]
INNER: dict[str, list[set[str]]] = {
    "approvals": [
        {"approval"},
        {"store", "kept_questions", "answering", "approvers"},
        {"sqlite_store", "postgres_store"},
    ],
    "calls": [
        {"refusals", "running", "under_way", "places", "held_request"},
        {"attempt"},
        {"desk", "keeping"},
        {"setting"},
        {"outcomes", "deciding", "elsewhere"},
        {"calls_under_way"},
        {"call_flow"},
    ],
    "sessions": [
        {"life"},
        {"session"},
        {"admission", "standing"},
        {"sealing"},
        {"local_session"},
        {"open_sessions", "opening"},
        {"runtime_sessions"},
        {"local_sessions"},
    ],
    "trace": [
        {"event", "payloads", "patterns", "strict_json", "commitments", "calls", "wakeup", "witness", "tree", "sink"},
        {"profiles", "query", "redact", "diff", "entry", "note", "let_run", "report", "unsure"},
        {"chain", "proof", "shared", "storage"},
        {"parts", "pruned", "recovery", "writer", "ledger", "buffered_log", "tee_copy"},
        {"sinks", "buffered", "tee", "coverage"},
    ],
}
"""The same inside a folder."""
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}
SEAMS = {"cra_middleware.testing", "cra_middleware.enforcement", "cra_middleware.dispatch"}  # beside the public names
FORBIDDEN = {"atlas": {"trace"}, "trace": {"atlas"}, "cli": set()}
VAGUE = {"utils", "util", "helpers", "helper", "common", "base", "manager", "misc"}
FILES = sorted(CORE.rglob("*.py")) + sorted(ADAPTERS.rglob("*.py"))


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


@cache
def imports(file: Path) -> frozenset[str]:
    """Every module a file imports, wherever in it."""
    found = set[str]()
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return frozenset(found)


def room(file: Path) -> str:
    return file.relative_to(CORE).parts[0].removesuffix(".py")


@pytest.mark.parametrize(
    "file", [file for file in FILES if CORE in file.parents], ids=lambda file: str(file.relative_to(ROOT))
)
def test_imports_only_point_down(file: Path) -> None:
    """A file imports its own floor or one below; atlas and trace do not know each other."""
    here = room(file)
    if here in ("__init__", "__main__"):
        return
    for module in imports(file):
        if not module.startswith("cra_middleware."):
            continue
        there = module.split(".")[1]
        assert LEVEL[there] <= LEVEL[here], f"{here} imports {module}"
        assert there not in FORBIDDEN.get(here, set()), f"{here} imports {module}"


@pytest.mark.parametrize("folder", sorted(INNER))
def test_imports_only_point_down_inside(folder: str) -> None:
    """The same holds between the files of a folder, and every file of it has its floor."""
    level = {name: number for number, names in enumerate(INNER[folder]) for name in names}
    files = [file for file in (CORE / folder).rglob("*.py") if file != CORE / folder / "__init__.py"]
    assert {file.relative_to(CORE / folder).parts[0].removesuffix(".py") for file in files} == set(level)
    for file in files:
        here = file.relative_to(CORE / folder).parts[0].removesuffix(".py")
        for module in imports(file):
            if module.startswith(f"cra_middleware.{folder}."):
                there = module.split(".")[2]
                assert level[there] <= level[here], f"{folder}/{here} imports {module}"


def test_the_core_knows_no_framework() -> None:
    """No agent framework, no OpenTelemetry SDK at import time, and no adapter in the core."""
    for file in CORE.rglob("*.py"):
        tree = parsed(file)
        top = {
            name
            for node in tree.body
            for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [])
            + ([node.module or ""] if isinstance(node, ast.ImportFrom) else [])
        }
        assert not [
            name for name in imports(file) if name.split(".")[0] in ("langchain", "langchain_core", "cra_adapters")
        ]
        assert not [name for name in top if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))]


@pytest.mark.parametrize("file", sorted(ADAPTERS.rglob("*.py")), ids=lambda file: str(file.relative_to(ROOT)))
def test_adapters_use_the_public_face(file: Path) -> None:
    """An adapter imports ``cra_middleware`` itself, never a module inside it, and no other adapter."""
    own = file.relative_to(ADAPTERS).parts[0].removesuffix(".py")
    for module in imports(file):
        assert not module.startswith("cra_middleware.") or module in SEAMS, module
        if module.startswith("cra_adapters."):
            assert module.split(".")[1] == own


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_files_stay_small_and_named(file: Path) -> None:
    """At most 400 lines, a docstring on top, no name that says nothing."""
    text = file.read_text()
    assert text.count("\n") <= 400
    assert file.stem not in VAGUE
    if text.strip():
        assert ast.get_docstring(parsed(file)), "every module says what it is for"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_broad_excepts_say_why(file: Path) -> None:
    """``except Exception`` and its like stand only where a comment gives the reason."""
    for number, line in enumerate(file.read_text().splitlines(), 1):
        if "except Exception" in line or "except BaseException" in line or line.strip() == "except:":
            assert "#" in line or "raise" in "".join(file.read_text().splitlines()[number : number + 4]), (
                f"{file}:{number}"
            )


def test_the_public_face() -> None:
    """``__all__`` is sorted, small, and exactly what is there."""
    names = cra_middleware.__all__
    visible = {name for name, value in vars(cra_middleware).items() if not name.startswith("_")}
    modules = {name for name in visible if isinstance(vars(cra_middleware)[name], ModuleType)}
    assert set(names) == visible - modules
    assert len(names) == len(set(names)) <= 25
    for name in names:
        assert getattr(cra_middleware, name).__doc__, f"{name} needs a docstring"


def test_importing_has_no_side_effects() -> None:
    """Importing the core loads no framework and no SDK, prints nothing, and sets no global provider."""
    program = (
        "import sys, cra_middleware; from opentelemetry import trace; "
        "print(sorted(name for name in sys.modules if name.split('.')[0] in ('langchain','langgraph','typer','rich')), "
        "[name for name in sys.modules if name.startswith('opentelemetry.sdk')], "
        "type(trace.get_tracer_provider()).__name__)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] [] ProxyTracerProvider"
    assert done.stderr == ""


def drawn(text: str) -> set[tuple[str, str]]:
    """The edges of a drawn tree: a class, and the one that it is below."""
    found, above = set[tuple[str, str]](), list[str]()
    for line in text.splitlines():
        if match := re.match(r"    ((?:[│ ] {3})*)(?:[├└]── )?([A-Z]\w+)(?: {2,}|$)", line):
            depth = 0 if match[2] == "CRAError" else len(match[1]) // 4 + 1
            above[depth:] = [match[2]]
            found.update({(match[2], above[-2])} if depth else ())
    return found


def test_every_error_of_the_package_is_in_the_tree() -> None:
    """``except CRAError`` catches what errors.py draws, which is all that there is."""
    below: dict[str, list[str]] = {}
    for file in FILES:
        for node in ast.walk(parsed(file)):
            if isinstance(node, ast.ClassDef):
                for base in node.bases:
                    below.setdefault(ast.unparse(base), []).append(node.name)
    there, at = set[tuple[str, str]](), ["CRAError"]
    for above in at:
        there |= {(name, above) for name in below.get(above, ())}
        at += below.get(above, ())
    assert drawn(errors.__doc__ or "") == there
