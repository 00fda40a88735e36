"""Write token ids to disk and read batches from them: each batch is a function of the seed and the step alone.

B rows, T tokens a row.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from zoo.data.corpus import Part
from zoo.data.tokenizer import Tokenizer
from zoo.disk import remove_drafts, replace_folder
from zoo.errors import ConfigError, ZooError
from zoo.paths import find_cache_folder

if TYPE_CHECKING:
    import numpy as np
    import torch

Progress = Callable[[str, int, int], None]
"""Called with what is being done, the bytes of text done, and the bytes in all."""

PARTS: tuple[Part, ...] = ("train", "validation")
EVALUATION = 1 << 32
"""The epoch of rows that evaluate: what is random in them is the same every time, and unlike that of any other."""
GROUP = 1 << 20  # bytes of text encoded at once: enough for all cores, little to hold


@dataclass(frozen=True)
class TokenFile:
    """One part of a corpus as token ids, mapped into memory: EOS, then each document followed by EOS.

    The EOS between two documents is the last target of one and the first input of the other.
    """

    path: Path
    dtype: str
    eos_id: int
    n_documents: int
    n_bytes: int
    """Bytes of the text in UTF-8: bits per byte compare models with different tokenizers."""

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def ids(self) -> np.ndarray:
        import numpy as np

        return np.memmap(self.path, dtype=self.dtype, mode="r")

    def rows(self, starts: Iterable[int], length: int) -> np.ndarray:
        """Read a row of `length` ids from each start, as int64."""
        import numpy as np

        return np.stack([self.ids[start : start + length] for start in starts]).astype(np.int64)


class Batch(NamedTuple):
    """A batch, of which an objective fills the fields that it needs. All tensors are int64.

    - `input_ids` [B, T]: what the model reads; of an encoder-decoder, what its encoder reads [B, S].
    - `targets` [B, T]: what each position is to predict, -100 where it predicts nothing. Of an encoder-decoder they are
      those of `decoder_input_ids` [B, T].
    - `documents`, `decoder_documents`: the number of each token's document, where rows are packed.
    - `attention_mask` [B, T|S]: 1 for a real token, where rows have padding.
    - `prefix` [B]: how many leading tokens of a row see one another.
    """

    input_ids: torch.Tensor
    targets: torch.Tensor
    documents: torch.Tensor | None = None
    decoder_input_ids: torch.Tensor | None = None
    decoder_documents: torch.Tensor | None = None
    attention_mask: torch.Tensor | None = None
    prefix: torch.Tensor | None = None


Collate = Callable[["np.ndarray", Sequence[tuple[int, int]]], Batch]
"""Makes a batch of rows of ids [B, T + 1], given the epoch and the number of each row: what is random follows from
these and a seed."""


def to_batch(rows: np.ndarray, eos_id: int, documents: bool) -> Batch:
    """Make a batch from rows of T + 1 ids. An EOS belongs to the document it opens: as an input it sees nothing of the
    one before."""
    import torch

    ids = torch.from_numpy(rows)
    input_ids, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    if not documents:
        return Batch(input_ids, targets, None)
    numbers = (input_ids == eos_id).cumsum(1)
    return Batch(input_ids, targets, numbers - numbers[:, :1])


def to_next_tokens(rows: np.ndarray, keys: Sequence[tuple[int, int]], *, eos_id: int, documents: bool) -> Batch:
    """Make a batch whose targets are the next tokens: nothing in it is random."""
    return to_batch(rows, eos_id, documents)


class Batches:
    """Endless shuffled batches. Each epoch is another permutation of the same windows, which share no input.

    `batch(step)` depends on (seed, step) alone, so resuming needs a step counter only. Where an epoch ends within a
    batch, the next one fills it up, so all batches have one shape.
    """

    def __init__(
        self,
        tokens: TokenFile,
        batch_size: int,
        seq_len: int,
        seed: int = 0,
        documents: bool = False,
        collate: Collate | None = None,
    ) -> None:
        self.n_windows = (len(tokens) - 1) // seq_len
        if self.n_windows < 1:
            raise ConfigError(
                f"data: the training split must fill one row of {seq_len} tokens and a target, found {len(tokens)} "
                "(a longer text, or shorter rows)"
            )
        self.tokens = tokens
        self.batch_size = batch_size
        self.seq_len = seq_len
        self.seed = seed
        self.documents = documents
        self.collate = collate or partial(to_next_tokens, eos_id=tokens.eos_id, documents=documents)
        self.step = 0
        self._orders: dict[int, np.ndarray] = {}

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = self.batch(self.step)
        self.step += 1
        return batch

    def batch(self, step: int) -> Batch:
        """Make the batch of a step, whatever was read before."""
        first = step * self.batch_size
        numbers = range(first, first + self.batch_size)
        keys = [(number // self.n_windows, self._window(number)) for number in numbers]
        rows = self.tokens.rows((window * self.seq_len for _, window in keys), self.seq_len + 1)
        return self.collate(rows, keys)

    def _window(self, number: int) -> int:
        epoch, place = divmod(number, self.n_windows)
        if epoch not in self._orders:
            import numpy as np

            self._orders = {past: order for past, order in self._orders.items() if past == epoch - 1}
            self._orders[epoch] = np.random.default_rng([self.seed, epoch]).permutation(self.n_windows)
        return int(self._orders[epoch][place])

    def state(self) -> dict[str, int]:
        """Return what `restore` needs: the step, and the settings that the order of batches depends on."""
        return {"step": self.step, **self._order_settings()}

    def restore(self, state: dict[str, int]) -> None:
        """Set the step from a state. Raises ConfigError when data or settings differ, as the order of batches would."""
        faults = [
            f"data: to resume, {name} must be as before, found {now} (was {state.get(name)})"
            for name, now in self._order_settings().items()
            if state.get(name) != now
        ]
        if faults:
            raise ConfigError(*faults)
        self.step = state["step"]

    def _order_settings(self) -> dict[str, int]:
        names = {"seed": self.seed, "batch_size": self.batch_size, "seq_len": self.seq_len}
        return {**names, "n_tokens": len(self.tokens)}


def read_evaluation_batches(
    tokens: TokenFile, batch_size: int, seq_len: int, *, documents: bool = False, limit: int | None = None
) -> Iterator[Batch]:
    """Yield the split in order, so that each id after the first is a target once; or its first `limit` batches.

    The last full batch may have fewer rows, and the ids left over form a batch of one shorter row: weight batches by
    their numbers of targets.
    """
    n_targets = len(tokens) - 1
    n_rows, left = divmod(n_targets, seq_len)
    starts = [row * seq_len for row in range(n_rows)]
    groups = [(starts[first : first + batch_size], seq_len) for first in range(0, n_rows, batch_size)]
    if left:
        groups.append(([n_targets - left], left))
    for group, length in groups[:limit]:
        yield to_batch(tokens.rows(group, length + 1), tokens.eos_id, documents)


def write_tokens(
    folder: Path, texts: Iterable[tuple[Part, str]], tokenizer: Tokenizer, report: Callable[[int], None]
) -> None:
    """Encode the documents of both parts into `folder`. `report` is called with the bytes of text done so far."""
    import numpy as np

    dtype = "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4"
    counts = {part: {"n_tokens": 1, "n_documents": 0, "n_bytes": 0} for part in PARTS}
    with ExitStack() as stack:
        files = {part: stack.enter_context(open(folder / f"{part}.bin", "wb")) for part in PARTS}
        for file in files.values():
            file.write(np.array([tokenizer.eos_id], dtype).tobytes())
        for group in group_texts(texts):
            encoded = tokenizer.encode_batch([text for _, text in group])
            for (part, text), ids in zip(group, encoded, strict=True):
                files[part].write(np.array([*ids, tokenizer.eos_id], dtype).tobytes())
                counts[part]["n_tokens"] += len(ids) + 1
                counts[part]["n_documents"] += 1
                counts[part]["n_bytes"] += len(text.encode())
            report(sum(count["n_bytes"] for count in counts.values()))
    about = {"dtype": dtype, "eos_id": tokenizer.eos_id, **counts}
    (folder / "tokens.json").write_text(json.dumps(about, indent=2), encoding="utf-8")


def group_texts(texts: Iterable[tuple[Part, str]]) -> Iterator[list[tuple[Part, str]]]:
    """Collect texts into groups of about GROUP characters."""
    group: list[tuple[Part, str]] = []
    length = 0
    for part, text in texts:
        group.append((part, text))
        length += len(text)
        if length >= GROUP:
            yield group
            group, length = [], 0
    if group:
        yield group


def open_tokens(folder: Path) -> dict[Part, TokenFile]:
    """Open what `write_tokens` wrote. Raises ZooError when a file has another length than then."""
    try:
        about = json.loads((folder / "tokens.json").read_text(encoding="utf-8"))
        sizes = {part: (folder / f"{part}.bin").stat().st_size for part in PARTS}
        whole = all(sizes[part] == about[part]["n_tokens"] * int(about["dtype"][-1]) for part in PARTS)
    except (OSError, ValueError, KeyError) as error:
        raise ZooError(f"{folder}: the cached tokens are damaged, found {error!r} (delete the folder)") from error
    if not whole:
        raise ZooError(f"{folder}: the cached tokens are damaged, found files of {sizes} bytes (delete the folder)")
    return {
        part: TokenFile(
            path=folder / f"{part}.bin",
            dtype=about["dtype"],
            eos_id=about["eos_id"],
            n_documents=about[part]["n_documents"],
            n_bytes=about[part]["n_bytes"],
        )
        for part in PARTS
    }


def fill_cache(name: str, build: Callable[[Path], object]) -> Path:
    """Return the folder `name` of the cache. Where there is none, `build` fills a draft that gets the name when
    complete.

    Of two processes that build it at once the second drops its own: both hold the same.
    """
    folder = find_cache_folder() / "data" / name
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_drafts(folder.parent)
        tempfile.TemporaryFile(dir=folder.parent).close()  # raises where nothing may be written
    except OSError as error:
        what = f"cannot write to {folder.parent}, found {error.strerror}"
        raise ConfigError(f"ZOO_CACHE: {what} (set ZOO_CACHE to a folder of yours)") from error
    with replace_folder(folder, keep=True) as draft:
        build(draft)
    return folder
