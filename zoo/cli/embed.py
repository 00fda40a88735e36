"""`zoo embed`: embed texts as vectors."""

from __future__ import annotations

import json
from pathlib import Path

from zoo import report
from zoo.cli.common import Device, Pooling, keep_memory_on, print_note
from zoo.cli.files import read_text
from zoo.cli.options import argument, flag, option
from zoo.disk import replace_file
from zoo.errors import ConfigError
from zoo.lazy import Tensor


def run(
    checkpoint: Path = argument("A checkpoint, a run, or a Hugging Face folder.", default=...),
    texts: list[str] | None = argument("The texts."),
    lines: Path | None = option("A file with one text per line; - reads standard input."),
    pooling: Pooling | None = option("Pooling of token vectors. [default: the folder's, else mean]"),
    normalize: bool | None = option("Scale every vector to length 1. [default: the folder's setting]"),
    dim: int | None = option("Keep this many leading dimensions (Matryoshka), and normalize again.", min=1),
    prompt: str | None = option(
        "Name of the folder's prompt to put before every text. [default: the folder's default, or none]"
    ),
    similarity: bool = flag("Print the cosine similarity of every pair of texts."),
    out: Path | None = option("Save the vectors to .npy, .safetensors or .jsonl."),
    batch_size: int = option("Texts per batch.", default=32, min=1),
    device: Device = "auto",
) -> None:
    """Embed each text as a vector: printed as one line of JSON per text, or saved with --out.

    Works with any text model: hidden states are pooled over the non-padding tokens. A sentence-transformers folder
    sets the pooling, and may define named prompts.
    """
    from zoo.text import vectors

    if out is not None and out.suffix not in (".npy", ".safetensors", ".jsonl"):
        raise ConfigError(f"out: cannot write {out.suffix or 'a file without suffix'} (.npy, .safetensors or .jsonl)")
    read = [] if lines is None else read_text(lines, "lines").splitlines()
    given = [*(texts or []), *(line for line in read if line.strip())]
    if not given:
        raise ConfigError("texts: there are none (give them as arguments, or --lines FILE)")
    keep_memory_on(device)
    found = vectors.embed(
        checkpoint,
        given,
        pooling=pooling,
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


def _jsonl(texts: list[str], vectors: Tensor) -> str:
    rows = zip(texts, vectors.tolist(), strict=True)
    return "".join(
        json.dumps({"text": text, "embedding": [round(value, 7) for value in row]}, ensure_ascii=False) + "\n"
        for text, row in rows
    )


def _save(out: Path, texts: list[str], vectors: Tensor) -> None:
    """Write the vectors to a file atomically, in the format of its suffix."""
    from zoo.checkpoint.tensor_files import write_tensors

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
