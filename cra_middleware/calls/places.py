"""The places that calls take in windows and budgets: kept once a tool has run, given back where it did not."""

from __future__ import annotations

import logging

from cra_middleware.carp.quota import Counters, CountersError, Reservation

Taken = tuple[Reservation, ...]
"""What one call takes up."""

_logger = logging.getLogger("cra_middleware")


class Places:
    """Those of one session's calls. A counter store that fails here fails no call."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters

    def commit(self, taken: Taken) -> None:
        """The tool has run: what it took up stays taken."""
        for reservation in taken:
            try:
                self._counters.commit(reservation)
            except CountersError as error:  # the tool has run; the place stays taken until its window closes
                _logger.error("a call that ran could not be counted: %s", error)

    def release(self, taken: Taken) -> None:
        """The tool does not run: what was held for it is free again."""
        for reservation in taken:
            try:
                self._counters.release(reservation)
            except CountersError as error:
                _logger.error("a call that did not run stays counted: %s", error)
