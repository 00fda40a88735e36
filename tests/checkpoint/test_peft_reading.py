"""Adapters that peft wrote: loaded, and gone on with, over a base in any folder."""

from __future__ import annotations

import copy
import json
import shutil

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch.testing import assert_close

import zoo
from support.adapted_models import IDS, logits, save_llama
from support.tiny_models import model_of, spec_of
from support.tiny_runs import write_corpus
from zoo.checkpoint import adapter_files, peft_files, store
from zoo.checkpoint.held_base import hold_base
from zoo.checkpoint.peft_reading import unpack_adapter
from zoo.cli import run
from zoo.errors import CheckpointError, ConfigError
from zoo.run.adapters import Adapters, attach_adapters
from zoo.run.builder import build
from zoo.training.start.lora import Lora

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning"),
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))


def save_adapter(base, folder, **settings):
    """Save a random adapter of peft's, and return the model."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    config = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj", "up_proj"], **settings}
    adapted = peft.get_peft_model(model, peft.LoraConfig(**config))
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, each in adapted.named_parameters():
            if each.requires_grad:
                each.copy_(torch.randn(each.shape, generator=generator) * 0.2 + ("magnitude" in name) * each)
    adapted.save_pretrained(folder)
    return adapted.eval()


def peft_logits(model):
    with torch.no_grad():
        return model(IDS).logits


SETTINGS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "ranks and alphas by module": {"rank_pattern": {"up_proj": 7}, "alpha_pattern": {"v_proj": 11}},
    "a head beside": {"modules_to_save": ["lm_head"]},
    "dora": {"use_dora": True},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_an_adapter_is_loaded_as_peft_computes_it(tmp_path, name):
    base = save_llama(tmp_path / "base")
    theirs = save_adapter(base, tmp_path / "adapter", **SETTINGS[name])
    assert_close(logits(store.load(tmp_path / "adapter")), peft_logits(theirs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in SETTINGS if "ranks" not in name])  # one rank: others are filled up
def test_an_adapter_is_priced_over_its_base_as_peft_trains_it(tmp_path, name):
    base = save_llama(tmp_path / "base")
    theirs = save_adapter(base, tmp_path / "adapter", **SETTINGS[name])
    figures = zoo.stats(tmp_path / "adapter")
    assert figures["params"] == zoo.stats(base)["params"]
    assert figures["trained"]["parameters"] == sum(each.numel() for each in theirs.parameters() if each.requires_grad)
    assert figures["stored"]["bits_per_parameter"] == 32 and figures["stored"]["as"] == "F32, adapters"


def test_an_adapter_of_fused_and_transposed_products_is_split_among_ours(tmp_path):
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=32)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    fused = {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}
    theirs = save_adapter(tmp_path / "base", tmp_path / "adapter", **fused)
    ours = store.load(tmp_path / "adapter")
    assert_close(logits(ours), peft_logits(theirs), rtol=1e-4, atol=1e-5)


def test_dora_computes_as_peft_does_forward_and_backward(tmp_path):
    base = save_llama(tmp_path / "base", torch.bfloat16, attention_bias=True)
    theirs = save_adapter(base, tmp_path / "adapter", use_dora=True).float()
    plan = adapter_files.read_plan(unpack_adapter(tmp_path / "adapter"))
    ours = store.load(base, "fp32")
    attach_adapters(ours, plan)
    adapter_files.load_adapter(ours, unpack_adapter(tmp_path / "adapter"))
    hold_base(ours, torch.device("cpu"), 0)
    for model in (ours, theirs):
        for name, each in model.named_parameters():
            each.requires_grad_("lora" in name)
        model(IDS).logits.square().sum().backward()
    assert_close(logits(ours), peft_logits(theirs), rtol=1e-5, atol=1e-5)
    names = {"a": "lora_A.default.weight", "b": "lora_B.default.weight", "m": "lora_magnitude_vector.default.weight"}
    hf = {"attention.q": "self_attn.q_proj", "attention.v": "self_attn.v_proj", "ffn.up": "mlp.up_proj"}
    expected = dict(theirs.named_parameters())
    for path in plan.paths:
        _, layer, part = path.split(".", 2)
        for leaf, name in names.items():
            found = ours.get_submodule(path).lora.get_parameter(leaf).grad
            theirs_ = expected[f"base_model.model.model.layers.{layer}.{hf[part]}.{name}"].grad
            assert float((found - theirs_).norm()) < 1e-5 * float(theirs_.norm())


def test_fresh_magnitudes_are_the_norms_of_the_rows_and_change_nothing():
    plain, model = model_of(), model_of()
    attach_adapters(model, Adapters(4, 8.0, 0.0, Lora(on=("attention",)).choose(model.spec), dora=True))
    assert_close(logits(model), logits(plain), rtol=1e-5, atol=1e-5)
    product = model.blocks[0].attention.q
    assert_close(product.lora.m.detach(), product.weight.detach().norm(dim=1))


def test_dora_of_experts_is_refused():
    with pytest.raises(ConfigError, match=r"lora\.dora: blocks\.0\.ffn\.experts\.\w+ is of stacked experts"):
        Lora(on=("ffn",), dora=True).choose(spec_of(["ffn=moe"]))


def test_magnitudes_of_a_part_of_a_fused_product_are_no_dora_of_pefts(tmp_path):
    model = build(
        "gpt2", ["d_model=32", "n_layers=2", "n_heads=4", "head_dim=8", "vocab_size=60", "max_seq_len=32"], device="cpu"
    )
    for on, fault in (
        (("attention",), None),
        (("blocks.*.attention.q",), "blocks.0.attention.k.weight has no magnitudes"),
    ):
        each = copy.deepcopy(model)
        attach_adapters(each, Adapters(4, 8.0, 0.0, Lora(on=on).choose(model.spec), dora=True))
        folder = store.save_model(each, tmp_path / f"saved {len(on[0])}")
        if fault is None:
            assert peft_files.save_for_peft(folder, tmp_path / "out")["use_dora"] is True
            continue
        with pytest.raises(CheckpointError, match=fault):
            peft_files.save_for_peft(folder, tmp_path / "out")


@pytest.mark.slow
def test_over_a_base_in_bfloat16_the_merged_model_is_pefts_rounded(tmp_path):
    base = save_llama(tmp_path / "base", torch.bfloat16)
    theirs = save_adapter(base, tmp_path / "adapter").float()
    merged = theirs.merge_and_unload().state_dict()  # in float32
    assert run(["convert", str(tmp_path / "adapter"), str(tmp_path / "out"), "--to", "hf"]) == 0
    found = load_file(tmp_path / "out" / "model.safetensors")
    for name, each in found.items():
        assert_close(each, merged[name].bfloat16(), rtol=2**-7, atol=0)
    assert found["model.layers.0.self_attn.q_proj.weight"].dtype is torch.bfloat16


SMALL = ("data=text", "data.path=corpus", "data.tokenizer.kind=byte", "other_tokenizer=true", "batch_size=2")
SMALL += ("seq_len=16", "eval_every=null", "eval_batches=1", "sample=null", "steps=1")


@pytest.mark.parametrize("name", ["plain", "a head beside", "dora"])
def test_a_run_goes_on_with_an_adapter_from_pefts_own_logits(here, name):
    (here / "corpus").mkdir()
    write_corpus(here / "corpus")
    base = save_llama(here / "base", torch.bfloat16, vocab_size=257)
    theirs = save_adapter(base, here / "adapter", **SETTINGS[name]).float()
    result = zoo.train(None, ["weights=adapter", *SMALL, "optim.lr=1e-30", "optim.weight_decay=0", "hydra.run.dir=run"])
    with torch.no_grad():
        assert_close(result.model(IDS).logits, peft_logits(theirs), rtol=1e-4, atol=1e-5)
    plan = adapter_files.read_plan(zoo.runs.find(here / "run"))
    assert (plan.rank, plan.alpha, plan.base) == (4, 6.0, str(base.absolute()))
    assert plan.trained == (("head.out.weight",) if name == "a head beside" else ())
    assert len(plan.paths) == 6
    more = zoo.train(None, ["weights=base", "lora={adapter:run,on:['blocks.*.[qv]','blocks.*.up']}", *SMALL])
    assert {*more.model.adapters.paths} == {*plan.paths}
    own = more.model.adapters
    assert (own.rank, own.alpha, own.dora) == (4, 6.0, name == "dora")
    assert run(["convert", "run", "back", "--to", "peft"]) == 0
    again = load_file(here / "back" / "adapter_model.safetensors")
    own = load_file(here / "adapter" / "adapter_model.safetensors")
    assert again.keys() == own.keys()
    assert all(torch.equal(each, again[key]) for key, each in own.items())


def test_what_contradicts_an_adapter_is_refused_in_one_line(here, capsys):
    save_adapter(save_llama(here / "base", vocab_size=257), here / "adapter")
    for text, fault in (
        ("lora={rank:8}", "lora.rank: is 8, that of "),
        ("lora={alpha:4}", "lora.alpha: is 4, that of "),
        ("lora={dora:true}", "lora.dora: is true, that of "),
        ("lora={on:[ffn]}", "lora.on: blocks.0.attention.q is adapted in one of the config and "),
        ("lora={adapter:base}", "lora.adapter: base has no adapters (a checkpoint of a run with lora=…, or peft's)"),
    ):
        assert run(["train", "weights=adapter", *SMALL, text]) == 2
        (line,) = [each for each in capsys.readouterr().err.splitlines() if "error" in each]
        assert line.startswith(f"zoo: error: {fault}")


def test_what_is_no_lora_of_the_base_is_refused_by_name(tmp_path):
    base = save_llama(tmp_path / "base")
    save_adapter(base, tmp_path / "adapter", bias="lora_only", target_modules=["q_proj", "embed_tokens"])
    with pytest.raises(CheckpointError, match=r"lora_embedding_A: is no LoRA of a product of the base, nor a weight"):
        store.load(tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    stated = json.loads(config.read_text())
    config.write_text(json.dumps({**stated, "base_model_name_or_path": "meta-llama/Llama-3"}))
    would = r"is no folder here \(`hf download meta-llama/Llama-3`\)"
    with pytest.raises(CheckpointError, match=rf"base_model_name_or_path: 'meta-llama/Llama-3' {would}"):
        store.load(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=rf"base_model_name_or_path: 'meta-llama/Llama-3' {would}"):
        zoo.stats(tmp_path / "adapter")
    config.write_text(json.dumps({**stated, "base_model_name_or_path": "a\0b"}))
    with pytest.raises(CheckpointError, match=r"base_model_name_or_path: .* is no folder here"):
        store.load(tmp_path / "adapter")
    config.write_text(json.dumps({**stated, "alpha_pattern": {"(a+)+$": 4}}))
    with pytest.raises(CheckpointError, match=r"alpha_pattern: '\(a\+\)\+\$' is no name of a module"):
        store.load(tmp_path / "adapter")
    config.write_text(json.dumps({**stated, "lora_alpha": 0}))
    with pytest.raises(CheckpointError, match="lora_alpha"):
        store.load(tmp_path / "adapter")
    config.write_text(json.dumps({**stated, "peft_type": "IA3"}))
    with pytest.raises(CheckpointError, match=r"peft_type: is 'IA3', which is not read \(LORA\)"):
        store.load(tmp_path / "adapter")


def test_a_changed_adapter_or_base_is_read_anew(tmp_path):
    base = save_llama(tmp_path / "base")
    save_adapter(base, tmp_path / "adapter")
    before = logits(store.load(tmp_path / "adapter"))
    theirs = save_adapter(base, tmp_path / "adapter", r=2)
    assert not torch.equal(logits(store.load(tmp_path / "adapter")), before)
    shutil.rmtree(base)
    save_llama(base, torch.bfloat16)
    theirs = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter"
    )
    found = logits(store.load(tmp_path / "adapter", "fp32"))
    assert_close(found, peft_logits(theirs.eval().float()), rtol=1e-4, atol=1e-4)
