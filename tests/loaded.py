"""Load Specs of packaged models, composed once a process: a Spec is frozen, so tests may share it."""

import functools
from collections.abc import Iterable
from typing import Any

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
