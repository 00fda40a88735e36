"""What the verbs do, as functions: plain data out, ConfigError for input that is at fault."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def stats(config: Any, overrides: Iterable[str] = (), **setup: Any) -> dict[str, Any]:
    """What `zoo stats --json` prints, for a packaged name, a YAML path or a Spec. Imports no torch.

    `setup` are fields of `zoo.costs.Setup`: context, batch, dtype, optimizer, gpu and so on.
    """
    from zoo.costs import price
    from zoo.run.builder import as_spec

    return price(as_spec(config, list(overrides)), _setup(setup))


def diff(a: Any, b: Any, overrides: Iterable[str] = (), **setup: Any) -> dict[str, Any]:
    """What `zoo diff --json` prints: `architecture`, the fields that differ by dotted path, and `figures`, each with
    its value in `a` and in `b`, their `delta` and the `relative` difference."""
    from zoo.analysis import compare
    from zoo.costs import price
    from zoo.run.builder import as_spec

    first, second = (as_spec(config, list(overrides)) for config in (a, b))
    return compare.compare_specs(first, second, [price(spec, _setup(setup)) for spec in (first, second)])


def _setup(fields: Mapping[str, Any]) -> Any:
    """The Setup of these fields. Raises ConfigError for one that it does not have, and for a set-up at fault."""
    from zoo.costs.setup import NAMES, Setup
    from zoo.errors import ConfigError, did_you_mean

    if strange := [name for name in fields if name not in NAMES]:
        raise ConfigError(*(f"{name}: no field of a set-up{did_you_mean(name, NAMES)}" for name in strange))
    return Setup(**fields)


def train(
    config: str | Path | None = None, overrides: Iterable[str] = (), *, recipe: str | Path | None = None
) -> Mapping[str, Any]:
    """One training run, as `zoo train model=CONFIG OVERRIDES`; gives what its result.json has.

    `config` is a packaged model or the path of a YAML file, `recipe` a whole training config to start from (`-c`).
    """
    from zoo.errors import ConfigError
    from zoo.jobs.plan import planned

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
        verification.require_transformers()
    folder = Path(path)
    hf.save(model, folder, shard=shard or hf.SHARD)
    if verify:
        verification.verify_folder(model, folder)
    return folder
