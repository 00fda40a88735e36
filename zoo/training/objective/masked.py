# B rows, T tokens
"""Masked language modelling, the objective of encoders."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, NonNegativeInt

from zoo.training.objective.base import Context, Objective, refuse_headless, refuse_topology, suggest

if TYPE_CHECKING:
    import numpy as np

    from zoo.data import Tokenizer
    from zoo.data.corrupt import Corrupted
    from zoo.data.pieces import Pieces
    from zoo.data.tokens import Collate
    from zoo.model.tower import Topology

Rate = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class MLM(Objective, kind="mlm"):
    """Predict masked tokens (BERT; Devlin et al., 2018): the share `rate` of a row's ordinary tokens. Of these the
    share `masked` become the mask, `random` a random token, and the rest stay. With `whole_word` whole words are
    chosen.

    The mask is the tokenizer's, or the token `mask_id`; if a tokenizer has none, one is appended to its vocabulary.
    """

    scored: ClassVar[str] = "masked tokens"

    rate: Rate = 0.15
    masked: Share = 0.8
    random: Share = 0.1
    whole_word: bool = False
    mask_id: NonNegativeInt | None = None

    def __post_init__(self) -> None:
        if self.masked + self.random > 1:
            raise ValueError(f"masked={self.masked} and random={self.random} are more than all (1 together at most)")

    def refuses(self, spec: Topology) -> str | None:
        reason = refuse_topology(self.kind, spec, "encoder", suggest(spec)) or refuse_headless(self.kind, spec)
        return reason or refuse_mask(self.mask_id, spec)

    def count_special(self, seq_len: int) -> int:
        return int(self.mask_id is None)

    def extend(self, tokenizer: Tokenizer, seq_len: int) -> None:
        if self.mask_id is None:
            find_mask(tokenizer)

    def collator(self, context: Context) -> Collate:
        from zoo.data.collate import InPlace
        from zoo.data.pieces import read_pieces

        mask = find_mask(context.tokenizer) if self.mask_id is None else self.mask_id
        corrupt = partial(self._mask, pieces=read_pieces(context.tokenizer), mask=mask)
        return InPlace(corrupt, context.seed, context.tokenizer.eos_id, context.documents)

    def _mask(self, ids: np.ndarray, rng: np.random.Generator, *, pieces: Pieces, mask: int) -> Corrupted:
        from zoo.data.corrupt import mask_tokens
        from zoo.data.pieces import number_words

        words = number_words(ids, pieces) if self.whole_word else None
        ordinary = pieces.ordinary[pieces.ordinary != mask]
        return mask_tokens(ids, ordinary, words, (self.rate, self.masked, self.random), mask, rng)


def find_mask(tokenizer: Tokenizer) -> int:
    """Return the id of a tokenizer's mask token; add the token if there is none."""
    from zoo.data.tokenizer import MASKS

    there = [name for name in MASKS if tokenizer.backend.token_to_id(name) is not None]
    name = there[0] if there else MASKS[-1]
    tokenizer.add_special([name])
    return tokenizer.ids_of([name])[0]


def refuse_mask(mask_id: int | None, spec: Topology) -> str | None:
    """Return a fault if the mask's id is beyond the model's vocabulary, else None."""
    size = next(iter(spec.towers().values())).vocab_size
    if mask_id is not None and mask_id >= size:
        return f"mask_id is {mask_id}, the model's vocabulary is 0 to {size - 1} (null: the tokenizer's)"
    return None
