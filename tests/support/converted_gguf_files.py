"""Write the files that llama.cpp's converter makes of the models of converted_gguf_cases.py.

Held beside that converter (llama.cpp of November 2026): it writes the same metadata and the same tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from safetensors.torch import load_file

from support.converted_gguf_cases import CASES
from support.gguf_files import TOKENS, permute

NAMED = (  # of a config's fields by any of these names, what the file says of it
    (("num_hidden_layers", "n_layers"), "block_count"),
    (("hidden_size", "d_model"), "embedding_length"),
    (("intermediate_size",), "feed_forward_length"),
    (("max_position_embeddings", "max_seq_len", "model_max_length"), "context_length"),
    (("num_attention_heads", "n_heads"), "attention.head_count"),
    (("num_key_value_heads",), "attention.head_count_kv"),
    (("head_dim",), "attention.key_length"),
    (("head_dim",), "attention.value_length"),
    (("rms_norm_eps", "norm_eps"), "attention.layer_norm_rms_epsilon"),
    (("layer_norm_eps", "layer_norm_epsilon"), "attention.layer_norm_epsilon"),
    (("num_local_experts", "n_routed_experts", "num_experts", "moe_num_experts"), "expert_count"),
    (("num_experts_per_tok", "moe_topk", "moe_k"), "expert_used_count"),
    (("moe_intermediate_size",), "expert_feed_forward_length"),
)
RMS = ("mamba", "mamba2")
"""Whose only epsilon, which their configs call one of a layer norm, is one of an RMS norm."""

MAMBA2 = ("mamba2", "granitehybrid", "nemotron_h", "nemotron_h_moe", "falcon-h1")
PERMUTED = ("granitehybrid", "granitemoe", "mistral3", "nemotron_h", "nemotron_h_moe")
SHIFTED = ("qwen3next", "qwen35", "qwen35moe")

RENAMED = (  # tensors that the package's map has under other names than transformers writes
    (r"\.dt_bias$", ".dt_proj.bias"),
    (r"e_score_correction_bias$", "e_score_correction.bias"),
    (r"(layers\.\d+)\.(feed_forward|mlp)\.expert_bias$", r"\1.\2.expert_bias.bias"),
)


def make_case(name: str) -> Any:
    """Build the reference model of a case, with every weight drawn."""
    case = CASES[name]
    kind = f"{case.kind}Text" if case.kind.startswith("Qwen3_5") else case.kind
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**case.fields)
    made = getattr(transformers, f"{case.kind}{case.model}")(config).eval()
    for parameter in made.parameters():
        parameter.data += torch.randn_like(parameter) * (0.15 if parameter.ndim > 1 else 0.1)
    return made


def convert_case(
    name: str, model: Any, folder: Path, more: Mapping[str, Any] | None = None, extra: tuple[str, ...] = ()
) -> Path:
    """Write the file that llama.cpp's converter makes of a case's model, with `more` metadata and `extra` tensors."""
    architecture, case = name.split(" ")[0], CASES[name]
    model.save_pretrained(folder / "hf")
    file = folder / f"{name.replace(' ', '-')}.gguf"
    writer = gguf.GGUFWriter(file, architecture)
    said = {**_describe(model.config, architecture), **case.said, **(more or {})}
    for key, value in said.items():
        if not key.startswith(case.unsaid or ("-",)) or key in case.said:
            kind = gguf.GGUFValueType.get_type(value)
            writer.add_key_value(f"{architecture}.{key}", value, kind)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(TOKENS)
    for own, tensor in _convert_all(folder / "hf", model.config, architecture):
        writer.add_tensor(own, np.ascontiguousarray(tensor.float().numpy()))
    for own in extra:
        writer.add_tensor(own, np.ones(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _describe(config: Any, architecture: str) -> dict[str, Any]:
    said = {}
    for names, key in NAMED:
        found = [getattr(config, name) for name in names if isinstance(getattr(config, name, None), int | float)]
        said |= {key: found[0]} if found else {}
    rope = getattr(config, "rope_parameters", None) or {}
    said |= {"rope.freq_base": rope["rope_theta"]} if "rope_theta" in rope else {}
    if architecture in RMS:
        said["attention.layer_norm_rms_epsilon"] = said.pop("attention.layer_norm_epsilon")
    return said


def _convert_all(folder: Path, config: Any, architecture: str) -> Iterator[tuple[str, torch.Tensor]]:
    names = gguf.get_tensor_name_map({v: k for k, v in gguf.MODEL_ARCH_NAMES.items()}[architecture], 8)
    held: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        held |= load_file(file)
    for name, tensor in _stack(held).items():
        for pattern, other in RENAMED:
            name = re.sub(pattern, other, name)
        own = name if name.startswith("blk.") else names.get_name(name, try_suffixes=(".weight", ".bias")) or name
        yield from _convert(own, tensor, config, architecture)


def _stack(held: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The experts of a layer in one tensor, gate and up apart."""
    apart: dict[str, dict[int, torch.Tensor]] = {}
    made = {}
    own = {"w1": "gate", "w2": "down", "w3": "up", "gate_proj": "gate", "down_proj": "down", "up_proj": "up"}
    for name, tensor in held.items():
        found = re.search(r"layers\.(\d+)", name)
        layer = found[1] if found else ""
        if match := re.search(r"experts\.(\d+)\.(\w+)\.weight$", name):
            apart.setdefault(f"blk.{layer}.ffn_{own[match[2]]}_exps.weight", {})[int(match[1])] = tensor
        elif name.endswith(("experts.gate_up_proj", "block_sparse_moe.input_linear.weight")):
            gate, up = tensor.chunk(2, 1)
            made |= {f"blk.{layer}.ffn_gate_exps.weight": gate, f"blk.{layer}.ffn_up_exps.weight": up}
        elif name.endswith(("experts.down_proj", "block_sparse_moe.output_linear.weight")):
            made[f"blk.{layer}.ffn_down_exps.weight"] = tensor
        else:
            made[name] = tensor
    return made | {name: torch.stack([each[n] for n in range(len(each))]) for name, each in apart.items()}


def _convert(own: str, tensor: torch.Tensor, config: Any, architecture: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Change a tensor's values and its layout as the converter does, and split it where it does."""
    leaf = own.split(".", 2)[-1]
    if leaf in ("ssm_conv1d.weight", "shortconv.conv.weight"):
        tensor = tensor.squeeze(1)
    if leaf == "ssm_a":
        tensor = -tensor.exp()
    if architecture in MAMBA2:
        tensor = _convert_mamba2(leaf, tensor, config)
    if architecture == "falcon-h1":
        tensor = _multiply(own, tensor, config)
    if architecture in SHIFTED and own.endswith("norm.weight") and leaf != "ssm_norm.weight":
        tensor = tensor + 1
    if architecture in ("qwen35", "qwen35moe"):
        tensor = _tile(leaf, tensor, config)
    if architecture in PERMUTED and leaf in ("attn_q.weight", "attn_k.weight"):
        tensor = permute(tensor, config.num_attention_heads if "q" in leaf else config.num_key_value_heads)
    if architecture in ("gptneox", "falcon") and leaf.startswith("attn_qkv"):
        tensor = _ungroup(tensor, config, architecture)
    if architecture == "qwen3next" and leaf == "ssm_in.weight":
        yield from _split_delta(own, tensor, config)
    elif architecture == "deepseek2" and leaf == "attn_kv_b.weight":
        parts = tensor.unflatten(0, (config.num_attention_heads, -1)).split([16, 16], 1)
        yield own.replace("kv_b", "k_b"), parts[0].transpose(1, 2)
        yield own.replace("kv_b", "v_b"), parts[1]
    elif "shared_mlp.input_linear" in own:
        kinds = "_shexp" if config.num_local_experts else ""
        layer = own.split(".")[2]
        for part, half in zip(("gate", "up"), tensor.chunk(2), strict=True):
            yield f"blk.{layer}.ffn_{part}{kinds}.weight", half
    elif "ffn_down_shexp" in own and architecture == "granitehybrid" and not config.num_local_experts:
        yield own.replace("_shexp", ""), tensor
    elif "pooler" not in own:  # llama.cpp's encoders have none
        yield own, tensor


def _convert_mamba2(leaf: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    groups = getattr(config, "n_groups", None) or getattr(config, "mamba_n_groups", 1)
    if leaf == "ssm_norm.weight":
        return tensor.reshape(groups, -1)
    return tensor[:, None] if leaf in ("ssm_a", "ssm_d") else tensor


def _ungroup(tensor: torch.Tensor, config: Any, architecture: str) -> torch.Tensor:
    """The queries of all heads, then their keys, then their values."""
    heads = config.num_attention_heads
    groups = heads if architecture == "gptneox" else 1 if not config.new_decoder_architecture else config.num_kv_heads
    parts = tensor.unflatten(0, (groups, heads // groups + 2, -1))
    return torch.cat([parts[:, :-2].flatten(0, 2), parts[:, -2].flatten(0, 1), parts[:, -1].flatten(0, 1)])


def _multiply(own: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    """Falcon-H1's multipliers are put into its weights."""
    factors = {
        **{"ffn_gate": config.mlp_multipliers[0], "ffn_down": config.mlp_multipliers[1]},
        **{"attn_q.": config.attention_in_multiplier, "attn_v.": config.attention_in_multiplier},
        "attn_k.": config.attention_in_multiplier * config.key_multiplier,
        **{"attn_output.": config.attention_out_multiplier, "ssm_out": config.ssm_out_multiplier},
        **{"token_embd": config.embedding_multiplier, "output.": config.lm_head_multiplier},
    }
    if "ssm_in" in own:
        inner, state = config.mamba_d_ssm, config.mamba_n_groups * config.mamba_d_state
        sizes = torch.tensor([inner, inner, state, state, config.mamba_n_heads])
        rows = torch.tensor(config.ssm_multipliers).repeat_interleave(sizes)
        return tensor * rows[:, None] * config.ssm_in_multiplier
    return tensor * next((factor for part, factor in factors.items() if part in own), 1.0)


def _tile(leaf: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    """Heads of values by their place in a group, where they lay group by group."""
    groups, heads = config.linear_num_key_heads, config.linear_num_value_heads
    width = config.linear_value_head_dim
    part = leaf.partition(".")[0]
    if part not in ("attn_qkv", "attn_gate", "ssm_conv1d", "ssm_out", "ssm_alpha", "ssm_beta", "ssm_a", "ssm_dt"):
        return tensor
    width = 1 if part in ("ssm_alpha", "ssm_beta", "ssm_a", "ssm_dt") else width
    tensor = tensor.T if part == "ssm_out" else tensor
    before, tiles = tensor.split([len(tensor) - heads * width, heads * width])
    tiles = tiles.reshape(groups, heads // groups, width, *tensor.shape[1:]).transpose(0, 1).reshape(tiles.shape)
    tensor = torch.cat([before, tiles])
    return tensor.T if part == "ssm_out" else tensor


def _split_delta(own: str, tensor: torch.Tensor, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    groups = config.linear_num_key_heads
    width = config.linear_num_value_heads // groups * config.linear_value_head_dim
    key = config.linear_key_head_dim
    parts = [part.flatten(0, 1) for part in tensor.unflatten(0, (groups, -1)).split([key, key, width, width], 1)]
    yield own.replace("ssm_in", "attn_qkv"), torch.cat(parts[:3])
    yield own.replace("ssm_in", "attn_gate"), parts[3]
