"""The lines that `zoo stats` opens with say what the price, the hardware's files and the solver say."""

from __future__ import annotations

from pathlib import Path

import pytest

import zoo
from zoo.analysis.holding import LADDER, find_holders
from zoo.analysis.solve import Room, find_fewest_gpus
from zoo.cli import run
from zoo.compose import load
from zoo.costs import price
from zoo.costs.hardware import hardware
from zoo.costs.setup import Setup
from zoo.report.glance import list_first_figures

MODELS = {
    "llama3-8b": ["parameters", "KV cache", "training", "generating", "FLOPs", "fits on", "assumed"],
    "mamba2-130m": ["parameters", "state", "training", "generating", "FLOPs", "fits on", "assumed"],
    "bert-base": ["parameters", "training", "FLOPs", "fits on", "assumed"],
    "t5-small": ["parameters", "KV cache", "training", "generating", "FLOPs", "fits on", "assumed"],
}


def first_figures(name: str, **changes) -> dict[str, str]:
    spec, setup = load(name), Setup(**changes)
    figures = price(spec, setup)
    return dict(list_first_figures(spec, setup, figures))


@pytest.mark.parametrize("name", MODELS)
def test_a_price_opens_with_sentences_before_any_table(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(("stats", name)) == 0
    title, *lines = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert title == name and len(lines) <= 8 and max(map(len, lines)) <= 80
    assert list(first_figures(name)) == MODELS[name]


def test_the_first_figures_are_those_of_the_tables() -> None:
    told = first_figures("llama3-8b", context=4096, batch=2, optimizer="muon")
    assert told["parameters"].startswith("8.03 B, all")
    assert told["KV cache"].startswith("1.07 GB at 2 × 4,096 tokens (131 KB per token)")
    windowed = first_figures("gemma3-1b", context=32768)["KV cache"]
    assert windowed == "146 MB at 32,768 tokens (26.6 KB per token until windows are full)"
    assert first_figures("gemma3-1b", context=512)["KV cache"].endswith("(26.6 KB per token)")
    assert told["assumed"] == "batch 2 of 4,096 tokens, bf16; training: muon, mixed precision"
    memory = price(load("llama3-8b"), Setup(context=4096, batch=2, optimizer="muon"))["memory"]
    for line, peak, part, name in (
        ("generating", "generate_peak", "weights", "weights"),
        ("training", "train_peak", "optimizer", "optimizer states"),
    ):
        assert f", {100 * memory[part] / memory[peak]:.0f} % of it {name}" in told[line]
    chunked = price(load("llama3-8b"), Setup(context=4096, batch=2, optimizer="muon", chunked_loss=True))["memory"]
    saved = f"{chunked['train_peak'] / 1e9:.3g} GB with the loss in chunks, as in zoo train"
    assert told["training"].endswith(f"; {saved}")
    assert first_figures("mixtral-8x7b")["parameters"] == "46.7 B, 12.9 B of them active per token"


def test_the_parts_of_generating_add_up_to_its_peak() -> None:
    figures = zoo.stats("gpt2")
    memory, parts = figures["memory"], ("kv_cache", "generate_activations")
    weights = 2 * figures["params"]["total"]
    assert weights + sum(memory[part] for part in parts) == memory["generate_peak"]


@pytest.mark.parametrize("use", ["generate", "train"])
@pytest.mark.parametrize("name", ["llama3-8b", "llama2-13b"])
def test_what_a_model_fits_on_is_what_the_solver_finds(name: str, use: str) -> None:
    spec, setup = load(name), Setup()
    holder = find_holders(spec, setup, price(spec, setup))[use]
    rooms = [Room(memory=hardware(gpu).memory, gpu=gpu) for gpu in LADDER if "bf16" in hardware(gpu).tflops]
    single = [row for row in find_fewest_gpus(spec, setup, rooms, train=use == "train") if row["gpus"] == 1]
    assert holder["fits"] and holder["gpus"] == (1 if single else 8)
    if single:
        assert holder["gpu"] == min(single, key=lambda row: row["room"]["memory"])["room"]["gpu"]


def test_a_model_too_large_for_one_gpu_is_divided_or_said_to_be_too_large() -> None:
    told = first_figures("llama3-70b", context=4096)["fits on"]
    assert "× " in told and told.endswith("to train")
    assert "--tp 4" in first_figures("mixtral-8x22b", gpu="h100", context=4096)["fits on"]
    assert first_figures("deepseek-v3")["fits on"].startswith("8 × B300 (288 GB, --tp 8) to generate; training")
    large = "training does not fit on 8 × B300 (288 GB, --zero 3 --recompute full --chunked-loss)"
    assert first_figures("deepseek-v3")["fits on"].endswith(f"; {large}")


def test_a_training_of_long_rows_is_told_the_options_with_which_it_fits() -> None:
    told = first_figures("llama3.2-1b")["fits on"]
    assert told.endswith("1 × H100 (80 GB, --recompute full --chunked-loss) to train")
    lean = price(load("llama3.2-1b"), Setup(recompute="full", chunked_loss=True))["memory"]["train_peak"]
    assert lean < 80e9 < price(load("llama3.2-1b"), Setup())["memory"]["train_peak"] / 4


def test_a_choice_without_a_gradient_is_told_beside_the_flops_with_backward() -> None:
    assert first_figures("deepseek-v3.2")["FLOPs"].endswith(
        "(products without a gradient, such as an indexer's, have no backward pass)"
    )
    assert first_figures("deepseek-v3")["FLOPs"].endswith("with backward")


def test_an_encoder_is_held_to_run_it_too_which_takes_less_than_training_it() -> None:
    assert first_figures("bert-base")["fits on"] == "1 × L4 (24 GB) to run and to train"
    spec, setup = load("bert-large"), Setup(batch=64)
    holders = find_holders(spec, setup, price(spec, setup))
    assert holders["run"]["memory"] < holders["train"]["memory"]


def test_the_ladder_ascends_and_is_of_packaged_accelerators() -> None:
    sizes = [hardware(name).memory for name in LADDER]
    assert sizes == sorted(sizes)
    packaged = {path.stem for path in Path("conf/hardware").glob("*.yaml")}
    assert set(LADDER) <= packaged


def test_a_card_that_cannot_multiply_the_dtype_holds_nothing() -> None:
    assert "T4" in first_figures("gpt2", dtype="fp16")["fits on"]
    assert "T4" not in first_figures("gpt2", dtype="bf16")["fits on"]


@pytest.mark.parametrize(
    "args", [(), ("--gpu", "h100", "--tp", "2", "--dp", "2"), ("--tokens", "15T", "--gpu", "h200")]
)
@pytest.mark.parametrize("name", ["deepseek-v3", "qwen3-next-80b-a3b", "t5-small", "mamba2-130m"])
def test_a_price_fits_the_screen(name: str, args: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(("stats", name, *args, "--context", "512")) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
