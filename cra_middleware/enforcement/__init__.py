"""The seam for adapters: one enforcement point for whatever a framework governs its tools with.

An adapter says what a tool is (``EnforcementPoint.tool``) and what its body is about to get (``GovernedTool.call``).
The call is then run: ``run`` and ``arun`` around a body, ``begin`` where a framework tells of the start and of the
end in two places, ``reject`` for what the framework refuses by itself. Whatever goes wrong before a tool runs is a
``CallRefused``: an adapter that turns this one type into its framework's own denial misses none.
"""

from cra_middleware.enforcement.governed_call import GovernedCall
from cra_middleware.enforcement.governed_tool import GovernedTool
from cra_middleware.enforcement.plain_function import govern_function
from cra_middleware.enforcement.point import EnforcementPoint
from cra_middleware.open_call import OpenCall
from cra_middleware.seams import require
from cra_middleware.signatures import annotations_of, bind_arguments, signature_of

__all__ = [
    "EnforcementPoint",
    "GovernedCall",
    "GovernedTool",
    "OpenCall",
    "annotations_of",
    "bind_arguments",
    "govern_function",
    "require",
    "signature_of",
]
