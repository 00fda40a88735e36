"""Read and write the files of sentence-transformers (Reimers and Gurevych, 2019): modules.json, the files of prompts
and of the maximum length, and the config.json in a module's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from zoo.checkpoint.beside import MODULES
from zoo.checkpoint.tensor_files import SINGLE, write_tensors
from zoo.errors import CheckpointError
from zoo.families.described import read_json, write_json
from zoo.lazy import Tensor
from zoo.untrusted.json_file import SETTINGS, JsonShape
from zoo.untrusted.json_file import read_json as read_any
from zoo.untrusted.printable import shorten
from zoo.untrusted.stated_paths import find_inside

PROMPTS, LIMITS = "config_sentence_transformers.json", "sentence_bert_config.json"
KINDS = ("Transformer", "Pooling", "Dense", "LayerNorm", "Normalize", "Dropout")

POOLINGS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len": "pooling_mode_mean_sqrt_len_tokens",
    "weighted": "pooling_mode_weightedmean_tokens",
    "last": "pooling_mode_lasttoken",
}
"""Poolings and their flags in 1_Pooling/config.json. The vectors of several poolings are concatenated in this order."""


@dataclass(frozen=True)
class Module:
    """A module that modules.json lists: its kind, and its folder."""

    kind: str
    folder: Path


class ModuleLine(JsonShape):
    """The schema of one entry of modules.json."""

    type: str
    path: str


class PoolingFile(JsonShape):
    """The schema of a Pooling's config.json."""

    pooling_mode: str | list[str] | None = None
    include_prompt: bool | None = None


class PromptsFile(JsonShape):
    """The schema of config_sentence_transformers.json."""

    prompts: dict[str, str] | None = None
    default_prompt_name: str | None = None
    activation_fn: str | None = None


class LimitsFile(JsonShape):
    """The schema of sentence_bert_config.json."""

    max_seq_length: Annotated[int, Field(ge=1, le=2**31)] | None = None
    do_lower_case: bool | None = None


class DenseFile(JsonShape):
    """The schema of a Dense's config.json."""

    module_input_name: str | None = None
    module_output_name: str | None = None
    activation_function: str | None = None
    use_residual: bool | None = None


def list_modules(folder: Path) -> list[Module]:
    """List the modules of a folder; none if it has no modules.json. Raises CheckpointError for a kind not in KINDS, and
    unless the first two are Transformer and Pooling."""
    file = folder / MODULES
    if not file.is_file():
        return []
    stated = read_any(file, list[ModuleLine], most=SETTINGS)
    names = [each["type"].rpartition(".")[2] for each in stated]
    odd = next((name for name in names if name not in KINDS), None)
    if odd is not None:
        raise CheckpointError(f"{file}: has a module {shorten(odd)}, which is not read (one of: {', '.join(KINDS)})")
    if names[:2] != ["Transformer", "Pooling"]:
        raise CheckpointError(f"{file}: begins with {', '.join(names[:2]) or 'nothing'} (Transformer, then Pooling)")
    places = (
        find_inside(folder, each["path"], f"{file}: {index}.path") if each["path"] else folder
        for index, each in enumerate(stated)
    )
    return [Module(*each) for each in zip(names, places, strict=True)]


def write_modules(out: Path, poolings: Sequence[str], width: int, limit: int, dense: Sequence[Tensor] = ()) -> None:
    """Write the files of a model whose vectors are pooled from hidden states of `width` numbers, multiplied by the
    matrices `dense`, and scaled to length 1. A text has at most `limit` tokens."""
    kinds = ["Pooling", *["Dense"] * len(dense), "Normalize"]
    paths = {"": "Transformer", **{f"{number}_{kind}": kind for number, kind in enumerate(kinds, 1)}}
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(paths.items())
    ]
    pooled = {"word_embedding_dimension": width, **{flag: name in poolings for name, flag in POOLINGS.items()}}
    pooled["include_prompt"] = True
    files: Mapping[str, Any] = {
        MODULES: modules,
        PROMPTS: {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"},
        LIMITS: {"max_seq_length": limit, "do_lower_case": False},
        "1_Pooling/config.json": pooled,
    }
    for path in list(paths)[2:]:
        (out / path).mkdir()
    for number, matrix in enumerate(dense, 2):
        sizes = {"in_features": matrix.shape[1], "out_features": matrix.shape[0], "bias": False}
        linear = {**sizes, "activation_function": "torch.nn.modules.linear.Identity"}
        files = {**files, f"{number}_Dense/config.json": linear}
        write_tensors({"linear.weight": matrix}, out / f"{number}_Dense" / SINGLE)
    for name, value in files.items():
        (out / name).parent.mkdir(exist_ok=True)
        write_json(out / name, value)


def read_settings(file: Path, shape: type[JsonShape]) -> dict[str, Any]:
    """Read one of the JSON files of a folder or a module; an empty mapping if there is none."""
    return read_json(file, shape) if file.is_file() else {}
