"""Models on the loopback that call the tools they are told to, once, and then say that they are done."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Call = tuple[str, dict[str, Any]]


class Model:
    """What the model calls, and what it was told about it."""

    def __init__(self, calls: list[Call]) -> None:
        self.calls = calls
        self.results: dict[str, str] = {}
        self.port = 0


@contextmanager
def anthropic(calls: list[Call]) -> Iterator[Model]:
    """The Messages API, as far as Claude Code needs it."""
    model = Model(calls)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            self.send_response(404)
            self.end_headers()

        def do_HEAD(self) -> None:
            self.send_response(200)
            self.end_headers()

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"{}")
            if "count_tokens" in self.path or "/messages" not in self.path:
                self._json({"input_tokens": 1})
                return
            parts = [part for message in body["messages"] for part in message["content"] if isinstance(part, dict)]
            results = [part for part in parts if part.get("type") == "tool_result"]
            model.results |= {part["tool_use_id"]: str(part["content"]) for part in results}
            if results or not body.get("tools"):
                blocks: list[dict[str, Any]] = [{"type": "text", "text": "done"}]
            else:
                named = enumerate(model.calls)
                blocks = [
                    {"type": "tool_use", "id": f"toolu_{n}", "name": call[0], "input": call[1]} for n, call in named
                ]
            reason = "end_turn" if blocks[0]["type"] == "text" else "tool_use"
            message = {"id": "msg_1", "type": "message", "role": "assistant", "model": body.get("model"), "content": []}
            message |= {"stop_reason": None, "stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 1}}
            if body.get("stream"):
                self._stream(message, blocks, reason)
            else:
                self._json({**message, "content": blocks, "stop_reason": reason})

        def _json(self, value: object) -> None:
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(value).encode())

        def _event(self, kind: str, **more: object) -> None:
            self.wfile.write(f"event: {kind}\ndata: {json.dumps({**more, 'type': kind})}\n\n".encode())

        def _stream(self, message: dict[str, Any], blocks: list[dict[str, Any]], reason: str) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            self._event("message_start", message=message)
            for index, block in enumerate(blocks):
                if block["type"] == "text":
                    empty, delta = {**block, "text": ""}, {"type": "text_delta", "text": block["text"]}
                else:
                    empty, delta = (
                        {**block, "input": {}},
                        {
                            "type": "input_json_delta",
                            "partial_json": json.dumps(block["input"]),
                        },
                    )
                self._event("content_block_start", index=index, content_block=empty)
                self._event("content_block_delta", index=index, delta=delta)
                self._event("content_block_stop", index=index)
            self._event(
                "message_delta", delta={"stop_reason": reason, "stop_sequence": None}, usage={"output_tokens": 1}
            )
            self._event("message_stop")

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
