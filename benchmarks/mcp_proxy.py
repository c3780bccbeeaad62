"""What ``cra mcp-proxy`` adds to a tool call over stdio. Prints JSON.

A client speaks to the same tiny server directly, through the proxy with an Atlas and a trace in a file, and through a
pipe that only copies lines, which is the least that any proxy in Python costs. All take turns, round by round; quote
the medians and the ratios. A real tool does something, so the milliseconds added matter more than the ratio.

    python benchmarks/mcp_proxy.py [--rounds 15] [--calls 100]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

SERVER = """
import sys, json
for line in sys.stdin.buffer:
    m = json.loads(line)
    size = m["params"]["arguments"]["size"]
    result = {"content": [{"type": "text", "text": "x" * size}]}
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", "id": m["id"], "result": result}) + "\\n")
    sys.stdout.flush()
"""
COPY = """
import os, subprocess, sys, threading
server = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
def copy(read, write):
    while data := os.read(read, 65536):
        while data:
            data = data[os.write(write, data):]
threading.Thread(target=copy, args=(server.stdout.fileno(), 1), daemon=True).start()
copy(0, server.stdin.fileno())
"""
ATLAS = {
    "atlas_version": "1.0",
    "atlas_id": "com.example.bench",
    "version": "1.0.0",
    "name": "Bench",
    "description": "Bench",
    "actions": [
        {
            "action_id": "file.read",
            "name": "Read",
            "description": "Read",
            "parameters_schema": {"type": "object", "properties": {"size": {"type": "integer"}}, "required": ["size"]},
        }
    ],
    "policies": [{"policy_id": "allow", "type": "allow"}],
    "adapters": {"mcp": {"tools": {"read_file": "file.read"}}},
}
SIZES = {"100 B": 100, "1 MB": 1_000_000}


class Client:
    """One call at a time."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        self._id = 0

    def call(self, name: str, size: int) -> bytes:
        self._id += 1
        params = {"name": name, "arguments": {"size": size}}
        line = json.dumps({"jsonrpc": "2.0", "id": self._id, "method": "tools/call", "params": params})
        self._in.write(line.encode() + b"\n")
        self._in.flush()
        return self._out.readline()

    def milliseconds(self, name: str, size: int, calls: int) -> float:
        began = time.perf_counter_ns()
        answers = [self.call(name, size) for _ in range(calls)]
        took = time.perf_counter_ns() - began
        assert all(len(answer) > size and b'"id":' in answer for answer in answers)
        return took / calls / 1e6

    def close(self) -> None:
        self._in.close()
        self._process.wait()
        self._out.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--calls", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "atlas.json").write_text(json.dumps(ATLAS))
        (folder / "server.py").write_text(SERVER)
        (folder / "copy.py").write_text(COPY)
        server = [sys.executable, str(folder / "server.py")]
        given = ["--atlas", str(folder / "atlas.json"), "--trace", str(folder / "traces")]
        clients = {
            "direct": Client(server),
            "copy": Client([sys.executable, str(folder / "copy.py"), *server]),
            "proxy": Client([sys.executable, "-m", "cra_middleware", "mcp-proxy", *given, "--", *server]),
        }
        for client in clients.values():
            assert b'"xxx' in client.call("read_file", 100)
        assert b"isError" in clients["proxy"].call("delete", 1)
        measured: dict[str, list[float]] = {}
        for _ in range(options.rounds):
            for label, size in SIZES.items():
                calls = options.calls if size < 10_000 else max(1, options.calls // 20)
                for kind, client in clients.items():
                    measured.setdefault(f"{kind}: {label}", []).append(client.milliseconds("read_file", size, calls))
            measured.setdefault("proxy: denied", []).append(clients["proxy"].milliseconds("delete", 1, options.calls))
        for client in clients.values():
            client.close()
    medians = {name: statistics.median(values) for name, values in measured.items()}
    report = {
        "unit": "milliseconds per call, median of rounds; spread = (max - min) / median",
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {platform.system()}",
        "versions": {name: version(name) for name in ("cra-middleware", "orjson")},
        "rows": {
            name: {
                "ms": round(median, 3),
                "added_ms": round(median - medians.get(f"direct: {name.partition(': ')[2]}", 0), 3),
                "ratio": round(median / medians.get(f"direct: {name.partition(': ')[2]}", medians["direct: 100 B"]), 2),
                "spread": round((max(measured[name]) - min(measured[name])) / median, 2),
            }
            for name, median in medians.items()
        },
    }
    json.dump(report, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
