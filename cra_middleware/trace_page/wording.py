"""What the page says about each event, as data: Python fills the rows from it, and the page's script, which is
given the same data, fills them again and compares.

A template names payload keys in braces; a dotted name goes into nested objects. A template of which a key is
missing says nothing. Of a policy that was evaluated, ``type:effect`` is looked up before ``type``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from cra_middleware.trace.calls import BEGINS, ENDS, JOINS
from cra_middleware.trace.event import EVENT_TYPES, GENESIS

Column = Literal["what", "decision", "why", "outcome", "look"]
COLUMNS: tuple[Column, ...] = ("what", "decision", "why", "outcome")

MAX_TEXT = 600
"""Characters of one value that are shown; the whole of it is in the raw line."""

MAX_NUMBER = 2**53
MIN_FRACTION = 1e-4
"""Numbers that a browser and Python would write differently lie outside; no writer of ours records one."""

EVENTS: dict[str, dict[Column, tuple[str, ...]]] = {
    "session.started": {"what": ("session started",), "look": ("frame",)},
    "session.ended": {
        "what": ("session ended",),
        "outcome": ("{reason}, after {duration_ms} ms", "{action_count} actions ran", "{error}"),
        "look": ("frame",),
    },
    "carp.request.received": {
        "what": ("resolution asked for",),
        "why": ("to {operation}, {risk_tier} risk", "{goal}"),
        "look": ("frame",),
    },
    "carp.resolution.completed": {
        "what": ("resolution",),
        "decision": ("{decision_type}",),
        "why": ("{allowed_count} actions allowed, {denied_count} not", "{context_block_count} context documents"),
        "outcome": ("holds for {ttl_seconds} s",),
        "look": ("frame",),
    },
    "carp.resolution.cached": {"what": ("resolution",), "why": ("answered as before",), "look": ("frame",)},
    "context.injected": {
        "what": ("context given", "{block_id}"),
        "why": ("from {source}",),
        "outcome": ("{token_count} tokens",),
        "look": ("frame",),
    },
    "context.redacted": {
        "what": ("context withheld", "{block_id}"),
        "why": ("{redaction_reason}",),
        "look": ("frame",),
    },
    "policy.evaluated": {
        "what": ("{action_id}", "{action_count} actions"),
        "decision": ("{result}",),
        "why": ("{effect}", "policy {policy_id}"),
        "look": ("frame",),
    },
    "policy.evaluated:require_approval": {
        "what": ("{action_id}", "{action_count} actions"),
        "decision": ("asked",),
        "why": ("a person must approve", "policy {policy_id}"),
        "look": ("asked",),
    },
    "policy.evaluated:shadow_deny": {
        "what": ("{action_id}", "{action_count} actions"),
        "decision": ("shadow denial",),
        "why": ("policy {policy_id} would have denied, and is not enforced",),
        "look": ("shadow",),
    },
    "policy.violated": {"what": ("{action_id}",), "why": ("{violation_type} violated",)},
    "action.requested": {"what": ("{action_id}", "tool {tool_name}", "for {agent_name}")},
    "action.approved": {
        "what": ("{action_id}",),
        "decision": ("allow",),
        "why": ("policy {policy_id}", "approved by {approver}", "approval {approval_id}"),
        "look": ("allow",),
    },
    "action.denied": {
        "what": ("{action_id}",),
        "decision": ("deny",),
        "why": (
            *("{reason}", "code {code}", "policy {policy_id}", "approval {approval_id}"),
            "again in {retry_after_seconds} s",
        ),
        "outcome": ("did not run",),
        "look": ("deny",),
    },
    "action.executed": {
        "what": ("{action_id}",),
        "outcome": ("ran, {duration_ms} ms", "{item_count} items", "reported by {reported_by}"),
    },
    "action.failed": {
        "what": ("{action_id}",),
        "outcome": ("failed: {error_code}", "after {duration_ms} ms", "{error_message}"),
        "look": ("failed",),
    },
    "error.occurred": {
        "what": ("note in the trace", "{error_code}"),
        "why": ("{message}",),
        "outcome": ("{count} events", "{bytes} bytes", "SHA-256 {sha256}"),
        "look": ("note",),
    },
    # not of the protocol: what a trace that is broken, or of another profile, shows
    "broken": {"what": ("BROKEN HERE",), "why": ("{message}",), "look": ("fault",)},
    "unreadable": {"what": ("unreadable",), "look": ("fault",)},
    "foreign": {"what": ("{event}",), "why": ("{payload}",)},
}

FACTS: tuple[tuple[str, str], ...] = (
    ("Agent", "{agent_id}"),
    ("Goal", "{goal}"),
    ("Policy digest", "{metadata.policy_digest}"),
    ("Mode", "{metadata.mode}"),
    ("By default", "{metadata.default_decision}"),
    ("Atlases", "{atlas_ids}"),
    ("External id", "{metadata.external_id}"),
    ("Subject", "{metadata.subject}"),
    ("Child of", "{metadata.parent_session_id}"),
)
"""What ``session.started`` says about the session."""

UNFINISHED = {"asked": "did not run: waited for a person", "": "nothing more was recorded"}
"""The outcome of a call that has none, by how it looks."""

HEADLINES = {
    "sealed": "Every session is intact and sealed",
    "open": "Every session is intact; not every one is sealed",
    "broken": "Not everything here is intact",
}

HEADLINES_OF_ONE = {
    "sealed": "Intact and sealed",
    "open": "Intact, and not sealed",
    "broken": "This is not what was recorded",
}
"""Where the page is about one session only."""

ODD = (
    *((0x00, 0x1F), (0x7F, 0xA0), (0xAD, 0xAD), (0x34F, 0x34F), (0x600, 0x605), (0x61C, 0x61C), (0x6DD, 0x6DD)),
    *((0x70F, 0x70F), (0x115F, 0x1160), (0x1680, 0x1680), (0x17B4, 0x17B5), (0x180B, 0x180F), (0x2000, 0x200F)),
    *((0x2028, 0x202F), (0x205F, 0x206F), (0x3000, 0x3000), (0x3164, 0x3164), (0xD800, 0xF8FF), (0xFEFF, 0xFEFF)),
    *((0xFFA0, 0xFFA0), (0xFFF0, 0xFFFF), (0x1D173, 0x1D17A), (0xE0000, 0x10FFFF)),
)
"""Code points that are shown as escapes: controls, blanks, marks of direction, surrogates, private use. A fixed
list: what counts as printable differs between versions of Unicode, and both sides must agree."""


def rules(headlines: Mapping[str, str] = HEADLINES) -> dict[str, object]:
    """Everything the page's script needs to fill the same rows."""
    return {
        "begins": BEGINS,
        "columns": COLUMNS,
        "ends": ENDS,
        "events": EVENTS,
        "facts": FACTS,
        "genesis": GENESIS,
        "headlines": dict(headlines),
        "joins": JOINS,
        "kinds": sorted(EVENT_TYPES),
        "maxNumber": MAX_NUMBER,
        "maxText": MAX_TEXT,
        "minFraction": MIN_FRACTION,
        "odd": ODD,
        "unfinished": UNFINISHED,
    }
