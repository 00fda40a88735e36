"""The gallery's pages in a browser: no violation of WCAG 2.2 AA that axe-core finds, and comparisons by script.

They need Chromium, and AXE naming axe.min.js (`npm pack axe-core`); without them they are skipped.
"""

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from zoo.compose.catalogue import read_models
from zoo.gallery import site as gallery

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
AXE = os.environ.get("AXE", "")
PAGES = ("index.html", "models/gpt-oss-20b.html", "axes/attention.html", "compare.html#llama3-8b,gpt-oss-20b")
PAGES += ("axes.html", "timeline.html", "findings.html", "published.html")
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
LOOK = """
addEventListener("load", async () => {
  for (const each of document.querySelectorAll("details")) each.open = true;
  const found = await axe.run(document, {runOnly: %s});
  const told = found.violations.map((each) => [each.id, each.nodes.map((node) => node.target.join(" ")).slice(0, 3)]);
  const shown = Object.assign(document.createElement("pre"), {id: "axe", textContent: JSON.stringify(told)});
  document.body.replaceChildren(shown);
});
"""

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A site of some models, to be looked at."""
    folder = tmp_path_factory.mktemp("looked")
    names = ("llama3-8b", "gpt-oss-20b", "t5-base", "bert-base", "kimi-linear-48b-a3b")
    with pytest.MonkeyPatch.context() as patch:
        packaged = [each for each in read_models() if each["name"] in names]
        patch.setattr(gallery, "read_models", lambda: packaged)
        patch.setattr(gallery, "list_axes", lambda: ("attention",))
        gallery.write_site(folder / "site")
    return folder / "site"


def open_page(address, home, *, dark=False, width=1280):
    """The page's document after its scripts have run."""
    options = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={home}",
        f"--window-size={width},900",
    ]
    options += ["--blink-settings=preferredColorScheme=0"] if dark else []
    command = [CHROMIUM, *options, "--virtual-time-budget=20000", "--dump-dom", f"file://{address}"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=280).stdout


@pytest.mark.skipif(not AXE, reason="AXE names no axe.min.js")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("page", PAGES)
def test_axe_finds_no_violation(page, dark, site, tmp_path):
    name, _, place = page.partition("#")
    text = (site / name).read_text(encoding="utf-8")
    script = f"<script>{Path(AXE).read_text(encoding='utf-8')}</script><script>{LOOK % json.dumps(RULES)}</script>"
    copy = (site / name).with_name("looked-at.html")
    copy.write_text(text.replace("</head>", f"{script}</head>"), encoding="utf-8")
    document = open_page(f"{copy}#{place}" if place else copy, tmp_path, dark=dark, width=390 if dark else 1280)
    found = re.search(r'<pre id="axe">(.*?)</pre>', document, re.DOTALL)
    assert found is not None
    assert json.loads(html.unescape(found[1])) == []


def test_models_are_compared_by_the_figures_of_their_pages(site, tmp_path):
    document = open_page(f"{site / 'compare.html'}#llama3-8b,gpt-oss-20b", tmp_path)
    cells = [re.sub(r"<[^>]+>", " ", each).split() for each in re.findall(r"<tr>(.*?)</tr>", document)]
    rows = {" ".join(each[:2]): each for each in cells}
    assert rows["cache of"] == ["cache", "of", "the", "context", "1.07", "GB", "3.22", "GB", "×3.00"]
    assert rows["parameters 8.03"] == ["parameters", "8.03", "B", "20.9", "B", "×2.60"]
    assert "fields that differ" in document and document.count('class="curve') == 2


def test_the_list_is_sorted_and_filtered(site, tmp_path):
    text = (site / "index.html").read_text(encoding="utf-8")
    typed = """<script>addEventListener("load", () => {
      document.getElementById("search").value = "GQA decoder"; document.getElementById("sort").value = 0;
      document.getElementById("controls").dispatchEvent(new Event("input")); });</script>"""
    copy = site / "typed.html"
    copy.write_text(text.replace("</head>", f"{typed}</head>"), encoding="utf-8")
    document = open_page(copy, tmp_path)
    rows = re.findall(r'<tr data-name="([^"]+)"( hidden="")?', document)
    assert [name for name, hidden in rows if not hidden] == ["gpt-oss-20b", "llama3-8b"]  # most parameters first
    assert {name for name, hidden in rows if hidden} == {"t5-base", "bert-base", "kimi-linear-48b-a3b"}
