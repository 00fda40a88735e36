"""Run transformers' Llama as its users do: `generate` with the default cache, and its own loss."""

import sys
from typing import Any

try:
    from transformers import LlamaConfig, LlamaForCausalLM, __version__
except ImportError as error:
    sys.exit(f"missing: {error}")
import harness
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


def generate(model: LlamaForCausalLM, ids: torch.Tensor, new: int) -> torch.Tensor:
    mask = torch.ones_like(ids)
    return model.generate(ids, attention_mask=mask, max_new_tokens=new, do_sample=False)[:, ids.shape[1] :]


def loss(model: LlamaForCausalLM, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    # shift_labels: the targets are already the next tokens, so that every contender scores the same positions.
    return model(ids, labels=targets, shift_labels=targets, use_cache=False).loss


CONTENDER = harness.make_peer(
    version=__version__,
    build=lambda shape: LlamaForCausalLM(make_config(shape)),
    rename=lambda name, shape: (name, 0),
    logits=lambda model, ids: model(ids).logits,
    generate=generate,
    loss=loss,
)

if __name__ == "__main__":
    harness.run_job(CONTENDER)
