"""What can be said about traces, as data."""

from __future__ import annotations

from dataclasses import dataclass

from cra_middleware.trace.chain import Verdict
from cra_middleware.trace.note import Checkpoint


@dataclass(frozen=True, slots=True)
class SessionReport:
    """What can be said about one session."""

    session_id: str | None
    paths: tuple[str, ...]
    verdict: Verdict | None
    """On its chain; None when every event was pruned."""
    total_events: int
    """Its events, those that were pruned included."""
    pruned_events: int = 0
    signed_events: int = 0
    """How many, from the first, a signed head covers."""
    witnessed_events: int = 0
    """How many, from the first, a copy agrees with."""
    problems: tuple[str, ...] = ()
    """What others say against it."""

    @property
    def intact(self) -> bool:
        """Whether nothing was changed, as far as anybody can say."""
        return not self.problems and (self.verdict is None or self.verdict.intact)

    @property
    def sealed(self) -> bool:
        """Whether it was ended, and its end is there; of one that was pruned, only a signed head can tell."""
        return self.intact and (self.signed if self.verdict is None else self.verdict.sealed)

    @property
    def signed(self) -> bool:
        """Whether a signed head covers all of it."""
        return self.intact and self.signed_events >= self.total_events > 0

    @property
    def witnessed(self) -> bool:
        """Whether a copy agrees with all of it."""
        return self.intact and self.witnessed_events >= self.total_events > 0

    def __str__(self) -> str:
        if self.problems:
            return f"CHANGED: {'; '.join(self.problems)}"
        if self.verdict is None:
            parts = [f"PRUNED: {self.pruned_events} events were removed, and their hashes kept"]
        else:
            parts = [str(self.verdict)]
            if not self.verdict.intact:
                return parts[0]
        for word, events in (("SIGNED", self.signed_events), ("WITNESSED", self.witnessed_events)):
            if events:
                rest = self.total_events - events
                behind = f", and not the {rest} behind it" if rest > 0 else ""
                parts.append(f"{word} up to event {events - 1}{behind}")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class FolderReport:
    """What can be said about the sessions of one folder."""

    path: str
    sessions: tuple[SessionReport, ...]
    missing: tuple[str, ...] = ()
    """Sessions that the ledger or the copy knows, and that are not there; a sentence each."""
    problems: tuple[str, ...] = ()
    """What is wrong with the folder as a whole."""
    head: Checkpoint | None = None
    """The largest head that was signed by the key and fits."""

    @property
    def intact(self) -> bool:
        """Whether nothing is missing or changed, as far as anybody can say."""
        return not self.missing and not self.problems and all(session.intact for session in self.sessions)
