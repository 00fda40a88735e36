"""Every figure of a price expands into a formula that gives it: the printed numbers are worked out here again."""

import ast
import operator
import random
import re
from dataclasses import replace
from fractions import Fraction
from functools import cache
from typing import Any

import pytest

from support import tiny_models
from support.packaged_specs import load, one_in
from zoo.analysis.compare import flatten
from zoo.analysis.explain import explain, format_explanation
from zoo.analysis.explain.terms import (
    Number,
    Traced,
    call,
    name_number,
    product,
    symbol,
    term,
    total,
    trace_spec,
)
from zoo.api import tune_setup
from zoo.compose.targets import list_packaged
from zoo.costs import Setup, price
from zoo.costs.again import RECOMPUTE
from zoo.costs.flops import PassFlops, count_training
from zoo.costs.hardware import usable_bytes
from zoo.costs.operators import Chosen, Operator
from zoo.costs.rank_tensors import ChunkActivations, sum_chunks
from zoo.costs.roofline import (
    TrainingStep,
    bound_run,
    bound_seconds,
    bound_training,
    count_rates,
    roofline,
)
from zoo.costs.setup import CONVENTIONS, ENGINES, OFFLOAD, OPTIMIZERS, PRECISIONS
from zoo.costs.states import StateRow
from zoo.costs.train_peak import count_loss

OPERATORS: dict[type, Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
FUNCTIONS = {
    "min": min,
    "max": max,
    "floor": lambda x: x // 1,
    "ceil": lambda x: -(-x // 1),
    "round": round,
    "pow": pow,
}

NOT_FIGURES = {"context", "tokens", "batch", "block_size", "max_batched_tokens", "layers", "stored"}
"""What a price repeats of the set-up and the model."""

OF_ROOFLINE = {"ridge", "seconds", "tokens_per_second", "days", "gpu_hours", "usable_bytes"}
"""What of it must be explained; the rest is found by search, or repeats."""


def worked_out(text: str, values: dict[str, int] | None = None) -> Any:
    """What an expression as it is printed is worth, by exact arithmetic; symbols have the given values."""
    for each in sorted(values or {}, key=len, reverse=True):
        text = re.sub(rf"(?<![\w.\[]){re.escape(each)}(?![\w.\[])", str((values or {})[each]), text)
    tree = ast.parse(text.replace("·", "*").replace("−", "-"), mode="eval")
    return _valued(tree.body)


def _valued(node: ast.AST) -> Any:
    if isinstance(node, ast.Constant):
        return Fraction(str(node.value))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_valued(node.operand)
    if isinstance(node, ast.BinOp):
        return OPERATORS[type(node.op)](_valued(node.left), _valued(node.right))
    assert isinstance(node, ast.Call) and isinstance(node.func, ast.Name), ast.dump(node)
    inputs = [_valued(each) for each in node.args]
    return inputs[0] % inputs[1] if node.func.id == "mod" else FUNCTIONS[node.func.id](*inputs)


@cache
def spec_of(name: str) -> Any:
    return load(name)


def leaves(figures: Any, path: str = "") -> dict[str, Any]:
    """Every number of a price by its dotted path."""
    if isinstance(figures, dict):
        inner = [leaves(value, f"{path}.{key}" if path else key) for key, value in figures.items()]
        return {key: value for each in inner for key, value in each.items()}
    return {path: figures} if isinstance(figures, int | float) and not isinstance(figures, bool) else {}


def check(spec: Any, setup: Setup, figures: Any = None) -> list[dict[str, Any]]:
    """The rows of an explanation, once each is worked out, compared with the price, and none is found missing."""
    figures = price(spec, setup) if figures is None else figures
    rows = explain(spec, setup, figures)
    for row in rows:
        assert worked_out(row["values"]) == pytest.approx(row["result"], rel=1e-9), row  # floats print 12 digits
        if row["figure"]:
            assert row["result"] == pytest.approx(flatten(figures)[row["figure"]], rel=1e-12), row
    numbers = leaves(
        {key: figures[key] for key in ("params", "flops", "kv_cache", "memory", "roofline") if key in figures}
    )
    asked = {path for path, value in numbers.items() if value and path.split(".")[-1] not in NOT_FIGURES}
    asked -= {path for path in asked if path.startswith("roofline.") and path.split(".")[-1] not in OF_ROOFLINE}
    assert asked - {row["figure"] for row in rows} == set()
    assert max(map(len, format_explanation(rows).splitlines())) <= 80
    return rows


# ---------------------------------------------------------------- figures


@pytest.mark.parametrize("name", one_in(16, list_packaged()))
def test_every_figure_of_a_packaged_model_is_what_its_formula_gives(name):
    rng, spec = random.Random(name), spec_of(name)
    asked = {"convention": CONVENTIONS, "engine": ENGINES, "recompute": RECOMPUTE, "dtype": ("fp32", "bf16", "fp8")}
    chosen = {key: rng.choice(list(values)) for key, values in asked.items()}
    check(spec, Setup(context=min(spec.max_seq_len, rng.choice((1, 300, 20_000))), batch=rng.randint(1, 9), **chosen))


@pytest.mark.parametrize("overrides", one_in(9, tiny_models.every_choice()), ids=tiny_models.name)
def test_every_choice_of_every_axis_explains_itself(overrides):
    spec = tiny_models.spec_of(overrides)
    model = trace_spec(spec)
    for kind, block in spec.blocks.items():
        assert model.blocks[kind].attention.cache() == block.attention.cache()
        assert model.blocks[kind].attention.parts(32).keys() == block.attention.parts(32).keys()
    rng = random.Random(str(overrides))
    check(spec, Setup(context=23))
    convention, engine = rng.choice([*CONVENTIONS]), rng.choice([*ENGINES])
    check(spec, Setup(context=50, batch=3, convention=convention, engine=engine, cache_dtype="fp32"))


SETUPS = {
    "context": [64, 1000],
    "batch": [1, 3],
    "recompute": (*RECOMPUTE, "every_2"),
    "accumulate": [1, 4],
    "offload": OFFLOAD,
    "precision": PRECISIONS,
    "optimizer": OPTIMIZERS,
    "chunked_loss": [False, True],
    "dp": [1, 2],
    "tp": [1, 2],
    "pp": [1, 2],
    "zero": [0, 1, 2, 3],
}


@pytest.mark.parametrize("convention", one_in(2, ["exact", "hfu", "megatron", "kaplan"]))
@pytest.mark.parametrize("name", ["llama3-8b", "gemma2-2b", "mamba2-130m"])
def test_packed_documents_are_explained(name, convention):
    for document in (1, 700, 1024, 5000):
        check(spec_of(name), Setup(context=3000, document=document, convention=convention))


@pytest.mark.parametrize(
    "name", one_in(2, ["llama3-8b", "gpt2", "gemma2-9b", "deepseek-v2-lite", "t5-small", "mamba2-130m"])
)
def test_memory_is_explained_under_any_set_up(name):
    rng = random.Random(name)
    for _ in range(4):
        check(spec_of(name), Setup(**{key: rng.choice(list(values)) for key, values in SETUPS.items()}))


PARTS = {
    "adapters": {"lora": {"rank": 4}},
    "DoRA beside norms": {"lora": {"rank": 3, "dora": True, "on": ["ffn"]}, "train": ("*norm*",)},
    "QLoRA": {"lora": {"rank": 4, "on": ["attention", "ffn"], "quantise": "nf4"}},
    "frozen": {"freeze": ("*embedding*",)},
}


@pytest.mark.parametrize("case", one_in(4, [f"{name}, {part}" for name in ("llama-tiny", "t5-tiny") for part in PARTS]))
def test_what_a_part_takes_to_train_is_explained(case):
    name, part = case.split(", ")
    rng, fields = random.Random(name + part), {"lora": None, "freeze": (), "train": (), **PARTS[part]}
    spec, varied = spec_of(name), {key: SETUPS[key] for key in SETUPS if key not in ("context", "tp", "pp")}
    for convention in ("exact", "hfu", "palm"):
        chosen = {key: rng.choice(list(values)) for key, values in varied.items()}
        setup = tune_setup(Setup(context=50, convention=convention, **chosen), **fields)
        figures = price(spec, setup)
        rows = check(spec, setup, figures)
        asked = {f"trained.{name}" for name in ("parameters", "adapters", "share") if figures["trained"][name]}
        assert asked <= {row["figure"] for row in rows}


def test_an_adapter_is_explained_by_its_rank():
    setup = tune_setup(Setup(context=64), {"rank": 4, "on": ["blocks.*.attention.q"]}, (), ())
    rows = {row["name"]: row["formula"] for row in explain(spec_of("llama-tiny"), setup)}
    assert rows["attention adapters"] == "adapted layers · (rank·d_model + n_heads·head_dim·rank)"
    assert "2·d_model·context·rank" in rows["attention[layer (part 0)] adapters forward"]


def test_what_a_layer_keeps_is_explained_by_its_dimensions():
    rows = {
        row["name"]: row["formula"]
        for row in explain(spec_of("llama3-8b"), Setup(batch=2))
        if row["section"] == "Memory"
    }
    assert rows["layer ffn"] == "6·batch·context·d_ff"  # gate, up and their product, in two bytes
    assert rows["layer attention"] == (
        "4·batch·context·n_heads·head_dim + 4·batch·context·n_kv_heads·head_dim + 4·batch·n_heads·context"
    )  # q, k, v, the output, and a float32 for each query and head


@pytest.mark.parametrize("name", ["llama3-8b", "mixtral-8x7b", "deepseek-v2-lite", "t5-small", "bert-base"])
def test_the_roofline_is_explained(name):
    setup = Setup(gpu="h100", batch=4, context=500, train_tokens=1e12, dp=2)
    figures = price(spec_of(name), setup)
    figures.setdefault("roofline", roofline(spec_of(name), setup, figures))
    check(spec_of(name), setup, figures)


def test_exact_figures_are_explained_to_the_digit():
    for name in ("llama3-8b", "gemma2-9b", "deepseek-v3", "t5-small", "qwen3-next-80b-a3b"):
        for row in explain(spec_of(name), Setup(context=3001)):
            assert worked_out(row["values"]) == row["result"], row


def test_a_formula_in_the_models_own_keys_gives_the_published_count():
    keys = {"n_layers": 32, "d_model": 4096, "n_heads": 32, "n_kv_heads": 8, "head_dim": 128, "d_ff": 14336}
    rows = {row["name"]: row for row in explain(spec_of("llama3-8b")) if row["section"] == "Parameters"}
    assert worked_out(rows["attention"]["formula"], keys) == 1_342_177_280
    assert worked_out(rows["ffn"]["formula"], keys) == 5_637_144_576
    made = {name: rows[name]["result"] for name in ("embedding", "all norm", "attention", "ffn", "head")}
    assert worked_out(rows["total"]["formula"], made) == 8_030_261_248


def test_the_kv_cache_of_a_latent_is_explained_by_its_widths():
    (layer,) = (row for row in explain(spec_of("deepseek-v3")) if row["name"] == "layer[sparse]")
    assert layer["formula"] == "(kv_lora_rank + qk_rope_head_dim) · bytes a value"
    assert layer["result"] * 61 == 70_272


def test_pairs_are_written_as_their_mask_has_them():
    def pairs(name, overrides=(), **setup):
        rows = explain(load(name, list(overrides)), Setup(**setup))
        return {row["name"]: row["formula"] for row in rows if row["name"].endswith("pairs")}

    assert pairs("llama3-8b")["attention pairs"] == "context · (context + 1) / 2"
    local = pairs("gemma2-9b", context=8192)["attention[local] pairs"]
    assert local == "window · (window + 1) / 2 + (context − window) · window"
    assert pairs("bert-base")["attention pairs"] == "context·context"
    chunked = pairs("llama-tiny", ["+attention={window:64,window_kind:chunked}"], context=200)["attention pairs"]
    assert chunked.startswith("floor(context/window) · window · (window + 1) / 2 + ")


def test_layers_that_share_weights_are_stored_once_and_used_often():
    rows = explain(tiny_models.spec_of(["shared_layers=true"]), Setup(context=8))
    stored = next(row for row in rows if row["name"] == "attention" and row["section"] == "Parameters")
    used = next(row for row in rows if row["name"] == "attention" and row["section"] == "FLOPs")
    assert "n_layers" not in stored["formula"]
    assert "n_layers" in used["formula"]


def test_a_key_with_two_values_goes_by_its_path():
    spec = tiny_models.spec_of(["ffn=moe"])
    block: Any = spec.blocks["layer"]
    ffn = block.ffn
    ffn = replace(ffn, shared=replace(ffn.expert, d_ff=24))
    spec = replace(spec, blocks={"layer": replace(block, ffn=ffn)})
    rows = {row["name"]: row["formula"] for row in explain(spec) if row["section"] == "Parameters"}
    assert "ffn.expert.d_ff" in rows["experts"]
    assert "ffn.shared.expert.d_ff" in rows["shared_expert"]


def test_a_figure_that_a_formula_does_not_give_is_never_shown():
    figures = price(spec_of("gpt2"), Setup())
    figures["params"]["total"] += 1
    with pytest.raises(AssertionError, match=r"params\.total"):
        explain(spec_of("gpt2"), Setup(), figures)


def test_sources_are_the_papers_of_the_components():
    rows = {row["name"]: row["source"] for row in explain(spec_of("mixtral-8x7b")) if row["section"] == "Parameters"}
    assert rows["attention"] == "GQA, Ainslie et al., 2023"
    assert rows["experts"] == "MoE, Shazeer et al., 2017"


@pytest.mark.parametrize(
    ("overrides", "papers"),
    [
        (["attention=mha"], "MHA, Vaswani et al., 2017"),
        (["attention=mqa"], "MQA, Shazeer, 2019"),
        (["attention=gqa"], "GQA, Ainslie et al., 2023"),
        (["attention=sliding", "window=8"], "GQA, Ainslie et al., 2023; window, Beltagy et al., 2020"),
        (["attention=dsa", "qk_rope_head_dim=16"], "MLA, DeepSeek-V2, 2024; LightningIndexer, DeepSeek-V3.2, 2025"),
        (["attention=dsa_pooled", "qk_rope_head_dim=16"], "MLA, DeepSeek-V2, 2024; PooledIndexer, GLM-5.3, 2026"),
        (["attention=msa"], "GQA, Ainslie et al., 2023; BlockIndexer, MiniMax-M3, 2026"),
        (["attention=qsa"], "GQA, Ainslie et al., 2023; MeanPooled, Qwen Team, 2026"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_choice_is_credited_to_its_own_paper_beside_its_base(overrides, papers):
    rows = {(row["section"], row["name"]): row["source"] for row in explain(load("llama-tiny", overrides))}
    assert rows["Parameters", "attention"] == papers
    assert rows["KV cache", "layer"] == papers


def test_cross_attention_is_credited_to_the_first_transformer():
    rows = {row["name"]: row["source"] for row in explain(spec_of("t5-small"))}
    assert rows["decoder.cross"] == "MHA, Vaswani et al., 2017"


@pytest.mark.parametrize("name", ["gpt2", "llama3-8b", "deepseek-v3", "t5-small"])
def test_what_updating_and_generating_take_is_written_in_the_models_dimensions(name):
    rows = {row["figure"]: row for row in explain(spec_of(name), Setup(context=256))}
    assert rows["memory.step"]["formula"] == "parameters·bytes of each"
    alive = rows["memory.generate_activations"]
    assert "context" in alive["formula"] or name == "t5-small"
    assert worked_out(alive["values"]) == alive["result"]


# ---------------------------------------------------------------- terms


def some_term(rng: random.Random, depth: int) -> Any:
    """A traced number, and what it is: made the way components make theirs."""
    if depth == 0:
        name = rng.choice("abcd")
        return name_number(name, ord(name) - 90)
    left, right = some_term(rng, depth - 1), some_term(rng, rng.randint(0, depth - 1))
    made = rng.choice((operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod))
    if made in (operator.floordiv, operator.mod):
        right = name_number("e", 7)
    return made(rng.choice((left, 3)), right) if rng.random() < 0.2 else made(left, right)


def test_what_a_term_prints_is_what_it_is_worth():
    rng = random.Random(0)
    for _ in range(500):
        made = some_term(rng, 4)
        text = term(made)
        assert text.value == int(made)
        assert worked_out(text.values) == int(made), text.values
        assert worked_out(text.formula, {name: ord(name) - 90 for name in "abcd"} | {"e": 7}) == int(made)


def in_terms(numbers: dict[str, Any]) -> dict[str, Any]:
    return {name: symbol(name.replace("_", " "), value) for name, value in numbers.items()}


def some_sums(a: dict[str, Any], tokens: Any, setup: Setup, convention: str, recompute: str) -> dict[str, Any]:
    """What the functions that a price and its explanation share make of the same numbers, or terms."""
    step = TrainingStep(a["context"], a["batch"], a["dp"], a["work"], a["mfu"], a["gpus"])
    bounds = bound_training(step, a["peak"])
    layers = (("", "near", a["n"], a["each"]), ("", "far", a["m"], a["more"]))
    kept = sum_chunks([ChunkActivations(layers, a["first"], a["last"], 4, a["m"], 2)])
    passed = PassFlops(a["work"], a["each"], a["n"], a["m"], a["n"] + a["m"])
    train, hardware = count_training(passed, convention, recompute)
    return {
        "loss": count_loss(a["context"] * a["each"], setup),
        "distinct": Chosen(a["each"], a["n"], a["m"]).distinct(tokens),
        "bytes": Operator(a["dp"], weights=a["more"], own=a["each"], chosen=[Chosen(a["each"], a["n"], a["m"])]).bytes(
            a["batch"]
        ),
        "seconds": bound_seconds(a["work"], a["each"], a["peak"], a["bandwidth"]),
        "rates": count_rates(a["context"], a["batch"], a["dp"], a["more"])["tokens_per_second"],
        "kept": kept,
        "state": StateRow(a["n"], a["m"], a["dp"]).bytes,
        "train": train,
        "hardware": hardware,
        "usable": usable_bytes(a["peak"]),
        **bounds,
        **bound_run(a["each"], bounds, a["gpus"]),
    }


def test_what_sums_up_a_price_gives_a_term_that_is_worth_what_it_gives_of_numbers():
    rng = random.Random(0)
    names = ["context", "batch", "dp", "work", "gpus", "peak", "bandwidth", "n", "m", "each", "more", "first", "last"]
    for _ in range(60):
        numbers: dict[str, Any] = {name: rng.randint(1, 10 ** rng.randint(1, 9)) for name in names}
        numbers |= {"mfu": rng.choice((0.25, 0.5, 1.0)), "m": rng.randint(1, numbers["n"] + 3)}
        setup = Setup(chunked_loss=rng.random() < 0.5, precision=rng.choice(PRECISIONS))
        how = setup, rng.choice(CONVENTIONS), rng.choice(RECOMPUTE)
        found = some_sums(in_terms(numbers), symbol("tokens", 7), *how)
        for name, value in some_sums(numbers, 7, *how).items():
            text = term(found[name])
            assert text.value == pytest.approx(value, rel=1e-6), name  # the chance: 1 − (1 − k/E)^T as it stands
            if name not in ("distinct", "bytes"):
                assert text.value == pytest.approx(value, rel=1e-13), name
                assert worked_out(text.values) == pytest.approx(value, rel=1e-9), name


def test_a_traced_number_is_the_number():
    x = name_number("x", 12)
    assert isinstance(x, int) and x == 12 and hash(x) == hash(12)
    assert [0] * x == [0] * 12
    assert x * 0.5 == 6.0 and not isinstance(x * 0.5, Traced)
    assert divmod(x, 5) == (2, 2)


def test_terms_that_differ_in_a_number_are_added():
    a, b = symbol("a", 2), symbol("b", 3)
    assert (a * b + b * a * 2 + term(1) + a + term(4)).formula == "3·a·b + a + 5"
    assert total((a, a * -1)) == Number(0)
    assert (product((a, b)) / a).formula == "b"
    assert term(-(-name_number("a", 17) // 4) * 4).formula == "4·ceil(a/4)"
    assert call("min", a, 5).text(False) == "min(2, 5)"
