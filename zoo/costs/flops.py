# S tokens of a sequence, t tokens held before, W window
"""FLOPs: two for each multiply-add of a matrix product. What works on single values is not counted, neither here nor by
torch's counter: norms, softmax, activations, rotations, the mixing of experts and the decay of a state. It is bound by
memory, not by arithmetic.

A look-up costs nothing; the head counts whether tied or not; a mixture counts the experts that a token meets; shared
layers count as often as they are used. Attention counts the (query, key) pairs that its mask lets through. An
encoder-decoder reads as many tokens as it writes.

Frameworks count differently, by definition and not by mistake, so that their figures are conventions by name
(CONVENTIONS): up to twofold apart in a long context.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from zoo.costs.params import below, is_output
from zoo.costs.setup import RECOMPUTE
from zoo.errors import ConfigError, did_you_mean
from zoo.spec import Embedding, Linear, Part, Tied, components, walk

CONVENTIONS = {
    "exact": "exact: matrix products, visible pairs only, 2 FLOPs a multiply-add; backward = 2 × forward",
    "hfu": "hfu: as exact, and what the hardware computes again, FlashAttention's backward being 2.5 × its forward "
    "(Dao, 2023)",
    "palm": "palm: 6N + 12·L·H·Q·T, every pair of the square, N without tables that are looked up "
    "(Chowdhery et al., 2022, appendix B)",
    "megatron": "megatron: matrix products but the routers', half of the square where causal, all logits "
    "(Megatron-LM; Narayanan et al., 2021, and Korthikanti et al., 2022, count the whole square)",
    "kaplan": "kaplan: 6N, of which forward 2N; N without tables and head, no attention (Kaplan et al., 2020)",
}
"""What each convention counts, and whose it is."""

FLASH_BACKWARD = 2.5
"""FLOPs of FlashAttention's backward over its forward's: five products for two, as it computes the scores again."""


# ---------------------------------------------------------------- pairs


class Look(NamedTuple):
    """How the tokens of an attention see each other."""

    causal: bool
    cross: bool  # whether they see an encoder's output rather than each other
    window: int | None = None
    chunk: int | None = None

    def pairs(self, new: int, held: int = 0, memory: int = 0) -> int:
        """(query, key) pairs of `new` tokens after `held`, `memory` being the encoder's."""
        if self.cross:
            return new * memory
        if not self.causal:
            if self.chunk is not None:
                return new // self.chunk * self.chunk**2 + (new % self.chunk) ** 2
            return both_ways_pairs(new, self.window)
        if self.chunk is not None:
            return chunked_pairs(held + new, self.chunk) - chunked_pairs(held, self.chunk)
        return visible_pairs(new, held, self.window)

    def shown_by(self, prefix: int) -> int:
        """Pairs that a causal look gains when the first `prefix` tokens all see one another."""
        if self.cross or not self.causal:
            return 0
        if self.chunk is not None:  # which a prefix does not reach beyond
            return chunked_pairs(prefix, self.chunk) - prefix
        return prefix * prefix - visible_pairs(prefix, 0, self.window)


def visible_pairs(new: int, held: int, window: int | None) -> int:
    """(query, key) pairs of `new` causal queries after `held` tokens, each seeing at most `window` keys, itself
    included."""
    if window is None or window >= held + new:
        return new * held + new * (new + 1) // 2
    short = min(new, max(0, window - held))  # queries that do not fill the window yet
    return short * held + short * (short + 1) // 2 + (new - short) * window


def both_ways_pairs(tokens: int, reach: int | None) -> int:
    """Pairs of tokens at most `reach` apart, each with itself included."""
    if reach is None or reach >= tokens - 1:
        return tokens * tokens
    return tokens + 2 * (reach * tokens - reach * (reach + 1) // 2)


def chunked_pairs(tokens: int, chunk: int) -> int:
    """Causal pairs within stretches of `chunk` tokens."""
    whole, rest = divmod(tokens, chunk)
    return whole * (chunk * (chunk + 1) // 2) + rest * (rest + 1) // 2


# ---------------------------------------------------------------- what a pass computes


def product_flops(spec: Any, *, head: bool = True) -> int:
    """Forward FLOPs of one token through every matrix product that each token goes through, the head's among them or
    not."""
    met = _met(spec, lambda path: not _in(path, "pooler") and (head or not _in(path, "head")))
    return sum(part.flops * copies for part, copies in met)


def row_flops(spec: Any) -> int:
    """Forward FLOPs of the matrix products that are made once for a row: a pooler's, of its first token."""
    return sum(part.flops * copies for part, copies in _met(spec, lambda path: _in(path, "pooler")))


def memory_flops(tower: Any) -> int:
    """Forward FLOPs of making the keys and values of one token of an encoder's output, in all layers."""
    met = _met(tower, lambda path: path.endswith((".cross.k", ".cross.v")))
    return sum(part.flops * copies for part, copies in met)


def pair_flops(spec: Any, pairs: Callable[[Look], int], *, decoding: bool = False) -> int:
    """Forward FLOPs of scores and of values weighted by them, with the pairs given as a function of how tokens look.

    A token that is decoded may take another way (MLA reads its latents as they are).
    """
    return sum(
        (attention.decode_flops if decoding else attention.core_flops)(pairs(look)) * copies
        for _, look, attention, copies in _looks(spec)
    )


def other_flops(spec: Any, new: int, held: int = 0) -> int:
    """Forward FLOPs of `new` tokens after `held` that neither a weight nor a pair explains: moving and reading
    recurrent states, and work on a table that all tokens share."""
    return sum(
        (attention.state_flops() * new + attention.pass_flops(tower.d_model, new, held)) * copies
        for tower, _, attention, copies in _looks(spec)
    )


def core_flops(spec: Any, pairs: Callable[[Look], int], new: int, held: int = 0) -> int:
    """Forward FLOPs of `new` tokens after `held` that no weight explains, with the pairs given as a function of how
    they look."""
    return pair_flops(spec, pairs, decoding=new == 1 and held > 0) + other_flops(spec, new, held)


def _met(spec: Any, kept: Callable[[str], bool]) -> Iterator[tuple[Part, int]]:
    """The parts whose path is kept, and how often a pass goes through each."""
    for path, _, part, copies in walk(spec, spec.d_model, used=True):
        if kept(path):
            yield part, copies


def _in(path: str, place: str) -> bool:
    return below(path)[0] == place


def _looks(spec: Any) -> Iterator[tuple[Any, Look, Any, int]]:
    """Every attention: its tower, how its tokens look, itself, and how often a pass goes through it."""
    for tower in spec.towers().values():
        for path, component, copies in components(tower, tower.d_model):
            if component.axis == "attention":
                attention: Any = component
                cross = path.endswith(".cross")
                look = Look(tower.causal, cross, attention.visible_window, attention.visible_chunk)
                yield tower, look, attention, copies


# ---------------------------------------------------------------- the conventions


class Pass(NamedTuple):
    """Forward FLOPs of one sequence, as a convention counts them."""

    products: float  # with weights
    pairs: float  # scores, and values weighted by them
    other: float = 0

    @property
    def whole(self) -> float:
        return self.products + self.pairs + self.other


def count(
    spec: Any,
    context: int,
    convention: str = "exact",
    recompute: str = "none",
    documents: Sequence[int] | None = None,
    prefix: int = 0,
) -> dict[str, Any]:
    """FLOPs of one sequence of `context` tokens.

    `forward` and `train` are per token, the mean over the sequence, `train` being three times forward (`hfu` adds what
    is computed again). `train_hardware` adds to `train` what `recompute` makes again: the pairs' work (selective) or a
    whole forward (full). `prefill` is a prompt of `context` tokens up to the first logits: an encoder-decoder reads it
    and begins to write. `decode` is one token when `context` are in the sequence, itself included (of an
    encoder-decoder: and as many were read), `decode_expanded` the same where MLA decodes with keys and values of every
    head at hand, in place of its latents. `palm` and `megatron` are for training and have neither; `kaplan` has them
    for one tower.

    `documents` are the lengths of those packed into the sequence, which see themselves alone; the first `prefix` tokens
    all see one another. Both change `exact` and `hfu`; the others count every sequence as one.

    Raises ConfigError for a convention or recomputation that does not exist, and for documents or a prefix that the
    model cannot take.
    """
    _check(spec, context, convention, recompute, documents, prefix)
    passed = _passed(spec, context, convention, documents, prefix)
    again = {"none": 0.0, "selective": passed.pairs, "full": passed.whole}[recompute]
    train = 3 * passed.whole
    if convention == "hfu":
        train += (FLASH_BACKWARD - 2) * passed.pairs + again
        again = 0.0
    return {
        "convention": CONVENTIONS[convention],
        "context": context,
        "forward": round(passed.whole / context),
        "train": round(train / context),
        "train_hardware": round((train + again) / context),
        **({} if documents else _generation(spec, context, convention, prefix)),
    }


def _passed(spec: Any, context: int, convention: str, documents: Sequence[int] | None, prefix: int) -> Pass:
    if convention == "kaplan":
        return Pass(2 * multiplied(spec, head=False) * context, 0)
    if convention == "palm":
        return Pass(2 * multiplied(spec) * context, pair_flops(spec, lambda look: context * context))
    products = product_flops(spec) * context + row_flops(spec)
    other = other_flops(spec, context)
    if convention == "megatron":
        routers = sum(part.flops * copies for part, copies in _met(spec, lambda path: ".router." in path))
        return Pass(products - routers * context, _half_squares(spec, context), other)
    lengths = documents or (context,)

    def pairs(look: Look) -> int:
        return sum(look.pairs(tokens, 0, context) for tokens in lengths) + look.shown_by(prefix)

    return Pass(products, pair_flops(spec, pairs), other)


def _half_squares(spec: Any, context: int) -> float:
    """The pairs' work with half of the square where attention is causal, and all of it elsewhere."""
    whole = pair_flops(spec, lambda look: context * context)
    return whole - pair_flops(spec, lambda look: 0 if look.cross or not look.causal else context * context) / 2


def multiplied(spec: Any, *, head: bool = True) -> int:
    """Parameters that a token meets in one pass, tables that are looked up left out: shared layers as often as they are
    used, and the head's matrix, tied or not, unless `head` says otherwise."""
    met = 0
    for part, copies in _met(spec, lambda path: head or not is_output(path)):
        if isinstance(part, Tied) and isinstance(part.of, Linear):
            met += part.of.active * copies
        elif not isinstance(part, Embedding):
            met += part.active * copies
    return met


def _generation(spec: Any, context: int, convention: str, prefix: int) -> dict[str, int]:
    """What reading a prompt and decoding a token cost, where the convention says."""
    towers = spec.towers()
    if convention == "kaplan" and len(towers) == 1:
        forward = 2 * multiplied(spec, head=False)
        return {"prefill": forward * context, **({"decode": forward} if spec.causal else {})}
    if convention not in ("exact", "hfu"):
        return {}
    decoder = next((tower for tower in towers.values() if tower.causal), None)
    if decoder is None:
        whole = product_flops(spec) * context + row_flops(spec)
        return {"prefill": whole + core_flops(spec, lambda look: look.pairs(context), context)}
    if decoder is spec:
        # A decoder with cross-attention reads a memory from outside, taken to be as long as the context.
        read = lambda look: look.pairs(context, 0, context) + look.shown_by(prefix)  # noqa: E731
        inner, whole = product_flops(spec, head=False), product_flops(spec)
        prefill = inner * context + (whole - inner) + row_flops(spec) + core_flops(spec, read, context)
    else:
        encoder = towers["encoder"]
        read = product_flops(encoder) * context + core_flops(encoder, lambda look: look.pairs(context), context)
        begun = _decoded(decoder, 1, context)
        prefill = read + row_flops(encoder) + memory_flops(decoder) * context + begun
    decode, expanded = _decoded(decoder, context, context), _decoded(decoder, context, context, expanded=True)
    return {
        "prefill": prefill,
        "decode": decode,
        **({"decode_expanded": expanded} if expanded != decode else {}),
    }


def _decoded(decoder: Any, known: int, memory: int, *, expanded: bool = False) -> int:
    """Forward FLOPs of the last of `known` tokens, after `memory` ones that an encoder read."""
    held = known - 1
    pairs = pair_flops(decoder, lambda look: look.pairs(1, held, memory), decoding=held > 0 and not expanded)
    return product_flops(decoder) - memory_flops(decoder) + pairs + other_flops(decoder, 1, held)


def _check(spec: Any, context: int, convention: str, recompute: str, documents: Any, prefix: int) -> None:
    for name, found, known in (("convention", convention, CONVENTIONS), ("recompute", recompute, RECOMPUTE)):
        if found not in known:
            hint = did_you_mean(found, known)
            raise ConfigError(f"{name}: unknown {found!r}{hint} (one of: {', '.join(known)})")
    if documents:
        if sum(documents) != context or min(documents) < 1:
            found = f"{len(documents)} of {sum(documents)} tokens in all, the sequence has {context}"
            raise ConfigError(f"documents: {found} (lengths from 1 up that add up to it)")
        if len(spec.towers()) > 1:
            raise ConfigError(f"documents: a model of kind '{spec.kind}' takes none (a decoder does)")
        if prefix:
            raise ConfigError("prefix: packed documents were given too (one of them)")
    if not prefix:
        return
    if not getattr(spec, "prefix_lm", False):
        raise ConfigError("prefix: this model has no tokens that all see one another (prefix_lm: true would do)")
    if any(attention.causal for _, _, attention, _ in _looks(spec)):
        raise ConfigError("prefix: a recurrent mixer reads earlier tokens only (use gqa there)")
    if not 0 <= prefix <= context:
        raise ConfigError(f"prefix: is {prefix}, the sequence has {context} tokens (0 to {context})")
