# B rows, T new tokens, P tokens before them, S = P + T, H heads, C channels
"""Wrap a model as a program that torch.export can record: every input and output is a named tensor, including the KV
cache and the recurrent states."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import ConfigError
from zoo.kernels.mask import Mask
from zoo.kernels.view import KeyView
from zoo.kernels.view.slots import SlotMapping
from zoo.model.context import ForwardContext
from zoo.model.step import Inputs, Step
from zoo.untrusted.printable import shorten

if TYPE_CHECKING:
    from zoo.model.attention.base import Attention
    from zoo.model.step import Output, Weights
    from zoo.model.tower import Topology, Tower
    from zoo.run.layer import Model

    Embed = Callable[[Tensor, Tensor], Tensor]

ENTRIES = "past_key_values", "present"
"""Prefixes of the names of cached tensors, before a pass and after it, as optimum, transformers.js and
onnxruntime-genai read them: past_key_values.0.key, present.0.key."""

STATES = "past_state", "present_state"
"""Prefixes of the names of recurrent states, before a pass and after it."""

DIMS = "batch_size", "sequence_length", "past_sequence_length"
"""The names of the axes that vary."""

TOTAL = "total_sequence_length"
"""The name of the mask's axis in a model without a KV cache."""

NAMES = {"k": "key", "v": "value"}
"""Zoo's names of cached tensors, and the names that other programs use."""


class TracedLayer:
    """The cache of one layer (`zoo.cache.cache.LayerCache`), with tensors that are values of the program. `kept` has
    the tensors before the pass, and after it the tensors extended by the new tokens."""

    def __init__(self) -> None:
        self.kept: dict[str, Tensor] = {}

    def append(self, where: SlotMapping, new: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Append new tokens to earlier ones: [B, S, …] for each name."""
        held = {name: self.kept.get(name) for name in new}
        joined = {
            name: each if earlier is None else torch.cat((earlier, each.to(earlier.dtype)), 1)
            for (name, earlier), each in zip(held.items(), new.values(), strict=True)
        }
        self.kept |= joined
        return tuple(joined.values())

    def recall(
        self, where: SlotMapping | None, compute: Callable[[], tuple[Tensor, ...]] | None, names: Sequence[str]
    ) -> tuple[Tensor, ...]:
        """Return keys and values of an encoder's output [B, M, …]; `compute` makes them in the first pass."""
        if compute is not None:
            self.kept |= {f"cross.{name}": each for name, each in zip(names, compute(), strict=True)}
        return tuple(self.kept[f"cross.{name}"] for name in names)

    def state(self, name: str) -> Tensor:
        """Return a recurrent state [B, …]."""
        return self.kept[name]

    def hold(self, name: str, value: Tensor) -> None:
        """Keep a recurrent state for the next tokens."""
        self.kept[name] = value.to(torch.float32)


class TracedCache:
    """The cache of one pass (`zoo.cache.cache.Cache`), with tensors that are values of the program. All rows have P
    earlier tokens, padding included; keys hidden by a window are kept and masked."""

    varlen = apart = packs = has_source = False
    recordings = tensors = None

    def __init__(self, tower: Tower, layers: list[TracedLayer], past: int) -> None:
        self.tower, self.layers, self.past = tower, layers, past
        self.longest = int(any(block.state() for block in tower.blocks.values()))  # a first pass reads states: zeros

    def begin(self, counts: Sequence[int] | None, new: int) -> None:
        """Start a pass."""

    def end(self, new: int) -> None:
        """End a pass."""

    def reach(self, new: int) -> int:
        """Return the length of the rows after a pass of `new` columns."""
        return self.past + new

    def find_counts(self, new: int) -> None:
        """Return None: each row has `new` tokens."""

    def lay_out(self, kind: str, new: int) -> SlotMapping | None:
        """Return an empty mapping for layers with a KV cache, because they concatenate tokens instead; None for
        others."""
        return SlotMapping([[]]) if self.tower.blocks[kind].cache() else None


class TracedContext(ForwardContext):
    """A ForwardContext without branches that depend on a number of tokens: masks are tensors, rows with a cache may
    have padding anywhere, and limits are not checked."""

    def _check(self, spec: Tower, inputs: Inputs) -> None:
        pass

    def _find_real(self) -> Tensor:
        assert self.padding is not None
        return self.padding[:, self.past :]  # B T

    def see(self, attention: Attention, own: Weights | None, slots: SlotMapping | None) -> KeyView:
        places, chunk = (self.index[self.past :], self.index), attention.sight.chunk
        chunks = None if chunk is None else self.every // chunk  # B|1 S
        apart = None if chunks is None else (chunks[:, self.past :], chunks)
        segment = self._segment(attention, own, places, padding=self.padding, documents=apart)
        return KeyView(Mask.of_pairs(segment.mask.dense(self.device)[:, 0]), places, segment.bias, slots)

    def _cross(self, attention: Attention, kernel: str, dtype: torch.dtype) -> Step:
        assert self.memory_mask is not None
        mask = Mask.of_pairs(self.memory_mask[:, None].expand(-1, self.new, -1))  # B T M
        return Step(KeyView(mask), kernel, memory=self.memory, crosses=True)

    def draw(self, *given: Any, **options: Any) -> None:
        """Do nothing: masks are tensors already."""


class TracedTensor(NamedTuple):
    """A tensor that a layer keeps between passes: its names before and after a pass, the layer's number, zoo's name for
    the tensor, and the shape of a token's entry if the tensor `grows`, else of a row's state."""

    before: str
    after: str
    layer: int
    own: str
    shape: tuple[int, ...]
    grows: bool

    @property
    def axis(self) -> int:
        """The number of the axis of tokens."""
        return 2 if len(self.shape) == 2 else 1

    def turn(self, held: Tensor) -> Tensor:
        """Exchange the axes of tokens and heads, if an entry has heads."""
        return held.transpose(1, 2) if self.grows and self.axis == 2 else held


class TracedModel(nn.Module):
    """A model whose forward takes and returns tensors by name.

    forward(input_ids [B, T], attention_mask [B, S], past) → {name: tensor}. `past` maps names (`before` in `held`) to
    the keys and values of earlier tokens [B, H, P, C] ([B, P, C] without heads) and to recurrent states [B, …]. The
    result has `logits` [B, T, V] and these tensors after the pass. The mask is 0 for padding, which may stand anywhere.
    A model without a cache also takes `token_type_ids` if it has token types, and returns `last_hidden_state`, `logits`
    and `pooler_output`, as far as it has them. With `embed`, which makes vectors [B, E] of hidden states [B, T, D] and
    a mask [B, T], it has no cache and returns `sentence_embedding` too.

    Raises ConfigError for a model that cannot be written as a program of tensors.
    """

    name = "model"
    """The name of the program's file, without its ending."""

    def __init__(self, model: Model, embed: Embed | None = None) -> None:
        super().__init__()
        check_traceable(model.spec)
        self.model, (self.tower,), self.embed = model, model.spec.towers().values(), embed
        caches = self.tower.causal and self.tower.head.predicts_tokens
        self.held = list(list_held(self.tower)) if caches and embed is None else []
        self.one_by_one = bool(self.held) and any(each.attention.passes.loops for each in self.tower.blocks.values())

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        past: dict[str, Tensor] | None = None,
        token_type_ids: Tensor | None = None,
    ) -> dict[str, Tensor]:
        cache = None if past is None else self._open(past, attention_mask.shape[1] - input_ids.shape[1])
        inputs = Inputs(input_ids, attention_mask, token_type_ids, cache=cache)  # type: ignore[arg-type]
        out = self.tower.run(self.model, inputs, TracedContext(self.tower, inputs))
        if cache is None:
            found: dict[str, Any] = self.name_results(out, attention_mask.bool())
        else:
            kept = {each: cache.layers[each.layer].kept[each.own] for each in self.held}
            found = {"logits": out.logits} | {each.after: each.turn(tensor) for each, tensor in kept.items()}
        return {name: found[name] for name in self.outputs}

    def name_results(self, out: Output, real: Tensor) -> dict[str, Any]:
        """Name the results of a pass without a cache; `real` [B, T] is False for padding."""
        found = {"last_hidden_state": out.hidden, "logits": out.logits, "pooler_output": out.pooled}
        return found | ({"sentence_embedding": self.embed(out.hidden, real)} if self.embed else {})

    def _open(self, past: dict[str, Tensor], length: int) -> TracedCache:
        """Make the cache of a pass after `length` tokens."""
        layers = [TracedLayer() for _ in self.tower.pattern]
        for each in self.held:
            if each.grows:
                torch._check(past[each.before].shape[each.axis] == length)
            layers[each.layer].kept[each.own] = each.turn(past[each.before])
        return TracedCache(self.tower, layers, length)

    def make_inputs(self, batch: int, new: int, past: int = 0) -> dict[str, Any]:
        """Make inputs of random ids and of all token types, without padding, after `past` tokens whose entries are
        zeros."""
        weight, spec = next(self.model.parameters()), self.tower
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(spec.vocab_size, (batch, new), generator=generator).to(weight.device)
        made: dict[str, Any] = {"input_ids": ids, "attention_mask": ids.new_ones(batch, past + new)}
        if self.held:
            made["past"] = {each.before: self._make_empty(each, batch, past, weight) for each in self.held}
        elif spec.takes_types:
            count = getattr(spec.embedding, "n_types", None) or 2
            made["token_type_ids"] = torch.arange(new, device=ids.device).expand(batch, -1) * count // max(new, 1)
        return made

    def _make_empty(self, held: TracedTensor, batch: int, past: int, weight: Tensor) -> Tensor:
        if not held.grows:
            return torch.zeros(batch, *held.shape, device=weight.device)
        return held.turn(weight.new_zeros(batch, past, *held.shape)).contiguous()

    def record(self) -> torch.export.ExportedProgram:
        """Record the model by torch.export, for any numbers of rows, of new tokens (one, if `one_by_one`) and of
        earlier tokens. Raises ConfigError, with torch's reason, for a model that it cannot record."""
        inputs = self.make_inputs(2, 1 if self.one_by_one else 5, 7 if self.held else 0)
        shapes = self.list_dims(inputs)
        how: dict[str, Any] = {"strict": False, "prefer_deferred_runtime_asserts_over_guards": self.one_by_one}
        with torch.no_grad(), eager_kernels(self.model), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's own calls
            try:
                program = torch.export.export(self, (), inputs, dynamic_shapes=shapes, **how)
            except RuntimeError as error:
                kinds = ", ".join(dict.fromkeys(each.attention.kind for each in self.tower.blocks.values()))
                reason = shorten(str(error).strip().splitlines()[0], 200)
                raise ConfigError(f"torch.export does not record this model of {kinds}: {reason}") from error
            return program.run_decompositions({torch.ops.zoo.depthwise_conv.default: _convolve})

    def list_dims(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return torch's Dim of each varying axis, by input and axis number."""
        rows, new, past = (torch.export.Dim(name) for name in DIMS)
        shapes: dict[str, Any] = {"input_ids": {0: rows} if self.one_by_one else {0: rows, 1: new}}
        shapes["attention_mask"] = {0: rows, 1: self._name_total(new, past)}
        if self.held:
            shapes["past"] = {each.before: {0: rows, **({each.axis: past} if each.grows else {})} for each in self.held}
        return shapes | {name: shapes["input_ids"] for name in inputs if name not in shapes}

    def name_axes(self, shapes: Mapping[str, Any]) -> list[tuple[Any, str]]:
        """Pair torch's symbols for varying axes with their names: the axes of `input_ids` [B, T], and the token axis of
        cached entries (without a cache, of the mask)."""
        grown = next((each for each in self.held if each.grows), None)
        mask = shapes["attention_mask"]
        last = (mask[1], TOTAL) if grown is None else (shapes[grown.before][grown.axis], DIMS[2])
        return [*zip(shapes["input_ids"], DIMS, strict=False), last]

    @property
    def inputs(self) -> list[str]:
        """The names of the inputs, in order."""
        given, before = list(self.make_inputs(1, 1)), [each.before for each in self.held]
        return [name for each in given for name in (before if each == "past" else [each])]

    @property
    def outputs(self) -> list[str]:
        """The names of the outputs, in order."""
        if self.held:
            return ["logits", *(each.after for each in self.held)]
        there = {"logits": self.tower.head.kind != "none", "pooler_output": self.tower.pooler is not None}
        there["sentence_embedding"] = self.embed is not None
        return ["last_hidden_state", *(name for name, has in there.items() if has)]

    def _name_total(self, new: Any, past: Any) -> Any:
        """Return the size of the mask's axis S: T without a cache, P + 1 if T is 1; otherwise torch derives T + P."""
        if not self.held:
            return new
        return past + 1 if self.one_by_one and any(each.grows for each in self.held) else torch.export.Dim.AUTO


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    """Compute zoo's depthwise convolution by torch's conv1d."""
    return F.conv1d(x.mT, weight, bias, groups=len(weight), dilation=dilation).mT


def list_held(tower: Tower) -> Iterator[TracedTensor]:
    """List the tensors that the layers of a tower keep between passes, layer by layer."""
    for number, kind in enumerate(tower.pattern):
        block = tower.blocks[kind]
        for (before, after), shapes, grows in ((ENTRIES, block.cache(), True), (STATES, block.state(), False)):
            for own, shape in shapes.items():
                place = f"{number}.{NAMES.get(own, own)}"
                yield TracedTensor(f"{before}.{place}", f"{after}.{place}", number, own, shape, grows)


def check_traceable(spec: Topology) -> None:
    """Raise ConfigError for a model that cannot be written as a program of tensors, naming the layers in the way."""
    (tower,) = spec.towers().values()
    limit = tower.cacheable_until if tower.causal else None
    if limit is not None and limit < tower.max_seq_len:
        found = f"a cache drifts beyond {limit} tokens, and the program would not say so"
        raise ConfigError(f"position: {found} (max_seq_len: {limit})")
    for kind, block in tower.blocks.items():
        place, attention = f"layers.{kind}.attention", block.attention
        if attention.sight.rate > 1:
            found = f"{attention.kind} caches one entry for several tokens"
            raise ConfigError(f"{place}: {found}, which is no program of tensors (one for each token)")
        if attention.chooser is not None:
            found = f"an indexer of {attention.kind} chooses as many keys as there are, up to a number"
            raise ConfigError(f"{place}: {found}, which is no program of tensors (no indexer)")


@contextmanager
def eager_kernels(model: Model) -> Iterator[None]:
    """Compute attention inside the block in plain torch, because other programs can translate plain torch."""
    before, model.kernel = model.kernel, "eager"
    try:
        yield
    finally:
        model.kernel = before
