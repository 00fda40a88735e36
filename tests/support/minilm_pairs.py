"""Fine-tune the packaged MiniLM to find, for the first line of a docstring of Python's standard library, the rest of
it. `python tests/support/minilm_pairs.py` prints the figures of docs/training.md; test_tuning.py holds them."""

from __future__ import annotations

import ast
import hashlib
import json
import platform
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import zoo
from support.minilm_tuning import find_minilm

SETTINGS = [
    *("objective=contrastive", "data=jsonl", "batch_size=32", "accumulate=2", "seq_len=64", "steps=30"),
    *("optim.lr=5e-5", "eval_every=null", "eval_batches=null", "save_every=null", "device=cpu"),
]


def read_docstrings(file: Path) -> Iterator[tuple[str, str]]:
    """The first line and the rest of each docstring of a file that has both, without line breaks."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and (text := ast.get_docstring(node)):
            first, rest = (" ".join(each.split()) for each in text.partition("\n\n")[::2])
            if 20 < len(first) < 160 and len(rest) > 60:
                yield first, rest[:400]


def write_pairs(folder: Path) -> tuple[int, int]:
    """Write train.jsonl and held.jsonl, an eighth of the files; returns how many pairs they have. First lines that are
    repeated count once."""
    root, seen = Path(sysconfig.get_path("stdlib")), set()
    parts: tuple[list[str], list[str]] = [], []
    for file in sorted(root.glob("*.py")):
        held = hashlib.blake2b(file.name.encode()).digest()[0] < 32
        for first, rest in read_docstrings(file):
            if first not in seen:
                seen.add(first)
                parts[held].append(json.dumps({"anchor": first, "positive": rest}) + "\n")
    for lines, name in zip(parts, ("train", "held"), strict=True):
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return len(parts[0]), len(parts[1])


def measure_before(folder: Path) -> dict[str, float]:
    """Accuracy and MRR of the encoder as it is."""
    overrides = ["objective=contrastive", "data=jsonl", f"data.path={folder / 'held.jsonl'}"]
    return zoo.evaluate(find_minilm(), overrides=overrides, context=64)["results"][0]["measures"]


def train(folder: Path, seed: int) -> dict[str, Any]:
    """Fine-tune the encoder; returns the run's result."""
    data = [f"data.path={folder / 'train.jsonl'}", f"data.validation={folder / 'held.jsonl'}"]
    run = [f"weights={find_minilm()}", f"seed={seed}", f"hydra.run.dir={folder / f'run-{seed}'}"]
    return dict(zoo.train(None, [*SETTINGS, *data, *run]))


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        sizes = write_pairs(folder)
        print(f"Python {platform.python_version()}, {torch.get_num_threads()} threads: {sizes} pairs")
        before = measure_before(folder)
        print(f"as it is: accuracy {before['accuracy']:.3f}, MRR {before['mrr']:.3f}")
        for seed in range(3):
            found = train(folder, seed)
            figures = f"accuracy {found['val_accuracy']:.3f}, MRR {found['val_mrr']:.3f}, {found['seconds']:.0f} s"
            print(f"seed {seed}: {figures}", flush=True)


if __name__ == "__main__":
    main()
