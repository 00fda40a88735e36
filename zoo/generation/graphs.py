# B rows, V vocabulary
"""Record decoding steps as CUDA graphs: one launch replaces hundreds, and no host code runs between kernels.

A graph runs the same kernels on the same memory. Therefore a step is recorded once for each number of rows, number of
new tokens (a draft and the token before it) and width of page tables, all rounded up to powers of two. Ids, counts,
slots, lengths and page tables come from one tensor, which is filled before each replay. All recordings write their
logits to the same memory. A negative id stands for a token that only the device knows (see `Graphs.tokens`).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.cache.cache import TensorCache
from zoo.cache.cached_row import CachedRow
from zoo.cache.page_rows import RowsOfPass, place_rows
from zoo.cache.pool_store import Store
from zoo.errors import ConfigError
from zoo.kernels.blocks import round_to_power
from zoo.kernels.view.page_tables import PagedShape, PassTensors, as_tensor
from zoo.lazy import Tensor, torch
from zoo.run.capture import CudaRecorder, Record, find_blocker

if TYPE_CHECKING:
    from zoo.model.tower import Tower
    from zoo.run.layer import Model

LEAST = 256
"""Capacity, in tokens, of the narrowest recorded page table. Each wider table has twice the capacity, so that a growing
sequence needs a new recording only when its length has doubled."""


class RecordedStep(NamedTuple):
    """A recorded step: its input tensor (ids first), the function that replays it, and its output logits [B, T, V]."""

    numbers: Tensor
    replay: Callable[[], object]
    logits: Tensor


class Graphs:
    """The recorded decoding steps of a decoder over a store, of up to `rows` rows. `record` makes a recording. `note`
    is called with a line when recording stops for good."""

    def __init__(self, model: Model, store: Store, rows: int, record: Record, note: Callable[[str], object]) -> None:
        self.model, self.store, self.record, self.note = model, store, record, note
        pages, beyond = zip(store.groups, store.pools, strict=True), -(-(store.new - 1) // store.page)  # of padding
        self.widest = [min(pool.count, store.pages_of(group, 1 << 60)) + beyond for group, pool in pages]
        self.most = round_to_power(rows) * store.new
        self.logits: Tensor | None = None  # [most, V], which all recordings write to
        self.steps: dict[PagedShape, RecordedStep] = {}
        self.refusal: str | None = None  # why nothing is recorded any more

    @cached_property
    def tokens(self) -> Tensor:
        """The tokens that the device chose for the rows of the last step (−1 for none). The id −1 − n refers to token n
        in this tensor. Allocated in the first warm-up, outside every recording."""
        return torch.zeros(self.most, dtype=torch.int64, device=self.store.device)

    def run(self, rows: Sequence[CachedRow], tokens: Sequence[Sequence[int]]) -> Sequence[Tensor] | None:
        """Compute the logits [count, V] of each row's `count` next tokens. None if `launch` did not run the step."""
        step = self.launch(rows, tokens)
        if step is None:
            return None
        found = step.logits[: len(rows)].clone()  # the next replay overwrites them
        counts = [len(each) for each in tokens]
        return found if max(counts) == 1 else [each[:count] for each, count in zip(found, counts, strict=True)]  # type: ignore[return-value]

    def launch(self, rows: Sequence[CachedRow], tokens: Sequence[Sequence[int]]) -> RecordedStep | None:
        """Replay the step of each row's next tokens without waiting for the device. Return None, without running the
        step, if it cannot be recorded: it has more tokens than a draft, or the first tokens of a row."""
        counts = [len(each) for each in tokens]
        new = max(counts)
        if self.refusal is not None or new > self.store.new or (new > 1 and not all(row.length for row in rows)):
            return None
        new = min(round_to_power(new), self.store.new)
        placed = place_rows(self.store, rows, counts, new)
        shape = self._round(placed.shape)
        if shape not in self.steps and not self._add(shape):
            return None
        step = self.steps[shape]
        send(_pack(placed, tokens, shape), step.numbers)
        step.replay()
        for row, count in zip(rows, counts, strict=True):
            row.length += count
        return step

    def _round(self, shape: PagedShape) -> PagedShape:
        """Return the shape of the recorded step for a pass: rows and pages rounded up to powers of two."""
        least = max(1, LEAST // self.store.page)
        widths = (
            min(most, max(least, round_to_power(pages))) for pages, most in zip(shape.pages, self.widest, strict=True)
        )
        return PagedShape(round_to_power(shape.rows), shape.new, tuple(widths))

    def _add(self, shape: PagedShape) -> bool:
        """Record a step of this shape, with rows of padding. Returns False if recording fails."""
        nobody = RowsOfPass(self.store, [], [], shape.new, [[] for _ in self.store.groups])
        numbers = _pack(nobody, [], shape).to(self.store.device)
        try:
            replay, logits = self.record(lambda given: self._keep(self.decode(given, shape)), numbers)
        except RuntimeError as error:
            found = str(error).strip().splitlines() or [type(error).__name__]
            drafted = "" if shape.new == 1 else f" of {shape.new} tokens"
            self.refuse(f"a step with rows={shape.rows}{drafted} could not be recorded, found: {found[0]}")
            return False
        self.steps[shape] = RecordedStep(numbers, replay, logits)
        return True

    def refuse(self, reason: str) -> None:
        """Stop recording for good, and report the reason."""
        self.refusal = reason
        self.note(f"graphs: decoding runs without CUDA graphs: {reason}")

    def decode(self, numbers: Tensor, shape: PagedShape) -> Tensor:
        """Compute one decoding step: logits [B, T, V] of the rows described by `numbers`. The step reads only
        `numbers`, `tokens`, the weights and the store's tensors, so a recording can be replayed with other numbers of
        the same shape."""
        cache = TensorCache(self.store, PassTensors(numbers[shape.tokens :], shape))
        ids = numbers[: shape.tokens]
        ids = torch.where(ids < 0, self.tokens[(-1 - ids).clamp(min=0)].clamp(min=0), ids).view(shape.rows, shape.new)
        return self.model(ids, cache=cache, logits_to_keep=shape.new).logits

    def _keep(self, logits: Tensor) -> Tensor:
        """Copy a step's logits [B, T, V] to the memory that all recordings share. It is allocated in the first warm-up,
        outside every recording."""
        if self.logits is None:
            self.logits = logits.new_empty(self.most, logits.shape[-1])
        kept = self.logits[: logits.shape[0] * logits.shape[1]].view(logits.shape)
        return kept.copy_(logits)


def _pack(placed: RowsOfPass, tokens: Sequence[Sequence[int]], shape: PagedShape) -> Tensor:
    """Pack a step's input on the host: each row's token ids, padded with 0, then the numbers of `RowsOfPass.pack`."""
    numbers = array("q")
    for each in tokens:
        numbers.extend([*each, *[0] * (shape.new - len(each))])
    numbers.extend([0] * (shape.tokens - len(numbers)))
    return as_tensor(numbers + placed.pack(shape))


def send(values: Tensor, target: Tensor) -> None:
    """Copy values from the host to a tensor on the device without waiting, through pinned memory. torch reuses that
    memory only after the copy is done."""
    target.copy_(values.pin_memory() if target.is_cuda else values, non_blocking=True)


def make_graphs(
    model: Model, writer: Tower, store: Store, rows: int, *, asked: bool | None, note: Callable[[str], object]
) -> Graphs | None:
    """Make the Graphs of an engine or of its draft model, for up to `rows` rows. Returns None if `asked` is false, or
    if `asked` is None and the store is not on CUDA or not paged. Raises ConfigError if `asked` is true and the store is
    not on CUDA or not paged."""
    able = store.device.type == "cuda" and store.paged
    if asked is False or (asked is None and not able):
        return None
    if not able:
        found = f"found {store.device.type}, paged={str(store.paged).lower()}"
        raise ConfigError(f"graphs: CUDA records steps that read rows by page, {found} (leave it out)")
    module: Any = model if writer is model.spec else model.get_submodule("decoder")
    graphs = Graphs(module, store, rows, CudaRecorder(store.device), note)
    blocker = find_blocker(writer, str(next(module.parameters()).dtype).removeprefix("torch."))
    if (reason := blocker or module.seam.refuse_capture()) is not None:
        graphs.refuse(reason)
    return graphs
