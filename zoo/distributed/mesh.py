"""The mesh of a run: the number of processes along each kind of parallelism."""

from __future__ import annotations

from dataclasses import dataclass

from zoo.distributed.pipeline_schedule import PipelineSchedule

WAYS = ("dp", "shard", "cp", "tp", "ep", "pp")
"""The kinds of parallelism: data, sharded (FSDP), context, tensor, expert and pipeline."""


@dataclass(frozen=True)
class Mesh:
    """The number of processes of each kind of parallelism: `dp` replicas, each sharded over `shard` processes (FSDP);
    `cp` processes that divide the tokens of a row and exchange keys by `cp_comm`; `tp` processes that divide each
    layer, for the same tokens, and with `async_tp` overlap their exchanges with products. The dp·shard·cp processes
    form groups of `ep`, which divide the experts. A pipeline has `pp` stages of dp·shard·cp·tp processes each, and runs
    a `schedule` with `chunks` chunks of layers per stage."""

    dp: int = 1
    shard: int = 1
    cp: int = 1
    cp_comm: str = "all_gather"
    tp: int = 1
    async_tp: bool = False
    ep: int = 1
    pp: int = 1
    schedule: str = "1f1b"
    chunks: int = 1

    @property
    def pipeline(self) -> PipelineSchedule:
        """The schedule of the pipeline."""
        return PipelineSchedule(self.schedule, self.pp, self.chunks)

    def as_dict(self) -> dict[str, object]:
        """Return the number of processes of each kind of parallelism (WAYS) by name. Adds `cp_comm` if several
        processes form a ring, `async_tp` if true, and `schedule` and `chunks` if they are not the defaults."""
        found: dict[str, object] = {name: getattr(self, name) for name in WAYS}
        found |= {"cp_comm": self.cp_comm} if self.rings and self.cp > 1 else {}
        found |= {"async_tp": True} if self.async_tp else {}
        plain = self.pipeline == PipelineSchedule(stages=self.pp)
        return found if plain else {**found, "schedule": self.schedule, "chunks": self.chunks}

    @property
    def rings(self) -> bool:
        """Whether keys and values of context parallelism travel round a ring."""
        return self.cp_comm == "ring"

    @property
    def rows(self) -> int:
        """Number of parts into which the rows of a batch are divided."""
        return self.dp * self.shard

    @property
    def tokens(self) -> int:
        """Number of parts into which the tokens of a batch are divided."""
        return self.rows * self.cp

    @property
    def size(self) -> int:
        return self.tokens * self.tp * self.pp

    @property
    def weights(self) -> tuple[int, int]:
        """(replicas, shards) of each weight: how many processes hold the same part, and into how many parts it is cut.
        `cp` multiplies the shards if weights are sharded, else the replicas."""
        return (self.dp, self.shard * self.cp) if self.shard > 1 else (self.dp * self.cp, 1)

    @property
    def experts(self) -> tuple[int, int]:
        """(replicas, shards) of an expert's weights. Only one in `ep` processes holds a part of this expert."""
        copies, parts = self.weights
        return (copies, parts // self.ep) if parts % self.ep == 0 else (copies * parts // self.ep, 1)
