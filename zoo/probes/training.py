# B rows, T tokens
"""Train one model on one probe at one learning rate, and score it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.lazy import F, torch
from zoo.probes.base import IGNORED, Examples, Probe

if TYPE_CHECKING:
    from torch import Tensor

HELD_OUT = 1024
"""Examples of training's length that accuracy is measured on."""

LEAST_HELD_OUT = 128
"""Examples of any length that it is measured on."""

AT_ONCE = 16_384
"""Tokens of a pass when scoring."""

WARMUP, WEIGHT_DECAY, CLIP = 0.1, 0.1, 1.0


@dataclass(frozen=True)
class Score:
    """The share of answers that are right (of rows, where a probe counts rows), and the mean loss of an answer."""

    accuracy: float
    loss: float


def train(spec: Any, probe: Probe, lr: float, seed: int, steps: int | None = None) -> Any | None:
    """Train a model on a probe: AdamW, warm-up over a tenth, then cosine to 0. Gives None where the loss is no number.

    Weights, examples and their order follow from the seed alone.
    """
    from zoo.run.builder import build
    from zoo.training.gradient import clip_gradient
    from zoo.training.optim import AdamW, set_rates
    from zoo.training.routing import RATE, balance_routers, has_selection_bias
    from zoo.training.schedule import Cosine

    steps = probe.steps if steps is None else steps
    model = build(spec, device="cpu", seed=seed).train()
    optimizer = AdamW(lr=lr, weight_decay=WEIGHT_DECAY).build(model)
    schedule, parameters = Cosine(warmup=WARMUP, min_ratio=0.0), list(model.parameters())
    balances = has_selection_bias(spec)
    for step in range(steps):
        loss, loads = compute_loss(model, probe.examples(seed, "train", step, probe.rows))
        if not math.isfinite(float(loss.detach())):
            return None
        loss.backward()
        norm = torch.nn.utils.get_total_norm([each.grad for each in parameters if each.grad is not None])
        clip_gradient(parameters, CLIP, norm)
        set_rates(optimizer, schedule.factor(step, steps))
        optimizer.step()
        optimizer.zero_grad()
        if balances:
            balance_routers(model, loads, RATE)
    return model.eval()


def compute_loss(model: Any, examples: Examples) -> tuple[Tensor, list[Tensor]]:
    """Compute the mean loss of the answers, with the model's own losses; and the loads of experts. The head runs on
    rows with an answer alone."""
    from zoo.data import Batch
    from zoo.training.objective import NextToken

    count = int((examples.labels != IGNORED).sum())
    batch = Batch(torch.from_numpy(examples.tokens), torch.from_numpy(examples.labels))
    found = NextToken().loss(model, batch, weight=1 / count, count=count)
    return found.total, found.loads


def score(model: Any | None, probe: Probe, seed: int, stream: str, level: int | None = None) -> Score:
    """Score a model on held-out examples of a level, or of those of training. One that diverged guesses."""
    length = probe.seq_len if level is None else probe.length(level)
    rows = max(LEAST_HELD_OUT, min(HELD_OUT, HELD_OUT * probe.seq_len // length))
    examples = probe.examples(seed, stream, 0, rows, level)
    if model is None:
        levels = [each for each in probe.levels if probe.trains(each)] if level is None else [level]
        return Score(sum(map(probe.chance, levels)) / len(levels), math.log(probe.vocab_size))
    right, nll = [], 0.0
    with torch.inference_mode():
        for part in split(examples, max(1, AT_ONCE // length)):
            labels = torch.from_numpy(part.labels)
            logits = answer(model, part)
            nll += float(F.cross_entropy(logits.float(), labels[labels != IGNORED], reduction="sum"))
            hit = np.ones(part.labels.shape, bool)
            hit[part.labels != IGNORED] = (logits.argmax(-1) == labels[labels != IGNORED]).numpy()
            right.append(hit)
    asked, hits = examples.labels != IGNORED, np.concatenate(right)
    accuracy = hits.all(1).mean() if probe.exact else hits[asked].mean()
    return Score(float(accuracy), nll / int(asked.sum()))


def answer(model: Any, examples: Examples) -> Tensor:
    """Compute the logits of all positions with an answer, row by row: [N, V]."""
    hidden = model(torch.from_numpy(examples.tokens), logits_to_keep=0).hidden
    return model.head_logits(hidden[torch.from_numpy(examples.labels != IGNORED)])


def split(examples: Examples, rows: int) -> Iterator[Examples]:
    """Split examples into parts of so many rows."""
    for start in range(0, len(examples.tokens), rows):
        yield Examples(examples.tokens[start : start + rows], examples.labels[start : start + rows])
