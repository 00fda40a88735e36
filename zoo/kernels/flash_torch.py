# B batch, T queries, S keys, H heads, K kv heads, C head width
"""torch's own flash-attn 2 kernels, called through the operator behind scaled_dot_product_attention. The operator has
windows and cu_seqlens, which scaled_dot_product_attention does not offer."""

from __future__ import annotations

from typing import Any, ClassVar

from zoo.kernels.base import AttentionQuery, Machine
from zoo.kernels.flash import CACHED, DENSE, VARLEN, Flash, refuse_width, since_ampere
from zoo.lazy import Tensor, torch

OPERATOR = "_flash_attention_forward"


class FlashTorch(Flash):
    """torch's operator aten::_flash_attention_forward. Its argument for ALiBi slopes raises an error, because torch
    builds the kernels without ALiBi."""

    name = "flash_torch"
    about = "torch's own flash-attn 2: windows, documents; no ALiBi, no softcap, no sinks"
    functions: ClassVar = dict.fromkeys((DENSE, VARLEN, CACHED), OPERATOR)
    pages_in_place = False
    unlimited = None
    serves = staticmethod(since_ampere)
    wants = "torch's flash-attn 2 wants compute capability 8.0 or more"

    def lacks(self, ask: AttentionQuery, machine: Machine) -> str | None:
        if ask.softcap is not None:
            return "torch's flash kernels have no softcap"
        if ask.sinks:
            return "torch's flash kernels have no attention sinks"
        if ask.bias == "alibi":
            return "torch's flash kernels are built without ALiBi"
        if ask.lengths or ask.page:
            return "torch's flash kernels read no cache of rows of unequal length"
        return refuse_width(ask)

    def module(self) -> Any:
        return torch.ops.aten

    def options(
        self, causal: bool, window: int | None, softcap: float | None, ahead: int | None = None
    ) -> dict[str, Any]:
        left, right = self.sides(causal, window, ahead)
        return {"is_causal": causal, "window_size_left": left, "window_size_right": right}

    def run(
        self, which: str, q: Tensor, k: Tensor, v: Tensor, lengths: dict[str, Any], given: dict[str, Any]
    ) -> Tensor:
        """Call the operator, which takes cum_seq_q, cum_seq_k, max_q and max_k by position."""
        sizes, options = tuple(lengths.values()) or (None, None, q.shape[1], k.shape[1]), dict(given)
        scale, causal = options.pop("softmax_scale"), options.pop("is_causal")
        y = getattr(self.load(), OPERATOR)(q, k, v, *sizes, 0.0, causal, False, scale=scale, **options)[0]
        self.prove(OPERATOR)
        return y
