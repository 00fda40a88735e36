"""`zoo fill`: what a masked model expects in place of the masks of a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from zoo.cli.common import keep_memory_on, print_note


def run(
    texts: Annotated[list[str], typer.Argument(help="Texts with a mask token: Paris is the [MASK] of France.")],
    checkpoint: Annotated[Path | None, typer.Option(help="A checkpoint or run folder. [default: the last run]")] = None,
    top_k: Annotated[int, typer.Option(help="Tokens for each mask.")] = 5,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print data: a list for each text, in it one a mask.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cuda or cpu.")] = "auto",
) -> None:
    """Fill the masks of texts with a masked model (BERT, RoBERTa, …): the likeliest tokens and their probabilities.

    Each mask is filled for itself, while the others stay masked.
    """
    from zoo import runs
    from zoo.text import fill

    keep_memory_on(device)
    folder = runs.last_run() if checkpoint is None else checkpoint
    found = fill.fill(folder, texts, top_k=top_k, device=device, note=print_note)
    if as_json:
        print(json.dumps(found, ensure_ascii=False, indent=1))
        return
    for text, masks in zip(texts, found, strict=True):
        print(text)
        for number, guesses in enumerate(masks, 1):
            if len(masks) > 1:
                print(f"  mask {number}")
            for guess in guesses:
                print(f"  {guess['probability']:6.1%}  {guess['token'].strip() or guess['token']!r}")
