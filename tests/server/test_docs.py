"""The curl walk-through of docs/http.md is run, line by line, against a real server, and so are its programs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.client.served import until
from tests.server.serving import Serve, listening

pytest.importorskip("uvicorn")
ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "http.md"


@pytest.mark.skipif(shutil.which("curl") is None or shutil.which("jq") is None, reason="needs curl and jq")
def test_the_walk_through(serve: Serve, tmp_path: Path) -> None:
    """A call that runs, one that is denied, one that a person approves; the trace is sealed and verifies."""
    served = serve(ROOT / "examples/atlases/support", with_keys=False)
    steps = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(steps) == 7
    with listening(served) as port:
        script = f"set -eu\nexport CRA=http://127.0.0.1:{port}\n" + "\n".join(
            f"{step}\necho\necho ==" for step in steps
        )
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = [part.strip() for part in done.stdout.split("==")]
    assert '"recorded":true' in said[3]
    assert said[4].startswith("ticket.delete was not run: Tickets are kept for audit")
    assert said[5].split("\n") == [
        'order.cancel {"order_id":"A-1001","reason":"Ordered twice"}',
        "approved",
        "true",
    ]
    assert said[6] == "INTACT, SEALED"
    lines = (tmp_path / "trace.jsonl").read_text().splitlines()
    assert '"event_type":"session.ended"' in lines[-1]


@pytest.mark.parametrize("number", [0, 1])
def test_the_programs(serve: Serve, tmp_path: Path, number: int) -> None:
    """One makes a call that runs and one that is denied; the other waits for a person, who answers."""
    served = serve(ROOT / "examples/atlases/support", with_keys=False)
    program = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)[number]
    with listening(served) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}") as person:
        assert "http://127.0.0.1:8420" in program
        script = program.replace("127.0.0.1:8420", f"127.0.0.1:{port}")
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=tmp_path) as agent:
            if number == 1:
                until(lambda: person.get("/v1/approvals").json()["total"])
                (asked,) = person.get("/v1/approvals").json()["items"]
                assert person.post(f"/v1/approvals/{asked['approval_id']}/approve").json()["state"] == "approved"
            said = agent.communicate(timeout=60)[0].splitlines()
        assert agent.returncode == 0
    if number == 0:
        assert said[0] == "T-42: my lamp arrived broken"
        assert said[1].startswith("ticket.delete was not run: Tickets are kept for audit")
        assert said[2:] == ["INTACT, SEALED"]
    else:
        assert said[0] == f"waits: {asked['approval_id']}"
        assert said[-1] == "A-1001 is cancelled"
