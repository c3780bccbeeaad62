"""What runs inside a governed tool: how it was called, and the calls that another model makes in there.

A tool may run a whole agent (a subagent). Middleware does not reach that agent by itself, and a model that was denied
something could have a subagent do it. So a callback handler watches while a governed tool runs: it stops every tool
that a model calls inside and that nothing governs. LangChain adds it to all callbacks in the tool's context, also where
an agent is invoked with callbacks of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.runnables.config import ensure_config
from langchain_core.tracers.context import register_configure_hook

from cra_middleware import AuditUnavailable, CallRefused, Session, SinkError

UNGOVERNED = "ungoverned_tool"


@dataclass(slots=True, eq=False)
class Entered:
    """How the governed tool that runs here was called."""

    call_id: str | None = None
    agent: str | None = None
    thread: str | None = None
    session: Session | None = None
    lets_others: bool = True
    """Whether tools that nothing governs may be called by a model inside."""
    is_started: bool = False
    """Whether its own start was told to the callbacks: what starts after that is something else."""


_entered: ContextVar[Entered | None] = ContextVar("cra_langchain_entered", default=None)


def entered() -> Entered:
    """How the tool that runs here was called; nothing is known of one that is not governed."""
    return _entered.get() or Entered()


@contextmanager
def entering(call_id: str | None, config: Mapping[str, Any] | None, lets_others: bool) -> Iterator[None]:
    """A governed tool is being called."""
    config = config or ensure_config()
    token = _entered.set(Entered(call_id, agent_of(config), thread_of(config), None, lets_others))
    watching = _watch.set(_WATCH)
    try:
        yield
    finally:
        _watch.reset(watching)
        _entered.reset(token)


def agent_of(config: Mapping[str, Any]) -> str | None:
    """The name that was given to ``create_agent``."""
    name = (config.get("metadata") or {}).get("lc_agent_name")
    return name if isinstance(name, str) and name else None


def thread_of(config: Mapping[str, Any]) -> str | None:
    """The id of the thread that a graph runs in."""
    thread = (config.get("configurable") or {}).get("thread_id")
    return None if thread is None else str(thread)


class _Watch(BaseCallbackHandler):
    """Raises when a model's call of a tool that nothing governs starts inside a governed tool."""

    raise_error = True  # LangChain would else log it and run the tool
    run_inline = True

    def on_tool_start(
        self, serialized: dict[str, Any], input_str: str, *, tool_call_id: str | None = None, **kwargs: Any
    ) -> None:
        outer = _entered.get()
        if tool_call_id is None or outer is None or outer.lets_others or not outer.is_started:
            return
        name = str((serialized or {}).get("name") or kwargs.get("name") or "unnamed")[:200]
        try:
            if outer.session is not None:
                outer.session.note(UNGOVERNED, f"{name}, called by an agent in a tool, was not run: nothing governs it")
        except SinkError as error:
            raise AuditUnavailable(f"{name} is not governed, and that could not be recorded") from error
        reason = f"{name} is called by an agent inside a tool, and nothing governs that agent. Tell the operator"
        raise CallRefused(reason, code=UNGOVERNED)


_WATCH = _Watch()
_watch: ContextVar[BaseCallbackHandler | None] = ContextVar("cra_langchain_watch", default=None)
register_configure_hook(_watch, inheritable=True)
