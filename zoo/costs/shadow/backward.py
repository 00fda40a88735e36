"""Replay the backward pass over the saved tensors: its memory at the peak, and the gradients it leaves.

Memory follows torch's engine: operations are replayed last to first; an input's gradient is made before the result's is
freed; an operation's saved tensors are freed after it; gradients of one tensor are added in place if nothing else needs
them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from zoo.costs.shadow.tape import GradientTarget, Storage, TapeNode
from zoo.costs.shadow.tensor import collect_saved, source_of

PASSED_ON = ("add",)
"""Operations whose inputs' gradients are the result's gradient itself, without a copy."""

SUMMED = ("mul", "div", "pow")
"""Operations that compute a broadcast input's gradient at the result's size, then reduce it."""

SCRATCH = {"square": 2, "gating": 1, "divide_by_rms": 1}
"""Scratch memory of an operation's backward pass, in tensors of the result's size (square: 2·x, and a copy of x;
gating: the activation once more; divide_by_rms: the product of x and the gradient)."""


class Undone(NamedTuple):
    """The memory of a backward pass, in bytes. `peak` counts saved tensors and all gradients, `left` the weights'
    gradients, which stay. `moving` is the peak without weights' gradients. `beside` counts the gradients of tensors
    made in other sections. If the pass runs in two halves, `input_peak` is the peak of the half for inputs, saved
    tensors included, and `between` counts the gradients that stay for the half for weights."""

    peak: int
    left: int
    moving: int
    beside: int
    input_peak: int
    between: int


@dataclass(eq=False, slots=True)
class _Gradient:
    """A gradient, and the number of operations that have yet to read it."""

    nbytes: int
    readers: int


class _Pass:
    """The state of a running backward pass."""

    def __init__(self, live: int) -> None:
        self.live = live
        self.peak = self.moving = self.left = 0
        self.weights: set[Storage] = set()
        self.waiting: dict[Any, _Gradient] = {}

    def make(self, nbytes: int, readers: int = 0) -> _Gradient:
        self.live += nbytes
        self.mark()
        return _Gradient(nbytes, readers)

    def mark(self, more: int = 0) -> None:
        """Update the peaks, with `more` bytes of scratch memory."""
        self.peak = max(self.peak, self.live + more)
        self.moving = max(self.moving, self.live + more - self.left)

    def drop(self, gradient: _Gradient) -> None:
        gradient.readers -= 1
        if gradient.readers == 0:
            self.live -= gradient.nbytes

    def deliver(self, source: GradientTarget, gradient: _Gradient) -> None:
        """Deliver a gradient to its tensor, accumulating it into one that is already there."""
        if source.leaf is not None and source.leaf.held:
            if source.leaf in self.weights:
                self.drop(gradient)
            else:
                self.weights.add(source.leaf)
                self.left += gradient.nbytes
            return
        place = source.node or source.leaf
        there = self.waiting.get(place)
        if there is None:
            self.waiting[place] = gradient
        elif there.readers == 1:
            self.drop(gradient)
        else:
            self.waiting[place] = self.make(max(there.nbytes, gradient.nbytes), 1)
            self.drop(there)
            self.drop(gradient)


def replay_backward(nodes: Sequence[TapeNode], seeds: Sequence[Any]) -> Undone:
    """Replay the backward pass over `nodes`, which are in forward order. It starts from gradients of `seeds`."""
    saved = Counter(storage for node in nodes for storage in node.saves)
    run = _Pass(sum(each.nbytes for each in collect_saved(nodes)))
    for seed in seeds:
        run.deliver(source_of(seed), run.make(seed.nbytes, 1))
    for node in reversed(nodes):
        if node in run.waiting:
            _undo(node, node.sources, run, saved)
    beside = sum(gradient.nbytes for place, gradient in run.waiting.items() if isinstance(place, TapeNode))
    return Undone(run.peak, run.left, run.moving, beside, *_replay_input_half(nodes, seeds))


def _replay_input_half(nodes: Sequence[TapeNode], seeds: Sequence[Any]) -> tuple[int, int]:
    """Replay the half of a backward pass that computes the gradients of inputs; return `input_peak` and `between`.
    torch keeps all saved tensors for the other half, and each gradient that reaches an operation with a weight."""
    saved = dict.fromkeys(collect_saved(nodes), -1)  # readers, counted down from here: none is the last
    run, kept = _Pass(sum(each.nbytes for each in saved)), set[_Gradient]()
    for seed in seeds:
        run.deliver(source_of(seed), run.make(seed.nbytes, 1))
    casts: set[TapeNode | None] = set()  # operations on weights alone
    further: dict[TapeNode, list[GradientTarget]] = {}
    for node in nodes:
        further[node] = [each for each in node.sources if each.node not in casts and not (each.leaf and each.leaf.held)]
        casts |= set() if further[node] else {node}
    for node in reversed(nodes):
        if node in run.waiting:
            if len(further[node]) < len(node.sources):
                incoming = run.waiting[node]
                incoming.readers += 1
                run.live += max(0, node.nbytes - incoming.nbytes)
                incoming.nbytes = max(node.nbytes, incoming.nbytes)  # summed from gradients of slices
                kept.add(incoming)
            _undo(node, further[node], run, saved)
    return run.peak, sum(each.nbytes for each in kept)


def _undo(node: TapeNode, sources: Sequence[GradientTarget], run: _Pass, saved: dict[Storage, int]) -> None:
    """Replay an operation's backward pass, which computes the gradients of `sources`."""
    incoming = run.waiting.pop(node)
    run.mark(node.work)
    given = []
    for source in sources:
        same = node.name in PASSED_ON and source.nbytes == incoming.nbytes and not (source.leaf and source.leaf.held)
        gradient = incoming if same else run.make(source.nbytes)
        if node.name in SUMMED and source.nbytes < node.nbytes:
            run.mark(node.nbytes)
        gradient.readers += 1
        given.append((source, gradient))
    run.mark(SCRATCH.get(node.name, 0) * node.nbytes)
    for storage in node.saves:
        saved[storage] -= 1
        if not saved[storage]:
            run.live -= storage.nbytes
    run.drop(incoming)
    for source, gradient in given:
        run.deliver(source, gradient)
