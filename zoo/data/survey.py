"""Read a source once: hash it, measure its documents for the split, and keep a sample to train a BPE on.

Text is read in two passes. The split needs the hashes of all documents, and a BPE must be trained before any text is
encoded. So the first pass keeps a few bytes a document and a bounded sample. The second pass encodes, and hashes again
to detect a source that has changed meanwhile.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from zoo.data.corpus import Document, Documents
from zoo.data.split import Part, Unit, join_pieces, measure_unit


class Fingerprint:
    """Hashes the documents that pass through `follow`: their content and order, not names, dates or places."""

    def __init__(self) -> None:
        self._whole = hashlib.blake2b(digest_size=16)

    def follow(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Hash each document, then yield it."""
        for document in documents:
            if document.validates:
                self._whole.update(b"validates ")
            for number, text in enumerate(document.texts):
                data = text.encode()
                self._whole.update(f"{document.piece} {number} {len(data)} ".encode())
                self._whole.update(data)
            yield document

    def hexdigest(self) -> str:
        return self._whole.hexdigest()


class LowestHashes:
    """Keeps the documents with the lowest hashes, about `room` bytes of text, whatever the size of the corpus.

    Documents are ordered by the second half of the hash, as `max_bytes` orders them: a corpus limited by `max_bytes`
    keeps the documents of this sample first.
    """

    def __init__(self, room: int) -> None:
        self.room, self.size = room, 0
        self._heap: list[tuple[int, int, int, Document]] = []  # a heap, highest hash on top

    def add(self, number: int, unit: Unit, document: Document) -> None:
        """Add a document, then drop the documents of highest hash while the others still have `room` bytes."""
        if not self.room:
            return
        heapq.heappush(self._heap, (-int.from_bytes(unit.key[8:]), number, unit.size, document))
        self.size += unit.size
        while self.size - self._heap[0][2] >= self.room:
            self.size -= heapq.heappop(self._heap)[2]

    def texts(self, parts: list[Part | None]) -> Iterator[str]:
        """Yield the training texts in the order of the source, with consecutive pieces joined."""
        kept = sorted((number, document) for _, number, _, document in self._heap)
        chosen: list[Part | None] = [parts[number] for number, _ in kept]
        for part, texts in join_pieces((document for _, document in kept), chosen):
            if part == "train":
                yield from texts


class Survey(NamedTuple):
    """The result of the first pass over the `documents`: a Unit for each, the fingerprint of all, and a sample."""

    units: list[Unit]
    fingerprint: str
    sample: LowestHashes
    documents: Documents


def survey(documents: Documents, room: int, report: Callable[[int], object]) -> Survey:
    """Read a source once, keeping a sample of `room` bytes. `report` is called with the bytes read so far."""
    fingerprint, sample, units, done = Fingerprint(), LowestHashes(room), [], 0
    for number, document in enumerate(fingerprint.follow(documents)):
        unit = measure_unit(document)
        units.append(unit)
        sample.add(number, unit, document)
        done += unit.size
        report(done)
    return Survey(units, fingerprint.hexdigest(), sample, documents)
