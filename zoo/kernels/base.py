"""What is asked of an attention kernel, where, and what a kernel is: a reason against, or the call."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from zoo.kernels.bias import Bias
    from zoo.kernels.mask import Mask


@dataclass(frozen=True)
class Machine:
    """Where attention is to run: torch's device type, a CUDA device's compute capability, and which of the packages
    that kernels need are installed there (see `zoo.kernels.found`). It need not be at hand."""

    device: str
    capability: tuple[int, int] | None = None
    packages: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Ask:
    """One attention as a kernel sees it before any tensor is touched.

    `dtype` is torch's name without the prefix. `bias` is "alibi" (slopes on distances, columns in order), "fixed",
    "learned" or "none". `pairs` are shown beyond what place shows: a prefix, or pairs named one by one. With
    `scattered` columns come in another order than that of the keys, as in a ring that went round. `lengths` gives
    each row keys of its own number, `page` is a paged cache's page size in tokens. `fewer` says that there are
    fewer queries than keys.
    """

    dtype: str
    head_dim: int
    v_head_dim: int
    n_heads: int = 1
    n_kv_heads: int = 1
    needs_grad: bool = False
    causal: bool = True
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    bias: str = "none"
    padding: bool = False
    documents: bool = False
    pairs: bool = False
    scattered: bool = False
    lengths: bool = False
    page: int | None = None
    fewer: bool = False


@dataclass(frozen=True)
class Call:
    """What a kernel calls, and with which arguments as far as they are no tensors."""

    function: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        given = ", ".join(f"{name}={value}" for name, value in self.arguments.items())
        return f"{self.function}({given})" if given else self.function


class Kernel:
    """A way to compute attention. Stateless: one instance serves all layers."""

    name: str
    about: str  # one line for `zoo doctor`
    fused: bool = True  # whether no score is ever held in memory
    on_request: bool = False  # whether `auto` leaves it out

    def refuses(self, ask: Ask, machine: Machine) -> str | None:
        """Why this kernel cannot do what is asked there, or None. Pure, and cheap: decoding asks once a layer."""
        raise NotImplementedError

    def call(self, ask: Ask) -> Call:
        """What it calls for an ask that it does not refuse."""
        raise NotImplementedError

    def prepare(self, mask: Mask, ask: Ask, device: torch.device, dtype: torch.dtype, bias: Bias | None) -> None:
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
        bias: Bias | None,
        pages: Tensor | None = None,
    ) -> Tensor:
        """q [B, T, H, C], k [B, S, K, C], v [B, S, K, Cv] of one dtype → [B, T, H, Cv]. With `pages` [B, P] k and v are
        pools [N, page, K, C] instead, in which row b's keys lie in pages[b]."""
        raise NotImplementedError


def gathered(pool: Tensor, pages: Tensor) -> Tensor:
    """The keys or values of each row [B, P·page, K, C] out of a pool of pages [N, page, K, C]."""
    return pool[pages.long()].flatten(1, 2)
