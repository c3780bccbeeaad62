"""What deciding and resolving cost as an Atlas grows. Prints JSON.

Two ways to grow: more actions (each with one allow), and more policies that are not about the action called. Every
round measures all sizes one after the other, so that a machine that slows down slows all rows alike; quote the
medians and the ratio to the smallest size.

    python benchmarks/policy.py [--rounds 15] [--calls 2000]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from cra_middleware import Atlas, Runtime
from cra_middleware._clock import SystemClock
from cra_middleware.carp.call import Allow, ToolCall
from cra_middleware.carp.counters import MemoryCounters
from cra_middleware.carp.policy import Facts
from cra_middleware.carp.resolver import Resolver
from cra_middleware.trace.sinks.null import NullSink

ACTIONS = (5, 50, 500, 5000)
POLICIES = (1, 10, 100, 1000)
SCHEMA = {"type": "object", "properties": {"amount": {"type": "number"}}, "required": ["amount"]}


def atlas(actions: int, policies: int) -> Atlas:
    manifest: dict[str, Any] = {
        "atlas_version": "1.0",
        "atlas_id": "com.example.bench",
        "version": "1.0.0",
        "name": "Bench",
        "description": "Bench",
        "actions": [
            {"action_id": f"tool.a{n}", "name": "a", "description": "a", "parameters_schema": SCHEMA}
            for n in range(actions)
        ],
        "policies": [
            {"policy_id": "allow", "type": "allow", "actions": ["tool.*"]},
            {
                "policy_id": "large",
                "type": "require_approval",
                "actions": ["tool.a0"],
                "conditions": {"arguments": {"amount": "> 100"}},
            },
            *(
                {"policy_id": f"other-{n}", "type": "deny", "actions": [f"tool.a{n % (actions - 1) + 1}"]}
                for n in range(policies)
            ),
        ],
    }
    return Atlas.from_dict(manifest)


def per_call(work: Callable[[], object], calls: int) -> float:
    began = time.perf_counter_ns()
    for _ in range(calls):
        work()
    return (time.perf_counter_ns() - began) / calls / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--calls", type=int, default=2000)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    facts = Facts("agent", "low", {}, "session")
    counters, now_us = MemoryCounters(), SystemClock().wall_us()
    call = ToolCall.freeze("tool.a0", "bench", {"amount": 5})
    rows: dict[str, tuple[Callable[[], object], int]] = {}
    compiled: dict[str, float] = {}
    sizes = [(n, 1) for n in ACTIONS] + [(50, n) for n in POLICIES[1:]]
    for actions, policies in sizes:
        name = f"{actions} actions, {policies} other policies"
        source = atlas(actions, policies)
        began = time.perf_counter_ns()
        resolver = Resolver([source])
        compiled[name] = (time.perf_counter_ns() - began) / 1e6
        assert isinstance(resolver.decide(call, facts, now_us, counters), Allow)
        rows[f"decide: {name}"] = (lambda one=resolver: one.decide(call, facts, now_us, counters)), options.calls  # type: ignore[misc]
        session = Runtime(source, trace=NullSink()).session("agent", "bench")
        rows[f"resolve: {name}"] = session.resolve, max(3, options.calls * 5 // (actions * 10 + 100))
    measured: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(options.rounds):
        for name, (work, calls) in rows.items():
            measured[name].append(per_call(work, calls))
    medians = {name: statistics.median(values) for name, values in measured.items()}
    report = {
        "unit": "microseconds per call or per resolve, median of rounds; spread = (max - min) / median",
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {platform.system()}",
        "versions": {name: version(name) for name in ("cra-middleware", "jsonschema-rs", "pydantic")},
        "rows": {
            name: {
                "us": round(medians[name], 2),
                "ratio": round(medians[name] / medians[f"{name.split(':')[0]}: 5 actions, 1 other policies"], 2),
                "spread": round((max(values) - min(values)) / medians[name], 2),
            }
            for name, values in measured.items()
        },
        "compile_ms": {name: round(value, 1) for name, value in compiled.items()},
    }
    json.dump(report, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
