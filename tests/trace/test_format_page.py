"""The trace written out in the documentation is a real one."""

from __future__ import annotations

import re
from pathlib import Path

from cra_middleware.trace.chain import verify_lines

PAGE = Path(__file__).resolve().parents[2] / "docs" / "trace-format.md"


def test_the_vector_verifies() -> None:
    """The two lines of the page are whole and sealed, byte for byte."""
    block = re.search(r"```\n(\{.*?)```", PAGE.read_text(), re.DOTALL)
    assert block is not None
    (verdict,) = verify_lines([line + b"\n" for line in block[1].encode().splitlines()])
    assert (verdict.intact, verdict.sealed, verdict.events) == (True, True, 2), verdict.error
