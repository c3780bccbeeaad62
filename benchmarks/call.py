"""What governing a call costs. Prints JSON.

Everything is measured side by side in one process, round by round, so that a machine that slows down slows all
rows alike; quote medians and ratios. ``bare_3_events`` is the floor: three canonical payloads and three SHA-256.

    python benchmarks/call.py [--rounds 15] [--calls 2000]
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import orjson

from cra_middleware import ActionDenied, Atlas, Runtime, governed
from cra_middleware.calls.running import CURRENT
from cra_middleware.trace.sinks.jsonl import JsonlSink
from cra_middleware.trace.sinks.null import NullSink

ATLAS: dict[str, Any] = {
    "atlas_version": "1.0",
    "atlas_id": "com.example.bench",
    "version": "1.0.0",
    "name": "Bench",
    "description": "Bench",
    "actions": [
        {
            "action_id": "ticket.get",
            "name": "get",
            "description": "get",
            "parameters_schema": {
                "type": "object",
                "properties": {"ticket_id": {"type": "string"}},
                "required": ["ticket_id"],
            },
        },
        {"action_id": "ticket.delete", "name": "delete", "description": "delete"},
    ],
    "policies": [
        {"policy_id": "allow", "type": "allow"},
        {"policy_id": "no", "type": "deny", "actions": ["*.delete"]},
    ],
}
PAYLOAD = {"action_id": "ticket.get", "execution_id": "0" * 36, "duration_ms": 3, "result_hash": "0" * 64}
HEADER = b"0" * 330


def tool(ticket_id: str) -> str:
    return ticket_id


allowed = governed("ticket.get")(tool)
denied = governed("ticket.delete")(tool)


class Ring:
    """A memory sink's work without its growth: the last chunk only."""

    def create(self, session_id: str, /) -> Any:
        return self

    def append(self, offset: int, data: bytes, events: int, /) -> None:
        self.last = data

    def close(self) -> None:
        return None


def bare() -> None:
    for _ in range(3):
        hashlib.sha256(HEADER + orjson.dumps(PAYLOAD, option=orjson.OPT_SORT_KEYS)).hexdigest()


def call_allowed() -> None:
    allowed(ticket_id="T-1")


def call_denied() -> None:
    with contextlib.suppress(ActionDenied):
        denied(ticket_id="T-1")


def langchain_rows() -> dict[str, Callable[[], object]]:
    try:
        from langchain_core.tools import StructuredTool
    except ImportError:
        return {}
    plain = StructuredTool.from_function(tool, name="get", description="get")
    return {"langchain_tool_alone": lambda: plain.invoke({"ticket_id": "T-1"})}


def watched(atlas: Atlas) -> dict[str, Runtime]:
    """Runtimes whose metrics, and whose metrics and spans, somebody takes; none without the SDK."""
    try:
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from opentelemetry.sdk.trace import TracerProvider
    except ImportError:
        return {}
    meters = [MeterProvider([InMemoryMetricReader()]) for _ in range(2)]
    return {
        "memory_metrics": Runtime(atlas, trace=Ring(), meter_provider=meters[0]),
        "memory_metrics_spans": Runtime(
            atlas, trace=Ring(), meter_provider=meters[1], tracer_provider=TracerProvider()
        ),
    }


def measure(
    rows: dict[str, Callable[[], object]], begin: dict[str, Callable[[], None]], rounds: int, calls: int
) -> dict[str, dict[str, float]]:
    """Microseconds per call of each row: rows take turns, round by round, each after what ``begin`` has for it."""
    times: dict[str, list[float]] = {name: [] for name in rows}
    for round_number in range(rounds + 1):
        for name, run in rows.items():
            begin.get(name, _nothing)()
            began = time.perf_counter_ns()
            for _ in range(calls):
                run()
            if round_number:  # the first round warms up
                times[name].append((time.perf_counter_ns() - began) / calls / 1000)
    return {
        name: {"median": round(statistics.median(found), 2), "min": round(min(found), 2), "max": round(max(found), 2)}
        for name, found in times.items()
    }


def threads(runtime: Runtime, workers: int, calls: int) -> float:
    """Calls per second of ``workers`` threads on one session."""
    session = runtime.session()

    def work() -> None:
        for _ in range(calls // workers):
            session.call("ticket.get", tool, "T-1")

    crew = [threading.Thread(target=work) for _ in range(workers)]
    began = time.perf_counter()
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    return calls / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--calls", type=int, default=2000, help="a round; at most 10,000")
    options = parser.parse_args()
    atlas = Atlas.from_dict(ATLAS)
    with tempfile.TemporaryDirectory() as folder:
        sinks: dict[str, Any] = {"memory": Ring(), "jsonl": JsonlSink(folder), "null": NullSink()}
        runtimes = {name: Runtime(atlas, trace=sink) for name, sink in sinks.items()} | watched(atlas)
        rows: dict[str, Callable[[], object]] = {"plain_call": lambda: tool(ticket_id="T-1"), "bare_3_events": bare}
        begin: dict[str, Callable[[], None]] = {}
        for name, runtime in runtimes.items():
            for row, run in ((f"allow_{name}", call_allowed), (f"deny_{name}", call_denied)):
                inside = _Inside(runtime, run)
                rows[row], begin[row] = inside, inside.begin
        rows |= langchain_rows()
        result = measure(rows, begin, options.rounds, options.calls)
        floor = result["bare_3_events"]["median"]
        for row in result.values():
            row["ratio_to_bare"] = round(row["median"] / floor, 2)
        for name in runtimes:
            for kind in ("allow", "deny"):
                row = result[f"{kind}_{name}"]
                row["ratio_to_memory"] = round(row["median"] / result[f"{kind}_memory"]["median"], 2)
        rates = {
            f"{name}_{workers}_threads": round(
                statistics.median(threads(runtimes[name], workers, options.calls * 4) for _ in range(5))
            )
            for name in ("memory", "jsonl")
            for workers in (1, 8)
        }
    json.dump(
        {
            "unit": "microseconds per call, medians of rounds",
            "rows": result,
            "calls_per_second": rates,
            "machine": {
                "python": sys.version.split()[0],
                "platform": platform.platform(),
                "processor": platform.machine(),
            },
            "versions": {
                name: _version(name) for name in ("cra-middleware", "orjson", "jsonschema-rs", "langchain-core")
            },
        },
        sys.stdout,
        indent=2,
    )
    print()


class _Inside:
    """``run`` with a session current; entering it is part of neither side of a comparison that matters (0.2 µs)."""

    def __init__(self, runtime: Runtime, run: Callable[[], None]) -> None:
        self._runtime = runtime
        self._run = run

    def begin(self) -> None:
        """Open a session for the next round: one that had 10,000 calls refused takes no more."""
        self._session = self._runtime.session()

    def __call__(self) -> None:
        token = CURRENT.set(self._session)
        self._run()
        CURRENT.reset(token)


def _nothing() -> None:
    return None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
