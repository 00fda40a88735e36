"""Explain memory from the states of each parameter and the activations of each token.

A layer's saved activations are traced: its own forward pass runs on shadows with traced dimensions.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from zoo.analysis.explain.line import Line, Sheet, count_layers
from zoo.analysis.explain.terms import Number, Term, name_number, symbol, term, total
from zoo.costs.activations import Section, list_sections
from zoo.costs.again import keeps_input, mark_layers, read_every
from zoo.costs.generating import generating
from zoo.costs.memory import name_layers, shape_pass, sum_ends
from zoo.costs.rank_tensors import ChunkActivations, find_activations, fullest, stages, sum_chunks
from zoo.costs.rows import Priced
from zoo.costs.setup import DTYPES, Setup
from zoo.costs.shorter_passes import list_looping
from zoo.costs.states import PASSING, StateRow, list_state_rows, states
from zoo.costs.train_peak import STAYS, count_loss, find_fullest, find_head
from zoo.costs.transient import GenerationShape, measure_peaks
from zoo.costs.tuning import TunedModel
from zoo.costs.zero_shards import widths

PRECISIONS = {
    "mixed": "a master copy and states in fp32 (Rajbhandari et al., 2020, ZeRO)",
    "bf16_master": "gradients, a master copy and states in fp32 (Megatron-LM; Zoo)",
    "fp32": "everything in fp32",
    "bf16": "everything in fp32, products in copies (torch.autocast)",
    "bf16_pure": "everything in the weights' dtype (torch.optim; Zoo)",
}
RECOMPUTED = {
    "none": "what autograd keeps of the forward pass",
    "selective": "all but attention's inside, which is computed again (Korthikanti et al., 2022)",
    "full": "each layer's input, the rest computed again (Chen et al., 2016)",
}
BYTES = "bytes"


class Memory:
    """Write the lines on memory for one model and set-up."""

    def __init__(
        self, spec: Priced, model: Priced, setup: Setup, figures: Mapping[str, Any], tuned: TunedModel | None = None
    ) -> None:
        self.spec, self.model, self.setup, self.figures = spec, model, setup, figures
        self.traced, self.tuned = tuned, setup.tune(spec)  # how the run tunes the traced model, and the model
        self.trained = model if tuned is None else tuned.spec
        self.found = figures["memory"]
        self.sheet = Sheet("Memory")
        self.marked = mark_layers(spec if self.tuned is None else self.tuned.spec, setup.recompute)
        self.context, self.batch = name_number("context", setup.tokens(model)), name_number("batch", setup.batch)
        self.loops = bool(list_looping(spec.towers().values()))
        self.split = symbol("tp", setup.tp) * symbol("cp", setup.cp)

    def lines(self) -> list[Line]:
        self._states()
        passes = self._passes()
        kept = {name: self._kept(name, section) for name, section in passes.items()}
        self._activations(kept)
        self._loss()
        self._step()
        self._train_peak(passes)
        if "generate_peak" in self.found:
            self._generate_peak()
        return self.sheet.lines

    # ---------------------------------------------------------------- states

    def _states(self) -> None:
        """Add the weights, gradients and optimizer states of the fullest rank."""
        stage, self.held = fullest(self.spec, self.setup), states(self.spec, self.setup)
        tuned, found, why = self.tuned, self.held, PRECISIONS[self.setup.precision]
        pieces = stage.pieces if tuned is None else tuned.list_own(stage.pieces)
        rows = list_state_rows(pieces, self.setup, None if tuned is None else tuned.trained(stage.pieces))
        source = "total" if self.setup.ranks == 1 else "of the fullest rank, before ZeRO"
        whole = self.sheet.add("parameters", found["parameters"], "parameters", source)

        def trace(row: StateRow) -> Term:
            count = row.elements
            name = f"parameters, ZeRO {self.setup.zero}" if self.setup.zero else "parameters that train"
            if count != found["learning"] and not self.setup.zero:
                name = "parameters in this dtype"
            elements = whole if count == whole.number else symbol(name, count)
            values = row.values if row.values == 1 and row is not rows.get("states") else symbol("values", row.values)
            return StateRow(elements, symbol("bytes of each", row.width), values).bytes

        made = trace(rows["weights"])
        if tuned is not None and tuned.held:
            made = made + symbol("frozen weights as they are stored", tuned.held)
        weights = self.sheet.add("weights", made, BYTES, why, "memory.weights")
        self.sheet.add("gradients", trace(rows["gradients"]), BYTES, why, "memory.gradients")
        copy = self.sheet.add("master", trace(rows["master"]), BYTES, "fp32 copy of weights", "memory.master")
        made, how = term(found["optimizer"] + found["offloaded"] - found["master"]), "counted tensor by tensor"
        if "states" in rows:
            made, how = trace(rows["states"]), "so many values of each parameter"
        away = self.setup.offload == "states"
        what, figure = ("offloaded", "memory.offloaded") if away else ("states", "")
        own = self.sheet.add(what, made, BYTES, f"{self.setup.optimizer}: {how}", figure)
        parts, why = (
            ([copy], "the master copy, states are the host's") if away else ([own, copy], "states and master copy")
        )
        optimizer = self.sheet.sum("optimizer", parts, BYTES, why, "memory.optimizer")
        self.lines_of = {"weights": weights, "optimizer": optimizer}

    def _list_stays(self, held: Mapping[str, Any]) -> list[Number]:
        """List the bytes that stay allocated throughout a step (STAYS), on the stage with the highest peak. A size that
        equals a line above refers to that line; the lines above are of the stage with most parameters."""
        found = [(name, held[name], self.lines_of.get(name)) for name in STAYS if held[name]]
        return [line if line and line.number == size else symbol(name, size) for name, size, line in found]

    # ---------------------------------------------------------------- activations

    def _passes(self) -> dict[str, Section]:
        """Trace the sections of a pass. Their bytes are Traced, or plain numbers if a layer loops over the sequence,
        because each iteration would add a term."""
        context, batch = (int(self.context), int(self.batch)) if self.loops else (self.context, self.batch)
        marked = self.marked if self.loops else mark_layers(self.trained, self.setup.recompute)
        tuned = self.tuned if self.loops else self.traced
        return list_sections(marked, shape_pass(self.setup, context, batch)._replace(model=tuned))

    def _kept(self, name: str, section: Section) -> Number:
        """Add the saved bytes of a section, with a line for each of its components."""
        label, layer = _label(name), "layer:" in name
        if keeps_input(name, self.setup.recompute):
            if layer:
                kept = self.sheet.add(f"{label}, input", section.input, BYTES, RECOMPUTED["full"])
                if section.lent:
                    lent = self.sheet.add(f"{label}, lent", section.lent, BYTES, "what later layers read of it")
                    kept = self.sheet.sum(f"{label}, kept", [kept, lent], BYTES, "each storage once")
                return self._layer(name, kept)
            return self.sheet.add(f"{label}, read", section.input, BYTES, "what layers read when they run again")
        recomputed = "none" if read_every(self.setup.recompute) else self.setup.recompute
        source = f"{RECOMPUTED[recomputed]}, one layer" if layer else RECOMPUTED["none"]
        parts = [self.sheet.add(f"{label} {what}", made, BYTES, source) for what, made in _components(section)]
        made = self.sheet.sum(f"{label}, kept", parts, BYTES, "each storage once")
        return self._layer(name, made) if layer else made

    def _layer(self, name: str, made: Number) -> Number:
        place = name.replace("layer:", "")
        if place in self.found["activations_by_layer"]:
            figure = f"memory.activations_by_layer.{place}"
            return self.sheet.add(f"{_label(name)}, each", made, BYTES, "", figure)
        return made

    def _activations(self, kept: Mapping[str, Number]) -> None:
        """Add the activations on the fullest rank as a line."""
        numbers = {name: made.value for name, made in kept.items()}
        found = find_activations(self.marked, self.setup, name_layers(self.marked, numbers), *sum_ends(numbers))
        each, (first, last) = name_layers(self.marked, kept), sum_ends(kept)
        chunks = [
            ChunkActivations(
                tuple(
                    (where, kind, self._count(where, kind, n), each[where, kind]) for where, kind, n, _ in one.layers
                ),
                first if one.first else term(0),
                last if one.last else term(0),
                self.split,
                symbol("gathered from other ranks", one.gathered) if one.gathered else term(0),
                symbol("in flight", one.in_flight) if self.setup.pp > 1 else term(1),
            )
            for one in found
        ]
        source = "sequence parallelism divides by tp (Korthikanti et al., 2022)" if self.setup.ranks > 1 else ""
        self.sheet.add("activations", round(sum_chunks(chunks)), BYTES, source, "memory.activations")

    def _count(self, where: str, kind: str, count: int) -> Term:
        if read_every(self.setup.recompute):
            return symbol("layers", count)
        whole = count_layers(self.trained.towers()[where], kind)
        return whole if whole.value == count else symbol("layers of the stage", count)

    # ---------------------------------------------------------------- the update, the loss, and peaks

    def _step(self) -> None:
        """Add the scratch memory of the update. If it is a whole number of bytes for each parameter, or for each
        element of the largest tensor, the line shows this product."""
        found, width = self.found["step"], symbol("bytes of each", widths(self.setup)[2])
        made, why = term(found), f"temporaries of {self.setup.optimizer}, counted tensor by tensor"
        if found and found % width.number == 0:
            count = found // width.number
            if count == self.held["learning"]:
                name = "parameters" if count == self.held["parameters"] else "parameters that train"
                made, why = symbol(name, count) * width, "a temporary for each parameter (foreach)"
            elif self.setup.decay != "uniform":
                why = (
                    f"{self.setup.optimizer}'s temporaries, or those of {self.setup.decay} decay with a copy of weights"
                )
            elif self.setup.optimizer in PASSING:
                times = symbol("temporaries", PASSING[self.setup.optimizer])
                largest = symbol("elements of the largest tensor", count // times.number)
                made, why = times * largest * width, "the update goes tensor by tensor"
        elif not found:
            why = "the update works in place"
        self.sheet.add("step", made, BYTES, why, "memory.step")

    def _loss(self) -> None:
        if "loss_head" not in self.found:
            return
        head = find_head(self.spec)
        name = "vocab_size" if head.predicts_tokens else "outputs of the head"
        values = symbol(name, head.n_logits) * term(self.batch) / self.split
        if not head.reads_rows:
            values = symbol(name, head.n_logits) * term(self.batch) * term(self.context) / self.split
        why = "log-probabilities, their gradient and the logits', in fp32"
        if self.setup.chunked_loss:
            why = "logits of a chunk, and the fp32 of their softmax"
        self.sheet.add("loss_head", round(count_loss(values, self.setup)), BYTES, why, "memory.loss_head")

    def _train_peak(self, passes: Mapping[str, Section]) -> None:
        where = self.found["peak_at"]
        # with plain numbers: a formula would name each tensor
        plain = {name: Section(section.kept, *map(int, section[1:])) for name, section in passes.items()}
        pipeline = stages(self.spec, self.setup)
        held = functools.cache(lambda index: states(self.spec, self.setup, pipeline[index], self.tuned))
        marked = stages(self.marked, self.setup)
        step = find_fullest(self.marked, self.setup, plain, marked, held, tuned=self.tuned)
        why = f"activations and gradients in the backward pass of the {where}"
        if where == "step":
            why = "while weights are updated"
        parts = [symbol(name, size) for name, size in step.moments[where].items() if size]
        moment = self.sheet.sum(f"at the {where}", parts, BYTES, why)
        stays = self._list_stays(step.held)
        self.sheet.sum("train_peak", [*stays, moment], BYTES, "the most at once", "memory.train_peak")

    def _alive(self, found: int) -> Number:
        """Add the peak of generating, without weights and cache. The line has a formula in the model's dimensions only
        for a single rank whose layers do not loop over the sequence."""
        made = term(found)
        if self.setup.ranks == 1 and not self.loops:
            run = GenerationShape(self.context, self.batch, self.setup.dtype, self.setup.cache_dtype)
            peaks = [term(each) for each in measure_peaks(self.model, run)]
            made = next((each for each in peaks if each.value == found), made)
        why = "the most at once without gradients: prompts up to the first logits, or a token"
        return self.sheet.add("activations, generating", made, BYTES, why, "memory.generate_activations")

    def _generate_peak(self) -> None:
        found = generating(self.spec, self.setup)
        if self.setup.ranks == 1:
            width = symbol("bytes of each", DTYPES[self.setup.dtype])
            weights = symbol("parameters", self.figures["params"]["total"]) * width
        else:
            weights = symbol("weights of the fullest rank", found["weights"])
        prefill = self._alive(found["prefill"])
        cache = self.sheet.add("KV cache", found["kv_cache"], BYTES, "of the fullest rank", "memory.kv_cache")
        lines = {"weights": weights, "kv_cache": cache, "prefill": prefill}
        made = round(total(lines[name] for name in found if name != "total"))
        why = "weights, cache, and the most alive at once beside them"
        self.sheet.add("generate_peak", made, BYTES, why, "memory.generate_peak")


def _label(name: str) -> str:
    return name.replace("layer:layer", "layer").replace("layer:", "")


def _components(section: Section) -> Iterator[tuple[str, Term]]:
    """Sum the saved bytes by component: the part of a tensor's name before its first dot or slash."""
    found: dict[str, list[Term]] = {}
    for each in section.kept:
        found.setdefault(re.split(r"[./]", each.name)[0], []).append(term(each.bytes))
    yield from ((name, total(made)) for name, made in found.items())
