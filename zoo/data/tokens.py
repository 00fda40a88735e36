"""Read batches of tokens: each row depends on the seed and its row number alone.

B rows, T tokens a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.data.order import Interleaving, Permutation
from zoo.errors import ConfigError, refuse
from zoo.lazy import torch

if TYPE_CHECKING:
    import numpy as np

    from zoo.data.read_ahead import ReadAhead
    from zoo.data.shards import Joined

Progress = Callable[[str, int, int], None]
"""Called with the name of the work, the bytes of text done, and the bytes in all."""

EVALUATION = 1 << 32
"""The epoch number of evaluation rows: their random draws are the same every time, and differ from training's."""

AHEAD = 1024  # rows whose places are computed together, in hardly more time than one


@dataclass(frozen=True, kw_only=True)
class TokenFile:
    """One part of a corpus as token ids: an end of text, then each document followed by an end of text.

    The end of text between two documents is the last target of one and the first input of the other. A row is a window
    of T + 1 ids; the last id of a window is the first of the next.
    """

    ids: np.ndarray | Joined = field(compare=False, repr=False)
    eos_id: int
    n_documents: int
    n_bytes: int
    """Bytes of the text in UTF-8, the unit of bits per byte."""
    lengths: np.ndarray | Joined | None = field(default=None, compare=False, repr=False)
    """The bytes of text of each token (`zoo.data.token_bytes`); for validation only."""
    path: Path | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def count_rows(self, seq_len: int) -> int:
        """Count the whole rows of T = `seq_len` tokens and a target."""
        return max(len(self) - 1, 0) // seq_len

    def read_row(self, number: int, seq_len: int) -> Any:
        """Read a row as int64 [T + 1]; the last may be shorter. Subclasses read other kinds of rows."""
        import numpy as np

        start = number * seq_len
        return self.ids[start : start + seq_len + 1].astype(np.int64)

    def count_cut(self, number: int, seq_len: int) -> list[int]:
        """Count the tokens that each document of row `number` loses to truncation at `seq_len`; [] if none can be
        lost."""
        return []

    def describe_cuts(self, of: str, seq_len: int, cure: Callable[[int], str] = "seq_len={}".format) -> Iterator[str]:
        """Yield lines on the parts of documents that are cut or left out in rows of `seq_len`. `of` names the corpus,
        and `cure` writes the setting for a length."""
        return iter(())

    def count_bytes(self, numbers: Iterable[int], seq_len: int) -> int:
        """Count the bytes of text of the targets in these rows.

        An end of text is a target too, and has no bytes.
        """
        assert self.lengths is not None
        firsts = [number * seq_len + 1 for number in numbers]
        return sum(int(self.lengths[first : first + seq_len].sum()) for first in firsts)


@dataclass(frozen=True, kw_only=True)
class PairFile(TokenFile):
    """One part of a corpus of pairs. A row is a pair: the ids of a source and of its target."""

    sizes: Callable[[], np.ndarray] = field(compare=False, repr=False)
    """Reads the number of tokens of each sequence, its end of text included. Sources and targets alternate."""

    @cached_property
    def ends(self) -> np.ndarray:
        """The index in `ids` just after each sequence. The first id, an end of text, belongs to no sequence."""
        import numpy as np

        return 1 + np.cumsum(self.sizes())

    def count_rows(self, seq_len: int) -> int:
        """Count the pairs, which may have any length."""
        return self.n_documents

    def read_row(self, number: int, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
        """Read the source and the target of a pair as int64, without the ends of text."""
        import numpy as np

        first = int(self.ends[2 * number - 1]) if number else 1
        middle, last = int(self.ends[2 * number]), int(self.ends[2 * number + 1])
        return self.ids[first : middle - 1].astype(np.int64), self.ids[middle : last - 1].astype(np.int64)


class Batch(NamedTuple):
    """A batch; an objective fills the fields it needs. Tensors are int64, except targets that are numbers.

    - `input_ids` [B, T]: the ids that the model reads; in an encoder-decoder [B, S], those of the encoder, and
      `decoder_input_ids` [B, T] are those of the decoder.
    - `targets` [B, T]: what each position is to predict, -100 where it predicts nothing. In an encoder-decoder, the
      positions are the decoder's. For a head that reads whole rows: a row's class [B, 1] or numbers [B, 1, C].
    - `documents`, `decoder_documents`: the number of each token's document, where rows are packed.
    - `attention_mask` [B, T|S]: 1 for a real token, where rows have padding.
    - `prefix` [B]: how many leading tokens of a row attend to one another in both directions (prefix LM).
    - `token_type_ids` [B, T]: the number, from 0, of each token's text within its row.
    - `row_numbers` [B]: the number of each row, counted from the start of the run. Dropout masks depend on it.
    - `reference` [B], float32: the log-probability of a row's targets under the starting weights. It is not an input of
      the model.
    """

    input_ids: torch.Tensor
    targets: torch.Tensor
    documents: torch.Tensor | None = None
    decoder_input_ids: torch.Tensor | None = None
    decoder_documents: torch.Tensor | None = None
    attention_mask: torch.Tensor | None = None
    prefix: torch.Tensor | None = None
    token_type_ids: torch.Tensor | None = None
    row_numbers: torch.Tensor | None = None
    reference: torch.Tensor | None = None


def split_rows(batch: Batch, parts: int) -> Iterator[Batch]:
    """Split a batch into microbatches of equally many rows."""
    size = len(batch.input_ids) // parts
    return (map_tensors(batch, lambda rows, part=part: rows[part * size : (part + 1) * size]) for part in range(parts))


def move_batch(batch: Batch, device: torch.device) -> Batch:
    """Copy a batch to a device without waiting; tensors already there stay. The copy is queued on the stream that
    computes: some hundred KB a step take microseconds, which a second stream would not repay."""
    if device.type == "cuda":
        return map_tensors(
            batch, lambda rows: rows if rows.is_cuda else rows.pin_memory().to(device, non_blocking=True)
        )
    return map_tensors(batch, lambda rows: rows.to(device))


def map_tensors(batch: Batch, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
    """Apply a function to every tensor of a batch."""
    return Batch(*(None if each is None else change(each) for each in batch))  # type: ignore[arg-type]


Collate = Callable[[Any, Sequence[tuple[int, int]]], Batch]
"""Makes a batch of rows of ids [B, T + 1], or of B pairs of ids, given each row's epoch and number. Random draws are a
function of a seed, the epoch and the number."""


def to_next_tokens(rows: np.ndarray, keys: Sequence[tuple[int, int]] = (), *, eos_id: int, documents: bool) -> Batch:
    """Make a next-token batch of rows of T + 1 ids; nothing in it is random. An EOS belongs to the document that it
    opens: as an input it does not attend to the document before."""
    import torch

    ids = torch.from_numpy(rows)
    input_ids, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    if not documents:
        return Batch(input_ids, targets, None)
    numbers = (input_ids == eos_id).cumsum(1)
    return Batch(input_ids, targets, numbers - numbers[:, :1])


def gather(rows: Sequence[Any]) -> Any:
    """Stack rows of ids to [B, T + 1]; pairs, which differ in length, stay a list."""
    import numpy as np

    return list(rows) if isinstance(rows[0], tuple) else np.stack(rows)


class Source(NamedTuple):
    """A source of rows: its name ("" if it is the only one), its weight in a mix, and its tokens."""

    name: str
    weight: Fraction
    tokens: TokenFile


class Place(NamedTuple):
    """A row's place: the number of its source, the number of its window there, and the source's epoch, from 0."""

    source: int
    window: int
    epoch: int


class Batches:
    """Endless shuffled batches. Each epoch is another permutation of the same windows, whose inputs do not overlap.

    Row n is a function of (seed, n) alone: sources take turns by weight (`Interleaving`), and each source permutes its
    own windows. So the position is one count, `consumed`, and the stream of rows stays the same when the batch size
    changes. A batch in which an epoch ends is filled from the next epoch: all batches have one shape.
    """

    def __init__(
        self,
        tokens: TokenFile | Sequence[Source],
        batch_size: int,
        seq_len: int,
        seed: int = 0,
        documents: bool = False,
        collate: Collate | None = None,
    ) -> None:
        self.sources = [Source("", Fraction(1), tokens)] if isinstance(tokens, TokenFile) else list(tokens)
        self.windows = [count_windows(source, seq_len) for source in self.sources]
        self.interleave = Interleaving([source.weight for source in self.sources])
        self.batch_size = batch_size
        self.seq_len = seq_len
        self.seed = seed
        self.documents = documents
        eos_id = self.sources[0].tokens.eos_id
        self.collate = collate or partial(to_next_tokens, eos_id=eos_id, documents=documents)
        self.consumed = 0
        self.share: tuple[int, int] = (0, 1)
        """(index, count): the part of each batch that this process reads."""
        self.ahead: ReadAhead | None = None
        """Reads the next batch while a device computes; None on a CPU, where this saves no time."""
        self._places: tuple[int, list[Place]] = (-1, [])

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        part, parts = self.share
        rows = self.batch_size // parts
        first = self.consumed + part * rows
        batch = self.read(first, rows) if self.ahead is None else self.ahead.take(first, rows, self.batch_size)
        self.consumed += self.batch_size
        return batch

    def batch(self, step: int) -> Batch:
        """Make the batch of a step, assuming that all earlier steps had the present batch size."""
        return self.read(step * self.batch_size, self.batch_size)

    def read(self, first: int, count: int) -> Batch:
        """Make the batch of `count` rows from row `first` on. The position does not change."""
        import torch

        numbers = range(first, first + count)
        places = [self.place(number) for number in numbers]
        rows = [self.sources[place.source].tokens.read_row(place.window, self.seq_len) for place in places]
        keys = [(place.epoch, number) for place, number in zip(places, numbers, strict=True)]
        batch = self.collate(gather(rows), keys)
        each = len(batch.input_ids) // count  # a record's two answers drop alike
        return batch._replace(row_numbers=torch.tensor(numbers).repeat_interleave(each))

    def list_first(self, count: int) -> list[int]:
        """List the numbers of the first `count` rows that read different windows, among the first AHEAD rows."""
        first: dict[tuple[int, int], int] = {}
        for number in range(AHEAD):
            first.setdefault(self.place(number)[:2], number)
        return sorted(first.values())[:count]

    def count_cut(self, number: int) -> list[int]:
        """Count the tokens that each document of row `number` loses (`TokenFile.count_cut`)."""
        place = self.place(number)
        return self.sources[place.source].tokens.count_cut(place.window, self.seq_len)

    def place(self, number: int) -> Place:
        """Find the place of row `number`."""
        block, within = divmod(number, AHEAD)
        known, places = self._places  # read once: another thread may replace them
        if known != block:
            places = self._find_places(block * AHEAD)
            self._places = block, places
        return places[within]

    def _find_places(self, first: int) -> list[Place]:
        """Compute the places of AHEAD rows from row `first` on."""
        import numpy as np

        sources, turns = self.interleave(np.arange(first, first + AHEAD))
        epochs, windows = np.empty_like(turns), np.empty_like(turns)
        for number, (source, n_windows) in enumerate(zip(self.sources, self.windows, strict=True)):
            mine = np.flatnonzero(sources == number)
            epochs[mine] = turns[mine] // n_windows
            for epoch in np.unique(epochs[mine]).tolist():
                now = mine[epochs[mine] == epoch]
                order = Permutation(n_windows, f"{self.seed}/{source.name}/{epoch}")
                windows[now] = order(turns[now] % n_windows)
        return [Place(*each) for each in zip(sources.tolist(), windows.tolist(), epochs.tolist(), strict=True)]

    def state(self) -> dict[str, Any]:
        """Return the state for `restore`: the rows consumed, and the settings that determine the order of rows."""
        return {"consumed": self.consumed, **self._order_settings()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Set the position from a state. Raises ConfigError if the present settings order the rows differently, and for
        a position of an earlier version."""
        refuse_old_position(state)
        faults = [
            f"data: to resume, {name} must be as before, found {now} (was {state.get(name)})"
            for name, now in self._order_settings().items()
            if state.get(name) != now
        ]
        refuse(faults)
        self.consumed = state["consumed"]

    def _order_settings(self) -> dict[str, Any]:
        order: dict[str, Any] = {"seed": self.seed, "seq_len": self.seq_len}
        if len(self.sources) > 1:
            order["weights"] = {source.name: str(source.weight) for source in self.sources}
        return {**order, "n_tokens": sum(len(source.tokens) for source in self.sources)}


def count_windows(source: Source, seq_len: int) -> int:
    """Count the rows of a source. Raises ConfigError if its tokens do not fill a row."""
    if not (count := source.tokens.count_rows(seq_len)):
        where = f"data.of.{source.name}" if source.name else "data"
        found = f"found {len(source.tokens)} (a longer text, or shorter rows)"
        raise ConfigError(f"{where}: the training split must fill one row of {seq_len} tokens and a target, {found}")
    return count


def refuse_old_position(state: Mapping[str, Any]) -> None:
    """Raise ConfigError for a position saved by an earlier version, which counted steps in another order of rows.

    Resuming from such a position would read some rows twice and others never.
    """
    if "consumed" not in state:
        found = "found a count of steps" if "step" in state else "found no count of rows"
        raise ConfigError(f"data: the checkpoint's position is of another version's order of rows, {found} (a new run)")
