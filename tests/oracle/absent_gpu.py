"""A GPU that is not here, to compile for. To be imported once TRITON_INTERPRET is settled."""

from __future__ import annotations

from triton.backends.compiler import GPUTarget


class Driver:
    """What Triton asks of the driver of a GPU of compute capability `arch` ÷ 10."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0
