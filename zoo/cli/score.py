"""`zoo score`: predict the labels of texts with a classifier, a reranker or a reward model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from zoo import runs
from zoo.cli.common import Device, keep_memory_on, print_note
from zoo.cli.files import read_text
from zoo.cli.options import argument, flag, option
from zoo.disk import write_text
from zoo.errors import ConfigError


def run(
    checkpoint: Path = argument("A checkpoint, run or Hugging Face folder with a task head.", default=...),
    texts: list[str] | None = argument("The texts."),
    file: Path | None = option("Records in JSON Lines (.jsonl), or one text per line; - reads standard input."),
    text: str | None = option("Field with the text, the words or the messages. [default: as in training]"),
    second: str | None = option("Field with the second text of a pair. [default: as in training]"),
    probabilities: bool = flag("Print the probability of every class."),
    activation: str | None = option("Activation of the logits: softmax, sigmoid or none. [default: the folder's]"),
    template: str | None = option(
        "Chat template for a record's messages: plain, chatml, or a file. [default: the folder's]"
    ),
    out: Path | None = option("Write the lines to this file. [default: standard output]"),
    batch_size: int = option("Texts per batch.", default=32, min=1),
    device: Device = "auto",
) -> None:
    """Predict the label of each text: a class, a number, or a tag for each word.

    Prints one line of JSON per text: the record, with the prediction as `predicted`. A record has a text, a
    pair (text and text_pair, or query and document), or a conversation (messages, or prompt and response).
    """
    from zoo.text import labels

    records = read_records(file)
    fields = find_fields(checkpoint, text, second, next((record for _, record in records), {}))
    if texts and fields.second is not None:
        raise ConfigError(f"texts: the model reads pairs (--file with the fields {fields.text} and {fields.second})")
    argued = [(f"texts: number {number}", {fields.text: each}) for number, each in enumerate(texts or [], 1)]
    records = [
        (place, {fields.text if name == LINE else name: each for name, each in record.items()})
        for place, record in [*argued, *records]
    ]
    if not records:
        raise ConfigError("texts: there are none (give them as arguments, or --file FILE)")
    given = pick_texts(records, fields)
    keep_memory_on(device)
    how: dict[str, Any] = {"batch_size": batch_size, "device": device, "note": print_note, "template": template}
    places = [place for place, _ in records]
    found = labels.score(checkpoint, given, every=probabilities, activation=activation, places=places, **how)  # type: ignore[arg-type]
    lines = [json.dumps({**a, **b}, ensure_ascii=False) + "\n" for (_, a), b in zip(records, found, strict=True)]
    if out is None:
        print("".join(lines), end="")
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, "".join(lines))
    print(f"written: {out}, {len(lines)} lines")


LINE = "\n"
"""A provisional field name for the lines of a plain file, until the field that the model reads is known."""

PAIRS = (("query", "document"), ("text", "text_pair"), ("prompt", "response"))
"""Usual field names of two texts: of rerankers, classifiers and reward models."""


class Fields(NamedTuple):
    """The fields to read from a record. With `chat`, `text` is the user's message and `second` the model's answer."""

    text: str
    second: str | None = None
    chat: bool = False

    def pick(self, record: Mapping[str, Any]) -> Any:
        """Return a record's text, pair of texts, or conversation."""
        if self.second is None:
            return record[self.text]
        if self.chat:
            roles = (("user", self.text), ("assistant", self.second))
            return [{"role": role, "content": record[name]} for role, name in roles]
        return (record[self.text], record[self.second])


def find_fields(checkpoint: Path, text: str | None, second: str | None, first: Mapping[str, Any]) -> Fields:
    """Find the fields of a record to read: the named fields, else those of the training run, else the usual fields that
    the first record has (a pair of PAIRS, or messages), else `text`."""
    from zoo.report.history import RunRecord

    run = next(
        (each for each in (checkpoint, runs.find(checkpoint).parent.parent) if (each / runs.CONFIG).is_file()), None
    )
    trained = {} if run is None else RunRecord(run).config.get("objective") or {}
    own = trained.get("text") or trained.get("tokens")  # objectives of preferences name no fields
    known = Fields(text or own or "text", second or trained.get("second"))
    if text is not None or second is not None or own is not None:
        return known
    pair = next((pair for pair in PAIRS if all(name in first for name in pair)), None)
    if pair is not None:
        return Fields(*pair, chat=pair == PAIRS[-1])
    return Fields("messages") if "messages" in first else known


def pick_texts(records: Sequence[tuple[str, Mapping[str, Any]]], fields: Fields) -> list[Any]:
    """Pick the texts of each record. Raises ConfigError for records that lack a field, with the place of each."""
    from zoo.data.records import Faults, has_fields

    faults, wanted = Faults("file"), [each for each in fields[:2] if each is not None]
    found = [has_fields(record, wanted, "--text NAME", place, faults) for place, record in records]
    faults.settle()
    return [fields.pick(record) for (_, record), whole in zip(records, found, strict=True) if whole]


def read_records(file: Path | None) -> list[tuple[str, dict[str, Any]]]:
    """Read the records of a file, each with its place (`FILE, line 3`). Raises ConfigError with all faults."""
    from zoo.data.records import JSONL, PACKED_JSONL, Faults, read_json_lines

    if file is None:
        return []
    if not file.name.endswith((*JSONL, *PACKED_JSONL)):
        lines = enumerate(read_text(file, "file").splitlines(), 1)
        return [(f"{file}, line {number:,}", {LINE: line}) for number, line in lines if line.strip()]
    faults = Faults("file")
    every = [(f"{file}, line {number:,}", record) for number, record in read_json_lines(file, faults)]
    faults.settle()
    return every
