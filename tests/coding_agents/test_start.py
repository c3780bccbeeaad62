"""What a hook's process loads: it starts for every event, so it loads what a decision needs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


@pytest.mark.parametrize("agent", ["claude_code", "codex", "gemini", "cursor"])
def test_what_is_not_loaded(agent: str) -> None:
    """No command line, no page, no telemetry, no cryptography, and no other agent's format."""
    program = (
        "import json, sys; import cra_middleware.coding_agents.answering; "
        f"from cra_middleware.coding_agents.formats import format_of; format_of({agent.replace('_', '-')!r}); "
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True)
    loaded = json.loads(done.stdout)
    tops = {name.partition(".")[0] for name in loaded}
    assert not tops & {"typer", "rich", "jinja2", "opentelemetry", "cryptography", "httpx", "psycopg"}
    package = "cra_middleware.coding_agents."
    ours = {name.removeprefix(package) for name in loaded if name.startswith(package)}
    assert ours == {"answering", "events", "formats", "sittings", agent}
    assert "cra_middleware.cli" not in loaded
