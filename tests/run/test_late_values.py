"""Values that are copied to the host while the device goes on: in order, and equal to those that are waited for."""

from types import SimpleNamespace

import torch

from zoo.run import late_values
from zoo.run.late_values import LateValues


def test_on_cuda_values_go_through_pinned_memory_and_only_their_event_is_waited_for(monkeypatch):
    """By a fake, in this order: a copy that is not waited for, an event after it, and the wait for this event alone."""
    order = []

    class Event:
        def record(self, stream):
            order.append(f"record on {stream}")

        def synchronize(self):
            order.append("wait")

    class Host:
        def copy_(self, source, *, non_blocking):
            order.append(("fetch", source.name, non_blocking))

        def tolist(self):
            order.append("read")
            return [5]

    def empty(shape, *, dtype, pin_memory):
        order.append(("pinned", pin_memory))
        return Host()

    cuda = SimpleNamespace(Event=Event, current_stream=lambda device: f"the stream of {device}")
    monkeypatch.setattr(late_values, "torch", SimpleNamespace(empty=empty, cuda=cuda))
    device = SimpleNamespace(name="tokens", is_cuda=True, shape=(1,), dtype=torch.int64, device="cuda:1")
    late = LateValues(device)
    assert order == [("pinned", True), ("fetch", "tokens", True), "record on the stream of cuda:1"]
    assert late.read() == [5]
    assert order[3:] == ["wait", "read"]


def test_later_changes_of_a_tensor_are_not_read():
    values = torch.tensor([[1.5, 2.0], [3.0, torch.inf]], dtype=torch.float64)
    late = LateValues(values)
    values.zero_()
    assert late.read() == [[1.5, 2.0], [3.0, torch.inf]]
