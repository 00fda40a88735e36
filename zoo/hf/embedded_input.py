# B rows, T tokens, E width of the token table
"""Run a tower on vectors in place of token ids: transformers' `inputs_embeds`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional as F

from zoo.distributed.seam import Seam
from zoo.errors import ConfigError
from zoo.grammar import to_dict
from zoo.lazy import Tensor


class GivenVectors(Seam):
    """Looks up given vectors [N, E] in place of an embedding's rows. Their ids begin at `first`."""

    def __init__(self, vectors: Tensor, first: int) -> None:
        self.vectors, self.first = vectors, first

    def look_up(self, table: Any, ids: Tensor) -> Tensor:
        return F.embedding((ids - self.first).clamp(min=0), self.vectors)


@contextmanager
def read_input(tower: Any, ids: Tensor | None, embeds: Tensor | None) -> Iterator[Tensor]:
    """Yield the token ids [B, T] for a tower's passes in this block: the given `ids`, or one id beyond the vocabulary
    for each of the vectors `embeds` [B, T, E]. The vectors then replace those of the token table.

    The tower scales, projects and adds to the vectors as it does to the table's. Raises ValueError unless exactly one
    is given, with vectors as wide as the table, and ConfigError if another part reads token ids.
    """
    if (ids is None) == (embeds is None):
        raise ValueError("inputs_embeds: give these or input_ids (one of the two)")
    if embeds is None:
        yield ids  # type: ignore[misc] - one of the two is given
        return
    width = tower.embedding.tokens.weight.shape[1]
    if embeds.ndim != 3 or embeds.shape[2] != width:
        raise ValueError(f"inputs_embeds: has the shape {list(embeds.shape)} ([B, T, {width}], as of the token table)")
    if found := find_id_reader(to_dict(tower.spec)):
        raise ConfigError(f"inputs_embeds: {found} reads token ids (give input_ids)")
    vectors = embeds.flatten(0, 1)
    first = tower.spec.vocab_size
    tower.embedding.seam = GivenVectors(vectors, first)
    try:
        yield torch.arange(first, first + len(vectors), device=embeds.device).view(embeds.shape[:2])
    finally:
        del tower.embedding.seam


def find_id_reader(node: Any, path: str = "") -> str | None:
    """Find a part of a tower's node, other than its token table, whose output depends on token ids. Returns the path of
    its field, or None. Skipping the padding's id does not count, because the mask marks padding."""
    if not isinstance(node, Mapping):
        return None
    for key, value in node.items():
        of_vocabulary = key == "vocab_size" and path not in ("", "embedding", "head")
        if value is not None and (of_vocabulary or (key.endswith("_id") and key != "skip_id")):
            return f"{path}.{key}"
        if found := find_id_reader(value, f"{path}.{key}".lstrip(".")):
            return found
    return None
