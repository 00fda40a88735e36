"""GGUF files: what they hold is the model that transformers has, in every type of ggml that can be written here."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import zoo
from support.logit_bounds import assert_close
from support.reference_folders import run
from zoo.checkpoint.gguf.gguf_tokenizer import find_merges
from zoo.families import gguf as headers

gguf = pytest.importorskip("gguf", reason="needs gguf (the extra of that name)")
from support import gguf_files  # noqa: E402

SIZES = {
    **{"vocab_size": len(gguf_files.TOKENS), "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "head_dim": 16},
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(logging.getLogger("gguf.gguf_writer"), "disabled", True)  # its remarks are no lines of ours


def make(config: str, model: str, **changes):
    """A reference model whose attention is far from even, so that a wrong order of rows shows."""
    torch.manual_seed(0)
    made = getattr(transformers, model)(getattr(transformers, config)(**{**SIZES, **changes})).eval()
    for parameter in made.parameters():
        parameter.data += torch.randn_like(parameter) * (0.15 if parameter.ndim > 1 else 0.1)
    return made


def llama(**changes):
    return make("LlamaConfig", "LlamaForCausalLM", **changes)


def compare(file: Path, reference, **options) -> None:
    ids = torch.arange(40).unsqueeze(0)
    with torch.inference_mode():
        assert_close(zoo.load(file, **options)(ids).logits, reference(ids).logits)


CASES = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", "llama", {}),
    "llama, tied": ("LlamaConfig", "LlamaForCausalLM", "llama", {"tie_word_embeddings": True}),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", "llama", {"num_local_experts": 4, "sliding_window": None}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", "qwen2", {}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", "qwen3", {}),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", "gemma", {}),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", "gemma2", {"sliding_window": 8, "query_pre_attn_scalar": 16}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_file_in_float32_is_the_model_it_was_written_from(tmp_path, case):
    config, model, architecture, changes = CASES[case]
    reference = make(config, model, **changes)
    drop = ("sliding_window",) if architecture in ("qwen2", "qwen3") else ()
    compare(gguf_files.write_gguf(reference, tmp_path / "a.gguf", architecture, drop=drop), reference)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K"])
def test_quantised_files_hold_what_transformers_dequantises(tmp_path, kind, monkeypatch):
    from transformers.integrations.gguf.kernels import dequantize_blocks

    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1, "head_dim": 64}
    reference, number, stored = llama(**sizes), gguf.GGMLQuantizationType[kind], {}

    def quantise(values: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
        return values if kind == gguf.GGMLQuantizationType.F32 else store(values, kind)

    monkeypatch.setattr(gguf, "quantize", quantise)
    file = gguf_files.write_gguf(reference, tmp_path / "a.gguf", "llama", kind=kind)
    for each in gguf.GGUFReader(file).tensors:
        stored[each.name] = torch.from_numpy(np.array(each.data))
    for name, parameter in reference.named_parameters():
        if parameter.ndim > 1:
            blocks = stored[gguf_files.name_of(name)]
            plain = {"F16": torch.float16, "BF16": torch.bfloat16}.get(kind)
            flat = blocks.view(plain).float() if plain else None
            if flat is None:
                flat = dequantize_blocks(blocks, int(number), len(blocks), parameter.shape[1], torch.float32)
            rows = flat.reshape(parameter.shape)
            heads = 4 if "q_proj" in name else 2 if "k_proj" in name else 0
            if heads:  # what llama.cpp interleaves
                own = gguf_files.permute(torch.arange(len(rows)), heads)
                rows = rows[own.argsort()]
            parameter.data = rows
    compare(file, reference, dtype="fp32")


def store(values: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """The blocks of a matrix: by the package where it writes the type, else drawn, with scales of 0.002."""
    if kind.name not in ("Q4_K", "Q6_K"):
        return gguf.quants.quantize(np.ascontiguousarray(values), kind)
    count, size = gguf.GGML_QUANT_SIZES[kind]
    drawn = np.random.default_rng(len(values)).integers(0, 256, (values.size // count, size), np.uint8)
    for place in {"Q4_K": (0, 2), "Q6_K": (208,)}[kind.name]:
        drawn[:, place : place + 2] = np.frombuffer(np.float16(0.002).tobytes(), np.uint8)
    return drawn.reshape(len(values), -1)


def test_llama_3s_scaling_is_found_by_its_factors(tmp_path):
    scaling = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0}
    scaling |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    reference = llama(rope_parameters=scaling)
    plain = 1.0 / 500000.0 ** (torch.arange(0, 16, 2) / 16)
    factors = plain / reference.model.rotary_emb.inv_freq
    file = gguf_files.write_gguf(reference, tmp_path / "a.gguf", "llama", extra={"rope_freqs.weight": factors})
    compare(file, reference)
    strange = gguf_files.write_gguf(reference, tmp_path / "b.gguf", "llama", extra={"rope_freqs.weight": factors + 0.5})
    with pytest.raises(zoo.CheckpointError, match=r"b\.gguf: rope_freqs\.weight: has a factor 1\.5 where Llama 3's"):
        zoo.load(strange)


def test_a_split_file_is_read_whole(tmp_path):
    reference = llama()
    whole = gguf_files.write_gguf(reference, tmp_path / "a.gguf", "llama")
    found = gguf.GGUFReader(whole)
    half = len(found.tensors) // 2
    for number, tensors in ((1, found.tensors[:half]), (2, found.tensors[half:])):
        writer = gguf.GGUFWriter(tmp_path / f"s-{number:05}-of-00002.gguf", "llama")
        for field in found.fields.values() if number == 1 else ():
            if not field.name.startswith(("GGUF.", "general.architecture")):
                inner = field.types[1] if len(field.types) > 1 else None
                writer.add_key_value(field.name, field.contents(), field.types[0], inner)
        writer.add_uint16("split.count", 2)
        for each in tensors:
            writer.add_tensor(each.name, np.array(each.data), raw_dtype=each.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    compare(tmp_path / "s-00001-of-00002.gguf", reference)
    (tmp_path / "s-00002-of-00002.gguf").unlink()
    with pytest.raises(zoo.CheckpointError, match=r"s-00002-of-00002\.gguf: no such file"):
        zoo.load(tmp_path / "s-00001-of-00002.gguf")


@pytest.mark.slow
def test_it_is_priced_written_from_and_exported_like_a_folder(tmp_path, capsys):
    file = gguf_files.write_gguf(llama(), tmp_path / "a.gguf", "llama", kind="Q8_0")
    code, said, _ = run(capsys, "generate", "--checkpoint", file, "--prompt", "hello", "--max-new-tokens", "3")
    assert code == 0 and said
    code, said, _ = run(capsys, "check", file)
    assert code == 0 and f"{file}: whole (llama" in said
    out = tmp_path / "out"
    code, said, error = run(capsys, "convert", file, out, "--to", "hf", "--dtype", "fp32")
    assert code == 0 and "verified" in said, error
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert tokenizer.encode("hello<|end|>") == [258, gguf_files.TOKENS.index("o"), 259]
    assert tokenizer.eos_token == "<|end|>" and "m['content']" in tokenizer.chat_template
    assert zoo.load(out).spec == zoo.load(file).spec


def test_its_price_reads_the_header_alone_and_says_what_is_stored(tmp_path):
    file = gguf_files.write_gguf(llama(), tmp_path / "a.gguf", "llama", kind="Q8_0")
    code = (
        "import json, sys, zoo; print(json.dumps(zoo.stats(sys.argv[1])));"
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'gguf')))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    priced = json.loads(done.stdout)
    assert priced["params"]["total"] == sum(each.numel() for each in llama().parameters())
    assert priced["stored"]["as"] == "GGUF, Q8_0" and 8.4 < priced["stored"]["bits_per_parameter"] < 9


def test_a_vocabulary_of_scores_merges_as_sentencepiece_does():
    tokens = ["<unk>", "a", "b", "c", "ab", "bc", "abc"]
    merges = find_merges(tokens, [2, *[1] * 6], [0, 0, 0, 0, -2, -1, -3])
    assert merges == [("b", "c"), ("a", "b"), ("ab", "c"), ("a", "bc")]


@pytest.mark.parametrize(
    ("metadata", "fault"),
    [
        ({"llama.attention.sliding_window": 4}, "llama.attention.sliding_window: is 4, which no model here reads"),
        ({"llama.moon_phase": 3}, "llama.moon_phase: is 3, which no model here reads (leave it out)"),
        (
            {"llama.rope.dimension_count": 8},
            "llama.rope.dimension_count: is 8, which no model here reads (16 would do)",
        ),
        ({"llama.rope.scaling.type": "bent"}, "rope.scaling: is {'type': 'bent'}, which is not read"),
    ],
    ids=["window", "unknown", "partial", "scaling"],
)
def test_metadata_that_nothing_reads_is_refused_in_one_line(tmp_path, capsys, metadata, fault):
    file = gguf_files.write_gguf(llama(), tmp_path / "a.gguf", "llama", metadata=metadata)
    code, said, error = run(capsys, "stats", file)
    assert code == 2 and said == "" and fault in error and "Traceback" not in error


def test_broken_files_and_unknown_architectures_are_told_apart(tmp_path, capsys, monkeypatch):
    file = gguf_files.write_gguf(llama(), tmp_path / "a.gguf", "llama")
    content = file.read_bytes()
    for cut, fault in ((0, "cannot be read"), (40, "ends at byte 40, within its header"), (-100, "ends at byte")):
        (tmp_path / "b.gguf").write_bytes(content[:cut] if cut else b"")
        code, _, error = run(capsys, "check", tmp_path / "b.gguf")
        assert code == 2 and fault in error and "Traceback" not in error
    (tmp_path / "c.gguf").write_bytes(content.replace(b"llama", b"llamo"))
    assert (
        "general.architecture: 'llamo' is not read (did you mean 'llama'"
        in run(capsys, "stats", tmp_path / "c.gguf")[2]
    )
    monkeypatch.setattr("zoo.checkpoint.gguf.tensors.find_spec", lambda name: None)
    assert "gguf: the package is not installed (pip install" in run(capsys, "check", file)[2]


def test_every_architecture_is_of_a_family_here_and_known_to_the_package():
    from zoo.families.family import by_model_type

    for name, row in headers.read_catalogue()["architectures"].items():
        stated = row.get("model_type", name)
        types = [word for word in stated.replace('"', " ").split() if word in by_model_type()]
        assert types and name in gguf.MODEL_ARCH_NAMES.values(), name
