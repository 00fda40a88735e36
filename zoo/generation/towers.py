# B batch, P prompt
"""The towers of a model that read prompts and write text, and what prompts they can take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zoo.errors import ConfigError
from zoo.model.head import describe_lack
from zoo.model.position.base import Position
from zoo.spec import components


def find_writer(spec: Any) -> Any:
    """The tower that generates: the model itself, or its decoder. Raises ConfigError for a model that has none."""
    towers = [tower for tower in spec.towers().values() if tower.causal]
    if not towers:
        raise ConfigError(f"generate: an {spec.kind} writes no text (a decoder or an encoder_decoder does)")
    if not (head := towers[0].head).predicts_tokens:
        raise ConfigError(f"generate: {describe_lack(head)}, so there is nothing to choose a token from (head: lm)")
    return towers[0]


def find_reader(spec: Any) -> Any:
    """The tower that reads the prompts: the model itself, or its encoder."""
    return next(iter(spec.towers().values()))


def check_length(spec: Any, prompt: int, new: int) -> None:
    """Raises ConfigError when a position scheme ends before `prompt + new` tokens: a learned table. Others go on."""
    limit = find_limit(spec)
    if limit is not None and prompt + new > limit:
        would = f"at most {limit - prompt}" if limit > prompt else "a shorter prompt"
        found = f"{new} more after a prompt of {prompt} tokens, the model's learned positions end at {limit}"
        raise ConfigError(f"max_new_tokens: {found} ({would} would do)")


def find_limit(spec: Any) -> int | None:
    """The longest row that every position scheme of a tower has positions for; None for any."""
    limits = [part.limit for _, part, _ in components(spec, spec.d_model) if isinstance(part, Position)]
    return min((limit for limit in limits if limit is not None), default=None)


def check_prompt(reader: Any, ids: Sequence[int], apart: bool) -> None:
    """Raises ConfigError for a prompt that has no token, or one that the tower which reads it has no number or no
    position for; `apart` says that it is an encoder."""
    if not ids:
        raise ConfigError("ids: no token (start from BOS)")
    if not 0 <= min(ids) <= max(ids) < reader.vocab_size:
        found = f"tokens from {min(ids)} to {max(ids)}"
        raise ConfigError(f"ids: {found}, the model's vocabulary is 0 to {reader.vocab_size - 1}")
    limit = find_limit(reader)
    if apart and limit is not None and len(ids) > limit:
        raise ConfigError(f"ids: {len(ids)} tokens, the encoder's positions end at {limit} (shorter prompts)")
