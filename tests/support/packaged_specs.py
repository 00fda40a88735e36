"""Load Specs of packaged models, composed once a process: a Spec is frozen, so tests may share it."""

import functools
from collections.abc import Iterable
from typing import Any

import pytest
import torch

from zoo import compose


@functools.cache
def _loaded(name: str, overrides: tuple[str, ...]) -> Any:
    return compose.load(name, overrides)


def load(target: Any, overrides: Iterable[str] = ()) -> Any:
    """Load the Spec of a packaged model with these overrides. A file or a mapping may change, and is read again."""
    return (
        _loaded(target, tuple(overrides))
        if isinstance(target, str) and "/" not in target
        else compose.load(target, overrides)
    )


def one_in(n: int, values: Iterable[Any]) -> list[Any]:
    """The values as parameters of a test: the first of every `n` each time, the others with the slow ones."""
    return [value if at % n == 0 else pytest.param(value, marks=pytest.mark.slow) for at, value in enumerate(values)]


def make_loud(model: Any, tables: Iterable[int]) -> Any:
    """Draw weights so loud that a key too many, too few or misplaced shows in the logits. `tables` are the numbers of
    rows of look-up tables."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter += 0.2 * noise
            else:
                parameter.copy_(noise * (1.0 if parameter.shape[0] in tables else 2 * parameter.shape[-1] ** -0.5))
    return model
