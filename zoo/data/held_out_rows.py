"""Read rows of a validation split: all, a sample spread over it, or half of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple

from zoo.data.tokens import EVALUATION, Batch, Collate, Source, TokenFile, gather, to_next_tokens
from zoo.errors import ZooError


def read_evaluation_batches(
    tokens: TokenFile,
    batch_size: int,
    seq_len: int,
    *,
    documents: bool = False,
    collate: Collate | None = None,
) -> Iterator[Batch]:
    """Yield batches of the split in order: each id after the first is a target once.

    The last batch of whole rows may have fewer rows, and the ids left over form a batch of one shorter row. So a mean
    over batches must be weighted by their numbers of targets. With `collate`, only whole rows are read.
    """
    n_rows = tokens.count_rows(seq_len)
    groups: list[Sequence[int]] = [
        range(first, min(first + batch_size, n_rows)) for first in range(0, n_rows, batch_size)
    ]
    if collate is None and (len(tokens) - 1) % seq_len:
        groups.append([n_rows])
    return read_groups(tokens, groups, seq_len, documents, collate)


def read_groups(
    tokens: TokenFile, groups: Iterable[Sequence[int]], seq_len: int, documents: bool, collate: Collate | None
) -> Iterator[Batch]:
    """Make a batch of each group of row numbers of a split."""
    collate = collate or partial(to_next_tokens, eos_id=tokens.eos_id, documents=documents)
    for numbers in groups:
        rows = gather([tokens.read_row(number, seq_len) for number in numbers])
        yield collate(rows, [(EVALUATION, number) for number in numbers])


class Held(NamedTuple):
    """Held-out batches of a source, and the bytes of text of their targets (None if `collate` chose the targets)."""

    name: str
    batches: list[Batch]
    n_bytes: int | None


EvalPart = Literal["all", "tuning", "reporting"]
EVAL_PARTS: Mapping[EvalPart, Callable[[int], range]] = {
    "all": range,
    "tuning": lambda rows: range(rows // 2),
    "reporting": lambda rows: range(rows // 2, rows),
}
"""Maps a part to the function that returns its rows, given the number of rows of a validation split. Hyperparameters
are tuned on the first half and results are reported on the second."""


def hold_out(
    sources: Sequence[Source],
    batch_size: int,
    seq_len: int,
    *,
    wanted: int | None,
    documents: bool,
    collate: Collate | None = None,
    part: EvalPart = "all",
) -> list[Held]:
    """Make batches of the validation splits of all sources: whole, or about `wanted` rows spread evenly, because the
    first rows alone would come from a few documents. Each source gives rows in proportion to its length, at least one.
    `part` selects the first half of each split (`tuning`) or the second (`reporting`).

    With `collate`, ids that do not fill a row are left out. Raises ZooError if a split then has no row.
    """
    there = [source.tokens.count_rows(seq_len) for source in sources]
    held = []
    for source, rows in zip(sources, there, strict=True):
        tokens = source.tokens
        if collate is not None and not rows:
            found = f"found {len(tokens)} tokens, a row has {seq_len} and one more"
            where = f"data.of.{source.name}" if source.name else "data"
            raise ZooError(f"{where}: the validation split fills no row, {found} (a larger data.validation_fraction)")
        own = EVAL_PARTS[part](rows)
        share = len(own) if wanted is None or wanted >= sum(there) else max(round(wanted * rows / sum(there)), 1)
        if part != "all" and not own:
            raise ZooError(
                f"eval_part: the validation split has {rows} rows, too few to halve (a larger data.validation_fraction)"
            )
        if part == "all" and share >= rows:
            whole = read_evaluation_batches(tokens, batch_size, seq_len, documents=documents, collate=collate)
            held.append(Held(source.name, list(whole), None if collate else tokens.n_bytes))
            continue
        share = min(share, len(own))
        numbers = [own[row * len(own) // share] for row in range(share)]
        groups = [numbers[first : first + batch_size] for first in range(0, share, batch_size)]
        batches = list(read_groups(tokens, groups, seq_len, documents, collate))
        held.append(Held(source.name, batches, None if collate else tokens.count_bytes(numbers, seq_len)))
    return held
