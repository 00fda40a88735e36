# B batch, T queries, S keys, D model width, V vocabulary
"""Arguments of a component's `forward` besides the hidden states: its weights by name, and the Step (masks, positions
and caches of one forward pass). Also the inputs and outputs of a tower."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from zoo.errors import ConfigError
from zoo.kernels.dispatch import attend
from zoo.lazy import Tensor, torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from zoo.cache.cache import Cache, LayerCache
    from zoo.distributed.experts import Visit
    from zoo.distributed.seam import Seam
    from zoo.kernels.drop import AttentionDropout
    from zoo.kernels.mask import Mask
    from zoo.kernels.score_bias import Bias
    from zoo.kernels.view import KeyView
    from zoo.model.drops import Drops
    from zoo.model.loss import TokenLoss
    from zoo.model.row_groups import RowGroups


CHOICE = "choice"
"""Name of the channel that hands the keys chosen by one layer to later layers (`zoo.model.attention.indexer`)."""


class Weights(Protocol):
    """The weights of a component: an attribute for each of its `parts`, by name. In a built model this is the
    component's Layer, which holds a tensor or a module for each part. To price activations, shadows (tensors without
    values) stand in."""

    seam: Seam
    training: bool

    def __getattr__(self, name: str) -> Held: ...


if TYPE_CHECKING:

    class Held(Tensor, Weights):
        """Type of a part for type checkers: a tensor, or a module that returns one. For other parts, `m` is Any."""

        def __call__(self, *given: Any, **options: Any) -> Tensor: ...


@dataclass(frozen=True)
class Inputs:
    """Inputs of a tower's forward.

    - `input_ids` [B, T].
    - `attention_mask` [B, T], 1 for a real token. Without a cache only; see `counts`.
    - `token_type_ids` [B, T], the segment of each token.
    - `global_attention_mask` [B, T], 1 for a token that sees and is seen by all (Longformer).
    - `documents` [B, T] numbers the documents packed into a row: positions restart, attention stays inside.
    - `prefix` [B], how many leading tokens of a row all see one another (prefix-LM); with a cache the first pass must
      contain them all.
    - `memory` [B, M, D], an encoder's output, which cross-attention reads where `memory_mask` [B, M] is 1, and where
      `memory_documents` [B, M] has the number of the token's own document. With a cache, only the first pass needs it.
    - `cache`, the KV cache of the rows that these tokens continue. In row b the first `counts[b]` tokens are real and
      the rest is padding; all T are real unless given.
    - `logits_to_keep`, the number of last positions that get logits (0: none); all unless given.
    - `targets` [B, T], the token that each position is to predict, -100 for none; a class [B, 1] or numbers [B, 1, C]
      for a head that reads whole rows. With targets a loss is computed in place of logits, weighted as `loss` says.
    - `stream` [B, T, D], the output of the earlier layers if another chunk of a pipeline holds them; `chunk` is the
      index of the chunk that runs, among the chunks of the stage.
    - `row_numbers` [B], the number of each row in a run, which decides the row's dropout.
    """

    input_ids: Tensor
    attention_mask: Tensor | None = None
    token_type_ids: Tensor | None = None
    global_attention_mask: Tensor | None = None
    documents: Tensor | None = None
    prefix: Tensor | None = None
    memory: Tensor | None = None
    memory_mask: Tensor | None = None
    memory_documents: Tensor | None = None
    cache: Cache | None = None
    counts: Sequence[int] | None = None
    logits_to_keep: int | None = None
    targets: Tensor | None = None
    loss: TokenLoss | None = None
    stream: Tensor | None = None
    chunk: int = 0
    row_numbers: Tensor | None = None


@dataclass
class Step:
    """The inputs of one layer in one forward pass, besides its hidden states. `for_layer` gives each layer a copy with
    a cache, drops and results of its own; layers of one kind share the rest.

    Values that depend on the pass, rather than on a layer's input and weights, come from the Step. The rest of a layer
    is the same sequence of torch calls in every pass, so it can be recorded and replayed (`zoo.run.recording_plan`).
    """

    keys: KeyView  # the keys that the layer's queries see
    kernel: str = "auto"
    positions: Tensor | None = None  # B|1 T, of the queries
    tables: Any = None  # by which the position scheme rotates queries and new keys: cosines and sines, say
    real: Tensor | None = None  # B T, True for a token that is not padding; None if all are real
    rows: RowGroups | None = None  # the rows of x [1, N, D], if they lie end to end and some layers are recurrent
    documents: Tensor | None = None  # B T, the number of each token's packed document
    ids: Tensor | None = None  # B T, of the tokens that a sub-layer reads
    drops: Drops | None = None  # what training drops
    training: bool = False  # whether the model is being trained
    first: bool = True  # whether nothing came before these tokens
    cache: LayerCache | None = None
    memory: Tensor | None = None  # B S D, what cross-attention reads in place of the tokens themselves
    cross: Step | None = None  # the step of this layer's cross-attention
    crosses: bool = False  # whether this is the step of a cross-attention
    seam: Seam | None = None  # where the parts of several ranks come together
    extra: dict[str, Any] = field(default_factory=dict)  # other values made once for all layers of a kind, by name
    choice: list[Tensor] | None = None  # the keys that each segment's queries see, if a layer chooses them
    again: bool = False  # whether the backward pass recomputes the inside of attention
    losses: list[tuple[str, Tensor]] = field(default_factory=list)  # a router's losses, to be added to the objective
    ends: list[Tensor] = field(default_factory=list)  # in training, where the rows of a router's experts end [E]
    taken: dict[str, Any] | None = None  # values of other layers, by channel; None for a layer that runs alone
    gives: tuple[str, ...] = ()  # the channels in which other layers read this layer's values
    given: dict[str, Any] = field(default_factory=dict)  # this layer's values in those channels, once it has run

    @property
    def mask(self) -> Mask:
        """The mask of all queries. If segments of keys have masks of their own, only the size of this mask counts."""
        return self.keys.mask

    def for_layer(self, cache: LayerCache | None, drops: Drops | None = None) -> Step:
        """Make the Step of one layer, with its cache, its drops, and empty lists, so that equal layers compile once."""
        mine = copy(self)
        mine.cache, mine.drops, mine.losses, mine.ends = cache, drops, [], []
        if self.cross is not None:
            mine.cross = copy(self.cross)
            mine.cross.cache, mine.cross.drops = cache, drops
        return mine

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor | None,
        scale: float,
        own: tuple[Any, Any] | None = None,
        read: Tensor | None = None,
        **scores: Any,
    ) -> Tensor:
        """Attend to the keys of this pass: q [B, T, H, C] → [B, T, H, Cv]. The bias on the scores is the one that
        layers of this kind share, unless `own` gives this layer's position scheme and its weights. `read` is then the
        result of the scheme's method `read`, if it reads the layer's input. `scores` are softcap, sinks and, in ring
        attention, an `expansion` that makes keys and values from k."""
        keys = self.keys if self.choice is None else self.keys.narrow(self.choice)
        if own is not None:
            keys = keys.with_bias(self._bias_maker(own, q.shape[2]), q.shape[2], read)
        return keys.attend(q, k, v, scale=scale, **self._options(q), **scores)  # type: ignore[arg-type]

    def attend_under(
        self, mask: Mask, q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Bias | Tensor | None = None
    ) -> Tensor:
        """Attend under a mask and a bias that the layer gives: q [B, T, H, C] → [B, T, H, Cv]."""
        return attend(q, k, v, mask, scale=scale, bias=bias, **self._options(q))

    def _options(self, q: Tensor) -> dict[str, Any]:
        return {"kernel": self.kernel, "again": self.again, "dropout": self.drop_attention(q)}

    def choose(self, pick: Callable[..., Tensor], k: Tensor, *queries: Tensor) -> None:
        """Restrict this layer's attention to chosen keys, and give the choice to later layers. `pick(*queries, k,
        mask)` chooses among the keys that each query sees (`zoo.kernels.choosing`). `queries` are [B, T, …]; `k` is a
        result of `remember`."""
        self.choice = self.give(CHOICE, self.keys.choose(pick, k, *queries))

    def take_choice(self) -> None:
        """Restrict attention to the keys that an earlier layer chose. A layer traced alone, for pricing, has no earlier
        one: it takes all keys in a mask of the same form."""
        self.choice = self.read(CHOICE)
        if self.choice is None:
            assert self.positions is not None
            self.choice = [each.mask.dense(self.positions.device)[:, 0] for each in self.keys.segments]

    def apply(self, work: Callable[..., Any], *given: Any, **options: Any) -> Any:
        """Compute `work(self, …)`, which depends on the pass: a replay calls `work` again with the later pass's
        Step."""
        return work(self, *given, **options)

    def _bias_maker(self, own: tuple[Any, Any], n_heads: int) -> Callable[..., Any]:
        """Return a function that computes the bias of a layer's own position scheme from places in the row."""
        scheme, weights = own
        make = scheme.bias if self.seam is None else partial(self.seam.bias, scheme)
        return partial(make, weights, n_heads, causal=self.mask.causal)

    def drop_attention(self, q: Tensor) -> AttentionDropout | None:
        """Make the dropout of attention probabilities, for queries [B, T, H, C]; None without dropout."""
        return None if self.drops is None else self.drops.drop_attention(q.shape[2], self.crosses)

    def for_rows(self, tokens: Tensor, experts: Tensor) -> Step:
        """Make the Step of a mixture's rows [M], each of one token at one of its experts."""
        return self if self.drops is None else replace(self, drops=self.drops.for_rows(tokens, experts))

    def bring(self, visit: Visit) -> Step:
        """Make the Step of the rows that all ranks send to the experts of this rank."""
        return self if self.drops is None else replace(self, drops=self.drops.bring(visit))

    def draw(self, scores: Tensor, count: int) -> Tensor:
        """Draw `count` uniform numbers between 0 and 1 for each token of scores [B, T, E]. With `drops` they are a hash
        of the token's place (`zoo.model.drops`); without, torch's generator draws them."""
        if self.drops is not None:
            return self.drops.draw_experts(scores, count)
        return torch.rand((*scores.shape[:-1], count), device=scores.device)

    def drop_units(self, h: Tensor) -> Tensor:
        """Drop some of a feed-forward's hidden units [..., F]."""
        return h if self.drops is None else self.drops.drop_units(h)

    def remember(self, **new: Tensor) -> tuple[Tensor, ...]:
        """Append new tensors [B, T, …] to the cache; return each with its earlier tokens in front [B, S, …], or the
        whole pool [N, …] of a pooled cache. Without a cache, all-gather the tokens of the ranks of context parallelism;
        in ring attention return the tensors as they are."""
        if self.cache is None:
            return self.keys.gather(tuple(new.values()))
        return self.cache.append(self.keys.slots, new)

    def read(self, channel: str) -> Any:
        """Read what other layers gave in a channel (`zoo.model.channels`); None if nothing was given before, and for a
        layer that runs alone. Raises ConfigError for a channel that no layer takes."""
        if self.taken is not None and channel not in self.taken:
            raise ConfigError(f"{channel}: a layer reads this channel, and no part of a layer names it in `takes`")
        return None if self.taken is None else self.taken[channel]

    def give(self, channel: str, value: object) -> Any:
        """Give other layers a value in a channel, if any of them reads it; return the value."""
        if channel in self.gives:
            self.given[channel] = value
        return value

    def recall(self, compute: Callable[[Tensor], tuple[Tensor, ...]], *names: str) -> tuple[Tensor, ...]:
        """Return keys and values of the memory, [B, S, …] or pools. `compute` makes them: with a cache, only in the
        first pass; without one, in every pass."""
        memory = self.memory
        if self.cache is None:
            assert memory is not None
            return compute(memory)
        return self.cache.recall(self.keys.slots, None if memory is None else lambda: compute(memory), names)

    def along_rows(self, work: Callable[..., Tensor], *given: Tensor) -> Tensor:
        """Compute `work(step, *given)` [B, T, …], which goes along the tokens of each row as a recurrence does, from
        tensors [B, T, …]. Every read or write of a state must be inside such a call: it pads concatenated rows, [1, N,
        …], to groups of rows [B, T, …] first. Raises ConfigError for other tensors."""
        if wrong := [tuple(each.shape) for each in given if each.shape[:2] != given[0].shape[:2]]:
            raise ConfigError(f"along_rows: takes tensors [B, T, …], found {wrong[0]} beside {tuple(given[0].shape)}")
        return work(self, *given) if self.rows is None else self.rows.run(work, self, given)

    def state(self, name: str) -> Tensor | None:
        """Return a recurrent mixer's state after all earlier tokens [B, …]; None without a cache, or if no tokens came
        before. Raises ConfigError outside `along_rows` if rows lie end to end."""
        self._check_along_rows()
        return None if self.cache is None or self.first else self.cache.state(name)

    def hold(self, **states: Tensor) -> None:
        """Store a recurrent mixer's states in the cache for the next tokens. Does nothing without a cache. Raises
        ConfigError outside `along_rows` if rows lie end to end."""
        self._check_along_rows()
        if self.cache is not None:
            for name, value in states.items():
                self.cache.hold(name, value)

    def _check_along_rows(self) -> None:
        if self.rows is not None:
            raise ConfigError("state: is read or held outside `along_rows`, where rows lie end to end (inside it)")


SECOND = "second_"
"""Prefix of the names under which the second of a layer's two attentions keeps keys and states."""


class BesideStep:
    """The Step of a layer's second attention or feed-forward. `place` gives it dropout masks of its own
    (`zoo.model.drops`); `keeps` is the prefix of its names in the cache."""

    def __init__(self, step: Step, place: str, keeps: str = "") -> None:
        self._step, self._place, self._keeps = step, place, keeps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._step, name)

    def remember(self, **new: Tensor) -> tuple[Tensor, ...]:
        return self._step.remember(**{self._keeps + name: tensor for name, tensor in new.items()})

    def state(self, name: str) -> Tensor | None:
        return self._step.state(self._keeps + name)

    def along_rows(self, work: Callable[..., Tensor], *given: Tensor) -> Tensor:
        beside = lambda step, *rows: work(BesideStep(step, self._place, self._keeps), *rows)  # noqa: E731
        return self._step.along_rows(beside, *given)

    def hold(self, **states: Tensor) -> None:
        self._step.hold(**{self._keeps + name: value for name, value in states.items()})

    def attend(self, *given: Any, **scores: Any) -> Tensor:
        drops = self._step.drops
        step = self._step if drops is None else replace(self._step, drops=drops.for_place(self._place))
        return step.attend(*given, **scores)

    def drop_units(self, h: Tensor) -> Tensor:
        drops = self._step.drops
        return h if drops is None else drops.for_place(self._place).drop_units(h)


@dataclass
class Output:
    """Outputs of a forward pass: `hidden` [B, T, D] after the final norm, `logits` [B, T, V] ([B, C] if the head reads
    whole rows), the routers' weighted `losses`, `pooled` [B, …] if the model has a pooler (a vector or logits for a
    row), and the encoder's output `memory` [B, S, D] in an encoder-decoder.

    With targets, `loss` is the weighted sum over them, which has a gradient, and `terms` are its parts by name, without
    a gradient. In training `loads` has, for each mixture from first layer to last, the number of real tokens that chose
    each expert [E].
    """

    hidden: Tensor
    logits: Tensor | None
    losses: dict[str, Tensor] = field(default_factory=dict)
    pooled: Tensor | None = None
    memory: Tensor | None = None
    loss: Tensor | None = None
    terms: dict[str, Tensor] = field(default_factory=dict)
    loads: list[Tensor] = field(default_factory=list)
