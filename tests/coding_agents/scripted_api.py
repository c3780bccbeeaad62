"""Models on the loopback that call the tools they are told to, once, and then say that they are done."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Call = tuple[str, Any]


class Model:
    """What the model calls, and what it was told about it, by the call's number."""

    def __init__(self, calls: list[Call]) -> None:
        self.calls = calls
        self.results: dict[int, str] = {}
        self.port = 0


Api = Callable[[Model, str, dict[str, Any]], list[tuple[str, dict[str, Any]]] | dict[str, Any]]
"""From a path and a body to a JSON answer, or to a stream of named events."""


@contextmanager
def serving(api: Api, calls: list[Call]) -> Iterator[Model]:
    """A model that speaks ``api``."""
    model = Model(calls)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            self._say("application/json", b"{}")

        do_HEAD = do_GET

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"{}")
            answer = api(model, self.path, body)
            if isinstance(answer, dict):
                self._say("application/json", json.dumps(answer).encode())
                return
            lines = (
                f"event: {kind}\ndata: {json.dumps(data)}\n\n" if kind else f"data: {json.dumps(data)}\r\n\r\n"
                for kind, data in answer
            )
            self._say("text/event-stream", "".join(lines).encode())

        def _say(self, kind: str, data: bytes) -> None:
            self.send_response(200)
            self.send_header("content-type", kind)
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    model.port = server.server_port
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield model
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def anthropic(model: Model, path: str, body: dict[str, Any]) -> Any:
    """The Messages API, as far as Claude Code needs it."""
    if "count_tokens" in path or "/messages" not in path:
        return {"input_tokens": 1}
    parts = [part for message in body["messages"] for part in message["content"] if isinstance(part, dict)]
    results = [part for part in parts if part.get("type") == "tool_result"]
    model.results |= {int(part["tool_use_id"].removeprefix("toolu_")): str(part["content"]) for part in results}
    blocks: list[dict[str, Any]] = [{"type": "text", "text": "done"}]
    if body.get("tools") and not results:
        named = enumerate(model.calls)
        blocks = [{"type": "tool_use", "id": f"toolu_{n}", "name": name, "input": given} for n, (name, given) in named]
    reason = "end_turn" if blocks[0]["type"] == "text" else "tool_use"
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": body.get("model"), "content": []}
    message |= {"stop_reason": None, "stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 1}}
    if not body.get("stream"):
        return {**message, "content": blocks, "stop_reason": reason}
    events: list[tuple[str, dict[str, Any]]] = [("message_start", {"message": message})]
    for index, block in enumerate(blocks):
        if block["type"] == "text":
            empty, delta = {**block, "text": ""}, {"type": "text_delta", "text": block["text"]}
        else:
            empty = {**block, "input": {}}
            delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
        events.append(("content_block_start", {"index": index, "content_block": empty}))
        events.append(("content_block_delta", {"index": index, "delta": delta}))
        events.append(("content_block_stop", {"index": index}))
    end = {"delta": {"stop_reason": reason, "stop_sequence": None}, "usage": {"output_tokens": 1}}
    events += [("message_delta", end), ("message_stop", {})]
    return [(kind, {**data, "type": kind}) for kind, data in events]


def responses(model: Model, path: str, body: dict[str, Any]) -> Any:
    """The Responses API, as far as Codex CLI needs it."""
    told = [item for item in body.get("input", []) if str(item.get("type")).endswith("_output")]
    model.results |= {int(item["call_id"].removeprefix("call_")): str(item["output"]) for item in told}
    text = [{"type": "output_text", "text": "done"}]
    items: list[dict[str, Any]] = [{"type": "message", "id": "m", "role": "assistant", "content": text}]
    if not told:
        items = [
            {
                "type": "function_call",
                "id": f"f{n}",
                "call_id": f"call_{n}",
                "name": name,
                "arguments": json.dumps(given),
            }
            for n, (name, given) in enumerate(model.calls)
        ]
    usage = {"input_tokens": 1, "input_tokens_details": None, "output_tokens": 1, "output_tokens_details": None}
    return [
        ("response.created", {"type": "response.created", "response": {"id": "r"}}),
        *(
            ("response.output_item.done", {"type": "response.output_item.done", "output_index": n, "item": item})
            for n, item in enumerate(items)
        ),
        (
            "response.completed",
            {"type": "response.completed", "response": {"id": "r", "usage": {**usage, "total_tokens": 2}}},
        ),
    ]


def gemini(model: Model, path: str, body: dict[str, Any]) -> Any:
    """The Gemini API, as far as Gemini CLI needs it."""
    parts = [part for content in body.get("contents", []) for part in content.get("parts", [])]
    told = [part["functionResponse"]["response"] for part in parts if "functionResponse" in part]
    model.results |= {number: json.dumps(response) for number, response in enumerate(told)}
    said: list[dict[str, Any]] = [{"text": "done"}]
    if body.get("tools") and not told:
        said = [{"functionCall": {"name": name, "args": given}} for name, given in model.calls]
    candidate = {"content": {"role": "model", "parts": said}, "finishReason": "STOP", "index": 0}
    usage = {"promptTokenCount": 1, "candidatesTokenCount": 1, "totalTokenCount": 2}
    whole = {"candidates": [candidate], "usageMetadata": usage}
    return [("", whole)] if "stream" in path else whole
