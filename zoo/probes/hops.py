# B rows, T tokens
"""Define a probe of multi-step reasoning over facts that the sequence states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from zoo.errors import ConfigError
from zoo.probes.base import Examples, Probe, fill

PAD = 0


@dataclass(frozen=True, kw_only=True)
class Hops(Probe, name="hops"):
    """Multi-hop lookup: the token k steps after x in a cycle whose edges are shuffled (Allen-Zhu, 2025, "Physics of
    language models: part 4.1", the task Depo).

    A sequence uses n of N nodes. It lists the edges x y of a random cycle through all n, in random order; then
    `queries` pairs of a number of steps and a node; then padding. The answer at a query's node is the node that many
    steps later in the cycle. n is drawn from 3 to N with p(n) ∝ 1/(n + √N). The level is k; training draws it for each
    query. Chance is 1/N. A guess among the other nodes of the sequence is right at 1/(n − 1); if n divides k, the
    answer is the query's own node.

    The paper has 225 nodes, up to 8 steps in 2,048 tokens, and wider models with 12 layers. The steps, batch and width
    of size `paper` are our choice (`n_layers=12`).
    """

    level_is: ClassVar[str] = "steps"
    small: ClassVar[Mapping[str, Any]] = {"levels": (1, 2), "nodes": 6, "queries": 4, "steps": 500}
    paper: ClassVar[Mapping[str, Any]] = {
        **{"nodes": 225, "queries": 799, "levels": (1, 2, 4, 8)},
        **{"steps": 20_000, "rows": 96, "d_model": 256},
    }

    levels: tuple[int, ...] = (1, 2, 3, 4)
    nodes: int = 8
    queries: int = 10
    mixer_alone: bool = False
    steps: int = 400
    rows: int = 24

    def __post_init__(self) -> None:
        if self.nodes < 3:
            raise ConfigError(f"hops.nodes: is {self.nodes} (3 at least)")
        if min(self.levels) < 1:
            raise ConfigError(f"hops.levels: has {min(self.levels)} steps (1 at least)")

    @property
    def vocab_size(self) -> int:
        return 1 + self.nodes + max(self.levels)

    @property
    def seq_len(self) -> int:
        return 2 * self.nodes + 2 * self.queries

    def chance(self, level: int) -> float:
        return 1 / self.nodes

    def baseline(self, level: int) -> float:
        sizes, weights = self._weigh_sizes()
        right = np.where(level % sizes == 0, 1.0, 1 / (sizes - 1))
        return float(right @ weights)

    def _weigh_sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the possible numbers of nodes in a sequence, and their probabilities."""
        sizes = np.arange(3, self.nodes + 1)
        weights = 1 / (sizes + np.sqrt(self.nodes))
        return sizes, weights / weights.sum()

    def next_level(self) -> int:
        return min(2 * max(self.levels), self.nodes)

    def draw(self, rng: np.random.Generator, rows: int, level: int | None, seed: int) -> Examples:
        sizes, weights = self._weigh_sizes()
        counts = rng.choice(sizes, rows, p=weights)
        choices = np.array(self.levels if level is None else (level,))
        made = fill(rows, self.seq_len, PAD)
        for row, n in enumerate(counts):
            cycle = 1 + rng.permutation(self.nodes)[:n]
            edges = rng.permutation(n)
            hops, starts = choices[rng.integers(0, len(choices), self.queries)], rng.integers(0, n, self.queries)
            end = 2 * n + 2 * self.queries
            made.tokens[row, 0 : 2 * n : 2], made.tokens[row, 1 : 2 * n : 2] = cycle[edges], cycle[(edges + 1) % n]
            made.tokens[row, 2 * n : end : 2] = self.nodes + hops
            made.tokens[row, 2 * n + 1 : end : 2] = cycle[starts]
            made.labels[row, 2 * n + 1 : end : 2] = cycle[(starts + hops) % n]
        return made
