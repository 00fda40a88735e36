"""A model trained here, written at 4 bits in the layouts that people publish: it is read, priced as it is stored and
writes text; its loss is near the float model's, and is not the same."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import zoo
import zoo.cli
from support import four_bit_rounding
from support.packaged_specs import one_in
from support.tiny_runs import write_corpus
from zoo.data.tokenizer import spell_bytes

TEXTS = [
    f"the {noun} {number} is {number * step}\n" for number in (3, 17, 31) for step, noun in enumerate(("cat", "dog"))
]
MODEL = ["n_layers=2", "d_model=256", "n_heads=4", "n_kv_heads=2", "head_dim=64", "d_ff=256", "vocab_size=257"]
RUN = [
    *(f"model.{each}" for each in (*MODEL, "max_seq_len=64")),
    *("data=text", "data.tokenizer.kind=byte", "steps=80", "batch_size=8", "seq_len=32", "eval_every=80"),
    *("eval_batches=1", "save_every=80", "sample=null", "optim.lr=0.003"),
]
GROUPS = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "group_size": 32, "symmetric": True}}}
METHODS = {
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": 32}, four_bit_rounding.gptq),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}, four_bit_rounding.awq),
    "compressed-tensors": (
        {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": GROUPS,
            "ignore": ["lm_head"],
        },
        four_bit_rounding.packed,
    ),
    "bitsandbytes": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, four_bit_rounding.nf4),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A trained model's Hugging Face folder."""
    place = tmp_path_factory.mktemp("trained")
    corpus = place / "corpus"
    corpus.mkdir()
    write_corpus(corpus)
    run = zoo.train("llama-tiny", [*RUN, f"data.path={corpus}", f"hydra.run.dir={place / 'run'}"])
    zoo.export(run.model, place / "hf", verify=False)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        for file in run.folder.rglob(name):
            shutil.copyfile(file, place / "hf" / name)
    return place / "hf"


def measure_loss(folder: Path) -> float:
    return zoo.evaluate(folder, TEXTS, dtype="fp32")["results"][0]["loss"]


@pytest.fixture(scope="module")
def loss(trained) -> float:
    found = measure_loss(trained)
    assert found < 1.5  # of bytes; 5.6 before it was trained
    return found


def check_model(folder: Path, kind: str, loss: float, trained: Path, capsys) -> None:
    """Hold a 4-bit model beside the float one, from Python and from the shell."""
    found = measure_loss(folder)
    assert 0 < abs(found - loss) < 0.1
    ours, plain = zoo.load(folder, dtype="fp32").state_dict(), zoo.load(trained, dtype="fp32").state_dict()
    for name, weight in plain.items():
        if ".attention." in name or ".ffn." in name:
            away = (ours[name] - weight).norm() / weight.norm()
            assert 0.005 < away < 0.2, name
    priced = zoo.stats(folder)["stored"]
    assert priced["as"] == kind and priced["bits_per_parameter"] < 9
    assert zoo.cli.run(["stats", str(folder)]) == 0
    assert kind in capsys.readouterr().out
    asked = ["generate", "--checkpoint", str(folder), "--prompt", "the ", "--max-new-tokens", "6", "--temperature", "0"]
    assert zoo.cli.run(asked) == 0
    assert capsys.readouterr().out.split("the ")[-1].split()[0] in ("cat", "dog", "cow", "hen")


@pytest.mark.filterwarnings("ignore:.*its weights are quantised")
@pytest.mark.parametrize("kind", one_in(4, METHODS))
@pytest.mark.slow
def test_a_folder_of_4_bits_is_near_the_model_that_was_trained(kind, trained, loss, tmp_path, capsys):
    settings, quantise = METHODS[kind]
    made = Path(shutil.copytree(trained, tmp_path / "made"))
    stored = {}
    for name, each in load_file(made / "model.safetensors").items():
        if "_proj" in name:
            own = quantise(each.float())
            stored |= {name.removesuffix(".weight") + end: tensor.contiguous() for end, tensor in own.items()}
        else:
            stored[name] = each.bfloat16()
    save_file(stored, made / "model.safetensors", {"format": "pt"})
    config = json.loads((made / "config.json").read_text())
    (made / "config.json").write_text(json.dumps({**config, "quantization_config": settings, "dtype": "bfloat16"}))
    check_model(made, kind, loss, trained, capsys)


@pytest.mark.parametrize("kind", ["Q4_K", "Q4_0"])
@pytest.mark.slow
def test_a_gguf_file_of_4_bits_is_near_the_model_that_was_trained(kind, trained, loss, tmp_path, capsys, monkeypatch):
    gguf = pytest.importorskip("gguf", reason="needs gguf (the extra of that name)")
    from support import gguf_files

    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(logging.getLogger("gguf.gguf_writer"), "disabled", True)
    reference = transformers.AutoModelForCausalLM.from_pretrained(trained, dtype=torch.float32)
    own = {"quantise": lambda values, _: four_bit_rounding.q4_k(values)} if kind == "Q4_K" else {}
    words = {"tokens": [*spell_bytes(), "<|endoftext|>"], "merges": []}
    file = gguf_files.write_gguf(reference, tmp_path / "made.gguf", "llama", kind=kind, **words, **own)
    if kind == "Q4_K":  # our blocks mean to the package what they were made of
        weight = reference.model.layers[0].mlp.up_proj.weight.detach().numpy()
        again = gguf.quants.dequantize(four_bit_rounding.q4_k(weight), gguf.GGMLQuantizationType.Q4_K)
        assert abs(again - weight).max() < 0.1 * abs(weight).max()
    check_model(file, f"GGUF, {kind}", loss, trained, capsys)
