"""Quantise given weights to 4 bits as the packages do, round to nearest: GPTQ, AWQ, compressed-tensors, NF4 and GGUF's
Q4_K. Layouts are those of `quantisers` and of ggml's block_q4_K; each weight becomes stored tensors by what follows the
module's name."""

from __future__ import annotations

import json

import numpy as np
import torch

from support.quantised_storage import pack_rows

Tensors = dict[str, torch.Tensor]

NF4 = (
    *(-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0),
    *(0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0),
)
"""The 16 quantiles of a normal distribution (Dettmers et al., 2023, appendix E)."""


def round_groups(weight: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes 0 … 15 [O, I], and a scale and zero point [O, I/group] for each group of inputs."""
    parts = weight.float().unflatten(1, (-1, group))
    low, high = parts.amin(-1).clamp(max=0), parts.amax(-1).clamp(min=0)
    scales = ((high - low) / 15).half().float()
    zeros = (-low / scales).round()
    codes = (parts / scales[..., None] + zeros[..., None]).round().clamp(0, 15)
    return codes.flatten(1).int(), scales, zeros.int()


def gptq(weight: torch.Tensor, group: int = 32) -> Tensors:
    codes, scales, zeros = round_groups(weight, group)
    order = torch.arange(weight.shape[1], dtype=torch.int32) // group
    packed = {".qweight": pack_rows(codes, 4).t(), ".qzeros": pack_rows((zeros.t() - 1) % 16, 4)}
    return {**packed, ".scales": scales.t().half(), ".g_idx": order}


def awq(weight: torch.Tensor, group: int = 32) -> Tensors:
    codes, scales, zeros = round_groups(weight, group)

    def pack(numbers: torch.Tensor) -> torch.Tensor:
        order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])  # AutoAWQ's order_map
        return pack_rows(numbers.unflatten(1, (-1, 8))[..., order].flatten(1), 4)

    return {".qweight": pack(codes.t()), ".qzeros": pack(zeros.t()), ".scales": scales.t().half()}


def packed(weight: torch.Tensor, group: int = 32) -> Tensors:
    """compressed-tensors' pack-quantized, symmetric."""
    parts = weight.float().unflatten(1, (-1, group))
    scales = (parts.abs().amax(-1) / 7).bfloat16()
    codes = (parts / scales.float()[..., None]).round().clamp(-8, 7).flatten(1).int()
    shape = torch.tensor(weight.shape)
    return {".weight_packed": pack_rows(codes + 8, 4), ".weight_scale": scales, ".weight_shape": shape}


def nf4(weight: torch.Tensor, block: int = 64) -> Tensors:
    values, parts = torch.tensor(NF4), weight.float().reshape(-1, block)
    absmax = parts.abs().amax(-1)
    codes = ((parts / absmax[:, None])[..., None] - values).abs().argmin(-1).flatten()
    state = {"quant_type": "nf4", "blocksize": block, "dtype": "float16", "shape": list(weight.shape)}
    text = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    halves = (codes[::2] << 4 | codes[1::2]).to(torch.uint8).unsqueeze(-1)
    own = {".absmax": absmax, ".quant_map": values, ".quant_state.bitsandbytes__nf4": text}
    return {".weight": halves, **{f".weight{name}": each for name, each in own.items()}}


def q4_k(values: np.ndarray) -> np.ndarray:
    """ggml's block_q4_K: of 256 numbers the scales d and dmin, 8 scales and minima of 6 bits, and 4 bits a number."""
    parts = values.astype(np.float32).reshape(-1, 8, 32)
    minima = np.maximum(-parts.min(-1), 0)
    steps = (parts.max(-1) + minima) / 15
    d = (steps.max(-1, keepdims=True) / 63).astype(np.float16)
    dmin = (minima.max(-1, keepdims=True) / 63).astype(np.float16)
    scales = np.clip(np.round(steps / d.astype(np.float32)), 1, 63)
    lows = np.clip(np.round(minima / np.maximum(dmin.astype(np.float32), 1e-12)), 0, 63)
    real = (d * scales)[..., None].astype(np.float32)
    codes = np.clip(np.round((parts + (dmin * lows)[..., None].astype(np.float32)) / real), 0, 15).astype(np.uint8)
    s, m = scales.astype(np.uint8), lows.astype(np.uint8)
    six = np.concatenate(
        [s[:, :4] | s[:, 4:] >> 4 << 6, m[:, :4] | m[:, 4:] >> 4 << 6, s[:, 4:] & 15 | (m[:, 4:] & 15) << 4], 1
    )
    halves = (codes[:, ::2] | codes[:, 1::2] << 4).reshape(len(parts), 128)
    whole = np.concatenate([d.view(np.uint8), dmin.view(np.uint8), six, halves], 1)
    return whole.reshape(len(values), -1)
