"""Each case of the contract is run twice: with a runtime in the process, and with one at a server."""

from __future__ import annotations

import pytest

from cra_middleware.testing import ContractCase
from cra_middleware.testing.workbench import Workbench

QUICK = frozenset(
    {"deny", "approval_used_once", "pause_over_restart", "sink_fails", "nested_agent", "unwritable_argument"}
)
"""The cases that every run of the tests has over a connection; the others are slow, and ``scripts/test-adapters`` runs
all of them."""


@pytest.fixture(params=["embedded", "connect"])
def bench_type(request: pytest.FixtureRequest) -> type[Workbench]:
    """The workbench that a case of the contract is run on."""
    if request.param == "embedded":
        return Workbench
    for needed in ("fastapi", "uvicorn", "httpx", "jwt"):
        pytest.importorskip(needed, reason="a runtime at a server needs the extras server and http")
    from tests.client.bench import RemoteWorkbench

    return RemoteWorkbench


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        given = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        case = given.get("case")
        is_quick = isinstance(case, ContractCase) and case.name in QUICK and case.mode != "sync"
        if given.get("bench_type") == "connect" and not is_quick:
            item.add_marker(pytest.mark.slow)
