"""Writes docs/meshes.md: `python tests/pages mesh`. Each model trains for 20 steps in one process and, on the same
microbatches, in two and in four; that takes some 40 minutes on two cores.

    python tests/pages mesh 4                     the meshes of four processes alone
    python tests/pages mesh --only dense          the rows of a model; also --only dense:cp, of one way
    python tests/pages mesh sent                  the bytes that are sent, alone
    python tests/pages mesh memory                the memory that is taken, alone

Rows are written as they come, in place of those that the page has; the others stay. A mesh that fails costs its row
alone.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from support.parallel_runs import (
    MESHES,
    WAYS,
    compare_gradients,
    lines_of,
    settle,
    train_one,
    train_spread,
    write_texts,
)
from support.step_memory import CASES as MEMORY
from support.step_memory import measure_memory
from support.step_traffic import SENT, count_sent
from zoo.run.linear.base import describe_processor

PAGE = Path(__file__).parents[2] / "docs" / "meshes.md"
HEAD = """# Meshes: do they train what one process trains?

Written by `python tests/pages mesh`, last on {date} ({machine}; gloo on one machine, torch {torch}). Tiny models,
float32, AdamW at 3e-4, 20 steps of 8 rows of 32 tokens, evaluated every third step; each mesh on the microbatches that
one process takes. The largest differences to that process: of a loss; of the gradient of a tensor in the first step,
relative to its norm; of the norm of a step's gradient, relative; and of a weight tensor after the run, relative to its
norm. AdamW takes a whole step for a gradient that rounding gave its sign: after 20 steps of SGD the weights of the
encoder decoder on tp=2 differed by 4.2e-08 (27 November 2026).

`tests/training/test_parallel.py` holds losses and gradients to 1e-5. That the ranks of tp compute the whole model's
loss, gradients and logits is tested for every architecture of the grammar and of the families
(`tests/distributed/test_tensor_parallel.py`).

| model | processes | mesh | loss | gradients | gradient norm | weights |
| --- | --- | --- | --- | --- | --- | --- |
"""
SENDS = """
## Bytes that a process sends in a step

Counted at torch's process groups in the second step of a run, beside the `traffic` that `zoo stats` predicts for the
same set-up. The few bytes of counts and norms that all agree on are left out. Under `bf16` the ranks of tp, ep and cp
and the stages of pp exchange activations and their gradients in bfloat16, also where autocast keeps the residual stream
in float32.

| model | mesh | precision | sent | predicted |
| --- | --- | --- | --- | --- |
"""
TAKES = """
## Memory predicted ÷ measured

Measured: the peak bytes of all tensors in the second step of a run, of the process that takes most
(`tests/support/memory_tracker.py`); no allocator and no GPU's kernel is in it. Predicted: `train_peak` of `zoo stats`
for the same set-up and a CPU's kernels. A Llama of four layers of width 128 and a vocabulary of 1,000, 8 rows of 256
tokens, AdamW; a pipeline has four microbatches. A slow test holds the ratio between 0.97 and 1.04, and the weights, the
gradients, the optimizer states and the gathered weights each to the byte (`tests/costs/test_parallel_costs.py`).

Each stage of a pipeline is priced, and the fullest one counts. Between the halves of a backward pass, `zero_bubble`
keeps all saved tensors of a micro-batch, the gradients that weights need, and the head's own: its last stage takes 46 %
more than the first of 1f1b. `ddp` runs as FSDP over one shard: a pass computes with copies of the weights, one layer's
at a time, and a pipeline reduces no gradient before the step's end. With `cp` each of a rank's two runs of queries
saves the keys that it reads, repeated for each query head on a CPU, and its output; a ring saves a rank's own keys.

| processes | mesh | precision | recompute | measured | predicted | predicted ÷ measured |
| --- | --- | --- | --- | --- | --- | --- |
"""
CASES = [
    (name, count, way) for count, cases in ((2, WAYS), (4, MESHES)) for name, ways in cases.items() for way in ways
]


class Page:
    """The rows of the page by what they are of; written after each."""

    def __init__(self) -> None:
        page = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
        lines, kept = page.splitlines(), re.search(r"\n## As packaged\n.*?(?=\n## Bytes |\Z)", page, re.DOTALL)
        self.by_hand = kept.group() if kept else ""
        known = {self.begin_row(*case) for case in CASES} | {self.begin_sent(*case) for case in SENT}
        known |= {self.begin_taken(*case) for case in MEMORY}
        self.rows = {begin: line for line in lines for begin in known if line.startswith(begin)}
        widths = [each.strip().splitlines()[-1].count("|") for each in (HEAD, SENDS, TAKES)]
        self.rows = {key: row for key, row in self.rows.items() if row.count("|") in widths}

    @staticmethod
    def begin_row(name: str, processes: int, way: str) -> str:
        return f"| {name.replace('_', ' ')} | {processes} | {spell(way, processes)} |"

    @staticmethod
    def begin_sent(name: str, way: str, processes: int, precision: str) -> str:
        return f"| {name.replace('_', ' ')} | {spell(way, processes)} | {precision} |"

    @staticmethod
    def begin_taken(way: str, processes: int, precision: str, recompute: str) -> str:
        return f"| {processes} | {spell(way, processes) or 'none'} | {precision} | {recompute} |"

    def write(self, begin: str, row: str) -> None:
        self.rows[begin] = row
        print(row, flush=True)
        facts = {"date": f"{datetime.date.today():%d %B %Y}", "torch": torch.__version__.split("+")[0]}
        text = HEAD.format(**facts, machine=f"{os.cpu_count()} cores, {describe_processor().isa}")
        tables = [[self.begin_row(*case) for case in CASES], [self.begin_sent(*case) for case in SENT]]
        tables.append([self.begin_taken(*case) for case in MEMORY])
        first, *others = ("".join(f"{self.rows[key]}\n" for key in keys if key in self.rows) for keys in tables)
        more = "".join(head + rows for head, rows in zip((SENDS, TAKES), others, strict=True) if rows)
        PAGE.write_text(text + first + self.by_hand + more, encoding="utf-8")


def compare(one: str, other: str) -> tuple[float, float, float, float]:
    """The largest differences of two runs: of losses, of gradients, of their norms (relative), of weights."""
    loss = norm = weights = 0.0
    for a, b in zip(lines_of(one), lines_of(other), strict=True):
        loss = max([loss, *(abs(a[name] - b[name]) for name in ("loss", "val_loss") if name in a)])
        norm = max(norm, abs(b["grad_norm"] / a["grad_norm"] - 1) if "grad_norm" in a else 0.0)
    tensors = [load_file(max(Path(run).glob("checkpoints/step-*")) / "model.safetensors") for run in (one, other)]
    for name, each in tensors[0].items():
        weights = max(weights, float((each - tensors[1][name]).norm() / each.norm().clamp(min=1)))
    return loss, compare_gradients(one, other), norm, weights


def measure_model(page: Page, name: str, processes: int, ways: list[str]) -> list[str]:
    """Train a model on some meshes, and write a row for each. Returns those that failed."""
    with begun():
        train_one(name, processes, 20)
        try:
            done = list(zip(ways, train_spread(name, processes, ways, 20), strict=True))
        except AssertionError as error:
            if len(ways) == 1:
                print(f"FAILED {name} {processes} {ways[0]}: {error}", flush=True)
                return [f"{name}:{ways[0]}"]
            done = []
        for way, run in done:
            begin = page.begin_row(name, processes, way)
            page.write(begin, f"{begin} {' | '.join(f'{each:.1e}' for each in compare('one', run))} |")
    return [] if done else [lost for way in ways for lost in measure_model(page, name, processes, [way])]


def measure_sent(page: Page, *case: Any) -> None:
    """Count what a process sends, and write a row."""
    with begun():
        sent, predicted = count_sent(*case)
        begin = page.begin_sent(*case)
        page.write(begin, f"{begin} {sent:,.0f} | {predicted:,.0f} |")


def measure_taken(page: Page, processes: int) -> None:
    """Measure what a process takes on each mesh of so many processes, and write the rows."""
    cases = [case for case in MEMORY if case[1] == processes]
    with begun():
        found = measure_memory(processes, [(way, *how) for way, _, *how in cases])
    for case, (measured, predicted) in zip(cases, found, strict=True):
        begin = page.begin_taken(*case)
        page.write(begin, f"{begin} {measured:,} | {predicted:,} | {predicted / measured:.3f} |")


def spell(way: str, processes: int) -> str:
    """A mesh by its dimensions above 1, by how the keys of cp meet where they travel, and by how stages compute."""
    mesh = settle(way, processes).as_dict()
    return " ".join(each if name == "cp_comm" else f"{name}={each}" for name, each in mesh.items() if each != 1)


@contextmanager
def begun() -> Iterator[None]:
    """Go to a new folder with texts to train on."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["OMP_NUM_THREADS"] = "1"
        write_texts(Path())
        try:
            yield
        finally:
            os.chdir(before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", choices=["2", "4", "sent", "memory", []], help="[default: all]")
    parser.add_argument("--only", help="MODEL or MODEL:WAY, as tests/training/test_parallel.py names them")
    asked = parser.parse_args()
    tables = asked.tables or ["2", "4", "sent", "memory"]
    model, _, only = (asked.only or "").partition(":")
    page, lost = Page(), []
    for processes, cases in ((2, WAYS), (4, MESHES)):
        for name, all_ways in cases.items() if str(processes) in tables else ():
            ways = [way for way in all_ways if only in ("", way)]
            if ways and model in ("", name):
                lost += measure_model(page, name, processes, ways)
    for name, way, *rest in SENT if "sent" in tables else ():
        if model in ("", name) and only in ("", way):
            measure_sent(page, name, way, *rest)
    for processes in sorted({case[1] for case in MEMORY}) if "memory" in tables else ():
        measure_taken(page, processes)
    sys.exit(f"failed: {', '.join(lost)}" if lost else 0)


if __name__ == "__main__":
    main()
