# B sequences, T tokens of each, D model width
"""Count activation memory to the byte: the tensors that autograd saves in a forward pass for the backward pass.

The model's own forward pass runs on shadows, tensors without values (`zoo.costs.shadow`). Each kind of layer runs once,
however deep the model is. The tape records the tensors that a component's `forward` saves; no component lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

from zoo.costs.again import AGAIN, name_stored
from zoo.costs.rank_model import context_faults
from zoo.costs.rows import Priced
from zoo.costs.setup import COMPUTED
from zoo.costs.shadow.backward import replay_backward
from zoo.costs.shadow.dtypes import INT64
from zoo.costs.shadow.names import DTYPES
from zoo.costs.shadow.reductions import cross_entropy
from zoo.costs.shadow.replay import replace_torch
from zoo.costs.shadow.shadow import Shadow
from zoo.costs.shadow.shadow_context import make_context
from zoo.costs.shadow.shadow_layer import ShadowDrops, ShadowLayer
from zoo.costs.shadow.tape import NeededGradients, Storage, Tape, TapeNode, named_failures, taping
from zoo.costs.shadow.tensor import collect_saved, find_reached, make_shadow
from zoo.costs.shorter_passes import extrapolate, trace_shorter
from zoo.costs.tuning import TunedModel
from zoo.model.block.base import Block
from zoo.model.channels import Channel, Shadows
from zoo.model.step import Step
from zoo.model.tower import Tower

INPUT = "input"
"""The name of the input tensor of a layer, of the head and of the loss."""


class Kept(NamedTuple):
    """The memory of a saved tensor. Views that share this memory are counted once."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int


class Section(NamedTuple):
    """One section of a pass: its saved tensors (`kept`), and its memory in bytes.

    `bytes` is the size of the saved tensors, `input` the size of the section's input. `forward` is the peak of the
    forward pass, `peak` the peak of the backward pass, with saved tensors and all gradients; `moving` is `peak` without
    weights' gradients. `gradients` is the size of the weights' gradients, `beside` the size of the gradients of tensors
    that all layers read (a bias, an encoder's output). `input_peak` and `between` are of a backward pass in two halves
    (`Undone`). `lent` is the size of the keys, values and depth averages that later layers read.
    """

    kept: tuple[Kept, ...]
    bytes: int
    input: int = 0
    forward: int = 0
    peak: int = 0
    gradients: int = 0
    moving: int = 0
    beside: int = 0
    input_peak: int = 0
    between: int = 0
    lent: int = 0

    @property
    def keeps_input(self) -> bool:
        """Whether the section saves its input."""
        return any(each.name == INPUT for each in self.kept)


class PassShape(NamedTuple):
    """The shape of a forward pass: `batch` sequences of `context` tokens.

    `fused` is true for a CUDA device, false for a CPU. `dtype` is the dtype of weights, `autocast` the dtype of matrix
    products under autocast (None: no autocast). With `selective` the backward pass recomputes the inside of attention.
    `kernel` is the attention kernel. `model` says which weights train, and which adapters and dropout are added (None:
    all weights train, nothing is added). `cp` ranks divide the tokens, and all-gather keys and values. Activations are
    then summed over these ranks; weights and their gradients are those of one rank.
    """

    context: int
    batch: int = 1
    dtype: str = "bf16"
    fused: bool = True
    autocast: str | None = None
    selective: bool = False
    kernel: str = "auto"
    model: TunedModel | None = None
    cp: int = 1


def list_sections(spec: Priced, run: PassShape) -> dict[str, Section]:
    """Trace a pass and list its sections by name.

    - "embedding"
    - "shared": tensors that all layers read, such as rotary tables, masks and biases. Its `input` also counts unsaved
      tensors; with `every_n` it counts only the tensors that recomputed layers read.
    - "layer:<kind>": one layer of each kind
    - "head": with the final norm
    - "loss": the head again, followed by cross-entropy in float32; only for models with logits

    In an encoder-decoder the names begin with "encoder." or "decoder.". A decoder with cross-attention and no encoder
    is given an encoder's output of `context` tokens. Raises UnknownOperation for a pass that uses a torch operation
    whose saved tensors are not listed.
    """
    run = run._replace(cp=1) if context_faults(spec, run.cp) else run  # no rank runs such a model: an even share
    shorter = trace_shorter(spec.towers().values(), run, partial(_traced, spec))
    return _traced(spec, run) if shorter is None else _traced(spec, run, loops=False) | _extended(spec, *shorter)


def list_needs(spec: Priced, run: PassShape) -> NeededGradients:
    """Trace a pass and note which gradients its backward pass computes."""
    with taping("cpu") as tape:
        trace_towers(tape, spec, run)
    return tape.needs


def _traced(spec: Priced, run: PassShape, *, loops: bool = True) -> dict[str, Section]:
    """Trace the sections of a pass, with or without the layers that loop over the sequence."""
    low = None if run.autocast in (None, run.dtype) else DTYPES[COMPUTED[run.autocast]]
    with taping("cuda" if run.fused else "cpu", selective=run.selective, autocast=low) as tape:
        return trace_towers(tape, spec, run, loops=loops)


def trace_towers(tape: Tape, spec: Priced, run: PassShape, *, loops: bool = True) -> dict[str, Section]:
    """Trace the towers' passes onto a tape; return their sections. A decoder reads its encoder's hidden states."""
    found: dict[str, Section] = {}
    memory = None
    for name, tower in spec.towers().items():
        trace = TowerTrace(tape, tower, name, run)
        with named_failures(f"{tower.axis}={tower.kind}"):
            memory = trace.run(make_memory(tower, run) if memory is None else memory, loops)
        found |= trace.found
    return found


def make_memory(tower: Tower, run: Any) -> Any:
    """Make the shadow of an encoder's output [B, `run.context`, width]; None for a tower that reads no encoder."""
    if not tower.reads_memory:
        return None
    return make_shadow((run.batch, run.context, tower.memory_width), DTYPES[COMPUTED[run.dtype]], "memory")


# ---------------------------------------------------------------- long sequences through loops


def _extended(spec: Priced, traces: list[dict[str, Section]], far: int) -> dict[str, Section]:
    """Extrapolate the sections of looping layers from traces of shorter passes. Saved tensors are summed by name. The
    peak is an upper bound: `moving` plus the gradients of all weights."""
    b = traces[-1]

    def at(figure: Callable[[Section], int]) -> int:
        return extrapolate([figure(each[name]) for each in traces], far)

    found = {}
    for name in _looping(spec):
        sums = {key: at(lambda each, key=key: _by_name(each.kept).get(key, 0)) for key in _by_name(b[name].kept)}
        kept = tuple(Kept(key[0], (), key[1], size) for key, size in sums.items())
        moving, left = at(attrgetter("moving")), b[name].gradients
        size, given, forward = (at(attrgetter(field)) for field in ("bytes", "input", "forward"))
        halves = (at(attrgetter(field)) for field in ("input_peak", "between"))
        found[name] = Section(kept, size, given, forward, moving + left, left, moving, b[name].beside, *halves)
    return found


def _looping(spec: Priced) -> list[str]:
    """Name the sections of layers whose mixer loops, and "shared" if such a mixer also has softmax attention."""
    names = []
    for name, tower in spec.towers().items():
        prefix = f"{name}." if name else ""
        loops = {kind: block.attention for kind, block in tower.blocks.items() if block.attention.passes.loops}
        names += [f"{prefix}layer:{kind}" for kind in loops]
        names += [f"{prefix}shared"] if any(mixer.cache() for mixer in loops.values()) else []
    return names


def _by_name(kept: Iterable[Kept]) -> dict[tuple[str, str], int]:
    sums: dict[tuple[str, str], int] = {}
    for each in kept:
        sums[each.name, each.dtype] = sums.get((each.name, each.dtype), 0) + each.bytes
    return sums


# ---------------------------------------------------------------- one pass


class TowerTrace:
    """Trace a tower's pass, section by section. `layers` has for each kind the operations of one layer, first to last,
    and the layer's result. `ends` has the operations "before" and "after" the layers, and the operations that make the
    vectors that layers read "beside" their stream."""

    def __init__(self, tape: Tape, tower: Tower, where: str, shape: PassShape) -> None:
        self.tape, self.tower, self.where, self.shape, self.model = tape, tower, where, shape, shape.model
        tuning, dtype = None if self.model is None else self.model.ends[where], DTYPES[COMPUTED[shape.dtype]]
        self.layer = ShadowLayer(tower, tower.d_model, dtype, kernel=shape.kernel, tuning=tuning)
        self.prefix = f"{where}." if where else ""
        self.found: dict[str, Section] = {}
        self.ranks = make_context(shape.cp)
        self.layers: dict[str, tuple[list[TapeNode], Any]] = {}
        self.ends: dict[str, list[TapeNode]] = {}
        self.given: dict[str, dict[str, Any]] = {name: {} for name in tower.channels}  # channel → kind → value
        self.saved: dict[str, bool] = {}  # channel → whether the layer that gives the value saves it as well

    def run(self, memory: Any, loops: bool) -> Any:
        """Trace the whole pass; return the hidden states after the final norm."""
        self.tape.section = self.where, None
        m, begun = self.layer, self.tape.begin()
        ids = make_shadow((self.shape.batch * self.shape.cp, self.shape.context), INT64, "ids")
        x, forward = self._begin(ids, memory)
        with self.tape.inside("embedding.per_layer"):
            given = replace_torch(self.tower.embedding).layer_inputs(m, self.ranks.own(ids), x) or ()
        with self.tape.inside("streams"):
            x = x if self.tower.streams is None else replace_torch(self.tower.streams).expand(m.streams, x)
        self.file("embedding", begun, [x, *given], ids)
        self.ends = {"before": find_reached([x], begun[0]), "beside": find_reached(given, begun[0])}
        begun = self.tape.begin()
        steps: dict[str, Any] = {}
        for name in self.tower.blocks:  # kinds that are split for pricing only share one step
            same = next((other for other in steps if name_stored(other) == name_stored(name)), None)
            steps[name] = forward.step(name, m.kernel, x, m) if same is None else steps[same]
        for channel in (name for name in self.tower.channels if Channel.named[name].shared):
            value = self._trace(channel, "", x)
            for name, step in steps.items():
                step.taken = {**(step.taken or {}), channel: value if channel in self.tower.uses[name].reads else None}
        shared = collect_saved(find_reached((each for step in steps.values() for each in _shared(step)), begun[0]))
        blocks = self.tower.blocks
        # givers of a value before its readers: by how many ordered channels (`Channel.ordered`) a kind reads
        for name in sorted(blocks, key=lambda kind: sum(Channel.named[n].ordered for n in self.tower.uses[kind].reads)):
            block = blocks[name]
            if loops or not block.attention.passes.loops:
                shared |= self._layer(name, block, steps[name].for_layer(None, forward.drops), x)
        again = {name: step for name, step in steps.items() if name.endswith(AGAIN)} or steps
        read = shared | {each.storage: None for step in again.values() for each in _shared(step)}
        self.found[f"{self.prefix}shared"] = Section(*self._describe(shared), input=sum(map(self._count, read)))
        return self._end(x.shape, x.dtype, ids)

    def _layer(self, name: str, block: Block, step: Step, x: Shadow) -> dict[Storage, None]:
        """Trace one layer of a kind; return the saved storages that all layers share."""
        begun = self.tape.begin()
        tuning = None if self.model is None else self.model.layers[self.where, name.removesuffix(AGAIN)]
        stream = make_shadow(x.shape, x.dtype, INPUT, grad=tuning is None or tuning.reached)
        layer = ShadowLayer(block, self.tower.d_model, self.layer.dtype, "", self.layer.kernel, tuning)
        reads, gives = self.tower.uses[name]
        own = {each: self._trace(each, name, stream) for each in reads if not Channel.named[each].shared}
        step.taken, step.given = dict.fromkeys(self.tower.channels) | (step.taken or {}) | own, {}
        step.gives = tuple(each for each in gives if Channel.named[each].lends(self.tower, name_stored(name)))
        with self.tape.set(section=(self.where, name)):
            y = layer(stream, step)
        self.layers[name] = find_reached([y], begun[0]), y
        given = [each for value in step.given.values() for each in _flatten(value)]
        taken = {
            each.storage: None
            for channel, value in own.items()
            if self.saved.get(channel, True)
            for each in _flatten(value)
        }
        roots = [y, *(loss for _, loss in step.losses), *given]
        saved = self.file(
            f"layer:{name}", begun, roots, stream, {each.storage for each in _shared(step)} | taken.keys()
        )
        for channel, value in step.given.items():
            kept = collect_saved(find_reached([*_flatten(value), y], begun[0]))
            self.saved[channel] = any(each.storage in kept for each in _flatten(value))
            self.given[channel][name_stored(name)] = value
        if given:
            section, lent = self.prefix + f"layer:{name}", {each.storage: None for each in given}
            self.found[section] = self.found[section]._replace(lent=sum(each.nbytes for each in lent))
        return {each: None for each in saved if each not in taken}

    def _trace(self, channel: str, kind: str, x: Shadow) -> Any:
        """Make a shadow of a channel's value, as layers of `kind` read it ("": all layers). x [B, T, D] is a layer's
        input."""
        return Channel.named[channel].trace(Shadows(self.tower, kind, x, _make, self.given[channel]))

    def _begin(self, ids: Any, memory: Any) -> tuple[Any, Any]:
        """Make the layers' input and the ForwardContext, as `Tower.run` does."""
        from zoo.model.context import ForwardContext
        from zoo.model.step import Inputs

        m, tower, ranks = self.layer, replace_torch(self.tower), self.ranks
        read = tower.embedding
        with self.tape.inside("embedding"):
            factors, beside = read.weigh(ids, None, None), read.list_beside(ids, None, None)
            x = read.lookup(m.embedding, ranks.own(ids), None, ranks.own(factors), ranks.own(beside))
        drops = self.model and ShadowDrops(self.model.ends[self.where].whole.drops)
        inputs = Inputs(ids, memory=memory if tower.causal else None)
        context = replace_torch(ForwardContext)(tower, inputs, context=ranks, drops=drops)
        if tower.has_position:
            with self.tape.inside("position"):
                x = tower.position.embed(m.position, x, ranks.own(context.table_positions))
        with self.tape.inside("embedding"):
            x = tower.embedding.finish(m.embedding, x, context.real)
        return x if drops is None else drops.drop_embedding(x), context

    def _end(self, shape: Any, dtype: Any, ids: Shadow) -> Any:
        m, tower, begun = self.layer, self.tower, self.tape.begin()
        x = make_shadow(shape, dtype, INPUT, grad=self.model is None or self.model.reached[self.where])
        with self.tape.inside("streams"):
            single = x if tower.streams is None else replace_torch(tower.streams).collapse(m.streams, x)
        read: list[Storage] = []  # storages that the layers' sections count already
        if last := tower.last_read:
            value = self._trace(last[0], "", x)
            single, read = m.final_read(single, value), [each.storage for each in _flatten(value)]
        hidden = m.norm(single) if tower.has_final_norm else single
        hidden = m.project(hidden) if tower.out_width else hidden
        head = replace_torch(tower.head)
        logits = m.head(head.gather(hidden, head.mark(ids, None)))
        self.file("head", begun, [hidden if logits is None else logits], x, read)
        self.ends["after"] = find_reached([hidden if logits is None else logits], begun[0])
        if logits is not None:
            targets = make_shadow((logits.shape[0] * logits.shape[1],), INT64, "targets")
            loss = cross_entropy(logits.float().flatten(0, 1), targets)
            self.file("loss", begun, [loss], x, read)
        return hidden

    def file(
        self, name: str, begun: tuple[int, int], roots: list[Any], given: Any, shared: Collection[Storage] = ()
    ) -> dict[Storage, None]:
        """Add the operations since `begun` as the section `name`: `roots` are its results, `given` its input. The
        section leaves out `shared` storages; those of them that its operations save are returned."""
        operations, live = begun
        nodes = find_reached(roots, operations)
        storages = collect_saved(nodes)
        own = [each for each in storages if each not in shared]
        seeds = [each for each in roots if each.wants_grad]
        self.found[self.prefix + name] = Section(
            *self._describe(own), given.nbytes, self.tape.most - live, *replay_backward(nodes, seeds)
        )
        return {each: None for each in storages if each in shared}

    def _describe(self, storages: Iterable[Storage]) -> tuple[tuple[Kept, ...], int]:
        found = tuple(Kept(each.name, each.shape, each.dtype.name, self._count(each)) for each in storages)
        return found, sum(each.bytes for each in found)

    def _count(self, storage: Storage) -> int:
        """Count the bytes of a storage on all ranks of context parallelism. A tensor that all rows share, such as a
        mask, exists on every rank."""
        cp = self.shape.cp
        return storage.nbytes * cp if cp > 1 and storage.shape[:1] == (1,) else storage.nbytes


def _shared(step: Step) -> list[Any]:
    """List the tensors that all layers of a kind read."""
    found: list[Any] = []
    for each in (step,) if step.cross is None else (step, step.cross):
        for part in each.keys.segments:
            found += [part.mask._dense, part.mask._additive, None if part.bias is None else part.bias._dense]
        found += [each.positions, each.memory, *(each.tables if isinstance(each.tables, tuple) else ())]
        found += [value for name, value in (each.taken or {}).items() if Channel.named[name].shared]
        for value in each.extra.values():  # hasattr asks the class, because a shadow itself raises UnknownOperation
            found += _flatten(value.list_shared() if hasattr(type(value), "list_shared") else value)
    return [each for each in found if hasattr(each, "storage")]


def _make(shape: Any, dtype: Any, name: str, grad: bool) -> Any:
    return make_shadow(shape, DTYPES[dtype] if isinstance(dtype, str) else dtype, name, grad=grad)


def _flatten(value: Any) -> list[Any]:
    """List the shadows in a channel's value: one, or a tuple of them."""
    return [each for each in (value if isinstance(value, tuple) else (value,)) if each is not None]
