"""Step an optimizer piece by piece, if weights or states are not stored as the update rule computes with them: in
bfloat16 with stochastic rounding, or in the host's memory."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from zoo.costs.states import CPU_PIECE, IN_FLIGHT, PIECE
from zoo.training.optim.update_rules import Closure, evaluate, is_counter, list_due

DROPPED = 16
"""Number of low bits of a float32 that bfloat16 lacks."""

ARENA, ALIGNED = 1 << 30, 256
"""Bytes of a block of pinned memory (more for a larger tensor), and the alignment of tensors in it, in bytes."""


class Beside:
    """Keeps an optimizer's states on the device of their parameter."""

    def make_room(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Allocate memory for the state of a parameter on `device`."""
        return torch.empty(shape, dtype=dtype, device=device)

    def fetch(self, kept: Tensor, device: torch.device) -> Tensor:
        """Return a piece of a state on `device`, to be updated."""
        return kept

    def give_back(self, value: Tensor, kept: Tensor) -> None:
        """Write an updated piece back to `kept`, the memory that it was fetched from."""
        write(value, kept)

    def end_piece(self) -> None:
        """Record that all states of a piece were given back."""

    def finish(self) -> None:
        """Wait until every piece has been written back."""


class HostMemory(Beside):
    """Keeps an optimizer's states in pinned memory of the host (ZeRO-Offload; Ren et al., 2021). CUDA only.

    Pieces are read and written on streams of their own, while another piece is computed. At most IN_FLIGHT pieces are
    on the device: before the next one the host waits until the oldest is written.
    """

    def __init__(self) -> None:
        self.arena = PinnedArena()
        self.reading, self.writing = torch.cuda.Stream(), torch.cuda.Stream()
        self.written: deque[Any] = deque()  # an event for each piece in flight

    def make_room(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        return self.arena.take(shape, dtype)

    def fetch(self, kept: Tensor, device: torch.device) -> Tensor:
        computing = torch.cuda.current_stream()
        with torch.cuda.stream(self.reading):
            value = kept.to(device, non_blocking=True)
        computing.wait_stream(self.reading)
        value.record_stream(computing)  # or its memory could be taken while it is computed with
        return value

    def give_back(self, value: Tensor, kept: Tensor) -> None:
        if value.dtype is not kept.dtype:  # rounded on the device, to copy half as many bytes
            low = torch.empty_like(value, dtype=kept.dtype)
            write(value, low)
            value = low
        self.writing.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.writing):
            kept.copy_(value, non_blocking=True)
        value.record_stream(self.writing)

    def end_piece(self) -> None:
        self.written.append(self.writing.record_event())
        if len(self.written) == IN_FLIGHT:
            self.written.popleft().synchronize()

    def finish(self) -> None:
        self.written.clear()
        self.writing.synchronize()


class PinnedArena:
    """Pinned memory of the host, given out in parts. torch's own allocator rounds each tensor up to a power of two."""

    def __init__(self) -> None:
        self.block, self.used = torch.empty(0, dtype=torch.uint8), 0

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Allocate a contiguous tensor."""
        size = math.prod(shape) * dtype.itemsize
        start = -(-self.used // ALIGNED) * ALIGNED
        if start + size > len(self.block):
            self.block, start = pin(max(size, ARENA)), 0
        self.used = start + size
        return self.block[start : self.used].view(dtype).view(*shape)


def pin(size: int) -> Tensor:
    """Allocate pinned memory of the host, without rounding its size up. It stays pinned until the process ends."""
    block = torch.empty(size, dtype=torch.uint8)
    torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(block.data_ptr(), size, 0))  # type: ignore[attr-defined]
    return block


class Piecewise(Optimizer):
    """Steps the rule of another optimizer on at most PIECE elements of one tensor at a time (CPU_PIECE on a CPU).

    With `rounds`, weights, gradients and states are bfloat16. Each piece is converted to float32, the rule and its
    weight decay are computed, and the results rounded stochastically. Counters are not rounded. `place` stores the
    states.

    A tensor is one piece if an element's update depends on the whole tensor: without `by_element`, and in groups with
    `hidden`.
    """

    def __init__(self, rule: Optimizer, *, rounds: bool, by_element: bool = True, place: Beside | None = None) -> None:
        super().__init__(rule.param_groups, rule.defaults)
        self._rule, self._rounds, self._by_element = rule, rounds, by_element
        self._place = place or Beside()
        self._step_supports_amp_scaling = getattr(rule, "_step_supports_amp_scaling", False)

    @torch.no_grad()
    def step(self, closure: Closure = None) -> float | None:  # type: ignore[override]
        loss = evaluate(closure)
        self._rule.found_inf = getattr(self, "found_inf", None)  # type: ignore[attr-defined]  # 1 leaves pieces as they are
        for group, parameter, gradient, state in list_due(self):
            self._step_tensor(group, parameter.detach(), gradient, state)
        self._place.finish()
        return loss

    @torch.no_grad()
    def evaluation_weights(self) -> dict[Tensor, Tensor]:
        """Return the weights, by parameter, that evaluation uses in place of the trained ones; {} for most rules."""
        found: dict[Tensor, Tensor] = {}
        evaluates = getattr(self._rule, "evaluation_weights", None)
        if evaluates is None:
            return found
        for group in self.param_groups:
            for parameter in group["params"]:
                self._lend(group, parameter.detach(), None, self.state.get(parameter, {}))
                for made in evaluates().values():
                    found[parameter] = made.to(parameter.dtype)
                self._take_back()
        return found

    def keep_state(self, parameter: Tensor, value: Tensor) -> Tensor:
        """Move a restored state to where states are kept between updates."""
        if is_counter(value):
            fused = any(group.get("fused") or group.get("capturable") for group in self.param_groups)
            return value.to(parameter.device) if fused else value
        return self._place.make_room(value.shape, value.dtype, parameter.device).copy_(value)

    def _step_tensor(self, group: dict[str, Any], weight: Tensor, gradient: Tensor, state: dict[str, Any]) -> None:
        whole = not self._by_element or group.get("hidden", False)
        before, gradient = dict(state), gradient.contiguous()
        piece = CPU_PIECE if weight.device.type == "cpu" else PIECE
        for cut in [lambda each: each] if whole else cut_evenly(weight.numel(), piece):
            own = {name: each if is_counter(each) else cut(each) for name, each in before.items()}
            shell = self._lend(group, cut(weight), cut(gradient), own)
            self._rule.step()
            write(shell.data, cut(weight))
            self._keep_states(shell, weight, state, cut, whole)
            del shell  # or its memory would stay allocated during the next piece
            self._take_back()
            self._place.end_piece()

    def _keep_states(
        self, shell: Tensor, weight: Tensor, state: dict[str, Any], cut: Callable[[Tensor], Tensor], whole: bool
    ) -> None:
        """Write the rule's new states of a piece into the whole tensor's states."""
        for name, value in sorted(self._rule.state[shell].items()):  # sorted: the order in a resumed run
            if is_counter(value):
                state[name] = value
                continue
            if name not in state:
                shape, dtype = value.shape if whole else weight.shape, weight.dtype if self._rounds else value.dtype
                state[name] = self._place.make_room(shape, dtype, weight.device)
            self._place.give_back(value, cut(state[name]))

    def _lend(self, group: dict[str, Any], weight: Tensor, gradient: Tensor | None, state: dict[str, Any]) -> Tensor:
        """Give the rule a single weight with its gradient and state. Returns the rule's parameter."""
        shell = torch.nn.Parameter(self._widen(weight), requires_grad=False)
        shell.grad = None if gradient is None else self._widen(gradient)
        own = {
            name: deepcopy(each) if is_counter(each) else self._widen(self._place.fetch(each, weight.device))
            for name, each in state.items()
        }  # a copied counter: each piece of a tensor starts from the same count
        self._rule.param_groups = [{**group, "params": [shell]}]
        self._rule.state = defaultdict(dict, {shell: own} if own else {})
        return shell

    def _take_back(self) -> None:
        self._rule.param_groups, self._rule.state = [], defaultdict(dict)

    def _widen(self, value: Tensor) -> Tensor:
        return value.float() if self._rounds else value


def write(value: Tensor, kept: Tensor) -> None:
    """Write an updated piece, rounded if it is stored in bfloat16. Does nothing if it was updated in place."""
    if value.dtype is not kept.dtype:
        copy_rounded(kept, value)
    elif value.data_ptr() != kept.data_ptr():
        kept.copy_(value)


def copy_rounded(target: Tensor, value: Tensor) -> None:
    """Copy float32 values to a bfloat16 tensor of the same shape by stochastic rounding (Gupta et al., 2015).

    A value between two bfloat16 neighbours rounds away from 0 with a probability equal to its relative distance from
    the neighbour nearer 0 (in 1/2¹⁶ steps): 1 + 2⁻¹⁰ is an eighth of the way from 1 to 1 + 2⁻⁷, and becomes 1 + 2⁻⁷
    once in eight times. So an update far below a weight's last place changes it on average, where rounding to nearest
    never does.

    `value` is contiguous and is overwritten. Numbers exact in bfloat16, infinities and NaN are unchanged. Draws from
    the device's random generator, whose state checkpoints save.
    """
    drawn = torch.empty(-(-value.numel() // 4), dtype=torch.int64, device=value.device)
    drawn.random_(-(2**63), None)  # 64 random bits: four numbers from −2¹⁵ to 2¹⁵ − 1
    nan = find_nan(value)
    bits = value.view(torch.int32)
    bits.add_(drawn.view(torch.int16)[: value.numel()].view(value.shape))
    bits.add_(1 << (DROPPED - 1)).bitwise_and_(-(1 << DROPPED))
    target.copy_(value if nan is None else value.masked_fill_(nan, torch.nan))


def find_nan(value: Tensor) -> Tensor | None:
    """Return a mask of the NaNs, whose bits a carry could turn into a number. On a CPU, None if all values are finite;
    other devices are not checked, to avoid waiting for them."""
    if value.device.type == "cpu" and bool(value.sum().isfinite()):
        return None
    return value.isnan()


def cut_evenly(count: int, piece: int) -> Iterator[Callable[[Tensor], Tensor]]:
    """Yield functions that each view one piece, of at most `piece` elements, of a flattened tensor of `count`."""
    runs = -(-count // piece)
    for run in range(runs):
        yield partial(view_piece, start=count * run // runs, end=count * (run + 1) // runs)


def view_piece(tensor: Tensor, start: int, end: int) -> Tensor:
    """View the elements `start` to `end` of a flattened contiguous tensor."""
    return tensor.view(-1)[start:end]
