# B batch, T queries, S keys, H heads, K kv heads, C head width, N tokens that are no padding, in all rows together
"""What the flash-attn kernels have in common: which asks become which of their functions, and the tensors for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from zoo.errors import KernelError
from zoo.kernels.base import Ask, Call, Kernel, Machine
from zoo.kernels.found import PACKAGES
from zoo.lazy import F, torch

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.kernels.bias import Bias
    from zoo.kernels.mask import Mask

WIDEST = 256  # head width, of all versions but for special shapes
DTYPES = ("float16", "bfloat16")

DENSE, VARLEN, CACHED = "dense", "varlen", "cached"
"""The three ways to call them: whole rows; rows or documents of unequal length laid end to end; and queries that come
after keys in a cache, forward only."""


class Flash(Kernel):
    """Attention without scores in memory (Dao et al., 2022; Dao, 2023; Shah et al., 2024).

    Layout B T H C. Causal masks and windows are aligned at the bottom right and a query that sees nothing gives 0, as
    `attend` has it. What a version lacks is refused, never left out.
    """

    package: str = ""  # of zoo.kernels.found.PACKAGES; "" where torch brings it
    functions: ClassVar[dict[str, str]]  # what each way to call is named
    table: str = "page_table"  # what the function for caches calls the pages of each row

    def __init__(self) -> None:
        self.loaded: Any = None  # the module, once imported

    # ------------------------------------------------------------ the reason against

    def refuses(self, ask: Ask, machine: Machine) -> str | None:
        return self.here(machine) or _misfit(ask) or self.lacks(ask, machine)

    def here(self, machine: Machine) -> str | None:
        """Why it cannot run on this machine at all."""
        if machine.device != "cuda":
            return f"it runs on CUDA devices, this is {machine.device}"
        if self.package and self.package not in machine.packages:
            return f"{self.package} is not installed ({PACKAGES[self.package]})"
        return self.unfit(machine.capability)

    def unfit(self, capability: tuple[int, int] | None) -> str | None:
        """Why a device of this compute capability will not do."""
        raise NotImplementedError

    def lacks(self, ask: Ask, machine: Machine) -> str | None:
        """What of the ask this version does not have."""
        raise NotImplementedError

    # ------------------------------------------------------------ the call

    def call(self, ask: Ask) -> Call:
        """The function and its arguments, tensors left out."""
        return Call(self.function(ask), self.options(ask.causal, ask.window, ask.softcap))

    def function(self, ask: Ask) -> str:
        """The name of the function for an ask."""
        return self.functions[way(ask)]

    def options(self, causal: bool, window: int | None, softcap: float | None) -> dict[str, Any]:
        """How this version spells them. One key more than a window's distance is seen: that of the query itself."""
        sides = (-1, -1) if window is None else (window - 1, 0) if causal else (window, window)
        return {"causal": causal, "window_size": sides, **({"softcap": softcap} if softcap else {})}

    def load(self) -> Any:
        """The module that has the functions, imported when it is first wanted. Raises KernelError where it cannot."""
        if self.loaded is None:
            try:
                self.loaded = self.module()
            except (ImportError, OSError, RuntimeError, ValueError) as error:
                found = f"{self.package} is installed and cannot be loaded, found {type(error).__name__}: {error}"
                raise KernelError(f"kernel: {self.name}: {found} (kernel=sdpa would do)") from error
        return self.loaded

    def module(self) -> Any:
        """Imports it."""
        raise NotImplementedError

    def prepare(self, mask: Mask, ask: Ask, device: torch.device, dtype: torch.dtype, bias: Bias | None) -> None:
        self.load()
        if way(ask) == VARLEN:
            stretches(mask, device)

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
        features = mask.features
        given = {"softmax_scale": scale, **self.options(features["causal"], features["window"], softcap)}
        given |= self.extras(sinks, bias)
        width = v.shape[3]
        q, k, v = (each if each.stride(-1) == 1 else each.contiguous() for each in (q, k, self.values(q, v)))
        if mask.documents is not None or mask.padding is not None:
            y = self.varlen(q, k, v, stretches(mask, q.device).of_rows(q.shape[0]), given)
        elif _grad(q, k, v) or not (features["fewer"] or mask.lengths is not None):
            y = self.dense(q, k, v, given)
        else:
            y = self.cached(q, k, v, mask.lengths, pages, given)
        return y[..., :width]

    def extras(self, sinks: Tensor | None, bias: Bias | None) -> dict[str, Any]:
        """The tensors that change scores."""
        return {}

    def values(self, q: Tensor, v: Tensor) -> Tensor:
        """V as wide as Q and K, where the kernel knows one width only: zeros behind it are columns of zeros in Y."""
        return v if v.shape[3] == q.shape[3] else F.pad(v, (0, q.shape[3] - v.shape[3]))

    def dense(self, q: Tensor, k: Tensor, v: Tensor, given: dict[str, Any]) -> Tensor:
        """q [B, T, H, C], k [B, S, K, C], v [B, S, K, Cv]: [B, T, H, Cv]."""
        return _only(getattr(self.load(), self.functions[DENSE])(q, k, v, **given))

    def varlen(self, q: Tensor, k: Tensor, v: Tensor, laid: Stretches, given: dict[str, Any]) -> Tensor:
        """Documents, or the tokens that are no padding, laid end to end; [B, T, H, Cv] again, padding 0."""
        function = getattr(self.load(), self.functions[VARLEN])
        y = _only(function(laid.queries.take(q), laid.keys.take(k), laid.keys.take(v), **laid.lengths, **given))
        return laid.queries.put(y, q.shape[:2])

    def cached(
        self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, pages: Tensor | None, given: dict[str, Any]
    ) -> Tensor:
        """Queries after keys in a cache that holds the new ones already, or in pages of one."""
        held = {} if lengths is None else {"cache_seqlens": lengths.int()}
        held |= {} if pages is None else {self.table: pages}
        return getattr(self.load(), self.functions[CACHED])(q, k, v, **held, **given)


def way(ask: Ask) -> str:
    """Which of the three ways to call serves an ask."""
    if ask.documents or ask.padding:
        return VARLEN
    return CACHED if (ask.fewer or ask.lengths) and not ask.needs_grad else DENSE


def _misfit(ask: Ask) -> str | None:
    """What no flash kernel takes."""
    if ask.dtype not in DTYPES:
        return f"flash kernels take float16 and bfloat16, not {ask.dtype}"
    if ask.bias in ("fixed", "learned"):
        return f"flash kernels have no {ask.bias} bias"
    if ask.pairs:
        return "flash kernels show no single pairs: a prefix, or tokens that all see"
    if ask.scattered:
        return "flash kernels take keys in order, not those of a ring that went round"
    return _narrow(ask) or _unequal(ask)


def _narrow(ask: Ask) -> str | None:
    for name, width in (("head_dim", ask.head_dim), ("v_head_dim", ask.v_head_dim)):
        if width % 8:
            return f"flash kernels take heads in multiples of 8, found {name}={width}"
    return None


def _unequal(ask: Ask) -> str | None:
    """Rows of unequal length in a way that cannot be laid end to end."""
    if ask.padding and (ask.window is not None or ask.bias != "none"):
        return "without its padding a row has other columns, and a window or ALiBi counts columns"
    if ask.padding and ask.causal and ask.fewer:
        return "rows padded beside a cache are no stretch of tokens"
    if ask.documents and (ask.fewer or ask.padding):
        return "packed documents come whole, without a cache or padding"
    if (ask.lengths or ask.page) and ask.needs_grad:
        return "a cache is read without gradients"
    return None


def too_wide(ask: Ask) -> str | None:
    """Why heads do not fit a kernel of one width."""
    if ask.v_head_dim > ask.head_dim:
        return f"values are wider than keys, {ask.v_head_dim} and {ask.head_dim}"
    return f"heads are at most {WIDEST} wide, found {ask.head_dim}" if ask.head_dim > WIDEST else None


def narrow_in_cache(ask: Ask) -> str | None:
    """Why values narrower than keys will not do: in a cache they would be copied, to be widened, at every step."""
    if way(ask) != CACHED or ask.v_head_dim == ask.head_dim:
        return None
    return f"values in a cache are as wide as keys, found {ask.v_head_dim} and {ask.head_dim}"


def _grad(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(each.requires_grad for each in tensors)


def _only(result: Any) -> Tensor:
    """What attention gives; some versions give the sums of the softmax beside it."""
    return result[0] if isinstance(result, tuple) else result


# ---------------------------------------------------------------- unequal lengths


class Side(NamedTuple):
    """Queries or keys laid end to end: which tokens [N] of the flattened rows, or None for all of them."""

    tokens: Tensor | None

    def take(self, x: Tensor) -> Tensor:
        """[B, T, H, C] → [N, H, C]."""
        flat = x.flatten(0, 1)
        return flat if self.tokens is None else flat[self.tokens]

    def put(self, y: Tensor, shape: tuple[int, ...]) -> Tensor:
        """[N, H, C] → [B, T, H, C], zeros where nothing was taken."""
        if self.tokens is None:
            return y.unflatten(0, shape)
        whole = y.new_zeros(shape[0] * shape[1], *y.shape[1:])
        return whole.index_copy(0, self.tokens, y).unflatten(0, shape)


class Stretches(NamedTuple):
    """Documents or unpadded rows end to end; `lengths` are the kernels' arguments for where each ends, by name."""

    queries: Side
    keys: Side
    lengths: dict[str, Any]
    rows: int

    def of_rows(self, rows: int) -> Stretches:
        """The same for a batch of so many, where one row was described for all of them."""
        if rows == self.rows:
            return self
        first = torch.arange(rows, device=self.lengths["cu_seqlens_q"].device, dtype=torch.int32)[:, None]
        ends = {name: self.lengths[name] for name in ("cu_seqlens_q", "cu_seqlens_k")}
        ends = {name: F.pad((each[1:] + first * each[-1]).flatten(), (1, 0)) for name, each in ends.items()}
        return self._replace(lengths={**self.lengths, **ends}, rows=rows)


def stretches(mask: Mask, device: torch.device) -> Stretches:
    """How a mask's documents, or what its padding leaves, lie end to end. Made once, as it waits for the device."""
    if "stretches" not in mask.kept:
        mask.kept["stretches"] = _documents(mask, device) if mask.documents is not None else _unpadded(mask, device)
    return mask.kept["stretches"]


def _documents(mask: Mask, device: torch.device) -> Stretches:
    numbers = mask.documents[0].to(device)  # type: ignore[index]
    starts = torch.ones_like(numbers, dtype=torch.bool)
    starts[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
    (first,) = starts.flatten().nonzero(as_tuple=True)
    ends = F.pad(first.int(), (0, 1), value=starts.numel())  # those of one row after those of the row before
    return _end_to_end(None, ends, None, ends, numbers.shape[0])


def _unpadded(mask: Mask, device: torch.device) -> Stretches:
    """Keys without their padding, and queries too where they are the same tokens."""
    padding = mask.padding.to(device)  # type: ignore[union-attr]
    (keys,) = padding.flatten().nonzero(as_tuple=True)
    ends = F.pad(padding.sum(1).cumsum(0), (1, 0)).int()
    if mask.n_queries == mask.n_keys:
        return _end_to_end(keys, ends, keys, ends, len(padding))
    rows = torch.arange(padding.shape[0] + 1, device=device, dtype=torch.int32) * mask.n_queries
    return _end_to_end(None, rows, keys, ends, len(padding))


def _end_to_end(
    queries: Tensor | None, query_ends: Tensor, keys: Tensor | None, key_ends: Tensor, rows: int
) -> Stretches:
    longest = [int(ends.diff().max()) for ends in (query_ends, key_ends)]
    lengths = {"cu_seqlens_q": query_ends, "cu_seqlens_k": key_ends}
    lengths |= {"max_seqlen_q": longest[0], "max_seqlen_k": longest[1]}
    return Stretches(Side(queries), Side(keys), lengths, rows)
