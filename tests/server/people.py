"""A person with a browser, without one: keeps its cookie, and sends forms as a browser does."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlencode

from tests.server.serving import Caller, Served

ORIGIN = "http://localhost"


class Person:
    """Somebody before the page of a server."""

    def __init__(self, served: Served) -> None:
        self.caller = Caller(served, {})
        self.cookie = ""

    def get(self, path: str, **headers: str) -> Any:
        return self._kept(self.caller.get(path, headers={**self._headers(), **headers}))

    def send(self, path: str, form: Any, **headers: str | None) -> Any:
        """Send a form; a header that is None is left out."""
        sent: dict[str, str | None] = {
            **self._headers(),
            "origin": ORIGIN,
            "sec-fetch-site": "same-origin",
            "content-type": "application/x-www-form-urlencoded",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        given = {name: value for name, value in sent.items() if value is not None}
        body = form if isinstance(form, bytes) else urlencode(form)
        return self._kept(self.caller.ask("POST", path, content=body, headers=given))

    def login(self, key: str, back: str = "/") -> Any:
        page = self.get("/login")
        return self.send("/login", {"token": token_of(page), "key": key, "next": back})

    def answer(self, approval_id: str, word: str, reason: str = "", **headers: str | None) -> Any:
        page = self.get(f"/approvals/{approval_id}")
        form = {"token": token_of(page), "answer": word, "reason": reason}
        return self.send(f"/approvals/{approval_id}", form, **headers)

    def _headers(self) -> dict[str, str]:
        return {"cookie": self.cookie} if self.cookie else {}

    def _kept(self, answer: Any) -> Any:
        if "set-cookie" in answer.headers:
            self.cookie = answer.headers["set-cookie"].partition(";")[0]
        return answer


def token_of(page: Any) -> str:
    """The token of a page's forms."""
    found = re.search(r'name="token" value="([0-9a-f]{64})"', page.text)
    return found[1] if found else ""
