"""Read accelerators' peak rates, memory and bandwidth from conf/hardware/*.yaml. Every figure has its source.

A file has the figures of the maker's data sheet: TFLOP/s by dtype, for dense products accumulated in float32; memory in
GB and GB/s; GB/s in one direction of the link to other GPUs; and a CUDA device's compute capability, which decides the
kernels that can run. `checked: no` marks a figure that was found neither at its source nor in a table that cites it. A
file lists the sources that it cites; sources that many files cite are in conf/sources.yaml.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from zoo.costs.sums import Amount
from zoo.errors import ConfigError, name_options, refuse
from zoo.paths import conf_dir, list_conf, load_yaml, read_conf

RATES = ("fp32", "tf32", "bf16", "fp16", "fp8", "fp4")
"""Dtypes that a file may give a rate for. `fp32` is without TF32, as is torch's default."""

SIZES = ("memory_gb", "visible_mib", "bandwidth_gb_s", "link", "tdp_w")
OPTIONAL = ("visible_mib", "link", "tdp_w", "capability")
KEYS = ("title", "sources", "tflops", "capability", "sparse_factor", *SIZES)

USABLE, RUNTIME = 0.9, 1.5e9
"""The share of a GPU's memory that a program should use, and the bytes that CUDA and its libraries take."""

CARDS = {
    "GB200": "gb200",
    "B300": "b300",
    "B200": "b200",
    "H200": "h200",
    "H100 PCIe": "h100-pcie",
    "H100 NVL": "h100-nvl",
    "H100": "h100",
    "H20": "h20",
    "A100-SXM4-40GB": "a100-40g",
    "A100-PCIE-40GB": "a100-40g",
    "A100 80GB PCIe": "a100-80g-pcie",
    "A100": "a100-80g",
    "A10G": "a10g",
    "A10": "a10",
    "L40S": "l40s",
    "L40": "l40",
    "L4": "l4",
    "RTX 5090": "rtx-5090",
    "RTX 4090": "rtx-4090",
    "RTX 3090": "rtx-3090",
    "RTX A6000": "rtx-a6000",
    "V100": "v100",
    "T4": "t4",
}
"""Substrings of a driver's device name, each with its file in conf/hardware/. The first match counts."""


@dataclass(frozen=True, kw_only=True)
class SheetFigure:
    """A figure of a data sheet and its source. `checked` says whether the figure was found at the source, or in a table
    that cites it. `name` is the technology of a link (NVLink 4, say). `sparse_factor` is that of a rate, if it differs
    from the accelerator's."""

    value: float
    source: str
    checked: bool
    name: str | None = None
    sparse_factor: float | None = None


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """An accelerator. `tflops` and `sizes` are a file's figures by key; `sparse_factor` is the advertised sparse rate ÷
    the dense rate. `capability` is the (major, minor) of a CUDA device, None for a device without CUDA."""

    name: str
    title: str
    tflops: Mapping[str, SheetFigure]
    sizes: Mapping[str, SheetFigure]
    sparse_factor: float
    capability: tuple[int, int] | None = None

    def flops(self, dtype: str) -> float:
        """Give the dense FLOP/s of a dtype, accumulated in float32. Raises ConfigError if the file has no such rate."""
        if dtype not in self.tflops:
            would = ", ".join(self.tflops)
            raise ConfigError(f"dtype: {self.title} does not multiply {dtype} ({would} would do)")
        return self.tflops[dtype].value * 1e12

    def ridge(self, dtype: str) -> float:
        """Give the ridge point: FLOPs per byte above which compute takes longer than memory (Williams et al., 2009)."""
        return self.flops(dtype) / self.bandwidth

    @property
    def memory(self) -> int:
        """Give the bytes of memory that the driver reports, where known, else those on the data sheet."""
        visible = self.sizes.get("visible_mib")
        return self.sold_memory if visible is None else int(visible.value * 2**20)

    @property
    def usable(self) -> float:
        """Give the bytes of memory that a model may use."""
        return usable_bytes(self.memory)

    @property
    def sold_memory(self) -> int:
        """Give the bytes of memory on the data sheet. Some makers write GB for GiB; here a GB is always 10⁹ bytes."""
        return int(self.sizes["memory_gb"].value * 1e9)

    @property
    def bandwidth(self) -> float:
        """Give the memory bandwidth in bytes per second."""
        return self.sizes["bandwidth_gb_s"].value * 1e9

    @property
    def link(self) -> float | None:
        """Give the link bandwidth to other GPUs in bytes per second and direction; None if unknown."""
        return self.sizes["link"].value * 1e9 if "link" in self.sizes else None

    @property
    def link_name(self) -> str | None:
        return self.sizes["link"].name if "link" in self.sizes else None

    def unchecked(self) -> list[str]:
        """List the keys of figures that were not verified: `tflops.bf16`, `link` …"""
        rates = [f"tflops.{dtype}" for dtype, figure in self.tflops.items() if not figure.checked]
        return rates + [key for key, figure in self.sizes.items() if not figure.checked]


def usable_bytes(memory: Amount) -> Amount:
    """Give the bytes that a model may use on a GPU with `memory` bytes."""
    return memory * USABLE - RUNTIME


def list_gpus() -> list[str]:
    """List the packaged accelerators."""
    return list_conf("hardware")


def hardware(name: str) -> Hardware:
    """Load a packaged accelerator by name, or one from a user's YAML file of the same form.

    Raises ConfigError for an unknown name, a missing file, and every fault of the file.
    """
    own = Path(name)
    path = own if own.suffix in (".yaml", ".yml") else conf_dir() / "hardware" / f"{name}.yaml"
    if not path.is_file():
        if path is own:
            raise ConfigError(f"gpu: no such file: {name}")
        raise ConfigError(f"gpu: unknown {name!r}{name_options(name.lower(), list_gpus())}")
    return _load(path, path.stat().st_mtime_ns)


def of_device(name: str) -> Hardware | None:
    """Find a device's packaged accelerator by the driver's name for it; None for an unknown device."""
    file = next((file for part, file in CARDS.items() if part in name), None)
    return None if file is None else hardware(file)


@cache
def _load(path: Path, _: int) -> Hardware:
    """Read a file, cached by its modification time."""
    body = _read(path)
    if isinstance(body, Mapping) and isinstance(body.get("sources"), Mapping):
        body = {**body, "sources": {**body["sources"], **read_conf("sources")}}  # those that many files cite
    refuse(f"{path}: {fault}" for fault in _faults(body))
    return Hardware(
        name=path.stem,
        title=body["title"],
        tflops={dtype: _figure(node, body) for dtype, node in body["tflops"].items()},
        sizes={key: _figure(body[key], body) for key in SIZES if body.get(key) is not None},
        sparse_factor=body["sparse_factor"],
        capability=tuple(body["capability"]["value"]) if body.get("capability") is not None else None,
    )


def _read(path: Path) -> Any:
    from yaml import YAMLError

    try:
        return load_yaml(path)
    except (YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is no YAML: {' '.join(str(error).split())}") from None


def _figure(node: Mapping[str, Any], body: Mapping[str, Any]) -> SheetFigure:
    return SheetFigure(**{**node, "source": body["sources"][node["source"]]})


def _faults(body: object) -> Iterator[str]:
    if not isinstance(body, Mapping):
        yield f"is {body!r}, not a mapping (one with {', '.join(KEYS)})"
        return
    for key in body:
        if key not in KEYS:
            yield f"{key}: there is no such key{name_options(str(key), KEYS)}"
    if missing := [key for key in KEYS if key not in body and key not in OPTIONAL]:
        yield f"is without {', '.join(missing)}"
        return
    if not isinstance(body["title"], str):
        yield f"title: must be text, found {body['title']!r}"
    if not _positive(body["sparse_factor"]):
        yield f"sparse_factor: must be a number above 0, found {body['sparse_factor']!r} (1 without sparsity)"
    if not isinstance(body["sources"], Mapping):
        yield f"sources: must name each source, found {body['sources']!r} (a mapping from a short name to where it is)"
    elif not isinstance(body["tflops"], Mapping) or not body["tflops"]:
        yield f"tflops: must give a figure for each dtype, found {body['tflops']!r} (some of: {', '.join(RATES)})"
    else:
        yield from _figure_faults(body)


def _figure_faults(body: Mapping[str, Any]) -> Iterator[str]:
    for dtype, node in body["tflops"].items():
        if dtype not in RATES:
            yield f"tflops.{dtype}: unknown dtype{name_options(str(dtype), RATES)}"
        yield from _fault(f"tflops.{dtype}", node, body["sources"], "sparse_factor")
    for key in SIZES:
        if body.get(key) is not None or key not in OPTIONAL:
            yield from _fault(key, body.get(key), body["sources"], "name")
    if body.get("capability") is not None:
        yield from _fault("capability", body["capability"], body["sources"], "name", _version, "major and minor [9, 0]")


def _fault(
    key: str,
    node: object,
    sources: Mapping[str, Any],
    extra: str,
    fits: Callable[[Any], bool] | None = None,
    kind: str = "a number above 0",
) -> Iterator[str]:
    needed = {"value", "source", "checked"}
    if not isinstance(node, Mapping) or not needed <= set(node) <= needed | {extra}:
        yield f"{key}: must have value, source and checked, and may have {extra}, found {node!r}"
        return
    if not (fits or _positive)(node["value"]):
        yield f"{key}.value: must be {kind}, found {node['value']!r}"
    if not isinstance(node["checked"], bool):
        yield f"{key}.checked: must be yes or no, found {node['checked']!r}"
    if node["source"] not in sources:
        yield f"{key}.source: {node['source']!r} is not among the sources ({', '.join(map(str, sources)) or 'none'})"
    if extra == "sparse_factor" and extra in node and not _positive(node[extra]):
        yield f"{key}.{extra}: must be a number above 0, found {node[extra]!r}"


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


def _version(value: object) -> bool:
    """Whether a value is a compute capability: a list of two whole numbers."""
    return isinstance(value, list) and len(value) == 2 and all(type(each) is int and each >= 0 for each in value)
