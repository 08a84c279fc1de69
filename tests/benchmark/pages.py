"""Read a page as a browser would: what is in it, what it would load, whether all that is opened is closed."""

from __future__ import annotations

import re
from html.parser import HTMLParser

_EMPTY = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """A page.

    Attributes:
        headings: of its sections, in order.
        rows: the cells of all rows of its tables.
        texts: all that is written, in order.
        pictures: number of its pictures.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.rows: list[list[str]] = []
        self.texts: list[str] = []
        self.pictures = 0
        self._open: list[str] = []
        self._read(text)

    def _read(self, text: str) -> None:
        """Read all of it, and check that it is well-formed and loads nothing."""
        self.feed(text)
        self.close()
        assert self._open == [], f"never closed: {self._open}"
        assert not re.search(r"@import|url\(\s*[\"']?(?!#)", text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "iframe", "object", "embed", "link"), f"<{tag}> in the page"
        for name, value in attrs:
            assert not name.startswith("on"), f"{name} in the page"
            if name in ("src", "href", "xlink:href", "data", "action"):
                assert value is not None and re.match(r"#|data:image/png", value), f"{name}={value}"
        if tag not in _EMPTY:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "h2":
            self.headings.append("")
        self.pictures += tag == "svg"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _EMPTY:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open[-1] == tag, f"</{tag}> closes {self._open[-3:]}"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(data.strip())
        if self._open and self._open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        if self._open and self._open[-1] == "h2":
            self.headings[-1] += data

    @property
    def text(self) -> str:
        """All that is written, in one line."""
        return " ".join(" ".join(self.texts).split())
