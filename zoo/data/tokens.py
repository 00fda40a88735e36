"""Token ids on disk, and the batches of a training run: each a function of the seed and the step alone.

B rows, T tokens a row.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from zoo.data.corpus import Part
from zoo.data.tokenizer import Tokenizer
from zoo.errors import ConfigError, ZooError

if TYPE_CHECKING:
    import numpy as np
    import torch

Progress = Callable[[str, int, int], None]
"""Told what is being done, and how many bytes of text of how many are done."""

PARTS: tuple[Part, ...] = ("train", "validation")
GROUP = 1 << 20  # bytes of text encoded at once: enough for all cores, little to hold
A_DAY = 86400  # seconds after which a folder that a killed run left half-written is removed


@dataclass(frozen=True)
class Tokens:
    """One part of a corpus as ids, mapped into memory: EOS, then each document and an EOS after it.

    So the EOS is the last target of one document and the first input of the next, and no document lacks either.
    """

    path: Path
    dtype: str
    eos_id: int
    n_documents: int
    n_bytes: int
    """Of the text, as UTF-8: the loss in bits per byte compares models with different tokenizers."""

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def ids(self) -> np.ndarray:
        import numpy as np

        return np.memmap(self.path, dtype=self.dtype, mode="r")

    def rows(self, starts: Iterable[int], length: int) -> np.ndarray:
        """A row of `length` ids from each start on, as int64."""
        import numpy as np

        return np.stack([self.ids[start : start + length] for start in starts]).astype(np.int64)


class Batch(NamedTuple):
    """`targets` are the ids one further on; `documents` numbers the documents of each row from 0. All int64 [B, T]."""

    input_ids: torch.Tensor
    targets: torch.Tensor
    documents: torch.Tensor | None


def to_batch(rows: np.ndarray, eos_id: int, documents: bool) -> Batch:
    """From rows of T + 1 ids. An EOS belongs to the document that it opens: as an input it sees nothing of the last."""
    import torch

    ids = torch.from_numpy(rows)
    input_ids, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    if not documents:
        return Batch(input_ids, targets, None)
    numbers = (input_ids == eos_id).cumsum(1)
    return Batch(input_ids, targets, numbers - numbers[:, :1])


class Batches:
    """Endless shuffled batches. Each epoch is a permutation of its own of the same windows, that share no input.

    `batch(step)` depends on (seed, step) alone, so a step counter is all there is to resume. A batch runs on into the
    next epoch where one ends, so all are of one shape.
    """

    def __init__(self, tokens: Tokens, batch_size: int, seq_len: int, seed: int = 0, documents: bool = False) -> None:
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
        self.step = 0
        self._orders: dict[int, np.ndarray] = {}

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = self.batch(self.step)
        self.step += 1
        return batch

    def batch(self, step: int) -> Batch:
        """The batch of a step, whichever were asked for before."""
        first = step * self.batch_size
        starts = [self._window(number) * self.seq_len for number in range(first, first + self.batch_size)]
        return to_batch(self.tokens.rows(starts, self.seq_len + 1), self.tokens.eos_id, self.documents)

    def _window(self, number: int) -> int:
        epoch, place = divmod(number, self.n_windows)
        if epoch not in self._orders:
            import numpy as np

            self._orders = {past: order for past, order in self._orders.items() if past == epoch - 1}
            self._orders[epoch] = np.random.default_rng([self.seed, epoch]).permutation(self.n_windows)
        return int(self._orders[epoch][place])

    def state(self) -> dict[str, int]:
        """What `restore` needs: the step, and what gives the step its meaning."""
        return {"step": self.step, **self._meaning()}

    def restore(self, state: dict[str, int]) -> None:
        """Goes on from a state. Raises ConfigError when it was of other data or settings, as the order would differ."""
        faults = [
            f"data: to resume, {name} must be as before, found {now} (was {state.get(name)})"
            for name, now in self._meaning().items()
            if state.get(name) != now
        ]
        if faults:
            raise ConfigError(*faults)
        self.step = state["step"]

    def _meaning(self) -> dict[str, int]:
        names = {"seed": self.seed, "batch_size": self.batch_size, "seq_len": self.seq_len}
        return {**names, "n_tokens": len(self.tokens)}


def evaluation_batches(
    tokens: Tokens, batch_size: int, seq_len: int, *, documents: bool = False, limit: int | None = None
) -> Iterator[Batch]:
    """The split in order, each id after the first a target once; or the first `limit` batches of it.

    The last full batch may have fewer rows, and the ids left over make a batch of one shorter row: weigh batches by
    their number of targets.
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
    """Encodes the documents of both parts into `folder`; `report` is told the bytes of text done so far."""
    import numpy as np

    dtype = "<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4"
    counts = {part: {"n_tokens": 1, "n_documents": 0, "n_bytes": 0} for part in PARTS}
    with ExitStack() as stack:
        files = {part: stack.enter_context(open(folder / f"{part}.bin", "wb")) for part in PARTS}
        for file in files.values():
            file.write(np.array([tokenizer.eos_id], dtype).tobytes())
        for group in grouped(texts):
            encoded = tokenizer.encode_batch([text for _, text in group])
            for (part, text), ids in zip(group, encoded, strict=True):
                files[part].write(np.array([*ids, tokenizer.eos_id], dtype).tobytes())
                counts[part]["n_tokens"] += len(ids) + 1
                counts[part]["n_documents"] += 1
                counts[part]["n_bytes"] += len(text.encode())
            report(sum(count["n_bytes"] for count in counts.values()))
        about = stack.enter_context(open(folder / "tokens.json", "w", encoding="utf-8"))
        json.dump({"dtype": dtype, "eos_id": tokenizer.eos_id, **counts}, about, indent=2)
        for file in (*files.values(), about):
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave the folder renamed and its files empty


def grouped(texts: Iterable[tuple[Part, str]]) -> Iterator[list[tuple[Part, str]]]:
    """Groups of about GROUP characters."""
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


def open_tokens(folder: Path) -> dict[Part, Tokens]:
    """What `write_tokens` wrote. Raises ZooError when a file is not as long as it was."""
    try:
        about = json.loads((folder / "tokens.json").read_text(encoding="utf-8"))
        sizes = {part: (folder / f"{part}.bin").stat().st_size for part in PARTS}
        whole = all(sizes[part] == about[part]["n_tokens"] * int(about["dtype"][-1]) for part in PARTS)
    except (OSError, ValueError, KeyError) as error:
        raise ZooError(f"{folder}: the cached tokens are damaged, found {error!r} (delete the folder)") from error
    if not whole:
        raise ZooError(f"{folder}: the cached tokens are damaged, found files of {sizes} bytes (delete the folder)")
    return {
        part: Tokens(
            path=folder / f"{part}.bin",
            dtype=about["dtype"],
            eos_id=about["eos_id"],
            n_documents=about[part]["n_documents"],
            n_bytes=about[part]["n_bytes"],
        )
        for part in PARTS
    }


def cache_folder() -> Path:
    """`$ZOO_CACHE`, or where the platform keeps what can be made again."""
    if stated := os.environ.get("ZOO_CACHE"):
        return Path(stated).expanduser()
    if os.name == "nt":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "zoo" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zoo"


def cached(name: str, build: Callable[[Path], object]) -> Path:
    """The folder `name` of the cache. Where there is none, `build` fills a draft beside it that is renamed when whole.

    So a folder of that name is always complete, and of two runs that build it at once the second drops its own.
    """
    folder = cache_folder() / "data" / name
    if folder.is_dir():
        return folder
    draft = folder.with_name(f".draft-{uuid.uuid4().hex}")
    try:
        draft.mkdir(parents=True)
    except OSError as error:
        what = f"cannot write to {folder.parent}, found {error.strerror}"
        raise ConfigError(f"ZOO_CACHE: {what} (set ZOO_CACHE to a folder of yours)") from error
    try:
        remove_stale_drafts(folder.parent)
        build(draft)
        os.replace(draft, folder)
    except OSError:
        if not folder.is_dir():  # it is there when another run was first: that one holds the same
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def remove_stale_drafts(folder: Path) -> None:
    """Those that killed runs left, told by their age."""
    for draft in folder.glob(".draft-*"):
        try:
            stale = time.time() - draft.stat().st_mtime > A_DAY
        except FileNotFoundError:  # its run has just finished
            continue
        if stale:
            shutil.rmtree(draft, ignore_errors=True)
