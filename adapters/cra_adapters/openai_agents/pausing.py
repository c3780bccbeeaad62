"""A call that needs a person interrupts the run, and the run goes on with the person's answer."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

from agents import FunctionTool, RunState

from cra_adapters.openai_agents.caller import Caller
from cra_middleware import Answer, CallRefused, Pending, Runtime
from cra_middleware.enforcement import GovernedTool

BY = "the run's state"
"""Who is recorded to have answered, when the answer came by ``state.approve`` or ``state.reject``."""

Arguments = Callable[[object], object]
"""Makes of what the model wrote what the tool's body gets."""


class _PausedError(Exception):
    """The run is to be interrupted."""


class _Pausing:
    suspends = (_PausedError,)

    def __call__(self, pending: Pending) -> NoReturn:
        raise _PausedError


class _Approved:
    """The framework says that a person said yes."""

    suspends = (_PausedError,)

    def __call__(self, pending: Pending) -> Answer:
        return Answer(True, BY)


def approver_for(ctx: Any, caller: Caller) -> Any:
    """Who is asked about a call that is about to run: the run's state, where it was interrupted for that."""
    if caller.pauses and ctx.is_tool_approved(ctx.tool_name, ctx.tool_call_id):
        return _Approved()
    return None


def wants_person(
    tool: FunctionTool,
    governed: GovernedTool,
    caller: Caller,
    read: Arguments,
    prepare: Callable[[str, str], Any] | None,
) -> Callable[[Any, dict[str, Any], str], Awaitable[bool]]:
    """What a tool needs approval for: what it did before, and what a policy wants a person for."""
    before = tool.needs_approval

    async def theirs(ctx: Any, given: dict[str, Any], call_id: str) -> bool:
        if isinstance(before, bool):
            return before
        prepared = None if prepare is None else prepare(json.dumps(given), tool.name)
        if prepared is not None and not prepared.unchanged:  # as the SDK: it would see other values than the function
            return True
        answer: Any = before(ctx, given, call_id)
        return bool(await answer if hasattr(answer, "__await__") else answer)

    async def needs_approval(ctx: Any, given: dict[str, Any], call_id: str) -> bool:
        return await theirs(ctx, given, call_id) or await _asked(governed, caller, read, given, call_id)

    return needs_approval


async def _asked(governed: GovernedTool, caller: Caller, read: Arguments, given: object, call_id: str) -> bool:
    """Whether a question about the call was left for a person; the call itself is decided when it runs."""
    try:
        call = caller.call(governed, read(given), call_id, _Pausing())
        if not await call.session.awould_wait(call.call):
            return False
        opened = await call.abegin()
        opened.raised(RuntimeError("nobody needs to be asked any more"))
    except _PausedError:
        return True
    except CallRefused:
        return False
    except Exception:  # noqa: BLE001  arguments that the SDK refuses: it says so when it runs the tool
        return False
    return False


def answer(state: RunState[Any], runtime: Runtime) -> RunState[Any]:
    """Tell a run's state what was answered through ``runtime.approvals``; what nobody answered stays open."""
    for interruption in state.get_interruptions():
        found = [item for item in runtime.approvals.list(None) if item.pending.tool_call_id == interruption.call_id]
        if not found:
            continue
        latest = max(found, key=lambda item: item.pending.requested_us)
        if latest.state == "approved":
            state.approve(interruption)
        elif latest.state == "rejected":
            state.reject(interruption, rejection_message=latest.reason or "A person said no.")
    return state
