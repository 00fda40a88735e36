"""What the verbs do, as functions: plain data out, ConfigError for input that is at fault."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def stats(
    config: Any,
    overrides: Iterable[str] = (),
    *,
    context: int | None = None,
    batch: int = 1,
    dtype: str = "bf16",
) -> dict[str, Any]:
    """What `zoo stats --json` prints, for a packaged name, a YAML path or a Spec. Imports no torch."""
    from zoo.builder import as_spec
    from zoo.costs import price

    return price(as_spec(config, list(overrides)), context=context, batch=batch, dtype=dtype)


def train(
    config: str | Path | None = None, overrides: Iterable[str] = (), *, recipe: str | Path | None = None
) -> Mapping[str, Any]:
    """One training run, as `zoo train model=CONFIG OVERRIDES`; gives what its result.json has.

    `config` is a packaged model or the path of a YAML file, `recipe` a whole training config to start from (`-c`).
    """
    from zoo.config.train import planned
    from zoo.errors import ConfigError

    chosen = [] if config is None else [f"model='{config}'"]
    with planned([*chosen, *overrides], config=None if recipe is None else Path(recipe)) as plan:
        if plan.sweeps:
            raise ConfigError("hydra.mode: a sweep is for `zoo train -m` (one value each)")
        return plan.run()


def export(model: Any, path: str | Path, *, verify: bool = True, shard: int | None = None) -> Path:
    """Writes a model as a Hugging Face folder that transformers loads; gives the folder.

    With `verify` it is done only when transformers, in a fresh process, gives the model's own logits for it. Raises
    ConfigError for an architecture that no family is, with the fields that stand in the way, and CheckpointError when
    the two differ. `shard` is how many bytes a file of weights holds at most.
    """
    from zoo.checkpoint import hf
    from zoo.checkpoint import verify as verification

    if verify:
        verification.require()
    folder = Path(path)
    hf.save(model, folder, shard=shard or hf.SHARD)
    if verify:
        verification.verify(model, folder)
    return folder
