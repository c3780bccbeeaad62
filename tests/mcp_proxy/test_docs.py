"""The page about the proxy, run as a person would."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # each starts processes

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "mcp-proxy.md").read_text()


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)


def test_the_blocks_run_and_say_what_the_page_says(tmp_path: Path) -> None:
    (atlas,), (server,), (commands,) = blocks("yaml"), blocks("python"), blocks("sh")
    (tmp_path / "atlas.yaml").write_text(atlas)
    (tmp_path / "server.py").write_text(server)
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "CRA_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    script = commands.replace("cra ", f"{sys.executable} -m cra_middleware ").replace(
        "python server", f"{sys.executable} server"
    )
    done = subprocess.run(
        ["sh", "-e", "-c", script], cwd=tmp_path, env={**clean, "PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    first, second, *rest = done.stdout.splitlines()
    refused, read = json.loads(first)["result"], json.loads(second)["result"]
    text = refused["content"][0]["text"]
    assert refused["isError"] is True
    assert text.startswith("note.write was not run: a person has to approve it first: ")
    assert "[approval_required, policy ask-note-write] It waits for a person: cra approvals approve " in text
    assert text.endswith("--store approvals.db. Then repeat the identical call, once.")
    assert read["content"][0]["text"] == "Buy milk."
    assert "INTACT, SEALED" in "\n".join(rest)


def test_the_configuration_is_json() -> None:
    (block,) = blocks("json")
    assert json.loads(block)["mcpServers"]["files"]["command"] == "cra"
