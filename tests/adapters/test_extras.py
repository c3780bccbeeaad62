"""What is declared about frameworks in one place is what is meant in another: extras, floors, pages, environments."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

from tests.adapters.environments import ADAPTERS, FRAMEWORKS

ROOT = Path(__file__).resolve().parents[2]
EXTRAS: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

IN_THE_VERSION_OF = {"autogen-core": "autogen-agentchat"}
"""Distributions that another one brings along."""


def required(adapter: str) -> dict[str, str]:
    """The versions that an adapter refuses to go below, by distribution."""
    place = ADAPTERS / adapter
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    found = {}
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "require":
                name, floor = (argument.value for argument in node.args[:2] if isinstance(argument, ast.Constant))
                found[str(name)] = str(floor)
    return found


def declared(extra: str) -> dict[str, str]:
    """The floors of an extra, by distribution."""
    wanted = (entry.partition(",")[0].partition(">=") for entry in EXTRAS[extra])
    return {name: floor for name, _, floor in wanted}


@pytest.mark.parametrize("adapter", sorted(FRAMEWORKS))
def test_an_extra_installs_what_its_adapter_needs(adapter: str) -> None:
    """No extra allows a version that the adapter would refuse."""
    floors = declared(adapter.replace("_", "-"))
    for name, floor in required(adapter).items():
        known = floors.get(IN_THE_VERSION_OF.get(name, name)) or declared(name).get(name)
        assert known is not None, f"{adapter} needs {name}, which its extra does not install"
        assert [int(part) for part in known.split(".")] >= [int(part) for part in floor.split(".")], (known, floor)


@pytest.mark.parametrize("adapter", sorted(FRAMEWORKS))
def test_every_adapter_has_a_page_and_tests(adapter: str) -> None:
    """A page that names its extra, and a contract."""
    page = (ROOT / "docs" / "frameworks" / f"{adapter}.md").read_text()
    assert f"cra-middleware[{adapter.replace('_', '-')}]" in page
    assert f"frameworks/{adapter}.md" in (ROOT / "docs" / "frameworks.md").read_text()
    tests = "".join(file.read_text() for file in sorted((ROOT / "tests" / "adapters").glob(f"test_{adapter}*.py")))
    assert "adapter_contract(" in tests, "its contract is run"
    assert not re.search(r"check\(.*tmp_path\)$", tests, re.MULTILINE), (
        "and with a runtime at a server: give bench_type on"
    )


def test_no_extra_installs_every_framework() -> None:
    """They do not fit together, and a resolver that is asked to make them fit finds versions of years ago."""
    assert "all" not in EXTRAS
    names = {adapter.replace("_", "-") for adapter in FRAMEWORKS}
    assert names <= set(EXTRAS)
