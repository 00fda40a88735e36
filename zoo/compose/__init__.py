"""Compose YAML and overrides, and load the Spec of a packaged model, a file, a folder or a mapping. Uses no torch.

Composing uses Hydra's own engine; only `zoo.compose.hydra_engine` uses Hydra's private names. Hydra is imported when a
function here is called, so that `import zoo.compose` costs nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo.model.decoder import Decoder


def load(target: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> Decoder:
    """Load the Spec of a packaged model, a file (YAML, config.json or GGUF), a folder (a published model, a checkpoint
    or a run) or a mapping, with Hydra overrides. The overrides need no `model.` prefix.

    Warns (UserWarning) of parts of a config.json that a Spec cannot hold, such as a vision tower, and of fields dropped
    because an override chose a component without them. Raises ConfigError with all faults of the target and of the
    overrides.
    """
    from zoo.compose.targets import Composer, spec_of_composed

    composer = Composer(target)
    composed = composer.compose([overrides] if isinstance(overrides, str) else list(overrides))
    spec = spec_of_composed(composed)
    for note in [*composer.found.notes, *composed.left_out]:
        warnings.warn(note, stacklevel=2)
    return spec
