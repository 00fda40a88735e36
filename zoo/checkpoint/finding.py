"""Find the folder of a model at a path of any kind: a checkpoint, a run, a GGUF file, an adapter that peft wrote."""

from __future__ import annotations

from pathlib import Path

from zoo.checkpoint import gguf
from zoo.checkpoint.peft_reading import unpack_adapter
from zoo.families.described import is_peft


def find(path: str | Path) -> Path:
    """Find the folder of a model as `runs.find` does; a GGUF file is unpacked to one, and so is an adapter in peft's
    format. Raises CheckpointError for a missing path, and as both unpackings do."""
    return unpack_adapter(Path(path).expanduser()) if is_peft(path) else gguf.find(path)
