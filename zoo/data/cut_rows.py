"""Count the rows that a limit of tokens truncates, and propose limits that keep 95 % or all of them whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from zoo.data.tokens import PairFile

if TYPE_CHECKING:
    import numpy as np

MOST = 0.95
"""The share of rows that the smaller of the two proposed limits keeps whole."""


def describe_cuts(
    sizes: np.ndarray, limit: int, what: str, cure: Callable[[int], str], cut: int | None = None
) -> str | None:
    """Describe how many rows have more than `limit` tokens, and the settings that would keep 95 % or all of the rows
    whole; None if all are whole. `what` names the rows and what they lose; `cure` writes the setting for a limit;
    `cut`, if given, replaces the number of rows above the limit."""
    import numpy as np

    cut = int((sizes > limit).sum()) if cut is None else cut
    if not cut:
        return None
    most, whole = int(np.quantile(sizes, MOST, method="inverted_cdf")), int(sizes.max())
    near = f"{cure(most)} holds {MOST:.0%}, " if limit < most < whole else ""
    return (
        f"{cut:,} of {len(sizes):,} {what} ({cut / len(sizes):.1%}), at {limit} tokens ({near}{cure(whole)} holds all)"
    )


def name_length(key: str, limit: int) -> Callable[[int], str]:
    """Return a function that writes a length as a setting, with a remark if it exceeds the model's `limit`."""
    return lambda n: f"{key}{n}" + (f", beyond the model's max_seq_len={limit}," if n > limit else "")


def describe_pair_cuts(
    pairs: PairFile, of: str, most: tuple[int, int], seq_len: int, cure: Callable[[int], str]
) -> Iterator[str]:
    """Describe how many pairs are cut to `most` (source, answer) tokens in rows of `seq_len`. Yield a line on sources,
    which are cut at their beginning, and one on answers, which are cut at their end. `of` names the corpus; `cure`
    writes the setting for a length."""
    sizes = pairs.sizes()  # each includes an end of text, which is an answer's last target
    beside = seq_len - most[0]  # tokens of an answer in the same row
    lines = (
        describe_cuts(sizes[::2] - 1, most[0], f"sources{of} lose their beginning", lambda n: cure(n + beside)),
        describe_cuts(sizes[1::2], most[1], f"answers{of} lose their end", lambda n: f"objective.answer_len={n}"),
    )
    yield from (line for line in lines if line is not None)
