# N rows of a weight (d_out), K its columns (d_in), R rows of x
"""Define Processor, the CPU that a product runs on, and Way, the base class of ways to compute products on it."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from zoo.lazy import Tensor, torch

EXACT = "exact"
"""The precision of ways that keep the model's dtype. Lower precisions are named by `weights=`."""

LOWER = ("fp16", "bf16", "int8", "int4")
"""Values of `weights=`: the precision in which the weights of products are stored."""


@dataclass(frozen=True)
class Processor:
    """The properties of a CPU that the choice of a way depends on. The CPU itself need not be present.

    `features` are instruction sets that decide whether a way is fast or correct (vnni, avx512_bf16, amx). `libraries`
    are those that torch was built with (onednn, fbgemm).
    """

    architecture: str
    name: str = ""
    isa: str = ""
    features: frozenset[str] = frozenset()
    libraries: frozenset[str] = frozenset()
    torch: str = ""
    threads: int = 1

    @property
    def is_x86(self) -> bool:
        return self.architecture in ("x86_64", "AMD64")

    @property
    def key(self) -> str:
        """The key under which timings are stored: everything that changes which way is fastest."""
        sets = "+".join((self.isa, *sorted(self.features)))
        return f"{self.name or self.architecture}, {sets}, torch {self.torch}, {self.threads} threads"


FEATURES = {
    "avx512_bf16": "_is_avx512_bf16_supported",
    "amx": "_is_amx_tile_supported",
    "vnni": "_is_vnni_supported",
}
"""Instruction sets, each with the function of torch.cpu that detects it."""

HELD_TO_AVX2 = ("AVX2", "AVX", "SSE41")
"""Values of ONEDNN_MAX_CPU_ISA with which oneDNN uses no instruction set of FEATURES."""


def describe_processor() -> Processor:
    """Describe the CPU of this process: name, instruction sets, libraries, and torch's present number of threads."""
    return Processor(
        architecture=platform.machine(),
        name=_read_name(),
        isa=torch.backends.cpu.get_cpu_capability(),
        features=_find_features(),
        libraries=_find_libraries(),
        torch=torch.__version__,
        threads=torch.get_num_threads(),
    )


def _find_features() -> frozenset[str]:
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in HELD_TO_AVX2:
        return frozenset()
    asked = {name: getattr(torch.cpu, question, None) for name, question in FEATURES.items()}
    return frozenset(name for name, question in asked.items() if question is not None and question())


def _find_libraries() -> frozenset[str]:
    here = {
        "onednn": torch.backends.mkldnn.is_available(),
        "fbgemm": "fbgemm" in torch.backends.quantized.supported_engines,
    }
    return frozenset(name for name, usable in here.items() if usable)


@cache
def _read_name() -> str:
    """Read the processor's name, with family and model, because the name alone can be ambiguous (virtual machines)."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return platform.processor()
    rows: dict[str, str] = {}
    for line in text.splitlines():
        field, _, value = line.partition(":")
        rows[field.strip()] = value.strip()
    parts = ("model name", ""), ("cpu family", "family "), ("model", "model ")
    return " ".join(f"{word}{rows[field]}" for field, word in parts if rows.get(field))


class Way:
    """A way to compute x·Wᵀ + b on a CPU, for inference. Stateless: one instance serves all products.

    `prepare` may copy the weight to another layout (`packs`), which depends on the processor and is never saved; `run`
    takes the result of `prepare`.
    """

    name: str
    about: str  # one line for `zoo doctor`
    precision: str = EXACT
    packs: bool = True  # whether `prepare` makes a copy of the weight
    on_request: bool = False  # used only when named, or for `stable`: not in the timed choice
    any_shape: bool = False  # whether `run` also takes x [..., K]

    def refuses(self, shape: tuple[int, int], dtype: str, processor: Processor) -> str | None:
        """Return why this way cannot multiply by a weight of `shape` (N, K) and `dtype` (torch's name without the
        prefix); None if it can. A pure function: the processor need not be present."""
        raise NotImplementedError

    def prepare(self, weight: Tensor, bias: Tensor | None) -> Any:
        """Pack a weight [N, K] and a bias [N] for `run`."""
        raise NotImplementedError

    def run(self, x: Tensor, packed: Any) -> Tensor:
        """Multiply x [R, K] to [R, N], in x's dtype."""
        raise NotImplementedError

    def count_bytes(self, shape: tuple[int, int], itemsize: int) -> int:
        """Count the bytes of the packed copy of a weight of `shape` (N, K), whose dtype takes `itemsize` bytes."""
        return shape[0] * shape[1] * itemsize if self.packs else 0

    def suits(self, weight: Tensor) -> str | None:
        """Return why this way cannot represent a weight's values; None if it can."""
        return None
