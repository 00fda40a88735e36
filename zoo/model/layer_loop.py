# B batch, T tokens, S groups of layers, D model width
"""Layers that are run several times with the same weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

from annotated_types import Ge
from pydantic import NonNegativeInt, PositiveInt

from zoo.lazy import Tensor, torch
from zoo.model.channels import Channel, Exchange, Fault, Shadows
from zoo.model.depth_read import GroupSums, count_passed
from zoo.model.norm import RMSNorm, WholeNorm
from zoo.spec import Buffer, Linear, Spec, hold_whole

if TYPE_CHECKING:
    from zoo.model.step import Weights
    from zoo.model.tower import Tower


MOST_VISITS = 100_000
"""Maximum number of layers in all passes of a loop together, equal to a tower's maximum."""


class Loop(Spec, axis="loop", default="plain"):
    """Run the layers `start` to `end` - 1 of a tower several times.

    The tower's pattern names the layers of every pass: with `start` 1, `end` 3 and two passes, places 3 and 4 of the
    pattern are layers 1 and 2 again. Each visit counts as a layer, with a cache of its own; weights are stored once.
    """

    restarts: ClassVar[bool] = False  # whether each pass begins with what went into the first

    start: NonNegativeInt = 0
    """Index of the loop's first layer, from 0 on."""
    end: PositiveInt
    """Index after the loop's last layer."""
    passes: Annotated[int, Ge(2)] = 2
    """Number of times that the loop's layers are run."""

    def __post_init__(self) -> None:
        if self.end <= self.start:
            raise ValueError(f"end is {self.end}, and the loop starts at {self.start} ({self.start + 1} or more)")
        if (count := (self.end - self.start) * self.passes * getattr(self, "low_passes", 1)) > MOST_VISITS:
            raise ValueError(f"its passes are {count:,} layers (at most {MOST_VISITS:,} would do)")

    @property
    def sections(self) -> tuple[int, ...]:
        """Number of layers in each section of the loop, a run of layers that always run one after the other: the whole
        loop, or each of the modules of a hierarchical loop."""
        return (self.end - self.start,)

    @property
    def visits(self) -> tuple[int, ...]:
        """Indices of the layers in the order in which they run."""
        return (*range(self.start, self.end),) * self.passes

    @property
    def stop(self) -> int:
        """Index in the pattern after the loop's last visit."""
        return self.start + len(self.visits)

    def number(self, count: int) -> tuple[int, ...]:
        """List, for each of `count` places of a pattern, the number of the layer whose weights it has.

        Example: with `start` 1, `end` 3 and two passes, seven places have the weights of layers 0, 1, 2, 1, 2, 3, 4.
        """
        return (*range(self.start), *self.visits, *range(self.end, count - self.stop + self.end))

    def resize(self, start: int, sections: Sequence[int]) -> Loop:
        """Return the loop with another start and other numbers of layers in its sections."""
        return replace(self, start=start, end=start + sum(sections))

    def follow(self, m: Weights, exchange: Exchange) -> Rounds | None:
        """Make the Rounds of one forward pass; None if each pass simply reads the output of the previous one."""
        return None

    def find_faults(self, tower: Tower) -> Iterator[Fault]:
        """Yield the faults of a tower's layers under this kind of loop. Called only if the tower has enough layers for
        all passes."""
        yield from ()


class Rounds:
    """A loop during one forward pass of a model. It changes the stream and its group sums between the loop's passes."""

    def enter(self, place: int, x: Tensor) -> Tensor:
        """Return the input [B, T, D] of the layer at a place of the pattern. x is the output of the layer before it."""
        raise NotImplementedError


class Passed(NamedTuple):
    """The stream [B, T, D] between two layers, and the residual sums [B, T, S, D] of the S earlier groups of layers."""

    x: Tensor
    earlier: Tensor | None


class PassBefore(Channel, name="passed"):
    """The output of a loop's previous pass, and the sums of the groups that ended in that pass; None in the first
    pass."""

    staying: ClassVar[str] = "layers are told of a loop's pass before, which another stage may have"

    def __init__(self, tower: Tower, m: Weights, ids: Tensor, x: Tensor) -> None:
        # Pricing traces a tower of one layer of each kind, without its loop: x then stands for a previous pass.
        self.last = Passed(x, None) if tower.loop is None else None

    @classmethod
    def find_faults(cls, tower: Tower) -> Iterator[Fault]:
        told = [name for name, block in tower.blocks.items() if cls.name in block.takes]
        if told and (tower.loop is None or not tower.loop.restarts):
            found = "are from the pass before, and there is none (loop: {kind: restarting})"
            yield ("blocks", told[0], "messages"), found

    @classmethod
    def trace(cls, at: Shadows) -> Any:
        passed = at.make(at.x.shape, at.x.dtype, "passed", at.x.wants_grad)
        return Passed(passed, GroupSums.trace_sums(at, count_passed(at.tower)))


class PlainLoop(Loop, kind="plain"):
    """Loop in which each pass reads the output of the previous one (Dehghani et al., 2019, Universal Transformers;
    Saunshi et al., 2025, looped transformers)."""


class RestartingLoop(Loop, kind="restarting"):
    """Loop in which each pass begins with the first pass's input, and its layers read messages from the previous pass
    (Thinking Machines, 2026, Inkling 2). The layers of later passes are of kinds with `block.messages`. The first
    pass's layers are of the same kinds without messages."""

    restarts: ClassVar[bool] = True

    def find_pass(self, place: int) -> int | None:
        """Find the pass that a place of the pattern is in, from 0 on; None outside the loop."""
        return (place - self.start) // self.sections[0] if self.start <= place < self.stop else None

    def begins_again(self, place: int) -> bool:
        """Whether a pass other than the first begins at a place of the pattern."""
        return bool(self.find_pass(place)) and (place - self.start) % self.sections[0] == 0

    def follow(self, m: Weights, exchange: Exchange) -> Rounds:
        return Restarts(self, exchange)

    def find_faults(self, tower: Tower) -> Iterator[Fault]:
        for place, name in enumerate(tower.pattern):
            number = self.find_pass(place)
            if (PassBefore.name in tower.blocks[name].takes) is not bool(number):
                found = "has none (give it some)" if number else "is told by no pass before it (null)"
                where = "outside the loop" if number is None else f"of pass {number + 1}"
                yield ("blocks", name, "messages"), f"layer {place}, {where}, {found}"
                return
        if GroupSums.name not in tower.blocks[tower.pattern[self.start]].gives:
            yield ("loop", "start"), f"is {self.start}, where no group of layers begins (a layer with opens: true)"


class Restarts(Rounds):
    """Begin each pass of a restarting loop with the loop's input; the previous pass's output goes to the channel
    `passed`."""

    def __init__(self, loop: RestartingLoop, exchange: Exchange) -> None:
        self.loop = loop
        self.groups: GroupSums = exchange.find(GroupSums.name)
        self.before: PassBefore = exchange.find(PassBefore.name)
        self.begun: Passed | None = None

    def enter(self, place: int, x: Tensor) -> Tensor:
        sums = self.groups.last
        if place == self.loop.start:
            self.begun = Passed(x, sums)
        elif place == self.loop.stop:
            self.begun = self.before.last = None
        elif self.loop.begins_again(place):
            assert self.begun is not None and sums is not None
            x_begun, earlier = self.begun
            known = 1 + (0 if earlier is None else earlier.shape[2])  # 1: the pass's first layer appends x_begun
            self.before.last = Passed(x, sums[:, :, known:] if sums.shape[2] > known else None)
            self.groups.last = earlier
            return x_begun
        return x


class HierarchicalLoop(Loop, kind="hierarchical"):
    """Loop of two modules, each of which refines its own state (Wang et al., 2025, Hierarchical Reasoning Model;
    Sapient, 2026, HRM-Text).

    In each pass the first `low_layers` layers run `low_passes` times, l ← f(l + h), then the remaining layers once, h ←
    g(h + l). h begins as the loop's input and ends as its output; l begins as a vector that is saved with the weights
    and not trained. Gradients go through all passes.
    """

    low_layers: PositiveInt
    """Number of the loop's first layers, which are the module f."""
    low_passes: PositiveInt = 1
    """Number of times that the module f runs in each pass."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low_layers >= self.end - self.start:
            found = f"is {self.low_layers}, and the loop has {self.end - self.start} layers"
            raise ValueError(f"low_layers {found} (fewer, so that some are left for the other module)")

    @property
    def sections(self) -> tuple[int, ...]:
        return self.low_layers, self.end - self.start - self.low_layers

    @property
    def visits(self) -> tuple[int, ...]:
        middle = self.start + self.low_layers
        return ((*range(self.start, middle),) * self.low_passes + (*range(middle, self.end),)) * self.passes

    def resize(self, start: int, sections: Sequence[int]) -> Loop:
        return replace(self, start=start, end=start + sum(sections), low_layers=sections[0])

    def parts(self, d_model: int) -> dict[str, Any]:
        return {"low": Buffer((d_model,))}

    shard = hold_whole  # every rank has the states of its own tokens

    def follow(self, m: Weights, exchange: Exchange) -> Rounds:
        return Hierarchy(self, m.low)

    def find_faults(self, tower: Tower) -> Iterator[Fault]:
        name = next((each for each in tower.pattern if GroupSums.name in tower.blocks[each].takes), None)
        if name is not None:
            yield ("blocks", name), "reads groups of layers, and the loop adds up two states (block: pre)"


class Hierarchy(Rounds):
    """Keep the two states of a hierarchical loop: `low` for the loop's first layers, `high` for the others."""

    def __init__(self, loop: HierarchicalLoop, low: Tensor) -> None:
        low_layers, high_layers = loop.sections
        runs = ([True] * loop.low_passes + [False]) * loop.passes  # whether each is of the first module
        ends = [*accumulate((low_layers if each else high_layers for each in runs), initial=loop.start)]
        self.ran = dict(zip(ends[1:], runs, strict=True))  # by the place behind each run
        self.start, self.stop = loop.start, loop.stop
        self.low, self.high = low, low

    def enter(self, place: int, x: Tensor) -> Tensor:
        if place == self.start:
            self.low, self.high = self.low.to(x.dtype).expand_as(x), x
        elif place not in self.ran or place == self.stop:
            return x
        elif self.ran[place]:
            self.low = x
        else:
            self.high = x
        return self.low + self.high


class MessageGate(Spec, axis="message_gate", default="low_rank"):
    """Mix a message from the previous pass into a sub-layer's input."""

    def forward(self, m: Weights, x: Tensor, message: Tensor) -> Tensor:
        """Mix the message into the sub-layer's input x, both [B, T, D]."""
        raise NotImplementedError

    shard = hold_whole  # every rank mixes for its own tokens


class LowRankGate(MessageGate, kind="low_rank"):
    """Compute (1 − tanh(l·W_forget))·x + tanh(l·W_gain)·message, where l = [norm(x), norm(message)]·W_down (Thinking
    Machines, 2026, Inkling 2)."""

    rank: PositiveInt = 64
    """Rank of the gates: channels of l."""
    norm: WholeNorm = RMSNorm(weight=False)
    """Norm of x, and of the message."""

    def parts(self, d_model: int) -> dict[str, Any]:
        out = Linear(self.rank, d_model, precise=True)
        return {"norm": self.norm, "down": Linear(2 * d_model, self.rank, precise=True), "forget": out, "gain": out}

    def forward(self, m: Weights, x: Tensor, message: Tensor) -> Tensor:
        whole, told = x.float(), message.float()
        low = m.down(torch.cat((m.norm(whole), m.norm(told)), -1).to(x.dtype))
        forget, gain = m.forget(low).float().tanh(), m.gain(low).float().tanh()
        return (whole - forget * whole + gain * told).to(x.dtype)


def find_loop_faults(tower: Tower) -> Iterator[Fault]:
    """Yield the faults of a tower's loop."""
    loop = tower.loop
    if loop is None:
        return
    if tower.shared_layers:
        yield ("shared_layers",), "is true, and a loop says which layers have the same weights (one of them)"
    if len(tower.pattern) < loop.stop:
        found = f"its {loop.passes} passes, {len(loop.visits)} layers in all, end at {loop.stop}"
        yield ("loop",), f"{found}, and there are {len(tower.pattern)} (n_layers: {loop.stop} or more)"
        return
    faults = list(loop.find_faults(tower)) or list(_compare_visits(loop, tower))
    yield from faults


def _compare_visits(loop: Loop, tower: Tower) -> Iterator[Fault]:
    """Yield a fault for the first place where a layer has another kind than in its last visit, except for messages."""
    last = dict(zip(loop.visits, tower.pattern[loop.start : loop.stop], strict=True))
    for place, (number, name) in enumerate(zip(loop.visits, tower.pattern[loop.start :], strict=False), loop.start):
        own, block = tower.blocks[name], tower.blocks[last[number]]
        told = PassBefore.name in block.takes and PassBefore.name not in own.takes
        if own != (replace(block, messages=None) if told else block):
            found = f"layer {place} is {name!r}, and {last[number]!r} where its weights are used last"
            yield ("pattern",), f"{found} (the same)"
            return
