# B batch, T queries, S keys, H heads, K kv heads, C head width
"""The flash-attn family of kernels: what they refuse, which of their functions serves a query, and the call."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from zoo.kernels.base import AttentionQuery, Call, FallibleKernel, Machine, Scores
from zoo.kernels.found import explain_missing
from zoo.kernels.mask import Mask
from zoo.kernels.varlen import VarlenBatch, lay_varlen
from zoo.lazy import F, Tensor, torch

if TYPE_CHECKING:
    from zoo.kernels.score_bias import Bias

WIDEST = 256  # maximum head width of all versions, except for special shapes
DTYPES = ("float16", "bfloat16")

DENSE, VARLEN, CACHED, VARLEN_CACHED = "dense", "varlen", "cached", "varlen_cached"
"""The four kinds of call: whole rows; a varlen batch (cu_seqlens), in which rows or documents of unequal length are
concatenated; queries that attend to a cache, forward only; and a varlen batch of queries that attend to a paged
cache."""


class Flash(FallibleKernel):
    """Base of the flash-attn kernels: attention without scores in memory (Dao et al., 2022; Dao, 2023; Shah et al.,
    2024).

    The layout is [B, T, H, C]. Causal masks and windows are aligned at the bottom right, and a query that sees no key
    gives 0, as in `attend`. A feature that a version lacks is refused, never ignored.
    """

    imported: str  # the module that has the functions
    serves: Callable[[tuple[int, int]], bool]  # whether it runs on a compute capability
    wants: str  # the same in words, for refusals
    repository: str = ""  # the hub repository of a kernel that is downloaded
    functions: ClassVar[dict[str, str]] = {
        DENSE: "flash_attn_func",
        VARLEN: "flash_attn_varlen_func",
        CACHED: "flash_attn_with_kvcache",
        VARLEN_CACHED: "flash_attn_with_kvcache",
    }
    table: str = "page_table"  # the keyword for the page table
    lengths: str = "cache_seqlens"  # the keyword for each row's number of keys
    pages_in_place = True
    unlimited: int | None = -1  # the value of window_size for an unlimited side

    def __init__(self) -> None:
        super().__init__()
        self.loaded: Any = None  # the module, once imported
        self.tried: set[tuple[str, bool]] = set()  # functions that `runs` has called, and whether backward too

    # ------------------------------------------------------------ the reason against

    def refuses(self, ask: AttentionQuery, machine: Machine) -> str | None:
        return self.refuses_machine(machine) or _refuse_ask(ask) or self.lacks(ask, machine)

    def refuses_machine(self, machine: Machine) -> str | None:
        """Return why the kernel cannot run on this machine at all; None if it can."""
        if machine.device != "cuda":
            return f"it runs on CUDA devices, this is {machine.device}"
        missing, found = explain_missing(self.package, machine) if self.package else None, machine.capability
        if missing or found is None or self.serves(found):
            return missing
        return f"{self.wants}, this is {found[0]}.{found[1]}"

    def lacks(self, ask: AttentionQuery, machine: Machine) -> str | None:
        """Return a sentence on the first feature of `ask` that this version lacks; None if it has all."""
        raise NotImplementedError

    # ------------------------------------------------------------ the call

    def call(self, ask: AttentionQuery) -> Call:
        return Call(self.function(ask), self.options(ask.causal, ask.window, ask.softcap, ask.ahead))

    def function(self, ask: AttentionQuery) -> str:
        """Return the name of the function that computes `ask`."""
        return self.functions[way(ask)]

    def options(
        self, causal: bool, window: int | None, softcap: float | None, ahead: int | None = None
    ) -> dict[str, Any]:
        """Return causality, window and softcap as this version's arguments."""
        sides = self.sides(causal, window, ahead)
        return {"causal": causal, "window_size": sides, **({"softcap": softcap} if softcap else {})}

    def sides(self, causal: bool, window: int | None, ahead: int | None) -> tuple[int | None, int | None]:
        """Return a window as tokens seen to the left and right of a query: a causal window of 4 is (3, 0)."""
        if window is None:
            return self.unlimited, self.unlimited
        return (window - 1, 0) if causal else (window, window if ahead is None else ahead)

    def runs(self, ask: AttentionQuery, device: torch.device, dtype: torch.dtype) -> bool:
        """Call the function for `ask` once on zeros, forward and, if training needs it, backward. Calls that read a
        cache are not tried: they are never compiled."""
        name = self.function(ask)
        tried, proven = (name, ask.needs_grad), name in self.proven
        if tried in self.tried or way(ask) not in (DENSE, VARLEN) or device.type == "meta":
            return True
        if torch.compiler.is_compiling():
            return True
        try:
            self.call_on_zeros(ask, device, dtype)
        except Exception as error:  # a package's own code: it may raise anything
            self.proven.discard(name)  # its backward pass may have failed
            if not self.give_up(ask, error):
                raise
            return False
        self.tried.add(tried)
        if not proven:
            self.proven.discard(name)  # outside of compiled layers the first call on real tensors may still fail
        return True

    def call_on_zeros(self, ask: AttentionQuery, device: torch.device, dtype: torch.dtype) -> None:
        """Call the kernel on zeros, two tokens with the heads and mask of `ask`, forward and, if it needs gradients,
        backward."""
        of_queries, of_keys = (ask.n_heads, ask.head_dim), (ask.n_kv_heads, ask.head_dim)
        heads = (of_queries, of_keys, (ask.n_kv_heads, ask.v_head_dim))
        given: dict[str, Any] = {"device": device, "dtype": dtype, "requires_grad": ask.needs_grad}
        q, k, v = (torch.zeros(1, 2, *each, **given) for each in heads)
        numbers = torch.zeros(1, 2, dtype=torch.long, device=device)
        mask = Mask(2, 2, causal=ask.causal, window=ask.window, ahead=ask.ahead)
        mask.documents = (numbers, numbers) if way(ask) == VARLEN else None
        y = self(q, k, v, Scores(mask, 1.0, ask.softcap))
        if ask.needs_grad:
            y.sum().backward()

    def load(self) -> Any:
        if self.loaded is None:
            self.loaded = super().load()
        return self.loaded

    def module(self) -> Any:
        """Import the module. If the kernel has a `repository`, instead download the newest build of its version 1 from
        the hub, once."""
        if not self.repository:
            return importlib.import_module(self.imported)
        from kernels import get_kernel  # type: ignore[import-not-found]

        return get_kernel(self.repository, version=1)

    def prepare(
        self, mask: Mask, ask: AttentionQuery, device: torch.device, dtype: torch.dtype, bias: Bias | None
    ) -> None:
        self.load()
        if way(ask) == VARLEN:
            lay_varlen(mask, device)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, how: Scores) -> Tensor:
        mask, features = how.mask, how.mask.features
        sides = features["causal"], features["window"], how.softcap, features["ahead"]
        given = {"softmax_scale": how.scale, **self.options(*sides)}
        given |= self.extras(how.sinks, how.bias)
        width = v.shape[3]
        q, k, v = (each if each.stride(-1) == 1 else each.contiguous() for each in (q, k, self.values(q, v)))
        needs_grad = torch.is_grad_enabled() and any(each.requires_grad for each in (q, k, v))
        if mask.cu_seqlens_q is not None:
            y = self.varlen_cached(q[0], k, v, how, given)[None]
        elif mask.documents is not None or mask.padding is not None:
            y = self.varlen(q, k, v, lay_varlen(mask, q.device).for_rows(q.shape[0]), given)
        elif needs_grad or not (features["short_q"] or mask.lengths is not None):
            y = self.run(DENSE, q, k, v, {}, given)
        else:
            y = self.cached(q, k, v, how, given)
        return y[..., :width]

    def extras(self, sinks: Tensor | None, bias: Bias | None) -> dict[str, Any]:
        """Return the keyword arguments for sinks and for the slopes of ALiBi."""
        return {}

    def values(self, q: Tensor, v: Tensor) -> Tensor:
        """Pad V with zeros to the width of Q and K, because the kernel has one width only. `__call__` cuts the result's
        extra channels off again."""
        return v if v.shape[3] == q.shape[3] else F.pad(v, (0, q.shape[3] - v.shape[3]))

    def varlen(self, q: Tensor, k: Tensor, v: Tensor, batch: VarlenBatch, given: dict[str, Any]) -> Tensor:
        """Attend in a varlen batch (cu_seqlens): q [B, T, H, C] → [B, T, H, Cv], 0 for padding."""
        flat = batch.queries.take(q), batch.keys.take(k), batch.keys.take(v)
        return batch.queries.put(self.run(VARLEN, *flat, batch.arguments, given), q.shape[:2])

    def cached(self, q: Tensor, k: Tensor, v: Tensor, how: Scores, given: dict[str, Any]) -> Tensor:
        """Attend to a cache, dense or paged, in which the new keys are stored already: q [B, T, H, C] → [B, T, H,
        Cv]."""
        held = {} if how.mask.lengths is None else {self.lengths: how.mask.lengths.int()}
        held |= {} if how.pages is None else {self.table: how.pages}
        return self.run(CACHED, q, k, v, held, given)

    def varlen_cached(self, q: Tensor, k: Tensor, v: Tensor, how: Scores, given: dict[str, Any]) -> Tensor:
        """Attend to a paged cache with concatenated rows of any number of queries: q [N, H, C] → [N, H, Cv]."""
        mask = how.mask
        rows = {"cu_seqlens_q": mask.cu_seqlens_q, "max_seqlen_q": mask.n_queries}
        rows |= {self.lengths: mask.lengths.int(), self.table: how.pages}  # type: ignore[union-attr]
        return self.run(VARLEN_CACHED, q, k, v, rows, given)

    def run(
        self, which: str, q: Tensor, k: Tensor, v: Tensor, lengths: dict[str, Any], given: dict[str, Any]
    ) -> Tensor:
        """Call one of the functions, and return its output. Some functions also return the logsumexp, which is
        dropped."""
        result = getattr(self.load(), self.functions[which])(q, k, v, **lengths, **given)
        self.prove(self.functions[which])
        return result[0] if isinstance(result, tuple) else result


def way(ask: AttentionQuery) -> str:
    """Return which of the four kinds of call computes a query."""
    if ask.varlen:
        return VARLEN_CACHED
    if ask.documents or ask.padding:
        return VARLEN
    return CACHED if (ask.short_q or ask.lengths) and not ask.needs_grad else DENSE


def _refuse_ask(ask: AttentionQuery) -> str | None:
    """Return a sentence on the first feature of `ask` that no flash kernel has; None if there is none."""
    if ask.dtype not in DTYPES:
        return f"flash kernels take float16 and bfloat16, not {ask.dtype}"
    if ask.bias in ("fixed", "learned"):
        return f"flash kernels have no {ask.bias} bias"
    if ask.dropout:
        return "flash kernels drop no probabilities here"
    if ask.pairs:
        return "flash kernels cannot show single pairs: a prefix, global tokens, an encoder's beside a window"
    if ask.chosen:
        return "flash kernels cannot show each query keys of its own choice"
    return _refuse_width(ask) or _refuse_lengths(ask)


def _refuse_width(ask: AttentionQuery) -> str | None:
    for name, width in (("head_dim", ask.head_dim), ("v_head_dim", ask.v_head_dim)):
        if width % 8:
            return f"flash kernels take heads in multiples of 8, found {name}={width}"
    return None


def _refuse_lengths(ask: AttentionQuery) -> str | None:
    """Return why neither a varlen batch nor the cache's function can serve the padding, documents or cache of `ask`;
    None if one can."""
    if ask.padding and (ask.window is not None or ask.bias != "none"):
        return "once padding is taken out token indices change, and a window or ALiBi counts them"
    if ask.padding and ask.causal and ask.short_q:
        return "rows padded in a cache are no varlen batch"
    if ask.documents and (ask.short_q or ask.padding or ask.varlen):
        return "packed documents come whole, without a cache or padding"
    if (ask.lengths or ask.page) and ask.needs_grad:
        return "a cache is read without gradients"
    if ask.varlen and not ask.page:
        return "rows of other numbers of queries are read by page table"
    return None


def refuse_width(ask: AttentionQuery) -> str | None:
    """Return why the heads do not fit a kernel that has one width for keys and values; None if they do."""
    if ask.v_head_dim > ask.head_dim:
        return f"values are wider than keys, {ask.v_head_dim} and {ask.head_dim}"
    return f"heads are at most {WIDEST} wide, found {ask.head_dim}" if ask.head_dim > WIDEST else None


def refuse_cached_width(ask: AttentionQuery) -> str | None:
    """Return why cached values of another width than keys are refused, or None. Padding them would copy the cache at
    every step."""
    if way(ask) not in (CACHED, VARLEN_CACHED) or ask.v_head_dim == ask.head_dim:
        return None
    return f"values in a cache are as wide as keys, found {ask.v_head_dim} and {ask.head_dim}"


def since_ampere(capability: tuple[int, int]) -> bool:
    """Whether a compute capability is that of Ampere or of a later generation."""
    return capability >= (8, 0)
