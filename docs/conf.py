"""Sphinx's settings for the site of these pages: `make docs-site`. index.md says which page is of which kind, and the
navigation, llms.txt and the Markdown beside the HTML follow from it."""

import re
import shutil
from pathlib import Path

HERE = Path(__file__).parent
INTRODUCTION, *KINDS = re.split(r"^## ", (HERE / "index.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
"""What index.md says first, and its sections: a title, then a line for each page."""

project = "Zoo"
extensions = ["myst_parser"]
exclude_patterns = ["bench", "k8s"]
myst_heading_anchors = 4
html_theme = "furo"  # its fonts are the reader's own, and it loads nothing from elsewhere
html_title = "Zoo"
html_copy_source = False  # write_plain puts the pages beside their HTML
html_show_sphinx = False
html_static_path: list[str] = []


def list_lines(kind: str) -> list[str]:
    """List the lines of a section of index.md, one for each page."""
    return re.findall(r"^- \[.*", kind, re.MULTILINE)


def name_page(line: str) -> str:
    """Write the entry of a line for the tree of pages: its words and its page."""
    return re.sub(r"^- \[(.*?)\]\((.*?)\.md\).*", r"\1 <\2>", line)


def add_navigation(app, page, source):
    """Put the tree of pages behind index.md, and those of the choices behind axes.md: on a forge they are lists."""
    trees = {"index": [(kind.splitlines()[0], [name_page(line) for line in list_lines(kind)]) for kind in KINDS]}
    trees["axes"] = [("", sorted(f"choices/{each.stem}" for each in (HERE / "choices").glob("*.md")))]
    for caption, links in trees.get(page, ()):
        options = ":hidden:\n" + (f":caption: {caption}\n" if caption else "")
        source[0] += "\n```{toctree}\n" + options + "\n" + "\n".join(links) + "\n```\n"


def write_plain(app, failed):
    """Write llms.txt, and each page as Markdown beside its HTML."""
    if failed or app.builder.name != "html":
        return
    out = Path(app.outdir)
    for page in app.env.found_docs:
        shutil.copyfile(HERE / f"{page}.md", out / f"{page}.md")
    title, said = INTRODUCTION.strip().split("\n", 1)
    quoted = "> " + " ".join(said.strip().partition("\n\n")[0].split())
    lists = [f"## {kind.splitlines()[0]}\n\n" + "\n".join(list_lines(kind)) for kind in KINDS]
    (out / "llms.txt").write_text("\n\n".join([title, quoted, *lists]) + "\n", encoding="utf-8")


def setup(app):
    app.connect("source-read", add_navigation)
    app.connect("build-finished", write_plain)
