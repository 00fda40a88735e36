"""Add the overrides that a run's starting weights imply: their model, tokenizer and adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zoo.checkpoint.adapter_files import read_plan
from zoo.checkpoint.finding import find
from zoo.compose.hydra_engine import Override
from zoo.compose.overrides import list_values, parse_overrides
from zoo.errors import ConfigError, refuse
from zoo.families.described import is_peft
from zoo.jobs.loader import ROOT
from zoo.model_hub import is_hub_name, locate
from zoo.training.start.lora import OWN


def imply_by_weights(parsed: Sequence[Override], body: Mapping[str, Any]) -> list[Override]:
    """Return the overrides, and those that `weights=FOLDER` implies: the folder's model and tokenizer, unless others
    are named. `weights` is typed, or in the config `body`. The run's records then show all of these.

    Raises ConfigError if the folder has no tokenizer and none is named.
    """
    typed = {each.get_key_element(): each for each in parsed}
    chosen = list_values(typed["weights"]) if "weights" in typed else [str(body.get("weights") or "null")]
    if len(chosen) != 1 or chosen[0] in ("None", "null", ""):
        return list(parsed)
    place = locate(chosen[0])
    if is_peft(place):
        faults: list[str] = []
        described = parse_overrides(describe_adapter(chosen[0]), faults)
        refuse(faults)
        others = [each for each in parsed if each.get_key_element() != "weights"]
        return imply_by_weights([*described, *others], body)
    listed = [key for entry in body.get("defaults", []) if isinstance(entry, Mapping) for key in entry]
    model = chosen[0] if is_hub_name(chosen[0]) else place.absolute()
    implied = [] if ROOT in typed or ROOT in body or ROOT in listed else [f"{ROOT}='{model}'"]
    stated = (body.get("data") or {}).get("tokenizer") if isinstance(body.get("data"), Mapping) else None
    if not stated and not any(key.startswith("data.tokenizer") for key in typed):
        folder = find(chosen[0])
        if not (folder / "tokenizer.json").is_file():
            found = f"{folder} has no tokenizer.json"
            raise ConfigError(f"weights: {found} (data.tokenizer.kind=file data.tokenizer.path=… names another)")
        implied += ["data.tokenizer.kind=file", f"data.tokenizer.path='{folder}'"]
    return [*parsed, *parse_overrides(implied, [])]


def describe_adapter(path: str) -> list[str]:
    """Write the overrides by which a run continues training an adapter in peft's format: the base weights, the
    adapter's rank, alpha and adapted products, and the weights that are trained in full. Raises CheckpointError for an
    adapter that cannot be read."""
    plan = read_plan(find(path))
    assert plan is not None
    fields = {**{name: getattr(plan, name) for name in OWN}, "on": f"[{','.join(plan.paths)}]"}
    stated = ",".join(
        f"{name}:{value}" for name, value in {**fields, "adapter": f"'{locate(path).absolute()}'"}.items()
    )
    train = [f"train=[{','.join(plan.trained)}]"] if plan.trained else []
    return [f"weights='{plan.base}'", f"lora={{{stated}}}", *train]
