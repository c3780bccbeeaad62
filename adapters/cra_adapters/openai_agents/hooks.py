"""Hooks of a run that pass everything on to the user's own, and note what the tools themselves cannot see."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

from agents import Handoff, RunHooks
from agents.lifecycle import RunHooksBase

from cra_adapters.openai_agents.caller import Caller, Run
from cra_adapters.openai_agents.pausing import BY
from cra_middleware import CallRefused
from cra_middleware.enforcement import EnforcementPoint

_logger = logging.getLogger("cra_middleware")


class GovernedHooks(RunHooks[Any]):
    """The user's hooks, with ours before them."""

    def __init__(
        self, point: EnforcementPoint, run: Run, cover: Callable[[Any], None], inner: RunHooksBase[Any, Any] | None
    ) -> None:
        self._point = point
        self._run = run
        self._cover = cover
        self._inner: RunHooksBase[Any, Any] = inner or RunHooks()
        self._stopped: set[str] = set()

    def resumed(self, call_ids: Iterable[str]) -> None:
        """The run goes on after these calls were stopped for a person."""
        self._stopped = set(call_ids)

    async def on_agent_start(self, context: Any, agent: Any) -> None:
        self._cover(agent)
        await self._inner.on_agent_start(context, agent)

    async def on_llm_start(self, context: Any, agent: Any, system_prompt: str | None, input_items: list[Any]) -> None:
        if self._stopped:
            self._withdraw(agent, input_items)
        self._stopped = set()
        await self._inner.on_llm_start(context, agent, system_prompt, input_items)

    def _withdraw(self, agent: Any, input_items: list[Any]) -> None:
        """Close the questions about stopped calls that have a result by now: where one is open, the SDK was told no."""
        try:
            session = Caller(self._point, agent.name or None).session()
        except CallRefused as refusal:  # each call meets the same, and is refused
            _logger.warning("the session of an interrupted run was not found: %s", refusal)
            return
        for item in input_items:
            told = isinstance(item, dict) and item.get("type") == "function_call_output"
            if told and item.get("call_id") in self._stopped:
                self._point.withdraw(session, item["call_id"], by=BY, reason=str(item.get("output")))

    async def on_llm_end(self, context: Any, agent: Any, response: Any) -> None:
        _note_unknown(self._point, self._run, agent, response)
        await self._inner.on_llm_end(context, agent, response)

    async def on_agent_end(self, context: Any, agent: Any, output: Any) -> None:
        await self._inner.on_agent_end(context, agent, output)

    async def on_handoff(self, context: Any, from_agent: Any, to_agent: Any) -> None:
        await self._inner.on_handoff(context, from_agent, to_agent)

    async def on_tool_start(self, context: Any, agent: Any, tool: Any) -> None:
        await self._inner.on_tool_start(context, agent, tool)

    async def on_tool_end(self, context: Any, agent: Any, tool: Any, result: Any) -> None:
        await self._inner.on_tool_end(context, agent, tool, result)


def _note_unknown(point: EnforcementPoint, run: Run, agent: Any, response: Any) -> None:
    """Record the calls of tools that ``agent`` was not given."""
    known = run.shown.get(agent.name)
    if known is None:
        return
    handoffs = {one.tool_name if isinstance(one, Handoff) else Handoff.default_tool_name(one) for one in agent.handoffs}
    for item in response.output:
        if getattr(item, "type", None) != "function_call" or item.name in known | handoffs:
            continue
        if item.call_id not in run.recorded:
            run.recorded.add(item.call_id)
            Caller(point, agent.name or None).missing(item.name, item.arguments, item.call_id)
