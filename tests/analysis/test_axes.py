"""`zoo list --axis` and docs/axes.md: what is said of each choice is read off the choice."""

from __future__ import annotations

import functools
import json
import re
import shlex

import pytest

from pages import axes_page
from pages.axis_switches import list_switches
from support.packaged_specs import load, one_in
from zoo.analysis.axes import describe_axis, list_axes
from zoo.cli import run
from zoo.compose.catalogue import read_bodies
from zoo.compose.targets import Composer, list_packaged, read_unpublished, spec_of_composed
from zoo.grammar import vocabulary
from zoo.model.attention.base import Attention
from zoo.model.attention.gqa import GQA
from zoo.spec import Spec

pytestmark = pytest.mark.xdist_group("axes")  # all of it is described once


@functools.cache
def listed(axis):
    return describe_axis(axis)


def described(axis):
    return {each["choice"]: each for each in listed(axis)}


@pytest.mark.parametrize(
    ("choice", "time", "token", "cache"),
    [
        ("gqa", "T²", "T", "T"),
        ("mla", "T²", "T", "T"),
        ("sliding", "T", "1", "window"),
        ("mamba", "T", "1", "constant"),
        ("gated_delta", "T", "1", "constant"),
        ("side_by_side", "T²", "T", "T + constant"),
        ("hca", "T²", "T", "T + constant"),
        ("cca", "T²", "T", "T + constant"),
        ("disentangled", "T²", "-", "-"),
    ],
)
def test_the_cost_of_an_attention_is_that_of_its_formulas(choice, time, token, cache):
    found = described("attention")[choice]
    assert (found["time"], found["token"], found["cache"]) == (time, token, cache)


NO_SOURCE = "No published source."
"""What the docstring of a choice says that comes from no paper, so that none is forgotten."""


def test_every_attention_names_its_paper_or_says_that_it_has_none_and_every_axis_its_choices():
    unnamed = [each for each in described("attention").values() if not each["source"]]
    assert [each["choice"] for each in unnamed if NO_SOURCE not in (Attention.kinds[each["kind"]].__doc__ or "")] == []
    assert described("attention")["mqa"]["source"].startswith("Shazeer, 2019")
    assert described("attention")["dsa"]["source"] == "DeepSeek-V3.2, 2025"
    assert described("attention")["msa"]["source"] == "MiniMax-M3, 2026"
    assert {axis: len(described(axis)) for axis in list_axes()}.keys() >= {"attention", "router", "cross"}


@pytest.mark.parametrize("name", ["gpt2", "mixtral-8x7b", "deepseek-v2-lite", "deberta-v3-base", "qwen3-next-tiny"])
def test_a_model_is_listed_at_the_kinds_that_its_spec_has(name):
    spec = load(name)
    for axis in ("attention", "norm", "block"):
        kinds = {each["kind"] for each in listed(axis) if name in each["models"]}
        blocks = list(spec.blocks.values())
        built = {"norm": [spec.norm], "block": blocks, "attention": [block.attention for block in blocks]}[axis]
        assert kinds >= {each.kind for each in built}, axis
    assert set(read_bodies()) == set(list_packaged())


def test_a_dense_model_is_listed_at_no_router():
    assert not any("gpt2" in each["models"] for each in listed("router"))
    assert "mixtral-8x7b" in described("router")["softmax_topk"]["models"]


def test_the_list_gives_every_name_as_json(capsys):
    assert run(["list", "--axis", "router", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {each["choice"]: each["families"] for each in found}["sparsemixer"] == ["phimoe"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--axis", "atention"], "axis: there is no 'atention' (did you mean 'attention'?)"),
        (["llama", "--axis", "norm"], "axis: norm has no choice 'llama' (one of: "),
        (["gqa", "--axis", "atention"], "axis: there is no 'atention' (did you mean 'attention'?)"),
        (["a", "b", "--axis", "norm"], "axis: lists the choices of norm, not models"),
        (["--kind", "decoder", "--axis", "norm"], "axis: lists the choices of norm, not models"),
    ],
)
def test_what_cannot_be_listed_is_said_in_one_line(capsys, words, line):
    assert run(["list", *words]) == 2
    assert line in capsys.readouterr().err


def test_the_page_of_a_choice_has_all_of_its_fields(capsys):
    assert run(["list", "--axis", "attention", "gqa", "--json"]) == 0
    fields = [each["field"] for each in json.loads(capsys.readouterr().out)["fields"]]
    assert {each for each in fields if "." not in each} == {field.name for field in GQA.fields()}
    assert {"qk_norm.over", "values.tied", "gate.bias"} <= set(fields)


def test_the_page_of_axes_is_what_its_command_writes(monkeypatch):
    monkeypatch.setattr(axes_page, "describe_axis", listed)
    monkeypatch.setattr(axes_page, "switched", read_switched)  # which the next tests hold
    assert axes_page.PAGE.read_text(encoding="utf-8") == axes_page.page(), "docs/axes.md is old (make docs)"


def read_switched():
    """The rows of docs/axes.md's second list, by axis."""
    found = {}
    for part in axes_page.PAGE.read_text(encoding="utf-8").partition(axes_page.OPTIONS)[2].split("### ")[1:]:
        axis, *lines = part.strip().splitlines()
        cells = [re.split(r"(?<!\\) \| ", line.removeprefix("| ").removesuffix(" |")) for line in lines[3:]]
        found[axis] = [tuple(each) for each in cells]
    return found


SWITCHED = [(axis, row) for axis, rows in read_switched().items() for row in rows]


@pytest.mark.parametrize("row", one_in(6, [row for _, row in SWITCHED]), ids=lambda row: row[1])
def test_an_override_of_the_page_switches_its_field_on(row):
    (override,), (target, *overrides) = (shlex.split(each.strip("`")) for each in row[1:3])
    off, on = (spec_of_composed(Composer(target).compose([*overrides, *own])) for own in ([], [override]))
    field = row[0].strip("`")
    before, after = (
        [value for each in list_specs(spec) if (value := getattr(each, field, None)) not in (None, False)]
        for spec in (off, on)
    )
    assert len(after) > len(before) or (len(after) == len(before) and after != before)


def list_specs(node):
    if isinstance(node, Spec):
        yield node
        for field in node.fields():
            yield from list_specs(getattr(node, field.name))
    elif isinstance(node, dict):
        for each in node.values():
            yield from list_specs(each)


def test_what_people_switch_on_is_said_as_they_say_it():
    said = {row[1].strip("`") for _, row in SWITCHED}
    assert said >= {
        *("attention.qk_norm=rmsnorm", "attention.sinks=true", "attention.gate=sigmoid", "attention.softcap=50.0"),
        *("attention.out_norm=rmsnorm", "attention.tempering=scalable_softmax", "head.softcap=30.0", "prefix_lm=true"),
    }


@pytest.mark.parametrize("axis", one_in(99, ["head", *(each for each in vocabulary.list_axes() if each != "head")]))
def test_every_optional_field_is_on_the_page(axis):
    rows = [axes_page._row(each) for each in list_switches(axis)]
    assert read_switched().get(f"{axis}: options", []) == rows


@pytest.mark.parametrize(
    "name", ["claude", "Claude-3.5-Sonnet", "gpt-4", "gpt4o", "GPT-5", "gemini-pro", "grok", "o1", "o3-mini"]
)
def test_a_model_that_was_never_published_is_said_to_be_so(capsys, name):
    assert run(["stats", name]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "never published its architecture" in lines[0] and "nearest here: " in lines[0]


def test_other_names_are_not_taken_for_unpublished_ones(capsys):
    assert run(["stats", "gpt-40"]) == 2 and run(["stats", "o12"]) == 2
    assert "never published" not in capsys.readouterr().err
    assert {name for each in read_unpublished().values() for name in each["nearest"]} <= set(list_packaged())
