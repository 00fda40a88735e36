"""What is asked of an attention kernel, and what a kernel is: a reason against, or the call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from zoo.mask import Mask


@dataclass(frozen=True)
class Ask:
    """One attention as a kernel sees it before any tensor is touched, so that it can be put for a machine not at hand.

    `dtype` is torch's name without the prefix. `bias` is "none", "fixed" or "learned" (a gradient is wanted for it).
    `capability` is a CUDA device's, where it is known: `attend` does not look it up as long as no kernel reads it.
    """

    device: str
    dtype: str
    head_dim: int
    v_head_dim: int
    n_heads: int = 1
    n_kv_heads: int = 1
    capability: tuple[int, int] | None = None
    needs_grad: bool = False
    softcap: bool = False
    sinks: bool = False
    bias: str = "none"
    window: bool = False
    padding: bool = False
    documents: bool = False


class Kernel:
    """A way to compute attention. Stateless: one instance serves all layers."""

    name: str
    about: str  # one line for `zoo doctor`

    def refuses(self, ask: Ask) -> str | None:
        """Why this kernel cannot do what is asked, or None. Pure, and cheap: decoding asks once a layer."""
        raise NotImplementedError

    def prepare(self, mask: Mask, device: torch.device, dtype: torch.dtype, bias: Tensor | None) -> None:
        """Draws on the mask what `__call__` will read, once for all layers that share it."""
        raise NotImplementedError

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Mask,
        *,
        scale: float,
        softcap: float | None,
        sinks: Tensor | None,
        bias: Tensor | None,
    ) -> Tensor:
        """q [B, T, H, C], k [B, S, K, C], v [B, S, K, Cv] of one dtype → [B, T, H, Cv]."""
        raise NotImplementedError
