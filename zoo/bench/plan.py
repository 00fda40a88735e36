"""Plan a race from options: the workload and its sizes, the peers, and each peer's Python interpreter."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from zoo.bench.shape import Shape, parse_shape
from zoo.errors import ConfigError, did_you_mean

OURS = "zoo"
INSTALL = {
    "hf": "pip install transformers",
    "litgpt": "pip install litgpt requests",  # litgpt imports requests without asking for it
}
PEERS = tuple(INSTALL)
WORKLOADS: dict[str, dict[str, int]] = {
    "train": {"batch": 4, "length": 512, "repeats": 2},
    "decode": {"batch": 1, "length": 32, "new_tokens": 128, "repeats": 2},
    "prefill": {"batch": 1, "length": 1024, "repeats": 3},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Race:
    """The plan of a race. `length` is the tokens of a prompt or of a training row, `repeats` the measurements in one
    process. With `threads` None, a probe chooses the fastest number when the race begins."""

    workload: str
    dtype: str = "fp32"
    batch: int = 1
    length: int = 32
    new_tokens: int = 1
    rounds: int = 5
    threads: int | None = None
    repeats: int = 2
    seed: int = 0
    shape: Shape = dataclasses.field(default_factory=Shape)

    def job(self, weights: str, **changes: Any) -> dict[str, Any]:
        """Make the job that a worker gets, ready for JSON."""
        return dataclasses.asdict(self) | {"weights": weights} | changes


def plan_race(workload: str, given: Mapping[str, int | None], shape: Sequence[str], **options: Any) -> Race:
    """Make a race: the workload's default sizes, replaced by those `given` (None: not given). Raises ConfigError."""
    sizes = WORKLOADS[workload] | {name: value for name, value in given.items() if value is not None}
    if "new_tokens" in sizes and workload != "decode":
        raise ConfigError(f"--new-tokens: {workload} has none (decode has)")
    race = Race(workload=workload, shape=parse_shape(shape), **sizes, **options)
    longest = race.shape.max_seq_len
    if race.length + race.new_tokens > longest:
        found = f"{race.length} tokens and {race.new_tokens} new"
        raise ConfigError(f"--length: {found}, max_seq_len is {longest} (--shape max_seq_len=N for more)")
    return race


def parse_peers(text: str) -> list[str]:
    """Parse peers from a list such as `"hf,litgpt"`. Raises ConfigError with a fault for each unknown name."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    options = f"one of: {', '.join(PEERS)}"
    faults = [f"--against {n}: no such peer{did_you_mean(n, PEERS)} ({options})" for n in names if n not in PEERS]
    if faults:
        raise ConfigError(*faults)
    return list(dict.fromkeys(names))


def choose_interpreters(peers: Sequence[str], given: Sequence[str]) -> dict[str, str]:
    """Choose the Python of zoo and of each peer. `given` holds `NAME=PATH`, or a PATH for all peers; the default is the
    running Python."""
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
