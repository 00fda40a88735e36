# K texts of a record
"""Read records of several texts that are compared: an anchor, its positive, and hard negatives of the anchor."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from zoo.data.labelled_records import Example, LabelledTask
from zoo.data.records import Faults, has_fields
from zoo.data.rowcode import EncodedRow, RowEncoder
from zoo.data.split import Part

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class ComparedTask(LabelledTask):
    """Reads the K texts of a record without a label, in lower case if `lower`. A row joins the ids of all K texts. Its
    types number each token's text, and its targets [K] are the texts' keys."""

    label: str = ""
    lower: bool = False
    keys: ClassVar[str] = "objective.anchor=NAME objective.positive=NAME objective.negatives=[NAME]"

    @property
    def columns(self) -> tuple[str, ...]:
        return self.texts

    def read(self, record: Mapping[str, Any], where: str, faults: Faults) -> Example | None:
        known = has_fields(record, self.texts, self.keys, where, faults)
        texts = self.read_texts(record, where, faults) if known else None
        return None if texts is None else Example(where, tuple(map(str.lower, texts)) if self.lower else texts, ())

    def encode(self, examples: Sequence[Example], encoder: RowEncoder) -> list[EncodedRow]:
        """Encode each text separately, and join the texts of each record. `whole` is the length of the longest text."""
        rows = encoder.encode([(text,) for example in examples for text in example.texts])
        size = len(self.texts)
        return [join_texts(rows[first : first + size]) for first in range(0, len(rows), size)]

    def make_target(self, example: Example, row: EncodedRow, classes: Mapping[str, int]) -> np.ndarray:
        import numpy as np

        return np.array([hash_key(text) for text in example.texts], np.int64)

    def settle(self, parts: Mapping[Part, Sequence[Example]], known: Any) -> tuple[dict[str, int], int]:
        return {}, 0


def join_texts(rows: Sequence[EncodedRow]) -> EncodedRow:
    """Join encoded texts into one row; the row is empty if any text is."""
    whole = max(row.whole for row in rows)
    if not all(row.ids for row in rows):
        return EncodedRow([], [], [], whole)
    types = [number for number, row in enumerate(rows) for _ in row.ids]
    return EncodedRow([token for row in rows for token in row.ids], types, [], whole)


def hash_key(text: str) -> int:
    """Hash a text to a key of 63 bits: equal texts have equal keys."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
