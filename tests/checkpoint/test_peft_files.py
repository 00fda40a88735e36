"""Adapters in peft's format, opened by peft itself."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers
from torch.testing import assert_close

from support.adapted_models import IDS, LLAMA, adapted, logits, over, save_llama
from support.packaged_specs import load
from support.tiny_models import model_of
from zoo.checkpoint import peft_files, store
from zoo.cli import run
from zoo.errors import CheckpointError
from zoo.grammar import from_dict, to_dict
from zoo.model.head import NoHead
from zoo.model.task_head import RegressionHead, SequenceHead, TokenHead
from zoo.run.builder import build
from zoo.training.start.begin import open_start

CASES = {
    "llama": (
        transformers.LlamaConfig,
        LLAMA,
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
    over(tmp_path / "hf", model, tmp_path / "ours")
    assert run(["convert", str(tmp_path / "ours"), str(tmp_path / "peft"), "--to", "peft"]) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what peft imports
        from peft import AutoPeftModelForCausalLM

        loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "peft").eval()
    with torch.no_grad():
        theirs, plain = loaded(IDS).logits, reference(IDS).logits
    assert_close(logits(model), theirs, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(theirs, plain, atol=1e-2)


@pytest.mark.parametrize(
    ("head", "auto"),
    [
        (load("llama-tiny").head, "CausalLM"),
        (NoHead(vocab_size=8), "FeatureExtraction"),
        (SequenceHead(labels=("a", "b")), "SequenceClassification"),
        (RegressionHead(pooling="last"), "SequenceClassification"),
        (TokenHead(labels=("a", "b")), "TokenClassification"),
    ],
)
def test_the_task_is_that_of_pefts_auto_class(head, auto):
    import peft

    classes = peft.MODEL_TYPE_TO_PEFT_MODEL_MAPPING
    target = getattr(peft, f"AutoPeftModelFor{auto}")._target_peft_class
    assert classes[peft_files.name_task(replace(load("llama-tiny"), head=head))] is target


def test_encoder_decoders_have_pefts_task_and_masked_models_none():
    assert [peft_files.name_task(load(name)) for name in ("t5-small", "bert-base")] == ["SEQ_2_SEQ_LM", None]


def test_what_pefts_format_cannot_hold_is_refused_by_name(tmp_path):
    store.save_model(model_of(), tmp_path / "plain")
    with pytest.raises(CheckpointError, match="has no adapters"):
        peft_files.save_for_peft(tmp_path / "plain", tmp_path / "out")
    store.save_model(adapted(model_of(["ffn=moe"]), ("ffn",)), tmp_path / "experts")
    with pytest.raises(
        CheckpointError, match=r"blocks.0.ffn.experts.gate.weight is adapted, and peft adapts no stacked"
    ):
        peft_files.save_for_peft(tmp_path / "experts", tmp_path / "out")
    model = adapted(model_of(["head={kind: lm, tied: false}"]), ("head",))
    model.adapters = replace(model.adapters, trained=("head.out.weight",))
    store.save_model(model, tmp_path / "beside")
    with pytest.raises(CheckpointError, match=r"head.out.weight is adapted and trained, and peft saves whole modules"):
        peft_files.save_for_peft(tmp_path / "beside", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_of_no_published_family_is_refused_in_one_line(tmp_path, refused):
    folder = store.save_model(adapted(model_of(["attention=differential"]), ("attention",)), tmp_path / "own")
    (line,) = refused("convert", str(folder), str(tmp_path / "out"), "--to", "peft")
    assert line.startswith(f"{folder}: peft's format needs the names of a published family, and none fits: layers.att")
    assert line.endswith("; and 2 more (--to hf merges the adapters, for the classes of zoo.hf)")
    assert run(["convert", str(folder), str(tmp_path / "out"), "--to", "hf", "--no-verify"]) == 0


OPENED = """
import sys, torch, transformers, peft
base, adapter, ids, out, kind, rows = sys.argv[1:]
model = getattr(transformers, kind).from_pretrained(base, dtype=torch.float32, num_labels=3)
if int(rows):
    model.resize_token_embeddings(int(rows))
model = peft.PeftModel.from_pretrained(model, adapter).eval()
with torch.no_grad():
    torch.save(model(input_ids=torch.load(ids)).logits, out)
"""


def open_with_peft(folder: Path, base: Path, kind: str, rows: int = 0) -> torch.Tensor:
    """The logits that a fresh process of peft gives for the adapters of `folder` on a Hugging Face model."""
    torch.save(IDS, folder / "ids.pt")
    args = (str(base), str(folder / "peft"), str(folder / "ids.pt"), str(folder / "logits.pt"), kind, str(rows))
    subprocess.run([sys.executable, "-c", OPENED, *args], check=True, capture_output=True)
    return torch.load(folder / "logits.pt")


@pytest.mark.parametrize("tied", [pytest.param(True, marks=pytest.mark.slow), False])
def test_peft_opens_adapters_with_trained_norms_and_more_tokens(tmp_path, tied):
    base = save_llama(tmp_path / "hf", tie_word_embeddings=tied)
    source = store.load(base, "fp32")
    spec = from_dict(json.loads(json.dumps(to_dict(source.spec)).replace('"vocab_size": 60', '"vocab_size": 64')))
    model = build(spec, device="cpu", seed=1)
    open_start(base, model.whole, "stack", seed=1).fill(model)
    model = adapted(model, ("attention",))
    with torch.no_grad():
        model.norm.weight += 0.5
    changed = ("embedding.tokens.weight", "norm.weight", *([] if tied else ["head.out.weight"]))
    over(base, model, tmp_path / "saved", changed)
    config = peft_files.save_for_peft(tmp_path / "saved", tmp_path / "peft")
    assert config["modules_to_save"] == ["lm_head", "model.embed_tokens", "model.norm"]
    assert_close(open_with_peft(tmp_path, base, "AutoModelForCausalLM", 64), logits(model), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_peft_opens_a_classifiers_adapters_and_its_head_in_a_fresh_process(here):
    base = here / "hf"
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    config = transformers.BertConfig(vocab_size=60, max_position_embeddings=32, **sizes)
    transformers.BertForMaskedLM(config).save_pretrained(base)
    words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, **{f"w{each}": each for each in range(5, 60)}}
    tokens = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokens.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokens, **special, mask_token="[MASK]").save_pretrained(base)
    rows = [{"text": f"w{each} w{each + 1}", "label": "abc"[each % 3]} for each in range(5, 50)]
    (here / "rows.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in rows))
    data = [
        "data=jsonl",
        "data.path=rows.jsonl",
        "objective=classify",
        "objective.label=label",
    ]
    sizes = ["batch_size=4", "seq_len=8", "steps=3", "eval_every=null", "optim.lr=0.05", "eval_batches=1"]
    lora = ["weights=hf", "lora={rank:2,on:[attention]}", "hydra.run.dir=run"]
    assert run(["train", *data, *sizes, *lora]) == 0
    assert run(["convert", "run", "peft", "--to", "peft"]) == 0
    model = store.load(here / "run")
    kind = "AutoModelForSequenceClassification"
    assert_close(open_with_peft(here, base, kind), logits(model), rtol=1e-4, atol=1e-4)
