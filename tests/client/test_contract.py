"""The contract of every adapter with a server in between, for LangChain's ``create_agent``."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

pytest.importorskip("langchain", reason="the LangChain adapter needs the langchain extra")

from cra_middleware.testing import ContractCase, adapter_contract
from tests.adapters.test_langchain_contract import CreateAgent
from tests.client.bench import RemoteWorkbench


class AtAServer(CreateAgent):
    """The same agent, the same adapter."""

    holes: ClassVar[dict[str, str]] = {
        **CreateAgent.holes,
        "unwritable_argument": "what has no JSON form is sent as its tag, as text: the trace holds the digest of that",
        "pause_approved": "a yes that a run is resumed with comes from who asks; the server takes none of that",
    }


CASES = adapter_contract(AtAServer())
QUICK = {"deny-async", "approval_used_once-async", "pause_over_restart-async", "sink_fails-async", "nested_agent-async"}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if str(case) in QUICK else pytest.mark.slow) for case in CASES], ids=str
)
def test_contract(case: ContractCase, tmp_path: Path) -> None:
    case.check(tmp_path, RemoteWorkbench)
