"""Copy values from the device to the host without waiting for later computations on the device."""

from __future__ import annotations

from typing import Any

from zoo.lazy import Tensor, torch


class LateValues:
    """A tensor's values on their way from the device to the host: on CUDA a copy to pinned memory, in the order of the
    device's stream, and an event after it."""

    def __init__(self, values: Tensor) -> None:
        self._found = torch.empty(values.shape, dtype=values.dtype, pin_memory=values.is_cuda)
        self._found.copy_(values, non_blocking=values.is_cuda)
        self._done = torch.cuda.Event() if values.is_cuda else None
        if self._done is not None:
            self._done.record(torch.cuda.current_stream(values.device))

    def read(self) -> list[Any]:
        """Wait for the values and return them, nested as the tensor's dimensions are."""
        if self._done is not None:
            self._done.synchronize()
        return self._found.tolist()
