"""Define attention kernels: an AttentionQuery (a call without tensors), a Machine, Scores (mask, scale, …), and the
Kernel base. Choosing a kernel depends only on AttentionQuery and Machine. A feature that a kernel lacks is refused,
never ignored."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from zoo.errors import KernelError, ZooError
from zoo.kernels.packed import split_rows
from zoo.lazy import Tensor, torch

if TYPE_CHECKING:
    from zoo.kernels.drop import AttentionDropout
    from zoo.kernels.mask import Mask
    from zoo.kernels.score_bias import Bias


@dataclass(frozen=True)
class Machine:
    """A device, described by the properties that kernels depend on: torch's device type, CUDA compute capability (None:
    no CUDA device, or unknown), and the installed packages among the keys of `zoo.kernels.found.PACKAGES`. The device
    itself need not be present. `outdated` lists packages whose installed version is too old, as (package, version)."""

    device: str
    capability: tuple[int, int] | None = None
    packages: frozenset[str] = frozenset()
    outdated: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class AttentionQuery:
    """One attention call without its tensors: everything on which the choice of a kernel depends, besides the Machine.

    `dtype` is torch's name without the prefix, such as "bfloat16". `window` is in tokens. `ahead` is the number of
    tokens that a bidirectional query sees after itself (None: `window`). `bias` is "alibi" (a slope times the
    distance), "fixed" (another bias without a gradient), "learned" or "none". `page` is the page size of a paged cache
    in tokens. These fields are true: `pairs` if pairs are visible beyond causality and window (a prefix, global tokens,
    an encoder's keys next to a window); `token_sinks` if each query has its own sinks; `chosen` if each layer chooses
    the keys that a query sees, and so has its own mask; `lengths` if each row has its own number of keys; `varlen` if
    each row also has its own number of queries, and rows are concatenated; `short_q` if there are fewer queries than
    keys, T < S; `dropout` if probabilities are dropped, as in training.
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
    varlen: bool = False
    page: int | None = None
    short_q: bool = False
    dropout: bool = False


@dataclass(frozen=True)
class Call:
    """The function that a kernel calls, and its non-tensor arguments."""

    function: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        given = ", ".join(f"{name}={value}" for name, value in self.arguments.items())
        return f"{self.function}({given})" if given else self.function


@dataclass(frozen=True)
class Scores:
    """How scores are computed and masked: all inputs of a kernel except q, k and v.

    `sinks` [H] are learned sinks (gpt-oss), or [B, T, H] sinks of each query (Inkling 2). `dropout` determines which
    probabilities are dropped. With `pages` [B, P], k and v are pools of pages [N, page, K, C], and row b's keys are the
    keys of the pages pages[b], in order.
    """

    mask: Mask
    scale: float
    softcap: float | None = None
    sinks: Tensor | None = None
    bias: Bias | None = None
    pages: Tensor | None = None
    dropout: AttentionDropout | None = None

    def gather_pages(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Scores]:
        """Copy each row's keys and values out of the page pools, to [B, P·page, K, C]. Pad concatenated queries [1, N,
        H, C] to rows [B, T, H, C]. Return q, k, v and Scores without `pages`. Without pages, return all unchanged."""
        if self.pages is None:
            return q, k, v, self
        pages, mask = self.pages.long(), self.mask
        if mask.cu_seqlens_q is not None:
            q, mask = split_rows(q, mask.cu_seqlens_q, mask.n_queries), mask.of_rows()
        return q, k[pages].flatten(1, 2), v[pages].flatten(1, 2), replace(self, pages=None, mask=mask)


class Kernel:
    """A way to compute attention. An instance keeps no state of a layer, so one instance serves all layers."""

    name: str
    about: str  # one line for `zoo doctor`
    fused: bool = True  # never holds all scores in memory
    on_request: bool = False  # used only when named, not by `auto`
    pages_in_place: bool = False  # reads a paged cache in place; else keys are copied out first
    broken: bool = False  # could not be loaded, or failed at a first call

    def refuses(self, ask: AttentionQuery, machine: Machine) -> str | None:
        """Return why this kernel cannot serve `ask` on the machine; None if it can. Pure, and cheap enough to be called
        for each layer."""
        raise NotImplementedError

    def can_load(self) -> bool:
        """Whether the code of the kernel can be loaded on this machine. Warns once if it cannot."""
        return True

    def runs(self, ask: AttentionQuery, device: torch.device, dtype: torch.dtype) -> bool:
        """Return whether the kernel runs on this machine, as far as a trial call can show. If it does not, warn; `auto`
        then skips it."""
        return True

    def give_up(self, ask: AttentionQuery, error: Exception) -> bool:
        """Return whether the error of a call shows that the kernel cannot run on this machine. If so, warn; `auto` then
        skips the kernel."""
        return False

    def call(self, ask: AttentionQuery) -> Call:
        """Return the call that the kernel makes for a query that it does not refuse."""
        raise NotImplementedError

    def prepare(
        self, mask: Mask, ask: AttentionQuery, device: torch.device, dtype: torch.dtype, bias: Bias | None
    ) -> None:
        """Compute the tensors that `__call__` needs in addition to its arguments, such as a dense mask. Store them on
        the mask, for all layers that share it."""
        raise NotImplementedError

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, how: Scores) -> Tensor:
        """Compute attention: q [B, T, H, C], k [B, S, K, C], v [B, S, K, Cv] of one dtype → [B, T, H, Cv]."""
        raise NotImplementedError


class FallibleKernel(Kernel):
    """A kernel that may fail on a machine that it does not refuse: its code cannot be imported, or its first call
    raises an error. `auto` then skips it with a warning."""

    package: str = ""  # a key of zoo.kernels.found.PACKAGES; "" for torch's own

    def __init__(self) -> None:
        self.proven: set[str] = set()  # functions that have returned

    def module(self) -> Any:
        """Import and return the module of the kernel's code."""
        raise NotImplementedError

    def load(self) -> Any:
        """Return `module()`. Raises KernelError if the import fails."""
        try:
            return self.module()
        except Exception as error:  # a package's own code: it may raise anything
            found = f"{self.package} is installed and cannot be loaded, found {type(error).__name__}: {error}"
            raise KernelError(f"kernel: {self.name}: {found} (kernel=sdpa would do)") from error

    def can_load(self) -> bool:
        if not self.broken:
            try:
                self.load()
            except KernelError as error:
                self.broken = True
                warnings.warn(f"{error.args[0].partition(' (kernel=')[0]}; another kernel is used", stacklevel=2)
        return not self.broken

    def give_up(self, ask: AttentionQuery, error: Exception) -> bool:
        name = self.call(ask).function
        if name in self.proven or isinstance(error, (ZooError, torch.OutOfMemoryError)):
            return False
        self.broken = True
        line = (str(error).strip() or "no message").splitlines()[0]
        found = f"kernel: {self.name}: the first call of {name} failed, found {type(error).__name__}: {line}"
        warnings.warn(f"{found}; another kernel is used", stacklevel=2)
        return True

    def prove(self, function: str) -> None:
        """Record that `function` has returned. A later error in it then does not mean that the kernel cannot run."""
        if not torch.compiler.is_compiling():
            self.proven.add(function)
