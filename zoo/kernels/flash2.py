# B batch, T queries, S keys, H heads, K kv heads, C head width
"""flash-attn 2, from its package or from the hub."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, ClassVar

from zoo.kernels import hub
from zoo.kernels.base import Ask, Machine
from zoo.kernels.flash import CACHED, DENSE, VARLEN, Flash, narrow_in_cache, too_wide

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.kernels.bias import Bias

PAGE = 256  # tokens, of which a page holds a multiple


class Flash2(Flash):
    """flash-attn 2 (Dao, 2023): Ampere and newer; ALiBi, softcap and windows, forward and backward."""

    name = "flash2"
    about = "flash-attn 2: softcap, windows, ALiBi, paged caches; no sinks"
    package = "flash-attn"
    functions: ClassVar = {
        DENSE: "flash_attn_func",
        VARLEN: "flash_attn_varlen_func",
        CACHED: "flash_attn_with_kvcache",
    }
    table = "block_table"

    def unfit(self, capability: tuple[int, int] | None) -> str | None:
        if capability is None or capability >= (8, 0):
            return None
        return f"flash-attn 2 wants compute capability 8.0 or more, this is {capability[0]}.{capability[1]}"

    def lacks(self, ask: Ask, machine: Machine) -> str | None:
        if ask.sinks:
            return "flash-attn 2 has no attention sinks"
        if ask.page and ask.page % PAGE:
            return f"flash-attn 2 wants pages of a multiple of {PAGE} tokens, found {ask.page}"
        return too_wide(ask) or narrow_in_cache(ask)

    def module(self) -> Any:
        return importlib.import_module("flash_attn")

    def extras(self, sinks: Tensor | None, bias: Bias | None) -> dict[str, Any]:
        return {} if bias is None else {"alibi_slopes": bias.slopes}


class Flash2Hub(Flash2):
    """The same, built for this torch and fetched by the `kernels` package."""

    name = "flash2_hub"
    about = "flash-attn 2 from the Hugging Face hub; fetched when it is first used, so only when named"
    package = "kernels"
    on_request = True

    def module(self) -> Any:
        return hub.fetch("kernels-community/flash-attn2", 1)
