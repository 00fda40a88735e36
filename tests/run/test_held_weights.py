"""Frozen weights held as they are stored: NF4 and int8 by their definitions, and what products over them compute."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close
from torchao.quantization import NF4Tensor

import zoo
from support.adapted_models import IDS, adapted, save_llama
from support.memory_tracker import StorageTracker
from support.quantised_storage import quantise_folder
from support.tiny_models import model_of
from support.tiny_runs import compose_run, write_corpus
from zoo.checkpoint import adapter_files, store
from zoo.checkpoint.held_base import hold_base, measure_held, open_base
from zoo.checkpoint.quantised.bitsandbytes import NF4, EightBit, FourBit
from zoo.data.settings import parse_node
from zoo.data.tokenizer_settings import Bytes
from zoo.distributed.world import ALONE
from zoo.errors import ConfigError
from zoo.run.held_weights import list_held_weights
from zoo.training.building import build_model
from zoo.training.layout import ProcessGroups
from zoo.training.planning import plan_training
from zoo.training.start.begin import StartSettings
from zoo.training.start.lora import Lora

# ---------------------------------------------------------------- the codes


def test_nf4_has_the_nearest_of_the_published_values_in_blocks_of_64():
    weight = torch.randn(48, 40, generator=torch.Generator().manual_seed(0)) * 0.02
    layout, parts = FourBit.encode(weight)
    normal, offset = torch.distributions.Normal(0, 1), 0.9677083  # bitsandbytes' create_normal_map
    above, below = (normal.icdf(torch.linspace(offset, 0.5, count)[:-1]) for count in (9, 8))
    quantiles = torch.cat([-below, torch.zeros(1), above]).sort().values
    assert_close(torch.tensor(NF4), quantiles / quantiles.max(), rtol=0, atol=1e-5)
    codes = torch.stack([parts["weight"] >> 4, parts["weight"] & 15], -1).flatten().long()
    for start in range(0, weight.numel(), 64):
        block = weight.flatten()[start : start + 64]
        distance = (block / block.abs().max()).unsqueeze(1) - torch.tensor(NF4)
        assert torch.equal(codes[start : start + 64], distance.abs().argmin(1))
    whole = layout.decode(parts, torch.float32)
    for start in range(0, weight.numel(), 64):
        scale = weight.flatten()[start : start + 64].abs().max()
        block = torch.tensor(NF4)[codes[start : start + 64]] * scale
        assert_close(whole.flatten()[start : start + 64], block, rtol=0, atol=float(scale) / 100)


def test_nf4_rounds_as_finely_as_torchaos():
    weight = torch.randn(512, 256, generator=torch.Generator().manual_seed(0))
    layout, parts = FourBit.encode(weight)
    own = (layout.decode(parts, torch.float32) - weight).square().mean()
    theirs = (NF4Tensor.from_tensor(weight, 64, 256).get_original_weight() - weight).square().mean()
    assert float(own) == pytest.approx(float(theirs), rel=0.01)
    assert sum(each.nbytes for each in parts.values()) == pytest.approx(weight.numel() * 4.127 / 8, rel=0.02)


def test_a_weight_of_odd_size_and_blocks_of_zeros_are_quantised():
    weight = torch.zeros(7, 31)
    weight[3] = torch.linspace(-1, 1, 31)
    for layout, parts in (FourBit.encode(weight), EightBit.encode(weight)):
        found = layout.decode(parts, torch.float32)
        assert found.shape == weight.shape and torch.equal(found[6], weight[6])
        assert float((found - weight).abs().max()) < 0.2
    assert torch.equal(EightBit.encode(weight)[1]["weight"][3], (weight[3] * 127).round().to(torch.int8))


# ---------------------------------------------------------------- the products


def over_base(base, on=("attention", "ffn"), quantise=None):
    """An adapted model over a base, and a copy that holds the base as it is stored."""
    model = adapted(store.load(base, "fp32"), on)
    path, found = adapter_files.choose_base(base)
    model.adapters = replace(model.adapters, base=path, hash=found, quantise=quantise)
    for name, each in model.named_parameters():
        each.requires_grad_(".lora." in name)
    held = copy.deepcopy(model)
    hold_base(held, torch.device("cpu"), 0)
    return model, held


def gradients(model, autocast):
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(IDS).logits.float().square().mean()
    loss.backward()
    return {"loss": loss.detach(), **{name: each.grad for name, each in model.named_parameters() if each.requires_grad}}


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("stored", ["bf16", "gptq", "awq", "nf4", "quantised to nf4", "quantised to int8"])
def test_a_held_base_computes_as_its_dequantised_weights_in_float32(tmp_path, stored, autocast):
    base = save_llama(tmp_path / "hf", torch.bfloat16, hidden_size=64, intermediate_size=96)
    if stored in ("gptq", "awq", "nf4"):
        quantise_folder(base, stored)
    quantise = stored.removeprefix("quantised to ") if stored.startswith("quantised") else None
    model, held = over_base(base, quantise=quantise)
    if quantise:
        layout = {"nf4": FourBit, "int8": EightBit}[quantise]
        for path, module in model.named_modules():
            if "blocks." in path and isinstance(module, torch.nn.Linear):
                made, parts = layout.encode(module.weight.detach())
                module.weight.data = made.decode(parts, torch.float32)
    expected, found = (gradients(each, autocast) for each in (model, held))
    assert expected.keys() == found.keys() and len(expected) == 1 + 2 * len(held.adapters.paths)
    assert_close(found, expected, rtol=1e-5, atol=1e-6)
    sizes = sum(each.nbytes for each in list_held_weights(held))
    assert sizes == sum(measure_held(held.spec, (), quantise, open_base(base)).values())
    whole = sum(each.nbytes for name, each in model.named_parameters() if ".lora." not in name)
    assert sizes < (0.51 if stored == "bf16" else 0.4) * whole


@pytest.mark.parametrize("overrides", [["ffn=moe"], ["attention=mla"], ["head={kind: lm, tied: false}"], ["bias=true"]])
def test_experts_plain_reads_heads_and_biases_are_held_too(tmp_path, overrides):
    begun = model_of(overrides)
    for each in begun.parameters():
        each.data = each.data.bfloat16()
    base = store.save_model(begun, tmp_path / "base")
    model, held = over_base(base, ("ffn",))
    assert_close(gradients(held, False), gradients(model, False), rtol=1e-5, atol=1e-6)
    own = dict(held.named_parameters())
    assert all(each.ndim < 2 or ".lora." in name for name, each in own.items())


def test_a_held_product_keeps_no_dequantised_weight_for_its_backward_pass(tmp_path):
    base = save_llama(tmp_path / "hf", torch.bfloat16, hidden_size=64, intermediate_size=512)
    _, held = over_base(base, ("attention",))
    seen = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda each: seen.append(tuple(each.shape)) or each, lambda each: each
    ):
        held(IDS).logits.sum()
    assert not {(512, 64), (64, 512)} & set(seen)


class HostTracker(StorageTracker):
    """Counts no meta tensors."""

    def _count(self, storage):
        if storage.device.type != "meta":
            super()._count(storage)


def test_a_quantised_base_is_never_whole_in_float32(tmp_path):
    """While a model is built and read: the most that tensors take is far below its weights in float32."""
    sizes = {"vocab_size": 257, "hidden_size": 64, "intermediate_size": 512, "num_hidden_layers": 8}
    base = save_llama(tmp_path / "hf", torch.bfloat16, **sizes)
    (tmp_path / "corpus").mkdir()
    settings = [f"weights={base}", "lora={rank:2,quantise:nf4}", "other_tokenizer=true"]
    sizes = ["model.n_layers=8", "model.d_model=64", "model.d_ff=512", "model.n_heads=4", "model.head_dim=16"]
    planned = plan_training(compose_run(write_corpus(tmp_path / "corpus"), *sizes, "model.max_seq_len=2048", *settings))
    layout = ProcessGroups.open(planned.settings.parallel.settle(ALONE), ALONE, torch.device("cpu"), 16)
    with HostTracker() as tracker:
        model = build_model(planned, layout, torch.device("cpu"), print, fresh=True)
    whole = 4 * zoo.stats(base)["params"]["total"]
    held = sum(each.nbytes for each in [*list_held_weights(model), *model.parameters()])
    assert held < 0.25 * whole and tracker.most < held + 0.25 * whole
    assert not any(each.is_meta for each in [*model.parameters(), *model.buffers()])


# ---------------------------------------------------------------- what is refused


def test_what_cannot_be_quantised_is_refused():
    with pytest.raises(ConfigError, match=r"^lora\.quantise: "):
        parse_node(Lora, {"quantise": "nf5"}, "lora")
    start = StartSettings(weights="base", lora=Lora(quantise="nf4"), precision="bf16_master")
    (fault,) = start.find_faults(model_of().spec, fp8=False)
    assert fault.startswith("lora.quantise: is nf4, and bf16_master has bfloat16 copies of float32 weights")


def test_a_quantised_base_is_not_quantised_again(tmp_path):
    base = quantise_folder(save_llama(tmp_path / "hf", hidden_size=64, intermediate_size=96), "gptq")
    start = StartSettings(weights=str(base), lora=Lora(quantise="nf4"), other_tokenizer=True)
    with pytest.raises(
        ConfigError, match=r"^lora\.quantise: the weights are quantised already, and are held as they are"
    ):
        start.check(store.load_spec(base), Bytes(), print)
