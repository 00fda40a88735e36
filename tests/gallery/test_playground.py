"""The playground's page shows a price without a network, and what it computes equals `zoo stats --json`."""

import json
import random
import re
import shutil
import statistics
import subprocess
from pathlib import Path

import pytest

import zoo
from zoo.compose.catalogue import read_models
from zoo.errors import ConfigError
from zoo.gallery.playground import pyodide
from zoo.gallery.playground.assembling import write_page, write_parts
from zoo.gallery.playground.form_data import list_form
from zoo.gallery.playground.yaml_edit import edit_text

HERE = Path(__file__).parent
COUNT = 1_000


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A site with the playground's page alone."""
    folder = tmp_path_factory.mktemp("site")
    write_page(folder, version="0")
    return folder


def test_the_page_shows_an_exact_price_before_anything_computes(site):
    data = json.loads((site / "playground/data.js").read_text().removeprefix("const DATA = ").removesuffix(";\n"))
    assert data["first"]["figures"] == json.loads(json.dumps(zoo.stats("llama3-8b")))
    assert data["first"]["drawing"].startswith("<svg")
    assert {each["name"] for each in data["form"]["models"]} == {each["name"] for each in read_models()}


def test_the_page_loads_nothing_from_elsewhere(site):
    for file in (site / "playground").iterdir():
        loaded = re.findall(r"""(?:src|href|import|from|url\()\s*=?\s*["'(]?(https?://[^"')\s]+)""", file.read_text())
        assert loaded == [], file.name
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', (site / "playground/index.html").read_text())[1]
    allowed = {rule.split()[0]: rule.split()[1:] for rule in policy.split("; ")}
    assert allowed["default-src"] == allowed["connect-src"] == ["'self'"]
    assert allowed["script-src"] == ["'self'", "'wasm-unsafe-eval'"]


def test_each_choice_of_an_axis_is_offered_with_its_fields():
    form = list_form()
    assert "mla" in form["axes"]["attention"]["choices"]
    fields = {each["name"]: each for each in form["fields"]["attention.gqa"]}
    assert fields["bias"]["options"] == [True, False, "qkv", "o"]
    assert fields["softcap"] == {"name": "softcap", "what": fields["softcap"]["what"], "default": "null", "free": True}
    assert "gate.over" in fields
    for axis, each in form["axes"].items():
        assert all(f"{axis}.{choice['kind']}" in form["fields"] for choice in each["choices"].values())


def test_files_that_are_not_pyodides_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"has no pyodide\.mjs"):
        write_parts(tmp_path, tmp_path)
    for name in pyodide.FILES:
        (tmp_path / name).write_text("other")
    with pytest.raises(ConfigError, match="its hash differs"):
        write_parts(tmp_path, tmp_path)


def test_files_that_cannot_be_fetched_are_told_in_a_line(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match=r"cannot be fetched, npm: .*--pyodide FOLDER"):
        pyodide.find_pyodide()


# ---------------------------------------------------------------- a thousand points


def draw_requests(count):
    """Draw requests: a packaged model, one to three changes of its axes, fields and sizes, and a set-up."""
    form, dice = list_form(), random.Random(38)
    models = [each["name"] for each in form["models"]]
    for _ in range(count):
        text = f"defaults: [/model/{dice.choice(models)}@_here_]\n"
        for _ in range(dice.randint(1, 3)):
            text = edit_text(text, *_draw_change(form, dice))
        setup = {name: dice.choice(values) for name, values in form["setup"].items() if values and dice.random() < 0.2}
        setup |= {"batch": dice.randint(1, 64)} if dice.random() < 0.3 else {}
        yield {"text": text, "setup": setup | ({"context": 2 ** dice.randint(4, 17)} if dice.random() < 0.3 else {})}


def _draw_change(form, dice):
    axis = dice.choice(["attention", "position", "norm", "block", "ffn", "router", "activation"])
    if dice.random() < 0.5:
        return [axis], dice.choice([*form["axes"][axis]["choices"]])
    if dice.random() < 0.5:
        key = dice.choice(
            ["n_layers", "n_heads", "n_kv_heads", "d_ff", "head_dim", "vocab_size", "window", "max_seq_len"]
        )
        return [key], 2 ** dice.randint(2, 13)
    fields = [each for kind, rows in form["fields"].items() if kind.startswith(f"{axis}.") for each in rows]
    field = dice.choice([each for each in fields if each.get("options")] or fields)
    return [axis, *field["name"].split(".")], dice.choice(field.get("options", [64]))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_browsers_python_prices_a_thousand_points_as_zoo_stats_does(site, tmp_path, monkeypatch):
    if shutil.which("node") is None:
        pytest.skip("takes Node")
    try:
        parts = pyodide.find_pyodide()
    except ConfigError as error:
        pytest.skip(str(error))
    write_parts(site, None)
    requests = list(draw_requests(COUNT))
    (tmp_path / "requests.json").write_text(json.dumps(requests))
    files = [site / "playground", tmp_path / "requests.json", tmp_path / "answers.json"]
    subprocess.run(["node", HERE / "run_points.mjs", parts, *files], check=True)
    answers = json.loads((tmp_path / "answers.json").read_text())
    monkeypatch.chdir(tmp_path)
    priced = 0
    for request, found in zip(requests, answers["found"], strict=True):
        answer = found["answer"]
        Path("model.yaml").write_text(request["text"])
        try:
            expected = json.loads(json.dumps(zoo.stats(Path("model.yaml"), **request["setup"])))
        except ConfigError as error:
            assert [each["text"] for each in answer["faults"]] == error.faults, request
            continue
        assert answer.get("figures") == expected, (request, answer.get("faults"))
        priced += 1
    assert priced > COUNT / 4
    seconds, times = [each["seconds"] for each in answers["found"]], answers["times"]
    print(f"{COUNT:,} points: {priced:,} priced, {COUNT - priced:,} refused in the same words")
    print(f"processor seconds: {times}; a point {statistics.median(seconds):.2f} (median), {max(seconds):.2f} (most)")
