# B batch, T queries, S keys, H heads, K kv heads, C head width, P pages of a row, R buckets
"""Define the attention cases on which kernels are tested: each feature as data, with random tensors drawn from a seed.

The check on a GPU, the tests and the page of errors use the same cases. The attention scores have a large spread, so
that every feature changes the result and a test detects a kernel that ignores one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.kernels import attend
from zoo.kernels.base import AttentionQuery
from zoo.kernels.mask import Mask
from zoo.kernels.packed import join_rows, split_rows
from zoo.lazy import F, Tensor, torch
from zoo.model.position.bias import ALiBi, T5Buckets

if TYPE_CHECKING:
    from torch import Generator

    from zoo.kernels.score_bias import Bias

SPREAD = 2.0
"""Standard deviation of the attention scores."""

BUCKETS = 32


class CaseSize(NamedTuple):
    """The default dimensions of the cases: sequences, tokens, heads, channels per head, and keys in a window."""

    batch: int
    length: int
    heads: int
    head_dim: int
    window: int


SMALL = CaseSize(2, 48, 4, 16, 11)
LARGE = CaseSize(2, 1024, 8, 128, 200)


@dataclass(frozen=True, kw_only=True)
class AttentionCase:
    """One call of attention. The fields are those of `AttentionQuery` and `attend`. `hides` names the functions in
    DRAWN that draw random fields of the mask."""

    name: str
    batch: int
    queries: int
    keys: int
    heads: int
    kv_heads: int
    head_dim: int
    v_head_dim: int
    causal: bool = True
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    bias: str = "none"  # or alibi, t5
    hides: tuple[str, ...] = ()
    page: int | None = None
    trains: bool = True  # whether the case occurs in training, with gradients


# ---------------------------------------------------------------- the grid


def list_cases(*, large: bool = False) -> list[AttentionCase]:
    """List all cases, the most common first. `large` cases span several blocks of a GPU kernel."""
    size = LARGE if large else SMALL
    return [*_plain(size), *_scored(size), *_unequal(size), *_cached(size), *_wide(size)]


def find_case(name: str, *, large: bool = False) -> AttentionCase:
    return next(each for each in list_cases(large=large) if each.name == name)


def _case(size: CaseSize, name: str, **changes: Any) -> AttentionCase:
    batch, length, heads, width, _ = size
    usual = {"queries": length, "keys": length, "heads": heads, "kv_heads": heads // 2, "head_dim": width}
    fields = {"batch": batch, **usual, **changes}
    return AttentionCase(name=name, **{"v_head_dim": fields["head_dim"], **fields})


def _plain(size: CaseSize) -> list[AttentionCase]:
    """List the cases with different shapes, causal masks and windows."""
    n, window = size.length, size.window
    return [
        _case(size, "causal"),
        _case(size, "all keys", causal=False),
        _case(size, "window", window=window),
        _case(size, "a head's own keys", kv_heads=size.heads),
        _case(size, "one set of keys", kv_heads=1),
        _case(size, "odd lengths", queries=n - 11, keys=n - 11),
        _case(size, "fewer queries", queries=n // 3),
        _case(size, "fewer queries, all keys", queries=n // 3, causal=False),
        _case(size, "window, both sides", window=window, causal=False),
        _case(size, "window, fewer queries", window=window, queries=n // 3),
        _case(size, "window wider than the row", window=n + 5),
        _case(size, "long rows", batch=1, queries=4 * n, keys=4 * n, heads=2, kv_heads=1),
    ]


def _scored(size: CaseSize) -> list[AttentionCase]:
    """List the cases that change scores: softcap, sinks and biases."""
    n, window = size.length, size.window
    return [
        _case(size, "softcap", softcap=2.0),
        _case(size, "softcap and window", softcap=2.0, window=window),
        _case(size, "sinks", sinks=True),
        _case(size, "sinks and window", sinks=True, window=window),
        _case(size, "ALiBi", bias="alibi"),
        _case(size, "ALiBi, both sides", bias="alibi", causal=False),
        _case(size, "ALiBi, fewer queries", bias="alibi", queries=n // 3),
        _case(size, "learned bias", bias="t5", causal=False),
        _case(size, "learned bias, causal", bias="t5"),
    ]


def _unequal(size: CaseSize) -> list[AttentionCase]:
    """List the cases whose sequences have different masks: documents, padding, prefixes, global tokens."""
    n, window = size.length, size.window
    return [
        _case(size, "documents", hides=("documents",)),
        _case(size, "documents and window", hides=("documents",), window=window),
        _case(size, "padding on the left", hides=("left",)),
        _case(size, "padding on the right, all keys", hides=("right",), causal=False),
        _case(size, "padding and window", hides=("left",), window=window),
        _case(size, "another sequence's keys", queries=n // 3, hides=("memory",), causal=False),
        _case(size, "prefix", hides=("prefix",)),
        _case(size, "tokens that all see", hides=("global",), causal=False, window=window),
    ]


def _cached(size: CaseSize) -> list[AttentionCase]:
    """List the cases of decoding from a cache: few queries, windows, a cache length per sequence, pages."""
    n, window, few = size.length, size.window, 5
    cached = {"trains": False, "queries": 1}
    return [
        _case(size, "one query", **cached),
        _case(size, "one query, padded cache", hides=("left",), **cached),
        _case(size, "one query, window and ALiBi", bias="alibi", window=window, **cached),
        _case(size, "a chunk over a window", window=window, keys=window - 1 + few, **cached | {"queries": few}),
        _case(size, "lengths by row", hides=("lengths",), **cached),
        _case(size, "lengths by row, a chunk", hides=("lengths",), **cached | {"queries": few}),
        _case(size, "lengths by row and window", hides=("lengths",), window=window, **cached),
        _case(size, "pages of 256", hides=("lengths",), page=256, **cached | {"keys": 256 * -(-2 * n // 256)}),
        _case(size, "pages of 16", hides=("lengths",), page=16, **cached),
        *(
            _case(size, f"pages of 256, {name}", hides=hides, page=256, **cached | {"queries": few, "keys": 512})
            for name, hides in (("a chunk", ("lengths",)), ("varlen", ("lengths", "varlen")))
        ),
    ]


def _wide(size: CaseSize) -> list[AttentionCase]:
    """List the cases of head widths, which do not depend on `size`. The last three are DeepSeek's MLA, expanded and
    absorbed."""
    n = size.length
    absorbed = {"queries": 1, "kv_heads": 1, "head_dim": 576, "v_head_dim": 512, "trains": False}
    return [
        _case(size, "heads of 64", head_dim=64),
        _case(size, "heads of 80", head_dim=80),
        _case(size, "heads of 256", head_dim=256),
        _case(size, "heads of 192, values of 128", head_dim=192, v_head_dim=128, kv_heads=size.heads),
        _case(size, "heads of 192, a chunk", head_dim=192, v_head_dim=128, kv_heads=size.heads, queries=n // 3),
        _case(size, "latents of 576", **absorbed),
    ]


# ---------------------------------------------------------------- fields that differ between rows


def _left(case: AttentionCase, generator: Generator) -> dict[str, Any]:
    """Draw left padding for every sequence but the first."""
    pads = torch.randint(1, case.keys // 2, (case.batch, 1), generator=generator)
    pads[0] = 0
    return {"padding": torch.arange(case.keys) >= pads}


def _right(case: AttentionCase, generator: Generator) -> dict[str, Any]:
    return {"padding": _left(case, generator)["padding"].flip(1)}


def _memory(case: AttentionCase, generator: Generator) -> dict[str, Any]:
    """Draw right padding of an encoder's output. The last sequence is all padding."""
    padding = _right(case, generator)["padding"]
    padding[-1] = False
    return {"padding": padding}


def _documents(case: AttentionCase, generator: Generator) -> dict[str, Any]:
    starts = torch.rand(case.batch, case.keys, generator=generator) < 4 / case.keys
    numbers = starts.cumsum(1)
    return {"documents": (numbers[:, case.keys - case.queries :], numbers)}


def _prefix(case: AttentionCase, generator: Generator) -> dict[str, Any]:
    return {"prefix": torch.randint(case.keys // 4, case.keys, (case.batch,), generator=generator)}


def _global(case: AttentionCase, generator: Generator) -> dict[str, Any]:
    """Draw global tokens, which see every key and are seen by every query (Longformer)."""
    chosen = torch.rand(case.batch, case.keys, generator=generator) < 0.1
    return {"also": chosen[:, :, None] | chosen[:, None, :]}


def _lengths(case: AttentionCase, generator: Generator) -> dict[str, Any]:
    lengths = torch.randint(case.queries, case.keys + 1, (case.batch,), generator=generator)
    lengths[0] = case.keys - 1
    return {"lengths": lengths}


def _varlen(case: AttentionCase, generator: Generator) -> dict[str, Any]:
    """Draw the number of queries of each sequence as cu_seqlens. The last sequence has most."""
    counts = torch.randint(1, case.queries, (case.batch,), generator=generator)
    counts[-1] = case.queries
    return {"cu_seqlens_q": F.pad(counts.cumsum(0), (1, 0)).int()}


DRAWN: dict[str, Callable[[AttentionCase, Generator], dict[str, Any]]] = {
    "left": _left,
    "right": _right,
    "memory": _memory,
    "documents": _documents,
    "prefix": _prefix,
    "global": _global,
    "lengths": _lengths,
    "varlen": _varlen,
}
"""Functions that draw fields of a Mask, by their names in `AttentionCase.hides`."""


# ---------------------------------------------------------------- tensors


@dataclass(frozen=True)
class CaseInputs:
    """The tensors of one attention call.

    `tensors` may require gradients: q [B, T, H, C], k and v [B, S, K, …], sinks [H], and the table [R, H] of a learned
    bias. With `pages` [B, P], k and v are pools of pages [N, page, K, …]. `output_gradient` is the gradient of the
    output [B, T, H, Cv]. `real` [B, T, 1, 1] is False for padding, whose output is not specified.
    """

    case: AttentionCase
    tensors: dict[str, Tensor]
    output_gradient: Tensor
    hidden: dict[str, Any]
    pages: Tensor | None
    real: Tensor | None

    def to(self, dtype: torch.dtype) -> CaseInputs:
        """Convert the tensors to another dtype."""
        tensors = {name: each.to(dtype) for name, each in self.tensors.items()}
        return replace(self, tensors=tensors, output_gradient=self.output_gradient.to(dtype))

    def mask(self) -> Mask:
        """Make a new Mask, without a cached dense form."""
        return _mask(self.case, self.hidden)

    def forward(self, kernel: str) -> Tensor:
        """Compute attention [B, T, H, Cv] without gradients. Padding is 0."""
        with torch.no_grad():
            return self._attended(self.tensors, kernel)

    def backward(self, kernel: str) -> dict[str, Tensor]:
        """Return the attention output as "y", and the gradient of each tensor under the tensor's name."""
        leaves = {name: each.detach().requires_grad_() for name, each in self.tensors.items()}
        with torch.enable_grad():
            y = self._attended(leaves, kernel)
            gradients = torch.autograd.grad(y, list(leaves.values()), self.output_gradient)
        return {"y": y.detach(), **dict(zip(leaves, gradients, strict=True))}

    def _attended(self, tensors: dict[str, Tensor], kernel: str) -> Tensor:
        q, mask, ends = tensors["q"], self.mask(), self.hidden.get("cu_seqlens_q")
        y = attend(
            q if ends is None else join_rows(q, ends, int(ends[-1])),
            tensors["k"],
            tensors["v"],
            mask,
            scale=self.case.head_dim**-0.5,
            softcap=self.case.softcap,
            sinks=tensors.get("sinks"),
            bias=self._bias(tensors),
            pages=self.pages,
            kernel=kernel,
        )
        y = y if ends is None else split_rows(y, ends, mask.n_queries)
        return y if self.real is None else y.where(self.real, 0)

    def _bias(self, tensors: dict[str, Tensor]) -> Bias | None:
        case, device = self.case, self.output_gradient.device
        columns = torch.arange(case.keys, device=device)
        queries = columns[case.keys - case.queries :]
        if case.bias == "alibi":
            return ALiBi().bias(None, case.heads, queries, columns, case.causal)  # type: ignore[arg-type]
        if case.bias == "t5":
            table: Any = BiasTable(Lookup(tensors["table"]))
            buckets = T5Buckets(n_heads=case.heads, n_buckets=BUCKETS)
            return buckets.bias(table, case.heads, queries, columns, case.causal)
        return None


class Lookup(NamedTuple):
    """Stand in for nn.Embedding with a tensor that need not be a parameter."""

    weight: Tensor

    def __call__(self, index: Tensor) -> Tensor:
        return torch.nn.functional.embedding(index, self.weight)


class BiasTable(NamedTuple):
    """Stand in for the module that holds the table of a learned bias."""

    table: Lookup


def make_inputs(case: AttentionCase, device: torch.device | str, dtype: torch.dtype, seed: int = 0) -> CaseInputs:
    """Draw a case's tensors, rounded to the dtype. They depend on the seed but not on the device."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, times: float = 1.0, plus: float = 0.0) -> Tensor:
        return (torch.randn(shape, generator=generator) * times + plus).to(device, dtype)

    pages = None if case.page is None else torch.randperm(case.batch * case.keys // case.page, generator=generator)
    rows = (case.batch, case.keys) if pages is None or case.page is None else (len(pages), case.page)
    tensors = {
        "q": draw(case.batch, case.queries, case.heads, case.head_dim, times=SPREAD),
        "k": draw(*rows, case.kv_heads, case.head_dim),
        "v": draw(*rows, case.kv_heads, case.v_head_dim),
    }
    if case.sinks:  # about as large as the log-sum-exp of all scores
        tensors["sinks"] = draw(case.heads, plus=math.log(case.window or case.keys) + SPREAD**2 / 2)
    if case.bias == "t5":
        tensors["table"] = draw(BUCKETS, case.heads)
    output_gradient = draw(case.batch, case.queries, case.heads, case.v_head_dim)
    hidden = _hidden(case, generator, device)
    real = _real(case, hidden)
    return CaseInputs(
        case,
        tensors,
        output_gradient if real is None else output_gradient.where(real, 0),
        hidden,
        None if pages is None else pages.view(case.batch, -1).int().to(device),
        real,
    )


def make_ask(case: AttentionCase, dtype: torch.dtype, *, grad: bool) -> AttentionQuery:
    """Make the AttentionQuery that describes a case's inputs. `grad` says whether gradients are required."""
    hidden = _hidden(case, torch.Generator(), "cpu")
    kinds = {"none": "none", "alibi": "alibi", "t5": "learned" if grad else "fixed"}
    return AttentionQuery(
        dtype=str(dtype).removeprefix("torch."),
        head_dim=case.head_dim,
        v_head_dim=case.v_head_dim,
        n_heads=case.heads,
        n_kv_heads=case.kv_heads,
        needs_grad=grad,
        softcap=case.softcap,
        sinks=case.sinks,
        bias=kinds[case.bias],
        page=case.page,
        **_mask(case, hidden).features,
    )


def _mask(case: AttentionCase, hidden: dict[str, Any]) -> Mask:
    return Mask(case.queries, case.keys, causal=case.causal, window=case.window, **hidden)


def _hidden(case: AttentionCase, generator: Generator, device: torch.device | str) -> dict[str, Any]:
    """Draw the mask fields for the names in a case's `hides`."""
    return {key: _on(each, device) for name in case.hides for key, each in DRAWN[name](case, generator).items()}


def _on(drawn: Any, device: torch.device | str) -> Any:
    return tuple(each.to(device) for each in drawn) if isinstance(drawn, tuple) else drawn.to(device)


def _real(case: AttentionCase, hidden: dict[str, Any]) -> Tensor | None:
    """Mark real queries as True [B, T, 1, 1]. None if no query is padded, as in cross-attention to padded keys."""
    if "varlen" in case.hides:
        ends = hidden["cu_seqlens_q"]
        columns = torch.arange(-case.queries, 0, device=ends.device)
        return (columns >= -ends.diff()[:, None])[..., None, None]
    if "padding" not in hidden or "memory" in case.hides:
        return None
    return hidden["padding"][:, case.keys - case.queries :, None, None]
