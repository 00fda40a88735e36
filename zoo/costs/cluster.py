# n ranks of a group, k of them on each node
"""Estimate the seconds of collectives among GPUs. Fast links join the GPUs of a node; a slower network joins nodes."""

from __future__ import annotations

from dataclasses import dataclass

from zoo.costs.hardware import Hardware
from zoo.errors import refuse

NODE = 8
"""GPUs of a node: DGX and HGX systems have eight."""

NETWORK = 50e9
"""Bytes a second that a GPU sends to other nodes, in one direction: 400 Gb/s, the network of torchtitan's benchmarks
(benchmarks/llama3_h100_202412_torchtitan.md) and of a DGX H100."""

LINK_SHARE, NETWORK_SHARE = 0.65, 0.9
"""The share of a link's and of the network's bandwidth that collectives reach (Isaev et al., 2023, Calculon,
systems/a100_80g.json)."""

LINK_USAGE, NETWORK_USAGE = 0.15, 0.02
"""The shares of a GPU's compute that a transfer takes from overlapping work: over a link, and over the network (the
same file of Calculon)."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """GPUs of one kind, `node` of them on each node. `network` is the bytes a second that each GPU sends to other
    nodes. Raises ConfigError for numbers out of range, and for several GPUs a node whose link is unknown."""

    device: Hardware
    node: int = NODE
    network: float = NETWORK

    def __post_init__(self) -> None:
        faults = []
        if self.node < 1:
            faults.append(f"node: must be 1 or more GPUs, found {self.node}")
        if not 0 < self.network < float("inf"):
            faults.append(f"network: must be above 0, found {self.network:g} bytes a second (400Gb, say)")
        if self.device.link is None and self.node > 1:
            faults.append(f"gpu: the link of {self.device.title} is not known (--node 1, or another GPU)")
        refuse(faults)

    @property
    def link(self) -> float:
        """Give the bandwidth of a collective within a node, in bytes a second; 0 if the device's link is unknown."""
        return LINK_SHARE * (self.device.link or 0.0)

    def is_inside(self, stride: int, size: int) -> bool:
        """Whether a group of `size` ranks, `stride` apart, fits on one node."""
        return stride * size <= self.node

    def members(self, stride: int, size: int) -> int:
        """Count the ranks on one node in a group of `size` ranks, `stride` apart."""
        return max(1, min(size, self.node // stride))

    def ring_seconds(self, sent: float, stride: int, size: int) -> float:
        """Time a ring collective in which each rank of a group sends `sent` bytes; in seconds.

        Between nodes, the k ranks of a group on one node use their k network cards together: the ring runs at k times
        the network's rate, or at the link's rate if that is lower.
        """
        if size == 1 or not sent:
            return 0.0
        if self.is_inside(stride, size):
            return sent / self.link
        across = self.members(stride, size) * NETWORK_SHARE * self.network
        return sent / (min(self.link, across) if self.members(stride, size) > 1 else across)

    def exchange_seconds(self, sent: float, stride: int, size: int) -> float:
        """Time an all-to-all of `sent` bytes a rank, in seconds. Transfers within the node and to other nodes overlap;
        the latter use each GPU's own network card."""
        if size == 1 or not sent:
            return 0.0
        here = self.members(stride, size)
        away = 0.0 if self.is_inside(stride, size) else (size - here) / (size - 1)
        inside = (1 - away) * sent / self.link if away < 1 else 0.0
        return max(inside, away * sent / (NETWORK_SHARE * self.network))

    def usage(self, stride: int, size: int) -> float:
        """Give the share of a GPU's compute that a group's collectives take while they overlap with it."""
        return LINK_USAGE if self.is_inside(stride, size) else NETWORK_USAGE
