"""Explain the roofline from the FLOPs and bytes of each operator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zoo.analysis.explain.line import Line, Sheet
from zoo.analysis.explain.terms import Number, Term, call, symbol, term, total
from zoo.costs.hardware import SheetFigure, hardware
from zoo.costs.operators import Operator, operators
from zoo.costs.roofline import DAY, RUNTIME, USABLE, widths_of
from zoo.costs.setup import Setup

MAX = "as long as arithmetic or memory takes (Williams et al., 2009)"
COVERED = "distinct ones that tokens meet, each choosing uniformly and on its own"
RATE = "tokens a second"


class Roofline:
    """Write the lines of a set-up on its GPU."""

    def __init__(self, spec: Any, setup: Setup, figures: Mapping[str, Any]) -> None:
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
        self.sheet.add("ridge", ridge, "FLOP a byte", "above it arithmetic takes longer", "roofline.ridge")
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
        widths = widths_of(self.setup, expanded=expanded)
        parts = operators(self.spec, self.setup.tokens(self.spec), widths, decode=decode)
        weights = [self._weights(name, key, part) for key, part in parts.items() if part.weight_bytes(1)]
        own = [symbol(f"{key} read", part.own) * self.batch for key, part in parts.items() if part.own]
        read = self.sheet.sum(f"{name} weights", weights, "bytes", "each that a token meets, once")
        cache = self.sheet.sum(f"{name} cache", own, "bytes", "what the last query sees, and states")
        work = self._work(name, parts, f"roofline.{path}.flops")
        made = call("max", work / self.peak, (read + cache) / self.bandwidth)
        seconds = self.sheet.add(f"{name} seconds", made, "s", MAX, f"roofline.{path}.seconds")
        self._speed(name, path, self.batch if decode else self.context * self.batch, seconds)
        if self.setup.tp == 1:
            self._closer(name, path, parts, self.batch if decode else self.context * self.batch)
        if "expanded" in self.found[phase] and not expanded:
            self._pass(phase, expanded=True)

    def _speed(self, name: str, path: str, tokens: Term, seconds: Term) -> None:
        made = tokens * symbol("dp", self.setup.dp) / seconds
        self.sheet.add(f"{name} speed", made, RATE, "upper bound", f"roofline.{path}.tokens_per_second")
        each = made / self.batch / symbol("dp", self.setup.dp)
        self.sheet.add(f"{name} speed, each", each, RATE, "of one", f"roofline.{path}.tokens_per_second_each")

    def _work(self, name: str, parts: Mapping[str, Operator], figure: str) -> Number:
        """Give the FLOPs of the whole batch, from the FLOPs section if its convention is exact."""
        key = name.replace(" ", "_")
        counted = self.figures["flops"].get(key) if self.setup.convention in ("exact", "hfu") else None
        if counted is None:
            made = total(symbol(key, part.flops) for key, part in parts.items() if part.flops) * self.batch
            return self.sheet.add(f"{name} FLOPs", call("round", made), "FLOP", "of the operators", figure)
        made = symbol(f"flops.{key}", counted) * self.batch / self.tp
        return self.sheet.add(f"{name} FLOPs", call("round", made), "FLOP", "FLOPs above", figure)

    def _weights(self, name: str, key: str, part: Operator) -> Term:
        """Give the bytes of an operator's weights, with a line if they depend on the experts that tokens choose."""
        if not part.chosen:
            return symbol(f"{key} weights", part.weights)
        made: list[Term] = [symbol("the rest", part.weights)] if part.weights else []
        for each in part.chosen:
            count, k = symbol("count", each.count), symbol("k", each.k)
            tokens = self.batch if part.new == 1 else symbol("new", part.new) * self.batch
            missed = call("pow", term(1) - k / count, tokens)
            met = count * (term(1) - missed) if each.k < each.count else count
            made.append(symbol("size", each.size) * met)
        return self.sheet.sum(f"{name} {key} weights", made, "bytes", COVERED)

    def _closer(self, name: str, path: str, parts: Mapping[str, Operator], tokens: Term) -> None:
        """Add each operator's own bound, from the table of the path that the model takes."""
        times, written = [], "expanded" not in path
        for key, part in parts.items():
            work = symbol("flops", part.flops * self.setup.batch)
            read = symbol("bytes", part.bytes(self.setup.batch))
            made = call("max", work / self.peak, read / self.bandwidth)
            if made.value:
                figure = f"roofline.{path}.operators.{key}.seconds" if written else ""
                times.append(self.sheet.add(f"{name} {key}", made, "s", "", figure))
        source, path = "each operator by itself: the closer bound", f"{path}.sum_of_operators"
        seconds = self.sheet.sum(f"{name} seconds, by operator", times, "s", source, f"roofline.{path}.seconds")
        self._speed(f"{name}, by operator:", path, tokens, seconds)

    # ---------------------------------------------------------------- training, and what fits

    def _train(self) -> None:
        found, path = self.found["train"], "roofline.train"
        tokens = self.context * self.batch * symbol("dp", self.setup.dp)
        step = self.sheet.add("tokens of a step", tokens, "tokens", "", f"{path}.tokens")
        each = symbol("flops.train, exact", found["flops"] // found["tokens"])
        work = self.sheet.add("FLOPs of a step", each * step, "FLOP", "recomputation left out", f"{path}.flops")
        mfu, gpus = symbol("mfu", self.setup.mfu), symbol("gpus", self.setup.ranks)
        why = "at that share of the peak (MFU, Chowdhery et al., 2022)"
        seconds = self.sheet.add("step", work / (self.peak * mfu * gpus), "s", why, f"{path}.seconds")
        speed = self.sheet.add("training speed", step / seconds, RATE, "", f"{path}.tokens_per_second")
        if self.setup.train_tokens is not None:
            whole = symbol("train_tokens", self.setup.train_tokens) / speed
            days = self.sheet.add("days", whole / term(DAY), "days", "", f"{path}.days")
            self.sheet.add("GPU-hours", days * 24 * gpus, "h", "", f"{path}.gpu_hours")

    def _fits(self) -> None:
        memory = symbol("memory", self.device.memory)
        source = f"{USABLE} of {self.device.title}'s memory, less what CUDA and libraries take"
        for name in self.found.get("fits", {}):
            usable = call("round", memory * USABLE - RUNTIME)
            self.sheet.add(f"usable ({name})", usable, "bytes", source, f"roofline.fits.{name}.usable_bytes")


def list_roofline_lines(spec: Any, setup: Setup, figures: Mapping[str, Any]) -> list[Line]:
    """List the lines of the figures' `roofline`, if there is one."""
    return Roofline(spec, setup, figures).lines() if "roofline" in figures else []
