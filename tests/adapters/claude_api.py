"""A scripted Anthropic API on loopback, and one process of Claude Code that talks to it for many tests.

Starting the process takes seconds. So one client stays connected: its hooks and tools hand on to those of the options
that a test has made, in the context in which the test made them, as a client of its own would.
"""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import json
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from claude_agent_sdk import (
    AgentDefinition,
    ClaudeAgentOptions,
    ClaudeSDKClient,
    HookMatcher,
    PermissionResultDeny,
    ResultMessage,
    SdkMcpTool,
    create_sdk_mcp_server,
)

SUB_AGENT = "You are the helper of this test."
Calls = list[tuple[str, str, Mapping[str, Any]]]
"""Id, tool and arguments of each call of a turn."""


class ScriptedAPI:
    """Answers as a model that follows a script, and keeps what it is told."""

    def __init__(self) -> None:
        self.main: Iterator[Calls] = iter(())
        self.sub: Iterator[Calls] = iter(())
        self.results: dict[str, str] = {}
        self.prompt = ""
        """All that the model was told before its first turn, as JSON."""
        api = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None:
                pass

            def do_HEAD(self) -> None:
                self.send_response(200)
                self.end_headers()

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"{}")
                self.send_response(200)
                if "count_tokens" in self.path:
                    self.send_header("content-type", "application/json")
                    self.end_headers()
                    self.wfile.write(b'{"input_tokens": 1}')
                    return
                self.send_header("content-type", "text/event-stream")
                self.end_headers()
                for kind, data in api.answer(body):
                    self.wfile.write(f"event: {kind}\ndata: {json.dumps({**data, 'type': kind})}\n\n".encode())

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, body: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        """The events of one message."""
        last = body["messages"][-1]["content"]
        for item in last if isinstance(last, list) else []:
            if item.get("type") == "tool_result":
                self.results[item["tool_use_id"]] = str(item.get("content"))
        self.prompt = self.prompt or json.dumps([body.get("system"), body["messages"]])
        script = self.sub if SUB_AGENT in json.dumps(body.get("system", "")) else self.main
        calls = next(script, []) if body.get("tools") else []
        message = {"id": "msg_1", "type": "message", "role": "assistant", "model": body["model"], "content": []}
        yield "message_start", {"message": {**message, "usage": {"input_tokens": 1, "output_tokens": 1}}}
        for index, (call_id, name, arguments) in enumerate(calls):
            block = {"type": "tool_use", "id": call_id, "name": name, "input": {}}
            yield "content_block_start", {"index": index, "content_block": block}
            delta = {"type": "input_json_delta", "partial_json": json.dumps(dict(arguments))}
            yield "content_block_delta", {"index": index, "delta": delta}
            yield "content_block_stop", {"index": index}
        if not calls:
            yield "content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}}
            yield "content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": "done"}}
            yield "content_block_stop", {"index": 0}
        reason = "tool_use" if calls else "end_turn"
        yield "message_delta", {"delta": {"stop_reason": reason, "stop_sequence": None}, "usage": {"output_tokens": 1}}
        yield "message_stop", {}

    def options(self, folder: str, **given: Any) -> ClaudeAgentOptions:
        """Options for a client that knows nothing but this API."""
        env = {
            "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{self.server.server_port}",
            "ANTHROPIC_API_KEY": "none",
            "HOME": folder,
            "CLAUDE_CONFIG_DIR": folder,
            "DISABLE_TELEMETRY": "1",
            "DISABLE_AUTOUPDATER": "1",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "ENABLE_TOOL_SEARCH": "false",
            "MCP_CONNECTION_NONBLOCKING": "0",
        }
        return ClaudeAgentOptions(env=env, cwd=folder, setting_sources=[], model="claude-sonnet-4-5", **given)


class Claude:
    """One process of Claude Code, whose hooks, tools and permissions are those of the options that are current."""

    def __init__(self, tools: list[SdkMcpTool[Any]], like: ClaudeAgentOptions) -> None:
        """``like`` has the events and the matchers' settings; each event gets one more matcher, as a user might add."""
        self.api = ScriptedAPI()
        self._folder = tempfile.TemporaryDirectory(prefix="cra-claude-", ignore_cleanup_errors=True)
        self.folder = self._folder.name
        self._options = ClaudeAgentOptions()
        self._handlers: dict[str, Callable[..., Any]] = {}
        self._context = contextvars.copy_context()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        hooks = {
            event: [
                dataclasses.replace(matcher, hooks=[self._hook(event, index)])
                for index, matcher in enumerate([*found, HookMatcher()])
            ]
            for event, found in (like.hooks or {}).items()
        }
        names = [f"mcp__s__{item.name}" for item in tools]
        self._client = ClaudeSDKClient(
            self.api.options(
                self.folder,
                mcp_servers={"s": create_sdk_mcp_server("s", tools=[self._tool(item) for item in tools])},
                hooks=hooks,
                can_use_tool=self._may,
                tools=["Agent", "Bash", "Write"],
                allowed_tools=[*names, "Agent"],
                agents={"helper": AgentDefinition(description="Helps", prompt=SUB_AGENT, tools=names)},
            )
        )
        self._done(self._client.connect())

    def close(self) -> None:
        self._done(self._client.disconnect())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        self.api.server.shutdown()
        self.api.server.server_close()
        self._folder.cleanup()

    def converse(
        self,
        options: ClaudeAgentOptions,
        handlers: Mapping[str, Callable[..., Any]],
        main: list[Calls],
        sub: list[Calls] | None = None,
    ) -> tuple[list[str], str]:
        """One turn of the user's with these options; what the calls gave, and the last words."""
        self._options, self._handlers, self._context = options, dict(handlers), contextvars.copy_context()
        self.api.main, self.api.sub, self.api.results = iter(main), iter(sub or []), {}
        return self._done(self._say())

    async def _say(self) -> tuple[list[str], str]:
        await self._client.query("/clear")  # a new conversation, with an id of its own
        async for _ in self._client.receive_response():
            pass
        self.api.prompt = ""
        await self._client.query("hi")
        final = ""
        async for message in self._client.receive_response():
            if isinstance(message, ResultMessage):
                final = str(message.result)
        return list(self.api.results.values()), final

    def _done(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(90)

    async def _inside(self, work: Any) -> Any:
        return await self._loop.create_task(work, context=self._context)

    def _hook(self, event: str, index: int) -> Any:
        async def relay(data: Any, tool_use_id: Any, context: Any) -> Any:
            found = (self._options.hooks or {}).get(event, [])  # type: ignore[call-overload]
            if index >= len(found):
                return {}
            return await self._inside(found[index].hooks[0](data, tool_use_id, context))

        return relay

    def _tool(self, tool: SdkMcpTool[Any]) -> SdkMcpTool[Any]:
        async def relay(arguments: Any) -> Any:
            return await self._inside(self._handlers[tool.name](arguments))

        return SdkMcpTool(tool.name, tool.description, tool.input_schema, relay)

    async def _may(self, name: str, arguments: Any, context: Any) -> Any:
        if self._options.can_use_tool is None:
            return PermissionResultDeny("nobody allows it")
        return await self._inside(self._options.can_use_tool(name, arguments, context))
