"""`zoo solve`: what it says fits does, one more does not, and a shape costs what a model of its overrides does."""

from __future__ import annotations

import dataclasses
import random

import pytest

import zoo
from support.packaged_specs import load
from support.tiny_models import MIXED, spec_of
from zoo.analysis.solve import (
    Room,
    ShapeBudget,
    find_fewest_gpus,
    find_largest_batch,
    find_largest_context,
    find_smaller_caches,
    solve_shapes,
)
from zoo.analysis.solve.bisection import find_crossing, find_reach
from zoo.analysis.solve.largest_fit import price_memory
from zoo.compose.targets import list_packaged
from zoo.costs import Setup, price
from zoo.costs.cache_sizes import kv_cache
from zoo.costs.generating import generating
from zoo.costs.hardware import hardware
from zoo.errors import ConfigError

KINDS = {
    "llama": [],
    "window": ["attention=sliding"],
    "mixed": MIXED,
    "mla": ["attention=mla"],
    "moe": ["ffn=moe"],
    "mamba": ["attention=mamba", "position=none"],
    "delta": ["attention=gated_delta", "position=none"],
}


def spec_for(kind: str):
    return load("t5-small") if kind == "t5" else spec_of(KINDS[kind])


def room_for(gpu: str) -> Room:
    return Room(memory=hardware(gpu).memory, gpu=gpu)


def peak(spec, setup: Setup, train: bool, prefill: bool = True) -> int:
    """Bytes as `zoo stats` has them."""
    figures = price(spec, setup)
    memory = figures["memory"]
    if train:
        return memory["train_peak"]
    return memory["generate_peak"] if prefill else memory["weights"] + figures["kv_cache"]["bytes"]


# ---------------------------------------------------------------- searching


def growing(chance: random.Random) -> list[float]:
    """A figure by its argument: steps, stretches that are flat, and bends."""
    rises = [chance.choice((0.0, 0.01, chance.random(), 9.0)) * chance.choice((1, 0.05)) for _ in range(80)]
    return [0.2 + sum(rises[: n + 1]) / 4 for n in range(80)]


def test_a_crossing_is_where_counting_up_finds_it() -> None:
    chance = random.Random(0)
    for _ in range(500):
        values, (low, high) = growing(chance), sorted(chance.choices(range(1, 80), k=2))
        held = [n for n in range(low, high + 1) if values[n] <= 1]
        assert find_crossing(values.__getitem__, low, high) == max(held, default=low - 1)
        held = [n for n in range(1, high + 1) if values[n] <= 1]
        assert find_reach(values.__getitem__, high) == max(held, default=0)


def test_a_straight_line_takes_few_looks_and_a_bent_one_not_many() -> None:
    def looks(figure) -> int:
        seen = set()

        def look(at: int) -> float:
            seen.add(at)
            return figure(at)

        assert figure(found := find_reach(look, 1 << 24)) <= 1 < figure(found + 1)
        return len(seen)

    assert looks(lambda n: (16e9 + 1.07e9 * n) / 75e9) <= 5
    assert looks(lambda n: (16e9 + 1.3e5 * n) / 75e9) <= 5
    assert looks(lambda n: (16e9 + 1.3e5 * n + 2 * n * n) / 75e9) <= 30
    assert looks(lambda n: (16e9 + 1.3e5 * (n + min(n, 4096) + -(-n // 16) * 16)) / 75e9) <= 30


# ---------------------------------------------------------------- batch and context


@pytest.mark.parametrize(("gpu", "batch"), [("h100", 55), ("h200", 110), ("l40s", 24), ("rtx-5090", 12)])
def test_llama_3_8b_takes_as_many_sequences_as_worked_out_by_hand(gpu: str, batch: int) -> None:
    """floor((0.9 × memory − 1.5 GB − 16.06 GB of weights) / 1.074 GB of cache at 8k tokens)."""
    answer = find_largest_batch(load("llama3-8b"), Setup(), room_for(gpu), prefill=False)
    assert answer["batch"] == batch
    by_hand = (0.9 * hardware(gpu).memory - 1.5e9 - 2 * 8030261248) / (2 * 32 * 8 * 128 * 2 * 8192)
    assert int(by_hand) == batch


def test_reading_the_prompts_takes_room_from_the_batch() -> None:
    spec, room = load("llama3-8b"), room_for("h100")
    whole, cache_only = (find_largest_batch(spec, Setup(), room, prefill=prefill) for prefill in (True, False))
    assert whole["batch"] < cache_only["batch"]
    assert set(whole["needed"]) - set(cache_only["needed"]) == {"prefill"}


def a_case(chance: random.Random, kind: str):
    spec, train = spec_for(kind), chance.random() < 0.4
    setup = Setup(
        batch=chance.randint(1, 4),
        context=chance.randint(1, 200),
        dtype=chance.choice(("fp32", "bf16")),
        cache_dtype=chance.choice((None, "fp8")),
        engine=chance.choice(("ideal", "hf", "paged")),
    )
    return spec, setup, train, train or chance.random() < 0.5


@pytest.mark.parametrize(
    "kind",
    [
        "llama",
        "mixed",
        *(pytest.param(each, marks=pytest.mark.slow) for each in KINDS if each not in ("llama", "mixed")),
    ],
)
@pytest.mark.parametrize("name", ["batch", "context"])
def test_the_answer_fits_and_one_more_does_not(name: str, kind: str) -> None:
    chance = random.Random(f"{name} {kind}")
    solve = {"batch": find_largest_batch, "context": find_largest_context}[name]
    for _ in range(6):
        spec, setup, train, prefill = a_case(chance, kind)
        memory = round(peak(spec, setup, train, prefill) * chance.uniform(0.9, 6))
        room = Room(memory=memory, usable=1, runtime=0)
        answer = solve(spec, setup, room, train=train, prefill=prefill, most=5000)

        def takes(value: int, spec=spec, setup=setup, train=train, prefill=prefill) -> int:
            return peak(spec, dataclasses.replace(setup, **{name: value}), train, prefill)

        found = answer[name]
        assert answer["fits"] == (found > 0)
        assert found == 0 or takes(found) <= memory
        assert found == 5000 or takes(found + 1) > memory
        assert answer["needed"]["total"] == takes(max(found, 1))
        assert found in (0, 5000) or answer["one_more"]["total"] == takes(found + 1)
        assert found > 0 or answer["short"] == takes(1) - memory
        assert sum(answer["needed"][part] for part in answer["at_peak"]) == answer["needed"]["total"]


@pytest.mark.slow
def test_a_small_answer_is_the_one_that_trying_every_batch_finds() -> None:
    chance = random.Random(3)
    for kind in KINDS:
        spec, setup, train, prefill = a_case(chance, kind)
        room = Room(memory=round(3 * peak(spec, setup, train, prefill)), usable=0.8, runtime=1000)
        fitting = [
            batch
            for batch in range(1, 30)
            if peak(spec, dataclasses.replace(setup, batch=batch), train, prefill) <= 0.8 * room.memory - 1000
        ]
        answer = find_largest_batch(spec, setup, room, train=train, prefill=prefill, most=29)
        assert answer["batch"] == max(fitting, default=0)


def test_more_room_never_takes_less_and_more_sequences_are_never_longer() -> None:
    spec = load("gemma2-2b")
    batches = [find_largest_batch(spec, Setup(), Room(memory=gb * 10**9))["batch"] for gb in (12, 16, 24, 48, 80, 141)]
    assert batches == sorted(batches) and batches[0] < batches[-1]
    room = Room(memory=48 * 10**9)
    contexts = [find_largest_context(spec, Setup(batch=batch), room)["context"] for batch in (1, 2, 5, 20, 100)]
    assert contexts == sorted(contexts, reverse=True) and contexts[0] > contexts[-1]


def test_windows_that_are_full_leave_the_longest_context_to_the_layers_that_see_all() -> None:
    """Half of Gemma 2's layers keep 4,096 tokens at most: beyond, a token costs the other half alone."""
    spec, room = load("gemma2-9b"), Room(memory=80 * 10**9)
    answer = find_largest_context(spec, Setup(), room, prefill=False)
    a_layer = 2 * 8 * 256 * 2
    left = room.bytes - 2 * 9241705984 - 21 * 4096 * a_layer
    assert answer["context"] == left // (21 * a_layer)


def test_a_context_past_the_trained_one_is_said_to_be_and_a_table_of_positions_ends_the_search() -> None:
    room = Room(memory=80 * 10**9)
    (note,) = find_largest_context(load("llama3-8b"), Setup(), room)["notes"]
    assert "max_seq_len is 8,192" in note
    answer = find_largest_context(load("gpt2"), Setup(), room)
    assert answer["context"] == 1024 and "1,024" in answer["notes"][0]
    answer = find_largest_context(load("llama3-8b"), Setup(), room, most=5000)
    assert answer["context"] == 5000 and answer["notes"] == ["searched no further than 5,000"]


def test_what_binds_is_what_one_more_sequence_takes_most_of() -> None:
    room = room_for("h100")
    assert find_largest_batch(load("llama3-8b"), Setup(), room)["binds"] == "kv_cache"
    assert find_largest_batch(load("deepseek-v2-lite"), Setup(context=64), room)["binds"] == "prefill"
    assert find_largest_batch(load("llama3-70b"), Setup(), room)["binds"] == "weights"


def test_an_encoder_is_fitted_for_training_alone() -> None:
    spec, room = load("bert-base"), room_for("l4")
    with pytest.raises(ConfigError, match="generates nothing"):
        find_largest_batch(spec, Setup(), room)
    assert find_largest_batch(spec, Setup(), room, train=True)["batch"] > 1


def test_a_room_of_nothing_is_refused() -> None:
    for wrong, word in (({"memory": 10**9}, "memory"), ({"memory": 10**11, "usable": 1.2}, "usable")):
        with pytest.raises(ConfigError, match=f"^{word}: "):
            Room(**wrong)


# ---------------------------------------------------------------- GPUs


@pytest.mark.parametrize("train", [False, True])
def test_the_fewest_gpus_hold_it_and_the_layout_before_did_not(train: bool) -> None:
    spec = load("llama3.2-3b")
    rooms = [room_for(gpu) for gpu in ("t4", "l4", "l40s", "h100", "b200")]
    rows = find_fewest_gpus(spec, Setup(context=2048), rooms, train=train)
    assert {row["room"]["gpu"] for row in rows} == {room.gpu for room in rooms}
    order = [(not row["fits"], row["memory_total"]) for row in rows]
    assert order == sorted(order)
    for row in rows:
        layout = {key: row[key] for key in ("tp", "dp", "zero") if key in row}
        assert row["needed"] == price_memory(spec, Setup(context=2048, **layout), train=train)
        assert row["fits"] == (row["needed"]["total"] <= row["room"]["bytes"])
        assert row["memory_total"] == row["gpus"] * row["room"]["memory"]
        if row["fits"] and row["gpus"] > 1:
            fewer = Setup(context=2048, **({"dp": row["gpus"] // 2, "zero": 3} if train else {"tp": row["gpus"] // 2}))
            assert price_memory(spec, fewer, train=train)["total"] > row["room"]["bytes"]


@pytest.mark.parametrize(
    "model", ["llama3-8b", "gemma2-2b", "mixtral-8x7b", "deepseek-v2-lite", "t5-small", "mamba-130m"]
)
def test_one_gpu_takes_what_stats_says_and_several_share_it(model: str) -> None:
    spec = load(model)
    for setup in (Setup(), Setup(batch=5, context=300, dtype="fp32", engine="paged")):
        one = generating(spec, setup)
        assert one["total"] == price(spec, setup)["memory"]["generate_peak"]
        for tp in (2, 4):
            each = generating(spec, dataclasses.replace(setup, tp=tp))
            assert each["weights"] * tp >= one["weights"]  # norms and routers are on every rank, little as they are
            assert each["weights"] * tp < 1.06 * one["weights"]
            whole_latent = model == "deepseek-v2-lite"
            assert each["kv_cache"] == one["kv_cache"] // (1 if whole_latent else tp)
            # A rank has every token's whole stream: where routed tokens are laid out for experts it saves nothing.
            # While an encoder reads, what will be made of its output is not there yet: the cache counts as room.
            at_once = [found["prefill"] + found["kv_cache"] for found in (each, one)]
            assert at_once[0] < at_once[1] or (whole_latent and at_once[0] == at_once[1])


def test_a_division_that_the_heads_do_not_take_is_passed_over() -> None:
    """Gemma 3's 4 query heads are not divided by 8."""
    (row,) = find_fewest_gpus(load("gemma3-1b"), Setup(), [Room(memory=400 * 10**6, usable=1, runtime=0)])
    assert not row["fits"] and row["gpus"] == 4
    assert "8" in row["refused"]


# ---------------------------------------------------------------- shapes


RECIPES = [
    ("llama", [], 1e9),
    ("llama", ["head.tied=true", "head_dim=64"], 1.2e8),
    ("llama", ["attention=mla"], 2e9),
    ("gpt2", [], 3e8),
    ("t5-small", [], 1e8),
    ("mamba-130m", [], 1e9),
    ("gemma2-2b", [], 3e9),
    ("deepseek-v2-lite", [], 4e9),
]


@pytest.mark.parametrize(
    ("model", "overrides", "budget"),
    [pytest.param(*each, marks=pytest.mark.slow if at % 4 else ()) for at, each in enumerate(RECIPES)],
    ids=str,
)
def test_a_shape_costs_what_its_overrides_are_priced_at_and_no_more_than_the_budget(model, overrides, budget) -> None:
    found = solve_shapes(model, overrides, ShapeBudget(params=budget))
    assert [each["share"] for each in found] == sorted((each["share"] for each in found), reverse=True)
    assert found[0]["share"] > 0.98
    for each in found[:2]:
        assert each["figures"]["params"] == zoo.stats(model, each["overrides"])["params"]["total"] <= budget
        assert 16 <= each["aspect"] <= 128
        assert each["d_model"] % (64 if each["d_model"] < 512 else 128) == 0
        assert each.get("d_ff", 64) % 64 == 0
        assert each.get("n_heads", 1) % each.get("n_kv_heads", 1) == 0


@pytest.mark.parametrize(("model", "overrides", "budget"), [RECIPES[1], RECIPES[4]], ids=str)
def test_a_built_shape_has_the_parameters_it_was_solved_for(model, overrides, budget) -> None:
    first = solve_shapes(model, overrides, ShapeBudget(params=budget))[0]
    built = zoo.build(model, first["overrides"], device="meta")
    assert sum(parameter.numel() for parameter in built.parameters()) == first["figures"]["params"]


def test_a_wider_feed_forward_would_cost_more_than_the_budget() -> None:
    for each in solve_shapes("llama", [], ShapeBudget(params=1e9)):
        step = 64 if each["d_model"] < 2048 else 128
        usual = each["d_model"] * 14336 / 4096
        wider = each["d_ff"] + step
        total = zoo.stats("llama", [*each["overrides"][:-1], f"d_ff={wider}"])["params"]["total"]
        assert each["overrides"][-1] == f"d_ff={each['d_ff']}"
        assert total > 1e9 or wider > usual * 4 / 3 + step
        assert 0.75 * usual - step <= each["d_ff"] <= usual * 4 / 3 + step


@pytest.mark.slow
def test_the_nearest_shape_may_cost_more() -> None:
    below = solve_shapes("gpt2", [], ShapeBudget(params=2e8), count=8)
    near = solve_shapes("gpt2", [], ShapeBudget(params=2e8), count=8, nearest=True)
    assert any(each["share"] > 1 for each in near)
    assert abs(1 - near[0]["share"]) <= abs(1 - below[0]["share"])


def test_what_the_user_sets_stays() -> None:
    for each in solve_shapes("llama", ["d_model=2048", "n_layers=20"], ShapeBudget(params=1.5e9)):
        assert (each["d_model"], each["n_layers"]) == (2048, 20)
        assert each["overrides"][:2] == ["d_model=2048", "n_layers=20"]
    for each in solve_shapes("llama", ["d_ff=4096", "n_kv_heads=4"], ShapeBudget(params=1e9)):
        assert (each["d_ff"], each["n_kv_heads"]) == (4096, 4)


@pytest.mark.parametrize(
    ("budget", "figure"),
    [
        ({"flops_per_token": 2e9}, lambda figures: figures["flops"]["forward"]),
        ({"memory": 2e10}, lambda figures: figures["memory"]["generate_peak"]),
        ({"active_params": 1e9}, lambda figures: figures["params"]["active"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_other_budgets_are_met_as_nearly(budget, figure) -> None:
    for each in solve_shapes("llama", [], ShapeBudget(**budget), Setup(context=2048)):
        ((name, most),) = budget.items()
        spent = figure(zoo.stats("llama", each["overrides"], context=2048))
        assert each["figures"][name] == spent
        assert 0.97 * most < spent <= most


def test_a_budget_of_keys_and_values_leaves_fewer_key_heads() -> None:
    free = {each["d_model"]: each for each in solve_shapes("llama", [], ShapeBudget(params=1e9))}
    tight = solve_shapes("llama", [], ShapeBudget(params=1e9, kv_bytes_per_token=15e3))
    for each in tight:
        assert zoo.stats("llama", each["overrides"])["kv_cache"]["bytes_per_token"] <= 15e3
        assert each["figures"]["params"] <= 1e9
        assert each["n_kv_heads"] <= free.get(each["d_model"], each)["n_kv_heads"]
    assert any(each["n_kv_heads"] < free[each["d_model"]]["n_kv_heads"] for each in tight if each["d_model"] in free)


@pytest.mark.slow
def test_the_aspect_searched_is_that_of_nine_packaged_models_in_ten() -> None:
    towers = [list(load(name).towers().values())[-1] for name in list_packaged()]
    towers = [tower for tower in towers if tower.loop is None]  # which is as deep as its passes
    inside = [tower for tower in towers if 16 <= tower.d_model / tower.n_layers <= 128]
    assert len(inside) / len(towers) > 0.9


def test_a_budget_that_no_shape_meets_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^shape: 1,000,000 parameters are too few for the table of 128,256 tokens"):
        solve_shapes("llama", [], ShapeBudget(params=1e6))
    with pytest.raises(ConfigError, match=r"^shape: none of this recipe costs .* from 5000 to 9000"):
        solve_shapes("llama", [], ShapeBudget(params=1e9), aspect=(5000, 9000))
    with pytest.raises(ConfigError, match=r"^params: no budget"):
        ShapeBudget(kv_bytes_per_token=1e4)
    with pytest.raises(ConfigError, match=r"^params: must be above 0"):
        ShapeBudget(params=-1)


# ---------------------------------------------------------------- caches


@pytest.mark.parametrize("model", ["llama3-8b", "gpt2", "gemma2-2b", "mistral-7b-v0.1", "qwen3-0.6b"])
def test_a_smaller_cache_is_the_largest_that_keeps_to_its_budget(model: str) -> None:
    setup = Setup(batch=3)
    held = kv_cache(load(model), setup)["bytes"]
    most = 0.6 * held
    found = find_smaller_caches(model, [], most, setup)
    assert found[0] == {"change": None, "overrides": [], "bytes": held, "fits": False}
    assert len(found) > 1
    for each in found[1:]:
        assert each["bytes"] == kv_cache(load(model, each["overrides"]), setup)["bytes"] <= most
        key, value = each["overrides"][-1].split("=")
        if each["change"] == "window":
            assert kv_cache(load(model, [f"{key}={int(value) + 1}"]), setup)["bytes"] > most


def test_a_cache_within_its_budget_is_left_as_it_is() -> None:
    (only,) = find_smaller_caches("llama3-8b", [], 2e9, Setup())
    assert only["fits"] and only["overrides"] == []
    with pytest.raises(ConfigError, match="keeps no cache"):
        find_smaller_caches("bert-base", [], 1e6, Setup())
