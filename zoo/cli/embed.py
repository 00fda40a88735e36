"""`zoo embed`: turn texts into vectors."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zoo.cli.common import keep_memory_on, print_note
from zoo.cli.files import read_text

if TYPE_CHECKING:
    from torch import Tensor


class Pooling(StrEnum):
    """How a text's token vectors become one vector."""

    mean = "mean"
    cls = "cls"
    last = "last"
    max = "max"
    mean_sqrt_len = "mean_sqrt_len"
    weighted = "weighted"


def run(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, a run, or a Hugging Face folder.")],
    texts: Annotated[list[str] | None, typer.Argument(help="The texts.")] = None,
    lines: Annotated[Path | None, typer.Option(help="A file with one text per line; - reads standard input.")] = None,
    pooling: Annotated[
        Pooling | None, typer.Option(help="How token vectors become one. [default: as the folder says, else mean]")
    ] = None,
    normalize: Annotated[
        bool | None,
        typer.Option(
            "--normalize/--no-normalize", help="Scale every vector to length 1. [default: as the folder says]"
        ),
    ] = None,
    dim: Annotated[
        int | None, typer.Option(min=1, help="Keep the first numbers of each vector (Matryoshka), scaled again.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="The name of the folder's prompt that is put before every text.")
    ] = None,
    similarity: Annotated[
        bool, typer.Option("--similarity", help="Print the cosine similarity of every pair of texts.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Save the vectors to .npy, .safetensors or .jsonl.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts computed together.")] = 32,
    device: Annotated[str, typer.Option(help="auto, cuda or cpu.")] = "auto",
) -> None:
    """Turn each text into a vector: printed as a line of JSON each, or saved with --out.

    Works with any model that reads text: its hidden states are pooled over the tokens that are not padding. A
    sentence-transformers folder says how, and which prompts there are.
    """
    from zoo import report
    from zoo.errors import ConfigError
    from zoo.text import vectors

    if out is not None and out.suffix not in (".npy", ".safetensors", ".jsonl"):
        raise ConfigError(f"out: cannot write {out.suffix or 'a file without suffix'} (.npy, .safetensors or .jsonl)")
    given = [*(texts or []), *_lines(lines)]
    if not given:
        raise ConfigError("texts: there are none (give them as arguments, or --lines FILE)")
    keep_memory_on(device)
    found = vectors.embed(
        checkpoint,
        given,
        pooling=None if pooling is None else pooling.value,
        normalize=normalize,
        dim=dim,
        prompt=prompt,
        batch_size=batch_size,
        device=device,
        note=print_note,
    )
    if similarity:
        rows = [(f"{i}", *(f"{cosine:.3f}" for cosine in row)) for i, row in enumerate(vectors.cosines(found).tolist())]
        head = ("", *(str(number) for number in range(len(given))))
        print(report.align_columns([head, *rows], right=tuple(range(1, len(head)))))
        print("\n".join(f"{number}  {text}" for number, text in enumerate(given)))
    if out is not None:
        _save(out, given, found)
        print(f"written: {out}, {len(given)} vectors of {found.shape[1]}")
    elif not similarity:
        print(_jsonl(given, found), end="")


def _lines(file: Path | None) -> list[str]:
    if file is None:
        return []
    return [line for line in read_text(file, "lines").splitlines() if line.strip()]


def _jsonl(texts: list[str], vectors: Tensor) -> str:
    rows = zip(texts, vectors.tolist(), strict=True)
    return "".join(
        json.dumps({"text": text, "embedding": [round(value, 7) for value in row]}, ensure_ascii=False) + "\n"
        for text, row in rows
    )


def _save(out: Path, texts: list[str], vectors: Tensor) -> None:
    """Write the vectors to a file atomically, in the format of its suffix."""
    from zoo.checkpoint.files import write_tensors
    from zoo.disk import replace_file

    out.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(out) as draft:
        if out.suffix == ".npy":
            import numpy

            with draft.open("wb") as stream:
                numpy.save(stream, vectors.numpy())
        elif out.suffix == ".safetensors":
            write_tensors({"embeddings": vectors}, draft)
        else:
            draft.write_text(_jsonl(texts, vectors), encoding="utf-8")
