"""The processes of a run by what they share: how many of each kind of parallelism."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from zoo.ranks.schedule import Schedule

WAYS = ("dp", "shard", "cp", "tp", "ep", "pp")
"""The kinds of parallelism."""


@dataclass(frozen=True)
class Mesh:
    """How many ways a run is spread: `dp` replicas, each of whose weights lie in `shard` parts. `cp` processes have
    rows in common, of which each has its own tokens, and whose keys meet by `cp_comm`; and `tp` compute one part
    together, with rows and tokens in common. Among the former, each run of `ep` divides the experts. Of all these there
    are as many on each of the `pp` stages of a pipeline, which compute by a `schedule` with `chunks` of layers each."""

    dp: int = 1
    shard: int = 1
    cp: int = 1
    cp_comm: str = "all_gather"
    tp: int = 1
    ep: int = 1
    pp: int = 1
    schedule: str = "1f1b"
    chunks: int = 1

    @property
    def pipeline(self) -> Schedule:
        """The schedule of the stages."""
        return Schedule(self.schedule, self.pp, self.chunks)

    def as_dict(self) -> dict[str, Any]:
        """Give the ways; and how the keys of `cp` meet, and stages compute, where that is not as it is by default."""
        found: dict[str, Any] = {name: getattr(self, name) for name in WAYS}
        found |= {"cp_comm": self.cp_comm} if self.rings and self.cp > 1 else {}
        plain = self.pipeline == Schedule(stages=self.pp)
        return found if plain else {**found, "schedule": self.schedule, "chunks": self.chunks}

    @property
    def rings(self) -> bool:
        """Whether the keys and values of `cp` travel between its processes."""
        return self.cp_comm == "ring"

    @property
    def rows(self) -> int:
        """The ways in which the rows of a batch are divided."""
        return self.dp * self.shard

    @property
    def tokens(self) -> int:
        """The ways in which the tokens of a batch are divided."""
        return self.rows * self.cp

    @property
    def size(self) -> int:
        return self.tokens * self.tp * self.pp

    @property
    def weights(self) -> tuple[int, int]:
        """How many processes hold the same weights, and in how many parts weights lie: those of `cp` add to the parts
        where there are any, and else to the replicas."""
        return (self.dp, self.shard * self.cp) if self.shard > 1 else (self.dp * self.cp, 1)

    @property
    def experts(self) -> tuple[int, int]:
        """The same for experts, of which the ranks of `ep` have others."""
        copies, parts = self.weights
        return (copies, parts // self.ep) if parts % self.ep == 0 else (copies * parts // self.ep, 1)
