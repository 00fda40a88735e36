"""Price many meshes of one model, with a cache for each figure that repeats among them.

Pipeline stages depend only on tp, pp, ep and the schedule. States depend also on the ranks that shard the weights.
A traced pass depends on the microbatch, the recomputation and the ZeRO stage, because FSDP casts weights. So thousands
of meshes need few prices: 30,000 take 5 seconds on a core.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from zoo.costs.activations import Section
from zoo.costs.cluster import Cluster
from zoo.costs.memory import trace_passes
from zoo.costs.rank_tensors import Stage, list_distinct, stages
from zoo.costs.rows import Priced
from zoo.costs.setup import Setup
from zoo.costs.shadow.tape import UnknownOperation
from zoo.costs.states import states
from zoo.costs.step_time import (
    StageTraffic,
    StageWork,
    StepPlan,
    StepTime,
    count_traffic,
    measure_work,
    pass_seconds,
    predict_step,
)
from zoo.costs.train_peak import find_fullest
from zoo.errors import ConfigError

STAGES = ("tp", "pp", "schedule", "chunks", "ep")
"""Fields of a Setup on which the stages of its pipeline depend."""

STATES = (*STAGES, "cp", "dp", "zero", "replicas")
"""Fields of a Setup on which its states and its traffic depend."""

Key = tuple[int | str, ...]


class MeshPrices:
    """Price memory and predict time of set-ups that differ from `base` only in ranks, ZeRO stage, microbatch and
    recomputation."""

    def __init__(self, spec: Priced, base: Setup, cluster: Cluster) -> None:
        self.spec, self.base, self.cluster = spec, base, cluster
        for name in ("_passes", "_pipeline", "_held", "_work", "_sent"):
            setattr(self, name, functools.cache(getattr(self, name)))

    def count_memory(self, setup: Setup) -> int:
        """Count the bytes at the peak of a step on the fullest rank: `train_peak` of `zoo stats`.

        Raises ConfigError for a pass that cannot be traced.
        """
        key, traced = _key(setup), self._passes(setup.batch, setup.recompute == "selective", setup.zero, setup.cp)
        pipeline = self._pipeline(key[: len(STAGES)])
        return find_fullest(self.spec, setup, traced, pipeline, functools.partial(self._held, key)).peak[0]

    def predict(self, plan: StepPlan) -> StepTime:
        """Predict the time of a step on the slowest stage."""
        setup, work = plan.setup, self._work(_key(dataclasses.replace(plan.setup, ep=1), STAGES))
        slowest = max(work, key=lambda index: pass_seconds(work[index], plan, self.cluster.device).total)
        sent = self._sent(slowest, _key(setup))
        return predict_step(work[slowest], sent, plan, self.cluster, self._held(_key(setup), slowest))

    def _passes(self, batch: int, selective: bool, zero: int, cp: int) -> Mapping[str, Section]:
        recompute = "selective" if selective else "none"
        try:
            setup = dataclasses.replace(self.base, batch=batch, recompute=recompute, zero=zero, cp=cp)
            return trace_passes(self.spec, setup)
        except UnknownOperation as error:
            raise ConfigError(f"train: its peak is not known, {error}") from error

    def _pipeline(self, key: Key) -> list[Stage]:
        """List the distinct stages (`list_distinct`)."""
        setup = {**dict(zip(STAGES, key, strict=True)), "replicas": 1}
        return list_distinct(stages(self.spec, dataclasses.replace(self.base, **setup, dp=setup["ep"])))  # type: ignore[arg-type]

    def _find_stage(self, key: Key, index: int) -> Stage:
        return next(stage for stage in self._pipeline(key[: len(STAGES)]) if stage.index == index)

    def _held(self, key: Key, index: int) -> dict[str, Any]:
        return states(self.spec, self._setup(key), self._find_stage(key, index))

    def _work(self, key: Key) -> dict[int, StageWork]:
        """Count the work of the distinct stages for a sequence, by index."""
        saved = {name: section.bytes for name, section in self._passes(1, False, self.base.zero, 1).items()}
        context = self.base.tokens(self.spec)
        tp = int(key[STAGES.index("tp")])
        return {stage.index: measure_work(stage, context, saved, tp) for stage in self._pipeline(key)}

    def _sent(self, index: int, key: Key) -> StageTraffic:
        return count_traffic(self.spec, self._setup(key), self._find_stage(key, index))

    def _setup(self, key: Key) -> Setup:
        return dataclasses.replace(self.base, **dict(zip(STATES, key, strict=True)), batch=1)  # type: ignore[arg-type]


def _key(setup: Setup, names: tuple[str, ...] = STATES) -> Key:
    return tuple(getattr(setup, name) for name in names)
