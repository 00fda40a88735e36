# B rows, T tokens of a rank, L tokens of a run, S keys, H heads, K kv heads, C head width, N ranks
"""Ring attention: keys and values travel from rank to rank, and each rank attends to the keys that it holds.

Liu et al., 2023, "Ring Attention with Blockwise Transformers". Outputs of parts are merged by their log-sum-exps in
float32, so that the result is that of one softmax. The backward pass sends keys and values round again, followed by
their gradients, which end at the keys' own rank. So no rank ever holds all keys. A run of keys that is hidden from a
run of queries is skipped.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.kernels.mask import Mask
from zoo.kernels.partial import PartGradients, PartScores, choose_part
from zoo.kernels.score_bias import describe_bias
from zoo.lazy import Tensor, torch

if TYPE_CHECKING:
    from zoo.distributed.context_parallel import SpreadContext
    from zoo.kernels.score_bias import Bias

PART_KERNELS = ("auto", "eager")
"""Values of `kernel` that a ring accepts: its parts have their own kernels (`zoo.kernels.partial`)."""


class RingBlock(NamedTuple):
    """A run of this rank's queries over a run of keys. A run is consecutive tokens; each rank has two runs. `run` is
    the number of the queries' run, 0 or 1. `queries` and `keys` are slices of their ranks' tokens. `first` is the token
    index of the first key. `mask` and `seen` are those of PartScores."""

    run: int
    queries: slice
    keys: slice
    first: int
    mask: Mask | None = None
    seen: Tensor | None = None


class Expansion(NamedTuple):
    """A function `make` that computes keys and values from the tensors sent round (MLA's latents), and the weights of
    this function."""

    make: Callable[..., tuple[Tensor, Tensor]]
    weights: tuple[Tensor, ...]


@dataclass
class Ring:
    """Plan of ring attention for one pass, shared by the layers of a kind. In turn n this rank holds the keys of the
    rank n places before it, and computes the blocks `turns[n]`. `biases` has one bias per run of queries. If biases are
    learned, `learned` has one bias tensor [1, H, L, L] per block."""

    context: SpreadContext
    device: torch.device
    turns: list[list[RingBlock]]
    biases: list[Bias | None] = field(default_factory=list)
    learned: list[Tensor] = field(default_factory=list)

    @classmethod
    def plan(cls, context: SpreadContext, tokens: int, masks: Sequence[Mask], device: torch.device) -> Ring:
        """Plan the ring for rows of `tokens` tokens. `masks` has a mask for each run of queries, over all keys up to
        the run's end."""
        # A run's own tokens come first: there each query sees a key, so that no sum of exponentials is 0 afterwards.
        pairs, turns = ((0, 0), (1, 1), (0, 1), (1, 0)), []
        for turn in range(context.size):
            spans = context.spans(tokens, (context.rank - turn) % context.size)
            blocks = [_find_block(run, masks[run], place, spans[place], device) for run, place in pairs]
            turns.append([each for each in blocks if each is not None])
        return cls(context, device, turns)

    def with_biases(self, biases: Sequence[Any], n_heads: int) -> Ring:
        """Return the same plan with a bias for each run of queries."""
        ring = replace(self, biases=[describe_bias(each) for each in biases], learned=[])
        if any(each is not None and each.learned for each in ring.biases):
            ring.learned = [ring.draw_bias(block, n_heads) for turn in ring.turns for block in turn]
        return ring

    def draw_bias(self, block: RingBlock, n_heads: int) -> Any:
        """Compute the bias of a block [1, H, L, L]; None without a bias."""
        bias = self.biases[block.run] if self.biases else None
        if bias is None:
            return None
        queries = torch.arange(block.queries.stop - block.queries.start, device=self.device)[:, None]
        heads = torch.arange(n_heads, device=self.device)[:, None, None]
        drawn = bias.at(torch.zeros_like(heads), heads, queries, queries.T + block.first)
        return drawn.expand(n_heads, len(queries), len(queries))[None]

    def send_round(self, held: Sequence[Tensor]) -> Iterator[Sequence[Tensor]]:
        """Yield the tensors of one rank in each turn, this rank's own first. Meanwhile the tensors of the next turn are
        received."""
        for turn in range(self.context.size):
            coming = self.context.group.pass_on(held) if turn + 1 < self.context.size else None
            yield held
            held = held if coming is None else coming.wait()


@dataclass
class RingCall:
    """One layer's attention over a ring. The first `travelling` of its tensors are sent round."""

    ring: Ring
    how: PartScores
    kernel: str
    travelling: int
    expansion: Expansion | None
    autocast: tuple[torch.dtype, bool]

    def split(self, tensors: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
        """Split the tensors into those that are sent round, the weights of the expansion, and learned biases."""
        weights = self.travelling + (0 if self.expansion is None else len(self.expansion.weights))
        return tensors[: self.travelling], tensors[self.travelling : weights], tensors[weights:]

    def expand(self, held: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return keys [B, T, K, C] and values [B, T, K, Cv] of the tensors held in this turn."""
        k, v = held if self.expansion is None else self.expansion.make(*held)
        return k.to(dtype), v.to(dtype)

    def score(self, block: RingBlock, n_heads: int, learned: Iterator[Tensor]) -> PartScores:
        """Return the PartScores of a block; `learned` yields the learned biases of blocks in order."""
        if self.ring.learned:
            return self.how._replace(mask=block.mask, seen=block.seen, bias=next(learned), learned=True)
        return self.how._replace(mask=block.mask, seen=block.seen, bias=self.ring.draw_bias(block, n_heads))

    def attend(self, q: Tensor, sinks: Tensor | None, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Attend in all turns, while keys and values are sent round once: compute the output [B, T, H, Cv] and the
        log-sum-exp of the scores [B, H, T], sinks included."""
        held, _, biases = self.split(tensors)
        learned, y = iter(biases), None
        wide, shape = torch.promote_types(q.dtype, torch.float32), (q.shape[0], q.shape[2], q.shape[1])  # B H T
        begin = q.new_full((1,), -torch.inf) if sinks is None else sinks
        lse = begin.to(wide)[:, None].expand(shape).clone()
        for blocks, theirs in zip(self.ring.turns, self.ring.send_round(held), strict=True):
            if not blocks:
                continue
            k, v = self.expand(theirs, q.dtype)
            y = q.new_zeros((*q.shape[:3], v.shape[3]), dtype=wide) if y is None else y
            for block in blocks:
                how, own, keys = self.score(block, q.shape[2], learned), block.queries, block.keys
                part, total = choose_part(q, v, how, self.kernel).forward(q[:, own], k[:, keys], v[:, keys], how)
                merged = torch.logaddexp(lse[..., own], total)
                before, added = (_by_query((each - merged).exp()) for each in (lse[..., own], total))
                y[:, own] = y[:, own] * before + part * added
                lse[..., own] = merged
        assert y is not None, "a rank's own tokens come first, and see themselves"
        return y.to(q.dtype), lse


class RingGradients:
    """The backward pass of a call: it sums gradients in float32 while keys and values travel round the ring again."""

    def __init__(
        self, call: RingCall, dy: Tensor, q: Tensor, y: Tensor, lse: Tensor, weights: Sequence[Tensor], learned: Any
    ) -> None:
        self.call, self.dy, self.q, self.y, self.lse = call, dy, q, y, lse
        self.weights, self.learned = weights, iter(learned)
        self.of_q = torch.zeros_like(q, dtype=lse.dtype)
        self.of_weights: list[Any] = [torch.zeros_like(each, dtype=lse.dtype) for each in weights]
        self.of_biases: list[Tensor] = []

    def go_round(self, held: Sequence[Tensor]) -> list[Tensor]:
        """Send the tensors round, and return the gradients of this rank's own tensors. Gradients follow their tensors
        one turn later, and arrive at their rank in the last turn. A rank's contribution to its own tensors is not
        sent."""
        ring, coming, own = self.call.ring, None, []
        for turn, theirs in enumerate(ring.send_round(held)):
            found = self._go_back(ring.turns[turn], theirs)
            if turn == 0:
                own = found
                continue
            found = found if coming is None else [a + b for a, b in zip(found, coming.wait(), strict=True)]
            coming = ring.context.group.pass_on(found)
        return own if coming is None else [a + b for a, b in zip(own, coming.wait(), strict=True)]

    def _go_back(self, blocks: Sequence[RingBlock], theirs: Sequence[Tensor]) -> list[Tensor]:
        """Return this rank's contribution to the gradients of the tensors held in a turn. Add the gradients of q,
        weights and biases to their sums."""
        wide, (dtype, enabled) = self.lse.dtype, self.call.autocast
        if not blocks:
            return [torch.zeros_like(each, dtype=wide) for each in theirs]
        with torch.enable_grad(), torch.autocast(self.q.device.type, dtype, enabled, cache_enabled=False):
            leaves = [each.detach().requires_grad_() for each in theirs]
            made = self.call.expand(leaves, self.q.dtype)
        k, v = (each.detach() for each in made)
        of_k, of_v = (torch.zeros_like(each, dtype=wide) for each in (k, v))
        for block in blocks:
            part = self._go_back_through(block, k, v)
            of_k[:, block.keys] += part.k
            of_v[:, block.keys] += part.v
        if self.call.expansion is None:
            return [of_k, of_v]
        wanted = [place for place, each in enumerate(self.weights) if each.requires_grad]
        given = (of_k.to(k.dtype), of_v.to(v.dtype))
        found = torch.autograd.grad(made, (*leaves, *(self.weights[place] for place in wanted)), given)
        for place, gradient in zip(wanted, found[len(leaves) :], strict=True):
            self.of_weights[place] += gradient
        return [each.to(wide) for each in found[: len(leaves)]]

    def _go_back_through(self, block: RingBlock, k: Tensor, v: Tensor) -> PartGradients:
        how, own, keys = self.call.score(block, self.q.shape[2], self.learned), block.queries, block.keys
        kernel, whole = choose_part(self.q, v, how, self.call.kernel), (self.y[:, own], self.lse[..., own])
        part = kernel.backward(self.dy[:, own], self.q[:, own], k[:, keys], v[:, keys], *whole, how)
        self.of_q[:, own] += part.q
        if part.bias is not None:
            self.of_biases.append(part.bias.sum(0, keepdim=True))
        return part


def attend_ring(
    q: Tensor,
    held: tuple[Tensor, ...],
    ring: Ring,
    *,
    scale: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    kernel: str = "auto",
    expansion: Expansion | None = None,
) -> Tensor:
    """Attend over the keys of all ranks: this rank's q [B, T, H, C] and `held` k [B, T, K, C], v [B, T, K, Cv] → [B, T,
    H, Cv]. With an expansion, `held` are its inputs. The other arguments are as in `attend`; masks and biases come from
    the ring. All ranks of the ring must run this, and its backward pass, together."""
    kind = q.device.type
    autocast = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
    call = RingCall(ring, PartScores(scale, softcap), kernel, len(held), expansion, autocast)
    weights = () if expansion is None else expansion.weights
    return _ring_function().apply(call, q, sinks, *held, *weights, *ring.learned)


def _find_block(run: int, mask: Mask, place: int, span: tuple[int, int], device: torch.device) -> RingBlock | None:
    """Make the block of a run of queries and a run of keys; None if the queries see none of the keys."""
    start, (first, stop), length = mask.n_keys - mask.n_queries, span, mask.n_queries
    if first > start or (mask.window is not None and start - stop + 1 >= mask.window):
        return None
    queries, keys = (slice(each * length, (each + 1) * length) for each in (run, place))
    block = RingBlock(run, queries, keys, first)
    if _is_one_document(mask, first, stop):
        if first == start:
            return block._replace(mask=Mask(length, length, window=mask.window))
        if mask.window is None or mask.n_keys - first <= mask.window:
            return block
    rows = 1 if mask.documents is None else max(each.shape[0] for each in mask.documents)
    row = torch.arange(rows, device=device)[:, None, None]
    queries, keys = torch.arange(length, device=device)[:, None], torch.arange(first, stop, device=device)
    seen = mask.sees(row, queries, keys).expand(rows, -1, -1)[:, None]  # B|1 1 L L
    if not seen.any():
        return None
    return block if seen.all() else block._replace(seen=seen)


def _is_one_document(mask: Mask, first: int, stop: int) -> bool:
    """Whether all queries and keys `first` to `stop` belong to one document in each row."""
    if mask.documents is None:
        return True
    queries, keys = mask.documents[0], mask.documents[1][:, first:stop]
    return bool((queries == keys[:, :1]).all() and (keys == keys[:, :1]).all())


def _by_query(each: Tensor) -> Tensor:
    """Transpose [B, H, T] to [B, T, H, 1]."""
    return each.transpose(1, 2)[..., None]


def _go_back_to_sinks(sinks: Tensor, dy: Tensor, y: Tensor, lse: Tensor) -> Tensor:
    """Compute the gradient of sinks [H], which take a share of each query's probability and have no value."""
    spent = (dy.to(lse.dtype) * y).sum(-1).transpose(1, 2)  # B H T
    return -((sinks.to(lse.dtype)[:, None] - lse).exp() * spent).sum((0, 2)).to(sinks.dtype)


@functools.cache
def _ring_function() -> Any:
    class RingFunction(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, call: RingCall, q: Tensor, sinks: Tensor | None, *tensors: Tensor) -> Tensor:
            y, lse = call.attend(q, sinks, tensors)
            ctx.call = call
            ctx.save_for_backward(q, sinks, y, lse, *tensors)
            return y

        @staticmethod
        def backward(ctx: Any, dy: Tensor):  # type: ignore[override]
            call, (q, sinks, y, lse, *tensors) = ctx.call, ctx.saved_tensors
            held, weights, learned = call.split(tensors)
            with torch.autocast(q.device.type, enabled=False):
                back = RingGradients(call, dy, q, y, lse, weights, learned)
                found = [*back.go_round(held), *back.of_weights, *back.of_biases]
                of_sinks = None if sinks is None else _go_back_to_sinks(sinks, dy, y, lse)
            cast = (gradient.to(each.dtype) for gradient, each in zip(found, tensors, strict=True))
            return None, back.of_q.to(q.dtype), of_sinks, *cast

    return RingFunction
