"""A tiny MCP server without any library, for tests: one JSON-RPC message a line, each request in a thread.

``raw_server.py LOG [MODE]`` appends every line that it reads to LOG, as it was, so that a test sees what reached it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any

LOG, MODE = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else ""
LOCK = threading.Lock()
TOOLS = ("read_file", "write_file", "slow", "fail", "die", "ask", "delete_file", "echo")
PAGE = 4


def send(value: Any) -> None:
    put(json.dumps({"jsonrpc": "2.0", **value}))


def put(text: str) -> None:
    with LOCK:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def tool(name: str) -> dict[str, Any]:
    return {"name": name, "description": f"The tool {name}", "inputSchema": {"type": "object"}}


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": words}], **more}


def call(request_id: Any, params: dict[str, Any]) -> None:
    name, arguments = params["name"], params.get("arguments", {})
    if name == "slow":
        time.sleep(arguments.get("seconds", 0.5))
    if name == "die":
        os._exit(7)
    if name == "hang":
        return
    if name == "fail":
        send({"id": request_id, "result": text("no such file", isError=True)})
    elif name == "twice":
        send({"id": request_id, "result": text("first")})
        send({"id": request_id, "result": text("second")})
    elif name == "rpc_error":
        send({"id": request_id, "error": {"code": -32602, "message": "no"}})
    elif name == "noise":
        put("this is no JSON")
        put('["neither"]')
        put("3")
        send({"id": "nobody", "result": text("made up")})
        send({"id": request_id, "result": text("after the noise")})
    elif name == "batch":
        put(
            json.dumps(
                [
                    {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": "x"}},
                    {"jsonrpc": "2.0", "id": request_id, "result": text("in a batch")},
                ]
            )
        )
    elif name == "huge":
        put("x" * arguments["bytes"])
    else:
        send({"id": request_id, "result": text(json.dumps(arguments), structuredContent=arguments)})


def answer(message: dict[str, Any]) -> None:
    method, request_id, params = message.get("method"), message.get("id"), message.get("params") or {}
    if method == "initialize":
        info = {"name": "raw", "version": "1"}
        send(
            {
                "id": request_id,
                "result": {
                    "protocolVersion": params.get("protocolVersion"),
                    "capabilities": {"tools": {}},
                    "serverInfo": info,
                },
            }
        )
    elif method == "tools/list":
        if MODE == "alike":
            send({"id": request_id, "result": {"tools": [tool("echo"), {**tool("echo"), "description": "Other"}]}})
            return
        begin = int(params.get("cursor", "0"))
        page = {"tools": [tool(name) for name in TOOLS[begin : begin + PAGE]], "_meta": {"kept": True}}
        more = {"nextCursor": str(begin + PAGE)} if begin + PAGE < len(TOOLS) else {}
        send({"id": request_id, "result": {**page, **more}})
    elif method == "tools/call":
        call(request_id, params)
    elif request_id is not None and method is not None:
        send({"id": request_id, "result": {"method": method, "params": params}})


def main() -> None:
    if MODE == "exit":
        print("cannot find the database", file=sys.stderr)
        sys.exit(3)
    if MODE == "made-up":
        send({"id": 1, "result": text("made up")})
    with open(LOG, "ab") as log:
        for line in sys.stdin.buffer:
            log.write(line)
            log.flush()
            try:
                message = json.loads(line)
            except ValueError:
                continue
            if isinstance(message, dict):
                threading.Thread(target=answer, args=(message,), daemon=True).start()


main()
