# B batch, P prompt
"""Find the towers of a model that read prompts and write text, and check prompts against their limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from zoo.errors import ConfigError
from zoo.model.head import describe_lack
from zoo.model.position.base import Position
from zoo.spec import components

if TYPE_CHECKING:
    from zoo.model.tower import Topology, Tower


def find_writer(spec: Topology) -> Tower:
    """Return the tower that generates: the model itself, or its decoder. Raises ConfigError if no tower does."""
    towers = [tower for tower in spec.towers().values() if tower.causal]
    if not towers:
        raise ConfigError(f"generate: an {spec.kind} writes no text (a decoder or an encoder_decoder does)")
    if not (head := towers[0].head).predicts_tokens:
        raise ConfigError(f"generate: {describe_lack(head)}, so there is nothing to choose a token from (head: lm)")
    return towers[0]


def find_reader(spec: Topology) -> Tower:
    """Return the tower that reads prompts: the model itself, or its encoder."""
    return next(iter(spec.towers().values()))


def check_length(spec: Tower, prompt: int, new: int) -> None:
    """Check that a tower has positions for `prompt + new` tokens. Raises ConfigError if a learned table is shorter."""
    limit = find_limit(spec)
    if limit is not None and prompt + new > limit:
        would = f"at most {limit - prompt}" if limit > prompt else "a shorter prompt"
        found = f"{new} more after a prompt of {prompt} tokens, the model's learned positions end at {limit}"
        raise ConfigError(f"max_new_tokens: {found} ({would} would do)")


def find_limit(spec: Tower) -> int | None:
    """Return the longest sequence, in tokens, that all position schemes of a tower support; None without a limit."""
    limits = [part.limit for _, part, _ in components(spec, spec.d_model) if isinstance(part, Position)]
    return min((limit for limit in limits if limit is not None), default=None)


def check_prompt(reader: Tower, ids: Sequence[int], apart: bool) -> None:
    """Check a prompt against the tower that reads it; `apart` says that this tower is an encoder. Raises ConfigError if
    the prompt is empty, has a token outside the vocabulary, or exceeds an encoder's positions."""
    if not ids:
        raise ConfigError("ids: no token (start from BOS)")
    if not 0 <= min(ids) <= max(ids) < reader.vocab_size:
        found = f"tokens from {min(ids)} to {max(ids)}"
        raise ConfigError(f"ids: {found}, the model's vocabulary is 0 to {reader.vocab_size - 1}")
    limit = find_limit(reader)
    if apart and limit is not None and len(ids) > limit:
        raise ConfigError(f"ids: {len(ids)} tokens, the encoder's positions end at {limit} (shorter prompts)")
