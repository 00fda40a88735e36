# B batch, T queries, S keys, D model width, V vocabulary
"""Whole models: an embedding, a pattern of layers, a norm and a head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import PositiveInt

from zoo.errors import ConfigError
from zoo.lazy import Tensor, torch
from zoo.model.block.base import Block
from zoo.model.channels import Channel, Exchange, Fault, Uses, list_uses
from zoo.model.context import ForwardContext
from zoo.model.embedding import TokenEmbedding
from zoo.model.head import Head, Pooler, keep_last
from zoo.model.init import Init, Normal
from zoo.model.layer_loop import Loop
from zoo.model.loss import TokenLoss, sum_loss
from zoo.model.norm import WholeNorm
from zoo.model.position.base import Position
from zoo.model.spread_loss import spread_loss
from zoo.model.step import Inputs, Output, Weights
from zoo.model.streams import Streams
from zoo.model.whole import find_misfits, refuse_borrowed_table
from zoo.spec import Linear, Sized, Spec, Stack, components
from zoo.spec.faults import make_refusals


class Topology(Spec, axis="topology", default="decoder"):
    """A whole model: embeddings, layers and heads."""

    if TYPE_CHECKING:  # fields of a tower, properties of a pair

        @property
        def d_model(self) -> int: ...

        vocab_size = max_seq_len = n_layers = output_vocab_size = d_model

    @classmethod
    def parse(cls, node: object) -> Any:
        """Parse a node into a Spec. For a whole model, but not for a tower inside another, raises one ValidationError
        that lists all misfits."""
        spec = super().parse(node)
        found = list(spec.misfits()) if cls is Topology else []  # a tower inside another model is parsed as Tower
        if found:
            raise make_refusals(cls, found)
        return spec

    def misfits(self) -> Iterator[Fault]:
        """Yield the components that do not go together in this model: a field's path, and a line about it."""
        raise NotImplementedError

    def towers(self) -> dict[str, Tower]:
        """Return the stacks of layers by the path of their weights: "" for a model that is one stack itself."""
        raise NotImplementedError

    @property
    def served(self) -> Any:
        """The model without the parts that only training runs; the model itself if it has none."""
        return self


class Tower(Topology):
    """A stack of layers between an embedding and a head."""

    vocab_size: PositiveInt  # type: ignore[override]
    """Number of tokens of the vocabulary."""
    d_model: PositiveInt  # type: ignore[override]
    """Width of the residual stream, in channels."""
    max_seq_len: PositiveInt  # type: ignore[override]
    """Longest sequence that the model is made for, in tokens."""
    embedding: TokenEmbedding
    """Embedding of token ids, where the residual stream starts."""
    position: Position
    """Position scheme of the model. One that acts inside attention is stated by each layer's attention, too."""
    blocks: dict[str, Block]
    """Kinds of layer, by name."""
    pattern: tuple[str, ...]
    """Each layer's kind, first to last."""
    norm: WholeNorm
    """Final norm, before the head."""
    head: Head
    """Head, which reads the last hidden states."""
    final_norm: bool | None = None
    """Whether a final norm precedes the head; unless given, true if the last layer does not end in a norm."""
    out_width: PositiveInt | None = None
    """Width that the final norm's output is projected to for the head (OPT-350m), in channels; null for no projection.
    The pooler reads the output before this projection."""
    out_bias: bool = False
    """Whether the projection to `out_width` has a bias."""
    shared_layers: bool = False
    """Whether all layers of a kind share their weights: ALBERT with one kind, a looped transformer with several."""
    loop: Loop | None = None
    """Loop that runs some layers several times."""
    pooler: Pooler | None = None
    """Pooler in addition to the head: makes one vector, or logits, of a row."""
    streams: Streams | None = None
    """Widening of the residual stream for blocks that take several vectors per token (AltUp); null for one vector."""
    init: Init = Normal()
    """Initial weights."""

    def __post_init__(self) -> None:
        unknown = [name for name in dict.fromkeys(self.pattern) if name not in self.blocks]
        if unknown or not self.pattern:
            found = ", ".join(map(repr, unknown)) or "nothing"
            raise ValueError(f"pattern names {found}, the kinds of layer are: {', '.join(self.blocks) or 'none'}")
        for name, block in self.blocks.items():
            self._check(name, block)
        if self.position.inside and all(block.attention.positioning is None for block in self.blocks.values()):
            acts = f"position '{self.position.kind}' acts inside attention, and no attention here takes one"
            raise ValueError(f"{acts} (position: none)")
        if self.embedding.causal is not None and self.embedding.causal is not self.causal:
            found = "the embedding's trigram lets a token see the next one"
            raise ValueError(f"{found}, and the model is of kind '{self.kind}' (kind: encoder would do)")
        if self.out_bias and self.out_width is None:
            raise ValueError("out_bias is of the projection to out_width, and there is none (give `out_width`)")

    def _check(self, name: str, block: Block) -> None:
        place = f"the '{name}' layers'" if len(self.blocks) > 1 else "the layers'"
        for _, component, _ in components(block, self.d_model):
            if component.causal is not None and component.causal is not self.causal:
                axis, other = component.axis, "decoder" if component.causal else "encoder"
                can = "reads only what came before" if component.causal else "lets a token see later ones"
                would = f"kind: {other} would do; in an encoder-decoder, {other}.{axis} alone"
                raise ValueError(
                    f"{place} {axis} '{component.kind}' {can}, and this is of kind '{self.kind}' ({would})"
                )
        if block.cross is not None and not self.causal:
            raise ValueError(
                f"{place} cross-attention has nothing to read in a model of kind '{self.kind}' (cross: null)"
            )
        own = block.attention.positioning
        if own is not None and not own.per_layer and own.parts(self.d_model) and own != self.position:
            raise ValueError(
                f"{place} position '{own.kind}' has weights of its own, beside the model's '{self.position.kind}' "
                "(one for the model, or per_layer)"
            )

    def misfits(self) -> Iterator[Fault]:
        yield from find_misfits(self)
        yield from refuse_borrowed_table(self)

    def towers(self) -> dict[str, Tower]:
        return {"": self}

    @property
    def unrolled(self) -> Tower:
        """The tower to price for training: modules used only in training are further layers."""
        return self

    @property
    def n_layers(self) -> int:
        return len(self.pattern)

    @property
    def output_vocab_size(self) -> int:
        """Number of tokens that the head predicts, which may be fewer than the vocabulary has. If the head predicts no
        tokens, the size of the vocabulary."""
        return self.head.n_logits if self.head.predicts_tokens else self.vocab_size

    @property
    def depth(self) -> int:
        """Number of layers of the whole tower; a pipeline's stage holds some of them."""
        return len(self.pattern)

    @property
    def stack(self) -> Stack:
        return Stack(self.blocks, self.pattern, self.layer_weights)

    @property
    def layer_weights(self) -> tuple[int, ...] | None:
        """For each layer, the number of the set of weights that it uses; None if each layer has its own."""
        if self.loop is not None:
            return self.loop.number(len(self.pattern))
        if not self.shared_layers:
            return None
        numbers = {kind: number for number, kind in enumerate(dict.fromkeys(self.pattern))}
        return tuple(map(numbers.__getitem__, self.pattern))

    @property
    def reads_memory(self) -> bool:
        """Whether the tower's layers read an encoder's output."""
        return any(block.cross is not None for block in self.blocks.values())

    @property
    def memory_width(self) -> int:
        """Width of the encoder's output that the tower's layers read."""
        stated = (block.cross.memory.width for block in self.blocks.values() if block.cross and block.cross.memory)
        return next((each for each in stated if each is not None), self.d_model)

    @property
    def cacheable_until(self) -> int | None:
        """Row length up to which decoding with a cache equals the full forward; None if there is no limit."""
        schemes = [block.attention.positioning for block in self.blocks.values()]
        limits = [scheme.stable_until for scheme in schemes if scheme and scheme.stable_until]
        return min(limits, default=None)

    @property
    def has_final_norm(self) -> bool:
        if self.final_norm is not None:
            return self.final_norm
        return not self.blocks[self.pattern[-1]].normalises_output

    def find_section(self, inputs: Inputs) -> tuple[range, bool]:
        """Find the layers that a pass runs, by their places in this tower, and whether the head follows."""
        return range(len(self.pattern)), True

    @property
    def last_read(self) -> tuple[str, Spec] | None:
        """The channel that is read once more before the final norm, and the component that reads it; None if there is
        none."""
        found = ((name, Channel.named[name].find_last_reader(self)) for name in self.channels)
        return next(((name, reader) for name, reader in found if reader is not None), None)

    @property
    def uses(self) -> dict[str, Uses]:
        """The channels that each kind of layer reads and gives."""
        held = self.__dict__.get("_uses")
        if held is None or held[0] is not self.blocks:  # pricing copies a tower and gives it other kinds of layer
            held = self.__dict__["_uses"] = self.blocks, list_uses(self.blocks)
        return held[1]

    @property
    def channels(self) -> tuple[str, ...]:
        """The names of the channels that some layer reads."""
        return tuple(dict.fromkeys(name for each in self.uses.values() for name in each.reads))

    @property
    def takes_types(self) -> bool:
        """Whether the embedding or an attention reads token types, which number the texts in a row."""
        embedded = getattr(self.embedding, "n_types", None)
        return bool(embedded) or any("types" in block.attention.extras for block in self.blocks.values())

    @property
    def has_position(self) -> bool:
        """Whether the position scheme is a part of the model, rather than of each layer."""
        return not self.position.per_layer

    def parts(self, d_model: int) -> dict[str, Any]:
        position = Sized(self.position, self.embedding.position_width(d_model))
        return {
            "embedding": self.embedding,
            **({"position": position} if self.has_position else {}),
            **({"streams": Sized(self.streams, d_model)} if self.streams else {}),
            "blocks": self.stack,
            **({"loop": self.loop} if self.loop else {}),
            **({"final_read": last[1]} if (last := self.last_read) else {}),
            **({"norm": self.norm} if self.has_final_norm else {}),
            **({"project": Linear(d_model, self.out_width, self.out_bias)} if self.out_width else {}),
            **({"pooler": self.pooler} if self.pooler else {}),
            "head": Sized(self.head, self.out_width or d_model),
        }

    def forward(self, m: Any, input_ids: Tensor, attention_mask: Tensor | None = None, **others: Any) -> Output:
        """Compute hidden states [B, T, D] and, if there is a head, logits [B, T, V] (or [B, C] if the head reads whole
        rows) for token ids [B, T]. The other arguments are those of Inputs. With `targets` the loss is computed in
        place of logits, chunk by chunk. Raises ConfigError for inputs that this tower does not take."""
        inputs = Inputs(input_ids, attention_mask, **others)
        self.check_inputs(inputs)
        drops = m.dropping.begin(inputs, m.seam, m.context) if m.training and m.dropping is not None else None
        return self.run(m, inputs, ForwardContext(self, inputs, m.seam, m.context, drops))

    def check_inputs(self, inputs: Inputs) -> None:
        """Raises ConfigError for inputs that would do nothing in this tower, or that its head cannot take."""
        everywhere = inputs.global_attention_mask is not None
        if everywhere and not any("global" in block.attention.extras for block in self.blocks.values()):
            raise ConfigError("global_attention_mask: no layer has global tokens (attention=longformer would do)")
        if inputs.token_type_ids is not None and not self.takes_types:
            raise ConfigError("token_type_ids: the model has no token types (embedding.n_types would give it some)")
        if inputs.memory is not None and not self.reads_memory:
            raise ConfigError("memory: no layer has cross-attention to read it (block.cross would give one)")
        if inputs.targets is not None and self.head.kind == "none":
            raise ConfigError("targets: the model has no head to predict them (head.kind: lm)")
        if inputs.loss is not None and inputs.targets is None:
            raise ConfigError("loss: weighs targets, and none were given (pass targets)")
        if self.head.asks and inputs.targets is not None:
            raise ConfigError(f"targets: a head of kind '{self.head.kind}' is trained by no objective (leave them out)")
        if (self.head.reads_rows or self.head.asks) and (inputs.targets is not None or inputs.logits_to_keep != 0):
            self._check_whole_rows(inputs)

    def _check_whole_rows(self, inputs: Inputs) -> None:
        """Raises ConfigError if inputs are not whole rows of one text each, which some heads need."""
        name = next((each for each in ("cache", "documents") if getattr(inputs, each) is not None), None)
        if name is not None:
            raise ConfigError(f"{name}: the head reads a row as one text (leave it out, or logits_to_keep=0)")
        if inputs.logits_to_keep is not None and inputs.targets is None:
            given = "results for all tokens of" if self.head.asks else "one result for"
            found = f"is {inputs.logits_to_keep}, and the head gives {given} a row"
            raise ConfigError(f"logits_to_keep: {found} (0 for none, or leave it out)")

    def run(self, m: Any, inputs: Inputs, context: ForwardContext) -> Output:
        """Run one forward pass: token ids [B, T] through embedding, layers, norm and head."""
        seam = m.seam
        x = self.embed(m, inputs, context) if inputs.stream is None else inputs.stream  # B T D
        steps = {kind: context.step(kind, m.kernel, x, m) for kind in self.blocks}
        losses: dict[str, Tensor] = {}
        loads: list[Tensor] = []
        stack, cache = self.stack, inputs.cache
        runner = m.recompute if cache is None else cache.recordings
        drops = context.drops and context.drops.for_layers(self.depth, stack.numbers)
        layers, ends = self.find_section(inputs)
        exchange = Exchange(self, m, inputs.input_ids, x)
        rounds = None if self.loop is None else self.loop.follow(m.loop, exchange)
        x = self.streams.expand(m.streams, x) if self.streams else x  # B T S D if there are several
        for index in layers:
            kind = self.pattern[index]
            step = steps[kind].for_layer(cache and cache.layers[index], drops[index] if drops else None)
            layer = m.blocks[stack.index(index)]
            x = x if rounds is None else rounds.enter(index, x)
            exchange.enter(index, kind, step)
            x = layer(x, step) if runner is None else runner.run(index, layer, x, step)
            exchange.leave(index, step)
            for name, loss in step.losses:
                loss = m.context.own_share(seam.own_share(loss))
                losses[name] = losses[name] + loss if name in losses else loss
            loads += [torch.diff(ends, prepend=ends.new_zeros(1)) for ends in step.ends]
        if cache is not None:
            cache.end(context.new)
        if not ends:
            return Output(x, None, losses, loads=loads)
        x = self.streams.collapse(m.streams, x) if self.streams else x  # B T D
        x = m.final_read(x, exchange.find(last[0]).last) if (last := self.last_read) else x
        x = m.norm(x) if self.has_final_norm else x  # the name of what is normed is given up, and so its memory
        hidden = seam.gather(m.project(x) if self.out_width else x, context.own)
        pooled = m.pooler(seam.gather(x, context.own) if self.out_width else hidden) if self.pooler else None
        out = Output(hidden, None, losses, pooled, loads=loads)
        marked = self.head.mark(inputs.input_ids, context.real)
        if inputs.targets is not None:
            read, loss = self.head.gather(hidden, marked), inputs.loss or TokenLoss()
            own = m.context.own(inputs.targets)
            if m.context.active:  # the count is of whole rows
                loss = replace(loss, count=own.numel() if loss.count == inputs.targets.numel() else None)
            out.loss, out.terms = self._sum_loss(m, read, own, loss)
        elif inputs.logits_to_keep != 0 and self.head.reads_rows:
            out.logits = m.head(self.head.gather(hidden, marked)[:, 0])  # B C
        elif inputs.logits_to_keep != 0 and self.head.asks:
            out.logits = m.head(self.head.gather(hidden, marked))  # B T 2
        elif inputs.logits_to_keep != 0:
            logits = m.head(keep_last(hidden, inputs))
            out.logits = seam.join_logits(logits, self.vocab_size) if self.head.predicts_tokens else logits
        return out

    def embed(self, m: Weights, inputs: Inputs, context: ForwardContext) -> Tensor:
        """Embed the tokens: the first layer's input [B, T, D]."""
        seam = m.seam
        given = inputs.token_type_ids if getattr(self.embedding, "n_types", None) else None
        types = seam.own(m.context.own(given))
        factors = self.embedding.weigh(inputs.input_ids, context.real, inputs.documents)
        beside = m.context.own(self.embedding.list_beside(inputs.input_ids, context.real, inputs.documents))
        x = self.embedding.lookup(
            m.embedding, m.context.own(inputs.input_ids), types, seam.own(m.context.own(factors)), beside
        )
        if self.has_position:
            x = self.position.embed(m.position, x, seam.own(m.context.own(context.table_positions)))
        x = self.embedding.finish(m.embedding, x, seam.own(context.real))
        return x if context.drops is None else context.drops.drop_embedding(x)

    def _sum_loss(self, m: Weights, hidden: Tensor, targets: Tensor, loss: TokenLoss) -> tuple[Tensor, dict[str, Any]]:
        """Compute the loss of a head, whose vocabulary may be divided over ranks."""
        if m.seam.size == 1:
            return sum_loss(m.head, hidden, targets, loss)
        if not self.head.predicts_tokens:
            total, terms = sum_loss(m.head, hidden, targets, loss)
            return m.seam.own_share(total), terms
        return sum_loss(m.head, hidden, targets, spread_loss(loss, m.seam, self.vocab_size))


class Encoder(Tower, kind="encoder"):
    """An encoder, in which every token sees every other (Devlin et al., 2018, BERT)."""

    causal: ClassVar[bool | None] = False

    def check_inputs(self, inputs: Inputs) -> None:
        super().check_inputs(inputs)
        if inputs.cache is not None:
            raise ConfigError("cache: an encoder reads whole rows, and so uses no cache (leave it out)")
        if inputs.prefix is not None:
            raise ConfigError("prefix: an encoder's tokens all see one another (leave it out)")
