"""Runs a program as it stands, with each runtime that it makes at a server.

python -m tests.client.at_a_server FILE [ARGUMENTS]
python -m tests.client.at_a_server -c CODE
"""

from __future__ import annotations

import atexit
import runpy
import sys
import tempfile
from pathlib import Path
from typing import Any

import cra_middleware
from cra_middleware import Runtime
from cra_middleware.trace.sinks.jsonl import JsonlSink
from tests.client.serving import Serving


def connected(atlas: Any, *, trace: Any = None, **options: Any) -> Runtime:
    """What ``Runtime(atlas, …)`` is, with everything but the tools at a server of its own."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    store = JsonlSink(trace or Path(folder.name) / "traces")
    made = Serving()
    made.begin(Runtime(atlas, trace=store, **options), store, Path(folder.name))
    atexit.register(made.stop)
    return Runtime.connect(made.url)


def main() -> None:
    """Run it."""
    cra_middleware.Runtime = connected  # type: ignore[misc,assignment]
    del sys.argv[0]
    if sys.argv[0] == "-c":
        code = compile(sys.argv.pop(1), "<page>", "exec")
        exec(code, {"__name__": "__main__"})
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
