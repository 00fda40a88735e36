# B batch, T queries, S keys, H heads, K kv heads, C head width
"""What the versions look at before they compute, and the rows that a call is made of."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

HALVES = (torch.float16, torch.bfloat16)


def check(fine: Any, message: str, kind: type[Exception] = RuntimeError) -> None:
    """Raises what the C++ of the real ones raises, with its words as far as they are known."""
    if not fine:
        raise kind(message)


def unplayed(**arguments: Any) -> None:
    """Refuses what no stand-in computes: arguments by name, with the value that leaves each out beside it."""
    for name, (value, off) in arguments.items():
        check(value is off or value == off, f"the stand-in does not play {name}, found {value!r}", NotImplementedError)


def types(q: Tensor, k: Tensor, v: Tensor) -> None:
    """float16 or bfloat16, all the same, on one device."""
    check(q.dtype in HALVES, f"FlashAttention only support fp16 and bf16 data type, found {q.dtype}")
    check(k.dtype == q.dtype, f"query and key must have the same dtype, found {q.dtype} and {k.dtype}")
    check(v.dtype == q.dtype, f"query and value must have the same dtype, found {q.dtype} and {v.dtype}")
    for name, each in (("k", k), ("v", v)):
        check(each.device == q.device, f"{name} must be on {q.device}, found {each.device}")


def shaped(tensor: Tensor, name: str, *shape: int) -> None:
    check(tuple(tensor.shape) == shape, f"{name} must have shape {shape}, found {tuple(tensor.shape)}")


def heads(n_heads: int, n_kv_heads: int) -> None:
    check(
        n_heads % n_kv_heads == 0,
        f"Number of heads in key/value must divide number of heads in query, found {n_heads} and {n_kv_heads}",
    )


def int32(tensor: Tensor, name: str, like: Tensor, *shape: int) -> None:
    """Numbers for the kernel: int32, contiguous, on q's device, of this shape."""
    check(tensor.dtype == torch.int32, f"{name} must have dtype int32, found {tensor.dtype}")
    check(tensor.device == like.device, f"{name} must be on {like.device}, found {tensor.device}")
    check(tensor.stride(-1) == 1 or tensor.shape[-1] == 1, f"{name} must be contiguous")
    shaped(tensor, name, *shape)


def whole(value: Any, name: str) -> int:
    """A Python int, as the operators' schemas have it."""
    check(isinstance(value, int) and not isinstance(value, bool), f"{name} must be an int, found {value!r}", TypeError)
    return value


def number(value: Any, name: str) -> float:
    fine = isinstance(value, (int, float)) and not isinstance(value, bool)
    check(fine, f"{name} must be a number, found {value!r}", TypeError)
    return value


def scale_of(scale: float | None, q: Tensor) -> float:
    """What scores are multiplied by; unless told otherwise, the root of the head's width divides them."""
    return q.shape[-1] ** -0.5 if scale is None else number(scale, "softmax_scale")


def ends(tensor: Any, name: str, like: Tensor, total: int, longest: Any) -> list[int]:
    """Where rows laid end to end begin and end: [B + 1]. The real ones do not read the numbers, and run astray."""
    check(isinstance(tensor, Tensor), f"{name} must be a tensor, found {type(tensor).__name__}", TypeError)
    int32(tensor, name, like, tensor.numel())
    numbers = tensor.tolist()
    check(len(numbers) > 1, "batch size must be positive")
    check(numbers[0] == 0, f"{name} must begin with 0, found {numbers}")
    check(all(a <= b for a, b in pairwise(numbers)), f"{name} must not decrease, found {numbers}")
    check(numbers[-1] == total, f"{name} must end with the number of tokens {total}, found {numbers}")
    limit = whole(longest, f"the longest of {name}")
    found = max(b - a for a, b in pairwise(numbers))
    check(found <= limit, f"the longest row of {name} has {found} tokens, {limit} were announced")
    return numbers


def split(tensor: Tensor, numbers: list[int]) -> list[Tensor]:
    """The rows that were laid end to end."""
    return [tensor[a:b] for a, b in pairwise(numbers)]


def sides(window: Any, causal: bool) -> tuple[int | None, int | None]:
    """(left, right) of a window in the words of versions 2 and 3, where -1 is no limit; None being no limit here."""
    left, right = (whole(side, "a side of window_size") for side in window)
    return None if left < 0 else left, 0 if causal else None if right < 0 else right


def slopes_of(slopes: Tensor | None, q: Tensor, n_rows: int, n_heads: int) -> list[Tensor | None]:
    """ALiBi's slopes for each row, from [H] or [B, H]."""
    if slopes is None:
        return [None] * n_rows
    check(slopes.dtype == torch.float32, f"ALiBi slopes must have dtype fp32, found {slopes.dtype}")
    check(slopes.device == q.device, f"alibi_slopes must be on {q.device}, found {slopes.device}")
    check(slopes.stride(-1) == 1, "ALiBi slopes tensor must have contiguous last dimension")
    fits = tuple(slopes.shape) in ((n_heads,), (n_rows, n_heads))
    check(fits, f"alibi_slopes must have shape {(n_heads,)} or {(n_rows, n_heads)}, found {tuple(slopes.shape)}")
    return list(slopes.expand(n_rows, n_heads))


def wants_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in tensors)
