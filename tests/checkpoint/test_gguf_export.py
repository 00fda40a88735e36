"""`zoo convert --to gguf`: what is written is what llama.cpp's converter writes, and what other readers read."""

from __future__ import annotations

import json
import logging
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers

import zoo
from support.logit_bounds import assert_close
from support.reference_folders import run
from zoo.checkpoint import gguf_export, store
from zoo.checkpoint.gguf_vocabulary import describe_vocabulary

gguf = pytest.importorskip("gguf", reason="needs gguf (the extra of that name)")
from support import gguf_files  # noqa: E402
from support.converted_gguf_files import convert_case, make_case  # noqa: E402

SIZES = {
    **{"vocab_size": len(gguf_files.TOKENS), "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "head_dim": 16},
    **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
}
GPT2 = {"vocab_size": 261, "n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 64, "eos_token_id": 2}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SCALED = {"rope_parameters": {**LLAMA3, "original_max_position_embeddings": 8192}}
CASES = {
    "Llama": {},
    "Llama with a scaling": SCALED,
    "Mixtral": {"num_local_experts": 4, "sliding_window": None},
    "Qwen2": {"tie_word_embeddings": True},
    "Qwen3": {},
    "Qwen3Moe": MOE,
    "Gemma": {},
    "Gemma2": {"sliding_window": 8, "query_pre_attn_scalar": 16},
    "Gemma3 text": {"sliding_window": 8, "query_pre_attn_scalar": 16, "num_hidden_layers": 6},
    "Phi": {"head_dim": None},
    "StableLm": {"head_dim": None},
    "GPT2": {},
    "Phi3 as Llama": {},
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(logging.getLogger("gguf.gguf_writer"), "disabled", True)  # its remarks are no lines of ours


def make(case: str, folder: Path):
    """A reference model and its folder, every weight drawn."""
    kind = case.split()[0]
    fields = {name: value for name, value in {**SIZES, **CASES[case]}.items() if value is not None or name[:2] == "sl"}
    config, model = f"{kind}Config", f"{kind}ForCausalLM"
    if kind == "GPT2":
        fields, model = GPT2, "GPT2LMHeadModel"
    elif kind == "Gemma3":
        config = "Gemma3TextConfig"
    torch.manual_seed(0)
    made = getattr(transformers, model)(getattr(transformers, config)(**fields)).eval()
    for parameter in made.parameters():
        parameter.data += torch.randn_like(parameter) * (0.15 if parameter.ndim > 1 else 0.1)
    made.save_pretrained(folder)
    return made


def write(folder: Path, out: Path, kind: str = "f32") -> gguf_export.Written:
    return gguf_export.save(store.open_model(folder, None, mapped=False), out, folder, kind)


def read_all(file: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """What the package's own reader finds: metadata and tensors."""
    found = gguf.GGUFReader(file)
    return (
        {name: field.contents() for name, field in found.fields.items()},
        {each.name: np.array(each.data) for each in found.tensors},
    )


def assert_same(ours: Path, theirs: Path) -> None:
    """Every tensor of the converter's file, and every entry of the architecture's metadata, is in ours."""
    (metadata, tensors), (wanted, values) = read_all(ours), read_all(theirs)
    assert tensors.keys() == values.keys()
    for name, value in values.items():
        np.testing.assert_allclose(tensors[name], value, rtol=0, atol=1e-6, err_msg=name)
    start = f"{metadata['general.architecture']}."
    assert metadata["general.architecture"] == wanted["general.architecture"]
    for name, value in wanted.items():
        if name.startswith(start):
            assert metadata[name] == pytest.approx(value), name


@pytest.mark.parametrize(
    ("case", "architecture"),
    [("Llama", "llama"), ("Mixtral", "llama"), ("Qwen2", "qwen2"), ("Qwen3", "qwen3"), ("Gemma", "gemma")],
)
def test_the_file_is_the_one_that_llama_cpps_converter_writes(tmp_path, case, architecture):
    reference = make(case, tmp_path / "hf")
    drop = ("sliding_window",) if architecture.startswith("qwen") else ()
    theirs = gguf_files.write_gguf(reference, tmp_path / "theirs.gguf", architecture, drop=drop)
    assert write(tmp_path / "hf", tmp_path / "ours.gguf").architecture == architecture
    assert_same(tmp_path / "ours.gguf", theirs)


@pytest.mark.parametrize("case", ["gptneox", "falcon", "falcon of one key", "mpt", "starcoder", "hunyuan-dense"])
def test_so_it_is_where_the_converter_changes_names_and_layout(tmp_path, case):
    theirs = convert_case(case, make_case(case), tmp_path)
    write(tmp_path / "hf", tmp_path / "ours.gguf")
    assert_same(tmp_path / "ours.gguf", theirs)


MORE = ["glm4moe", "granitemoe with a shared expert", "mamba", "mamba2"]


@pytest.mark.parametrize("case", MORE)
def test_every_tensor_of_experts_and_states_is_the_one_that_the_converter_writes(tmp_path, case):
    reference = make_case(case)
    theirs = convert_case(case, reference, tmp_path)
    write(tmp_path / "hf", tmp_path / "a.gguf")
    (_, tensors), (_, values) = read_all(tmp_path / "a.gguf"), read_all(theirs)
    assert tensors.keys() == values.keys()
    for name, value in values.items():
        np.testing.assert_allclose(tensors[name], value, rtol=0, atol=1e-6, err_msg=name)
    ids = torch.arange(40)[None]
    with pytest.warns(UserWarning, match="the model is read without its tokenizer"), torch.inference_mode():
        assert_close(zoo.load(tmp_path / "a.gguf")(ids).logits, reference(ids).logits)


@pytest.mark.parametrize("case", CASES)
def test_a_model_that_was_written_and_read_gives_the_references_logits(tmp_path, case):
    reference = make(case, tmp_path / "hf")
    written = write(tmp_path / "hf", tmp_path / "a.gguf")
    ids = torch.arange(40)[None]
    with pytest.warns(UserWarning, match="the model is read without its tokenizer"), torch.inference_mode():
        assert_close(zoo.load(tmp_path / "a.gguf")(ids).logits, reference(ids).logits)
    assert "tensors, equal" in written.compared or "within" in written.compared


@pytest.mark.parametrize("case", ["Llama", "Qwen2", "StableLm"])
def test_transformers_reads_the_same_model(tmp_path, case):
    reference = make(case, tmp_path / "hf")
    write(tmp_path / "hf", tmp_path / "a.gguf")
    found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="a.gguf", dtype=torch.float32)
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        assert torch.equal(found(ids).logits, reference(ids).logits)


@pytest.mark.parametrize("case", [*CASES, *MORE])
def test_llama_cpp_gives_its_logits(tmp_path, case):
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")
    make(case, tmp_path / "hf") if case in CASES else make_case(case).save_pretrained(tmp_path / "hf")
    compared = write(tmp_path / "hf", tmp_path / "a.gguf").compared
    largest = float(compared.split("largest difference ")[1].split()[0])
    assert largest < (5e-3 if case.startswith(("Gemma", "Phi", "GPT2")) else 3e-5)  # GELU: a table of 16 bits


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0", "q5_0", "q5_1", "q4_0", "q4_1"])
def test_matrices_have_the_type_that_was_asked_for_and_the_values_of_the_packages_quantiser(tmp_path, kind):
    reference = make("Qwen3", tmp_path / "hf")
    write(tmp_path / "hf", tmp_path / "a.gguf", kind)
    stored = {each.name: each for each in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    assert stored["blk.0.attn_norm.weight"].tensor_type.name == "F32"
    type_ = gguf.GGMLQuantizationType[kind.upper()]
    found = stored["blk.1.ffn_down.weight"]
    wanted = gguf.quants.quantize(reference.model.layers[1].mlp.down_proj.weight.detach().numpy(), type_)
    assert found.tensor_type == type_ and np.array(found.data).tobytes() == wanted.tobytes()


def make_tokenizer(folder: Path, kind: str) -> tokenizers.Tokenizer:
    """A trained tokenizer of a kind, saved by transformers with its special tokens and a chat template."""
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

    texts = ["hello world, hello there! 123 4567", "the world is a hello, isn't it?  Naïve 東京"] * 4
    special = ["<unk>", "<s>", "</s>"]
    if kind == "byte-level":
        made = tokenizers.Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
        made.train_from_iterator(texts, trainer)
    else:
        pieces = [
            "h",
            "e",
            "l",
            "o",
            "w",
            "r",
            "d",
            "\u2581",
            "he",
            "ll",
            "hell",
            "\u2581w",
            "or",
            "hello",
            "\u2581wor",
        ]
        tokens = [*special, *(f"<0x{each:02X}>" for each in range(256)), *pieces]
        merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("\u2581", "w"), ("o", "r"), ("hell", "o"), ("\u2581w", "or")]
        places = {token: number for number, token in enumerate(tokens)}
        made = tokenizers.Tokenizer(models.BPE(places, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
        made.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
        made.add_special_tokens(special)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=made, **named)
    wrapped.chat_template = "{% for m in messages %}{{ m['content'] }}</s>{% endfor %}"
    wrapped.save_pretrained(folder)
    return made


@pytest.mark.parametrize("kind", ["byte-level", "SentencePiece"])
def test_the_tokenizer_goes_along(tmp_path, kind, capsys):
    made = make_tokenizer(tmp_path / "hf", kind)
    fields: dict[str, Any] = {**SIZES, "vocab_size": made.get_vocab_size() + 3}
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**fields)).save_pretrained(tmp_path / "hf")
    code, said, error = run(capsys, "convert", tmp_path / "hf", tmp_path / "a.gguf", "--to", "gguf", "--type", "q8_0")
    assert code == 0 and "the same ids of 5 texts" in said, error
    metadata, _ = read_all(tmp_path / "a.gguf")
    said = {name.removeprefix("tokenizer."): each for name, each in metadata.items() if name.startswith("tokenizer.")}
    assert said["ggml.model"] == ("gpt2" if kind == "byte-level" else "llama")
    assert [said["ggml.tokens"][number] for number in range(3)] == ["<unk>", "<s>", "</s>"]
    assert said["ggml.token_type"][-3:] == [5, 5, 5]  # rows of the embedding without a token
    assert (said["ggml.bos_token_id"], said["ggml.eos_token_id"], said["ggml.add_bos_token"]) == (1, 2, True)
    assert not said["ggml.add_eos_token"] and "m['content']" in said["chat_template"]
    if find_spec("llama_cpp"):
        llama_cpp = import_module("llama_cpp")
        model = llama_cpp.Llama(str(tmp_path / "a.gguf"), vocab_only=True, verbose=False)
        for text in ("hello world", "hello  there 123", "naïve"):
            assert model.tokenize(text.encode(), special=True) == made.encode(text).ids


PAGE = Path(__file__).parents[2] / "docs" / "convert.md"


def test_llama_cpp_opens_a_file_as_the_page_says(tmp_path, monkeypatch):
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")
    for name, case in (("OUT", "Llama"), ("ENCODER", "Roberta")):
        made = make_tokenizer(tmp_path / name, "byte-level")
        fields = {**SIZES, **(ALONE if case == "Roberta" else {}), "vocab_size": made.get_vocab_size()}
        fields = {name: value for name, value in fields.items() if value is not None}
        torch.manual_seed(0)
        kind = transformers.LlamaForCausalLM if case == "Llama" else transformers.RobertaModel
        model = kind(getattr(transformers, f"{case}Config")(**fields))
        for parameter in model.parameters():
            parameter.data += torch.randn_like(parameter) * 0.1
        model.save_pretrained(tmp_path / name)
        stored = store.open_model(tmp_path / name, None, mapped=False)
        gguf_export.save(
            stored, tmp_path / f"{name}.gguf", tmp_path / name, "f32", pooling="mean" * (case == "Roberta")
        )
    monkeypatch.chdir(tmp_path)
    (block,) = (each for each in PAGE.read_text("utf-8").split("```python\n") if "from llama_cpp" in each)
    found: dict[str, Any] = {}
    exec(block.partition("```")[0], found)
    ids = torch.tensor([made.encode("hello").ids])
    wanted = zoo.generate(zoo.load("OUT.gguf"), ids, max_new_tokens=8, temperature=0, stop_ids=[2])[0, ids.shape[1] :]
    ends = wanted.tolist().index(2) if 2 in wanted else 8
    assert found["text"].encode("ascii", "ignore") == made.decode(wanted[:ends].tolist()).encode("ascii", "ignore")
    assert found["answer"]["choices"][0]["message"]["role"] == "assistant"
    ours = zoo.embed("ENCODER.gguf", ["A man is eating.", "Someone dines."])
    assert np.abs(np.array(found["vectors"]) - np.asarray(ours)).max() < 2e-3


@pytest.mark.filterwarnings("ignore:.*the model is read without its tokenizer")
def test_what_cannot_be_written_is_refused_before_there_is_a_file(tmp_path, capsys):
    make("Llama", tmp_path / "hf")
    out = tmp_path / "a.gguf"

    def refused(*args: object) -> str:
        code, said, error = run(capsys, "convert", *args)
        assert code == 2 and said == "" and "Traceback" not in error
        return error

    types = "f32, f16, bf16, q8_0, q5_0, q5_1, q4_0, q4_1"
    line = refused(tmp_path / "hf", out, "--to", "gguf", "--type", "q4_k")
    assert f"--type: q4_k is not quantised here (one of: {types})" in line
    assert "a GGUF file's name ends in .gguf" in refused(tmp_path / "hf", tmp_path / "a", "--to", "gguf")
    assert "--type: is a GGUF file's" in refused(tmp_path / "hf", tmp_path / "a", "--type", "q8_0")
    assert not out.exists()
    out.write_bytes(gguf_files.write_gguf(make("Llama", tmp_path / "b"), tmp_path / "b.gguf", "llama").read_bytes())
    assert "would be replaced, and zoo did not write it" in refused(tmp_path / "hf", out, "--to", "gguf")
    assert run(capsys, "convert", tmp_path / "hf", out, "--to", "gguf", "--force")[0] == 0
    assert run(capsys, "convert", tmp_path / "hf", out, "--to", "gguf")[0] == 0  # zoo wrote this one
    assert "is the checkpoint itself" in refused(out, out, "--to", "gguf", "--force")
    assert run(capsys, "convert", out, tmp_path / "new" / "b.gguf", "--to", "gguf")[0] == 0
    assert [each.name for each in (tmp_path / "new").iterdir()] == ["b.gguf"]


ALONE = {"num_key_value_heads": None, "head_dim": None}
"""Sizes of a model whose heads have keys of their own: its config has no such fields."""


@pytest.mark.parametrize(
    ("config", "model", "changes", "fault"),
    [
        ("Olmo3Config", "Olmo3ForCausalLM", {"sliding_window": 8}, "--to gguf: olmo3 is not written (one of: llama, "),
        ("LlamaConfig", "LlamaForSequenceClassification", {}, "head: is kind 'sequence', where llama.cpp has none"),
        (
            "Qwen3Config",
            "Qwen3ForSequenceClassification",
            {"num_labels": 1},
            "head: has one output, of which llama.cpp would",
        ),
        (
            "DistilBertConfig",
            "DistilBertForSequenceClassification",
            {**ALONE, "intermediate_size": None},
            "--to gguf: distilbert with a head of kind 'sequence' is not written (one of: qwen3, bert, modern-bert)",
        ),
        ("ElectraConfig", "ElectraModel", ALONE, "--to gguf: electra is not written (one of: llama, "),
        ("BertConfig", "BertForTokenClassification", ALONE, "head: is kind 'token', which is not written to GGUF"),
    ],
)
def test_a_model_that_llama_cpp_has_not_is_refused_by_name(tmp_path, capsys, config, model, changes, fault):
    sizes = {name: value for name, value in {**SIZES, **changes}.items() if value is not None}
    made = getattr(transformers, model)(getattr(transformers, config)(**sizes))
    made.save_pretrained(tmp_path / "hf")
    code, _, error = run(capsys, "convert", tmp_path / "hf", tmp_path / "a.gguf", "--to", "gguf")
    assert code == 2 and fault in error and not (tmp_path / "a.gguf").exists()


def test_a_tokenizer_that_gguf_has_no_form_of_is_refused(tmp_path):
    made = make_tokenizer(tmp_path, "byte-level")
    node = json.loads(made.to_str())
    node["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}, node["pre_tokenizer"]]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(node))
    with pytest.raises(zoo.CheckpointError, match="pre_tokenizer: splits a text as no architecture"):
        describe_vocabulary(tmp_path, 400)
    node["model"]["merges"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(node))
    with pytest.raises(zoo.CheckpointError, match="merges: are none"):
        describe_vocabulary(tmp_path, 400)
    node["model"] = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(node))
    with pytest.raises(zoo.CheckpointError, match="model: is WordLevel, which is not written to GGUF"):
        describe_vocabulary(tmp_path, 400)
    unigram = {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 0}
    node |= {"model": unigram, "normalizer": {"type": "Lowercase"}, "added_tokens": []}
    (tmp_path / "tokenizer.json").write_text(json.dumps(node))
    with pytest.raises(zoo.CheckpointError, match="normalizer: is Lowercase, which is not written to GGUF"):
        describe_vocabulary(tmp_path, 400)
