"""Store weights as the packages of quantisation do: one number at a time, bit by bit, as their papers and files say.

Independent of zoo, which unpacks whole tensors at once. Each gives the stored tensors of a module, and the weight that
they mean.
"""

from __future__ import annotations

import json
import random

import torch
from safetensors.torch import load_file, save_file

POSITIVE_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # OCP Microscaling Formats, 2023

Stored = tuple[dict[str, torch.Tensor], torch.Tensor]
"""Tensors by what follows the module's name, and the weight in float32."""


def pack_words(numbers: list[int], bits: int) -> list[int]:
    """A stream of bits, the lowest first, cut into signed words of 32."""
    stream = sum(number << (bits * place) for place, number in enumerate(numbers))
    words = [stream >> (32 * place) & 0xFFFFFFFF for place in range(-(-len(numbers) * bits // 32))]
    return [word - 2**32 if word >= 2**31 else word for word in words]


def pack_rows(numbers: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack each row of a matrix of numbers from 0 on."""
    return torch.tensor([pack_words(row, bits) for row in numbers.tolist()], dtype=torch.int32)


def draw(shape: tuple[int, ...], high: int) -> torch.Tensor:
    return torch.randint(0, high, shape)


def draw_scales(*shape: int) -> torch.Tensor:
    """Scales that leave weights of small numbers near 0.02, as an initialised model has them."""
    return (torch.rand(shape) + 0.5) / 500


def gptq(shape: tuple[int, int], bits: int, *, group: int = 32, version: int = 1, ordered: bool = False) -> Stored:
    height, width = shape
    codes, zeros = draw((width, height), 2**bits), draw((width // group, height), 2**bits)
    scales = draw_scales(width // group, height).half()
    order = [place // group for place in range(width)]
    if ordered:  # act-order: the inputs of a group lie anywhere
        random.Random(0).shuffle(order)
    weight = torch.empty(shape)
    for row in range(height):
        for column, own in enumerate(order):
            weight[row, column] = (codes[column, row] - zeros[own, row]) * scales[own, row].float()
    stored = (zeros - (1 if version == 1 else 0)) % 2**bits
    tensors = {".qweight": pack_rows(codes.t(), bits).t(), ".qzeros": pack_rows(stored, bits), ".scales": scales}
    return {**tensors, ".g_idx": torch.tensor(order, dtype=torch.int32)}, weight


def awq(shape: tuple[int, int], group: int = 32) -> Stored:
    height, width = shape
    codes, zeros = draw((width, height), 16), draw((width // group, height), 16)
    scales = draw_scales(width // group, height).half()

    def pack(numbers: torch.Tensor) -> torch.Tensor:
        order = [0, 2, 4, 6, 1, 3, 5, 7]  # AutoAWQ's order_map
        return pack_rows(torch.stack([numbers[:, 8 * (n // 8) + order[n % 8]] for n in range(height)], 1), 4)

    weight = torch.empty(shape)
    for row in range(height):
        for column in range(width):
            own = column // group
            weight[row, column] = (codes[column, row] - zeros[own, row]) * scales[own, row].float()
    return {".qweight": pack(codes), ".qzeros": pack(zeros), ".scales": scales}, weight


def packed(shape: tuple[int, int], bits: int, group: int = 32, *, symmetric: bool = False) -> Stored:
    height, width = shape
    half = 2 ** (bits - 1)
    codes, zeros = draw(shape, 2**bits) - half, draw((height, width // group), 2**bits) - half
    scales = draw_scales(height, width // group).bfloat16()
    weight = torch.empty(shape)
    for row in range(height):
        for column in range(width):
            own = column // group
            zero = 0 if symmetric else zeros[row, own]
            weight[row, column] = (codes[row, column] - zero) * scales[row, own].float()
    tensors = {".weight_packed": pack_rows(codes + half, bits), ".weight_scale": scales}
    tensors[".weight_shape"] = torch.tensor(shape)
    if not symmetric:
        tensors[".weight_zero_point"] = pack_rows((zeros + half).t(), bits).t()
    return tensors, weight


def float8(
    shape: tuple[int, int], block: tuple[int, int] | None, name: str = ".weight_scale_inv", *, exponents: bool = False
) -> Stored:
    """`block` None has one scale for the tensor; `exponents` of two are stored as bytes, 127 for 1."""
    height, width = shape
    rows, columns = block or shape
    codes = torch.randn(shape).to(torch.float8_e4m3fn)
    scales = draw_scales(-(-height // rows), -(-width // columns)) * 5
    if exponents:
        stored = draw(tuple(scales.shape), 4).add(118).to(torch.uint8)
        scales = 2.0 ** (stored.float() - 127)
    weight = torch.empty(shape)
    for row in range(height):
        for column in range(width):
            weight[row, column] = codes[row, column].float() * scales[row // rows, column // columns]
    if exponents:
        return {".weight": codes, name: stored}, weight
    return {".weight": codes, name: scales if block else scales.reshape(())}, weight


def beside(made: Stored) -> Stored:
    """As DeepSeek-V4 is published: `weight`, of two codes in an int8 where they have 4 bits, and exponents of two in
    float8_e8m0fnu beside it as `scale`."""
    tensors, _ = made
    codes, scales = tensors.values()
    codes = codes.view(torch.int8) if codes.dtype is torch.uint8 else codes
    return {".weight": codes, ".scale": scales.view(torch.float8_e8m0fnu)}, made[1]


def int8(shape: tuple[int, int], name: str = ".weight_scale") -> Stored:
    codes, scales = draw(shape, 255) - 127, draw_scales(shape[0]) / 10
    weight = torch.stack([codes[row] * float(scales[row]) for row in range(shape[0])])
    if name == ".SCB":
        return {".weight": codes.to(torch.int8), name: scales * 127}, weight
    return {".weight": codes.to(torch.int8), name: scales.unsqueeze(-1)}, weight


def ternary(shape: tuple[int, int], multiplies: bool) -> Stored:
    """As transformers packs them."""
    from transformers.integrations.bitnet import pack_weights

    values, scale = draw(shape, 3) - 1, draw_scales(1)
    weight = values.float() * (scale if multiplies else 1 / scale)
    return {".weight": pack_weights(values.clone()), ".weight_scale": scale}, weight


def four_bit(shape: tuple[int, int], kind: str = "nf4", *, nested: bool = False, block: int = 64) -> Stored:
    count = shape[0] * shape[1]
    values, codes = torch.randn(16).sort().values, draw((count,), 16)
    blocks = -(-count // block)
    state = {"quant_type": kind, "blocksize": block, "dtype": "float16", "shape": list(shape)}
    tensors = {".quant_map": values}
    if nested:
        inner, outer, table = draw((blocks,), 256), draw_scales(-(-blocks // 16)), torch.randn(256).sort().values
        absmax = [float(table[inner[n]]) * float(outer[n // 16]) + 0.02 for n in range(blocks)]
        state |= {"nested_blocksize": 16, "nested_dtype": "float32", "nested_offset": 0.02}
        tensors |= {".absmax": inner.to(torch.uint8), ".nested_absmax": outer, ".nested_quant_map": table}
    else:
        tensors[".absmax"] = draw_scales(blocks) * 10
        absmax = tensors[".absmax"].tolist()
    weight = torch.tensor([float(values[codes[n]]) * absmax[n // block] for n in range(count)]).reshape(shape)
    pairs = [*codes.tolist(), 0][: count + count % 2]
    halves = [pairs[n] << 4 | pairs[n + 1] for n in range(0, len(pairs), 2)]
    text = json.dumps(state).encode()
    tensors[f".quant_state.bitsandbytes__{kind}"] = torch.tensor(list(text), dtype=torch.uint8)
    stored = {f".weight{name}": each for name, each in tensors.items()}
    return {**stored, ".weight": torch.tensor(halves, dtype=torch.uint8).unsqueeze(-1)}, weight


def float4(shape: tuple[int, int], group: int, *, whole: str | None = None) -> Stored:
    """NVFP4 with the tensor's scale (`whole` is how it is named), or MXFP4 without."""
    height, width = shape
    codes = draw(shape, 16)
    if whole:
        scales = (torch.rand(height, width // group) + 0.5).to(torch.float8_e4m3fn)
        factor = 0.01 if whole == ".weight_scale_2" else 100.0
        real = scales.float() * factor if whole == ".weight_scale_2" else scales.float() / factor
    else:
        scales = draw((height, width // group), 4).add(118).to(torch.uint8)
        real = 2.0 ** (scales.float() - 127)
    weight = torch.empty(shape)
    for row in range(height):
        for column in range(width):
            code = int(codes[row, column])
            value = POSITIVE_E2M1[code & 7] * (-1 if code & 8 else 1)
            weight[row, column] = value * real[row, column // group]
    halves = [[low | high << 4 for low, high in zip(row[::2], row[1::2], strict=True)] for row in codes.tolist()]
    name = ".weight" if whole == ".weight_scale_2" else ".weight_packed"
    tensors = {name: torch.tensor(halves, dtype=torch.uint8), ".weight_scale": scales}
    return {**tensors, **({whole: torch.tensor([factor])} if whole else {})}, weight


def quantise_folder(base, method):
    """Store a folder's products in the layout of a method."""
    quantise, settings = {
        "gptq": (
            lambda s: gptq(s, 4, group=16),
            {"quant_method": "gptq", "bits": 4, "group_size": 16},
        ),
        "awq": (lambda s: awq(s, 16), {"quant_method": "awq", "bits": 4, "version": "gemm"}),
        "nf4": (
            lambda s: four_bit(s, nested=True),
            {"quant_method": "bitsandbytes", "load_in_4bit": True},
        ),
    }[method]
    stored = {}
    for name, each in load_file(base / "model.safetensors").items():
        tensors = quantise(tuple(each.shape))[0] if "_proj" in name else {".weight": each}
        stored |= {name.removesuffix(".weight") + end: tensor.contiguous() for end, tensor in tensors.items()}
    save_file(stored, base / "model.safetensors")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    return base
