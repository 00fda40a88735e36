# B batch, T queries, S keys, H heads, K kv heads, C head width
"""flash-attn 4, written in CuTe's Python DSL and compiled at the first call."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, ClassVar

from zoo.kernels.base import AttentionQuery, Machine, Scores
from zoo.kernels.flash import CACHED, DENSE, VARLEN_CACHED, WIDEST, Flash, way
from zoo.lazy import Tensor

if TYPE_CHECKING:
    from zoo.kernels.score_bias import Bias

NEEDED = ("max_seqlen_q", "seqused_k", "page_table", "learnable_sink")
"""Parameters of `flash_attn_varlen_func` that are passed."""

PAGED = 16  # in a paged cache a head's width is a multiple of this
UNEQUAL = (192, 128), (128, 64), (64, 128)
"""Unequal widths (keys, values) that have a gradient on both Hopper and Blackwell."""


class Flash4(Flash):
    """flash-attn 4 (Zadouri et al., 2026): Hopper and Blackwell; windows, softcap and learned sinks, forward and
    backward; keys and values of different widths. The package has no function for a cache, so Zoo writes the keys
    itself. The varlen function reads a cache whose rows differ in length, `flash_attn_func` any other."""

    name = "flash4"
    about = "flash-attn 4: Hopper and Blackwell; softcap, windows, learned sinks, paged caches; no ALiBi"
    package = "flash-attn-4"
    imported = "flash_attn.cute"
    serves = staticmethod(lambda capability: capability[0] in (9, 10, 11))
    wants = "flash-attn 4 is made for Hopper and Blackwell (compute capability 9, 10 or 11)"
    lengths = "seqused_k"
    functions: ClassVar = {**Flash.functions, **dict.fromkeys((CACHED, VARLEN_CACHED), "flash_attn_varlen_func")}
    unlimited = None

    def lacks(self, ask: AttentionQuery, machine: Machine) -> str | None:
        if ask.bias == "alibi":
            return "flash-attn 4 has no ALiBi but as code of its own language"
        if ask.token_sinks:
            return "flash-attn 4 has one sink for a head, not one for each of its queries"
        widths = ask.head_dim, ask.v_head_dim
        if ask.page and any(width % PAGED for width in widths):
            return f"flash-attn 4 reads pages of heads in multiples of {PAGED}, found {widths}"
        if machine.capability is not None and machine.capability[0] > 9:
            return _refuse_on_blackwell(widths, ask) or _refuse_gradient(widths, ask)
        return _refuse_on_hopper(widths) or _refuse_gradient(widths, ask)

    def module(self) -> Any:
        """Import the module. Raises ImportError for the older `flash_attn.cute` of flash-attn 2. If that package was
        installed later, it has replaced the files of flash-attn 4 but not its metadata."""
        module = super().module()
        there = inspect.signature(module.flash_attn_varlen_func).parameters
        if missing := [name for name in NEEDED if name not in there]:
            found = f"its files are older, without {missing[0]}: flash-attn 2 has replaced them"
            raise ImportError(f"{found} (install flash-attn-4 after flash-attn)")
        return module

    def function(self, ask: AttentionQuery) -> str:
        return super().function(ask) if ask.lengths or way(ask) != CACHED else self.functions[DENSE]

    def extras(self, sinks: Tensor | None, bias: Bias | None) -> dict[str, Any]:
        return {} if sinks is None else {"learnable_sink": sinks}

    def values(self, q: Tensor, v: Tensor) -> Tensor:
        return v

    def cached(self, q: Tensor, k: Tensor, v: Tensor, how: Scores, given: dict[str, Any]) -> Tensor:
        if how.mask.lengths is None:
            return self.run(DENSE, q, k, v, {}, given)
        return super().cached(q, k, v, how, given)


def _refuse_on_hopper(widths: tuple[int, int]) -> str | None:
    if max(widths) > WIDEST:
        return f"heads are at most {WIDEST} wide, found {max(widths)}"
    narrow = widths[0] < 128 and widths[1] > 192  # the kernel would need more registers than there are
    return f"on Hopper values are at most 192 wide beside keys of less than 128, found {widths}" if narrow else None


def _refuse_on_blackwell(widths: tuple[int, int], ask: AttentionQuery) -> str | None:
    if widths == (256, 256):
        lacks = {"softcap": ask.softcap is not None, "sinks": bool(ask.sinks), "lengths of rows": bool(ask.lengths)}
        found = next((name for name, asked in lacks.items() if asked), None)
        return None if found is None else f"on Blackwell heads of 256 have no {found}"
    if max(widths) > 128 and widths != (192, 128):
        return f"on Blackwell heads are at most 128 wide, (192, 128) or (256, 256), found {widths}"
    return None


def _refuse_gradient(widths: tuple[int, int], ask: AttentionQuery) -> str | None:
    """Return why the gradient for unequal widths is missing, or None. Found by compiling all widths
    (tests/oracle/compile_flash4.py)."""
    if not ask.needs_grad or widths[0] == widths[1]:
        return None
    if ask.n_heads > ask.n_kv_heads:
        return f"flash-attn 4 has a gradient for shared keys as wide as their values, not {widths}"
    return None if widths in UNEQUAL else f"flash-attn 4 has a gradient for widths of {UNEQUAL}, not {widths}"
