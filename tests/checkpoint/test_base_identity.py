"""The identity of an adapter's base: that of its tensors, in every form of file."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import zoo
from support.adapted_models import IDS, adapted, logits, over, save_llama
from zoo.checkpoint import adapter_files, base_identity, store
from zoo.cli import run
from zoo.errors import CheckpointError, ConfigError


def save_gpt2(folder):
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=32)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def convert(source, out, *how):
    assert run(["convert", str(source), str(out), "--no-verify", *how]) == 0
    return out


@pytest.mark.parametrize("save", (lambda folder: save_llama(folder, torch.bfloat16), save_gpt2))
def test_a_converted_copy_of_a_base_is_the_base(save, tmp_path):
    first = save(tmp_path / "hf")
    folder = over(first, adapted(store.load(first), ("attention",)), tmp_path / "adapter")
    original = zoo.load(first, adapters={"own": folder})
    wanted, dtype = zoo.generate(original, IDS, 4, adapter="own"), next(original.parameters()).dtype
    copies = [convert(first, tmp_path / "zoo", "--to", "zoo")]
    copies.append(convert(copies[0], tmp_path / "back", "--to", "hf"))
    copies.append(convert(first, tmp_path / "wider", "--to", "hf", "--dtype", "fp32"))
    copies.append(tmp_path / "bin")
    copies[-1].mkdir()
    (copies[-1] / "config.json").write_bytes((first / "config.json").read_bytes())
    torch.save(load_file(first / "model.safetensors"), copies[-1] / "pytorch_model.bin")
    for copy in copies:
        model = zoo.load(copy, dtype, adapters={"own": folder})
        assert torch.equal(zoo.generate(model, IDS, 4, adapter="own"), wanted)


def test_a_base_with_one_other_value_or_with_the_values_of_another_tensor_is_another(tmp_path):
    base = save_llama(tmp_path / "hf")
    first = base_identity.identify_base(base)
    stored = load_file(base / "model.safetensors")
    q, k = (f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1))
    nudged = stored[q].clone()
    nudged[0, 0] = torch.nextafter(nudged[0, 0], torch.tensor(1.0))
    for changed in ({q: nudged}, {q: stored[k], k: stored[q]}):
        save_file(stored | changed, base / "model.safetensors", {"format": "pt"})
        assert not base_identity.is_base(base, first)
    save_file(stored, base / "model.safetensors", {"format": "pt"})
    assert base_identity.is_base(base, first)


def test_an_adapter_that_states_the_hash_of_its_bases_files_opens(tmp_path):
    base = save_llama(tmp_path / "hf")
    model = adapted(store.load(base), ("attention",))
    model.adapters = replace(model.adapters, base=str(base), hash=base_identity.identify_files(base))
    folder = store.save_model(model, tmp_path / "old")
    torch.testing.assert_close(logits(store.load(folder)), logits(model), rtol=1e-4, atol=1e-4)
    assert zoo.load(base, adapters={"old": folder}).served.named.keys() == {"old"}
    save_llama(base, tie_word_embeddings=True)
    with pytest.raises(CheckpointError, match="which has other weights now"):
        store.load(folder)


def test_the_tensors_are_hashed_once(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    base = save_llama(tmp_path / "hf")
    first = adapter_files.choose_base(base)
    monkeypatch.setattr(base_identity, "_open_tensors", lambda path: pytest.fail("was read again"))
    assert adapter_files.choose_base(base) == first


def test_an_adapter_of_another_architecture_with_the_same_tensors_is_not_served(tmp_path):
    base = save_llama(tmp_path / "hf")
    folder = over(base, adapted(store.load(base), ("attention",)), tmp_path / "adapter")
    config = json.loads((base / "config.json").read_text())
    rope = {"rope_type": "default", "rope_theta": 77.0}
    (base / "config.json").write_text(json.dumps({**config, "rope_parameters": rope}))
    with pytest.raises(ConfigError, match=r"is for another architecture than .*theta: is 10000.0, would be 77.0"):
        zoo.load(base, adapters={"own": folder})
