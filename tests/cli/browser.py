"""A real Chromium without a window, driven over a pipe by its own protocol: no driver, no port, no network.

The protocol: https://chromedevtools.github.io/devtools-protocol/ ; messages on file descriptors 3 and 4, each ended
by a NUL byte (``--remote-debugging-pipe``).
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
_SETTLED = """new Promise((done) => {
  const until = Date.now() + 20000;
  const look = () => {
    const overall = document.getElementById("overall");
    if (overall?.dataset.state === "waiting" && Date.now() < until) return setTimeout(look, 5);
    const told = (element) => [element.dataset.state, element.textContent];
    done({
      overall: told(overall),
      sessions: Array.from(document.querySelectorAll("section.session > .check"), told),
      marked: Array.from(document.querySelectorAll("[data-fault]"), (row) => row.innerText),
      owned: String(globalThis.owned),
    });
  };
  look();
})"""


def find() -> str | None:
    """The browser on this machine, if there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@dataclass(frozen=True)
class Shown:
    """What a page came to; each note is its state and its text."""

    overall: list[str]
    sessions: list[list[str]]
    marked: list[str]
    """The rows that the script pointed at."""
    owned: str
    """A global variable that an injected script would set."""
    requested: list[str]


class Browser:
    """One process; each page is loaded in the same tab."""

    def __init__(self, program: str, folder: Path) -> None:
        self._folder = folder
        commands, self._write = os.pipe()
        self._read, answers = os.pipe()
        shell = f'exec "$@" 3<&{commands} 4>&{answers}'
        profile = f"--user-data-dir={folder / 'profile'}"
        self._process = subprocess.Popen(
            ["bash", "-c", shell, "bash", program, *_FLAGS, profile, "about:blank"],
            pass_fds=(commands, answers),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        self._buffer = b""
        self._number = 0
        self._loaded = False
        self._session: str | None = None
        self.requested: list[str] = []
        """The addresses that the page asked for."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")
        self.call("Network.enable")

    def show(self, page: str) -> Shown:
        """Load a page, and wait until its script has told what it found."""
        self.load(page)
        return Shown(**self.evaluate(_SETTLED), requested=list(self.requested))

    def load(self, page: str) -> None:
        """Load a page from a file."""
        file = self._folder / "page.html"
        file.write_text(page, encoding="utf-8", newline="")
        self.go(file.as_uri())

    def go(self, address: str) -> None:
        """Load the page at an address."""
        self.requested.clear()
        with self.loading():
            self.call("Page.navigate", url=address)

    @contextmanager
    def loading(self) -> Iterator[None]:
        """What is done in here loads a page; on leaving, it is there."""
        self._loaded = False
        yield
        if not self._loaded:
            self._until(lambda message: message.get("method") == "Page.loadEventFired")

    def wait_for(self, expression: str, seconds: float = 20.0) -> None:
        """Wait until an expression in the page is a true one."""
        until = time.monotonic() + seconds
        while not self.evaluate(f"Boolean({expression})"):
            assert time.monotonic() < until, f"{expression} did not come true"
            time.sleep(0.05)

    def look_like(self, width: int, height: int, scheme: str = "light", scale: float = 1) -> None:
        """Be a screen of this size, of a person who likes this colour scheme."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def screenshot(self) -> bytes:
        """What is on the screen, as WebP."""
        self.call("Emulation.setScrollbarsHidden", hidden=True)
        return b64decode(self.call("Page.captureScreenshot", format="webp", quality=88)["data"])

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def call(self, method: str, **params: Any) -> Any:
        """Send one command, and wait for its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        answer = self._until(lambda message: message.get("id") == self._number)
        assert "error" not in answer, answer
        return answer["result"]

    def close(self) -> None:
        os.close(self._write)
        os.close(self._read)
        self._process.kill()
        self._process.wait()

    def _until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        deadline = time.monotonic() + 60
        while True:
            while b"\0" in self._buffer:
                text, _, self._buffer = self._buffer.partition(b"\0")
                message: dict[str, Any] = json.loads(text)
                if message.get("method") == "Network.requestWillBeSent":
                    self.requested.append(message["params"]["request"]["url"])
                self._loaded |= message.get("method") == "Page.loadEventFired"
                if wanted(message):
                    return message
            ready, _, _ = select.select([self._read], [], [], max(0, deadline - time.monotonic()))
            assert ready, "the browser does not answer"
            piece = os.read(self._read, 1 << 20)
            assert piece, "the browser has ended"
            self._buffer += piece
