"""Decide which layers of a decoding step run normally, are recorded, or are replayed (`zoo.run.recording`)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch.nn.modules import module as hooks

from zoo.model.step import Step
from zoo.run.recording import Recorder, Recording

MOST = 2048
"""Maximum number of recordings; beyond it the oldest is dropped. 12 layers and batches of 1 to 32 rows need 384."""


@dataclass
class _Course:
    """A layer's progress towards a replay: passes seen, and the last recording."""

    passes: int = 0
    recording: Recording | None = None
    replays: bool = False
    refused: bool = False


class Recordings:
    """The recordings of a model's layers in decoding steps, one for each layer, number of rows and kind of step.

    A layer first runs normally, in max(1, B // 2) passes of B rows: with many rows a replay gains little, and the
    number of rows soon changes. It is recorded in the next two passes, and replayed if both made the same calls with
    the same constants (a token count, say, would differ). A layer that cannot be replayed runs normally; `refused`
    counts the reasons. The model must not change in the meantime.
    """

    def __init__(self) -> None:
        self.refused: Counter[str] = Counter()
        self._courses: dict[Any, _Course] = {}

    @property
    def replayed(self) -> int:
        """Number of recordings that are replayed."""
        return sum(course.replays for course in self._courses.values())

    def run(self, number: int, layer: Any, x: Any, step: Step) -> Any:
        """Compute the output of layer `number` for x [B, T, D], by a replay if there is one and T = 1."""
        if x.shape[1] != 1:
            return _run(layer, x, step)
        reads = step.cross is not None and step.cross.memory is not None  # an encoder's output comes in this pass
        key = number, x.shape[0], step.first, type(step.keys), step.real is None, reads
        course = self._courses.get(key) or self._begin(key)
        if course.replays:
            assert course.recording is not None
            return course.recording.replay(x, step)
        course.passes += 1
        if course.refused or course.passes <= max(1, x.shape[0] // 2):
            return _run(layer, x, step)
        return self._record(course, layer, x, step)

    def _begin(self, key: Any) -> _Course:
        if len(self._courses) >= MOST:
            del self._courses[next(iter(self._courses))]
        return self._courses.setdefault(key, _Course())

    def _record(self, course: _Course, layer: Any, x: Any, step: Step) -> Any:
        recorder = Recorder(x, step)
        with recorder:
            y = _run(layer, x, recorder.step)
        step.losses += recorder.step.losses
        recording, earlier = Recording(recorder, y), course.recording
        recorder.let_go()
        reason = recorder.refused or ("it has hooks" if _has_hooks(layer) else None)
        if earlier is not None and recording != earlier:
            reason = reason or "its calls differ from pass to pass"
        if reason:
            self.refused[reason] += 1
        course.refused, course.recording = bool(reason), None if reason else recording
        course.replays = course.recording is not None and earlier is not None
        return y


def _run(layer: Any, x: Any, step: Step) -> Any:
    """Run a layer uncompiled: a compiled layer would be compiled anew for each number of tokens and rows. CUDA graphs
    record compiled layers, because their shapes are few (`zoo.generation.graphs`)."""
    return (layer if layer._compiled_call_impl is None else layer.forward)(x, step)


def _has_hooks(layer: Any) -> bool:
    """Whether a module of the layer has forward hooks, which a replay would skip."""
    own = ("_forward_hooks", "_forward_pre_hooks")
    everywhere = hooks._global_forward_hooks or hooks._global_forward_pre_hooks
    return bool(everywhere) or any(getattr(module, name) for module in layer.modules() for name in own)
