"""Compute the mask of an attention as a grid: which keys each query sees, by the model's own mask function.

`Mask.sees` is a function of indices. Here the indices are integers, not tensors, so torch is not needed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from zoo.kernels.mask import Mask
from zoo.model.attention.base import Attention, Sight

CELLS = 16
"""Side of a grid: number of queries, and of keys."""


class _Index(int):
    """An integer with the tensor methods that a mask calls."""

    device = "cpu"

    def __add__(self, other: int) -> _Index:
        return _Index(int(self) + int(other))

    def __sub__(self, other: int) -> _Index:
        return _Index(int(self) - int(other))

    def abs(self) -> _Index:
        return _Index(abs(int(self)))


class _Documents:
    """The document number of each token, for documents of `size` tokens; indexed by (row, token)."""

    shape = (2,)

    def __init__(self, size: int) -> None:
        self.size = size

    def to(self, device: object) -> _Documents:
        return self

    def __getitem__(self, indices: tuple[int, int]) -> int:
        return int(indices[1]) // self.size


class MaskGrid(NamedTuple):
    """Which keys each query sees, as [query][key], for every `step`-th token. `pooled` is the same for keys that each
    stand for several tokens."""

    step: int
    seen: tuple[tuple[bool, ...], ...]
    pooled: tuple[tuple[bool, ...], ...] = ()


def find_grid(attention: Attention, causal: bool) -> MaskGrid:
    """Compute the grid of an attention, over enough tokens to show its window or blocks."""
    sight = attention.sight
    if width := find_convolved(attention):
        sight = sight._replace(window=width)
    reach = sight.near or sight.window or sight.chunk or 4
    step = sight.blocks.size if sight.blocks else max(1, reach // 4)
    tokens = CELLS * step
    places = [at * step + step - 1 for at in range(CELLS)]  # the last token of a cell, which sees most
    mask = make_mask(sight, causal, tokens)
    seen = tuple(tuple(sees(mask, sight, query, key, tokens) for key in places) for query in places)
    if sight.rate == 1:
        return MaskGrid(step, seen)
    size = max(sight.rate, step)
    ends = range(size, tokens + 1, size)
    return MaskGrid(step, seen, tuple(tuple(not causal or end <= query + 1 for end in ends) for query in places))


def find_convolved(attention: Attention) -> int:
    """Return the number of tokens that a convolutional mixer sees. 0 for a mixer that caches anything but a
    convolution's inputs."""
    state = attention.state()
    return 0 if attention.cache() or set(state) != {"conv"} else state["conv"][0] + 1


def name_seen(attention: Attention) -> str:
    """Name the meaning of a grid's cells: keys that a softmax reads, or tokens that are mixed by other means."""
    if attention.ask("fp32") is not None:
        return "keys"
    if attention.state():
        return "through a state"
    landmarks = getattr(attention, "n_landmarks", None)
    return f"through {landmarks} landmarks, means of tokens" if landmarks else "tokens, mixed without keys"


def list_hidden(attention: Attention) -> list[str]:
    """List the parts of a mask that a grid cannot show, because they depend on the text or are random."""
    sight = attention.sight
    summed = sight.window is not None and hasattr(attention, "block_size")
    hidden = {
        "global tokens": "global" in attention.extras or summed,
        "random blocks": hasattr(attention, "random_blocks"),
    }
    return [name for name, held in hidden.items() if held]


def make_mask(sight: Sight, causal: bool, tokens: int) -> Mask:
    """Make the mask over `tokens` tokens, as `ForwardContext.see` does. For attention over pooled keys, it is the mask
    of single tokens."""
    documents: Any = (_Documents(sight.chunk),) * 2 if sight.chunk else None
    window = sight.near or sight.window or (None if causal else tokens)
    return Mask(tokens, tokens, causal=causal, window=window, ahead=sight.ahead, documents=documents)


def sees(mask: Mask, sight: Sight, query: int, key: int, tokens: int) -> bool:
    if sight.rate > 1 and not sight.near:
        return False  # pools alone
    if sight.blocks is not None:
        if tokens <= sight.blocks.whole_until:
            return True
        last = (tokens - 1) // sight.blocks.size
        one, two = query // sight.blocks.size, key // sight.blocks.size
        return abs(one - two) <= 1 or {one, two} & {0, last} != set()
    return bool(mask.sees(_Index(0), _Index(query), _Index(key)))  # type: ignore[arg-type]
