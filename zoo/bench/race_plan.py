"""Plan a race of libraries from options: workload, sizes, racers, and each racer's Python interpreter."""

import dataclasses
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from zoo.bench.race_model import BertShape, RaceShape, parse_shape
from zoo.errors import ConfigError, name_options, refuse

OURS = "zoo"
INSTALL = {
    "hf": "pip install transformers",
    "hf_cb": "pip install transformers",
    "litgpt": "pip install litgpt requests",  # litgpt imports requests without requiring it
    "ctranslate2": "pip install ctranslate2 transformers",  # its converter reads a folder with transformers
    "onnx": "pip install onnxruntime-genai onnx_ir transformers",  # so does its model builder
}
PEERS = tuple(INSTALL)
TAKES = {
    "hf": ("train", "mlm", "decode", "prefill", "batch", "load"),
    "hf_cb": ("decode", "batch"),
    "litgpt": ("train", "decode", "prefill"),
    "ctranslate2": ("decode", "prefill", "batch", "load"),
    "onnx": ("decode", "prefill", "load"),
}
"""The workloads in which each peer is raced."""
WORKLOADS: dict[str, dict[str, Any]] = {
    "train": {"batch": 4, "length": 512, "spend": 10.0},
    "mlm": {"batch": 8, "length": 256, "spend": 10.0},
    "decode": {"batch": 1, "length": 32, "new_tokens": 128, "spend": 12.0},
    "prefill": {"batch": 1, "length": 1024, "spend": 6.0},
    "batch": {"batch": 32, "length": 256, "new_tokens": 64, "spend": 10.0},
    "load": {"batch": 1, "length": 8, "spend": 0.0, "dtype": "bf16"},
}
GENERATES = ("decode", "batch")
WEIGHTS = ("fp16", "bf16", "int8", "int4")
LOWER = {OURS: WEIGHTS, "ctranslate2": ("int8",), "onnx": ("int4",)}
"""The entries of WEIGHTS (weight precisions) that each racer supports."""
HELD: dict[str, Mapping[str, str]] = {
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2",
        "CT2_FORCE_CPU_ISA": "AVX2",
    },
    "avx512": {
        "ATEN_CPU_CAPABILITY": "avx512",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
        "FBGEMM_ENABLE_INSTRUCTIONS": "AVX512",
        "CT2_FORCE_CPU_ISA": "AVX512",
    },
}
"""Environment variables by instruction set: torch, oneDNN, MKL (on Intel), FBGEMM, CTranslate2. avx512 excludes AMX."""
ISAS = {"avx2": "AVX2", "avx512": "AVX-512", "amx": "AVX-512 with AMX"}
SECONDS = 300.0
BILLION = {"d_model": 2048, "n_layers": 22, "n_heads": 32, "d_ff": 5632}
"""Changes of RaceShape for the workload `load`: 1,100,048,384 parameters."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Race:
    """The plan of a race. `length` is the maximum number of tokens of a prompt or a training sequence. `spend` is the
    time of measuring in one process, in seconds.

    Another round begins if it would end within `seconds`, judged by the longest round so far; `rounds` sets the number
    of rounds instead. With `threads` None, a probe chooses the fastest number when the race begins. `weights` adds a
    row for zoo, and for each peer that supports it, with weights of that precision.
    """

    workload: str
    dtype: str = "fp32"
    batch: int = 1
    length: int = 32
    new_tokens: int = 1
    rounds: int | None = None
    seconds: float = SECONDS
    threads: int | None = None
    spend: float = 6.0
    seed: int = 0
    compile: bool = False
    weights: str = ""
    isa: str = ""
    shape: RaceShape = dataclasses.field(default_factory=RaceShape)

    @property
    def precisions(self) -> list[str]:
        """The weight precisions at which the bare linears are timed, for comparison with decoding."""
        return list(dict.fromkeys(filter(None, (self.dtype, self.weights)))) if self.workload == "decode" else []

    def job(self, folder: str, **changes: Any) -> dict[str, Any]:
        """Make a worker's job as plain data. `weights` in `changes` is the precision of the worker's own row."""
        own = {"weights": "", "alone": False, "folder": folder, "precisions": self.precisions}
        own["model"] = self.shape.model
        return dataclasses.asdict(self) | own | changes


@dataclasses.dataclass(frozen=True)
class Racer:
    """One row of a race: a worker, its Python interpreter, and its changes to the race's job."""

    name: str
    worker: str
    python: str
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def exact(self) -> bool:
        """Whether the racer's weights keep the race's precision. Such a racer must compute the same function as zoo."""
        return not self.changes.get("weights")


def plan_race(workload: str, given: Mapping[str, Any], shape: Sequence[str], **options: Any) -> Race:
    """Plan a race: the workload's default sizes, replaced by those `given` (None: not given). Raises ConfigError for
    options without an effect on the workload, a faulty shape, and more tokens than max_seq_len."""
    sizes = WORKLOADS[workload] | {name: value for name, value in given.items() if value is not None}
    _refuse_options(workload, sizes)
    changes = [f"{name}={value}" for name, value in BILLION.items()] if workload == "load" else []
    over = BertShape if workload == "mlm" else RaceShape
    race = Race(workload=workload, shape=parse_shape([*changes, *shape], over), **sizes, **options)
    longest = race.shape.max_seq_len
    if race.length + race.new_tokens > longest:
        found = f"{race.length} tokens and {race.new_tokens} new"
        raise ConfigError(f"--length: {found}, max_seq_len is {longest} (--shape max_seq_len=N for more)")
    return race


def _refuse_options(workload: str, sizes: Mapping[str, Any]) -> None:
    """Raise ConfigError for options without an effect on this workload."""
    faults = []
    if "new_tokens" in sizes and workload not in GENERATES:
        faults.append(f"--new-tokens: {workload} has none ({' and '.join(GENERATES)} have)")
    if sizes.get("compile") and workload not in ("train", "mlm", "decode", "prefill"):
        faults.append(f"--compile: {workload} is not raced compiled (train, mlm, decode and prefill are)")
    if sizes.get("weights") and workload not in ("decode", "prefill", "batch"):
        faults.append(f"--weights: {workload} has one precision (decode, prefill and batch take others)")
    if workload == "load" and (sizes["batch"], sizes["length"]) != (1, 8):
        faults.append("--batch, --length: load reads one short prompt (--shape changes the model)")
    refuse(faults)


def parse_peers(text: str) -> list[str]:
    """Parse peers from a list such as `"hf,litgpt"`. Raises ConfigError with a fault for each unknown name."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    faults = [f"--against {n}: no such peer{name_options(n, PEERS)}" for n in names if n not in PEERS]
    refuse(faults)
    return list(dict.fromkeys(names))


def choose_interpreters(peers: Sequence[str], given: Sequence[str]) -> dict[str, str]:
    """Choose the Python of zoo and of each peer: the running one, except for peers with `NAME=PATH` in `given`, or a
    PATH for all peers. Raises ConfigError for a NAME that is not raced."""
    pythons = {name: sys.executable for name in (OURS, *peers)}
    for text in given:
        name, named, path = text.partition("=")
        if not named:
            pythons |= dict.fromkeys(peers, text)
        elif name in peers:
            pythons[name] = path
        else:
            raise ConfigError(f"--peer-python {text}: '{name}' is not raced (--against {','.join((*peers, name))})")
    return pythons


def list_racers(race: Race, pythons: Mapping[str, str]) -> list[Racer]:
    """List the rows of a race: zoo and the peers. `batch` adds zoo with one request after the other; `weights` adds a
    row for each racer that supports that precision."""
    racers = [Racer(name, name, python) for name, python in pythons.items()]
    if race.workload == "batch":
        racers.insert(1, Racer("zoo, one by one", OURS, pythons[OURS], {"alone": True}))
    if race.weights:
        others = [name for name in pythons if race.weights in LOWER.get(name, ())]
        changes = {"weights": race.weights}
        racers += [Racer(f"{name} {race.weights}", name, pythons[name], changes) for name in others]
    return racers


def list_strangers(race: Race, peers: Iterable[str]) -> dict[str, str]:
    """Map each peer that is not raced in this workload to the reason."""
    return {
        name: f"not raced in {race.workload} ({', '.join(TAKES[name])} are)"
        for name in peers
        if race.workload not in TAKES[name]
    }


def name_isa(isa: str) -> str:
    """Return the usual spelling of an instruction set: `avx512` → `AVX-512`."""
    return ISAS.get(isa, isa.upper())
