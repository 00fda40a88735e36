"""Read a page as a browser does: its text, headings, tables and pictures. A page that asks for a file is refused."""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "br", "hr", "img", "link", "input"}
"""Elements that have no end."""

LOADED = {"src", "href", "action", "data", "poster", "srcset", "xlink:href"}
"""Attributes that name what a browser loads; what begins with # is in the page."""


@dataclass
class ReadPage(HTMLParser):
    """What stands in a page. Raises AssertionError if elements are not closed in their order, or if it asks for another
    file."""

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
        page.close()
        assert not page.open, page.open
        return page

    @property
    def said(self) -> str:
        """The text on one line."""
        return " ".join(self.text.split())

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
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag, tag

    def handle_data(self, data):
        if "style" in self.open:
            assert "url(http" not in data and "@import" not in data
            return
        self.text += data
        if {"h1", "h2"} & set(self.open):
            self.headings[-1] += data
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data
