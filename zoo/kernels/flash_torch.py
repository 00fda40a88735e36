# B batch, T queries, S keys, H heads, K kv heads, C head width
"""The flash-attn 2 kernels that torch itself brings, by the operator behind scaled_dot_product_attention: it has
windows and unequal lengths, which that function does not pass on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from zoo.kernels.base import Ask, Machine
from zoo.kernels.flash import CACHED, DENSE, VARLEN, Flash, Stretches, too_wide
from zoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

OPERATOR = "_flash_attention_forward"


class FlashTorch(Flash):
    """aten::_flash_attention_forward. It takes ALiBi's slopes, and raises: torch builds its kernels without."""

    name = "flash_torch"
    about = "torch's own flash-attn 2: windows, documents; no ALiBi, no softcap, no sinks"
    functions: ClassVar = dict.fromkeys((DENSE, VARLEN, CACHED), OPERATOR)

    def unfit(self, capability: tuple[int, int] | None) -> str | None:
        if capability is None or capability >= (8, 0):
            return None
        return f"torch's flash kernels want compute capability 8.0 or more, this is {capability[0]}.{capability[1]}"

    def lacks(self, ask: Ask, machine: Machine) -> str | None:
        if ask.softcap is not None:
            return "torch's flash kernels have no softcap"
        if ask.sinks:
            return "torch's flash kernels have no attention sinks"
        if ask.bias == "alibi":
            return "torch's flash kernels are built without ALiBi"
        if ask.lengths or ask.page:
            return "torch's flash kernels read no cache of rows of unequal length"
        return too_wide(ask)

    def module(self) -> Any:
        return torch.ops.aten

    def options(self, causal: bool, window: int | None, softcap: float | None) -> dict[str, Any]:
        sides = (None, None) if window is None else (window - 1, 0) if causal else (window, window)
        return {"is_causal": causal, "window_size_left": sides[0], "window_size_right": sides[1]}

    def dense(self, q: Tensor, k: Tensor, v: Tensor, given: dict[str, Any]) -> Tensor:
        return self._run(q, k, v, (None, None, q.shape[1], k.shape[1]), given)

    def varlen(self, q: Tensor, k: Tensor, v: Tensor, laid: Stretches, given: dict[str, Any]) -> Tensor:
        flat = laid.queries.take(q), laid.keys.take(k), laid.keys.take(v)
        return laid.queries.put(self._run(*flat, tuple(laid.lengths.values()), given), q.shape[:2])

    def cached(
        self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, pages: Tensor | None, given: dict[str, Any]
    ) -> Tensor:
        return self.dense(q, k, v, given)

    def _run(self, q: Tensor, k: Tensor, v: Tensor, lengths: tuple[Any, ...], given: dict[str, Any]) -> Tensor:
        """`lengths`: where queries and keys end and the longest of each, as the operator's next four arguments."""
        options = dict(given)
        scale, causal = options.pop("softmax_scale"), options.pop("is_causal")
        return getattr(self.load(), OPERATOR)(q, k, v, *lengths, 0.0, causal, False, scale=scale, **options)[0]
