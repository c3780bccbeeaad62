"""A runtime whose Atlases, approvals and traces are at a server: what ``Runtime.connect`` gives.

In the place of ``Runtime``'s it has sessions, tools and questions of its own; what only the server can tell is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

from cra_middleware._clock import SystemClock
from cra_middleware.approvals.answering import Approvals
from cra_middleware.atlas.loader import Atlas
from cra_middleware.atlas.manifest import RiskTier
from cra_middleware.carp.explain import Explanation
from cra_middleware.carp.resolver import Resolver
from cra_middleware.carp.tool_map import ToolMap
from cra_middleware.client.connection import Connection
from cra_middleware.client.offline import Spool
from cra_middleware.client.outcomes import Worker
from cra_middleware.client.questions import Questions
from cra_middleware.client.remote_session import Link
from cra_middleware.client.remote_sessions import RemoteSessions
from cra_middleware.client.toolbook import ToolBook
from cra_middleware.errors import CRAError
from cra_middleware.leaving import forget, leave_at_exit
from cra_middleware.policies import AtlasSource
from cra_middleware.runtime import Runtime
from cra_middleware.telemetry import Telemetry

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider


class AtServerError(CRAError):
    """Only the server can do that."""

    code = "at_server"


class RemoteRuntime(Runtime):
    """Runs tools here that a server decides about. Safe under threads and tasks."""

    def __init__(
        self,
        connection: Connection,
        *,
        on_unreachable: Literal["deny", "cached"] = "deny",
        spool: str | Path | None = None,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
    ) -> None:
        """Nothing is asked of the server yet.

        Raises:
            SinkError: when the spool cannot be used.
            ValueError: when an option is not usable.
        """
        if on_unreachable not in ("deny", "cached"):
            raise ValueError(f"on_unreachable must be 'deny' or 'cached', not {on_unreachable!r}")
        if (on_unreachable == "cached") != (spool is not None):
            raise ValueError("on_unreachable='cached' needs a spool=FOLDER for what is recorded meanwhile, and only it")
        self._connection = connection
        self._worker = Worker()
        self._tools = ToolBook(connection, self._renew_later, may_be_old=on_unreachable == "cached")
        begin = partial(Runtime, tracer_provider=tracer_provider, meter_provider=meter_provider)
        self._spool = None if spool is None else Spool(spool, connection, begin)
        telemetry = Telemetry(tracer_provider, meter_provider, lambda action_id: None, decides=False)
        self._link = Link(connection, self._tools, self._worker, telemetry, self._spool)
        self._approvals = Approvals(Questions(connection), SystemClock())
        self._sessions = RemoteSessions(self._link)
        if self._spool is not None:
            self._spool.seal_left_behind()
            self._worker.begin()
            self._worker.soon(self._spool.upload)
        leave_at_exit(self)

    @property
    def atlases(self) -> tuple[Atlas, ...]:
        """They are at the server.

        Raises:
            AtServerError: always.
        """
        _at_server("its Atlases are read with GET /v1/atlases")

    @property
    def resolver(self) -> Resolver:
        """It is at the server.

        Raises:
            AtServerError: always.
        """
        _at_server("decisions are made there")

    @property
    def policy_digest(self) -> str:
        """It is in the first event of each session.

        Raises:
            AtServerError: always.
        """
        _at_server("the digest is in the first event of each session")

    def reload(self, atlas: AtlasSource | Sequence[AtlasSource]) -> None:
        """Policies are put in force at the server.

        Raises:
            AtServerError: always.
        """
        _at_server("put the Atlas into its folder, or POST /v1/atlases")

    def explain(
        self,
        action: str,
        arguments: Mapping[str, object] | None = None,
        *,
        agent_id: str = "agent",
        risk_tier: RiskTier = "low",
        context: Mapping[str, object] | None = None,
    ) -> Explanation:
        """Decisions are explained where the Atlases are.

        Raises:
            AtServerError: always.
        """
        _at_server("decisions are explained where the Atlases are: cra check")

    @property
    def _tools_now(self) -> ToolMap:
        """By the server's Atlases of at most a minute ago; with ``on_unreachable="cached"`` by those that were last
        heard of, while the server is not to be reached."""
        return self._tools.now

    def close(self, *, end: bool = False) -> None:
        """End the sessions this runtime opened, detach the kept ones (``end=True`` ends those too), and let go.

        A session in which a person is being asked is kept, too: the questions are at the server.
        """
        self._leave(self._sessions.close(end, can_wait=True))

    def detach(self) -> None:
        """Let go of every session without sealing it; done by itself when the interpreter exits."""
        self._leave(self._sessions.detach())

    def _renew_later(self, work: Callable[[], None]) -> None:
        self._worker.begin()
        self._worker.soon(partial(_done, work))

    def _leave(self, nothing_runs: bool) -> None:
        forget(self)
        if nothing_runs:  # else the outcome of a tool of another thread has to be told, and that its session has ended
            self._worker.close()
            self._connection.close()


def _at_server(instead: str) -> NoReturn:
    raise AtServerError(f"this runtime is at a server; {instead}")


def _done(work: Callable[[], None]) -> bool:
    work()
    return True
