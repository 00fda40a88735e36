# B rows, T new tokens, P earlier tokens, M tokens of the source, H heads, C channels, D width, V vocabulary
"""The programs of an encoder-decoder: its encoder, a decoder's first pass, and a pass with earlier tokens cached."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from zoo.errors import ConfigError
from zoo.model.step import Inputs
from zoo.run.layer import Borrowed
from zoo.run.traced import DIMS, ENTRIES, NAMES, TracedCache, TracedContext, TracedLayer, TracedModel, TracedTensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from zoo.model.encoder_decoder import EncoderDecoder
    from zoo.model.tower import Tower
    from zoo.run.layer import Model

SOURCE = "encoder_sequence_length"
"""The name of the axis of the source's tokens."""

FILES = "encoder_model", "decoder_model", "decoder_with_past_model"
"""The names of the three programs, as optimum reads them."""


class TracedEncoder(TracedModel):
    """The encoder: computes hidden states [B, M, D] from `input_ids` and `attention_mask` [B, M]."""

    name = FILES[0]

    @property
    def outputs(self) -> list[str]:
        """The name of the only output, the hidden states."""
        return ["last_hidden_state"]


class TracedDecoder(TracedModel):
    """A decoder that reads an encoder's output, whose forward takes and returns tensors by name.

    The first pass: forward(input_ids [B, T], encoder_attention_mask [B, M], encoder_hidden_states [B, M, D]) →
    {`logits` [B, T, V], present.N.decoder.key, …value [B, H, T, C], present.N.encoder.key, …value [B, H, M, C]}. With
    `later`, a pass takes these tensors as `past` (past_key_values.N.…) in place of the hidden states, and returns only
    the decoder's own, extended by the new tokens. Rows have no padding: each begins with its start token.
    """

    def __init__(self, model: Model, later: bool) -> None:
        super().__init__(model)
        self.later, self.name = later, FILES[1 + later]
        self.own = list(_rename(self.held))
        self.held = sorted([*self.own, *_list_read(self.tower)], key=lambda each: each.layer)  # optimum's order
        own = {id(each) for each in model.parameters()}
        lent = (each for each in model.modules() if isinstance(each, Borrowed))
        self.lent = nn.ModuleList(each.owner for each in lent if id(each.weight) not in own)  # a tied encoder's table

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        encoder_attention_mask: Tensor,
        encoder_hidden_states: Tensor | None = None,
        past: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        length = 0 if past is None else past[self.own[0].before].shape[2]
        cache = self._open(past or {}, length)
        mask = torch.ones_like(input_ids[:, :1]).expand(-1, length + input_ids.shape[1])
        memory: dict[str, Any] = {"memory": encoder_hidden_states, "memory_mask": encoder_attention_mask}
        inputs = Inputs(input_ids, mask, cache=cache, **memory)  # type: ignore[arg-type]
        out = self.tower.run(self.model, inputs, TracedContext(self.tower, inputs))
        found = {"logits": out.logits}
        found |= {each.after: each.turn(cache.layers[each.layer].kept[each.own]) for each in self.kept}
        return {name: found[name] for name in self.outputs}  # type: ignore[misc]

    def _open(self, past: dict[str, Tensor], length: int) -> TracedCache:
        layers = [TracedLayer() for _ in self.tower.pattern]
        for each in self.held if self.later else ():
            layers[each.layer].kept[each.own] = each.turn(past[each.before])
        cache = TracedCache(self.tower, layers, length)
        cache.has_source = self.later
        return cache

    @property
    def kept(self) -> list[TracedTensor]:
        """The tensors that a pass returns. Later passes do not return the source's keys and values again."""
        return self.own if self.later else self.held

    def make_inputs(self, batch: int, new: int, past: int = 0, source: int = 3) -> dict[str, Any]:
        """Make inputs of random ids, hidden states and entries, without padding."""
        weight = next(self.model.parameters())
        ids = super().make_inputs(batch, new)["input_ids"]
        made: dict[str, Any] = {"input_ids": ids, "encoder_attention_mask": ids.new_ones(batch, source)}
        if self.later:
            held = ((each, past if each in self.own else source) for each in self.held)
            return made | {"past": {each.before: self._make_empty(each, batch, size, weight) for each, size in held}}
        return made | {"encoder_hidden_states": weight.new_zeros(batch, source, self.tower.memory_width)}

    def list_dims(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return torch's Dim of each varying axis (rows, new tokens, earlier tokens, source tokens), by input and axis
        number."""
        rows, new, past, source = (torch.export.Dim(name) for name in (*DIMS, SOURCE))
        shapes: dict[str, Any] = {"input_ids": {0: rows, 1: new}, "encoder_attention_mask": {0: rows, 1: source}}
        if not self.later:
            return shapes | {"encoder_hidden_states": {0: rows, 1: source}}
        return shapes | {
            "past": {each.before: {0: rows, 2: past if each in self.own else source} for each in self.held}
        }

    def name_axes(self, shapes: Mapping[str, Any]) -> list[tuple[Any, str]]:
        """Pair torch's symbols for axes with their names."""
        past = [(shapes[self.own[0].before][2], DIMS[2])] if self.later else []
        return [*zip(shapes["input_ids"], DIMS, strict=False), (shapes["encoder_attention_mask"][1], SOURCE), *past]

    @property
    def outputs(self) -> list[str]:
        """The names of the outputs, in order."""
        return ["logits", *(each.after for each in self.kept)]


def _rename(held: list[TracedTensor]) -> Iterator[TracedTensor]:
    """Name the entries of a decoder's own tokens as optimum does: past_key_values.0.decoder.key."""
    for each in held:
        before, after = (name.replace(f".{each.layer}.", f".{each.layer}.decoder.") for name in each[:2])
        yield each._replace(before=before, after=after)


def _list_read(tower: Tower) -> Iterator[TracedTensor]:
    """List the source's keys and values that the layers of a tower keep."""
    for number, kind in enumerate(tower.pattern):
        cross = tower.blocks[kind].cross
        for own, shape in (cross.cache() if cross else {}).items():
            before, after = (f"{prefix}.{number}.encoder.{NAMES.get(own, own)}" for prefix in ENTRIES)
            yield TracedTensor(before, after, number, f"cross.{own}", shape, True)


def trace_pair(model: Any, spec: EncoderDecoder) -> list[TracedModel]:
    """List the three programs of an encoder-decoder. Raises ConfigError if it cannot be written as programs of
    tensors."""
    if not spec.decoder.head.predicts_tokens:
        found = f"the decoder's head is of kind '{spec.decoder.head.kind}'"
        raise ConfigError(f"decoder.head: {found}, which is not written as a program (lm)")
    for kind, block in spec.decoder.blocks.items():
        grows = all(len(shape) == 2 for shape in block.cache().values()) and not block.state()
        if not grows or (block.cross is not None and not block.crosses):
            found = "keeps other tensors than keys and values of heads, or attends to both texts at once"
            raise ConfigError(f"decoder.layers.{kind}: {found}, which is not written as a program (attention=mha)")
    return [TracedEncoder(model.encoder), *(TracedDecoder(model.decoder, later) for later in (False, True))]
