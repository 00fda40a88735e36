# S input tokens, T target tokens
"""Denoising objectives, in which a model reads a corrupted text and writes the missing or whole text: span corruption
(T5), text infilling (BART) and mixtures of denoisers (UL2)."""

from __future__ import annotations

from bisect import bisect_right
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import NonNegativeInt, PositiveFloat

from zoo.spec import Spec
from zoo.training.objective.base import Context, Objective, refuse_headless, refuse_topology, suggest
from zoo.training.objective.causal import refuse_decoder
from zoo.training.objective.masked import Rate, find_mask, refuse_mask

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from zoo.data import Tokenizer
    from zoo.data.collate import Corrupt
    from zoo.data.corrupt import Corrupted
    from zoo.data.pieces import Pieces
    from zoo.data.tokens import Collate
    from zoo.model.tower import Topology


ROOM = 16
"""With `data.documents`, a row keeps room for ends of text: 1/16 of its tokens."""


class Rewriting(Objective):
    """Base of the denoising objectives. A row of text is corrupted as a whole, or each of its documents separately. All
    batches of a run have the same shape.

    An encoder reads the corrupted text and a decoder writes the targets. A decoder alone reads the text and writes the
    targets in the same row (Tay et al., 2022, §3.3.1); a prefix LM attends to the text in both directions.
    """

    scored: ClassVar[str] = "tokens that are restored"

    def refuses(self, spec: Topology) -> str | None:
        if spec.kind == "decoder":
            return refuse_decoder(self.kind, spec)
        reason = refuse_topology(self.kind, spec, "encoder_decoder", suggest(spec))
        return reason or refuse_headless(self.kind, spec)

    def refuses_documents(self, spec: Any) -> str | None:
        if spec.kind == "decoder" and spec.prefix_lm:
            return f"is true, and a row has one prefix, which {self.kind} needs for each (data.documents=false)"
        return None

    def widths(self, spec: Topology, seq_len: int, documents: bool) -> dict[str, int]:
        _, *widths = self.lay_out(spec, seq_len, documents)
        return dict(zip(spec.towers(), widths, strict=True))

    def lay_out(self, spec: Topology, seq_len: int, documents: bool) -> tuple[int, ...]:
        """Return the number of text tokens in a row (as many as fit rows of `seq_len`), and the length of each tower's
        row."""
        room = max(seq_len // ROOM, 1) if documents else 0
        if spec.kind == "decoder":
            lengths = range(2, seq_len + 1)
            fitting = bisect_right(lengths, seq_len - room, key=self.measure_row)
            length = lengths[max(fitting - 1, 0)]
            return length, self.measure_row(length) + room
        source, target = self.measure(seq_len - room)
        spare = max(source, target) + room - seq_len  # targets of the whole text have one more token, the EOS
        length = max(seq_len - room - max(spare, 0), 2)
        source, target = self.measure(length)
        return length, source + room, target + room

    def measure(self, length: int) -> tuple[int, int]:
        """Return the maximum numbers of input tokens and of targets made from `length` tokens."""
        sizes = self.list_sizes(length)
        return max(source for source, _ in sizes), max(target for _, target in sizes)

    def measure_row(self, length: int) -> int:
        """Return the length of a row with inputs and targets, without the last token, which is a target only."""
        return max(source + target for source, target in self.list_sizes(length)) - 1

    def list_sizes(self, length: int) -> list[tuple[int, int]]:
        """List the numbers of input tokens and targets made from `length` tokens, for each kind of corruption."""
        raise NotImplementedError

    def corrupter(self, context: Context) -> Corrupt:
        """Make the function that corrupts a run of tokens."""
        raise NotImplementedError

    def collator(self, context: Context) -> Collate:
        from zoo.data.collate import Continued, Rewritten

        spec = context.spec
        length, *widths = self.lay_out(spec, context.seq_len, context.documents)
        common = (self.corrupter(context), context.seed, context.tokenizer.eos_id, length, context.documents)
        if spec.kind == "decoder":
            return Continued(*common, width=widths[0], prefixed=spec.prefix_lm)
        padded = len(self.list_sizes(length)) > 1  # corrupted runs differ in length
        return Rewritten(*common, start_id=spec.start_id, widths=(widths[0], widths[1]), padded=padded)


class SpanCorruption(Rewriting, kind="span_corruption"):
    """Replace spans of tokens by a sentinel each; the model writes each sentinel followed by its span (T5; Raffel et
    al., 2020). `rate` is the share of tokens replaced, in spans of `mean_span` tokens on average.

    Sentinels are the tokenizer's `<extra_id_0>` …; missing ones are appended to its vocabulary.
    """

    rate: Rate = 0.15
    mean_span: PositiveFloat = 3.0

    def count_special(self, seq_len: int) -> int:
        return _count_spans(seq_len, self.rate, self.mean_span)

    def extend(self, tokenizer: Tokenizer, seq_len: int) -> None:
        tokenizer.add_special(_sentinels(self.count_special(seq_len)))

    def list_sizes(self, length: int) -> list[tuple[int, int]]:
        return [_measure_spans(length, self.rate, self.mean_span)]

    def corrupter(self, context: Context) -> Corrupt:
        names = _sentinels(self.count_special(context.seq_len))
        sentinels, eos = context.tokenizer.ids_of(names), context.tokenizer.eos_id
        return partial(_corrupt_spans, rate=self.rate, mean=self.mean_span, sentinels=sentinels, eos_id=eos)


class Denoising(Rewriting, kind="denoising"):
    """Text infilling and sentence permutation; the model writes the whole text (BART; Lewis et al., 2019). The share
    `rate` of the tokens is replaced, in spans of Poisson(`mean_span`) tokens with one mask each. With `permute` the
    sentences are in random order. A sentence ends with a token whose text ends in `.`, `!` or `?` or contains a line
    end, and at the end of a text."""

    rate: Rate = 0.3
    mean_span: PositiveFloat = 3.0
    permute: bool = True
    mask_id: NonNegativeInt | None = None

    def refuses(self, spec: Any) -> str | None:
        return super().refuses(spec) or refuse_mask(self.mask_id, spec)

    def count_special(self, seq_len: int) -> int:
        return int(self.mask_id is None)

    def extend(self, tokenizer: Tokenizer, seq_len: int) -> None:
        if self.mask_id is None:
            find_mask(tokenizer)

    def list_sizes(self, length: int) -> list[tuple[int, int]]:
        from zoo.data.corrupt import count_infilled

        noise, masks = count_infilled(length, self.rate, self.mean_span)
        return [(length - noise + masks + 1, length + 1)]

    def corrupter(self, context: Context) -> Corrupt:
        from zoo.data.pieces import read_pieces

        mask = find_mask(context.tokenizer) if self.mask_id is None else self.mask_id
        pieces = read_pieces(context.tokenizer)
        return partial(self._infill, pieces=pieces, mask=mask, eos=context.tokenizer.eos_id)

    def _infill(self, ids: np.ndarray, rng: np.random.Generator, *, pieces: Pieces, mask: int, eos: int) -> Corrupted:
        import numpy as np

        from zoo.data.corrupt import Corrupted, infill, permute_sentences

        given = permute_sentences(ids, pieces.ends, rng) if self.permute else ids
        given = infill(given, self.rate, self.mean_span, mask, rng)
        return Corrupted(np.append(given, eos), np.append(ids, eos))


class Denoiser(Spec, axis="denoiser", default="spans"):
    """One of UL2's denoisers, drawn in proportion to its `weight`. `mode` names its mode token."""

    mode: Literal["R", "S", "X"]
    rate: Rate
    weight: PositiveFloat = 1.0

    def find_mean(self, length: int) -> float:
        """Find the mean length, in tokens, of the spans replaced in `length` tokens."""
        return length

    def draw(self, length: int, rng: np.random.Generator) -> np.ndarray:
        """Draw a mask [length] of the tokens that are noise."""
        raise NotImplementedError


class Spans(Denoiser, kind="spans"):
    """Replace spans of `mean_span` tokens on average, as in T5: few short ones (R), or long or many ones (X)."""

    mean_span: PositiveFloat = 3.0

    def find_mean(self, length: int) -> float:
        return self.mean_span

    def draw(self, length: int, rng: np.random.Generator) -> np.ndarray:
        from zoo.data.corrupt import draw_spans

        return draw_spans(length, self.rate, self.mean_span, rng)


class Suffix(Denoiser, kind="suffix"):
    """Replace the last tokens as one span: the model continues the text before them (S)."""

    def draw(self, length: int, rng: np.random.Generator) -> np.ndarray:
        import numpy as np

        from zoo.data.corrupt import count_noise

        return np.arange(length) >= length - count_noise(length, self.rate, length)[0]


MODES = {"R": "[NLU]", "S": "[S2S]", "X": "[NLG]"}
"""The mode tokens, spelled as in UL2's published vocabulary."""


class UL2(Rewriting, kind="ul2"):
    """A mixture of denoisers, one drawn for each row or document (UL2; Tay et al., 2022). With `modes` the input begins
    with the denoiser's mode token. Rows are padded to one length, because corrupted rows differ in length."""

    denoisers: tuple[Denoiser, ...]
    modes: bool = True

    def __post_init__(self) -> None:
        if not self.denoisers:
            raise ValueError("denoisers: there are none (one at least; objective=ul2 has seven)")

    def count_special(self, seq_len: int) -> int:
        return self._count_sentinels(seq_len) + (len(MODES) if self.modes else 0)

    def _count_sentinels(self, seq_len: int) -> int:
        return max(_count_spans(seq_len, each.rate, each.find_mean(seq_len)) for each in self.denoisers)

    def extend(self, tokenizer: Tokenizer, seq_len: int) -> None:
        tokenizer.add_special([*_sentinels(self._count_sentinels(seq_len)), *(MODES.values() if self.modes else ())])

    def list_sizes(self, length: int) -> list[tuple[int, int]]:
        sizes = (_measure_spans(length, each.rate, each.find_mean(length)) for each in self.denoisers)
        return [(given + int(self.modes), targets) for given, targets in sizes]

    def corrupter(self, context: Context) -> Corrupt:
        names = _sentinels(self._count_sentinels(context.seq_len))
        modes = dict(zip(MODES, context.tokenizer.ids_of(list(MODES.values())), strict=True)) if self.modes else {}
        sentinels, eos = context.tokenizer.ids_of(names), context.tokenizer.eos_id
        return partial(self._corrupt, sentinels=sentinels, modes=modes, eos_id=eos)

    def _corrupt(
        self, ids: np.ndarray, rng: np.random.Generator, *, sentinels: Sequence[int], modes: dict[str, int], eos_id: int
    ) -> Corrupted:
        import numpy as np

        from zoo.data.corrupt import fold

        weights = np.array([each.weight for each in self.denoisers])
        way = self.denoisers[rng.choice(len(weights), p=weights / weights.sum())]
        made = fold(ids, way.draw(len(ids), rng), sentinels, eos_id)
        return made._replace(inputs=np.append(modes[way.mode], made.inputs)) if modes else made


def _sentinels(count: int) -> list[str]:
    return [f"<extra_id_{number}>" for number in range(count)]


def _count_spans(length: int, rate: float, mean: float) -> int:
    from zoo.data.corrupt import count_noise

    return count_noise(length, rate, mean)[1]


def _measure_spans(length: int, rate: float, mean: float) -> tuple[int, int]:
    """Return the numbers of input tokens and of targets made from `length` tokens."""
    from zoo.data.corrupt import count_noise

    noise, spans = count_noise(length, rate, mean)
    return length - noise + spans + 1, noise + spans + 1


def _corrupt_spans(
    ids: np.ndarray, rng: np.random.Generator, *, rate: float, mean: float, sentinels: Sequence[int], eos_id: int
) -> Corrupted:
    from zoo.data.corrupt import draw_spans, fold

    return fold(ids, draw_spans(len(ids), rate, mean, rng), sentinels, eos_id)
