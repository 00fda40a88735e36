"""The terminal that README.md shows is what its commands print."""

import html
import re

import pytest

from pages import readme_page


def read_texts(svg: str) -> str:
    """The text of a picture, without the spaces by which a terminal is aligned."""
    texts = re.findall(r"<text[^>]*>(.*?)</text>", svg, re.DOTALL)
    return re.sub(r"\s", "", html.unescape("".join(texts)))


@pytest.mark.slow
def test_the_terminal_shows_what_its_commands_print():
    kept = (readme_page.PICTURES / "terminal.svg").read_text(encoding="utf-8")
    assert read_texts(kept) == read_texts(readme_page.record()), "docs/pictures is old (python tests/pages readme)"


def test_pictures_load_nothing():
    for path in readme_page.PICTURES.glob("*.svg"):
        loaded = re.findall(r"(?:href=|url\()['\"]?(\w+:)", path.read_text(encoding="utf-8"))
        assert set(loaded) <= {"data:"}, path.name
