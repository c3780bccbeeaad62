"""How a session begins: a new chain with its first events, or an earlier process's, verified and continued."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from cra_middleware._ids import is_id, new_id
from cra_middleware.calls.setting import Identity, Setting
from cra_middleware.errors import SinkError
from cra_middleware.sessions.admission import Admitted, Opening, identity_of
from cra_middleware.sessions.local_session import LocalSession
from cra_middleware.trace.chain import RECOVERED
from cra_middleware.trace.recovery import POLICY_CHANGED, Reopened, reopen
from cra_middleware.trace.sink import Sink
from cra_middleware.trace.writer import ChainWriter

CANONICALIZATION = "cra-1"
"""The rules of ``_canonical``; recorded in every ``session.started``."""

_logger = logging.getLogger("cra_middleware")


class Opener:
    """Opens the sessions of one runtime."""

    def __init__(self, setting: Setting, sink: Sink) -> None:
        self._setting = setting
        self._sink = sink

    def check_loaded(self, atlas_ids: Sequence[str] | None) -> None:
        """Take no request about Atlases that are not in force.

        Raises:
            ValueError: when one is not.
        """
        missing = set(atlas_ids or ()) - {atlas.manifest.atlas_id for atlas in self._setting.policies.epoch.atlases}
        if missing:
            raise ValueError(f"not loaded: {', '.join(sorted(missing))}")

    def start(self, who: Admitted, opening: Opening, parent_id: str | None) -> LocalSession:
        """A new session, begun and resolved.

        Raises:
            SinkError: when its trace cannot be begun.
            ValueError: when what it begins by asking is not usable.
        """
        setting, epoch = self._setting, self._setting.policies.epoch
        log = self._sink.create(who.session_id)
        try:
            identity = Identity(who.session_id, new_id(), new_id(), who.goal, who.facts, who.behalf)
            writer = ChainWriter(log, setting.clock, identity.session_id, identity.trace_id)
            session = LocalSession(setting, identity, writer, log)
            extra = {
                **opening.metadata,
                "external_id": opening.external_id,
                "subject": who.behalf,
                "parent_session_id": parent_id,
                "root_session_id": None if parent_id is None else who.facts.root_session_id,
            }
            metadata = {
                "policy_digest": epoch.policy_digest,
                "mode": "enforce" if setting.on_shadow is None else "observe",
                "default_decision": epoch.resolver.default_decision,
                "canonicalization": CANONICALIZATION,
                **{key: value for key, value in extra.items() if value is not None},
            }
            atlas_ids = who.facts.atlas_ids
            if atlas_ids and opening.request is not None and opening.request.atlas_ids == atlas_ids:  # recorded with it
                atlas_ids = None
            told: dict[str, object] = {
                "agent_id": who.facts.agent_id,
                "goal": who.goal,
                "atlas_ids": None if atlas_ids is None else list(atlas_ids),
                "metadata": metadata,
            }
            session.start(told, opening.request)
        except BaseException:  # whatever it was, the log must not stay locked
            log.close()
            raise
        return session

    def resume(self, session_id: str, context: Mapping[str, object] | None, renew: bool = True) -> LocalSession:
        """A session of an earlier process, verified, and resolved anew where that is wanted or needed.

        Raises:
            ChainBroken: when it was ended, or its trace was changed.
            SinkError: when there is no such session, or another writer has it.
        """
        if not is_id(session_id):
            raise SinkError("a session id is a lower-case UUID")
        setting = self._setting
        log = self._sink.reopen(session_id)
        try:
            found = reopen(log, session_id)
            identity = identity_of(found, context)
            writer = ChainWriter(log, setting.clock, session_id, identity.trace_id, found.end)
            session = LocalSession(setting, identity, writer, log, found.actions, found.untold)
            is_same = self._note_differences(session, found)
            if renew or not is_same or found.resolved is None:
                session.resolve()
            else:
                session.go_on(found.resolved)
        except BaseException:  # whatever it was, the log must not stay locked
            log.close()
            raise
        return session

    def _note_differences(self, session: LocalSession, found: Reopened) -> bool:
        """Whether the policies are those that the session began under."""
        if found.torn is not None:
            message = "a torn end was moved to a quarantine; the chain goes on behind the last whole event"
            session.note(RECOVERED, message, bytes=found.torn.size, sha256=found.torn.sha256)
            _logger.warning("session %s: %d torn bytes were set aside", session.id, found.torn.size)
        metadata = found.first.payload.get("metadata")
        before = metadata.get("policy_digest") if isinstance(metadata, dict) else None
        digest = self._setting.policies.epoch.policy_digest
        if before != digest:
            session.note(POLICY_CHANGED, f"resumed under the policies {digest}")
        return before == digest
