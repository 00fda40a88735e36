"""Write GGUF files as llama.cpp's converter does, by the package gguf: metadata, permuted q and k, norms plus 1.

Held beside that converter (llama.cpp of November 2026): for the architectures here it writes the same tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from zoo.data.tokenizer import spell_bytes

TOKENS = [*spell_bytes(), "he", "ll", "hell", "<|end|>", "<|start|>"]
MERGES = ["h e", "l l", "he ll"]
FIELDS = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "head_dim": "attention.key_length",
    "sliding_window": "attention.sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "num_local_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
}
"""transformers' name of a field: llama.cpp's."""


def permute(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Order the rows of each head as llama.cpp rotates them: of a head of 6 the rows 0, 3, 1, 4, 2, 5."""
    width = len(weight) // heads
    order = [head * width + half * (width // 2) + pair for head in range(heads) for pair in range(width // 2)
             for half in range(2)]  # fmt: skip
    return weight[order]


def write_gguf(
    model: Any, file: Path, architecture: str, *, kind: str = "F32", extra: Mapping[str, torch.Tensor] | None = None,
    metadata: Mapping[str, Any] | None = None, drop: tuple[str, ...] = (), tokens: Sequence[str] = TOKENS,
    merges: Sequence[str] = MERGES, quantise: Callable[..., np.ndarray] | None = None,
) -> Path:  # fmt: skip
    """Write a model of transformers, its matrices as `kind`, which the package quantises unless `quantise` does."""
    config, layers = model.config, model.config.num_hidden_layers
    writer = gguf.GGUFWriter(file, architecture)
    for theirs, ours in FIELDS.items():
        value = getattr(config, theirs, None)
        if value is not None and theirs not in drop:
            (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(f"{architecture}.{ours}", value)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    for name, value in (metadata or {}).items():
        writer.add_key_value(name, value, gguf.GGUFValueType.get_type(value))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(max(len(tokens) - 2, 256))
    writer.add_bos_token_id(len(tokens) - 1)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}<|end|>{% endfor %}")
    names = gguf.get_tensor_name_map({v: k for k, v in gguf.MODEL_ARCH_NAMES.items()}[architecture], layers)
    for name, tensor in {**_stack(model.state_dict(), config), **(extra or {})}.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        own = names.get_name(name, try_suffixes=(".weight", ".bias")) or name
        stored = gguf.GGMLQuantizationType[kind if tensor.ndim > 1 else "F32"]
        values = _convert(name, tensor, config, architecture).float().numpy()
        how = gguf.quantize if quantise is None or tensor.ndim == 1 else quantise
        writer.add_tensor(own, how(np.ascontiguousarray(values), stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def name_of(name: str) -> str:
    """llama.cpp's name of a tensor of a Llama."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)
    return str(names.get_name(name, try_suffixes=(".weight", ".bias")))


def _stack(state: Mapping[str, torch.Tensor], config: Any) -> dict[str, torch.Tensor]:
    """transformers 5 has gate and up of experts in one tensor: apart, under the names of llama.cpp's map."""
    made = {}
    for name, tensor in state.items():
        layer = name.split(".")[2] if name.count(".") > 2 else ""
        if name.endswith("experts.gate_up_proj"):
            gate, up = tensor.split(config.intermediate_size, 1)
            made |= {f"blk.{layer}.ffn_gate_exps.weight": gate, f"blk.{layer}.ffn_up_exps.weight": up}
        elif name.endswith("experts.down_proj"):
            made[f"blk.{layer}.ffn_down_exps.weight"] = tensor
        elif "experts" not in name and name.endswith("mlp.gate.weight"):
            made[f"blk.{layer}.ffn_gate_inp.weight"] = tensor
        else:
            made[name] = tensor
    return made


def _convert(name: str, tensor: torch.Tensor, config: Any, architecture: str) -> torch.Tensor:
    if architecture == "llama" and "q_proj" in name:
        return permute(tensor, config.num_attention_heads)
    if architecture == "llama" and "k_proj" in name:
        return permute(tensor, config.num_key_value_heads)
    return tensor + 1 if architecture.startswith("gemma") and name.endswith("norm.weight") else tensor
