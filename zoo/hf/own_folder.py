"""Write a model that fits no published family as a folder for the classes of zoo.hf."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.checkpoint import store
from zoo.checkpoint.hf.writing import read_special_ids
from zoo.checkpoint.verify_folder import Agreement, Reading, verify_folder
from zoo.grammar import to_dict
from zoo.hf.config import ZooConfig
from zoo.hf.task_models import find_class

if TYPE_CHECKING:
    from zoo.checkpoint.stored import StoredModel
    from zoo.run.layer import Model


def save(
    model: StoredModel,
    out: Path,
    beside: Path,
    *,
    force: bool = False,
    check: Callable[[Path], object] | None = None,
) -> str:
    """Write a folder, tensor by tensor, with the tokenizer's files of the folder `beside`; return the class's name.
    With `force` a model that zoo did not write is replaced too. `check` is called with the draft before it appears.

    The folder is a checkpoint of Zoo with a config.json, so zoo's commands read it too. Raises ConfigError for a model
    without a fitting class, and CheckpointError if `out` has other files.
    """
    kind, dtype = find_class(model.spec), str(model.dtype).removeprefix("torch.")
    ids: dict[str, Any] = read_special_ids(beside, model.spec.vocab_size)
    config = ZooConfig(model=to_dict(model.spec), architectures=[kind.__name__], dtype=dtype, **ids)
    kind.fit(model.spec, config)
    store.save_stored(model, out, beside, config=config.to_json_string(), force=force, check=check)
    return kind.__name__


def name_auto(name: str) -> str:
    """Name the Auto class of transformers that loads a class of `zoo.hf`."""
    return f"AutoModel{name.removeprefix('Zoo').removeprefix('Model')}"


def verify(model: Model, folder: Path, readings: Sequence[Reading], without: str) -> Agreement:
    """Compare a model with the folder, opened by transformers in a fresh process, as `verify_folder` does."""
    return verify_folder(model, folder, readings, without, Path(__file__).with_name("own_reference.py"))
