"""Read a page as a browser does: its headings, tables and pictures, and whether it asks for anything outside."""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

EMPTY = {"meta", "br", "img", "link"}
"""Elements that have no end."""

LOADED = {"src", "href", "xlink:href", "srcset", "data"}
"""Attributes that name what a browser loads; what begins with # is in the page."""


@dataclass
class ReadPage(HTMLParser):
    """What stands in a page. Raises AssertionError if elements are not closed in order, or if it loads anything."""

    headings: list[str] = field(default_factory=list)
    tables: list[list[list[str]]] = field(default_factory=list)
    pictures: int = 0
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    @classmethod
    def of(cls, file: Path) -> "ReadPage":
        page = cls()
        page.feed(file.read_text(encoding="utf-8"))
        assert not page.open, page.open
        page.text = " ".join(page.text.split())
        return page

    def handle_starttag(self, tag, attrs):
        assert tag not in ("script", "link", "iframe"), tag
        assert all((value or "").startswith(("#", "data:")) for name, value in attrs if name in LOADED), attrs
        self.pictures += tag == "svg"
        if tag in ("h1", "h2"):
            self.headings.append("")
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if tag not in EMPTY:
            assert self.open.pop() == tag, tag

    def handle_data(self, data):
        if "style" in self.open:
            assert "url(http" not in data and "@import" not in data
            return
        self.text += f" {data}"
        if {"h1", "h2"} & set(self.open):
            self.headings[-1] += data
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data
