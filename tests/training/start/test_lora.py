"""Low-rank adapters: against peft, merged, saved and gone on with, and refused where they cannot be."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file
from torch.testing import assert_close

import zoo
from support.adapted_models import LLAMA, adapted, logits, over, save_llama
from support.gguf_files import TOKENS, write_gguf
from support.quantised_storage import int8
from support.tiny_models import model_of, spec_of
from zoo import grammar
from zoo.checkpoint import base_identity, manifest, store
from zoo.cli import run
from zoo.data import DataSettings
from zoo.errors import CheckpointError, ConfigError
from zoo.run.adapters import Adapters, attach_adapters
from zoo.training.start.begin import StartSettings
from zoo.training.start.lora import Lora

# ---------------------------------------------------------------- what an adapter computes


def test_a_fresh_adapter_changes_nothing_and_another_seed_draws_others():
    plain = model_of()
    paths = Lora(on=("attention", "ffn")).choose(plain.spec)
    first, second = model_of(), model_of()
    for seed, model in enumerate((first, second)):
        attach_adapters(model, Adapters(4, 8.0, 0.0, paths), seed)
    assert torch.equal(logits(first), logits(plain))
    assert not torch.equal(first.blocks[0].attention.q.lora.a, second.blocks[0].attention.q.lora.a)


SHARED = ["block=shared_attention", "attention=mamba2"]


@pytest.mark.parametrize(
    "extra", [[], ["ffn=moe"], ["bias=true", "block=parallel"], ["block=post", "norm=layernorm"], SHARED]
)
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
    before = weights_of(here / "first")
    assert weights_of(here / "whole") == {}
    result = json.loads((here / "whole" / "result.json").read_text())
    widths = [(192, 192), (192, 64), (192, 64), (192, 192), (192, 512), (192, 512), (512, 192)]
    assert result["trained"] == 2 * sum(4 * (d_in + d_out) for d_in, d_out in widths)
    assert f"trains {result['trained']:,} of {result['params']:,} parameters" in said
    folder = zoo.runs.find(here / "whole")
    sizes = {each.name: each.stat().st_size for each in folder.glob("*.safetensors")}
    assert sum(sizes.values()) < 3 * 4 * result["trained"] + 30_000  # beside AdamW's two values of each, headers
    assert run(["generate", "--checkpoint", "whole", "--prompt", "word", "--max-new-tokens", "3"]) == 0
    assert run(["convert", "whole", "merged"]) == 0
    merged = store.load(here / "whole")
    assert not torch.equal(merged.state_dict()["blocks.0.ffn.up.weight"], before["blocks.0.ffn.up.weight"])
    assert torch.equal(merged.state_dict()["norm.weight"], before["norm.weight"])
    assert_close(store.load(here / "merged").state_dict(), merged.state_dict())
    assert run(["train", *SMALL, "weights=whole", "steps=1", "optim.lr=1e-9", "hydra.run.dir=next"]) == 0
    assert_close(weights_of(here / "next"), merged.state_dict(), rtol=0, atol=1e-6)


def _adapter_tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(zoo.runs.find(folder) / "adapter.safetensors")


@pytest.mark.slow
def test_a_run_with_adapters_goes_on_to_the_last_bit_over_the_model_it_began_with_alone(here, refused, capsys):
    assert run(["train", *SMALL, *MODEL, "steps=1", "hydra.run.dir=first"]) == 0
    lora = ["weights=first", "lora={rank:2,dropout:0.3}", "train=[norm*]", "save_every=2", "ema=0.9", "lawa=2"]
    assert run(["train", *SMALL, *lora, "steps=2", "schedule=constant", "hydra.run.dir=parts"]) == 0
    assert run(["train", *SMALL, *lora, "steps=4", "schedule=constant", "hydra.run.dir=reference"]) == 0
    base = zoo.runs.find(here / "first")
    before = weights_of(here / "first")["norm.weight"]
    base.rename(here / "elsewhere")
    capsys.readouterr()
    (line,) = refused("generate", "--checkpoint", "parts", "--prompt", "word")
    assert line.endswith(f"the adapters are for {base}, which is not there (the model, or a link to it)")
    base.symlink_to(here / "elsewhere")
    assert run(["train", "--resume", "parts", "steps=4"]) == 0
    for read in (_adapter_tensors, weights_of):
        for average in ("", "/ema", "/lawa"):
            expected, found = (read(here / f"{run}{average}") for run in ("reference", "parts"))
            assert expected.keys() == found.keys()
            assert all(torch.equal(each, found[name]) for name, each in expected.items())
    assert weights_of(here / "parts").keys() == {"norm.weight"}
    assert not torch.equal(weights_of(here / "parts")["norm.weight"], before)


@pytest.mark.slow
def test_a_run_of_an_older_version_whose_checkpoints_are_whole_goes_on_without_its_base(here):
    from safetensors.torch import save_file

    assert run(["train", *SMALL, *MODEL, "steps=1", "hydra.run.dir=first"]) == 0
    lora = ["weights=first", "lora={rank:2}", "save_every=2", "schedule=constant"]
    assert run(["train", *SMALL, *lora, "steps=4", "hydra.run.dir=reference"]) == 0
    assert run(["train", *SMALL, *lora, "steps=2", "hydra.run.dir=old"]) == 0
    folder = zoo.runs.find(here / "old")
    save_file(weights_of(here / "first"), folder / "model.safetensors")
    plan = json.loads((folder / "adapter.json").read_text())
    del plan["hash"]
    (folder / "adapter.json").write_text(json.dumps({**plan, "base": "first", "trained": []}))
    (folder / "manifest.json").unlink()
    shutil.rmtree(here / "first")
    assert run(["train", "--resume", "old", "steps=4"]) == 0
    found = _adapter_tensors(here / "old")
    assert all(torch.equal(each, found[name]) for name, each in _adapter_tensors(here / "reference").items())
    assert len(weights_of(here / "old")) == 20


# ---------------------------------------------------------------- a checkpoint and its base


def test_over_a_base_in_bfloat16_adapters_merge_in_float32_and_are_rounded_once(tmp_path):
    base = save_llama(tmp_path / "hf", torch.bfloat16)
    own = store.load(base, "fp32")
    model = adapted(own, ("attention",))
    folder = over(base, model, tmp_path / "saved", trained=("norm.weight",))
    assert {*weights_of(folder)} == {"norm.weight"}
    loaded, name = store.load(folder), "blocks.1.attention.q"
    product = own.get_submodule(name)
    a, b = (getattr(product.lora, each).detach().double() for each in "ab")
    expected = product.weight.detach().double() + 5.0 / 3 * (b @ a)
    assert loaded.state_dict()[f"{name}.weight"].dtype is torch.bfloat16
    assert_close(loaded.state_dict()[f"{name}.weight"], expected.bfloat16(), rtol=2**-7, atol=0)
    assert_close(store.load(folder, "fp32").state_dict()[f"{name}.weight"].double(), expected, rtol=1e-5, atol=1e-6)


def test_over_a_quantised_folder_adapters_have_the_weights_that_it_was_read_as(tmp_path):
    from safetensors.torch import load_file, save_file

    base = save_llama(tmp_path / "hf", torch.bfloat16)
    file, stored, weights = base / "model.safetensors", {}, {}
    for name, each in load_file(file).items():
        tensors, weights[name] = int8(tuple(each.shape), ".SCB") if "_proj" in name else ({".weight": each}, each)
        stored |= {name.removesuffix(".weight") + end: tensor.contiguous() for end, tensor in tensors.items()}
    save_file(stored, file)
    config = json.loads((base / "config.json").read_text())
    settings = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}, "dtype": "bfloat16"}
    (base / "config.json").write_text(json.dumps({**config, **settings}))
    model = adapted(store.load(base, "fp32"), ("attention",))
    folder = over(base, model, tmp_path / "saved")
    product = model.blocks[0].attention.q
    a, b = (getattr(product.lora, each).detach().double() for each in "ab")
    expected = weights["model.layers.0.self_attn.q_proj.weight"].double() + 5.0 / 3 * (b @ a)
    loaded = store.load(folder, "fp32")
    assert_close(loaded.blocks[0].attention.q.weight.detach().double(), expected, rtol=1e-4, atol=1e-5)
    assert_close(logits(loaded), logits(model), rtol=1e-4, atol=1e-4)
    assert store.load(folder).blocks[0].attention.q.weight.dtype is torch.bfloat16


def test_the_base_may_be_a_checkpoint_with_adapters_of_its_own(tmp_path):
    base = save_llama(tmp_path / "hf")
    first = adapted(store.load(base), ("attention",))
    over(base, first, tmp_path / "first")
    second = adapted(store.load(tmp_path / "first"), ("ffn",))
    over(tmp_path / "first", second, tmp_path / "second")
    assert not weights_of(tmp_path / "second")
    assert_close(logits(store.load(tmp_path / "second")), logits(second), rtol=1e-4, atol=1e-4)


def test_the_base_may_be_a_gguf_file_whose_unpacked_folder_is_gone(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    reference = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=len(TOKENS), **LLAMA))
    file = write_gguf(reference, tmp_path / "base.gguf", "llama")
    model = adapted(store.load(file, "fp32"), ("attention",))
    folder = over(file, model, tmp_path / "saved")
    shutil.rmtree(tmp_path / "cache")
    assert not weights_of(folder)
    assert_close(logits(store.load(folder)), logits(model), rtol=1e-4, atol=1e-4)


def test_a_base_that_is_gone_or_changed_is_refused_in_one_line_and_notes_beside_it_do_not_matter(
    tmp_path, refused, capsys
):
    base = save_llama(tmp_path / "hf")
    folder = over(base, adapted(store.load(base), ("attention",)), tmp_path / "saved")
    (base / "notes.txt").write_text("read on 3 May")
    whole = logits(store.load(folder))
    assert run(["check", str(folder)]) == 0
    save_llama(tmp_path / "other", torch.bfloat16)
    (base / "model.safetensors").write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    capsys.readouterr()
    (line,) = refused("convert", str(folder), str(tmp_path / "out"), "--to", "zoo")
    would = "those that the run began with; --no-verify reads it as it is"
    assert line == f"{folder}/adapter.json: the adapters are for {base}, which has other weights now ({would})"
    with manifest.unverified():
        assert_close(logits(store.load(folder, "fp32")), whole, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("to", ["hf", "zoo"])
def test_the_base_is_not_replaced_by_its_merge_with_the_adapters(tmp_path, refused, capsys, to):
    first = save_llama(tmp_path / "hf")
    assert run(["convert", str(first), str(tmp_path / "base"), "--to", to, "--no-verify"]) == 0  # zoo's own, to replace
    base = tmp_path / "base"
    folder = over(base, adapted(store.load(base), ("attention",)), tmp_path / "saved")
    before = (base / "model.safetensors").read_bytes()
    capsys.readouterr()
    for more in ([], ["--force"]):
        (line,) = refused("convert", str(folder), str(base), "--to", to, "--no-verify", *more)
        assert line == f"{base}: is the base that the adapters are for (a new folder would do)"
    assert (base / "model.safetensors").read_bytes() == before


def test_a_bases_hash_is_recalled_until_its_file_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(manifest, "WORTH", 100)
    base, counted, hashed = save_llama(tmp_path / "hf"), [], manifest.hash_file
    monkeypatch.setattr(manifest, "hash_file", lambda file: counted.append(file.name) or hashed(file))
    first = base_identity.identify_base(base)
    assert base_identity.identify_base(base) == first
    assert counted.count("model.safetensors") == 2  # written just now: its times may not tell of another writing
    monkeypatch.setattr(manifest, "RACE", 0)
    counted.clear()
    for _ in range(3):
        assert base_identity.identify_base(base) == first
    assert counted.count("model.safetensors") == 1
    weights = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    os.utime(base / "model.safetensors", ns=(0, 0))
    assert base_identity.identify_base(base) != first


def test_a_checkpoint_of_an_older_version_has_all_weights_and_needs_no_base(tmp_path):
    base = save_llama(tmp_path / "hf")
    model = adapted(store.load(base), ("attention",))
    model.adapters = replace(model.adapters, base=str(base))
    folder = store.save_model(model, tmp_path / "saved")
    shutil.rmtree(base)
    assert_close(logits(store.load(folder)), logits(model), rtol=1e-4, atol=1e-4)


def test_a_model_with_adapters_is_not_exported_without_them(tmp_path):
    model = adapted(store.load(save_llama(tmp_path / "hf")), ("attention",))
    with pytest.raises(CheckpointError, match="model: has adapters beside its weights"):
        zoo.export(model, tmp_path / "out", verify=False)


def test_adapters_of_nothing_are_refused(here, refused):
    (line,) = refused("train", *SMALL, *MODEL, "lora={rank:2}")
    assert line == "lora: adapts weights, and there are none (weights=FOLDER)"


def test_what_begins_with_adapters_says_what_becomes_of_them(tmp_path):
    base = save_llama(tmp_path / "hf")
    folder = over(base, adapted(store.load(base), ("attention",)), tmp_path / "saved")
    other = save_llama(tmp_path / "other", torch.bfloat16)
    spec = store.load(base).spec

    def told(weights, lora=None):
        lines = []
        StartSettings(str(weights), lora=lora).check(
            spec, DataSettings.read({"kind": "stdlib"}).tokenizer, lines.append
        )
        return [line for line in lines if "no tokenizer.json" not in line]

    (line,) = told(folder)
    assert line.startswith(f"weights: {folder} has adapters, which are merged into its base, and all weights train")
    plan = json.loads((folder / "adapter.json").read_text())
    lora = Lora(rank=plan["rank"], alpha=plan["alpha"], on=("attention",), adapter=str(folder))
    assert told(base, lora) == []
    run_folder = tmp_path / "run"  # of which the base is the newest checkpoint
    first = store.save_model(store.load(base), run_folder / "checkpoints/step-000001")
    (run_folder / "checkpoints/latest").write_text("step-000001\n")
    own = over(first, adapted(store.load(first), ("attention",)), tmp_path / "of-run")
    assert told(run_folder, replace(lora, adapter=str(own))) == []
    (line,) = told(other, lora)
    assert line == f"lora.adapter: {folder} was trained over {base}, and {other} has other weights (weights={base})"


def test_an_adapter_states_its_own_fields_and_others_are_refused(tmp_path, refused, capsys):
    base = store.save_model(model_of(), tmp_path / "base")
    model = adapted(store.load(base), ("ffn",), rank=5)
    folder = over(base, model, tmp_path / "one")
    figures = zoo.stats(base, lora={"adapter": str(folder)})
    assert figures["trained"] == zoo.stats(base, lora={"rank": 5, "on": ["ffn"]})["trained"]
    for stated, line in (
        ("rank: 3", f"lora.rank: is 3, that of {folder} is 5 (rank:5)"),
        ("dora: true", f"lora.dora: is true, that of {folder} is false (dora:false)"),
    ):
        assert refused("stats", str(base), "--lora", f"{{adapter: {folder}, {stated}}}") == [line]
    assert run(["stats", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert f"{2 * 3 * len(model.blocks)} tensors in its files are adapters of the " in " ".join(out.split())
    assert run(["stats", str(folder), "max_seq_len=64"]) == 0
    said = "a part of it was trained, and it is priced as one that trains as a whole (without overrides and --verify"
    assert f"zoo: note: {folder}: {said}" in " ".join(capsys.readouterr().err.split())


def test_an_adapter_is_priced_as_it_was_trained_by_the_values_that_it_stores(tmp_path):
    base = store.save_model(model_of(), tmp_path / "base")
    model = adapted(store.load(base), ("ffn",), rank=5)
    folder = over(base, model, tmp_path / "one")
    figures, expected = zoo.stats(folder), zoo.stats(base, lora={"rank": 5, "on": ["ffn"]})
    values = sum(each.numel() for each in load_file(folder / "adapter.safetensors").values())
    assert figures.pop("stored") == {"as": "F32, adapters", "bytes": 4 * values, "bits_per_parameter": 32.0}
    del expected["stored"]
    assert figures == expected and figures["trained"]["adapters"] == values
    whole = zoo.stats(folder, train=["*"])
    assert whole["trained"]["share"] == 1 and whole["flops"] == zoo.stats(model.spec)["flops"]


def test_a_run_is_priced_as_it_trained(tmp_path):
    run_folder = tmp_path / "run"
    first = store.save_model(model_of(), run_folder / "checkpoints/step-000001")
    (run_folder / "checkpoints/latest").write_text("step-000001\n")
    config = {"model": grammar.to_body(store.load_spec(first)), "freeze": ["embedding*"], "train": [], "lora": None}
    (run_folder / "config.yaml").write_text(yaml.safe_dump(config))
    expected = zoo.stats(store.load_spec(first), freeze=["embedding*"])
    for path in (run_folder, first, f"{run_folder}@1"):
        figures = zoo.stats(path)
        assert {name: figures[name] for name in expected} == expected
    (run_folder / "config.yaml").write_text(yaml.safe_dump({**config, "freeze": 3}))
    with pytest.raises(CheckpointError, match=r"config.yaml: freeze: is 3 \(a list\)"):
        zoo.stats(run_folder)
