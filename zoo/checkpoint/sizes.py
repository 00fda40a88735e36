"""Measure the size of a model's files from their headers alone. Needs no torch."""

from __future__ import annotations

from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

from zoo import runs
from zoo.checkpoint.tensor_files import BITS, Header, read_header, read_headers
from zoo.errors import CheckpointError
from zoo.families.described import CONFIG, is_folder, is_peft, read_config
from zoo.families.gguf import is_gguf, read_gguf
from zoo.untrusted.printable import shorten


def measure_stored(path: Path) -> dict[str, Any] | None:
    """Measure the bytes of a model's tensors in its files, and name how they are stored: the method of quantisation, or
    the dtype of most values. For adapters, also give the bits of each of their parameters. None if no tensor file's
    header can be read without torch.

    Raises CheckpointError for a broken GGUF file.
    """
    if is_gguf(path):
        found = read_gguf(path)
        return {"as": f"GGUF, {found.kind}", "bytes": found.size}
    if not path.is_dir():
        return None
    try:
        folder = path if is_peft(path) else runs.find(path)
        listed = read_headers(folder) if any(folder.glob("*.safetensors")) else {}
        listed = listed | (read_header(folder / runs.ADAPTERS) if (folder / runs.ADAPTERS).is_file() else {})
    except CheckpointError:  # reported where headers are compared with the model
        return None
    if not listed or any(each.dtype not in BITS for each in listed.values()):
        return None
    bytes_ = sum(each.nbytes for each in listed.values())
    if is_peft(path) or (folder / runs.ADAPTERS).is_file():  # whose values are not the model's parameters
        bits = bytes_ * 8 / sum(prod(each.shape) for each in listed.values())
        return {"as": f"{_kind(listed)}, adapters", "bytes": bytes_, "bits_per_parameter": round(bits, 2)}
    return {"as": _method(folder) or _kind(listed), "bytes": bytes_}


def _method(folder: Path) -> str | None:
    settings = read_config(folder / CONFIG).get("quantization_config") if is_folder(folder) else None
    return None if not settings else shorten(str(settings.get("quant_method") or "quantised"))


def _kind(listed: dict[str, Header]) -> str:
    counts: Counter[str] = Counter()
    for each in listed.values():
        counts[each.dtype] += prod(each.shape)
    return counts.most_common(1)[0][0]
