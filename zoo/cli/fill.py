"""`zoo fill`: predict the masked tokens of texts with a masked language model."""

from __future__ import annotations

import json

from zoo import runs
from zoo.cli.common import Checkpoint, Device, keep_memory_on, print_note
from zoo.cli.options import argument, flag, option


def run(
    texts: list[str] = argument("Texts with a mask token: Paris is the [MASK] of France.", default=...),
    checkpoint: Checkpoint = None,
    top_k: int = option("Number of most likely tokens to show per mask.", default=5),
    as_json: bool = flag("Print JSON: for each text a list with one entry per mask.", "--json"),
    device: Device = "auto",
) -> None:
    """Predict masked tokens with a masked language model (BERT, RoBERTa, …): the most likely ones, and probabilities.

    Each mask is predicted independently, while the others stay masked.
    """
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
