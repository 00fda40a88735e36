"""Writes docs/meshes.md: `python tests/mesh_page.py`. Each model trains for 20 steps in one process and, on the same
microbatches, in two and in four; that takes some 30 minutes on two cores. `python tests/mesh_page.py 4` measures those
of four processes alone, and keeps the other rows of the page."""

from __future__ import annotations

import datetime
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from test_parallel import BASE, MESHES, MODELS, SENT, WAYS, WORDS, lines_of, predict_sent, settle, spread, train_alike

from zoo.run.linear.base import describe_processor

PAGE = Path(__file__).parents[1] / "docs" / "meshes.md"
HEAD = """# Meshes: do they train what one process trains?

Written by `python tests/mesh_page.py` on {date} ({machine}; gloo on one machine, torch {torch}). Tiny models, float32,
AdamW at 3e-4, 20 steps of 8 rows of 32 tokens, evaluated every third step; each mesh on the microbatches that one
process takes. The largest differences to that process: of a loss, of the gradient's norm (relative), and of a weight
tensor after the run, relative to its norm. AdamW takes a whole step for a gradient that rounding gave its sign.

`tests/test_parallel.py` holds the losses to 1e-5. That the ranks of tp compute the whole model's loss, gradients and
logits is tested for every architecture of the grammar and of the families (`tests/test_tensor_parallel.py`).

| model | processes | mesh | loss | gradient norm | weights |
| --- | --- | --- | --- | --- | --- |
"""
SENDS = """
## Bytes that a process sends in a step

Counted at torch's process groups in the second step of a run, beside the `traffic` that `zoo stats` predicts for the
same set-up. The few bytes of counts and norms that all agree on are left out.

| model | mesh | sent | predicted |
| --- | --- | --- | --- |
"""


def compare(one: str, other: str) -> tuple[float, float, float]:
    """The largest differences of two runs: of losses, of gradient norms (relative), of weights (relative)."""
    loss = norm = weights = 0.0
    for a, b in zip(lines_of(one), lines_of(other), strict=True):
        loss = max([loss, *(abs(a[name] - b[name]) for name in ("loss", "val_loss") if name in a)])
        norm = max(norm, abs(b["grad_norm"] / a["grad_norm"] - 1) if "grad_norm" in a else 0.0)
    tensors = [load_file(max(Path(run).glob("checkpoints/step-*")) / "model.safetensors") for run in (one, other)]
    for name, each in tensors[0].items():
        weights = max(weights, float((each - tensors[1][name]).norm() / each.norm().clamp(min=1)))
    return loss, norm, weights


def measure_meshes(numbers: list[int]) -> list[str]:
    """Train each model on each of its meshes of so many processes; a row each, behind those that the page has of other
    numbers."""
    there = PAGE.read_text(encoding="utf-8").splitlines() if PAGE.exists() else []
    rows = [line for line in there if any(f"| {each} |" in line for each in {2, 4} - set(numbers))]
    for processes, cases in ((2, WAYS), (4, MESHES)):
        for name, ways in cases.items() if processes in numbers else ():
            with tempfile.TemporaryDirectory() as folder:
                begin(Path(folder))
                for way, run in zip(ways, train_alike(name, processes, ways, 20), strict=True):
                    found = " | ".join(f"{each:.1e}" for each in compare("one", run))
                    rows.append(f"| {name.replace('_', ' ')} | {processes} | {spell(way, processes)} | {found} |")
                    print(rows[-1], flush=True)
    return rows


def measure_sent() -> list[str]:
    """Count what a process sends, for each case that the tests have; a row each."""
    rows = []
    for name, way, ranks in SENT:
        with tempfile.TemporaryDirectory() as folder:
            begin(Path(folder))
            model, own = MODELS[name]
            how = ["steps=2", "batch_size=8", f"accumulate={2 if way == 'pp' else 1}", "sample=null", *BASE[:-1], *own]
            held = spread(2, [(model, [*how, f"parallel={way}", "hydra.run.dir=run"])])
            sent, predicted = sum(held[0]["sent"].values()), sum(predict_sent(model, own, ranks).values())
            rows.append(f"| {name} | {spell(way, 2)} | {sent:,.0f} | {predicted:,.0f} |")
            print(rows[-1], flush=True)
    return rows


def spell(way: str, processes: int) -> str:
    """A mesh by its dimensions above 1, and by how the keys of cp meet where they travel."""
    mesh = vars(settle(way, processes))
    return " ".join([f"{name}={size}" for name, size in mesh.items() if size > 1] + ["ring"] * ("ring" in way))


def describe_machine() -> str:
    """The processor's instruction set, in a few words."""
    isa = describe_processor().isa
    return f"{os.cpu_count()} cores, {isa}"


def begin(folder: Path) -> None:
    """Go to a folder with a text to train on."""
    os.chdir(folder)
    os.environ["OMP_NUM_THREADS"] = "1"
    drawn = random.Random(0)
    lines = (" ".join(drawn.choice(WORDS) for _ in range(9)) for _ in range(1500))
    Path("text.txt").write_text(". ".join(lines))


def main(numbers: list[int]) -> None:
    facts: dict[str, Any] = {"date": f"{datetime.date.today():%d %B %Y}", "torch": torch.__version__.split("+")[0]}
    text = HEAD.format(**facts, machine=describe_machine()) + "\n".join(measure_meshes(numbers)) + "\n"
    text += SENDS + "\n".join(measure_sent()) + "\n"
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main([int(each) for each in sys.argv[1:]] or [2, 4])
