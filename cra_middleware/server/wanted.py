"""What somebody wants who begins a session: the body and the request in it, read as one, and how it is written down."""

from __future__ import annotations

from collections.abc import Mapping

from cra_middleware._canonical import canonical
from cra_middleware.server.faults import Fault
from cra_middleware.server.wire import CreateSession
from cra_middleware.sessions.admission import Opening

MAX_METADATA_BYTES = 16 * 1024


def wanted(body: CreateSession) -> Opening:
    """What the body says, and the request in it, if there is one.

    Raises:
        Fault: when the two speak of different things.
    """
    named = [body.atlas_id] if body.atlas_id is not None and body.atlas_ids is None else body.atlas_ids
    who = (body.external_id, body.subject, body.parent_session_id, body.session_id)
    said = Opening(body.agent_id, body.goal, body.risk_tier, body.context, named, *who, body.metadata, body.request)
    try:
        return said.whole
    except ValueError as error:
        raise Fault("INVALID_CARP_REQUEST", str(error)) from error


def written(value: Mapping[str, object], name: str) -> str:
    """A mapping as it is kept.

    Raises:
        Fault: when it is too large, or cannot be written.
    """
    try:
        text = canonical(value)
    except (ValueError, RecursionError) as error:
        raise Fault("INVALID_CARP_REQUEST", f"{name} cannot be written down") from error
    if len(text) > MAX_METADATA_BYTES:
        raise Fault("INVALID_CARP_REQUEST", f"{name} has more than {MAX_METADATA_BYTES} bytes")
    return text.decode()
