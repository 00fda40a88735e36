"""Record a function's kernels on a CUDA device as a CUDA graph, and replay it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from zoo.lazy import Tensor, torch
from zoo.spec import Experts, Linear, walk

if TYPE_CHECKING:
    from zoo.model.tower import Tower

WARM = 2
"""Number of warm-up passes before a recording, which compile and choose kernels and allocate their workspaces."""

Replay = tuple[Callable[[], object], "Tensor"]
"""A function that replays a recording, and the tensor that then holds its result."""

Record = Callable[[Callable[["Tensor"], "Tensor"], "Tensor"], Replay]
"""A recorder: it takes a function of a tensor, and that tensor, whose values may change between replays."""


class CudaRecorder:
    """Records functions on a CUDA device as graphs that share one memory pool; `nbytes` counts the bytes reserved for
    all recordings."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.pool, self.nbytes = device, None, 0
        self.side: torch.cuda.Stream | None = None  # kept: cuBLAS allocates a workspace for each stream, and keeps it

    def __call__(self, function: Callable[[Tensor], Tensor], numbers: Tensor) -> Replay:
        """Record `function(numbers)`, after warm-up passes on a side stream. Raises RuntimeError if the function does
        something that a graph cannot contain, such as waiting for the device. What other threads do is not checked:
        NCCL's watchdog queries events of earlier collectives meanwhile."""
        with torch.cuda.device(self.device):
            side = self.side = self.side or torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM):
                    function(numbers)
            torch.cuda.current_stream().wait_stream(side)
            self.pool = self.pool or torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            torch.cuda.empty_cache()  # as torch does: memory reserved from here on belongs to the recording
            before = torch.cuda.memory_reserved()
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                result = function(numbers)
            self.nbytes += torch.cuda.memory_reserved() - before
        return graph.replay, result


def find_blocker(writer: Tower, dtype: str) -> str | None:
    """Find a part of a decoder that waits for CUDA within a step, because it counts the rows of each expert on the
    host. Return the part's path with the reason, or None."""
    from zoo.kernels.grouped_products import refuses

    for path, part in walk(writer, writer.d_model):
        if isinstance(part, Experts) and isinstance(part.of, Linear):
            reason = refuses("cuda", dtype, part.of.d_in, part.of.d_out)
            if reason is not None:
                return f"{path} reads on the host how many rows each expert has, as {reason}"
    return None
