"""Record what a function does on a CUDA device as a CUDA graph, and replay it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zoo.lazy import torch
from zoo.spec import Experts, Linear, walk

if TYPE_CHECKING:
    from torch import Tensor

WARM = 2
"""Passes before a recording: kernels are compiled and chosen in the first, and their workspaces allocated."""

Replay = tuple[Callable[[], object], "Tensor"]
"""What runs a recorded function again, and the tensor in which its result then is."""

Record = Callable[[Callable[["Tensor"], "Tensor"], "Tensor"], Replay]
"""What records a function of a tensor, whose numbers may change between replays."""


class CudaRecorder:
    """Records functions on a CUDA device. Their recordings share one pool of memory, as only one runs at a time;
    `nbytes` are what they hold on the device."""

    def __init__(self, device: Any) -> None:
        self.device, self.pool, self.nbytes = device, None, 0

    def __call__(self, function: Callable[[Tensor], Tensor], numbers: Tensor) -> Replay:
        """Record a function of these numbers; before, it is run on a stream of its own. Raises RuntimeError where it
        does what a graph cannot hold, as waiting for the device."""
        with torch.cuda.device(self.device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM):
                    function(numbers)
            torch.cuda.current_stream().wait_stream(side)
            self.pool = self.pool or torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            torch.cuda.empty_cache()  # as torch does before it records: what comes to be reserved is the recording's
            before = torch.cuda.memory_reserved()
            with torch.cuda.graph(graph, pool=self.pool):
                result = function(numbers)
            self.nbytes += torch.cuda.memory_reserved() - before
        return graph.replay, result


def find_blocker(writer: Any, dtype: str) -> str | None:
    """Say which part of a decoder waits for the device in the middle of a step on CUDA, or None."""
    from zoo.kernels.grouped import refuses

    for path, part in walk(writer, writer.d_model):
        if isinstance(part, Experts) and isinstance(part.of, Linear):
            reason = refuses("cuda", dtype, part.of.d_in, part.of.d_out)
            if reason is not None:
                return f"{path} reads on the host how many rows each expert has, as {reason}"
    return None
