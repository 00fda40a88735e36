"""Models beside each other, and sweeps: each point is what it is alone, and a thousand of them take seconds."""

from __future__ import annotations

import random
from typing import Any

import pytest

import zoo
from support.call_counts import calls_of
from support.packaged_specs import load, one_in
from zoo.analysis import compare
from zoo.compose import sweep_specs
from zoo.costs import price
from zoo.costs.params import count_parameters
from zoo.errors import ConfigError
from zoo.paths import conf_dir

NAMES = sorted(path.stem for path in (conf_dir() / "model").glob("*.yaml"))


def points(target: str, overrides: list[str]) -> list[Any]:
    """The points of a sweep."""
    return list(sweep_specs.read_points(target, overrides))


def alone(target: str, overrides: list[str]) -> tuple[object, list[str]]:
    """The Spec of one point composed by itself, or its faults."""
    try:
        return load(target, overrides), []
    except ConfigError as error:
        return None, error.faults


# ---------------------------------------------------------------- differences


def test_flat_names_every_leaf_by_its_path() -> None:
    assert compare.flatten({"a": {"b": 1, "c": [2, {"d": None}]}, "e": "x"}) == {
        "a.b": 1,
        "a.c.0": 2,
        "a.c.1.d": None,
        "e": "x",
    }


def test_what_only_one_model_has_stands_after_what_it_follows() -> None:
    assert compare.merge_orders([["a", "b", "d"], ["a", "c", "d", "e"]]) == ["a", "c", "b", "d", "e"]


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["layer"] * 32, "layer"),
        (["near"] * 5 + ["far"] + ["near"] * 5 + ["far"] + ["near"] * 2, "near*5, far"),
        (["dense", "moe", "moe"], "dense, moe*2"),
    ],
)
def test_a_pattern_is_the_shortest_stretch_that_repeats(names: list[str], text: str) -> None:
    assert compare.pattern_text(names) == text


def test_a_model_does_not_differ_from_itself() -> None:
    found = zoo.diff("llama3-8b", "llama3-8b")
    assert found["architecture"] == {}
    assert not any(row.get("delta") for row in found["figures"].values())


def test_a_difference_is_the_second_less_the_first() -> None:
    found = zoo.diff("llama3-8b", "gemma2-9b", batch=3)
    a, b = zoo.stats("llama3-8b", batch=3), zoo.stats("gemma2-9b", batch=3)
    total = found["figures"]["params.total"]
    assert (total["a"], total["b"]) == (a["params"]["total"], b["params"]["total"])
    assert total["delta"] == b["params"]["total"] - a["params"]["total"]
    assert total["relative"] == pytest.approx(b["params"]["total"] / a["params"]["total"] - 1)
    head = found["figures"]["params.by_component.head"]
    assert (head["a"], head["b"], head["delta"], head["relative"]) == (525_336_576, None, -525_336_576, -1)


def test_one_field_that_differs_is_the_only_one_named() -> None:
    both = load("llama3-8b", ["n_layers=4"]), load("llama3-8b", ["n_layers=4", "d_ff=1024"])
    assert compare.compare_fields(*both) == {"blocks.layer.ffn.d_ff": {"a": 14336, "b": 1024}}
    both = load("llama3-8b"), load("llama3-8b", ["n_layers=7"])
    assert compare.compare_fields(*both) == {"n_layers": {"a": 32, "b": 7}}


def test_kinds_of_layer_of_other_names_are_held_against_the_one_kind_there_is() -> None:
    found = compare.compare_fields(load("llama3-8b"), load("gemma2-9b"))
    assert found["blocks.layer/local.attention.window"] == {"a": None, "b": 4096}
    assert "blocks.layer/global.attention.window" not in found
    assert found["pattern"] == {"a": "layer", "b": "local, global"}


def test_a_decoder_is_held_against_the_decoder_of_two_towers() -> None:
    found = compare.compare_fields(load("gpt2"), load("t5-small"))
    assert found["n_layers"] == {"a": 12, "b": 6}
    assert found["encoder"] == {"a": None, "b": "6 layers"}
    assert found["blocks.layer.norm.kind"] == {"a": "layernorm", "b": "rmsnorm"}


@pytest.mark.parametrize("pair", [("bert-base", "t5-small"), ("t5-small", "t5-base"), ("mamba-130m", "mixtral-8x7b")])
def test_any_two_kinds_of_model_can_be_compared(pair: tuple[str, str]) -> None:
    found = zoo.diff(*pair)
    assert found["architecture"]
    assert found["figures"]["params.total"]["delta"]


def test_a_set_up_at_fault_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"batches: no field of a set-up .did you mean 'batch'"):
        zoo.stats("gpt2", batches=2)


# ---------------------------------------------------------------- sweeps


@pytest.mark.parametrize("name", one_in(3, random.Random(0).sample(NAMES, 8)))
def test_a_point_of_a_sweep_is_what_it_is_alone(name: str) -> None:
    grid = ["vocab_size=1000,2000,3000", "n_layers=2,4,0,13", "rope_theta=100.5,5000", "d_model=512,768"]
    found = points(name, grid)
    assert len(found) == 48
    for point in random.Random(1).sample(found, 6):
        assert (point.spec, point.faults) == alone(name, point.overrides)


def test_choices_fields_and_refused_points_mix() -> None:
    grid = ["attention=mha,gqa,mla,none", "norm=rmsnorm,layernorm", "n_heads=8,16,7", "attention.softcap=null,30.0,50"]
    found = points("llama3-8b", grid)
    assert len(found) == 72
    assert any(point.faults for point in found)
    assert any(point.spec for point in found)
    for point in random.Random(2).sample(found, 20):
        assert (point.spec, point.faults) == alone("llama3-8b", point.overrides)


def test_a_sweep_is_written_in_hydras_grammar() -> None:
    grid = ["attention=glob(m*,exclude=[ma*,mls*])", "n_layers=range(2,5)", "d_ff=choice(64,128)"]
    found = points("llama-tiny", grid)
    assert [point.swept for point in found[:2]] == [
        {"attention": "mha", "n_layers": "2", "d_ff": "64"},
        {"attention": "mha", "n_layers": "2", "d_ff": "128"},
    ]
    assert {point.swept["attention"] for point in found} == {"mha", "mla", "mqa", "msa"}
    assert len(found) == 24


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("n_layers=interval(1,4)", "n_layers=interval.*: an interval is for a sampler"),
        ("attention=glob(x*)", "attention=glob.*: sweeps over nothing"),
        ("attention", "attention: not an override"),
    ],
)
def test_a_sweep_that_lists_nothing_is_refused(override: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        points("gpt2", [override])


@pytest.mark.slow
def test_a_point_of_a_grid_takes_an_eighth_of_the_work_that_it_is_alone() -> None:
    grid = ["attention=mha,gqa,mqa", "n_heads=8,16,32", "n_layers=range(4,32,4)", "d_ff=range(1024,17408,1024)"]
    specs: list[Any] = []
    work = calls_of(lambda: specs.extend(point.spec for point in points("llama3-8b", grid)))
    assert len(specs) == 3 * 3 * 7 * 16
    assert len({count_parameters(spec)["total"] for spec in specs}) > 500
    load("llama3-8b", ["attention=mqa"])  # what is read once for a process is read by now
    alone = calls_of(lambda: load("llama3-8b", ["attention=gqa", "n_heads=16", "n_layers=8", "d_ff=4096"]))
    assert work / len(specs) < alone / 8


def test_columns_are_found_by_short_names_and_by_paths() -> None:
    known = list(compare.flatten(price(load("gpt2"))))
    assert compare.choose_columns(["kv", "flops", "memory.weights"], known) == {
        "kv": "kv_cache.bytes",
        "flops": "flops.train",
        "memory.weights": "memory.weights",
    }
    with pytest.raises(ConfigError, match=r"columns: no figure is called 'parms' .did you mean 'params'"):
        compare.choose_columns(["parms"], known)


def test_kinds_of_other_names_are_paired_by_what_they_are() -> None:
    own = ["layers={local: {attention: sliding, window: 8}}", "pattern=[local, layer]"]
    named = ["layers={local: {attention: sliding, window: 8}, global: {n_kv_heads: 1}}", "pattern=[local, global]"]
    found = compare.compare_fields(load("llama-tiny", own), load("llama-tiny", named))
    assert {path.split(".")[1] for path in found if path.startswith("blocks.")} == {"layer/global"}
    assert found["blocks.layer/global.attention.n_kv_heads"]["b"] == 1
    mixers = ["layers={fast: {attention: mamba2}, slow: {}}", "pattern=[fast, slow]"]
    others = ["layers={ssm: {attention: mamba2}, full: {}}", "pattern=[full, ssm]", "d_ff=384"]
    found = compare.compare_fields(load("llama-tiny", mixers), load("llama-tiny", others))
    assert {path.split(".")[1] for path in found if path.startswith("blocks.")} == {"fast/ssm", "slow/full"}


def test_a_kind_that_is_left_over_is_compared_with_the_one_most_like_it() -> None:
    found = compare.compare_fields(load("gemma2-9b"), load("llama3-8b"))
    kinds = {path.split(".")[1] for path in found if "blocks." in path}
    assert kinds == {"local/layer", "global/layer"}


def test_figures_of_kinds_of_layer_are_paired_as_the_fields_are() -> None:
    own = ["layers={local: {attention: sliding, window: 8}}", "pattern=[local, layer]"]
    named = ["layers={local: {attention: sliding, window: 8}, global: {n_kv_heads: 1}}", "pattern=[local, global]"]
    both = [load("llama-tiny", each) for each in (own, named)]
    first, second = compare.pair_figures(*both, [price(spec) for spec in both])
    assert (
        list(first["params"]["by_layer_kind"]) == list(second["params"]["by_layer_kind"]) == ["local", "layer/global"]
    )
    rows = compare.compare_specs(*both, [first, second])["figures"]
    change = rows["params.by_layer_kind.layer/global.total"]["delta"]
    assert change == count_parameters(both[1])["total"] - count_parameters(both[0])["total"]  # in that kind alone


def test_one_kind_against_two_is_paired_by_layer_and_not_in_sums() -> None:
    both = [load("llama3-8b"), load("gemma2-9b")]
    first, second = compare.pair_figures(*both, [price(spec) for spec in both])
    assert set(first["memory"]["activations_by_layer"]) == {"layer/local", "layer/global"}
    assert first["memory"]["activations_by_layer"].keys() == second["memory"]["activations_by_layer"].keys()
    assert set(first["params"]["by_layer_kind"]) == {"layer"}


@pytest.mark.parametrize(
    ("pair", "names"),
    [(("gpt2", "t5-small"), "layer/decoder.layer"), (("t5-small", "bert-base"), "encoder.layer/layer")],
)
def test_a_model_of_one_tower_is_paired_with_the_tower_of_its_kind(pair: tuple[str, str], names: str) -> None:
    both = [load(name) for name in pair]
    assert all(
        names in each["params"]["by_layer_kind"] for each in compare.pair_figures(*both, [price(s) for s in both])
    )
