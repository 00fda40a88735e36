"""GGUF files of encoders and of T5: hidden states and logits are the reference's, here and in llama.cpp."""

from __future__ import annotations

import base64
import logging
import zlib
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from tokenizers import models, normalizers, pre_tokenizers, processors

import zoo
from support.logit_bounds import assert_close
from support.minilm import MINILM, needs_minilm
from support.packaged_specs import one_in
from support.reference_folders import run
from zoo.checkpoint import gguf_export, store
from zoo.checkpoint.sentence_files import write_modules
from zoo.data.tokenizer import spell_bytes

gguf = pytest.importorskip("gguf", reason="needs gguf (the extra of that name)")
from support.converted_gguf_files import convert_case, make_case  # noqa: E402

SIZES = {
    **{"vocab_size": 200, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "max_position_embeddings": 64},
}
MARKS = {f"{name}_token_id": number for number, name in enumerate(("pad", "bos", "eos", "cls", "sep"))}
MODERN = {**SIZES, **MARKS, "num_hidden_layers": 4, "local_attention": 8}
NAMES = ("bad", "fair", "good")
THREE = {"id2label": dict(enumerate(NAMES)), "label2id": {name: number for number, name in enumerate(NAMES)}}
KEYED = {**SIZES, "num_key_value_heads": 2, "head_dim": 16}
BOTH_WAYS = {**KEYED, "num_hidden_layers": 6, "sliding_window": 16, "query_pre_attn_scalar": 16}
EURO = {
    "num_key_value_heads": 2,
    "head_dim": 16,
    "mask_token_id": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OFFSET = {**SIZES, "max_position_embeddings": 66, "pad_token_id": 1}
DISTIL = {"vocab_size": 200, "dim": 64, "hidden_dim": 96, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64}
T5 = {"vocab_size": 200, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4}
GATED = {**T5, "feed_forward_proj": "gated-gelu", "num_decoder_layers": 1, "tie_word_embeddings": False}
CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "Bert": ("Model", SIZES, "bert"),
    "Bert with a head": ("ForMaskedLM", SIZES, "bert"),
    "Roberta": ("Model", OFFSET, "bert"),
    "XLMRoberta": ("ForMaskedLM", {**OFFSET, "type_vocab_size": 1}, "bert"),
    "DistilBert": ("Model", DISTIL, "bert"),
    "NomicBert": ("Model", {**SIZES, "head_dim": 16}, "nomic-bert"),
    "ModernBert": ("Model", MODERN, "modern-bert"),
    "EuroBert": ("Model", {**SIZES, **EURO}, "eurobert"),
    "JinaEmbeddingsV3": ("Model", {**SIZES, "head_dim": 16}, "jina-bert-v3"),
    "T5 with a scaled head": ("ForConditionalGeneration", T5, "t5"),
    "T5 with gates": ("ForConditionalGeneration", GATED, "t5"),
    "UMT5": ("ForConditionalGeneration", GATED, "t5"),
    "MT5": ("ForConditionalGeneration", GATED, "t5"),
    "T5 encoder": ("EncoderModel", T5, "t5encoder"),
    "Gemma3Text both ways": (
        "Model",
        {**BOTH_WAYS, "vocab_size": 257, "use_bidirectional_attention": True},
        "gemma-embedding",
    ),
    "Bert reranker": ("ForSequenceClassification", {**SIZES, "num_labels": 1}, "bert"),
    "Roberta classifier": ("ForSequenceClassification", {**OFFSET, **THREE}, "bert"),
    "ModernBert reranker": ("ForSequenceClassification", {**MODERN, "num_labels": 1}, "modern-bert"),
    "ModernBert of means": (
        "ForSequenceClassification",
        {**MODERN, **THREE, "classifier_pooling": "mean"},
        "modern-bert",
    ),
    "Qwen3 classifier": ("ForSequenceClassification", {**KEYED, **THREE, "pad_token_id": 0}, "qwen3"),
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(logging.getLogger("gguf.gguf_writer"), "disabled", True)  # its remarks are no lines of ours


def write(folder: Path, out: Path, **options: Any) -> gguf_export.Written:
    return gguf_export.save(store.open_model(folder, None, mapped=False), out, folder, "f32", **options)


def make(case: str, folder: Path) -> Any:
    """A reference model and its folder, every weight drawn."""
    kind, (suffix, fields, _) = case.split()[0], CASES[case]
    torch.manual_seed(0)
    made = getattr(transformers, kind + suffix)(getattr(transformers, f"{kind}Config")(**fields)).eval()
    for parameter in made.parameters():
        parameter.data += torch.randn_like(parameter) * 0.1
    made.save_pretrained(folder)
    return made


@pytest.mark.parametrize("case", one_in(2, CASES))
@pytest.mark.filterwarnings("ignore:.*the model is read without its tokenizer")
def test_a_model_that_was_written_and_read_gives_the_references_values(tmp_path, case):
    reference = make(case, tmp_path / "hf")
    written = write(tmp_path / "hf", tmp_path / "a.gguf", verify=False)
    assert written.architecture == CASES[case][2]
    ids = torch.arange(2, 42)[None]
    in_rows = "Classification" in CASES[case][0]
    more = {"decoder_input_ids": ids[:, :9]} if "ForConditional" in CASES[case][0] else {}
    with torch.inference_mode():
        theirs = reference(ids, **more, output_hidden_states=True)
        ours = zoo.load(tmp_path / "a.gguf")(ids, **more)
    assert_close(*((ours.logits, theirs.logits) if more or in_rows else (ours.hidden, theirs.hidden_states[-1])))
    if in_rows:
        said = {
            name.partition(".")[2]: entry.contents()
            for name, entry in gguf.GGUFReader(tmp_path / "a.gguf").fields.items()
        }
        assert said["pooling_type"] == 4 and said["classifier.output_labels"] == [*reference.config.id2label.values()]


@pytest.mark.parametrize("case", CASES)
def test_llama_cpp_gives_its_values(tmp_path, case):
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")
    make(case, tmp_path / "hf")
    compared = write(tmp_path / "hf", tmp_path / "a.gguf").compared
    difference = float(compared.split("largest difference ")[1].split()[0])
    size = float(compared.rpartition(" ")[2].strip(")"))
    exact = case in (
        "NomicBert",
        "EuroBert",
        "T5 with a scaled head",
        "T5 encoder",
        "Qwen3 classifier",
    )  # others: a table of GELU
    assert difference < (2e-5 if exact else 2e-2) * size


@pytest.mark.parametrize("case", ["bert", "eurobert", "nomic-bert", "modern-bert", "t5encoder"])
def test_the_file_is_the_one_that_llama_cpps_converter_writes(tmp_path, case):
    theirs = convert_case(case, make_case(case), tmp_path)
    write(tmp_path / "hf", tmp_path / "a.gguf", verify=False)
    ours, wanted = (gguf.GGUFReader(each) for each in (tmp_path / "a.gguf", theirs))
    values = {each.name: np.array(each.data) for each in ours.tensors}
    assert values.keys() == {each.name for each in wanted.tensors}
    for each in wanted.tensors:
        np.testing.assert_array_equal(values[each.name], np.array(each.data), err_msg=each.name)
    for name, entry in wanted.fields.items():
        if name.startswith(f"{case}.") and not name.endswith(
            ("scaling.type", "classifier.pooling_type")
        ):  # of no effect
            assert ours.fields[name].contents() == pytest.approx(entry.contents()), name


def test_dense_layers_behind_the_pooling_of_embedding_gemma_go_along(tmp_path, capsys):
    """Two matrices, as EmbeddingGemma has them: the file's vectors are the folder's, here and in llama.cpp."""
    folder, out = tmp_path / "hf", tmp_path / "a.gguf"
    make("Gemma3Text both ways", folder)
    vocab = {token: number for number, token in enumerate([*spell_bytes(), "he"])}
    made = tokenizers.Tokenizer(models.BPE(vocab, [("h", "e")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.save(str(folder / "tokenizer.json"))
    matrices = [torch.randn(96, 64) / 8, torch.randn(64, 96) / 8]
    write_modules(folder, ("mean",), 64, 64, matrices)
    verify = "--verify" if find_spec("llama_cpp") else "--no-verify"
    code, said, error = run(capsys, "convert", folder, out, "--to", "gguf", verify)
    assert code == 0 and "without its" not in said, error
    texts = ["A man is eating.", "Someone dines."]
    ours, read = (np.asarray(zoo.embed(str(each), texts)) for each in (folder, out))
    assert np.abs(ours - read).max() < 1e-5
    stored = {each.name: np.array(each.data) for each in gguf.GGUFReader(out).tensors}
    assert np.array_equal(stored["dense_3.weight"], matrices[1].numpy())
    if find_spec("llama_cpp"):
        model = import_module("llama_cpp").Llama(str(out), embedding=True, verbose=False)
        assert np.abs(ours - np.array(model.embed(texts, normalize=True))).max() < 2e-3


@needs_minilm
def test_minilm_embeds_sentences_as_it_did(tmp_path, capsys):
    """Real weights, through the verb: tokenizer and pooling travel, and llama.cpp gives the same vectors."""
    folder, out = MINILM, tmp_path / "a.gguf"
    verify = "--verify" if find_spec("llama_cpp") else "--no-verify"
    code, said, error = run(capsys, "convert", folder, out, "--to", "gguf", "--type", "f16", verify)
    assert code == 0, error
    assert "llama.cpp's bert, F16, without its pooler" in said and "the same ids of 5 texts" in said
    texts = ["A man is eating food.", "Someone is having a meal.", "Na\u00efve  caf\u00e9s, in \u6771\u4eac, 3.14!"]
    ours, read = (np.asarray(zoo.embed(str(each), texts)) for each in (folder, out))
    assert np.abs(ours - read).max() < 5e-4
    assert zoo.stats(str(out))["params"]["total"] == 22_713_216 - 384 * 385
    if find_spec("llama_cpp"):
        model = import_module("llama_cpp").Llama(str(out), embedding=True, verbose=False)
        assert model.pooling_type() == 1
        reader = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        reader.no_padding()
        assert [model.tokenize(each.encode(), special=True) for each in texts] == [reader.encode(t).ids for t in texts]
        assert np.abs(ours - np.array(model.embed(texts, normalize=True))).max() < 2e-3


# SentencePiece's table for four rules: A to a, the ligature fi to two letters, tab and line feed to a space.
TABLE = zlib.decompress(
    base64.b64decode(
        "eNol03WM0HUYB+AfN9jujgalpUs6PDnpZoikhHSDB0qDNHd0KaAiIQ0CCkh3d4eCgnSOlu58Dt7t2bvvPu8f7/buG8QNgiBjEISFBUF4vCC2okNYGBoS"
        "xHiLo0VBKPEJJyEJSEwikpKE5CTjQz4gJSlITSrSkoaPSEcG0pPp/QpBFjKTjazkIDsfk5Pc5CIvechPPgpSgMIUIoJPKMKnfEYkxShKCYpTipKUoTTl"
        "KEsFylOJilSOnYmIE1TRP6cqX1CdatSkBl9SizrUph51qc9XNKQBjWlEU5rQnGa0pAWtaUVb2hDF17SnHd/yDR3pQGc60ZUudKcb39GDXvSkD73pR18G"
        "0J+Y2KMziIEMYTDDGMoIhjOKkXzPaMbwA+MYy0/8yHh+ZgK/MImJ/MpkpjKF6UxjJjOYzSx+Yw7zmMvvzGcBf7CIhSzmT5ayhOUsYyUrWM0q1rKG9axj"
        "IxvYzCa2soXtbGMnO9jNLvayh/3s4yAHOMwh/uIIR/mbfzjGcf7lP05wipOc4TTnOMsFznOJi1zhMle5ExknuK5f4yY3uM2t2Iz/ucddHnCfRzzkCY95"
        "xlNe8JxXvOQNr9/9veZBm6jgLWTOhC0="
    )
)
WORDS = {"\u2581": -2.0, "\u2581the": -3.0, "he": -4.0, "fi": -3.5, "ne": -3.6, "\u2581a": -2.9}
PIECES = [*WORDS.items(), *((each, -5.0 - place / 16) for place, each in enumerate("aefhinrstz<>_d0"))]


def make_unigram(folder: Path, marks: str) -> tokenizers.Tokenizer:
    """A tokenizer of T5's kind, `$A </s>`, or XLM-RoBERTa's, `<s> $A </s>`."""
    first = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("<s>", 0.0)]
    made = tokenizers.Tokenizer(models.Unigram([*first, *PIECES, ("<extra_id_0>", 0.0)], unk_id=2))
    made.normalizer = normalizers.Precompiled(TABLE)
    spaces = pre_tokenizers.Metaspace("\u2581", prepend_scheme="always")
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), spaces])
    made.post_processor = processors.TemplateProcessing(single=marks, special_tokens=[("<s>", 3), ("</s>", 1)])
    made.add_special_tokens(["<pad>", "</s>", "<unk>", "<s>", "<extra_id_0>"])
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, **named).save_pretrained(folder)
    return made


@pytest.mark.parametrize("marks", ["$A </s>", "<s> $A </s>"])
def test_a_tokenizer_of_unigrams_goes_along(tmp_path, marks):
    case = "XLMRoberta" if marks.startswith("<s>") else "T5 with gates"
    make(case, tmp_path / "hf")
    made = make_unigram(tmp_path / "hf", marks)
    assert "the same ids of 5 texts" in write(tmp_path / "hf", tmp_path / "a.gguf", verify=False).compared
    said = {name: entry.contents() for name, entry in gguf.GGUFReader(tmp_path / "a.gguf").fields.items()}
    assert said["tokenizer.ggml.model"] == "t5" and bytes(said["tokenizer.ggml.precompiled_charsmap"]) == TABLE
    assert (said["tokenizer.ggml.add_bos_token"], said["tokenizer.ggml.add_eos_token"]) == (marks[0] == "<", True)
    assert said["tokenizer.ggml.token_type"][:3] == [3, 3, 2] and said["tokenizer.ggml.token_type"][-1] == 5
    if find_spec("llama_cpp"):
        model = import_module("llama_cpp").Llama(str(tmp_path / "a.gguf"), vocab_only=True, verbose=False)
        for text in ("the \ufb01ne Ants", "  a  the\n\tend \u6771\u4eac", "fine <extra_id_0> hen", ""):
            assert model.tokenize(text.encode(), special=True) == made.encode(text).ids


def test_a_broken_table_of_characters_is_one_line(tmp_path):
    make("T5 encoder", tmp_path / "hf")
    made = make_unigram(tmp_path / "hf", "$A </s>")
    assert made.encode("The \ufb01ne").ids == made.encode("The fine").ids
    write(tmp_path / "hf", tmp_path / "a.gguf", verify=False)
    data = (tmp_path / "a.gguf").read_bytes()
    assert data.count(TABLE[:64]) == 1
    (tmp_path / "b.gguf").write_bytes(data.replace(TABLE[:64], b"\xff" * 64))
    with pytest.warns(UserWarning, match="is no table of SentencePiece's"):
        zoo.load(tmp_path / "b.gguf")
