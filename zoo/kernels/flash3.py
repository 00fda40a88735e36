# B batch, T queries, S keys, H heads, K kv heads, C head width
"""flash-attn 3, from its package or from the hub."""

from __future__ import annotations

from zoo.kernels.base import AttentionQuery, Machine
from zoo.kernels.flash import WIDEST, Flash, refuse_cached_width, refuse_width
from zoo.lazy import Tensor


def own_widths(head_dim: int, v_head_dim: int) -> bool:
    """Whether flash-attn 3 takes these values unpadded: they are as wide as keys, or have the widths of MLA's expanded
    heads, or are wide with narrow keys."""
    expanded = 128 < head_dim <= 192 and 96 < v_head_dim <= 128
    return head_dim == v_head_dim or expanded or (head_dim <= 64 and v_head_dim <= 512)


class Flash3(Flash):
    """flash-attn 3 (Shah et al., 2024): Hopper; softcap and windows, forward and backward; pages of any size."""

    name = "flash3"
    about = "flash-attn 3: made for Hopper; softcap, windows, paged caches; no ALiBi, no sinks"
    package = "flash-attn-3"
    imported = "flash_attn_interface"
    serves = staticmethod(lambda capability: capability == (9, 0))
    wants = "flash-attn 3 is made for Hopper (compute capability 9.0)"

    def lacks(self, ask: AttentionQuery, machine: Machine) -> str | None:
        if ask.bias == "alibi":
            return "flash-attn 3 has no ALiBi"
        if ask.sinks:
            return "flash-attn 3 has no attention sinks"
        if ask.needs_grad and ask.v_head_dim > WIDEST:
            return f"flash-attn 3 has a gradient for values of at most {WIDEST}, found {ask.v_head_dim}"
        if own_widths(ask.head_dim, ask.v_head_dim):
            return None if ask.head_dim <= WIDEST else refuse_width(ask)
        return refuse_width(ask) or refuse_cached_width(ask)

    def values(self, q: Tensor, v: Tensor) -> Tensor:
        return v if own_widths(q.shape[3], v.shape[3]) else super().values(q, v)


class Flash3Hub(Flash3):
    """flash-attn 3, built for this torch and downloaded by the `kernels` package."""

    name = "flash3_hub"
    about = "flash-attn 3 from the Hugging Face hub; fetched when it is first used, so only when named"
    package = "kernels"
    repository = "kernels-community/flash-attn3"
    on_request = True
