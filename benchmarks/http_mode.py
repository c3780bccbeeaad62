"""How long a session, a resolution and a call take over HTTP, beside a bare FastAPI echo on the same machine.

    python benchmarks/http_mode.py [--trace DIR|sqlite:FILE|postgresql://…] [--store URL --counters URL]
                                   [--seconds 3] [--clients 1 8] [--json FILE]
    python benchmarks/http_mode.py --sessions 100000    # the server's memory while that many begin and end

Client and server share the machine's cores, so the figures are those of both. The echo parses a body of the same
size with pydantic and sends it back: what any endpoint costs with this stack.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

ATLAS = {
    "atlas_version": "1.0",
    "atlas_id": "com.example.bench",
    "version": "1.0.0",
    "name": "Bench",
    "description": "Twenty actions, three policies",
    "actions": [
        {
            "action_id": f"ticket.act{number}",
            "name": "Act",
            "description": "Acts on a ticket",
            "parameters_schema": {"type": "object", "properties": {"ticket_id": {"type": "string"}}},
        }
        for number in range(20)
    ],
    "policies": [
        {"policy_id": "allow", "type": "allow", "actions": ["ticket.*"]},
        {"policy_id": "never", "type": "deny", "actions": ["*.delete"]},
        {
            "policy_id": "often",
            "type": "rate_limit",
            "actions": ["ticket.act19"],
            "parameters": {"max_calls": 100, "window_seconds": 60},
        },
    ],
}
ECHO = """
import sys
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

class Requester(BaseModel):
    agent_id: str
    session_id: str

class Execution(BaseModel):
    action_id: str
    parameters: dict

class Execute(BaseModel):
    carp_version: str
    request_id: str
    timestamp: str
    operation: str
    requester: Requester
    execution: Execution

app = FastAPI()

@app.post("/echo")
async def echo(body: Execute) -> Execute:
    return body

uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=False, log_level="warning")
"""
Step = Callable[[httpx.AsyncClient, dict[str, Any]], Awaitable[None]]


async def echo(client: httpx.AsyncClient, state: dict[str, Any]) -> None:
    answer = await client.post("/echo", json=execution(state))
    assert answer.status_code == 200, answer.text


async def create(client: httpx.AsyncClient, state: dict[str, Any]) -> None:
    answer = await client.post("/v1/sessions", json={"agent_id": "bench", "goal": "Measure"})
    assert answer.status_code == 201, answer.text
    state["session_id"] = answer.json()["session_id"]


async def create_and_end(client: httpx.AsyncClient, state: dict[str, Any]) -> None:
    await create(client, state)
    await client.delete(f"/v1/sessions/{state['session_id']}")


async def resolve(client: httpx.AsyncClient, state: dict[str, Any]) -> None:
    body = {
        "carp_version": "1.0",
        "request_id": str(uuid4()),
        "timestamp": now(),
        "operation": "resolve",
        "requester": {"agent_id": "bench", "session_id": state["session_id"]},
        "task": {"goal": "Measure"},
    }
    answer = await client.post("/v1/resolve", json=body)
    assert answer.status_code == 200, answer.text


async def authorise(client: httpx.AsyncClient, state: dict[str, Any]) -> None:
    answer = await client.post("/v1/execute", json=execution(state))
    assert answer.status_code == 200, answer.text
    state["execution_id"] = answer.json()["execution_id"]


async def authorise_and_report(client: httpx.AsyncClient, state: dict[str, Any]) -> None:
    await authorise(client, state)
    report = {"session_id": state["session_id"], "status": "success", "duration_ms": 1}
    answer = await client.post(f"/v1/executions/{state['execution_id']}/report", json=report)
    assert answer.status_code == 200, answer.text


def execution(state: dict[str, Any]) -> dict[str, Any]:
    return {
        "carp_version": "1.0",
        "request_id": str(uuid4()),
        "timestamp": now(),
        "operation": "execute",
        "requester": {"agent_id": "bench", "session_id": state["session_id"]},
        "execution": {"action_id": "ticket.act1", "parameters": {"ticket_id": "T-42"}},
    }


def now() -> str:
    return datetime.now(timezone.utc).isoformat()


async def measure(url: str, step: Step, clients: int, seconds: float) -> dict[str, float]:
    taken: list[float] = []
    until = time.perf_counter() + seconds

    async def one() -> None:
        state: dict[str, Any] = {"session_id": str(uuid4())}
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            if step is not echo:
                await create(client, state)
            for _ in range(5):
                await step(client, state)
            while time.perf_counter() < until or len(taken) < 20:
                began = time.perf_counter()
                await step(client, state)
                taken.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(clients)))
    taken.sort()
    return {
        "p50_ms": round(taken[len(taken) // 2] * 1000, 3),
        "p99_ms": round(taken[int(len(taken) * 0.99)] * 1000, 3),
        "per_second": round(len(taken) / (time.perf_counter() - began), 1),
    }


async def many_sessions(url: str, pid: int, wanted: int, clients: int) -> list[dict[str, float]]:
    """The server's memory after each tenth of ``wanted`` sessions, each begun, called once and ended."""
    done, rows, began = 0, list[dict[str, float]](), time.perf_counter()

    async def one() -> None:
        nonlocal done
        state: dict[str, Any] = {}
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            while done < wanted:
                done += 1
                await create(client, state)
                await authorise_and_report(client, state)
                await client.delete(f"/v1/sessions/{state['session_id']}")
                if done * 10 // wanted > len(rows) - 1:
                    per_second = done / (time.perf_counter() - began)
                    rows.append({"sessions": done, "rss_MB": memory_mb(pid), "per_second": round(per_second, 1)})
                    print(
                        "{sessions:7} sessions  {rss_MB:6.1f} MB  {per_second:6.1f} /s".format(**rows[-1]), flush=True
                    )

    rows.append({"sessions": 0, "rss_MB": memory_mb(pid), "per_second": 0.0})
    await asyncio.gather(*(one() for _ in range(clients)))
    return rows


def memory_mb(pid: int) -> float:
    """What a process has in memory; Linux only."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(200):
        try:
            httpx.get(url, timeout=1)
            return
        except httpx.HTTPError:
            if process.poll() is not None:
                raise SystemExit("the server did not start") from None
            time.sleep(0.1)
    raise SystemExit("the server did not answer")


def versions() -> dict[str, str]:
    """Of what both sides stand on."""
    return {name: version(name) for name in ("fastapi", "uvicorn", "uvloop", "httptools", "pydantic", "httpx")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--trace", default="", help="where the server keeps its traces")
    parser.add_argument("--store", help="a database for everything that the server keeps, instead of --trace")
    parser.add_argument("--counters", help="redis://…, beside --store")
    parser.add_argument("--sessions", type=int, help="begin and end so many, and look at the server's memory instead")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--json", help="write the figures into this file")
    asked = parser.parse_args()
    figures: dict[str, dict[str, float]] = {}
    memory: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "atlases").mkdir()
        (folder / "atlases" / "bench.json").write_text(json.dumps(ATLAS))
        ports = free_port(), free_port()
        serve = ["serve", "--atlas", str(folder / "atlases")]
        if asked.store:
            serve += ["--store", asked.store, *(["--counters", asked.counters] if asked.counters else [])]
        else:
            serve += ["--trace", asked.trace or str(folder / "traces"), "--state", str(folder / "state")]
        processes = [
            subprocess.Popen([sys.executable, "-c", ECHO, str(ports[0])]),
            subprocess.Popen([sys.executable, "-m", "cra_middleware", *serve, "--port", str(ports[1])]),
        ]
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        try:
            for url, process in zip(urls, processes, strict=True):
                wait_for(url + "/v1/health", process)
            if asked.sessions:
                rows = asyncio.run(many_sessions(urls[1], processes[1].pid, asked.sessions, asked.clients[-1]))
                memory.extend(rows)
            for clients in () if asked.sessions else asked.clients:
                for title, url, step in (
                    ("echo", urls[0], echo),
                    ("session", urls[1], create),
                    ("session + end", urls[1], create_and_end),
                    ("resolve", urls[1], resolve),
                    ("authorise", urls[1], authorise),
                    ("authorise + report", urls[1], authorise_and_report),
                ):
                    found = asyncio.run(measure(url, step, clients, asked.seconds))
                    figures[f"{title}, {clients} clients"] = found
                    print(
                        f"{title:20} {clients:2} clients  p50 {found['p50_ms']:8.3f} ms  p99 {found['p99_ms']:8.3f} ms"
                        f"  {found['per_second']:8.1f} /s",
                        flush=True,
                    )
        finally:
            for process in processes:
                process.terminate()
                process.wait(30)
    if asked.json:
        machine = {"machine": platform.machine(), "python": platform.python_version()}
        kept = asked.store or asked.trace or "folder"
        told = {**machine, "kept": kept, "versions": versions(), "figures": figures, "memory": memory}
        Path(asked.json).write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
