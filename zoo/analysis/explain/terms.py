"""Numbers that remember their formula, so that a formula and its value cannot differ.

A Term prints itself with symbols (`n_layers·d_model`) or with their numbers (`32·4096`), and has a value. A Traced is
an int with a Term. Example: `name_number("n_heads", 32) * name_number("head_dim", 128)` is 4096, with the term
`n_heads·head_dim`. A component whose fields are Traced therefore gives its own formulas, because `parts`, `cache` and
`core_flops` are plain arithmetic on fields.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from zoo.costs.rows import change_copy
from zoo.costs.sums import compute_chance, take_larger, take_smaller
from zoo.spec import Spec

# ---------------------------------------------------------------- terms


class Term:
    """An expression with its exact `value`; `text(named)` writes it with symbols if `named`, else with their
    numbers."""

    loose = False  # whether the term needs brackets inside a product

    @property
    def value(self) -> Any:
        raise NotImplementedError

    def text(self, named: bool) -> str:
        raise NotImplementedError

    @property
    def formula(self) -> str:
        return self.text(True)

    @property
    def values(self) -> str:
        return self.text(False)

    def __add__(self, other: Any) -> Term:
        return total((self, term(other)))

    __radd__ = __add__

    def __mul__(self, other: Any) -> Term:
        return product((self, term(other)))

    def __rmul__(self, other: Any) -> Term:
        return product((term(other), self))

    def __sub__(self, other: Any) -> Term:
        return total((self, product((Number(-1), term(other)))))

    def __truediv__(self, other: object) -> Term:
        return quotient(self, term(other))

    def __rtruediv__(self, other: object) -> Term:
        return quotient(term(other), self)

    def __ge__(self, other: object) -> bool:
        return self.value >= term(other).value

    def __round__(self) -> Term:
        return call("round", self)


@dataclass(frozen=True)
class Number(Term):
    """A number, with its symbol if it has one."""

    number: Any
    symbol: str = ""

    @property
    def value(self) -> Any:
        return self.number

    def text(self, named: bool) -> str:
        return self.symbol if named and self.symbol else f"{self.number:.12g}" if self.fraction else str(self.number)

    @property
    def fraction(self) -> bool:
        return not isinstance(self.number, int)


@dataclass(frozen=True)
class ProductTerm(Term):
    """A product. Only the first factor may be a number without a symbol."""

    factors: tuple[Term, ...]

    @property
    def value(self) -> Any:
        return math.prod(factor.value for factor in self.factors)

    def text(self, named: bool) -> str:
        texts = [f"({f.text(named)})" if f.loose else f.text(named) for f in self.factors]
        return (" · " if any(f.loose for f in self.factors) else "·").join(texts)


@dataclass(frozen=True)
class SumTerm(Term):
    """A sum, with like terms collected."""

    terms: tuple[Term, ...]

    loose = True

    @property
    def value(self) -> Any:
        return sum(each.value for each in self.terms)

    def text(self, named: bool) -> str:
        written = ""
        for each in self.terms:
            count, rest = split_coefficient(each)
            sign = "−" if count < 0 else "+"
            positive = product((Number(abs(count)), rest))
            written += f" {sign} {positive.text(named)}" if written else ("−" * (count < 0)) + positive.text(named)
        return written


@dataclass(frozen=True)
class QuotientTerm(Term):
    """The quotient of two terms."""

    above: Term
    below: Term

    @property
    def value(self) -> Any:
        above, below = self.above.value, self.below.value
        exact = isinstance(above, int) and isinstance(below, int) and above % below == 0
        return above // below if exact else above / below

    def text(self, named: bool) -> str:
        above, below = (f"({t.text(named)})" if t.loose else t.text(named) for t in (self.above, self.below))
        space = " " if " " in above + below else ""
        return f"{above}{space}/{space}{f'({below})' if isinstance(self.below, ProductTerm | QuotientTerm) else below}"


@dataclass(frozen=True)
class CallTerm(Term):
    """A function of FUNCTIONS, by name, applied to terms."""

    name: str
    inputs: tuple[Term, ...]

    @property
    def value(self) -> Any:
        return FUNCTIONS[self.name](*(each.value for each in self.inputs))

    def text(self, named: bool) -> str:
        return f"{self.name}({', '.join(each.text(named) for each in self.inputs)})"


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "min": min,
    "max": max,
    "floor": math.floor,
    "ceil": math.ceil,
    "round": round,
    "mod": lambda a, b: a % b,
    "pow": pow,
}


def term(value: Any) -> Term:
    """Return the formula of a traced value; a plain number becomes a constant (`Number`)."""
    if isinstance(value, Term):
        return value
    return value.term if isinstance(value, Traced) else Number(int(value) if isinstance(value, bool) else value)


def split_coefficient(each: Term) -> tuple[Any, Term]:
    """Split a term into its numeric coefficient and the rest: `2·n_heads` into 2 and `n_heads`."""
    if isinstance(each, Number) and not each.symbol:
        return each.number, Number(1)
    if isinstance(each, ProductTerm) and isinstance(each.factors[0], Number) and not each.factors[0].symbol:
        return each.factors[0].number, product(each.factors[1:])
    if isinstance(each, QuotientTerm):
        count, rest = split_coefficient(each.above)
        return (count, quotient(rest, each.below)) if count < 0 else (1, each)
    return 1, each


def product(factors: Iterable[Term]) -> Term:
    """Multiply terms: collect the coefficient in front, and all divisors in one quotient."""
    count, above, below = 1, [], []
    for factor in factors:
        if isinstance(factor, QuotientTerm):
            below.append(factor.below)
            factor = factor.above
        for each in factor.factors if isinstance(factor, ProductTerm) else (factor,):
            if isinstance(each, Number) and not each.symbol:
                count *= each.number
            else:
                above.append(each)
    if count == 0 or not above:
        upper: Term = Number(count)
    else:
        kept = above if count == 1 else [Number(count), *above]
        upper = kept[0] if len(kept) == 1 else ProductTerm(tuple(kept))
    return quotient(upper, product(below)) if below and count else upper


def total(terms: Iterable[Term]) -> Term:
    """Add terms. Like terms are collected: `2·n + 3·n` becomes `5·n`."""
    counts: dict[Any, list[Any]] = {}
    for each in (inner for outer in terms for inner in _summands(outer)):
        count, rest = split_coefficient(each)
        factors = rest.factors if isinstance(rest, ProductTerm) else (rest,)
        found = counts.setdefault(tuple(sorted((f.formula, f.values) for f in factors)), [0, rest])
        found[0] += count
    kept = [product((Number(count), rest)) for count, rest in counts.values() if count]
    kept.sort(key=lambda each: isinstance(each, Number) and not each.symbol)  # a bare number last
    kept.sort(key=lambda each: split_coefficient(each)[0] < 0)  # and negative terms behind the rest
    return kept[0] if len(kept) == 1 else SumTerm(tuple(kept)) if kept else Number(0)


def _summands(each: Term) -> tuple[Term, ...]:
    """List a term's summands: those of a nested sum, with their signs, or the term itself."""
    count, rest = split_coefficient(each)
    if not isinstance(rest, SumTerm) or abs(count) != 1:
        return (each,)
    return rest.terms if count == 1 else tuple(product((Number(-1), inner)) for inner in rest.terms)


def quotient(above: Term, below: Term) -> Term:
    """Divide terms, cancelling common factors."""
    over, under = ([*t.factors] if isinstance(t, ProductTerm) else [t] for t in (above, below))
    for factor in [*under]:
        if factor in over and not (isinstance(factor, Number) and not factor.symbol):
            over.remove(factor)
            under.remove(factor)
    if len(over) < len(above.factors if isinstance(above, ProductTerm) else (above,)):
        return quotient(product(over), product(under))
    (left, rest), (right, divisor) = split_coefficient(above), split_coefficient(below)
    if isinstance(left, int) and isinstance(right, int) and (shared := math.gcd(left, right)) > 1:
        return quotient(product((Number(left // shared), rest)), product((Number(right // shared), divisor)))
    return above if below == Number(1) else QuotientTerm(above, below)


def call(name: str, *inputs: Any) -> Term:
    """Apply a function of FUNCTIONS to terms or numbers."""
    return CallTerm(name, tuple(term(each) for each in inputs))


@take_smaller.register
def _(a: Term, b: object) -> Term:
    return call("min", a, b)


@take_larger.register
def _(a: Term, b: object) -> Term:
    return call("max", a, b)


@compute_chance.register
def _(k: Term, count: Any, tries: Any) -> Term:
    return term(1) - call("pow", term(1) - k / count, tries)


def symbol(name: str, value: Any) -> Number:
    """Make a Number that prints as a name."""
    return Number(value, name)


# ---------------------------------------------------------------- numbers that are traced


class Traced(int):
    """An int with its Term. The results of +, −, ·, // and % are Traced, those of other operations plain numbers."""

    term: Term

    def __new__(cls, value: int, made: Term) -> Traced:
        self = super().__new__(cls, value)
        self.term = made
        return self

    def __add__(self, other: int) -> Any:
        return _traced(int.__add__(self, other), lambda: self.term + other)

    def __radd__(self, other: int) -> Any:
        return _traced(int.__radd__(self, other), lambda: term(other) + self)

    def __sub__(self, other: int) -> Any:
        return _traced(int.__sub__(self, other), lambda: self.term - other)

    def __rsub__(self, other: int) -> Any:
        return _traced(int.__rsub__(self, other), lambda: term(other) - self)

    def __mul__(self, other: int) -> Any:
        return _traced(int.__mul__(self, other), lambda: self.term * other)

    def __rmul__(self, other: int) -> Any:
        return _traced(int.__rmul__(self, other), lambda: term(other) * self)

    def __neg__(self) -> Any:
        inner = self.term.inputs[0] if isinstance(self.term, CallTerm) and self.term.name == "floor" else None
        if inner is not None and split_coefficient(inner)[0] < 0:  # −⌊−x⌋ is how code writes ⌈x⌉
            return Traced(-int(self), call("ceil", inner * -1))
        return Traced(-int(self), self.term * -1)

    def __floordiv__(self, other: int) -> Any:
        divided = lambda: self.term / other if int(self) % other == 0 else call("floor", self.term / other)  # noqa: E731
        return _traced(int.__floordiv__(self, other), divided)

    def __mod__(self, other: int) -> Any:
        return _traced(int.__mod__(self, other), lambda: call("mod", self, other))

    def __divmod__(self, other: int) -> Any:
        return self // other, self % other


def _traced(value: Any, made: Callable[[], Term]) -> Any:
    return value if value is NotImplemented else Traced(value, made())


def name_number(name: str, value: int) -> Traced:
    """Make a Traced that prints as a name."""
    return Traced(value, Number(int(value), name))


# ---------------------------------------------------------------- Specs of traced numbers


def trace_spec(spec: Any) -> Any:
    """Copy a model with its dimensions traced under their YAML keys.

    A key with more than one value within a layer, or outside the layers, gets its whole path as its name
    (`ffn.shared.d_ff`). The copy is for counting only; it is not validated again.
    """
    towers = spec.towers()
    if "" not in towers:
        return change_copy(spec, **{name: trace_spec(tower) for name, tower in towers.items()})
    outside = ("d_model", "d_model", spec.d_model)
    blocks = {kind: _trace(block, [outside]) for kind, block in spec.blocks.items()}
    return change_copy(_trace(spec, skip="blocks"), blocks=blocks)


def _trace(spec: Spec, outside: Iterable[tuple[str, str, int]] = (), skip: str = "") -> Any:
    """Copy a component with its dimensions traced. `outside` has path, key and value of each further dimension."""
    found = [*outside]
    _map_numbers(spec, lambda *each: found.append(each), skip=skip)  # lists them; the copy is of no use
    values: dict[str, set[int]] = {}
    for _, name, value in found:
        values.setdefault(name, set()).add(value)
    symbols = {path: name if len(values[name]) == 1 else path for path, name, _ in found}
    return _map_numbers(spec, lambda path, _, value: name_number(symbols[path], value), skip=skip)


def _map_numbers(spec: Spec, change: Callable[[str, str, int], Any], path: str = "", skip: str = "") -> Any:
    """Copy a component with each dimension changed, given its path, key and value. The field `skip` stays."""
    changes: dict[str, Any] = {}
    for name in (field.name for field in spec.fields() if field.name != skip):
        value, inner = getattr(spec, name), f"{path}.{name}" if path else name
        if isinstance(value, Spec):
            changes[name] = _map_numbers(value, change, inner)
        elif isinstance(value, int) and not isinstance(value, bool):
            changes[name] = change(inner, name, value)
    return change_copy(spec, **changes)
