"""Memory, explained from what is kept of each parameter and of each token.

What a layer keeps is read off its own forward pass, run on shadows with traced dimensions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from zoo.analysis.explain.line import Line, Sheet, count_layers
from zoo.analysis.explain.terms import Number, Term, call, name_number, symbol, term, total
from zoo.costs.activations import PassShape, Section, list_sections
from zoo.costs.generating import generating
from zoo.costs.memory import CHUNK
from zoo.costs.parallel import Stage, fullest, stages
from zoo.costs.setup import DTYPES, Setup
from zoo.costs.states import VALUES, count_sharded, states, widths

PRECISIONS = {
    "mixed": "a master copy and states in fp32 (Rajbhandari et al., 2020, ZeRO)",
    "megatron": "gradients, a master copy and states in fp32 (Megatron-LM)",
    "fp32": "everything in fp32",
    "amp": "everything in fp32, products in copies (torch.autocast)",
    "pure": "everything in the weights' dtype (torch.optim)",
}
RECOMPUTED = {
    "none": "what autograd keeps of the forward pass",
    "selective": "all but attention's inside, which is computed again (Korthikanti et al., 2022)",
    "full": "each layer's input, the rest computed again (Chen et al., 2016)",
}
BYTES = "bytes"


class Memory:
    """Write the lines of one model and set-up."""

    def __init__(self, spec: Any, model: Any, setup: Setup, figures: Mapping[str, Any]) -> None:
        self.spec, self.model, self.setup, self.figures = spec, model, setup, figures
        self.found = figures["memory"]
        self.sheet = Sheet("Memory")
        self.context, self.batch = name_number("context", setup.tokens(model)), name_number("batch", setup.batch)
        self.split = symbol("tp", setup.tp) * symbol("cp", setup.cp)

    def lines(self) -> list[Line]:
        self.stays = self._states()
        passes = self._passes()
        kept = {name: self._kept(name, section) for name, section in passes.items()}
        self._activations(passes, kept)
        self._loss()
        self.sheet.add("step", self.found["step"], BYTES, "what the update itself takes", "memory.step")
        self._train_peak(passes, kept)
        if "generate_peak" in self.found:
            self._generate_peak()
        return self.sheet.lines

    # ---------------------------------------------------------------- states

    def _states(self) -> list[Term]:
        """Add the weights, gradients and optimizer states of the fullest rank, which stay for a whole step."""
        stage, found = fullest(self.spec, self.setup), states(self.spec, self.setup)
        why = PRECISIONS[self.setup.precision]
        weight, gradient, _, master = widths(self.setup)
        source = "total" if self.setup.ranks == 1 else "of the fullest rank, before ZeRO"
        whole = self.sheet.add("parameters", found["parameters"], "parameters", source)

        def part(since: int) -> Number:
            count = count_sharded(stage.pieces, self.setup, since)
            return whole if count == whole.number else symbol(f"parameters, ZeRO {self.setup.zero}", count)

        width = lambda size: symbol("bytes of each", size)  # noqa: E731
        weights = self.sheet.add("weights", part(3) * width(weight), BYTES, why, "memory.weights")
        self.gradients = self.sheet.add("gradients", part(2) * width(gradient), BYTES, why, "memory.gradients")
        copy = self.sheet.add("master", part(1) * width(master), BYTES, "fp32 copy of weights", "memory.master")
        own = self._optimizer(part(1), found["optimizer"] - found["master"])
        optimizer = self.sheet.sum("optimizer", [own, copy], BYTES, "states and master copy", "memory.optimizer")
        more = [symbol(name, found[name]) for name in ("cast", "gathered") if found[name]]
        return [weights, optimizer, *more]

    def _optimizer(self, elements: Number, found: int) -> Number:
        name, each = self.setup.optimizer, VALUES.get(self.setup.optimizer)
        if each is None or self.setup.zero in (1, 2):
            return self.sheet.add("states", found, BYTES, f"{name}: counted tensor by tensor")
        made = elements * symbol("values", each) * symbol("bytes of each", widths(self.setup)[2])
        return self.sheet.add("states", made, BYTES, f"{name}: so many values of each parameter")

    # ---------------------------------------------------------------- activations

    def _passes(self) -> dict[str, Section]:
        """The pieces of a pass, their bytes traced; plain where layers loop over a sequence, as each turn would be a
        term."""
        towers = self.spec.towers().values()
        loops = any(block.attention.state() for tower in towers for block in tower.blocks.values())
        run = PassShape(
            context=int(self.context) if loops else self.context,
            batch=int(self.batch) if loops else self.batch,
            dtype="fp32" if self.setup.precision in ("fp32", "amp") else self.setup.dtype,
            autocast=self.setup.dtype if self.setup.precision == "amp" else None,
            selective=self.setup.recompute == "selective",
        )
        return list_sections(self.spec if loops else self.model, run)

    def _kept(self, name: str, section: Section) -> Number:
        """Add the saved bytes of a section, with a line for each of its components."""
        label, layer = _label(name), "layer:" in name
        if layer and self.setup.recompute == "full":
            return self._layer(name, self.sheet.add(f"{label}, input", section.input, BYTES, RECOMPUTED["full"]))
        if self.setup.recompute == "full" and name.endswith("shared"):
            return self.sheet.add(f"{label}, read", section.input, BYTES, "what layers read when they run again")
        source = f"{RECOMPUTED[self.setup.recompute]}, one layer" if layer else RECOMPUTED["none"]
        parts = [self.sheet.add(f"{label} {what}", made, BYTES, source) for what, made in _components(section)]
        made = self.sheet.sum(f"{label}, kept", parts, BYTES, "each storage once")
        return self._layer(name, made) if layer else made

    def _layer(self, name: str, made: Number) -> Number:
        place = name.replace("layer:", "")
        if place in self.found["activations_by_layer"]:
            figure = f"memory.activations_by_layer.{place}"
            return self.sheet.add(f"{_label(name)}, each", made, BYTES, "", figure)
        return made

    def _activations(self, passes: Mapping[str, Section], kept: Mapping[str, Number]) -> None:
        stage = max(stages(self.spec, self.setup), key=lambda each: self._of_stage(each, kept).value)
        made = self._of_stage(stage, kept) / self.split
        source = "sequence parallelism divides by tp (Korthikanti et al., 2022)" if self.setup.ranks > 1 else ""
        self.activations = self.sheet.add("activations", call("round", made), BYTES, source, "memory.activations")

    def _of_stage(self, stage: Stage, kept: Mapping[str, Number]) -> Term:
        """Sum a pipeline stage's layers for each micro-batch in flight, and its embedding or head."""
        names = {name.split(".")[-1]: [] for name in kept} | {"embedding": [], "shared": [], "head": []}
        for name, made in kept.items():
            names[name.split(".")[-1]].append(made)
        own = []
        for where, kind, count in stage.layers():
            key = f"{where}.layer:{kind}" if where else f"layer:{kind}"
            whole = count_layers(self.model.towers()[where], kind)
            own.append((whole if whole.value == count else symbol("layers of the stage", count)) * kept[key])
        if stage.index == 0:
            own += [*names["embedding"], *names["shared"]]
        flight = symbol("in flight", stage.in_flight) if stage.of > 1 else Number(1)
        last = names["head"] if stage.index == stage.of - 1 else []
        return total((total(own) * flight, *last))

    # ---------------------------------------------------------------- the loss, and peaks

    def _loss(self) -> None:
        if "loss_head" not in self.found:
            return
        values = symbol("vocab_size", self.spec.vocab_size) * term(self.batch) * term(self.context) / self.split
        made = values * 12
        why = "logarithms of chances, their gradient and the logits', in fp32"
        if self.setup.chunked_loss:
            width = 4 if self.setup.precision == "fp32" else DTYPES[self.setup.dtype]
            made = call("min", values * width, CHUNK) + call("min", values * 4, CHUNK)
            why = "logits of a chunk, and the fp32 of their softmax"
        self.sheet.add("loss_head", call("round", made), BYTES, why, "memory.loss_head")

    def _train_peak(self, passes: Mapping[str, Section], kept: Mapping[str, Number]) -> None:
        where, stays = self.found["peak_at"], total(self.stays)
        rest = self.found["train_peak"] - round(stays.value)
        why, made = f"activations and gradients in the backward pass of the {where}", term(rest)
        if where == "step":
            why, made = "while weights are updated", self.gradients + symbol("step", self.found["step"])
        elif where == "loss" and self.setup.ranks == 1 and not self.setup.chunked_loss:
            (last,) = (name for name in passes if name.split(".")[-1] == "loss")
            head = kept[last.removesuffix("loss") + "head"]
            made = self.activations - head + symbol("loss, backward", passes[last].peak)
        moment = self.sheet.add(f"at the {where}", made, BYTES, why)
        self.sheet.sum("train_peak", [*self.stays, moment], BYTES, "the most at once", "memory.train_peak")

    def _generate_peak(self) -> None:
        found = generating(self.spec, self.setup)
        if self.setup.ranks == 1:
            width = symbol("bytes of each", DTYPES[self.setup.dtype])
            weights = symbol("parameters", self.figures["params"]["total"]) * width
        else:
            weights = symbol("weights of the fullest rank", found["weights"])
        why = "traced without gradients: prompts up to the first logits, or a token"
        prefill = self.sheet.add("alive beside them", found["prefill"], BYTES, why)
        cache = self.sheet.add("KV cache", found["kv_cache"], BYTES, "of the fullest rank", "memory.kv_cache")
        made = call("round", weights + cache + prefill)
        why = "weights, cache, and the most alive at once beside them"
        self.sheet.add("generate_peak", made, BYTES, why, "memory.generate_peak")


def _label(name: str) -> str:
    return name.replace("layer:layer", "layer").replace("layer:", "")


def _components(section: Section) -> Iterator[tuple[str, Term]]:
    """Sum the bytes by component, which is the part of a name before its first dot or slash."""
    found: dict[str, list[Term]] = {}
    for each in section.kept:
        found.setdefault(re.split(r"[./]", each.name)[0], []).append(term(each.bytes))
    yield from ((name, total(made)) for name, made in found.items())


def list_memory_lines(spec: Any, model: Any, setup: Setup, figures: Mapping[str, Any]) -> list[Line]:
    """List the lines of the figures' `memory`."""
    return Memory(spec, model, setup, figures).lines()
