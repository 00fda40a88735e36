"""Find the largest batch or context that fits on a GPU."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from zoo.analysis.solve.bisection import find_reach
from zoo.costs.advice import CHUNKED, PARTS, list_addends
from zoo.costs.flops import count_flops
from zoo.costs.generating import generating
from zoo.costs.hardware import RUNTIME, USABLE
from zoo.costs.memory import training
from zoo.costs.rows import Priced
from zoo.costs.setup import Setup
from zoo.costs.shadow.tape import UnknownOperation
from zoo.errors import ConfigError, refuse

MOST = 1 << 24
"""The largest batch or context that is searched."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Room:
    """The memory of a GPU that a model may use: `usable` · `memory` − `runtime`, in bytes. `usable` is a share (vLLM's
    gpu_memory_utilization; the rest is for fragmentation), `runtime` the bytes that CUDA and its libraries take. Raises
    ConfigError if nothing is left."""

    memory: int
    usable: float = USABLE
    runtime: float = RUNTIME
    gpu: str | None = None

    def __post_init__(self) -> None:
        faults = []
        if not 0 < self.usable <= 1:
            faults.append(f"usable: is a share of the memory, found {self.usable:g} (above 0, at most 1)")
        if self.runtime < 0:
            faults.append(f"runtime: bytes cannot be below 0, found {self.runtime:g}")
        if not faults and self.bytes < 1:
            faults.append(f"memory: nothing is left of {self.memory:,} bytes (a larger one, or less runtime)")
        refuse(faults)

    @property
    def bytes(self) -> int:
        """Give the bytes that the model may use."""
        return int(self.usable * self.memory - self.runtime)

    def as_dict(self) -> dict[str, Any]:
        """Give the fields and `bytes` as plain data."""
        return {**dataclasses.asdict(self), "bytes": self.bytes}


def price_memory(spec: Priced, setup: Setup, *, train: bool = False, prefill: bool = True) -> dict[str, int]:
    """Price one GPU's memory at the peak of generation, or with `train` of a training step: bytes by part, and `total`.
    At the peak of training some parts do not exist, or only in part: those of `list_addends` and the `rest` add up.

    Without `prefill` the prompt is taken to be read in small chunks, so that generation needs only weights and cache.
    Raises ConfigError for a model that cannot generate (unless `train`), for dimensions that the ranks do not divide,
    and for a pass that cannot be traced.
    """
    if not train:
        return _generating(spec, setup, prefill)
    memory = _training(spec, setup)
    parts = {name: memory[name] for name in PARTS if name in memory}
    rest = memory["train_peak"] - sum(memory[name] for name in list_addends(memory))
    return {**parts, "rest": rest, "total": memory["train_peak"]}


def _training(spec: Priced, setup: Setup) -> dict[str, Any]:
    if setup.document is not None:
        count_flops(spec, setup.tokens(spec), documents=setup.documents(spec))  # refuses a model that packs none
    memory = training(spec, setup)
    if "train_peak" not in memory:
        raise ConfigError(f"train: its peak is not known, {memory['activations_unknown']} (without --train would do)")
    return memory


def _generating(spec: Priced, setup: Setup, prefill: bool) -> dict[str, int]:
    try:
        return generating(spec, setup, prefill=prefill)
    except UnknownOperation as error:
        raise ConfigError(f"generate: its peak is not known, {error} (--cache-only would do)") from error


def find_largest_batch(
    spec: Priced, setup: Setup, room: Room, *, train: bool = False, prefill: bool = True, most: int = MOST
) -> dict[str, Any]:
    """Find the largest batch at the set-up's context that fits. Give the memory that it takes (`needed`), and the
    memory of a batch with one more sequence (`one_more`). If nothing fits, `batch` is 0 and `short` is the bytes
    missing for a batch of 1. `at_peak` names the parts of `needed` that add up to its total. Raises ConfigError as
    `price_memory` does."""
    answer = _solve("batch", spec, setup, room, most, train, prefill)
    return {"batch": answer.pop("found"), "context": setup.tokens(spec), **answer}


def find_largest_context(
    spec: Priced, setup: Setup, room: Room, *, train: bool = False, prefill: bool = True, most: int = MOST
) -> dict[str, Any]:
    """Find the longest context at which the set-up's batch fits. Give the memory that it takes (`needed`), and the
    memory with one more token (`one_more`). If nothing fits, `context` is 0 and `short` is the bytes missing for one
    token. Raises ConfigError as `price_memory` does.

    The answer may exceed the model's max_seq_len, with a note, but not the table of learned positions.
    """
    table = min((tower.position.limit for tower in spec.towers().values() if tower.position.limit), default=None)
    answer = _solve("context", spec, setup, room, most if table is None else min(most, table), train, prefill)
    found, trained = answer.pop("found"), spec.max_seq_len
    if found == table:
        answer["notes"] = [f"the table of positions ends at {table:,} tokens, not the memory"]
    if found > trained:
        answer["notes"].append(f"the model's max_seq_len is {trained:,}: beyond it memory would do, quality may not")
    return {"context": found, "batch": setup.batch, **answer}


def _solve(name: str, spec: Priced, setup: Setup, room: Room, most: int, train: bool, prefill: bool) -> dict[str, Any]:
    @functools.cache
    def need(value: int, prefill: bool, setup: Setup = setup) -> dict[str, int]:
        return price_memory(spec, dataclasses.replace(setup, **{name: value}), train=train, prefill=prefill)

    def reach(prefill: bool, setup: Setup = setup) -> int:
        return find_reach(lambda value: need(value, prefill, setup)["total"] / room.bytes, most)

    found = reach(prefill)
    now = need(max(found, 1), prefill)
    answer: dict[str, Any] = {"found": found, "fits": found > 0, "mode": "train" if train else "generate"}
    answer |= {"gpus": setup.ranks, "needed": now}
    if not found:
        answer["short"] = now["total"] - room.bytes
    elif found < most:  # at `most`, there may be no further positions
        answer["one_more"] = need(found + 1, prefill)
    before = {} if found < 2 else need(found - 1, prefill)
    grows = {part: now[part] - before.get(part, 0) for part in now if part not in ("rest", "total")}
    answer["binds"] = max(grows, key=lambda part: grows[part])
    answer["notes"] = [f"searched no further than {most:,}"] if found == most else []
    if train:
        at = _training(spec, dataclasses.replace(setup, **{name: max(found, 1)}))
        answer["at_peak"] = [*list_addends(at), "rest"]
        chunked = reach(prefill, dataclasses.replace(setup, chunked_loss=True)) if "loss_head" in now else 0
        if chunked > found:
            answer["notes"].append(f"zoo train computes the loss in chunks: {name} {chunked:,} fits ({CHUNKED})")
    else:
        answer["at_peak"] = [*grows]
        # all prompts read at once; and decoding, where only weights and cache count
        answer["phases"] = {"prefill": found, "decode": reach(False)} if prefill else {"decode": found}
    return {**answer, "room": room.as_dict()}
