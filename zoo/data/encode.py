"""Encode the documents of a corpus into shards, on all cores, and open them again."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import Field

from zoo.data.checked import read_sealed, write_sealed
from zoo.data.shards import Count, Joined, Shard, ShardRecord, SplitWriter, choose_dtype
from zoo.data.split import Part, Texts
from zoo.data.token_bytes import measure_tokens
from zoo.data.tokenizer import Tokenizer
from zoo.data.tokens import PairFile, TokenFile
from zoo.errors import ZooError
from zoo.untrusted.json_file import JsonShape

if TYPE_CHECKING:
    import numpy as np
    import tokenizers

PARTS: tuple[Part, ...] = ("train", "validation")
INDEX = "index.json"
GROUP = 2 << 20
"""Characters of text encoded at once: enough to occupy all cores, few enough for memory."""


SEQUENCES = {"text": 1, "pairs": 2, "conversations": 0, "preferences": 3, "judgements": 3}
"""The number of sequences of a document, by its content. Two numbers are codes, because the count varies: 0 for a
conversation (`zoo.data.chat.conversation_rows`), 3 for two of them (`zoo.data.chat.preference_rows`)."""


class Index(JsonShape):
    """The schema of the index of a folder of tokens."""

    dtype: Literal["uint16", "int32"]
    eos_id: Count
    sequences: Annotated[int, Field(ge=0, le=3)]
    """A value of `SEQUENCES`."""
    splits: dict[Part, list[ShardRecord]]


class TokenRun(NamedTuple):
    """The ids of a part of an encoded text."""

    ids: list[int]


class Encoded(NamedTuple):
    """An encoded document: its part, its texts, the encoding of each text, and for validation the bytes of each
    token."""

    part: Part
    texts: Texts
    encodings: Sequence[tokenizers.Encoding | TokenRun]
    lengths: np.ndarray | None


def write_tokens(
    folder: Path,
    texts: Iterable[tuple[Part, Texts]],
    tokenizer: Tokenizer,
    report: Callable[[int], object],
    *,
    sequences: int = 1,
    unchanged: Callable[[], bool] = lambda: True,
) -> None:
    """Encode the documents of both parts into `folder`: shards (`zoo.data.shards`), then the index of all of them.

    `sequences` is the documents' value of SEQUENCES. Whole shards that a killed process left are kept: their documents
    are read but not encoded. `report` is called with the bytes of text done so far. If `unchanged()` is false after the
    last text, ZooError is raised and no index is written.
    """
    dtype, encode = choose_dtype(tokenizer.vocab_size), ENCODERS.get(sequences, encode_group)
    measured = encode is encode_group
    writers: dict[Part, SplitWriter] = {
        part: SplitWriter(folder, part, dtype, keep_lengths=measured and part == "validation") for part in PARTS
    }
    end = None if not measured or (sequences == 1 and ends_in_eos(tokenizer)) else tokenizer.eos_id
    done = 0

    def skip_whole_shards() -> Iterator[tuple[Part, Texts]]:
        nonlocal done
        left = {part: writer.n_documents for part, writer in writers.items()}
        for part, document in texts:
            if left[part]:
                left[part] -= 1
                done += count_bytes(document)
            else:
                yield part, document

    for document in encode_ahead(group_texts(skip_whole_shards()), tokenizer, encode):
        ids = [pack_ids(each.ids, end, dtype) for each in document.encodings]
        size = count_bytes(document.texts)
        writers[document.part].add(ids, size, document.lengths)
        done += size
        report(done)
    if not unchanged():
        raise ZooError("data: the corpus changed while it was read (start again)")
    write_index(folder, writers, tokenizer, dtype, sequences)


def count_bytes(texts: Texts) -> int:
    """Count the bytes of a document's text in UTF-8."""
    return sum(len(text.encode()) for text in texts)


def ends_in_eos(tokenizer: Tokenizer) -> bool:
    """Tell whether the tokenizer's file puts the end of text after every text, as T5's does."""
    return tokenizer.around[1][-1:] == [tokenizer.eos_id]


def pack_ids(ids: Sequence[int], end: int | None, dtype: str) -> np.ndarray:
    """Make an array of ids followed by `end`, if one is given. `array` reads a list in half of numpy's time."""
    import numpy as np

    packed = array("H" if dtype == "uint16" else "i", ids)
    if end is not None:
        packed.append(end)
    return np.frombuffer(packed, dtype)


def encode_ahead(
    groups: Iterable[list[tuple[Part, Texts]]],
    tokenizer: Tokenizer,
    encode: Callable[[list[tuple[Part, Texts]], Tokenizer], list[Encoded]],
) -> Iterator[Encoded]:
    """Encode groups of documents in a thread: a group is encoded while the one before it is written.

    The tokenizer runs one thread per core (or RAYON_NUM_THREADS), without Python's lock. The number of threads does not
    change the ids. Nothing else may use the tokenizer meanwhile.
    """
    with ThreadPoolExecutor(1) as pool:
        waiting: Future[list[Encoded]] | None = None
        for group in groups:
            ahead = pool.submit(encode, group, tokenizer)
            if waiting is not None:
                yield from waiting.result()
            waiting = ahead
        if waiting is not None:
            yield from waiting.result()


def encode_group(group: list[tuple[Part, Texts]], tokenizer: Tokenizer) -> list[Encoded]:
    """Encode the documents of a group. No tokens are added around the targets of pairs. Validation documents also get
    the bytes of each token."""
    firsts = iter(tokenizer.encode_many([texts[0] for _, texts in group]))
    answers = iter(tokenizer.encode_many([text for _, texts in group for text in texts[1:]], bare=True))
    found = []
    for part, texts in group:
        encodings = [next(firsts), *(next(answers) for _ in texts[1:])]
        found.append(Encoded(part, texts, encodings, measure(texts, encodings, tokenizer, part)))
    return found


def encode_turns(group: list[tuple[Part, Texts]], tokenizer: Tokenizer) -> list[Encoded]:
    """Encode the conversations of a group, each as a whole, and divide its tokens among its texts.

    Two texts are a prompt and its completion in plain text. They get the tokens that the tokenizer's file puts around a
    text, and an end of text. More than two texts come from a template, which spells all special tokens itself.
    """
    written = [len(texts) > 2 for _, texts in group]
    whole = ["".join(texts) for _, texts in group]
    found = {
        kind: iter(tokenizer.encode_with_offsets([t for t, w in zip(whole, written, strict=True) if w is kind], kind))
        for kind in (True, False)
    }
    encoded = []
    for (part, texts), kind in zip(group, written, strict=True):
        runs = divide_tokens(next(found[kind]), texts)
        if not kind and runs[-1].ids[-1:] != [tokenizer.eos_id]:
            runs[-1].ids.append(tokenizer.eos_id)
        encoded.append(Encoded(part, texts, runs, None))
    return encoded


def encode_answers(group: list[tuple[Part, Texts]], tokenizer: Tokenizer) -> list[Encoded]:
    """Encode documents of two conversations, each half as a separate conversation. An empty half has no tokens."""
    halves: list[tuple[Part, Texts]] = [
        (part, half) for part, texts in group for half in (texts[: len(texts) // 2], texts[len(texts) // 2 :])
    ]
    found = [
        each.encodings if any(each.texts) else [TokenRun([])] * len(each.texts)
        for each in encode_turns(halves, tokenizer)
    ]
    joined = zip(group, found[::2], found[1::2], strict=True)
    return [Encoded(part, texts, [*chosen, *rejected], None) for (part, texts), chosen, rejected in joined]


ENCODERS = {SEQUENCES["conversations"]: encode_turns, SEQUENCES["preferences"]: encode_answers}
"""The functions that encode conversations, by their value of SEQUENCES. All other documents: `encode_group`."""


def divide_tokens(encoding: tokenizers.Encoding, texts: Texts) -> list[TokenRun]:
    """Divide the tokens of joined texts among them. A token that spans two texts goes to the learned one (the second,
    fourth …), as in transformers' masks."""
    import numpy as np

    starts, ends = np.maximum.accumulate(np.array(encoding.offsets, np.int64).reshape(-1, 2)).T
    borders = np.cumsum([len(text) for text in texts])[:-1]
    # before a learned text: the first token that ends after the border; after it: the first that begins at it
    before, after = np.searchsorted(ends, borders[::2], "right"), np.searchsorted(starts, borders[1::2], "left")
    cuts = np.empty(len(borders), np.int64)
    cuts[::2], cuts[1::2] = before, after
    cuts, ids = [0, *np.maximum.accumulate(cuts).tolist(), len(starts)], encoding.ids
    return [TokenRun(ids[first:last]) for first, last in pairwise(cuts)]


def measure(
    texts: Texts, encodings: Sequence[tokenizers.Encoding], tokenizer: Tokenizer, part: Part
) -> np.ndarray | None:
    """Count the bytes of each token of a validation document; None for a training document."""
    import numpy as np

    if part != "validation":
        return None
    pairs = enumerate(zip(texts, encodings, strict=True))
    found = [measure_tokens(tokenizer, text, np.array(each.ids, np.int64), bare=i > 0) for i, (text, each) in pairs]
    return np.concatenate(found)[: -1 if len(texts) == 1 and ends_in_eos(tokenizer) else None]


def group_texts(texts: Iterable[tuple[Part, Texts]]) -> Iterator[list[tuple[Part, Texts]]]:
    """Collect documents into groups of about GROUP characters."""
    group: list[tuple[Part, Texts]] = []
    length = 0
    for part, document in texts:
        group.append((part, document))
        length += sum(map(len, document))
        if length >= GROUP:
            yield group
            group, length = [], 0
    if group:
        yield group


def write_index(
    folder: Path, writers: Mapping[Part, SplitWriter], tokenizer: Tokenizer, dtype: str, sequences: int
) -> None:
    """Write the last shards, then the index of all shards with their checksums, and delete the shards' own records."""
    splits = {}
    for part, writer in writers.items():
        writer.flush()
        splits[part] = writer.shards
    about = {"dtype": dtype, "eos_id": tokenizer.eos_id, "sequences": sequences}
    write_sealed(folder / INDEX, {**about, "splits": splits})
    for record in (folder / f"{shard['name']}.json" for shards in splits.values() for shard in shards):
        record.unlink(missing_ok=True)


# ---------------------------------------------------------------- reading


def open_tokens(folder: Path, parts: Sequence[Part] = PARTS, packed: bool = False) -> dict[Part, TokenFile]:
    """Open the `parts` of a folder that `write_tokens` filled; with `packed` a row holds several conversations. Raises
    ZooError if the index is damaged or a file's length has changed. Contents are compared with their checksums when
    first read."""
    index = read_sealed(folder / INDEX, Index)
    return {part: open_split(folder, part, index, packed) for part in parts}


def open_split(folder: Path, part: Part, index: Mapping[str, Any], packed: bool) -> TokenFile:
    """Open the shards of one split as one array, with an end of text before the first document. Raises ZooError if
    there is no shard, or a file's length has changed."""
    import numpy as np

    records = index["splits"].get(part) or []
    shards = [Shard(folder / each["name"], index["dtype"], each["n_tokens"], each["files"]) for each in records]
    if not shards:
        raise ZooError(f"{folder}: has no {part} split, found no shard of it (delete the folder: it is made again)")
    for shard in shards:
        shard.check_lengths()
    about = {
        "ids": join_shards(shards, np.array([index["eos_id"]], index["dtype"]), lambda shard: shard.ids),
        "lengths": None,
        "eos_id": index["eos_id"],
        "n_documents": sum(each["n_documents"] for each in records),
        "n_bytes": sum(each["n_bytes"] for each in records),
        "path": folder / part,
    }
    if "len" in shards[0].files:
        about["lengths"] = join_shards(shards, np.zeros(1, "<u4"), lambda shard: shard.lengths)
    if index["sequences"] == 1:
        return TokenFile(**about)

    def read(name: str) -> np.ndarray:
        return np.concatenate([getattr(shard, name) for shard in shards])

    if index["sequences"] == 2:
        return PairFile(**about, sizes=lambda: read("sizes"))
    from zoo.data.chat.conversation_rows import TurnFile
    from zoo.data.chat.preference_rows import PreferenceFile

    if index["sequences"] == SEQUENCES["conversations"]:
        return TurnFile(**about, packed=packed, sequences=lambda: (read("sizes"), read("counts")))
    # a document has the sequences of two conversations (`encode_answers`)
    return PreferenceFile(**about, packed=packed, sequences=lambda: (read("sizes"), np.repeat(read("counts") // 2, 2)))


def join_shards(shards: Sequence[Shard], first: np.ndarray, read: Callable[[Shard], np.ndarray]) -> Joined:
    """Join `first` and the arrays that `read` gives for the shards, in order."""
    return Joined([(len(first), lambda: first), *((each.n_tokens, partial(read, each)) for each in shards)])
