"""The sessions of a runtime that decides and records by itself."""

from __future__ import annotations

from collections.abc import Mapping

from cra_middleware.carp.messages import Request, Resolution
from cra_middleware.errors import ChainBroken
from cra_middleware.sessions.admission import Admitted, Opening
from cra_middleware.sessions.local_session import LocalSession
from cra_middleware.sessions.opening import Opener
from cra_middleware.sessions.runtime_sessions import RuntimeSessions
from cra_middleware.sessions.session import Session

MAX_OPEN_KEPT = 256
"""Sessions kept per thread that may be open at once; beyond it the one unused longest is detached."""


class LocalSessions(RuntimeSessions[LocalSession]):
    """Each with its log in this process."""

    def __init__(self, opener: Opener) -> None:
        super().__init__(knows_parents=True)
        self._opener = opener

    def answer(self, asked: Request) -> Resolution:
        self._opener.check_loaded(asked.atlas_ids)
        return super().answer(asked)

    def resume(self, session_id: str, context: Mapping[str, object] | None, keep: bool, renew: bool) -> LocalSession:
        known = self._open.get(session_id)
        if known is not None:
            if known.is_open:
                return known
            if not known.is_closed:
                raise ChainBroken(f"session {session_id} is being closed: a tool of it still runs")
        self._open.check_open()
        session = self._opener.resume(session_id, context, renew)
        self._open.resumed(session, keep)
        self._looked_after(session, keep)
        return session

    def _begun(self, who: Admitted, opening: Opening, parent_id: str | None) -> LocalSession:
        return self._opener.start(who, opening, parent_id)

    def _looked_after(self, session: Session, keep: bool) -> None:
        if not keep:
            return
        kept = self._open.kept()
        idle = [known for known in kept if not known.is_busy and known is not session]
        for known in sorted(idle, key=lambda known: known.used_us)[: max(0, len(kept) - MAX_OPEN_KEPT)]:
            known.detach()
