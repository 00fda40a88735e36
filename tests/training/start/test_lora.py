"""Low-rank adapters: against peft, merged, saved and gone on with, and refused where they cannot be."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
import transformers
from torch.testing import assert_close

import zoo
from support.tiny_models import model_of, spec_of
from zoo.checkpoint import adapter_files, store
from zoo.cli import run
from zoo.errors import CheckpointError, ConfigError
from zoo.run.adapters import Adapters, attach_adapters
from zoo.training.start.lora import Lora

IDS = torch.randint(60, (2, 9), generator=torch.Generator().manual_seed(3))


def adapted(model, on: tuple[str, ...], rank: int = 3, dropout: float = 0.0):
    """The model with adapters on the products named, both matrices random."""
    paths = Lora(rank=rank, alpha=5.0, on=on).choose(model.spec)
    attach_adapters(model, Adapters(rank, 5.0, dropout, paths), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, each in model.named_parameters():
            if ".lora." in name:
                each.copy_(torch.randn(each.shape, generator=generator) * 0.2)
    return model.eval()


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


# ---------------------------------------------------------------- what an adapter computes


def test_a_fresh_adapter_changes_nothing_and_another_seed_draws_others():
    plain = model_of()
    paths = Lora(on=("attention", "ffn")).choose(plain.spec)
    first, second = model_of(), model_of()
    for seed, model in enumerate((first, second)):
        attach_adapters(model, Adapters(4, 8.0, 0.0, paths), seed)
    assert torch.equal(logits(first), logits(plain))
    assert not torch.equal(first.blocks[0].attention.q.lora.a, second.blocks[0].attention.q.lora.a)


@pytest.mark.parametrize("extra", [[], ["ffn=moe"], ["bias=true", "block=parallel"], ["block=post", "norm=layernorm"]])
def test_merged_weights_are_w_plus_scale_times_b_a_and_give_the_same_logits(extra, tmp_path):
    model = adapted(model_of(extra), ("attention", "ffn"))
    store.save_model(model, tmp_path / "saved")
    merged = store.load(tmp_path / "saved")
    assert_close(logits(merged), logits(model), rtol=1e-4, atol=1e-4)
    product = model.get_submodule(model.adapters.paths[-1])
    a, b = (getattr(product.lora, name).detach().double().numpy() for name in "ab")
    expected = product.weight.detach().double().numpy() + 5.0 / 3 * (b @ a)
    assert_close(
        merged.get_submodule(model.adapters.paths[-1]).weight.detach().double(),
        torch.tensor(expected),
        rtol=1e-5,
        atol=1e-6,
    )
    assert not any("lora" in name for name in merged.state_dict())


def test_dropout_drops_the_share_of_an_adapters_inputs_in_training_alone():
    model = adapted(model_of(), ("blocks.0.attention.q",), dropout=0.25)
    x = torch.ones(400, 32)
    product = model.blocks[0].attention.q
    assert torch.equal(product(x), product(x))
    dropped = product.train().lora.drop(x)
    assert dropped.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert float((dropped == 0).float().mean()) == pytest.approx(0.25, abs=0.03)
    assert not torch.equal(product(x), product(x))


# ---------------------------------------------------------------- which products


@pytest.mark.parametrize(
    ("overrides", "on", "count"),
    [
        ([], ("attention",), 3 * 4),
        ([], ("ffn",), 3 * 3),
        ([], ("blocks.*.attention.[qv]", "blocks.0.attention.*"), 3 * 2 + 2),
        (["head={kind: lm, tied: false}"], ("head",), 1),
        (["ffn=moe"], ("router",), 3),
    ],
)
def test_on_names_axes_and_patterns(overrides, on, count):
    assert len(Lora(on=on).choose(spec_of(overrides))) == count


@pytest.mark.parametrize(
    ("overrides", "on", "fault"),
    [
        ([], ("atention",), "lora.on: 'atention' names no product (did you mean 'attention'?)"),
        ([], ("zzz",), "lora.on: 'zzz' names no product (there are attention, ffn, head, and patterns as"),
        ([], ("head",), "lora.on: head.out is tied to embedding.tokens"),
        (["attention=mla"], ("attention",), "is also read as a plain weight"),
        ([], (), "lora.on: is empty"),
    ],
)
def test_what_can_have_no_adapter_is_refused_by_name(overrides, on, fault):
    with pytest.raises(ConfigError) as refusal:
        Lora(on=on).choose(spec_of(overrides))
    assert fault in str(refusal.value)


# ---------------------------------------------------------------- peft reads them


CASES = {
    "llama": (
        transformers.LlamaConfig,
        {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
        ("attention", "ffn"),
    ),
    "gpt2, whose q, k and v are fused and transposed": (
        transformers.GPT2Config,
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32},
        ("attention", "blocks.1.ffn.*"),
    ),
    "gpt2 without its keys": (
        transformers.GPT2Config,
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32},
        ("blocks.*.attention.[qv]",),
    ),
    "gpt-neox, whose q, k and v are fused by head": (
        transformers.GPTNeoXConfig,
        {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
        ("attention",),
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_peft_loads_exported_adapters_onto_the_hugging_face_model(case, tmp_path):
    config, sizes, on = case
    torch.manual_seed(0)
    reference = transformers.AutoModelForCausalLM.from_config(config(vocab_size=60, **sizes)).eval()
    with torch.no_grad():
        for each in reference.parameters():
            each.copy_(torch.randn(each.shape) * 0.2)
    reference.save_pretrained(tmp_path / "hf")
    model = adapted(store.load(tmp_path / "hf"), on)
    store.save_model(model, tmp_path / "ours")
    assert run(["convert", str(tmp_path / "ours"), str(tmp_path / "peft"), "--to", "peft"]) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what peft imports
        from peft import PeftModel

        base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
        loaded = PeftModel.from_pretrained(base, tmp_path / "peft").eval()
    with torch.no_grad():
        theirs, plain = loaded(IDS).logits, reference(IDS).logits
    assert_close(logits(model), theirs, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(theirs, plain, atol=1e-2)


def test_what_pefts_format_cannot_hold_is_refused_by_name(tmp_path):
    store.save_model(model_of(), tmp_path / "plain")
    with pytest.raises(CheckpointError, match="has no adapters"):
        adapter_files.save_for_peft(tmp_path / "plain", tmp_path / "out")
    store.save_model(adapted(model_of(["ffn=moe"]), ("ffn",)), tmp_path / "experts")
    with pytest.raises(
        CheckpointError, match=r"blocks.0.ffn.experts.gate.weight is adapted, and peft adapts no stacked"
    ):
        adapter_files.save_for_peft(tmp_path / "experts", tmp_path / "out")
    model = adapted(model_of(), ("ffn",))
    model.adapters = Adapters(3, 5.0, 0.0, model.adapters.paths, trained=("norm.weight",))
    store.save_model(model, tmp_path / "beside")
    with pytest.raises(CheckpointError, match=r"found norm.weight trained beside them"):
        adapter_files.save_for_peft(tmp_path / "beside", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- whole runs


SMALL = (
    *("data=text", "data.path=text.txt", "batch_size=2", "seq_len=16", "eval_batches=1", "optim.lr=0.02"),
    *("eval_every=null", "sample.tokens=3"),
)
MODEL = ("model.n_layers=2", "model.vocab_size=300", "data.tokenizer.kind=byte")


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(zoo.runs.find(folder) / "model.safetensors")


@pytest.mark.slow
def test_a_run_trains_adapters_alone_and_its_checkpoint_generates_converts_and_starts_others(here, capsys):
    assert run(["train", *SMALL, *MODEL, "steps=2", "hydra.run.dir=first"]) == 0
    lora = ["weights=first", "lora={rank:4,on:[attention,ffn],dropout:0.1}", "save_every=2"]
    assert run(["train", *SMALL, *lora, "steps=4", "hydra.run.dir=whole"]) == 0
    said = capsys.readouterr().err
    before, after = weights_of(here / "first"), weights_of(here / "whole")
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    result = json.loads((here / "whole" / "result.json").read_text())
    widths = [(192, 192), (192, 64), (192, 64), (192, 192), (192, 512), (192, 512), (512, 192)]
    assert result["trained"] == 2 * sum(4 * (d_in + d_out) for d_in, d_out in widths)
    assert f"trains {result['trained']:,} of {result['params']:,} parameters" in said
    assert run(["generate", "--checkpoint", "whole", "--prompt", "word", "--max-new-tokens", "3"]) == 0
    assert run(["convert", "whole", "merged"]) == 0
    merged = store.load(here / "whole")
    assert not torch.equal(merged.state_dict()["blocks.0.ffn.up.weight"], before["blocks.0.ffn.up.weight"])
    assert_close(store.load(here / "merged").state_dict(), merged.state_dict())
    assert run(["train", *SMALL, "weights=whole", "steps=1", "optim.lr=1e-9", "hydra.run.dir=next"]) == 0
    assert_close(weights_of(here / "next"), merged.state_dict(), rtol=0, atol=1e-6)


def _adapter_tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(zoo.runs.find(folder) / "adapter.safetensors")


@pytest.mark.slow
def test_a_run_with_adapters_goes_on_to_the_last_bit_without_the_weights_it_began_with(here):
    assert run(["train", *SMALL, *MODEL, "steps=1", "hydra.run.dir=first"]) == 0
    lora = ["weights=first", "lora={rank:2,dropout:0.3}", "train=[norm*]", "save_every=2"]
    assert run(["train", *SMALL, *lora, "steps=2", "schedule=constant", "hydra.run.dir=parts"]) == 0
    assert run(["train", *SMALL, *lora, "steps=4", "schedule=constant", "hydra.run.dir=reference"]) == 0
    before = weights_of(here / "first")["norm.weight"]
    (zoo.runs.find(here / "first") / "model.safetensors").unlink()
    assert run(["train", "--resume", "parts", "steps=4"]) == 0
    for read in (_adapter_tensors, weights_of):
        assert all(torch.equal(each, read(here / "reference")[name]) for name, each in read(here / "parts").items())
    assert not torch.equal(weights_of(here / "parts")["norm.weight"], before)


def test_adapters_of_nothing_are_refused(here, refused):
    (line,) = refused("train", *SMALL, *MODEL, "lora={rank:2}")
    assert line == "lora: adapts weights, and there are none (weights=FOLDER)"
