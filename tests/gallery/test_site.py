"""The gallery's pages: whole, linked, self-contained, and with the figures of `zoo stats`."""

import fnmatch
import html
import json
import re
import shlex
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

import zoo
from zoo.checkpoint.inverse import try_family
from zoo.cli import run as run_zoo
from zoo.compose import load
from zoo.compose.catalogue import read_models
from zoo.families.family import read_family
from zoo.gallery import site as gallery
from zoo.gallery.charts import draw_effects
from zoo.gallery.family_facts import find_family, read_families, read_notes
from zoo.gallery.model_facts import collect_model, list_published
from zoo.grammar.vocabulary import list_axes
from zoo.report.forest_plot import DrawnEffect

SMALL = ("llama-tiny", "t5-tiny", "bert-base", "mamba2-130m", "gpt-oss-20b", "lfm2-1.2b")
AXES = ("norm", "head", "cross", "router")
VOID = {"meta", "link", "input", "br", "rect", "path", "circle", "polygon"}


class Page(HTMLParser):
    """A page as a browser reads it: its links and ids, the cells of its rows, and faults of its markup."""

    def __init__(self, file):
        super().__init__()
        self.file, self.open, self.faults = file, [], []
        self.links, self.loads, self.ids, self.rows = [], [], [], []
        self.feed(file.read_text(encoding="utf-8"))
        self.faults += [f"{tag} is never closed" for tag in self.open]

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found["href"]] if tag == "a" else []
        self.loads += [found[key] for key in ("src", "href") if key in found and tag != "a"]
        self.rows += [[]] if tag == "tr" else []
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> closes something else")

    def handle_data(self, data):
        if self.rows and self.rows[-1] and {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    @property
    def table(self):
        """Rows by their first cell, all cells stripped."""
        rows = [[" ".join(cell.split()) for cell in row] for row in self.rows if row]
        return {row[0]: row[1:] for row in rows}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A site of a few models and axes, and of a model of the user's own, in a folder that has the docs already."""
    folder = tmp_path_factory.mktemp("gallery")
    (folder / "site/docs").mkdir(parents=True)
    (folder / "site/docs/index.html").write_text("<p>Docs</p>", encoding="utf-8")
    mine = folder / "my <model>.yaml"
    mine.write_text("defaults: [/model/llama-tiny@_here_]\nn_layers: 3\n", encoding="utf-8")
    packaged = [each for each in read_models() if each["name"] in SMALL]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gallery, "read_models", lambda: packaged)
        patch.setattr(gallery, "list_axes", lambda: AXES)
        gallery.write_site(folder / "site", [str(mine)])
    return folder / "site"


@pytest.fixture(scope="module")
def pages(small):
    return {file.relative_to(small).as_posix(): Page(file) for file in small.rglob("*.html")}


STATES = {Path("compare.html"), Path("playground/index.html")}
"""Pages whose fragments are no places in them, but what they show."""


def find_broken(pages, root):
    """Links that lead nowhere, by page."""
    ids = {page.file.resolve(): set(page.ids) for page in pages.values()}
    broken = []
    for name, page in pages.items():
        for link in (*page.links, *page.loads):
            path, _, place = link.partition("#")
            file = (page.file.parent / path).resolve() if path else page.file.resolve()
            known = link.startswith("data:") or (file.is_file() and root.resolve() in file.parents)
            if not known or (
                place
                and file.suffix == ".html"
                and file.relative_to(root.resolve()) not in STATES
                and place not in ids[file]
            ):
                broken.append((name, link))
    return broken


def test_the_docs_that_are_beside_the_gallery_are_linked(pages):
    assert "../docs/index.html" in pages["models/llama-tiny.html"].links


def test_every_page_is_well_formed(pages):
    assert {name: page.faults for name, page in pages.items() if page.faults} == {}
    twice = {name: [each for each, count in Counter(page.ids).items() if count > 1] for name, page in pages.items()}
    assert {name: ids for name, ids in twice.items() if ids} == {}


def test_links_resolve_and_nothing_is_loaded_from_elsewhere(small, pages):
    assert find_broken(pages, small) == []
    plain = [file for file in small.rglob("*.*") if file.parent.name != "playground"]  # which says that it is served
    texts = {file.name: file.read_text(encoding="utf-8") for file in plain}
    loading = r"https?://(?!www\.w3\.org/)|url\((?!data:)|@import|fetch\(|XMLHttpRequest|<iframe|<img"
    assert {name: found for name, text in texts.items() if (found := re.findall(loading, text))} == {}


@pytest.mark.parametrize("name", SMALL)
def test_a_model_s_page_has_the_figures_of_zoo_stats(name, pages, capsys):
    assert run_zoo(["stats", name, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    page = pages[f"models/{name}.html"]
    for component, count in figures["params"]["by_component"].items():
        assert page.table[component.replace("_", " ")][0] == f"{count:,}"
    assert page.table["all"][0] == f"{figures['params']['total']:,}"
    assert f"{figures['params']['active']:,}" in page.file.read_text(encoding="utf-8")


def test_the_curve_of_each_engine_is_its_price(pages):
    head = pages["models/gpt-oss-20b.html"].table["tokens"]
    for tokens in (128, 4096, 131072):
        row = pages["models/gpt-oss-20b.html"].table[f"{tokens:,}"]
        priced = [zoo.stats("gpt-oss-20b", context=tokens, engine=each)["kv_cache"]["bytes"] for each in head]
        assert row == [f"{each:,}" for each in priced]
    assert head == ["ideal", "zoo", "hf", "paged"]


def test_the_batch_that_a_gpu_holds_is_that_of_zoo_solve(pages, capsys):
    words = "solve batch gpt-oss-20b --gpu h100 --context 8192 --cache-only --json"
    assert run_zoo(words.split()) == 0
    batch = json.loads(capsys.readouterr().out)["batch"]
    assert pages["models/gpt-oss-20b.html"].table["NVIDIA H100 SXM 80 GB"][:2] == ["1", f"{batch:,}"]
    room = collect_model("gpt-oss-20b", {}).list_holders()[0]
    assert room["gpu"].name == "t4" and room["count"] == 4  # its weights alone are 41.8 GB


def test_what_the_browser_compares_is_what_stats_prints(small):
    text = (small / gallery.FIGURES).read_text(encoding="utf-8")
    data = json.loads(text.removeprefix("const FIGURES = ").removesuffix(";\n"))
    paths = [each["path"] for each in data["columns"]]
    for model in data["models"][:-1]:
        priced = zoo.stats(model["name"])
        told = dict(zip(paths, model["figures"], strict=True))
        assert told["flops.forward"] == priced["flops"]["forward"]
        assert told["memory.train_peak"] == priced["memory"].get("train_peak")
        assert [pair[1] for pair in model["cache"]][-1:] in ([priced["kv_cache"]["bytes"]], [])


def test_a_user_s_model_has_a_page_beside_the_packaged_ones(small, pages):
    page = pages["models/my-model-.html"]
    assert page.table["all"] == [f"{zoo.stats('llama-tiny', ['n_layers=3'])['params']['total']:,}", "", ""]
    assert "n_layers: 3" in page.file.read_text(encoding="utf-8")
    assert "my &lt;model&gt;" in (small / "index.html").read_text(encoding="utf-8")


def test_the_commands_of_a_page_work_in_an_empty_folder(small, tmp_path, monkeypatch, capsys):
    text = html.unescape((small / "models/my-model-.html").read_text(encoding="utf-8"))
    shown = text.partition('aria-label="Commands"><code>')[2].partition("</code>")[0]
    commands = [line.removeprefix("zoo ") for line in shown.splitlines()]
    assert len(commands) == 7 and commands.pop() == "train mine.yaml"
    monkeypatch.chdir(tmp_path)
    for command in commands:
        assert run_zoo(shlex.split(command)) == 0, command
        assert capsys.readouterr().out.strip()


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    assert run_zoo(["gallery", str(tmp_path)]) == 2
    assert "exists and is not a gallery" in capsys.readouterr().err
    assert [each.name for each in tmp_path.iterdir()] == ["notes.txt"]


def test_a_published_figure_that_differs_says_why_and_an_equal_one_does_not():
    names = [each["model"] for each in read_notes()["published"]]
    rows = [row for name in names for row in list_published(name, load(name))]
    equal = read_notes()["reasons"]["equal"]
    assert len(rows) == 18
    for row in rows:
        assert (row["why"] == equal) == (abs(row["theirs"] / row["ours"] - 1) < 0.001), row
    assert max(row["theirs"] / row["ours"] for row in rows) == pytest.approx(17.7, abs=0.1)  # Gemma 4 12B at 128k


def test_each_published_model_has_a_family_and_its_lineage_ends():
    named = [each for each in read_models() if not each["note"].startswith("another name")]
    assert [each["name"] for each in named if find_family(each["name"]) is None] == []
    assert all(name in read_families() for name in read_notes()["families"].values())
    unused = [p for p in read_notes()["families"] if not any(fnmatch.fnmatchcase(m["name"], p) for m in named)]
    assert unused == []


def test_a_pattern_that_does_not_repeat_whole_is_said_folded_and_each_tower_has_its_depth():
    facts = {name: collect_model(name, {}) for name in ("gpt-oss-20b", "zamba-7b", "t5-tiny")}
    assert facts["gpt-oss-20b"].patterns == {"": "24: (local, global) × 12"}
    zamba = facts["zamba-7b"].patterns[""]
    counts = [int(each) for each in re.findall(r"\d+", zamba)]
    assert zamba.startswith("76: recurrent × 2, hybrid, recurrent × 4, (hybrid, recurrent × 5) × 11, hybrid")
    assert counts[0] == 2 + 1 + 4 + (1 + 5) * 11 + 1 + 2
    assert facts["t5-tiny"].depths == "2 + 2" and facts["zamba-7b"].depths == "76"


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("inkling-2-mini", "mixture of experts"),  # short convolutions in attention
        ("zaya1-8b", "mixture of experts"),
        ("lfm2-8b-a1b", "mixture of experts"),
        ("lfm2-350m", "decoder"),
        ("qwen3-next-tiny", "recurrent or hybrid"),
        ("falcon-h1-0.5b", "recurrent or hybrid"),
        ("t5-tiny", "encoder-decoder"),
    ],
)
def test_the_last_tokens_that_a_convolution_keeps_make_no_recurrent_model(name, group):
    assert gallery.group_model(collect_model(name, {})) == group


def test_no_line_of_the_findings_runs_through_a_label_and_a_far_difference_has_its_number():
    effects = [DrawnEffect(str(at), 0.1 * at, (0.1 * at - 0.05, 0.1 * at + 0.05), "worse", 0.02) for at in range(4)]
    drawn = draw_effects([*effects, DrawnEffect("far", -9.0, (-9.5, -8.5), "better")], "effects")
    labels = [float(y) for y in re.findall(r'class="effect-label" x="[^"]*" y="([^"]*)"', drawn)]
    lines = [tuple(map(float, each)) for each in re.findall(r'd="M[\d.]+ ([\d.]+)V([\d.]+)"', drawn)]
    assert len(labels) == 5 and len(lines) >= 5
    assert not [(y, line) for y in labels for line in lines if line[0] < y + 3 and line[1] > y - 10]
    assert f'y="{labels[-1]:.0f}" text-anchor="end">−9<' in drawn and ">◀<" in drawn  # no interval is in a label's row
    fixed = draw_effects([DrawnEffect("fixed", 0.1, (0.0, 0.2), "better", source=0.2, fixed_rate=True)], "effects")
    assert fixed.count(">◆<") == 1 and ">○<" in fixed and "◆" not in drawn


@pytest.mark.slow
def test_the_family_of_a_model_describes_it():
    """Its config.json, found by inverting the family, gives the model again."""
    failed = []
    for each in read_models():
        if each["note"].startswith("another name"):
            continue
        found, spec = find_family(each["name"]), load(each["name"])
        assert found is not None
        family = read_family(found.name)
        tried = (try_family(family, name, spec) for name in family.architectures)  # the first that describes it will do
        if not any(body is not None and not faults for _, body, faults in tried):
            failed.append(each["name"])
    assert failed == []


@pytest.mark.slow
def test_the_whole_site_has_every_model_and_axis_and_is_small(tmp_path):
    gallery.write_site(tmp_path / "site")
    pages = {file.relative_to(tmp_path / "site").as_posix(): Page(file) for file in tmp_path.rglob("*.html")}
    named = {each["name"] for each in read_models() if not each["note"].startswith("another name")}
    assert {Path(name).stem for name in pages if name.startswith("models/")} == named
    assert {Path(name).stem for name in pages if name.startswith("axes/")} == set(list_axes())
    assert {name: page.faults for name, page in pages.items() if page.faults} == {}
    assert find_broken(pages, tmp_path / "site") == []
    assert sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) < 25e6
