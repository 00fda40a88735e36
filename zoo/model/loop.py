# B batch, T tokens, S groups of layers, D model width
"""Layers that are run several times with the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Ge
from pydantic import NonNegativeInt, PositiveInt

from zoo.lazy import torch
from zoo.model.norm import RMSNorm, WholeNorm
from zoo.spec import Linear, Spec

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.model.step import Weights
    from zoo.model.tower import Tower


class Loop(Spec, axis="loop", default="plain"):
    """Run the layers at the places `start` to `end` - 1 of a tower's pattern `passes` times. The pattern names the
    layers of every pass: with `start` 1, `end` 3 and two passes those at 3 and 4 are the layers 1 and 2 again. Each
    pass has caches of its own."""

    restarts: ClassVar[bool] = False  # whether each pass begins with what went into the first

    start: NonNegativeInt = 0
    end: PositiveInt
    passes: Annotated[int, Ge(2)] = 2

    def __post_init__(self) -> None:
        if self.end <= self.start:
            raise ValueError(f"end is {self.end}, and the loop starts at {self.start} ({self.start + 1} or more)")

    @property
    def n_layers(self) -> int:
        """How many layers a pass has."""
        return self.end - self.start

    @property
    def stop(self) -> int:
        """The place behind the last pass."""
        return self.start + self.passes * self.n_layers

    def find_pass(self, place: int) -> int | None:
        """Find the pass that a place of the pattern is in, from 0 on; None outside the loop."""
        return (place - self.start) // self.n_layers if self.start <= place < self.stop else None

    def begins_again(self, place: int) -> bool:
        """Whether a pass after the first begins there."""
        return bool(self.find_pass(place)) and (place - self.start) % self.n_layers == 0

    def find_last(self, place: int) -> int:
        """Find the last place of the pattern at which a layer of the loop is run."""
        return self.stop - self.n_layers + (place - self.start) % self.n_layers

    def number(self, count: int) -> tuple[int, ...]:
        """Number the layers that `count` places of a pattern have the weights of.

        Example: of seven places with a loop of two passes from 1 to 3 they are those of 0, 1, 2, 1, 2, 3, 4.
        """
        repeated = range(self.start, self.end)
        return (*range(self.start), *(*repeated,) * self.passes, *range(self.end, count - self.stop + self.end))


class PlainLoop(Loop, kind="plain"):
    """Each pass goes on with what the one before it gave (Dehghani et al., 2019, Universal Transformers; Saunshi et
    al., 2025, looped transformers)."""


class RestartingLoop(Loop, kind="restarting"):
    """Each pass begins with what went into the first, and its layers are told by messages what the pass before it found
    (Thinking Machines, 2026, Inkling 2). The layers of the passes after the first are kinds with `block.messages`,
    those of the first the same without."""

    restarts: ClassVar[bool] = True


class MessageGate(Spec, axis="message_gate", default="low_rank"):
    """Mix a message from the pass before into what a sub-layer reads."""

    def forward(self, m: Weights, x: Tensor, message: Tensor) -> Tensor:
        """What the sub-layer is given for x and its message, both [B, T, D]."""
        raise NotImplementedError

    def shard(self, ranks: int) -> MessageGate:
        """Every rank mixes for its own tokens."""
        return self


class LowRankGate(MessageGate, kind="low_rank"):
    """(1 − tanh(l·W_forget))·x + tanh(l·W_gain)·message, where l = [norm(x), norm(message)]·W_down has `rank` values
    (Thinking Machines, 2026, Inkling 2)."""

    rank: PositiveInt = 64
    norm: WholeNorm = RMSNorm(weight=False)

    def parts(self, d_model: int) -> dict[str, Any]:
        out = Linear(self.rank, d_model, precise=True)
        return {"norm": self.norm, "down": Linear(2 * d_model, self.rank, precise=True), "forget": out, "gain": out}

    def forward(self, m: Weights, x: Tensor, message: Tensor) -> Tensor:
        whole, told = x.float(), message.float()
        low = m.down(torch.cat((m.norm(whole), m.norm(told)), -1).to(x.dtype))
        forget, gain = m.forget(low).float().tanh(), m.gain(low).float().tanh()
        return (whole - forget * whole + gain * told).to(x.dtype)


def find_loop_faults(tower: Tower) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield what of a tower does not go together with its loop, or needs one: a field's path, and a line about it."""
    loop, told = tower.loop, [name for name, block in tower.blocks.items() if block.gate is not None]
    if told and (loop is None or not loop.restarts):
        yield ("blocks", told[0], "messages"), "are from the pass before, and there is none (loop: {kind: restarting})"
    if loop is None:
        return
    if tower.shared_layers:
        yield ("shared_layers",), "is true, and a loop says which layers have the same weights (one of them)"
    if len(tower.pattern) < loop.stop:
        found = f"its {loop.passes} passes of {loop.n_layers} layers end at {loop.stop}"
        yield ("loop",), f"{found}, and there are {len(tower.pattern)} layers (n_layers: {loop.stop} or more)"
        return
    for place in range(len(tower.pattern)):
        own, again = tower.pattern[place], bool(loop.find_pass(place))
        if loop.restarts and (tower.blocks[own].gate is not None) is not again:
            found = "has none (give it some)" if again else "is told by no pass before it (null)"
            yield ("blocks", own, "messages"), f"layer {place}, {_describe(loop, place)}, {found}"
            return
        if loop.find_pass(place) is None:
            continue
        last = tower.pattern[loop.find_last(place)]
        block = tower.blocks[last]
        if tower.blocks[own] != (block if again or block.gate is None else replace(block, messages=None)):
            yield ("pattern",), f"layer {place} is {own!r}, and {last!r} where its weights are used last (the same)"
            return
    if loop.restarts and not tower.blocks[tower.pattern[loop.start]].opens_group:
        yield ("loop", "start"), f"is {loop.start}, where no group of layers begins (a layer with opens: true)"


def _describe(loop: Loop, place: int) -> str:
    number = loop.find_pass(place)
    return "outside the loop" if number is None else f"of pass {number + 1}"
