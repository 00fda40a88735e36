# H heads
"""flash-attn 2, from its package or from the hub."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from zoo.kernels.base import AttentionQuery, Machine, Scores
from zoo.kernels.flash import VARLEN_CACHED, Flash, refuse_cached_width, refuse_width, since_ampere
from zoo.lazy import F, Tensor

if TYPE_CHECKING:
    from zoo.kernels.score_bias import Bias

PAGE = 256  # page sizes are multiples of this, in tokens


class Flash2(Flash):
    """flash-attn 2 (Dao, 2023): Ampere and newer; ALiBi, softcap and windows, forward and backward."""

    name = "flash2"
    about = "flash-attn 2: softcap, windows, ALiBi, paged caches; no sinks"
    package = "flash-attn"
    imported = "flash_attn"
    table = "block_table"
    functions: ClassVar = {**Flash.functions, VARLEN_CACHED: "flash_attn_varlen_func"}
    serves = staticmethod(since_ampere)
    wants = "flash-attn 2 wants compute capability 8.0 or more"

    def lacks(self, ask: AttentionQuery, machine: Machine) -> str | None:
        if ask.sinks:
            return "flash-attn 2 has no attention sinks"
        if ask.page and ask.page % PAGE:
            return f"flash-attn 2 wants pages of a multiple of {PAGE} tokens, found {ask.page}"
        return refuse_width(ask) or refuse_cached_width(ask)

    def varlen_cached(self, q: Tensor, k: Tensor, v: Tensor, how: Scores, given: dict[str, Any]) -> Tensor:
        mask = how.mask
        rows = {"cu_seqlens_q": mask.cu_seqlens_q, "max_seqlen_q": mask.n_queries, self.table: how.pages}
        if "cu_seqlens_k" not in mask.kept:
            mask.kept["cu_seqlens_k"] = F.pad(mask.lengths.cumsum(0), (1, 0)).int()  # type: ignore[union-attr]
        rows |= {"cu_seqlens_k": mask.kept["cu_seqlens_k"], "max_seqlen_k": mask.n_keys}
        return self.run(VARLEN_CACHED, q, k, v, rows, given)

    def extras(self, sinks: Tensor | None, bias: Bias | None) -> dict[str, Any]:
        return {} if bias is None else {"alibi_slopes": bias.slopes}


class Flash2Hub(Flash2):
    """flash-attn 2, built for this torch and downloaded by the `kernels` package."""

    name = "flash2_hub"
    about = "flash-attn 2 from the Hugging Face hub; fetched when it is first used, so only when named"
    package = "kernels"
    repository = "kernels-community/flash-attn2"
    on_request = True
