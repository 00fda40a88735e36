"""Keep and write what sentence-transformers has beside a model: modules.json, and a folder for each module after the
model itself (Reimers and Gurevych, 2019)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.errors import CheckpointError
from zoo.families.described import read_json

MODULES, PROMPTS, LIMITS = "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"
FILES = (MODULES, PROMPTS, LIMITS)
KINDS = ("Transformer", "Pooling", "Dense", "LayerNorm", "Normalize", "Dropout")
FOLDERS = tuple(f"[0-9]_{kind}" for kind in KINDS[1:])
"""What such a folder holds beside a checkpoint's own files, as glob patterns."""

POOLINGS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len": "pooling_mode_mean_sqrt_len_tokens",
    "weighted": "pooling_mode_weightedmean_tokens",
    "last": "pooling_mode_lasttoken",
}
"""The poolings, and their flags in 1_Pooling/config.json, in the order in which vectors of several are joined."""


@dataclass(frozen=True)
class Module:
    """One line of modules.json: its kind, and the folder that holds it."""

    kind: str
    folder: Path


def list_modules(folder: Path) -> list[Module]:
    """List the modules of a folder; none where it has no modules.json. Raises CheckpointError for one of a kind that is
    none of KINDS."""
    file = folder / MODULES
    if not file.is_file():
        return []
    try:
        stated: Any = json.loads(file.read_text(encoding="utf-8"))
        found = [Module(str(each["type"]).rpartition(".")[2], folder / each["path"]) for each in stated]
    except (ValueError, TypeError, KeyError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file}: is no list of modules, found {type(error).__name__} (type and path)") from error
    odd = next((each.kind for each in found if each.kind not in KINDS), None)
    if odd is not None:
        raise CheckpointError(f"{file}: has a module {odd}, which is not read (one of: {', '.join(KINDS)})")
    if [each.kind for each in found[:2]] != ["Transformer", "Pooling"]:
        kinds = ", ".join(each.kind for each in found[:2]) or "nothing"
        raise CheckpointError(f"{file}: begins with {kinds} (Transformer, then Pooling)")
    return found


def copy_modules(folder: Path, out: Path) -> None:
    """Copy what a folder has beside its model, unless `out` has modules of its own."""
    if (out / MODULES).exists() or not (folder / MODULES).is_file():
        return
    for module in list_modules(folder)[1:]:
        if module.folder.is_dir():
            shutil.copytree(module.folder, out / module.folder.name)
    for name in FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)


def write_modules(out: Path, pooling: str, width: int, limit: int) -> None:
    """Write the modules of a model whose vectors, `width` wide, are pooled so and made of length 1."""
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(kinds.items())
    ]
    pooled = {"word_embedding_dimension": width, **{flag: name == pooling for name, flag in POOLINGS.items()}}
    pooled["include_prompt"] = True
    files: Mapping[str, Any] = {
        MODULES: modules,
        PROMPTS: {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"},
        LIMITS: {"max_seq_length": limit, "do_lower_case": False},
        "1_Pooling/config.json": pooled,
    }
    (out / "2_Normalize").mkdir()
    for name, value in files.items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def read_settings(folder: Path, name: str) -> dict[str, Any]:
    """Read one of the JSON files of a folder or a module; nothing where there is none."""
    return read_json(folder / name) if (folder / name).is_file() else {}
