"""The house rules, held by a test: floors, sizes, names, and what the core may import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import cra_middleware

ROOT = Path(cra_middleware.__file__).resolve().parents[1]
CORE = ROOT / "cra_middleware"
ADAPTERS = ROOT / "adapters" / "cra_adapters"

# Every floor may import the floors before it, and its own.
FLOORS: list[set[str]] = [
    {"errors", "_canonical", "_clock", "_fork", "_ids", "_sqlite_file", "_postgres", "seams", "signatures", "leaving"},
    {"atlas"},  # atlas and trace do not know each other
    {"trace"},
    {"carp"},
    {"approvals", "observer", "policies", "sidecar"},
    {"approval_store", "sqlite_approvals", "postgres_approvals", "kept_questions", "answering", "approvers"},
    {"interceptor", "open_call", "keys", "observing", "stores", "sinks", "sinks_by_name"},
    {"attempt"},
    {"desk", "keeping"},
    {"setting"},
    {"elsewhere", "call_flow", "admission", "standing"},
    {"session"},
    {"local_session"},
    {"open_sessions", "opening", "telemetry", "spans"},
    {"evidence", "verification"},
    {"runtime", "connecting", "client", "decorators"},
    {"run_sessions"},
    {"enforcement"},
    {"dispatch"},
    {"lines", "openapi_tools", "policy_tests", "replay", "sketch", "testing", "trace_page"},
    {"coding_agents", "mcp_proxy", "server"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}
SEAMS = {"cra_middleware.testing", "cra_middleware.enforcement", "cra_middleware.dispatch"}  # beside the public names
FORBIDDEN = {"atlas": {"trace"}, "trace": {"atlas"}, "cli": set()}
VAGUE = {"utils", "util", "helpers", "helper", "common", "base", "manager", "misc"}
FILES = sorted(CORE.rglob("*.py")) + sorted(ADAPTERS.rglob("*.py"))


def imports(file: Path) -> set[str]:
    """Every module a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


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


def test_the_core_knows_no_framework() -> None:
    """No agent framework, no OpenTelemetry SDK at import time, and no adapter in the core."""
    for file in CORE.rglob("*.py"):
        tree = ast.parse(file.read_text())
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
        assert ast.get_docstring(ast.parse(text)), "every module says what it is for"


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
