"""Learning-rate schedules: pure functions from a step to a factor of the peak rate."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from zoo.spec import Spec


def _whole_from_one_on(value: float) -> float:
    if value >= 1 and value != int(value):
        raise ValueError(f"is {value:g}, neither below 1 (a part of the run) nor a whole number of steps")
    return value


Span = Annotated[float, Field(ge=0), AfterValidator(_whole_from_one_on)]
"""Below 1 a fraction of the run's steps, from 1 on a number of steps."""

Ratio = Annotated[float, Field(ge=0, le=1)]


def count_steps(value: float, steps: int) -> int:
    """Convert a Span to steps, for a run of `steps`."""
    return round(value * steps) if value < 1 else int(value)


class Schedule(Spec, axis="schedule"):
    """Linear warm-up, whose last step reaches the peak; then a decay that depends on the kind."""

    warmup: Span = 0.05

    def factor(self, step: int, steps: int) -> float:
        """Compute the factor of the peak learning rate for update `step` of `steps`, counted from 0."""
        warmup = count_steps(self.warmup, steps)
        if step < warmup:
            return (step + 1) / warmup
        return self.after_warmup(step - warmup, max(steps - warmup, 1))

    def fault(self, steps: int) -> str | None:
        """Return why the schedule does not fit a run of `steps` steps; None if it does."""
        return None

    def decays(self, steps: int) -> list[tuple[int, int]]:
        """List the decays, each as its first update (counted from 0) and the number of updates at its end. Empty unless
        a schedule has several."""
        return []

    def is_milestone(self, step: int, steps: int) -> bool:
        """Whether the checkpoint after `step` updates must be written and never deleted."""
        return any(step in decay for decay in self.decays(steps))

    def goes_back_to(self, step: int, steps: int) -> int | None:
        """Return the earlier step whose weights and states update `step` starts from; None to start from the newest."""
        return None

    def list_points(self, steps: int) -> list[int]:
        """List the numbers of updates after which the weights equal those of a run that ends there: the ends of several
        decays. Each has an evaluation."""
        return [end for _, end in self.decays(steps)]

    def count_left_behind(self, step: int, steps: int) -> int:
        """Count the updates among the first `step` that the run has undone by going back to before a decay."""
        return 0

    def after_warmup(self, step: int, steps: int) -> float:
        """Compute the factor at update `step` of the `steps` updates that follow the warm-up, counted from 0: the peak,
        unless a kind decays from there."""
        return 1.0


class Constant(Schedule, kind="constant"):
    """No decay: the peak rate to the end."""


class LinearDecay(Schedule, kind="linear"):
    """Linear decay from the peak to `min_ratio` of it."""

    min_ratio: Ratio = 0.0

    def after_warmup(self, step: int, steps: int) -> float:
        return decay_factor("linear", step / steps, self.min_ratio)


class Cosine(Schedule, kind="cosine"):
    """Cosine decay from the peak to `min_ratio` of it (Loshchilov and Hutter, 2016, without restarts)."""

    min_ratio: Ratio = 0.1

    def after_warmup(self, step: int, steps: int) -> float:
        return decay_factor("cosine", step / steps, self.min_ratio)


class WSD(Schedule, kind="wsd"):
    """Warm-up, stable, decay (Hu et al., 2024): the peak until the last `decay` of the run, then down to `min_ratio`.

    With `shape` sqrt the factor is 1 − √p at fraction p of the decay, the best shape that Hägele et al. (2024)
    compared.
    """

    decay: Span = 0.2
    shape: Literal["linear", "cosine", "sqrt"] = "sqrt"
    min_ratio: Ratio = 0.0

    def factor(self, step: int, steps: int) -> float:
        decay = count_steps(self.decay, steps)
        if step < steps - decay:
            return super().factor(step, steps)
        return decay_factor(self.shape, (step - steps + decay) / decay, self.min_ratio)


class InverseSqrt(Schedule, kind="inverse_sqrt"):
    """√(w / t) at update t, counted from 1, after a warm-up of w updates (Vaswani et al., 2017). Without a warm-up w
    is 1."""

    def factor(self, step: int, steps: int) -> float:
        warmup = max(count_steps(self.warmup, steps), 1)
        return (step + 1) / warmup if step < warmup else math.sqrt(warmup / (step + 1))


class WSDS(Schedule, kind="wsd_s"):
    """WSD with several decays in one run. Each ends at a point, the last at the end of the run.

    So one run gives the losses of runs of several lengths: each point has an evaluation. `points` are fractions of the
    run (below 1) or numbers of steps. `decay` is a fraction of the steps up to the point (below 1) or a number of
    steps. The checkpoints before and after each decay are never deleted. After a decay, training at the peak rate
    continues from the weights and optimizer states `before` it, so that each decay equals that of a separate run
    (Hägele et al., 2024); or from the `decayed` ones, which wastes no step (WSD-S; Wen et al., 2024). The data
    continues either way: no batch is repeated.
    """

    points: tuple[Annotated[Span, Field(gt=0)], ...]
    decay: Annotated[Span, Field(gt=0)] = 0.1
    shape: Literal["linear", "cosine", "sqrt"] = "sqrt"
    min_ratio: Ratio = 0.0
    continue_from: Literal["before", "decayed"] = "before"

    def decays(self, steps: int) -> list[tuple[int, int]]:
        ends = [count_steps(point, steps) for point in self.points] + [steps]
        return [(end - max(count_steps(self.decay, end), 1), end) for end in ends]

    def fault(self, steps: int) -> str | None:
        free = max(count_steps(self.warmup, steps), 1)
        for begin, end in self.decays(steps):
            if begin < free:
                what = f"points: the decay to step {end} begins at {begin}, and could not before step {free}"
                return f"{what} (points further apart, or a shorter decay or warmup)"
            free = end + 1
        return None

    def goes_back_to(self, step: int, steps: int) -> int | None:
        if self.continue_from == "before":
            return next((begin for begin, end in self.decays(steps) if step == end < steps), None)
        return None

    def count_left_behind(self, step: int, steps: int) -> int:
        if self.continue_from == "before":
            return sum(end - begin for begin, end in self.decays(steps) if end < step)
        return 0

    def factor(self, step: int, steps: int) -> float:
        for begin, end in self.decays(steps):
            if begin <= step < end:
                return decay_factor(self.shape, (step - begin) / (end - begin), self.min_ratio)
        return super().factor(step, steps)


def decay_factor(shape: str, part: float, low: float) -> float:
    """Compute the factor at fraction `part` of the decay: from 1 at 0 to `low` at 1."""
    high = {"linear": 1 - part, "cosine": (1 + math.cos(math.pi * part)) / 2, "sqrt": 1 - math.sqrt(part)}[shape]
    return low + (1 - low) * high
