"""How pages look: the templates, what they are filled with, and the policy that lets nothing else run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import TYPE_CHECKING

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from cra_middleware._clock import Clock, timestamp_text
from cra_middleware.server.access import Caller
from cra_middleware.server.faults import Fault
from cra_middleware.server.pages.arguments import in_full, visible
from cra_middleware.server.routing import Said
from cra_middleware.trace_page import Frame, csp_hash, style_text
from cra_middleware.trace_page.rows import plain

if TYPE_CHECKING:
    from cra_middleware.server.pages.hearing import Turn

HTML = "text/html; charset=utf-8"
_HERE = "cra_middleware.server.pages"
_TITLES = {
    400: "That could not be read",
    401: "Who are you?",
    403: "Not for you",
    404: "Nothing here",
    409: "Not done",
    429: "Too many tries",
}


class Face:
    """Renders the pages of one server."""

    def __init__(self, clock: Clock, is_open: bool) -> None:
        self._clock = clock
        self._is_open = is_open
        self._site_style = _part("static", "site.css")
        self._style = style_text() + self._site_style
        self._environment = Environment(
            loader=DictLoader(dict(_templates())),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters.update(plain=plain, moment=moment, left=self._left, visible=visible, full=in_full)
        self._environment.filters.update(stamp=timestamp_text, sentence=sentence)

    def page(self, turn: Turn, template: str, *, script: str = "", status: int = 200, **values: object) -> Said:
        """A page from a template."""
        code = _part("static", script) if script else ""
        text = self._environment.get_template(f"{template}.html.jinja").render(
            **self._about(turn.caller, turn.token, turn.here),
            style=Markup(self._style),  # files of ours
            script=Markup(code),
            now_us=self._clock.wall_us(),
            **values,
        )
        return Said(status, text.encode(errors="replace"), policy(self._style, code), HTML)

    def frame(self, turn: Turn, note: Markup) -> Frame:
        """What a page of one session stands in."""
        bar = self._environment.get_template("bar.html.jinja").render(**self._about(turn.caller, turn.token, turn.here))
        return Frame(Markup(bar), self._site_style, note)  # it is rendered: what is foreign in it was escaped

    def part(self, template: str, **values: object) -> Markup:
        """A piece of a page."""
        return Markup(self._environment.get_template(f"{template}.html.jinja").render(**values))

    def sorry(self, fault: Fault, headers: Mapping[str, str]) -> Said:
        """A page that says why something is not done."""
        text = self._environment.get_template("sorry.html.jinja").render(
            **self._about(None, "", ""),
            style=Markup(self._style),
            script="",
            title=_TITLES.get(fault.http_status, "That did not work"),
            said=str(fault),
            is_unknown=fault.http_status == 401,
        )
        return Said(fault.http_status, text.encode(errors="replace"), {**policy(self._style, ""), **headers}, HTML)

    def once_more(self, path: str) -> Said:
        """A page that asks for ``path`` again, as one of ours."""
        text = self._environment.get_template("once_more.html.jinja").render(path=path)
        return Said(200, text.encode(), policy("", ""), HTML)

    def _about(self, caller: Caller | None, token: str, here: str) -> dict[str, object]:
        return {"caller": caller, "token": token, "here": here, "is_open": self._is_open}

    def _left(self, until_us: int) -> str:
        return left(until_us - self._clock.wall_us())


def policy(style: str, script: str, more: str = "") -> dict[str, str]:
    """Headers that let exactly this style and this script through."""
    scripts = f"'{csp_hash(script)}'" if script else "'none'"
    styles = f"'{csp_hash(style)}'" if style else "'none'"
    said = (
        f"default-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; connect-src 'self'; "
        f"style-src {styles}; script-src {scripts}; require-trusted-types-for 'script'; trusted-types 'none'{more}"
    )
    # no-referrer would make the browser hide where our own forms come from
    return {
        "content-security-policy": said,
        "referrer-policy": "same-origin",
        "cross-origin-opener-policy": "same-origin",
    }


def sentence(text: str) -> str:
    """``text``, begun and ended as a sentence is."""
    shown = plain(text)
    return shown[:1].upper() + shown[1:] + ("" if shown.endswith((".", "!", "?")) else ".")


def moment(time_us: int) -> str:
    """``2026-11-26 15:46:45 UTC``."""
    return f"{timestamp_text(time_us)[:19].replace('T', ' ')} UTC"


def left(time_us: int) -> str:
    """``14 min``; the script writes the same."""
    seconds = max(0, time_us // 1_000_000)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min"
    if seconds < 48 * 3600:
        return f"{seconds // 3600} h {seconds % 3600 // 60} min"
    return f"{seconds // 86_400} days"


def _templates() -> Iterator[tuple[str, str]]:
    for file in files(_HERE).joinpath("templates").iterdir():
        if file.name.endswith(".jinja"):
            yield file.name, file.read_text(encoding="utf-8")


def _part(folder: str, name: str) -> str:
    return files(_HERE).joinpath(folder, name).read_text(encoding="utf-8")
