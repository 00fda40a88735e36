"""The vocabulary of attention kernels: an Ask, a Machine, the Scores wanted, and the Kernel base class."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from zoo.kernels.bias import Bias
    from zoo.kernels.drop import DroppedChances
    from zoo.kernels.mask import Mask


@dataclass(frozen=True)
class Machine:
    """A device as kernels see it: torch's device type, the CUDA compute capability, and the optional packages installed
    there (see `zoo.kernels.found`). The device itself need not be present. `outdated` lists packages that are installed
    in a version too old to use, as (package, version)."""

    device: str
    capability: tuple[int, int] | None = None
    packages: frozenset[str] = frozenset()
    outdated: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Ask:
    """One attention call without its tensors: everything on which the choice of a kernel depends.

    `dtype` is torch's name without the prefix. `bias` is "alibi" (a slope times the distance), "fixed", "learned" or
    "none". `ahead`: how far a query that sees both ways sees ahead, where that is not as far as its `window`.
    `pairs`: some pairs are visible beyond what causality and the window show (a prefix, global tokens, an encoder's
    beside a window). `token_sinks`: each query has sinks of its own. `chosen`: each layer chose the keys that a query
    sees, so that it has a mask of its own. `lengths`: each row has its own number of keys. `page`: the page size of a
    paged cache in tokens. `short_q`: fewer queries than keys, T < S. `dropout`: some of the probabilities are dropped,
    as in training.
    """

    dtype: str
    head_dim: int
    v_head_dim: int
    n_heads: int = 1
    n_kv_heads: int = 1
    needs_grad: bool = False
    causal: bool = True
    window: int | None = None
    ahead: int | None = None
    softcap: float | None = None
    sinks: bool = False
    token_sinks: bool = False
    bias: str = "none"
    padding: bool = False
    documents: bool = False
    pairs: bool = False
    chosen: bool = False
    lengths: bool = False
    page: int | None = None
    short_q: bool = False
    dropout: bool = False


@dataclass(frozen=True)
class Call:
    """The function that a kernel calls, and its arguments other than tensors."""

    function: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        given = ", ".join(f"{name}={value}" for name, value in self.arguments.items())
        return f"{self.function}({given})" if given else self.function


@dataclass(frozen=True)
class Scores:
    """How scores are made from q and k and which of them count: all that a kernel takes beside q, k and v.

    `sinks` [H] are gpt-oss's learned sinks, or [B, T, H] those of each query (Inkling 2). `dropout` says which
    probabilities are dropped. With `pages` [B, P], k and v are pools of pages [N, page, K, C], and row b's keys are
    those of pages[b] in order.
    """

    mask: Mask
    scale: float
    softcap: float | None = None
    sinks: Tensor | None = None
    bias: Bias | None = None
    pages: Tensor | None = None
    dropout: DroppedChances | None = None

    def gather_pages(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Scores]:
        """Copy the keys and values of each row out of their pools, [B, P·page, K, C]; without pages, k and v as they
        are."""
        if self.pages is None:
            return k, v, self
        pages = self.pages.long()
        return k[pages].flatten(1, 2), v[pages].flatten(1, 2), replace(self, pages=None)


class Kernel:
    """A way to compute attention. Stateless: one instance serves all layers."""

    name: str
    about: str  # one line for `zoo doctor`
    fused: bool = True  # never holds all scores in memory
    on_request: bool = False  # left out by `auto`, used only when named
    pages_in_place: bool = False  # reads the pages of a cache where they lie; else a row's keys are copied out of them

    def refuses(self, ask: Ask, machine: Machine) -> str | None:
        """Say why this kernel cannot serve the ask on that machine, or None. Pure and cheap: decoding asks once a
        layer."""
        raise NotImplementedError

    def call(self, ask: Ask) -> Call:
        """Foretell the call made for an ask that is not refused."""
        raise NotImplementedError

    def prepare(self, mask: Mask, ask: Ask, device: torch.device, dtype: torch.dtype, bias: Bias | None) -> None:
        """Draw on the mask what `__call__` will read, once for all layers that share the mask."""
        raise NotImplementedError

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, how: Scores) -> Tensor:
        """Compute attention: q [B, T, H, C], k [B, S, K, C], v [B, S, K, Cv] of one dtype → [B, T, H, Cv]."""
        raise NotImplementedError
