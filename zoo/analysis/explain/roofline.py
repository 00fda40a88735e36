"""Explain the roofline from the FLOPs and bytes of each operator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from zoo.analysis.explain.line import Line, Sheet
from zoo.analysis.explain.terms import Number, Term, call, symbol, term
from zoo.costs.hardware import USABLE, SheetFigure, hardware, usable_bytes
from zoo.costs.operators import Chosen, Operator, operators
from zoo.costs.roofline import (
    TrainingStep,
    bound_run,
    bound_seconds,
    bound_training,
    count_own,
    count_rates,
    count_weights,
    count_work,
)
from zoo.costs.rows import Priced
from zoo.costs.setup import Setup

MAX = "the longer of compute and memory time (Williams et al., 2009)"
COVERED = "experts or rows used at least once, if tokens choose uniformly"
RATE = "tokens a second"

TRAINING = {
    "tokens": ("tokens of a step", "tokens", ""),
    "flops": ("FLOPs of a step", "FLOP", "recomputation left out"),
    "seconds": ("step", "s", "at that share of the peak (MFU, Chowdhery et al., 2022)"),
    "tokens_per_second": ("training speed", RATE, ""),
    "days": ("days", "days", ""),
    "gpu_hours": ("GPU-hours", "h", ""),
}
"""The name, unit and source of each figure of training."""


class Roofline:
    """Write the lines on the roofline of a set-up's GPU."""

    def __init__(self, spec: Priced, setup: Setup, figures: Mapping[str, Any]) -> None:
        self.spec, self.setup, self.figures = spec, setup, figures
        self.found = figures["roofline"]
        self.sheet = Sheet("Roofline")
        self.device = hardware(setup.gpu or "")
        self.context = symbol("context", setup.tokens(spec))
        self.batch, self.tp = symbol("batch", setup.batch), symbol("tp", setup.tp)

    def lines(self) -> list[Line]:
        own = self.device
        rate, width = own.tflops[self.setup.dtype], own.sizes["bandwidth_gb_s"]
        self.peak = self._sheet_figure("peak", rate, 1e12, "FLOP/s", "peak_flops_per_second")
        self.bandwidth = self._sheet_figure("bandwidth", width, 1e9, "bytes/s", "bandwidth_bytes_per_second")
        ridge = self.peak / self.bandwidth
        self.sheet.add("ridge", ridge, "FLOP a byte", "above this intensity compute is the limit", "roofline.ridge")
        for phase in ("decode", "prefill"):
            if phase in self.found:
                self._pass(phase)
        self._train()
        self._fits()
        return self.sheet.lines

    def _sheet_figure(self, name: str, found: SheetFigure, unit_of: float, unit: str, key: str) -> Number:
        checked = "" if found.checked else ", not checked"
        return self.sheet.add(name, found.value * unit_of, unit, f"{found.source}{checked}", f"roofline.{key}")

    # ---------------------------------------------------------------- generating

    def _pass(self, phase: str, *, expanded: bool = False) -> None:
        decode = phase == "decode"
        name, path = (f"{phase} expanded", f"{phase}.expanded") if expanded else (phase, phase)
        parts = operators(self.spec, self.setup, decode=decode, expanded=expanded)
        terms = {key: self._trace(name, key, part) for key, part in parts.items()}
        why = "each weight that is used, read once"
        read = self.sheet.add(f"{name} weights", count_weights(terms, self.batch), "bytes", why)
        why = "keys and values that the last query sees, and states"
        cache = self.sheet.add(f"{name} cache", count_own(terms, self.batch), "bytes", why)
        work = self._work(name, terms, f"roofline.{path}.flops")
        made = bound_seconds(work, read + cache, self.peak, self.bandwidth)
        seconds = self.sheet.add(f"{name} seconds", made, "s", MAX, f"roofline.{path}.seconds")
        tokens = term(1) if decode else self.context
        self._speed(name, path, tokens, seconds)
        if self.setup.tp == 1:
            self._closer(name, path, parts, tokens)
        if "expanded" in self.found[phase] and not expanded:
            self._pass(phase, expanded=True)

    def _speed(self, name: str, path: str, tokens: Term, seconds: Term) -> None:
        rates = count_rates(tokens, self.batch, symbol("dp", self.setup.dp), seconds)
        for key, label, why in (
            ("tokens_per_second", "speed", "upper bound"),
            ("tokens_per_second_each", "speed, each", "of one"),
        ):
            self.sheet.add(f"{name} {label}", rates[key], RATE, why, f"roofline.{path}.{key}")

    def _trace(self, name: str, key: str, part: Operator) -> Operator:
        """Copy an operator with terms for its numbers; add a line for weights that depend on the tokens' choice."""
        made = Operator(
            term(1) if part.new == 1 else symbol("new", part.new),
            core=part.core,
            flops=symbol(key, part.flops) if part.flops else term(0),
            own=symbol(f"{key} read", part.own) if part.own else term(0),
        )
        if not part.chosen:
            return replace(made, weights=symbol(f"{key} weights", part.weights) if part.weights else term(0))
        rest = symbol("the rest", part.weights) if part.weights else term(0)
        chosen = [Chosen(symbol("size", e.size), symbol("count", e.count), symbol("k", e.k)) for e in part.chosen]
        weights = replace(made, weights=rest, chosen=chosen).weight_bytes(self.batch)
        return replace(made, weights=self.sheet.add(f"{name} {key} weights", weights, "bytes", COVERED))

    def _work(self, name: str, parts: Mapping[str, Operator], figure: str) -> Number:
        """Give the FLOPs of the whole batch, from the FLOPs section if its convention is exact or hfu."""
        key = name.replace(" ", "_")
        counted = self.figures["flops"].get(key) if self.setup.convention in ("exact", "hfu") else None
        if counted is None:
            made = round(count_work(parts, self.batch))
            return self.sheet.add(f"{name} FLOPs", made, "FLOP", "of the operators", figure)
        made = symbol(f"flops.{key}", counted) * self.batch / self.tp
        return self.sheet.add(f"{name} FLOPs", call("round", made), "FLOP", "FLOPs above", figure)

    def _closer(self, name: str, path: str, parts: Mapping[str, Operator], tokens: Term) -> None:
        """Add the bound of each operator, and the sum of the bounds. For a pass with MLA's expanded keys, `price` has
        the sum alone, so the operators' lines name no figure."""
        times, written = [], "expanded" not in path
        for key, part in parts.items():
            work = symbol("flops", part.flops * self.setup.batch)
            read = symbol("bytes", part.bytes(self.setup.batch))
            made = bound_seconds(work, read, self.peak, self.bandwidth)
            if made.value:
                figure = f"roofline.{path}.operators.{key}.seconds" if written else ""
                times.append(self.sheet.add(f"{name} {key}", made, "s", "", figure))
        source, path = "each operator bounded by itself: a closer bound", f"{path}.sum_of_operators"
        seconds = self.sheet.sum(f"{name} seconds, by operator", times, "s", source, f"roofline.{path}.seconds")
        self._speed(f"{name}, by operator:", path, tokens, seconds)

    # ---------------------------------------------------------------- training, and what fits

    def _train(self) -> None:
        found, setup = self.found["train"], self.setup
        each = symbol("flops.train, exact", found["flops"] // found["tokens"])
        mfu, gpus = symbol("mfu", setup.mfu), symbol("gpus", setup.ranks)
        step = TrainingStep(self.context, self.batch, symbol("dp", setup.dp), each, mfu, gpus)
        bounds = bound_training(step, self.peak, self._note)
        if setup.train_tokens is not None:
            bound_run(symbol("train_tokens", setup.train_tokens), bounds, gpus, self._note)

    def _note(self, key: str, made: Term) -> Number:
        name, unit, why = TRAINING[key]
        return self.sheet.add(name, made, unit, why, f"roofline.train.{key}")

    def _fits(self) -> None:
        memory = symbol("memory", self.device.memory)
        source = f"{USABLE} of {self.device.title}'s memory, less what CUDA and libraries take"
        for name in self.found.get("fits", {}):
            usable = round(usable_bytes(memory))
            self.sheet.add(f"usable ({name})", usable, "bytes", source, f"roofline.fits.{name}.usable_bytes")
