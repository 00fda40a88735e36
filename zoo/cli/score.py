"""`zoo score`: predict the labels of texts with a model that was trained on labels."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from zoo.cli.common import keep_memory_on, print_note


def run(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint or a run with a head for a task.")],
    texts: Annotated[list[str] | None, typer.Argument(help="The texts.")] = None,
    file: Annotated[
        Path | None,
        typer.Option(help="Records in JSON Lines (.jsonl), or a text a line; - reads a text a line of standard input."),
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="A record's field with the text, or with the words. [default: as in training]")
    ] = None,
    second: Annotated[
        str | None, typer.Option(help="A record's field with a second text. [default: as in training]")
    ] = None,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Give the probability of every class.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Write the lines to this file.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts computed together.")] = 32,
    device: Annotated[str, typer.Option(help="auto, cuda or cpu.")] = "auto",
) -> None:
    """Predict the label of each text: a class, a number, or a tag for each word.

    Prints a line of JSON for each text: the record as it was given, and what is `predicted`.
    """
    from zoo.errors import ConfigError
    from zoo.text import labels

    fields = read_fields(checkpoint, text, second)
    records = [{fields.text: each} for each in texts or []] + read_records(file, fields)
    if not records:
        raise ConfigError("texts: there are none (give them as arguments, or --file FILE)")
    if texts and fields.second is not None:
        raise ConfigError(f"texts: the model reads pairs (--file with the fields {fields.text} and {fields.second})")
    keep_memory_on(device)
    given = [fields.pick(record) for record in records]
    how: dict[str, Any] = {"every": probabilities, "batch_size": batch_size, "device": device, "note": print_note}
    found = labels.score(checkpoint, given, **how)
    lines = [json.dumps({**a, **b}, ensure_ascii=False) + "\n" for a, b in zip(records, found, strict=True)]
    if out is None:
        print("".join(lines), end="")
        return
    from zoo.disk import write_text

    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, "".join(lines))
    print(f"written: {out}, {len(lines)} lines")


class Fields(NamedTuple):
    """The fields of a record that are read."""

    text: str
    second: str | None

    def pick(self, record: Mapping[str, Any]) -> Any:
        """Give what a record has in them."""
        return record[self.text] if self.second is None else (record[self.text], record[self.second])


def read_fields(checkpoint: Path, text: str | None, second: str | None) -> Fields:
    """Find the fields: those that are named, else those that the run of a checkpoint was trained with."""
    from zoo import runs
    from zoo.report.history import RunRecord

    run = next(
        (each for each in (checkpoint, runs.find(checkpoint).parent.parent) if (each / runs.CONFIG).is_file()), None
    )
    trained = {} if run is None else RunRecord(run).config.get("objective") or {}
    return Fields(text or trained.get("text") or trained.get("tokens") or "text", second or trained.get("second"))


def read_records(file: Path | None, fields: Fields) -> list[dict[str, Any]]:
    """Read the records of a file. Raises ConfigError with all faults."""
    from zoo.data.records import JSONL, PACKED_JSONL, Faults, has_fields, read_json_lines
    from zoo.errors import ConfigError

    if file is None:
        return []
    if not file.name.endswith((*JSONL, *PACKED_JSONL)):
        try:
            whole = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"file: cannot read {file}, found {type(error).__name__} (a UTF-8 file)") from error
        return [{fields.text: line} for line in whole.splitlines() if line.strip()]
    faults, wanted = Faults("file"), [each for each in fields if each is not None]
    every = [(f"{file}, line {number:,}", record) for number, record in read_json_lines(file, faults)]
    for where, record in every:
        has_fields(record, wanted, "--text NAME", where, faults)
    faults.settle()
    return [record for _, record in every]
