"""The pages of docs/ as a site: index.md says which page is of which kind, links lead somewhere, and what `make
docs-site` builds needs no network."""

import importlib.util
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))


def read(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def strip_code(text: str) -> str:
    return re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)


def list_anchors(text: str) -> set[str]:
    """The anchors of headings, as a forge and MyST make them."""
    titles = re.findall(r"^#+ (.*)$", strip_code(text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.quick
def test_every_page_is_in_the_index_once():
    listed = re.findall(r"^- \[.*?\]\((.*?)\)", read("index.md"), re.MULTILINE)
    assert sorted(listed) == [page for page in PAGES if page != "index.md" and not page.startswith("choices/")]
    assert {page for page in PAGES if page.startswith("choices/")} <= set(re.findall(r"\]\((.*?)\)", read("axes.md")))


@pytest.mark.quick
@pytest.mark.parametrize("page", ["../README.md", "../CONTRIBUTING.md", *PAGES])
def test_every_link_leads_to_a_file_and_to_a_heading_of_it(page):
    here = DOCS / page
    for link in re.findall(r"\]\(([^)\s]+)\)", strip_code(read(page))):
        if urlsplit(link).scheme:
            continue
        path, _, anchor = link.partition("#")
        target = (here.parent / path) if path else here
        assert target.is_file(), f"{page}: {link}"
        assert not anchor or anchor in list_anchors(target.read_text(encoding="utf-8")), f"{page}: {link}"


class Links(HTMLParser):
    """What a page loads and links, and the anchors that it has."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.linked: list[str] = []
        self.anchors = {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        had = {name: value or "" for name, value in attrs}
        self.anchors.add(had.get("id", ""))
        if tag == "a" and "href" in had:
            self.linked.append(had["href"])
        elif tag == "link":
            self.loaded.append(had["href"])
        elif "src" in had:
            self.loaded.append(had["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    for name in ("sphinx", "furo", "myst_parser"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name} (pip install '.[docs]')")
    out = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", str(out / "trees"), str(DOCS)]
    done = subprocess.run([*build, str(out / "docs")], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr  # a warning is an error
    return out / "docs"


@pytest.mark.slow
def test_the_site_is_whole_and_needs_no_network(site):
    pages = {path: Links(path) for path in site.rglob("*.html")}
    assert {str(path.relative_to(site).with_suffix(".md")) for path in pages} >= set(PAGES)
    for path, page in pages.items():
        for link in [*page.loaded, *page.linked]:
            parts = urlsplit(link)
            if parts.scheme in ("https", "http"):
                assert link in page.linked and link not in page.loaded, f"{path.name} loads {link}"
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.exists(), f"{path.name}: {link}"
            assert target not in pages or parts.fragment in pages[target].anchors, f"{path.name}: {link}"
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import )['\"]?(https?:)?//", style.read_text(encoding="utf-8")), style.name


@pytest.mark.slow
def test_the_search_finds_words_of_every_page_from_its_files(site):
    text = (site / "searchindex.js").read_text(encoding="utf-8")  # a script, which a browser loads from file:// too
    index = json.loads(text.removeprefix("Search.setIndex(").removesuffix(")"))
    assert {f"{name}.md" for name in index["docnames"]} == set(PAGES)
    found = index["terms"]["muon"]
    assert "commands" in {index["docnames"][number] for number in ([found] if isinstance(found, int) else found)}


@pytest.mark.slow
def test_each_page_is_there_as_markdown_and_llms_txt_lists_them(site):
    assert all((site / page).read_bytes() == (DOCS / page).read_bytes() for page in PAGES)
    listed = (site / "llms.txt").read_text(encoding="utf-8")
    assert listed.startswith("# Zoo\n\n> Describe a transformer")
    links = re.findall(r"\]\((.*?)\)", listed)
    assert links and all((site / link).is_file() for link in links)
    assert set(links) == {page for page in PAGES if page != "index.md" and not page.startswith("choices/")}
