"""Run transformers' Llama as its users do: `generate` with the default cache, and its own loss; and BERT's own loss.

Compiled means `generate` with a static cache and transformers' own option. Ragged prompts are padded to one batch.
"""

import sys
from dataclasses import replace
from typing import Any

try:
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForMaskedLM,
        AutoTokenizer,
        CompileConfig,
        LlamaConfig,
        LlamaForCausalLM,
        __version__,
    )
except ImportError as error:
    sys.exit(f"missing: {error}")
import harness
import timing
import torch


def make_config(shape: dict[str, Any]) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=shape["d_model"],
        num_hidden_layers=shape["n_layers"],
        num_attention_heads=shape["n_heads"],
        num_key_value_heads=shape["n_kv_heads"],
        head_dim=shape["head_dim"],
        intermediate_size=shape["d_ff"],
        vocab_size=shape["vocab_size"],
        max_position_embeddings=shape["max_seq_len"],
        rope_theta=shape["rope_theta"],
        rms_norm_eps=shape["norm_eps"],
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )


def generate(model: LlamaForCausalLM, ids: torch.Tensor, new: int, job: dict[str, Any]) -> torch.Tensor:
    options = {}
    if job["compile"]:
        compiling = CompileConfig()
        compiling._compile_all_devices = True  # by default transformers compiles on GPUs alone
        options = {"cache_implementation": "static", "compile_config": compiling}
    mask = torch.ones_like(ids)
    made = model.generate(ids, attention_mask=mask, max_new_tokens=new, do_sample=False, **options)
    return made[:, ids.shape[1] :]


def serve(model: LlamaForCausalLM, requests: list[timing.Request], job: dict[str, Any]) -> timing.Rows:
    """Generate for all requests in one batch, padded on the left, up to the longest answer."""
    longest = max(len(ids) for ids, _ in requests)
    ids = torch.tensor([[0] * (longest - len(row)) + row for row, _ in requests])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row, _ in requests])
    most = max(new for _, new in requests)
    made = model.generate(ids, attention_mask=mask, max_new_tokens=most, do_sample=False)[:, longest:].tolist()
    return [row[:new] for row, (_, new) in zip(made, requests, strict=True)]


def load_folder(job: dict[str, Any]) -> dict[str, Any]:
    """Open a folder and generate one token, as a user's script would."""
    tokenizer = AutoTokenizer.from_pretrained(job["folder"])
    model = AutoModelForCausalLM.from_pretrained(job["folder"], dtype="auto")
    found = tokenizer(job["prompt"], return_tensors="pt")
    made = model.generate(**found, max_new_tokens=1, do_sample=False)
    return {"text": tokenizer.decode(made[0, found["input_ids"].shape[1] :])}


def loss(model: Any, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    if not isinstance(model, LlamaForCausalLM):
        return model(ids, labels=targets).loss
    # shift_labels: the targets are the next tokens already, and every contender must score the same positions.
    return model(ids, labels=targets, shift_labels=targets, use_cache=False).loss


LLAMA = harness.make_peer(
    version=__version__,
    build=lambda shape: LlamaForCausalLM(make_config(shape)),
    rename=lambda name, shape: (name, 0),
    logits=lambda model, ids: model(ids).logits,
    generate=generate,
    loss=loss,
    serve=serve,
)


def load(job: dict[str, Any], dtype: torch.dtype) -> Any:
    """Load the race's Llama or BERT; without dropout, since the contenders' losses must be equal."""
    if job["model"] != "bert-base":
        return LLAMA.load(job, dtype)
    rates = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    return AutoModelForMaskedLM.from_pretrained(job["folder"], dtype=dtype, **rates)


CONTENDER = replace(LLAMA, load=load)

if __name__ == "__main__":
    harness.run_job(CONTENDER, load_folder)
