"""What a run on a GPU does beside computing: batches are read ahead and pinned, copies are queued, and products of
float32 take TF32. Only the device's name says that it is a GPU."""

import threading

import pytest
import torch

from support.tiny_runs import compose_run
from zoo.data.tokens import Batch, move_batch
from zoo.distributed.world import ALONE
from zoo.report.progress import Show
from zoo.training import building
from zoo.training.building import open_batches, prepare_device_and_data, settle_process
from zoo.training.planning import plan_training

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def pinned(monkeypatch):
    """The threads in which tensors were pinned, each with the shape."""
    calls = []

    def pin_memory(self):
        calls.append((threading.current_thread().name, tuple(self.shape)))
        return self

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    return calls


def test_a_run_on_a_gpu_reads_pinned_batches_ahead_in_a_thread(corpus, pinned):
    planned, _, data = prepare_device_and_data(plan_training(compose_run(corpus)), Show(6), ALONE)
    alone, ahead = (open_batches(planned, data, device) for device in (CPU, GPU))
    assert alone.ahead is None
    for _ in range(3):
        a, b = next(alone), next(ahead)
        assert all(x is y is None or torch.equal(x, y) for x, y in zip(a, b, strict=True))
    threads = [name.startswith("zoo-batches") for name, shape in pinned if shape == (4, 16)]
    assert len(threads) >= 6 and not any(threads[:2]) and all(threads[2:])  # tokens and targets of each batch


class Rows:
    """A tensor on the host, which notes how it is copied."""

    is_cuda = False

    def __init__(self, pinned=False):
        self.pinned = pinned

    def pin_memory(self):
        return Rows(pinned=True)

    def to(self, device, non_blocking=False):
        return device, self.pinned, non_blocking


def test_a_batch_is_copied_to_a_gpu_from_pinned_memory_without_waiting():
    assert list(move_batch(Batch(Rows(), Rows()), GPU))[:3] == [(GPU, True, True), (GPU, True, True), None]
    assert list(move_batch(Batch(Rows(), Rows()), CPU))[:3] == [(CPU, False, False), (CPU, False, False), None]


@pytest.mark.parametrize(
    ("device", "precision", "found"),
    [(GPU, "bf16", "high"), (GPU, "fp8_rowwise", "high"), (GPU, "fp32", "highest"), (CPU, "bf16", "highest")],
)
def test_what_a_gpu_leaves_in_float32_is_multiplied_in_tf32_unless_the_run_is_exact(
    device, precision, found, corpus, monkeypatch
):
    settings = plan_training(compose_run(corpus, f"precision={precision}")).settings
    for name in ("read_free_memory", "begin_peak_memory"):
        monkeypatch.setattr(building, name, lambda device: None)
    monkeypatch.setattr(building, "keep_memory", lambda: None)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium" if device is GPU else "highest")
        settle_process(settings, device, 0)
        assert torch.get_float32_matmul_precision() == found
    finally:
        torch.set_float32_matmul_precision(before)
