"""OpenAI Agents SDK: ``install(runtime)`` governs the tools of every agent in the process.

Every agent, not one: an agent reaches others by handoffs, as tools, by ``clone()`` and by whatever its tools run, and
no list of them is complete. The tools that an agent is given for a turn (its own and those of its MCP servers) are
replaced by governed ones. A function's call is decided inside the SDK's validation, on the arguments that the function
gets; of a tool without a function (MCP, an agent as a tool, a hand-made ``FunctionTool``) the JSON arguments are
decided, with the defaults of its schema. The executors of ``ShellTool``, ``LocalShellTool``, ``CustomTool`` and
``ApplyPatchTool`` are governed too. A ``ComputerTool``, and any kind of tool that is not known here, is taken away.

With ``pauses=True`` a call that needs a person interrupts the run, the SDK's own way: ``result.interruptions``,
``state.approve`` or ``state.reject``, or ``answer(state, runtime)`` after ``runtime.approvals.approve``.

Holes: hosted tools (web search, hosted MCP, code interpreter) run at the provider's; a handoff's ``on_handoff`` runs
undecided; what a hand-made ``on_invoke_tool`` makes of its arguments is its own; a tool's function or
``on_invoke_tool`` that a program calls itself is no call of an agent's.
"""

from cra_adapters.openai_agents.describing import describe_tools
from cra_adapters.openai_agents.installing import Installation, install
from cra_adapters.openai_agents.pausing import answer

__all__ = ["Installation", "answer", "describe_tools", "install"]
