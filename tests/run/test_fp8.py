"""float8: rounding done by hand, the same model in bfloat16, and a list by name of what may be converted."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import zoo
from support.forked_processes import run_ranks
from support.logit_bounds import assert_close
from support.packaged_specs import one_in
from support.parallel_runs import lines_of, write_texts
from support.tiny_models import every_choice, model_of, name, spec_of
from support.tiny_runs import compose_run
from zoo.checkpoint import store
from zoo.data.tokenizer import make_byte_tokenizer
from zoo.errors import ConfigError
from zoo.generation.generate import generate
from zoo.jobs.plan import plan_launch, task_config
from zoo.jobs.train import resume_run, start_run
from zoo.run import fp8
from zoo.run.builder import build, check_built
from zoo.text.follow import complete
from zoo.text.loading import load
from zoo.text.prompts import Options
from zoo.training.gradient import choose_autocast
from zoo.training.optim import AdamW

needs_torchao = pytest.mark.skipif(find_spec("torchao") is None, reason="needs torchao (the extra fp8)")


CPU = torch.device("cpu")


def refused_on_this_cpu(recipe: str) -> bool:
    """Whether this CPU has no product in float8: torch 2.11 has none rowwise, oneDNN none at all on AVX2 alone."""
    return not fp8.can_multiply(recipe, CPU)


MODELS = {"llama": [], "mixtral": ["ffn=moe"]}
NEVER = re.compile(
    r"router\.|shared_gate$|pos_[qk]$|\b[xd]t?_proj$|\.attention\.([abf]|decay_[ab]|rate_[ab]|entry_gate|index_gate|sinks|k_taps|v_taps)$|(^|\.)(head|embedding|pooler|streams|adapters|position|ngrams|\w+_connection)\.|\.join$|norm\.gate_[ab]$"
)
"""Of all nn.Linear, by name: scores of routers and gates, tables, time steps and decays, what is no layer's."""


def may_be_converted(model: nn.Module) -> set[str]:
    """What the tests hold `plan` against: it reads modules and their names, never a Spec."""
    both = {"q", "k"} if "share_att_key=True" in repr(model.spec) else set()  # which project a table too
    return {
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and not NEVER.search(path)
        and not path.endswith("attention.distances")  # of a table, not of tokens
        and not (path.split(".")[-2:-1] == ["attention"] and path.split(".")[-1] in both)
        and all(width % 16 == 0 for width in module.weight.shape)
    }


# ---------------------------------------------------------------- which products


@pytest.mark.parametrize("overrides", list(every_choice()), ids=name)
def test_of_every_choice_the_products_of_attention_and_feed_forward_are_planned_for_and_no_others(overrides):
    spec = spec_of(overrides)
    model = build(spec, device="meta")
    plan = fp8.list_products(model)
    assert {product.path for product in plan if product.left_out is None} == may_be_converted(model)
    assert bool(may_be_converted(model)) == (fp8.explain_no_effect(spec) is None)
    products = {path for path, module in model.named_modules() if hasattr(module, "weight") and is_product(module)}
    assert {product.path for product in plan} == products


def is_product(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ in ("StackedLinear", "TiedLinear")


def test_the_summary_counts_every_product_and_says_what_kept_it_out():
    spec = spec_of(["ffn=moe", "head_dim=12"])
    model = build(spec, device="meta")
    reasons = {
        **{f"blocks.{layer}.attention.{each}": None for layer in range(3) for each in "qo"},
        **{f"blocks.{layer}.attention.{each}": "no multiple of 16 wide" for layer in range(3) for each in "kv"},
        **{f"blocks.{layer}.ffn.experts.{each}": "stacked experts" for layer in range(3) for each in ("gate", "up")},
        **{f"blocks.{layer}.ffn.experts.down": "stacked experts" for layer in range(3)},
        **{f"blocks.{layer}.ffn.router.gate": "router" for layer in range(3)},
        "head.out": "head",
    }
    plan = fp8.list_products(model)
    assert dict(plan) == reasons
    assert fp8.summarize_products(plan) == (
        "6 of 25 products in float8, not 6 (no multiple of 16 wide), 9 (stacked experts), 3 (router), 1 (head)"
    )


def test_a_weight_that_is_read_by_itself_is_trained_in_float8_and_never_stored_in_it():
    model = build(spec_of(["attention=mla"]), device="meta")
    training, running = dict(fp8.list_products(model)), dict(fp8.list_products(model, running=True))
    changed = {path for path in training if training[path] != running[path]}
    assert changed == {f"blocks.{layer}.attention.{each}" for layer in range(3) for each in ("k_b", "v_b")}


# ---------------------------------------------------------------- training, emulated


def rounded(x: torch.Tensor, kind: str, dim: int | None, power_of_two: bool) -> torch.Tensor:
    """x scaled to the largest float8 of a kind (for each slice along `dim`, or as a whole), rounded half to even by
    arithmetic alone, and scaled back. The scale of a bfloat16 x is bfloat16 too."""
    bits, lowest, largest = {"e4m3": (3, -6, 448.0), "e5m2": (2, -14, 57344.0)}[kind]
    most = x.abs().amax() if dim is None else x.abs().amax(dim, keepdim=True)
    if x.dtype is torch.bfloat16:
        unit = (most / largest).float()
        scaled = (x.float() / unit).clamp(-largest, largest)
    else:
        scale = (largest / most.double()).float()
        scale = 2.0 ** scale.log2().floor() if power_of_two else scale
        unit, scaled = 1 / scale, x * scale
    exponent = torch.frexp(scaled).exponent - 1
    step = 2.0 ** (exponent.clamp(min=lowest) - bits)
    return (scaled / step).round() * step * unit


@needs_torchao
@pytest.mark.parametrize("recipe", fp8.RECIPES)
def test_a_product_and_its_gradients_are_those_of_operands_rounded_by_hand(recipe):
    model = model_of()
    before = model.blocks[0].attention.k.weight.detach().clone()
    fp8.convert_to_fp8(model, recipe, emulate=True)
    linear = model.blocks[0].attention.k
    rows = recipe == "rowwise"
    of = partial(rounded, power_of_two=rows)
    x, slope = torch.randn(2, 24, 32, requires_grad=True), torch.randn(48, 16) * 1e-3
    y = linear(x)
    y.backward(slope.view(2, 24, 16))
    flat = x.detach().view(48, 32)
    along = (lambda dim: dim) if rows else (lambda dim: None)
    torch.testing.assert_close(linear.weight, before, rtol=0, atol=0)
    expected = of(flat, "e4m3", along(1)) @ of(before, "e4m3", along(1)).T
    torch.testing.assert_close(y.detach().view(48, 16), expected)
    backward = "e4m3" if rows else "e5m2"
    # torchao takes the weight tensorwise for the input's gradient where rows have scales of their own
    expected = of(slope, backward, along(1)) @ of(before, "e4m3", along(0))
    torch.testing.assert_close(x.grad.view(48, 32), expected)
    expected = of(slope, backward, along(0)).T @ of(flat, "e4m3", along(0))
    torch.testing.assert_close(linear.weight.grad, expected)


def gradients(model, ids):
    model.train()
    logits = model(ids[:, :-1]).logits
    F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@needs_torchao
@pytest.mark.parametrize("recipe", fp8.RECIPES)
def test_gradients_are_those_of_float32_up_to_the_rounding(recipe):
    ids = torch.randint(0, 67, (4, 17))
    exact = gradients(build(spec_of(), device="cpu"), ids)
    model = build(spec_of(), device="cpu")
    fp8.convert_to_fp8(model, recipe, emulate=True)
    for path, gradient in gradients(model, ids).items():
        error = float((gradient - exact[path]).norm() / exact[path].norm())
        assert 1e-4 < error < 0.2, (path, error)


@needs_torchao
@pytest.mark.parametrize("overrides", one_in(2, MODELS.values()), ids=MODELS)
def test_training_in_float8_learns_as_in_bfloat16(overrides):
    ids = torch.randint(0, 67, (4, 17))

    def losses(recipe: str | None) -> list[float]:
        model = build(spec_of(overrides), device="cpu").train()
        if recipe:
            fp8.convert_to_fp8(model, recipe, emulate=True)
        optimizer = AdamW(lr=1e-2, weight_decay=0.1).build(model)
        found = []
        for _ in range(25):
            with choose_autocast(torch.device("cpu"), "bf16")():
                logits = model(ids[:, :-1]).logits
            loss = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(float(loss.detach()))
        return found

    plain = losses(None)
    assert plain[-1] < 0.5 * plain[0]
    for recipe in fp8.RECIPES:
        # e4m3 has 3 bits of mantissa, so an operand is off by up to 2⁻⁴ of itself: of the first loss, here
        assert losses(recipe) == pytest.approx(plain, rel=0.1, abs=2**-4 * plain[0])


@needs_torchao
@pytest.mark.parametrize("recipe", one_in(2, fp8.RECIPES))
def test_a_converted_block_is_one_graph_with_the_same_gradients(recipe):
    ids = torch.randint(0, 67, (4, 17))
    eager, whole = (build(spec_of(["n_layers=1", "init.std=0.02"]), device="cpu") for _ in range(2))
    for model in (eager, whole):
        fp8.convert_to_fp8(model, recipe, emulate=True)
    whole.blocks[0].compile(backend="aot_eager", fullgraph=True, dynamic=False)
    expected = gradients(eager, ids)
    for path, gradient in gradients(whole, ids).items():
        torch.testing.assert_close(gradient, expected[path], rtol=1e-3, atol=1e-6, msg=path)


@needs_torchao
@pytest.mark.parametrize("overrides", MODELS.values(), ids=MODELS)
def test_conversion_changes_the_modules_planned_and_leaves_weights_their_names_and_groups(overrides, tmp_path):
    from torchao.float8.float8_linear import Float8Linear

    model = model_of(overrides)
    expected = may_be_converted(model)
    before, groups = dict(model.named_parameters()), AdamW().make_groups(model)
    store.save_model(model, tmp_path / "before")
    fp8.convert_to_fp8(model, "tensorwise", emulate=True)
    check_built(model)
    assert {path for path, module in model.named_modules() if isinstance(module, Float8Linear)} == expected
    after = dict(model.named_parameters())
    assert list(after) == list(before) and all(after[path] is before[path] for path in before)
    assert [[id(each) for each in group["params"]] for group in AdamW().make_groups(model)] == [
        [id(each) for each in group["params"]] for group in groups
    ]
    assert not any(module.training for module in model.modules())
    store.save_model(model, tmp_path / "after")
    assert (tmp_path / "after/model.safetensors").read_bytes() == (tmp_path / "before/model.safetensors").read_bytes()


@pytest.fixture
def able(monkeypatch):
    """A CPU that is taken for a device with float8: torch has the scaled product there too."""
    monkeypatch.setattr(fp8, "refuses", lambda recipe, machine: None)


@needs_torchao
@pytest.mark.skipif(refused_on_this_cpu("rowwise"), reason="this CPU has no product in float8 (the refusal is tested)")
def test_a_run_in_float8_says_so_goes_on_to_the_last_bit_and_leaves_an_ordinary_checkpoint(able, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("\n\n".join(f"the cat {n} is {n * n}" for n in range(400)))
    more = ("steps=4", "eval_every=2", "eval_batches=1", "save_every=2", "sample.tokens=4")
    config = compose_run(tmp_path / "text.txt", *more, "precision=fp8_rowwise", "device=cpu")
    folder = tmp_path / "run"
    start_run(config, folder)
    said = capsys.readouterr().err
    assert "fp8_rowwise: 14 of 15 products in float8, not 1 (head); nothing is gained without compile=true" in said
    assert "parameters on cpu in fp8_rowwise" in said and "(bf16 or fp32 products, measured)" in said
    weights = folder / "checkpoints/step-000004" / store.WEIGHTS
    whole = weights.read_bytes()
    (folder / "checkpoints/latest").write_text("step-000002\n")
    resume_run(folder)
    assert weights.read_bytes() == whole
    model = zoo.load(folder)
    assert {each.dtype for each in model.parameters()} == {torch.float32}
    assert all(type(each) is nn.Parameter for each in model.parameters())


SMALL = ["model.n_layers=2", "model.d_model=64", "model.head_dim=16", "model.d_ff=128", "model.vocab_size=301"]


@needs_torchao
@pytest.mark.slow
@pytest.mark.skipif(refused_on_this_cpu("rowwise"), reason="this CPU has no product in float8 (the refusal is tested)")
@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise"])
def test_a_mesh_trains_in_float8_as_one_process_does_within_its_rounding(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_texts(tmp_path)
    more = ["steps=4", "batch_size=4", "accumulate=2", "data=text", "data.path=text.txt", "data.tokenizer.kind=byte"]
    more += [*SMALL, "seq_len=64", "eval_every=4", "eval_batches=1", "sample=null", "device=cpu"]
    more += ["optim.lr=3e-4", "schedule.warmup=0"]

    def train(parallel, processes, precision):
        folder = f"{parallel}-{precision}"
        run_ranks(processes, "support.float8_ranks", parallel, folder, f"precision={precision}", *more)
        return np.array([line["loss"] for line in lines_of(folder) if "loss" in line])

    plain, rounded = (train("none", 1, each) for each in ("bf16", f"fp8_{recipe}"))
    rounding = np.abs(plain - rounded).max()
    assert rounding > 1e-4  # float8 tells
    for parallel, processes in {"fsdp": 2, "tp": 2, "pp": 2, "fsdp_tp": 4}.items():
        losses = train(parallel, processes, f"fp8_{recipe}")
        assert np.abs(losses - rounded).max() < 2 * rounding, parallel
        assert np.abs(losses - plain).max() > 1e-4, parallel


@needs_torchao
def test_a_device_without_a_product_in_float8_is_refused_before_anything_is_written(able, tmp_path, monkeypatch):
    def no_product(*operands, **options):
        raise RuntimeError("could not create a primitive descriptor for the matmul primitive")

    monkeypatch.setattr(fp8.torch, "_scaled_mm", no_product)
    fp8.can_multiply.cache_clear()
    try:
        for recipe in fp8.RECIPES:
            with plan_launch([f"precision=fp8_{recipe}", "device=cpu"], check=False) as plan:
                config = task_config(plan.jobs[0])
            reason = f"precision: fp8_{recipe} needs a product in float8, which torch cannot compute on this cpu"
            with pytest.raises(ConfigError) as error:
                start_run(config, tmp_path / "run")
            assert error.value.faults == [f"{reason} (precision=bf16 would do)"]
    finally:
        fp8.can_multiply.cache_clear()
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- running


def stored(model: nn.Module) -> int:
    """Bytes of a model's weights, those of float8 with their scales."""
    plain = (getattr(each, part, None) for each in model.parameters() for part in ("qdata", "scale"))
    return sum(each.nbytes for each in plain if each is not None) + sum(
        each.nbytes for each in model.parameters() if not hasattr(each, "qdata")
    )


@needs_torchao
def test_weights_alone_in_float8_give_the_logits_of_weights_rounded_by_hand():
    model, by_hand = model_of(), model_of()
    ids = torch.randint(0, 67, (2, 20))
    exact = by_hand(ids).logits.detach()
    for path in may_be_converted(by_hand):
        weight = by_hand.get_submodule(path).weight
        weight.data = rounded(weight.detach(), "e4m3", 1, power_of_two=False)
    products = fp8.quantize(model, "weight_only")
    assert {each.path for each in products if each.left_out is None} == may_be_converted(by_hand)
    with torch.inference_mode():
        logits, expected = model(ids).logits, by_hand(ids).logits
    assert_close(logits, expected)
    assert 0.01 < float((logits - exact).norm() / exact.norm()) < 0.1


@needs_torchao
def test_weights_in_float8_take_half_of_the_memory_and_a_scale_a_row():
    model = model_of(["d_model=256", "d_ff=512", "head_dim=64", "n_layers=1"], dtype="bf16")
    before = stored(model)
    rows = sum(model.get_submodule(path).weight.shape[0] for path in may_be_converted(model))
    converted = sum(model.get_submodule(path).weight.numel() for path in may_be_converted(model))
    fp8.quantize(model, "weight_only")
    assert stored(model) == before - converted + 4 * rows
    assert stored(model) < 0.55 * before


@needs_torchao
@pytest.mark.parametrize("attention", ["mla", "gqa", "gated_delta", "mamba"])
def test_a_quantised_model_decodes_token_by_token_as_in_one_pass(attention):
    model = model_of([f"attention={attention}", *(["position=none"] if attention in ("gated_delta", "mamba") else [])])
    fp8.quantize(model, "weight_only")
    prompt = torch.randint(0, 67, (2, 5))
    ids = generate(model, prompt, 6)
    with torch.no_grad():
        expected = model(ids[:, :-1]).logits.argmax(-1)[:, 4:]
    assert torch.equal(ids[:, 5:], expected)


@needs_torchao
@pytest.mark.parametrize("recipe", fp8.RECIPES)
def test_a_product_of_a_quantised_model_is_that_of_operands_rounded_by_hand(recipe, able, monkeypatch):
    from torchao.quantization import quant_api

    monkeypatch.setattr(quant_api, "_check_hardware_support", lambda granularity: None)
    if refused_on_this_cpu(recipe):
        with pytest.raises(ConfigError, match=f"fp8: {recipe} needs a product in float8, which torch cannot compute"):
            fp8.quantize(model_of(dtype="bf16"), recipe)
        return
    model, x = model_of(dtype="bf16"), torch.randn(2, 5, 32).bfloat16()
    linear = model.blocks[1].ffn.up
    of = partial(rounded, kind="e4m3", dim=1 if recipe == "rowwise" else None, power_of_two=False)
    expected = of(x.view(10, 32)) @ of(linear.weight.detach()).T
    products = fp8.quantize(model, recipe)
    assert fp8.summarize_products(products) == "21 of 22 products in float8, not 1 (head)"
    with torch.inference_mode():
        torch.testing.assert_close(linear(x).float().view(10, 48), expected, rtol=1e-2, atol=1e-3)
        assert linear.weight.qdata.dtype == torch.float8_e4m3fn
        assert generate(model, torch.randint(0, 67, (2, 3)), 4).shape == (2, 7)


@needs_torchao
def test_rowwise_weights_must_be_bfloat16(able, monkeypatch):
    monkeypatch.setattr(fp8, "can_multiply", lambda *_: True)  # as on a CPU that has the product
    with pytest.raises(ConfigError, match=r"rowwise needs weights in bfloat16, found float32 \(dtype=bf16"):
        fp8.quantize(build(spec_of(), device="cpu"), "rowwise")


@needs_torchao
@pytest.mark.slow
def test_a_checkpoint_writes_text_with_weights_in_float8_and_says_so_alone(tmp_path):
    small = ["vocab_size=257", "d_model=32", "n_layers=1", "n_heads=2", "n_kv_heads=2", "head_dim=16", "d_ff=32"]
    store.save_model(zoo.build("llama-tiny", small, device="cpu"), tmp_path / "some", make_byte_tokenizer())
    command = [sys.executable, "-m", "zoo", "generate", "--fp8", "weight_only", "--device", "cpu", "--temperature", "0"]
    command += ["--prompt", "x", "--max-new-tokens", "8", "--checkpoint", str(tmp_path / "some")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stderr == "zoo: note: fp8 weight_only: 7 of 8 products in float8, not 1 (head)\n"
    loaded = load(tmp_path / "some", device="cpu", fp8="weight_only")
    pieces = complete(loaded.model, loaded.tokenizer, "x", Options(max_new_tokens=8))
    assert done.stdout == "".join(pieces) + "\n"
