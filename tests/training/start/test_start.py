"""Runs that start from weights: what they read, which tokenizer they take, and which weights train."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file

import zoo
from support.tiny_models import model_of, spec_of
from zoo.checkpoint import store
from zoo.cli import run
from zoo.data.tokenizer import make_byte_tokenizer
from zoo.errors import ConfigError
from zoo.training.optim import AdamW
from zoo.training.start.frozen import choose_trained, freeze_others

SMALL = (
    *("data=text", "data.path=text.txt", "batch_size=2", "seq_len=16", "eval_batches=1", "eval_every=null"),
    *("steps=2", "sample.tokens=3"),
)
BARELY = "optim.lr=1e-12"  # that a saved model is still the one that was read


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(zoo.runs.find(folder) / "model.safetensors")


@pytest.fixture
def published(here: Path) -> Path:
    """A random Llama as transformers saves it, with a tokenizer beside it."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(vocab_size=260, num_key_value_heads=2, **sizes)
    transformers.LlamaForCausalLM(config).save_pretrained(here / "there")
    make_byte_tokenizer().save(here / "there")
    return here / "there"


# ---------------------------------------------------------------- where weights come from


def test_a_hugging_face_folder_is_model_weights_and_tokenizer_in_one_word(published, here, capsys):
    assert run(["train", *SMALL, "weights=there", BARELY, "hydra.run.dir=ours"]) == 0
    said = capsys.readouterr().err
    whole = store.load(published)
    count = sum(each.numel() for each in whole.parameters())
    assert f"weights: {len(whole.state_dict())} tensors, {count:,} values, of {published}" in said
    trained = weights_of(here / "ours")
    assert all(torch.allclose(trained[name], each, atol=1e-7) for name, each in whole.state_dict().items())
    config = yaml.safe_load((here / "ours" / "config.yaml").read_text())
    assert config["weights"] == str(published)
    stated = {name: value for name, value in config["data"]["tokenizer"].items() if value is not None}
    assert stated == {"kind": "file", "path": str(published)}


def test_a_run_goes_on_when_its_first_weights_are_gone_but_the_tokenizer(published, here):
    assert run(["train", *SMALL, "weights=there", "hydra.run.dir=ours", "save_every=1", "schedule=constant"]) == 0
    (published / "model.safetensors").unlink()
    assert run(["train", "--resume", "ours", "steps=3"]) == 0
    assert json.loads((here / "ours" / "result.json").read_text())["steps"] == 3


def test_a_runs_weights_start_another_with_what_the_command_changes(here):
    own = ["model.n_layers=2", "model.vocab_size=300", "data.tokenizer.kind=byte"]
    assert run(["train", *SMALL, *own, "hydra.run.dir=first"]) == 0
    assert run(["train", *SMALL, "weights=first", BARELY, "attention=mqa", "ffn=moe", "hydra.run.dir=next"]) == 0
    before, after = weights_of(here / "first"), weights_of(here / "next")
    k = before["blocks.0.attention.k.weight"]
    assert torch.allclose(after["blocks.0.attention.k.weight"], (k[:32] + k[32:]) / 2, atol=1e-6)
    experts = after["blocks.1.ffn.experts.down.weight"]
    assert all(torch.allclose(each, before["blocks.1.ffn.down.weight"], atol=1e-6) for each in experts)


def test_a_config_file_may_name_the_weights(published, here):
    settings = {"weights": "there", "steps": 1, "batch_size": 2, "seq_len": 16, "eval_batches": 1, "sample": None}
    (here / "tune.yaml").write_text(yaml.safe_dump(settings))
    assert run(["train", "-c", "tune.yaml", "data=text", "data.path=text.txt", "hydra.run.dir=ours"]) == 0
    assert store.load_spec(here / "ours") == store.load_spec(published)


def test_what_cannot_start_a_run_leaves_no_folder(published, here, refused):
    line, *_ = refused("train", *SMALL, "weights=there", "model.vocab_size=100", "hydra.run.dir=ours")
    assert line.startswith("weights: embedding.tokens.weight has shape [260, 32], the model's is [100, 32]")
    (line,) = refused("train", *SMALL, "weights=nowhere", "hydra.run.dir=ours")
    assert line == "nowhere: no such folder (a checkpoint, or the folder of a run)"
    (published / "tokenizer.json").unlink()
    (line,) = refused("train", *SMALL, "weights=there", "hydra.run.dir=ours")
    assert line.startswith("weights: there has no tokenizer.json (data.tokenizer.kind=file data.tokenizer.path=")
    (line,) = refused("train", *SMALL, "deepen=identity", "data.tokenizer.kind=byte", "hydra.run.dir=ours")
    assert line == "deepen: is identity, and no weights are read (weights=FOLDER)"
    assert not (here / "ours").exists()


def test_a_vocabulary_that_is_too_small_for_the_models_own_tokenizer_is_refused(published, capsys):
    config = json.loads((published / "config.json").read_text())
    (published / "config.json").write_text(json.dumps({**config, "vocab_size": 200}))
    tensors = load_file(published / "model.safetensors")
    small = {name: each[:200] if each.shape[0] == 260 else each for name, each in tensors.items()}
    save_file({name: each.contiguous() for name, each in small.items()}, published / "model.safetensors")
    assert run(["train", *SMALL, "weights=there"]) == 2
    assert "config.json: vocab_size: is 200, fewer than the tokenizer's 257" in capsys.readouterr().err


# ---------------------------------------------------------------- which of them train


def test_frozen_weights_stay_to_the_bit_and_the_others_move(here):
    own = ["model.n_layers=2", "model.vocab_size=300", "data.tokenizer.kind=byte", "optim.lr=0.1"]
    assert (
        run(["train", *SMALL, *own, "steps=1", "hydra.run.dir=a", "freeze=[embedding*,blocks.0.*,'*.ffn.up.*']"]) == 0
    )
    fresh = zoo.build(store.load_spec(here / "a"), device="cpu").state_dict()
    after = weights_of(here / "a")
    for name, tensor in fresh.items():
        frozen = name.startswith(("embedding", "blocks.0.")) or ".ffn.up." in name
        assert torch.equal(tensor, after[name]) == frozen, name
    held = load_file(zoo.runs.find(here / "a") / "training.safetensors")
    assert not any(name.startswith(("optimizer.embedding", "optimizer.blocks.0.")) for name in held)
    result = json.loads((here / "a" / "result.json").read_text())
    assert result["params"] == sum(each.numel() for each in fresh.values())
    still = sum(each.numel() for name, each in fresh.items() if torch.equal(each, after[name]))
    assert result["trained"] == result["params"] - still


def test_a_gradient_is_the_same_whether_others_are_frozen_or_not():
    whole, part = model_of(), model_of()
    freeze_others(part, choose_trained(part.spec, (), ("blocks.1.attention.*", "norm.weight")))
    ids = torch.randint(67, (2, 9), generator=torch.Generator().manual_seed(1))
    for model in (whole, part):
        model(ids).logits.square().mean().backward()
    moving = {name for name, each in part.named_parameters() if each.grad is not None}
    assert moving == {"norm.weight", *(f"blocks.1.attention.{each}.weight" for each in "qkvo")}
    for name in moving:
        assert torch.equal(part.get_parameter(name).grad, whole.get_parameter(name).grad)
    groups = AdamW().build(part).param_groups
    assert {id(each) for group in groups for each in group["params"]} == {id(part.get_parameter(n)) for n in moving}


@pytest.mark.parametrize(
    ("freeze", "train", "fault"),
    [
        (("embed",), (), "freeze: 'embed' matches no weight (there are embedding.*, blocks.0.* to blocks.2.*, norm.*)"),
        ((), ("head*",), "train: 'head*' matches no weight"),
        (("*",), (), "freeze: leaves nothing to train of 29 weights (fewer patterns)"),
        (("norm*",), ("norm*",), "freeze: leaves nothing to train"),
    ],
)
def test_a_pattern_that_does_nothing_or_too_much_is_refused(freeze, train, fault):
    with pytest.raises(ConfigError) as refusal:
        choose_trained(spec_of(), freeze, train)
    assert str(refusal.value).startswith(fault)
