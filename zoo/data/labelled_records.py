# C numbers of a label
"""Read labelled records: one text or two, with a class or numbers; or words with a tag each. The sets are small and
kept in memory.

A record that cannot be read is named by its file and line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from zoo.data import PreparedData, hash_settings, make_tokenizer
from zoo.data.cut_rows import describe_cuts
from zoo.data.encode import PARTS
from zoo.data.records import Faults, has_fields, is_text, read_texts
from zoo.data.rowcode import EncodedRow, RowEncoder
from zoo.data.settings import DataSettings
from zoo.data.split import Part, Unit, describe_copies, hash_text, split_units
from zoo.data.tokenizer import find_tokenizer_file
from zoo.data.tokens import Progress, Source, TokenFile
from zoo.errors import ConfigError
from zoo.model.loss import IGNORED
from zoo.model.task_head import spell_label
from zoo.untrusted.printable import shorten

if TYPE_CHECKING:
    import numpy as np

LABELS_SHOWN = 8
LARGEST = 3.4e38
"""The largest number allowed in a label, which is stored as float32."""


class Example(NamedTuple):
    """A labelled record: its place for messages, its texts (or words), and its label: class names or numbers."""

    where: str
    texts: tuple[str, ...]
    label: tuple[Any, ...]


@dataclass(frozen=True)
class LabelledTask:
    """Reads examples from records. `texts` and `label` are names of fields."""

    texts: tuple[str, ...]
    label: str
    keys: ClassVar[str] = "objective.text=NAME objective.label=NAME"
    """The keys of a config that name the fields."""

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.texts, self.label)

    def read(self, record: Mapping[str, Any], where: str, faults: Faults) -> Example | None:
        """Read an example; None for a record without text, or with a fault, which is added to `faults`."""
        if not has_fields(record, self.columns, self.keys, where, faults):
            return None
        texts = self.read_texts(record, where, faults)
        label = None if texts is None else self.read_label(record[self.label], where, faults)
        return None if texts is None or label is None else Example(where, texts, label)

    def read_texts(self, record: Mapping[str, Any], where: str, faults: Faults) -> tuple[str, ...] | None:
        """Read the texts; None if one is empty or has a fault."""
        return read_texts(record, self.texts, where, faults)

    def read_label(self, value: Any, where: str, faults: Faults) -> tuple[Any, ...] | None:
        """Read the label; None if it has a fault, which is added to `faults`."""
        raise NotImplementedError

    def encode(self, examples: Sequence[Example], encoder: RowEncoder) -> list[EncodedRow]:
        return encoder.encode([example.texts for example in examples])

    def make_target(self, example: Example, row: EncodedRow, classes: Mapping[str, int]) -> np.ndarray:
        raise NotImplementedError

    def settle(self, parts: Mapping[Part, Sequence[Example]], known: Any) -> tuple[dict[str, int], int]:
        """Number the classes: the `known` ones, or those of the training part. Returns the numbers by name, and the
        count of the head's outputs. Raises ConfigError for a record whose label does not fit."""
        classes = settle_classes(parts, known, self)
        return classes, len(classes)


class ClassTask(LabelledTask):
    """Reads a class for each record: a string, a whole number, or a boolean."""

    def read_label(self, value: Any, where: str, faults: Faults) -> tuple[Any, ...] | None:
        name = spell_label(value)
        if not name:
            faults.add(f"{where} has no class in '{self.label}', found {_show(value)} (a string or a whole number)")
            return None
        return (name,) if is_text(name, self.label, where, faults) else None

    def make_target(self, example: Example, row: EncodedRow, classes: Mapping[str, int]) -> np.ndarray:
        """Return the number of the class [1]."""
        import numpy as np

        return np.array([classes[example.label[0]]], np.int64)


class NumberTask(LabelledTask):
    """Reads a number for each record, or a list of numbers that has the same length in all records."""

    def read_label(self, value: Any, where: str, faults: Faults) -> tuple[Any, ...] | None:
        given = value if isinstance(value, list) else [value]
        if not given or any(isinstance(each, bool) or not isinstance(each, int | float) for each in given):
            faults.add(f"{where} has no number in '{self.label}', found {_show(value)} (a number, or a list of them)")
            return None
        if not all(abs(each) <= LARGEST for each in given):  # targets are float32
            found = f"found {_show(value)} (a finite one of float32)"
            faults.add(f"{where} has a number in '{self.label}' that is not finite, {found}")
            return None
        return tuple(map(float, given))

    def make_target(self, example: Example, row: EncodedRow, classes: Mapping[str, int]) -> np.ndarray:
        """Return the numbers [1, C]."""
        import numpy as np

        return np.array([example.label], np.float32)

    def settle(self, parts: Mapping[Part, Sequence[Example]], known: Any) -> tuple[dict[str, int], int]:
        return {}, count_numbers(parts, known)


class TagTask(LabelledTask):
    """Reads a tag for each word of a record: words and tags are two lists of one length."""

    keys: ClassVar[str] = "objective.tokens=NAME objective.tags=NAME"

    def read_texts(self, record: Mapping[str, Any], where: str, faults: Faults) -> tuple[str, ...] | None:
        (column,) = self.texts
        words = record[column]
        if not isinstance(words, list):
            faults.add(f"{where} has no words in '{column}', found {_show(words)} (a list of strings)")
            return None
        if not all(is_text(word, column, where, faults) for word in words):
            return None
        tags = record[self.label]
        if isinstance(tags, list) and len(tags) != len(words):
            found = f"found {len(tags)} in '{self.label}' for {len(words)} in '{column}'"
            faults.add(f"{where} has not a tag for each word, {found} (lists of one length)")
            return None
        return tuple(words) or None

    def read_label(self, value: Any, where: str, faults: Faults) -> tuple[Any, ...] | None:
        names = [spell_label(each) for each in value] if isinstance(value, list) else [None]
        if not all(names):
            faults.add(f"{where} has no tags in '{self.label}', found {_show(value)} (a list of strings)")
            return None
        return tuple(names) if all(is_text(name, self.label, where, faults) for name in names) else None

    def encode(self, examples: Sequence[Example], encoder: RowEncoder) -> list[EncodedRow]:
        return encoder.encode_words([example.texts for example in examples])

    def make_target(self, example: Example, row: EncodedRow, classes: Mapping[str, int]) -> np.ndarray:
        """Return the targets [T]: the number of a word's tag at the word's first token, IGNORED at all other tokens."""
        import numpy as np

        target = np.full(len(row.ids), IGNORED, np.int64)
        for tag, place in zip(example.label, row.places, strict=True):
            if place is not None:
                target[place] = classes[tag]
        return target


def _show(value: object) -> str:
    return shorten(json.dumps(value, ensure_ascii=False, default=str), 40)


# ---------------------------------------------------------------- a prepared set


class LabelledRow(NamedTuple):
    """A row of a labelled set: ids [T], the number of each token's text [T], and the target: a class [1], a class for
    each token [T], or numbers [1, C]."""

    ids: np.ndarray
    types: np.ndarray
    target: np.ndarray


@dataclass(frozen=True, kw_only=True)
class LabelledFile(TokenFile):
    """One split of a labelled set, with a row for each record."""

    rows: tuple[LabelledRow, ...] = field(compare=False, repr=False)

    def count_rows(self, seq_len: int) -> int:
        return len(self.rows)

    def read_row(self, number: int, seq_len: int) -> LabelledRow:
        """Read a row. Rows were truncated when they were encoded, so `seq_len` has no effect."""
        return self.rows[number]


@dataclass(frozen=True, kw_only=True)
class PreparedLabels(PreparedData):
    """A prepared labelled set. `labels` are the classes in the order of the head's logits, empty for numbers.
    `n_outputs` is the number of the head's outputs: classes, or numbers in a label."""

    labels: tuple[str, ...]
    n_outputs: int


def prepare_labelled(
    settings: DataSettings,
    task: LabelledTask,
    known: Sequence[str] | int | None,
    *,
    limit: int,
    opens: bool,
    say: Callable[[str], object],
    progress: Progress,
    whole: bool = False,
) -> PreparedLabels:
    """Read and split a labelled set, and encode rows of at most `limit` tokens (`opens`: see `RowEncoder`). The
    classes, or the count of numbers in a label, are found in the data unless `known`. With `whole` the same records
    train and validate, and are reported on once. `say` is called with lines on records without text and on truncated
    texts. Raises ConfigError for a record that cannot be read or has a wrong label, and for an empty part."""
    parts = read_parts(settings, task, progress, say)
    for line in () if whole else describe_copies(*([each.texts for each in parts[part]] for part in PARTS)):
        say(line)
    classes, n_outputs = task.settle(parts, known)
    tokenizer = make_tokenizer(settings.tokenizer, lambda: (text for each in parts["train"] for text in each.texts))
    encoder = RowEncoder(tokenizer, limit, opens)
    tells = {"train": (lambda line: None) if whole else say, "validation": say}
    files = {part: encode_part(each, task, classes, encoder, tells[part], part) for part, each in parts.items()}
    key = hash_settings(settings, {"": fingerprint(parts, task, limit, opens)})
    sources = {part: (Source("", Fraction(1), file),) for part, file in files.items()}
    own = None if settings.tokenizer.path is None else find_tokenizer_file(settings.tokenizer.path, "tokenizer").parent
    return PreparedLabels(
        tokenizer, sources["train"], sources["validation"], key, own, labels=tuple(classes), n_outputs=n_outputs
    )


def read_parts(
    settings: DataSettings, task: LabelledTask, progress: Progress, say: Callable[[str], object]
) -> dict[Part, list[Example]]:
    """Read both parts of a labelled set. Without the setting `validation`, the records are split, and records of equal
    texts go to the same part. `say` is called with a line on records without a text."""
    validation = getattr(settings, "validation", None)
    read = read_examples(settings, task, False, progress, say)
    if validation is not None:
        return {"train": read, "validation": read_examples(settings, task, True, progress, say)}
    units = [Unit(hash_text("\0".join(each.texts)), each.where, sum(map(len, each.texts))) for each in read]
    chosen = split_units(units, settings.validation_fraction)
    of_text: dict[bytes, Part] = {unit.key: part for unit, part in zip(units, chosen, strict=True) if part is not None}
    parts: dict[Part, list[Example]] = {"train": [], "validation": []}
    for unit, example in zip(units, read, strict=True):
        parts[of_text[unit.key]].append(example)  # duplicates go to the part of the text's first record
    return parts


def read_examples(
    settings: Any, task: LabelledTask, validation: bool, progress: Progress, say: Callable[[str], object]
) -> list[Example]:
    """Read the examples of a source. `say` is called with a line on records that are left out because a text is empty.
    Raises ConfigError with a line for each record that cannot be read."""
    source = settings.open_records(task.columns, task.keys, validation)
    progress("reading", 0, source.n_bytes)
    faults = Faults("data.validation" if validation else "data.path")
    found = [task.read(record, where, faults) for where, record in source.read(faults)]
    examples = [each for each in found if each is not None]
    faults.settle()
    source.refuse_nothing(bool(examples))
    if empty := len(found) - len(examples):
        say(f"data: {empty:,} of {len(found):,} records are left out, as one of their texts is empty")
    progress("reading", source.n_bytes, source.n_bytes)
    return examples


def settle_classes(
    parts: Mapping[Part, Sequence[Example]], labels: Sequence[str] | None, task: LabelledTask
) -> dict[str, int]:
    """Return the number of each class: of `labels`, or of the sorted classes of the training part. Raises ConfigError
    for a record of any other class, and for fewer than two classes."""
    found = {name for example in parts["train"] for name in example.label}
    names = list(labels) if labels is not None else sorted(found, key=_order)
    if len(names) < 2:
        raise ConfigError(
            f"objective.labels: one class alone, found '{shorten(names[0], 40)}' in all {len(parts['train']):,} "
            f"records that train (two at least in '{task.label}')"
        )
    classes = {name: number for number, name in enumerate(names)}
    strange: dict[str, str] = {}
    for example in (example for examples in parts.values() for example in examples):
        for name in example.label:
            if name not in classes:
                strange.setdefault(shorten(name, 40), example.where)
    if strange:
        there = ", ".join(shorten(name, 40) for name in names[:LABELS_SHOWN]) + (
            " …" if len(names) > LABELS_SHOWN else ""
        )
        none = "which no record that trains has" if labels is None else "which is none of the classes"
        faults = [f"{where} has label '{name}', {none}: {there}" for name, where in strange.items()]
        raise ConfigError(*(f"objective.labels: {fault} (labels=[…] names all)" for fault in faults[:LABELS_SHOWN]))
    return classes


def _order(name: str) -> tuple[bool, int, str]:
    """Sort key of class names: whole numbers by value, then all other names."""
    number = len(name) < 20 and name.removeprefix("-").isdecimal()
    return (not number, int(name) if number else 0, name)


def count_numbers(parts: Mapping[Part, Sequence[Example]], known: Any = None) -> int:
    """Return the count of numbers in a label: `known`, or that of the first record. Raises ConfigError for a record
    with another count."""
    every = [example for examples in parts.values() for example in examples]
    wanted, whose = (known, "the head") if known is not None else (len(every[0].label), every[0].where)
    for each in every:
        if len(each.label) != wanted:
            found = f"found {len(each.label)}, where {whose} has {wanted}"
            raise ConfigError(f"objective.n_outputs: {each.where} has another count of numbers, {found} (one for all)")
    return wanted


def encode_part(
    examples: Sequence[Example],
    task: LabelledTask,
    classes: Mapping[str, int],
    encoder: RowEncoder,
    say: Callable[[str], object],
    part: str,
) -> LabelledFile:
    """Encode the examples of a part. `say` is called with a line on texts that are truncated or left out. Raises
    ConfigError if no text is left."""
    import numpy as np

    encoded = task.encode(examples, encoder)
    sizes = np.array([row.whole for row in encoded])
    if line := describe_cuts(sizes, encoder.limit, f"texts ({part}) lose a part", lambda size: f"seq_len={size}"):
        say(f"data: {line}")
    rows = tuple(
        LabelledRow(np.array(row.ids), np.array(row.types), task.make_target(example, row, classes))
        for example, row in zip(examples, encoded, strict=True)
        if row.ids and (not row.places or any(place is not None for place in row.places))
    )
    if lost := len(encoded) - len(rows):
        say(f"data: {lost:,} of {len(encoded):,} texts ({part}) have no token to score, and are left out")
    if not rows:
        raise ConfigError(f"data.path: no text of the {part} split has a token, found {len(examples)} texts (others)")
    n_bytes = sum(len(text.encode()) for example in examples for text in example.texts)
    ids = np.concatenate([row.ids for row in rows])
    eos_id = encoder.tokenizer.eos_id
    return LabelledFile(ids=ids, rows=rows, eos_id=eos_id, n_documents=len(rows), n_bytes=n_bytes)


def fingerprint(parts: Mapping[Part, Iterable[Example]], task: LabelledTask, limit: int, opens: bool) -> str:
    """Hash the texts and labels of all rows, and the settings of their encoding, but no file names or line numbers."""
    whole = hashlib.blake2b(f"{type(task).__name__} {limit} {opens}".encode(), digest_size=16)
    for part, examples in parts.items():
        for each in examples:
            whole.update(json.dumps([part, each.texts, each.label]).encode())
    return whole.hexdigest()
