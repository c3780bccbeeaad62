"""Agno: ``govern_agent(agent, runtime)``, or ``Agent(tools=govern_tools(tools, runtime))``.

A tool is decided around its function, behind every ``tool_hook`` and ``pre_hook``, on the validated arguments that it
gets; what the framework injects (``agent``, ``run_context``, ``fc``, media) is no argument of the call. It is the same
in sync and async runs, which hooks are not: Agno skips an async one in a sync run, and the tool runs. A refused call is
a failed one, with the reason, and the run goes on. Answers are not cached: a cached one would come without a decision.

A tool with ``requires_confirmation`` pauses the run, as ever; a call that a person confirmed (``continue_run``, in
another process with a ``db``, too) answers a policy that wants one. Other calls that need a person are told to wait.

Holes: tools that the framework makes itself (memory, knowledge, session state, delegation to members) are not decided,
the members' own tools are; a call of a tool that is not there reaches no tool and is not recorded; a confirmation that
is refused is known to Agno only; tools that are added later (``add_tool``) are not governed; tools that a provider runs
on its own servers never come by. The session of a run that raises, and that of tools without ``govern_agent``, ends
with the runtime.
"""

from cra_adapters.agno.agents import govern_agent, govern_tools
from cra_adapters.agno.describe import describe_tools

__all__ = ["describe_tools", "govern_agent", "govern_tools"]
