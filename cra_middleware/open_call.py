"""A driver in two pieces: for frameworks that tell of a tool's start and of its end in two places."""

from __future__ import annotations

from cra_middleware.interceptor import Flow, Raised, Returned, aauthorise, authorise, finish


class OpenCall:
    """A call that may run: for frameworks that tell of a tool's start and of its end in two places."""

    def __init__(self, flow: Flow) -> None:
        """``flow`` has been driven up to the tool's run."""
        self._flow = flow

    @classmethod
    def begin(cls, flow: Flow) -> OpenCall:
        """Drive ``flow`` up to the tool's run.

        Raises:
            CallRefused: when the tool must not run.
        """
        authorise(flow)
        return cls(flow)

    @classmethod
    async def abegin(cls, flow: Flow) -> OpenCall:
        """As ``begin``, on an event loop."""
        await aauthorise(flow)
        return cls(flow)

    def returned(self, value: object = None) -> object:
        """The tool returned ``value``; what the flow gives on."""
        outcome = finish(self._flow, Returned(value))
        return outcome.value if isinstance(outcome, Returned) else None

    def raised(self, error: BaseException) -> None:
        """The tool raised ``error``."""
        finish(self._flow, Raised(error))
