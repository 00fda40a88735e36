"""Explain FLOPs from the matrix products of the parts and the visible pairs.

The lines of a convention are the sums of `zoo.costs.flops`: products with weights, QKᵀ and PV by pairs, and the rest
(recurrent states, tables that all tokens share).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from zoo.analysis.explain.line import Line, Sheet, cite, count_layers, name_component
from zoo.analysis.explain.parameters import ComponentFormula, list_component_formulas
from zoo.analysis.explain.terms import Number, Term, name_number, symbol, term, total
from zoo.analysis.explain.tuned import SEQUENCE, TOKEN, add_partial_training
from zoo.costs.flops import (
    CONVENTIONS,
    MEASURED,
    PassFlops,
    SequenceFlops,
    count_training,
    multiplied_by,
    reads_memory,
    sum_decoding,
    sum_prompt,
)
from zoo.costs.pairs import Look
from zoo.costs.rows import AttentionRow, CostTable, PartRow
from zoo.costs.setup import Setup
from zoo.costs.tuning import TunedModel
from zoo.costs.update_flops import optimizer_flops
from zoo.spec import LOGITS


@dataclass(frozen=True)
class CoreFormula:
    """The FLOPs of an attention in `copies` layers, as terms: QKᵀ and PV (`pairs`), states and shared tables
    (`other`)."""

    row: AttentionRow
    name: str
    copies: Term

    def pairs(self, pairs: Any, decoding: bool = False) -> Term:
        return self.copies * self.row.pair_flops(pairs, decoding=decoding)

    def other(self, new: Any, held: Any = 0) -> Term:
        return self.copies * self.row.other_flops(new, held)


def list_core_formulas(table: CostTable) -> Iterator[CoreFormula]:
    """Yield a CoreFormula for each self-attention, cross-attention and indexer of every kind of layer."""
    for row in table.attentions:
        assert row.kind is not None
        name = name_component(row.where, row.slot, row.tower, row.kind)
        yield CoreFormula(row, name, count_layers(row.tower, row.kind))


class Flops:
    """Write the lines on FLOPs from the rows of a traced model, by the set-up's convention."""

    def __init__(self, table: CostTable, setup: Setup, tuned: TunedModel | None = None) -> None:
        self.tuned = tuned
        self.sheet, self.table, self.model, self.setup = Sheet("FLOPs"), table, table.spec, setup
        self.convention = setup.convention
        self.context = name_number("context", setup.tokens(self.model))
        self.cores = list(list_core_formulas(table))
        self.products: dict[str, tuple[ComponentFormula, Number]] = {}
        self.chosen: list[Number] = []  # the cores without a backward pass

    def lines(self) -> list[Line]:
        source = CONVENTIONS[self.convention]
        self._products()
        linear, pairs, other = self._linear(), self._pairs(), self._other()
        made = PassFlops(*(made if made.value else term(0) for made in (linear, pairs, other)))
        whole = self.sheet.add("forward of a sequence", made.whole, SEQUENCE, source)
        self._per_token(PassFlops(whole - pairs, pairs, 0, total(self.chosen), self._skipped()))
        if self.convention in ("exact", "hfu") and self.setup.document is None:
            self._prefill(pairs, other)
            self._decode()
        elif self.convention == "kaplan" and self.setup.document is None and len(self.model.towers()) == 1:
            each = self._sum(lambda piece: True) * 2
            self.sheet.add("prefill", each * term(self.context), SEQUENCE, source, "flops.prefill")
            if self.model.causal:
                self.sheet.add("decode", each, TOKEN, source, "flops.decode")
        self._optimizer_step()
        return self.sheet.lines

    # ---------------------------------------------------------------- products with weights

    def _products(self) -> None:
        """Add a line for each component of a kind of layer: its FLOPs, or its parameters under palm and kaplan (6N)."""
        unit = "parameters a token" if self.convention in ("palm", "kaplan") else TOKEN
        for piece in list_component_formulas(self.table, COUNTED[self.convention], stored=False):
            row = "FLOP a sequence" if piece.once and unit == TOKEN else unit
            self.products[piece.name] = piece, self.sheet.add(piece.name, piece.all, row, piece.source)

    def _sum(self, kept: Callable[[ComponentFormula], bool]) -> Term:
        return total(line for piece, line in self.products.values() if kept(piece))

    def _linear(self) -> Term:
        if self.convention in ("palm", "kaplan"):
            return self._sum(lambda piece: True) * 2 * term(self.context)
        return self._sum(lambda piece: not piece.once) * term(self.context) + self._rows(lambda piece: True)

    def _rows(self, kept: Callable[[ComponentFormula], bool]) -> Term:
        return self._sum(lambda piece: piece.once and kept(piece))

    # ---------------------------------------------------------------- pairs, and the rest

    def _pairs(self) -> Number:
        """Add two lines for each attention: its pairs of query and key, and their FLOPs."""
        held = []
        for core in self.cores if self.convention != "kaplan" else ():
            pairs, seen = self._seen(core.row.look)
            if core.pairs(pairs).value:
                name = f"{core.name} pairs"
                pairs = name_number(name, self.sheet.add(name, pairs, "(query, key) pairs", seen).value)
                made = core.pairs(pairs)
                if self.convention == "megatron" and core.row.look.causal and not core.row.look.cross:
                    made = made / term(2)
                held.append(self.sheet.add(f"{core.name} core", made, SEQUENCE, cite(core.row.attention)))
                apart = not core.row.learns and self.convention in ("exact", "hfu")  # other conventions ignore these
                self.chosen += held[-1:] if apart else []
        return self.sheet.sum("core", held, SEQUENCE, "QKᵀ and PV") if held else Number(0)

    def _seen(self, look: Look) -> tuple[Any, str]:
        """Give the number of pairs that the convention counts, and their description."""
        if self.convention in ("exact", "hfu") and self.setup.document is not None:
            each = name_number("document", self.setup.document)
            whole, rest = divmod(self.setup.tokens(self.model), self.setup.document)
            made = look.pairs(each, 0, self.context) * name_number("documents", whole)
            cut = look.pairs(name_number("the last", rest), 0, self.context) if rest else 0
            return made + cut, f"{_seen(look)}, in its own document"
        if self.convention in ("exact", "hfu"):
            return look.pairs(self.context, 0, self.context), _seen(look)
        return self.context * self.context, "the whole square"

    def _other(self) -> Number:
        held = []
        for core in self.cores if self.convention not in ("palm", "kaplan") else ():
            made = core.other(self.context)
            if made.value:
                held.append(self.sheet.add(f"{core.name} states", made, SEQUENCE, cite(core.row.attention)))
        return self.sheet.sum("states", held, SEQUENCE, "recurrent states, shared tables") if held else Number(0)

    def _skipped(self) -> Term:
        """Give the FLOPs of gradients that nothing needs, with a line for each product that has some."""
        if self.convention not in ("exact", "hfu"):
            return term(0)
        idle = list_component_formulas(self.table, lambda row: 0 if row.learns else row.part.flops, stored=False)
        why = "a choice has no gradient"
        made = [self.sheet.add(f"{piece.name} that chooses", piece.all, TOKEN, why) for piece in idle]
        constant = []
        for core in self.cores:
            attention, pairs = core.row.attention, self._seen(core.row.look)[0]
            own = attention.constant_flops(core.row.tower.d_model, self.context, pairs)
            if (found := core.copies * own).value:
                why = "a constant operand has no gradient"
                constant.append(self.sheet.add(f"{core.name} with constants", found, SEQUENCE, why))
        return (total(made) * term(self.context) + total(self.chosen)) * 2 + total(constant)

    # ---------------------------------------------------------------- figures

    def _per_token(self, passed: PassFlops) -> None:
        mean = "the mean over a sequence's tokens"
        self.sheet.add("forward", round(passed.whole / term(self.context)), TOKEN, mean, "flops.forward")
        if self.tuned is not None and self.tuned.partly and self.setup.convention in MEASURED:
            return add_partial_training(self.sheet, self.tuned, self.setup, passed.whole)
        documents, recompute = self.setup.documents(self.model), self.setup.recompute
        whole = SequenceFlops(self.table, self.setup.tokens(self.model), self.convention, recompute, documents)
        layers = symbol("forward of those layers", int(whole.count_again()))
        train, hardware = count_training(passed, self.convention, recompute, layers)
        why = "backward is twice forward: a product for each of its two inputs"
        self.sheet.add("train", round(train / term(self.context)), TOKEN, why, "flops.train")
        why = f"with recomputation: {recompute}"
        self.sheet.add("train on hardware", round(hardware / term(self.context)), TOKEN, why, "flops.train_hardware")

    def _optimizer_step(self) -> None:
        if made := optimizer_flops(self.table.spec, self.setup.optimizer, self.tuned):
            why = "Newton-Schulz on each matrix inside a layer, 4·A²·B + 2·A³ an iteration (Jordan et al., 2024)"
            if self.setup.optimizer == "soap":
                why = "rotations and preconditioners, 8·A·B·(A + B) for each matrix inside a layer (Vyas et al., 2024)"
            self.sheet.add("optimizer step", term(made), "FLOP a step", why, "flops.optimizer_step")

    def _prefill(self, pairs: Number, other: Number) -> None:
        towers = self.model.towers()
        why = "a prompt, up to its first logits"
        if "decoder" in towers:
            first = self._decoded("decoder", 1, "first token")
            seen = [core for core in self.cores if core.row.where == "encoder"]
            read = [core.pairs(core.row.look.pairs(self.context)) + core.other(self.context) for core in seen]
            mine = lambda piece: piece.where == "encoder"  # noqa: E731
            made = self._prompt(mine, self._rows(mine), total(read), self._memory("decoder"))
            self.sheet.add("prefill", made + first, SEQUENCE, why, "flops.prefill")
            return
        rows, core = self._rows(lambda piece: True), pairs + other
        if self.model.causal:
            heads = self._sum(lambda piece: piece.what == "head" and not piece.once)
            made = self._prompt(lambda piece: piece.what != "head", heads + rows, core)
        else:
            made = self._prompt(lambda piece: True, rows, core)
        self.sheet.add("prefill", made, SEQUENCE, why, "flops.prefill")

    def _prompt(self, kept: Callable[[ComponentFormula], bool], once: Term, core: Term, memory: Term | int = 0) -> Term:
        products = self._sum(lambda piece: not piece.once and kept(piece))
        return sum_prompt(products, term(self.context), once, core, memory)

    def _decode(self) -> None:
        decoder = next((where for where, tower in self.model.towers().items() if tower.causal), None)
        if decoder is None:
            return
        made = self._decoded(decoder, self.context, "decoding")
        line = self.sheet.add("decode", made, TOKEN, "the last token of the context", "flops.decode")
        expanded = self._decoded(decoder, self.context, "decoding, expanded", expanded=True, write=False)
        if expanded.value != line.value:
            expanded = self._decoded(decoder, self.context, "decoding, expanded", expanded=True)
            why = "the same with keys and values of every head at hand"
            self.sheet.add("decode expanded", expanded, TOKEN, why, "flops.decode_expanded")

    def _decoded(self, decoder: str, known: Any, name: str, *, expanded: bool = False, write: bool = True) -> Term:
        """Give the FLOPs of decoding the last of `known` tokens; with `write`, add a line for each attention."""
        held = known - 1
        products = self._sum(lambda piece: piece.where == decoder and not piece.once)
        found = []
        for core in (core for core in self.cores if core.row.where == decoder):
            pairs = core.pairs(core.row.look.pairs(1, held, self.context), int(held) > 0 and not expanded)
            made = pairs + core.other(1, held)
            label = f"{name}: {core.name}"
            found.append(self.sheet.add(label, made, TOKEN, cite(core.row.attention)) if write and made.value else made)
        return sum_decoding(products, self._memory(decoder), total(found))

    def _memory(self, decoder: str) -> Term:
        """Give the FLOPs per encoder token of cross-attention's keys and values."""
        found = list_component_formulas(
            self.table, lambda row: row.part.flops if reads_memory(row) else 0, stored=False
        )
        made = [(f"{p.name} k, v", p) for p in found if p.where == decoder]
        written = {line.name for line in self.sheet.lines}
        why = "made once of the encoder's output"
        return total(
            symbol(name, p.all.value) if name in written else self.sheet.add(name, p.all, TOKEN, why)
            for name, p in made
        )


def _seen(look: Look) -> str:
    if look.cross:
        return "each token sees all that the encoder read"
    if look.blocks is not None:
        return "blocks: near ones, the first and the last"
    if look.near:
        return "a window, and entries of earlier tokens"
    if not look.causal:
        return "both ways" if look.window is None else "so many to either side"
    limit = "" if look.window is None else ", at most a window"
    return f"earlier tokens{limit}" if look.chunk is None else "earlier tokens of its chunk"


COUNTED: dict[str, Callable[[PartRow], Any]] = {
    **dict.fromkeys(MEASURED, lambda row: row.part.flops),
    "megatron": lambda row: 0 if "router" in row.roles else row.part.flops,
    "palm": multiplied_by,
    "kaplan": lambda row: 0 if row.part.role == LOGITS else multiplied_by(row),
}
"""The FLOPs or parameters of a part that each convention counts."""
