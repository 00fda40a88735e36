"""Writes docs/training.md: every packaged tiny model on every objective that it takes, loss before and after some steps
on the Python standard library. `python tests/pages training` runs it; test_training_page.py trains each pair."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import zoo
from support.packaged_specs import load
from zoo.costs import price
from zoo.paths import conf_dir
from zoo.training.objective import Objective

PAGE = Path(__file__).parents[2] / "docs" / "training.md"
STEPS = 30
SETTINGS = [
    *(f"steps={STEPS}", "batch_size=4", "seq_len=128", "data.max_bytes=2000000", "eval_batches=4", "eval_every=null"),
    *("save_every=null", "sample=null", "optim.lr=2e-3", "schedule=constant", "schedule.warmup=5"),
]

HEAD = """\
# Which objective trains which model on which data

Written by `python tests/pages training`; a slow test trains each pair.

Every packaged tiny model on every objective that it takes, {steps} steps of 4 rows of 128 tokens of the Python standard
library: the loss of the first step and the mean of the last five, in nats per target, and the validation loss after
them. `prefix_lm` is trained with `model.prefix_lm=true`, `distil` from the same model after {steps} steps on its own
objective. Decoders have 128 more tokens in their vocabulary for `span_corruption`, `denoising` and `ul2`: sentinels,
masks and modes. `seq2seq` learns from pairs, `chat` from conversations, `dpo`, `ipo`, `orpo`, `kto` and `reward` from
preferences, `contrastive` from texts that belong together, and `classify`, `tag` and `regress` from labels (below),
which this text has none of. Losses of different objectives are not comparable.
{date}.

| model | objective | first | last | validation |
| --- | --- | --- | --- | --- |
"""


TAIL = """
## Labels

The packaged all-MiniLM-L6-v2 (22.6 M parameters, mean pooling) learns which of ten packages of Python's standard
library a function is from, given the first 150 characters of its code with the packages' names taken out. 3,415
functions train and 1,120 validate, of other files. The head, the steps (300 of 16 rows of at most 48 tokens), the rates
(1e-4, of the head 1e-2) and the seeds are the same; frozen is `freeze=['*']`. `python tests/support/minilm_tuning.py`
prints the figures, and a slow test holds that fine-tuning is better.

| encoder | accuracy, seeds 0, 1, 2 | macro F1 |
| --- | --- | --- |
| nearest centroid of the encoder's own vectors | 0.561 | |
| frozen, with a trained head | 0.599, 0.604, 0.591 | 0.568, 0.570, 0.554 |
| fine-tuned with its head | 0.667, 0.659, 0.645 | 0.644, 0.627, 0.618 |

26 November 2026; Python 3.11, torch 2.13, float32, one thread of a busy 2-core Intel Xeon VM (AMX): one to two minutes
frozen, three to eight fine-tuned.

## Pairs

The same model learns to find, for the first line of a docstring of Python's standard library, the rest of it among
those of other files: 1,135 pairs train and 108 validate. `objective=contrastive`, 30 steps of 32 pairs in two
microbatches, rows of at most 64 tokens, rate 5e-5. `python tests/support/minilm_pairs.py` prints the figures, and a
slow test holds that the MRR rises.

| encoder | accuracy, seeds 0, 1, 2 | MRR |
| --- | --- | --- |
| as it is | 0.343 | 0.491 |
| fine-tuned | 0.407, 0.380, 0.426 | 0.543, 0.530, 0.549 |

Of a run like these, `zoo convert` wrote a folder in which sentence-transformers 6.2.0, in a fresh process, gave the
vectors of `zoo embed` (100 texts; largest difference 1.4e-7). A step of 64 pairs took 2.0 GB in one microbatch and
0.9 GB in eight, with the same loss, at two thirds of the speed.

30 November 2026; Python 3.11, torch 2.13, float32, one thread of the same machine: six minutes.
"""
"""Figures that tests/support/minilm_tuning.py and minilm_pairs.py printed."""


class Pair(NamedTuple):
    """A model, and an objective that it takes."""

    model: str
    objective: str

    @property
    def overrides(self) -> list[str]:
        prefix = ["model.prefix_lm=true"] if self.objective == "prefix_lm" else []
        restores = self.objective in ("span_corruption", "denoising", "ul2")
        room = ["model.vocab_size=4224"] if restores and load(self.model, []).kind == "decoder" else []
        return [f"objective={self.objective}", *prefix, *room]


def tiny_models() -> list[str]:
    """The packaged models that are tiny by their size, not by a name alone."""
    names = sorted(file.stem for file in (conf_dir() / "model").glob("*-tiny.yaml"))
    return [name for name in names if price(load(name), parts=["params"])["params"]["total"] < 10_000_000]


OTHERS = ("pairs", "conversations", "preferences", "judgements", "labelled records", "records of texts")
"""What objectives read that is no plain text. Distillation reads what its base reads."""


def list_pairs() -> Iterator[Pair]:
    """List the pairs that are legal, as the objectives themselves say it."""
    for model in tiny_models():
        for kind in sorted(Objective.kinds):
            if kind == "auto" or Objective.kinds[kind].reads in OTHERS:  # this is plain text
                continue
            prefix = ["prefix_lm=true"] if kind == "prefix_lm" and load(model, []).kind == "decoder" else []
            if kind == "distil" or takes(load(model, prefix), kind):
                yield Pair(model, kind)


def takes(spec: Any, kind: str) -> bool:
    """Whether an objective takes a model."""
    fields = {"denoisers": [{"mode": "S", "kind": "suffix", "rate": 0.25}]} if kind == "ul2" else {}
    return Objective.parse({"kind": kind, **fields}).refuses(spec) is None


def train(pair: Pair, folder: Path) -> tuple[float, float, float]:
    """Train a pair; returns its first loss, its last and the validation loss."""
    overrides = pair.overrides
    if pair.objective == "distil":
        zoo.train(pair.model, [*SETTINGS, f"hydra.run.dir={folder / 'teacher'}"])
        overrides = [*overrides, f"objective.teacher={folder / 'teacher'}"]
    run = folder / pair.objective
    result = zoo.train(pair.model, [*SETTINGS, *overrides, f"hydra.run.dir={run}"])
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    return losses[0], sum(losses[-5:]) / 5, result["val_loss"]


def main() -> None:
    rows = []
    for pair in list_pairs():
        with tempfile.TemporaryDirectory() as place:
            first, last, validation = train(pair, Path(place))
        rows.append(f"| `{pair.model}` | `{pair.objective}` | {first:.3f} | {last:.3f} | {validation:.3f} |\n")
    PAGE.write_text(HEAD.format(steps=STEPS, date=f"{date.today():%d %B %Y}") + "".join(rows) + TAIL, encoding="utf-8")
    print(f"written: {PAGE.name}, {len(rows)} pairs", file=sys.stderr)


if __name__ == "__main__":
    main()
