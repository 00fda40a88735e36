"""A run's own small files: where they stand, its config and its outcome."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from zoo import runs
from zoo.disk import write_text


def find_output_folder() -> Path:
    """Return Hydra's output folder of this job; without Hydra, one named by the time."""
    from hydra.core.hydra_config import HydraConfig

    if HydraConfig.initialized():
        return Path(HydraConfig.get().runtime.output_dir)
    return Path("outputs") / time.strftime("%Y-%m-%d_%H-%M-%S")


def write_yaml(file: Path, node: Any) -> None:
    """Write plain data, short nodes on one line."""
    write_text(file, yaml.safe_dump(node, sort_keys=False, default_flow_style=None, width=120))


def write_result(folder: Path, result: Mapping[str, Any]) -> None:
    """Update result.json. Keys of the one that is there stay, such as the overrides that the run was started with."""
    file = folder / runs.RESULT
    before = runs.read_whole_result(file)
    merged = {key: value for key, value in {**before, **result}.items() if value is not None}
    write_text(file, json.dumps(merged, indent=2) + "\n")
