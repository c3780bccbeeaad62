"""One exchange with the receiver of an ``HttpSink``: a batch goes out, and one of four answers comes back."""

from __future__ import annotations

import importlib
import time
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple, TypeAlias
from urllib.parse import urlsplit

import orjson

from cra_middleware.errors import SinkError

if TYPE_CHECKING:
    import httpx

_MOST_ANSWER_BYTES = 64 * 1024
_LONGEST_RETRY_AFTER = 300.0
_PASSING = {408, 425, 429, 500, 502, 503, 504}


class Batch(NamedTuple):
    """Whole lines of one session, one behind the other."""

    session_id: str
    offset: int
    """Of the first byte in the session's log."""
    first: int
    """The sequence of the first event."""
    data: bytes

    @property
    def events(self) -> int:
        """How many events the session has with these."""
        return self.first + self.data.count(b"\n")


class Acknowledged(NamedTuple):
    """The other side holds so many events of the session."""

    events: int


class Later(NamedTuple):
    """The same may go through later."""

    reason: str
    after_seconds: float | None = None


class Refused(NamedTuple):
    """It will not go through."""

    reason: str


Answer: TypeAlias = Acknowledged | Later | Refused


class HttpClient:
    """Sends batches to one receiver."""

    def __init__(self, url: str, token: str | None, timeout_seconds: float) -> None:
        """Nothing is sent yet.

        Raises:
            SinkError: when httpx is not installed, or ``url`` or ``token`` cannot be used.
        """
        try:
            self._httpx = importlib.import_module("httpx")
        except ImportError as error:
            raise SinkError("a trace over HTTP needs httpx: pip install 'cra-middleware[http]'") from error
        self._url, self.place = _checked(url)
        headers = {"Content-Type": "application/x-ndjson", "Accept-Encoding": "identity"}
        if token is not None:
            if not (token.isascii() and token.isprintable() and token.strip() == token != ""):
                raise SinkError("the token must be printable ASCII without blanks around it")
            headers["Authorization"] = f"Bearer {token}"
        self._timeout = timeout_seconds
        self._client: httpx.Client = self._httpx.Client(
            headers=headers, timeout=timeout_seconds, follow_redirects=False
        )

    def send(self, batch: Batch) -> Answer:
        """Post ``batch``, and say what became of it. Never raises for what the other side does."""
        key = sha256(b"%s %d " % (batch.session_id.encode(), batch.offset) + batch.data).hexdigest()
        headers = {
            "Cra-Session-Id": batch.session_id,
            "Cra-Offset": str(batch.offset),
            "Cra-First-Sequence": str(batch.first),
            "Idempotency-Key": key,
        }
        url = f"{self._url}/sessions/{batch.session_id}/events"
        try:
            with self._client.stream("POST", url, content=batch.data, headers=headers) as response:
                return self._answer(response)
        except self._httpx.TransportError as error:
            return Later(f"{self.place} is away: {str(error) or type(error).__name__}")
        except (self._httpx.HTTPError, self._httpx.InvalidURL, self._httpx.StreamError) as error:
            return Refused(f"{self.place} cannot be asked: {error}")

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()

    def _answer(self, response: httpx.Response) -> Answer:
        status = response.status_code
        if status in _PASSING:
            return Later(f"{self.place} answered {status}", _retry_after(response.headers.get("retry-after")))
        if status not in (200, 409):
            return Refused(f"{self.place} answered {status}: it does not take these events")
        body, deadline = b"", time.monotonic() + self._timeout
        for piece in response.iter_raw():  # as it comes: a size would be waited for
            body += piece
            if len(body) > _MOST_ANSWER_BYTES:
                return Refused(f"{self.place} answered with more than {_MOST_ANSWER_BYTES} bytes")
            if time.monotonic() > deadline:
                return Later(f"{self.place} did not finish its answer")
        try:
            events = orjson.loads(body)["events"]
        except (ValueError, TypeError, KeyError):
            events = None
        if type(events) is not int or events < 0:
            return Refused(f'{self.place} answered {status} without {{"events": n}}: it is no receiver of traces')
        return Acknowledged(events)


def _checked(url: str) -> tuple[str, str]:
    """The address without its last slash, and how it is named in messages: without user and password."""
    try:
        parts = urlsplit(url)
        port = "" if parts.port is None else f":{parts.port}"
    except ValueError as error:
        raise SinkError(f"the address of the receiver is not understood: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise SinkError("the receiver's address must be http://… or https://…, without ? and #")
    path = parts.path.rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path}", f"{parts.scheme}://{parts.hostname}{port}{path}"


def _retry_after(text: str | None) -> float | None:
    """The seconds to wait. From: https://www.rfc-editor.org/rfc/rfc9110#field.retry-after"""
    if text is None:
        return None
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), _LONGEST_RETRY_AFTER)
    try:
        when = parsedate_to_datetime(text)
        seconds = (when - datetime.now(timezone.utc if when.tzinfo else None)).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(0.0, seconds), _LONGEST_RETRY_AFTER)
