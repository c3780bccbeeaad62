"""LangChain: govern the tools of ``create_agent``, of a LangGraph ``ToolNode``, or of your own loop.

Which one to use:

* ``CRAMiddleware(runtime)`` for ``langchain.agents.create_agent``. A hard gate, and the one to prefer.
* ``governed_tool_node(tools, runtime)`` in place of LangGraph's ``ToolNode``.
* ``govern_tools(tools, runtime)`` for tools that run anywhere else.
* ``CRACallbackHandler(runtime)`` where only callbacks can be passed in. It stops a tool by raising, which ends
  the whole run, and it sees the model's raw arguments; it refuses to be made where it could not enforce.

The first three decide inside the tool, on the arguments its body is about to get: coercion, defaults and injected
values have happened, and a neighbour that retries or rewrites the call meets a decision each time.

A call that needs a person stops the run where the runtime has no approver and the graph has a checkpointer, and goes
on with ``Command(resume=True)``: for exactly that call, once (``AskByInterrupt``). Over a restart the questions have to
be kept: ``Runtime(..., approvals="approvals.db")``. A tool that interrupts by itself after it was approved is asked
about again when the run goes on.

An agent that runs inside a tool (a subagent) needs the gate, too: what its model calls and nothing governs does not
run.

Holes that remain: code in a tool that calls another tool, or its function, is not seen where that is not governed
itself, nor is an agent that a tool starts in a thread of its own; tools a provider runs on its own servers, and agents
elsewhere, never come by here. Another middleware is code
of yours: one *before* ``CRAMiddleware`` may call ``request.tool`` by itself, one *after* it may run another tool
object. A call that came back without any decision is recorded as ``ungoverned_tool`` and its result withheld, but it
has run. Against such neighbours, pass ``govern_tools(tools, runtime)`` to ``create_agent`` too: governed twice is
decided once. A bare ``ToolNode`` runs the siblings of a call that waited a second time when the run goes on.
"""

from cra_adapters.langchain.callbacks import CRACallbackHandler
from cra_adapters.langchain.describe import describe_tools
from cra_adapters.langchain.interrupts import AskByInterrupt
from cra_adapters.langchain.middleware import CRAMiddleware
from cra_adapters.langchain.node import governed_tool_node
from cra_adapters.langchain.tools import GovernedTool, govern_tools

__all__ = [
    "AskByInterrupt",
    "CRACallbackHandler",
    "CRAMiddleware",
    "GovernedTool",
    "describe_tools",
    "govern_tools",
    "governed_tool_node",
]
