"""Begin without rules: observe what an agent calls, let an Atlas be proposed, and see what it would decide."""

import subprocess
import sys
import tempfile
from pathlib import Path

from cra_middleware import Runtime

with tempfile.TemporaryDirectory() as folder:
    traces, atlas = Path(folder) / "traces", Path(folder) / "atlas.yaml"
    with Runtime.observe(trace=traces, record="full") as runtime, runtime.session("my-bot") as session:
        for query in ("refunds", "returns"):
            session.call("search_docs", lambda query: f"3 pages about {query}", query)
        session.call("delete_page", lambda page: f"{page} is gone", "old")

    def cra(*arguments: object) -> None:
        subprocess.run([sys.executable, "-m", "cra_middleware", *map(str, arguments)], check=True)

    cra("trace", "learn", traces, "-o", atlas)
    text = atlas.read_text()
    print(text)
    atlas.write_text(text.replace("  - allow: delete.page", "  # - allow: delete.page"))  # a person reads it first
    cra("trace", "replay", traces, "--atlas", atlas)
