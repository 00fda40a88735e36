# B rows, T tokens
"""Train one model on one probe at one learning rate, and compute its accuracy."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.data import Batch
from zoo.lazy import F, Tensor, torch
from zoo.probes.base import IGNORED, Examples, Probe
from zoo.run.builder import build
from zoo.training.gradient import clip_gradient
from zoo.training.objective import NextToken
from zoo.training.optim import AdamW, set_rates
from zoo.training.routing import RATE, balance_routers, has_selection_bias
from zoo.training.schedule import Cosine

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from zoo.model.decoder import Decoder
    from zoo.probes.readout import Readout
    from zoo.run.layer import Model

HELD_OUT = 1024
"""Number of held-out sequences for measuring accuracy; fewer if they are longer than in training."""

LEAST_HELD_OUT = 128
"""Minimum number of held-out sequences."""

CHECKS, CHECKED = 20, 256
"""How many times a reported training measures its accuracy, and on how many held-out sequences."""

AT_ONCE = 16_384
"""Maximum number of tokens in a forward pass of scoring. A longer sequence is a batch of its own."""

WARMUP, WEIGHT_DECAY, CLIP = 0.1, 0.1, 1.0


@dataclass(frozen=True)
class ProbeScore:
    """The fraction of correct answers (or sequences, if the probe is `exact`), and the mean loss in nats per answer."""

    accuracy: float
    loss: float


@dataclass(frozen=True)
class Learner:
    """A model and, if the probe needs one, the readout that computes the answers."""

    model: Model
    readout: Readout | None = None

    @classmethod
    def of(cls, spec: Decoder, probe: Probe, seed: int) -> Learner:
        """Build the model and the readout, with weights drawn from the seed."""
        return cls(build(spec, device="cpu", seed=seed), probe.make_readout(spec.d_model, seed))

    def parameters(self) -> list[Any]:
        return [*self.model.parameters(), *([] if self.readout is None else self.readout.parameters())]


def train(
    spec: Decoder,
    probe: Probe,
    lr: float,
    seed: int,
    steps: int | None = None,
    check: Callable[[int, Learner], None] | None = None,
) -> Learner | None:
    """Train a model on a probe: AdamW, warm-up over a tenth of the steps, then cosine decay to 0. Returns None if a
    loss is not finite. CHECKS times, evenly spaced, `check` is called with the steps done and the learner.

    Weights, examples and their order depend only on the seed.
    """
    steps = probe.steps if steps is None else steps
    learner = Learner.of(spec, probe, seed)
    model, parameters = learner.model.train(), learner.parameters()
    optimizer, schedule = make_optimizer(learner, lr), Cosine(warmup=WARMUP, min_ratio=0.0)
    balances = has_selection_bias(spec)
    for step in range(steps):
        loss, loads = compute_loss(learner, probe.examples(seed, "train", step, probe.rows))
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
        if check is not None and (step + 1) * CHECKS // steps > step * CHECKS // steps:
            model.eval()
            check(step + 1, learner)
            model.train()
    model.eval()
    return learner


def make_optimizer(learner: Learner, lr: float) -> Optimizer:
    """Make AdamW for the parameters of the model and of the readout."""
    optimizer = AdamW(lr=lr, weight_decay=WEIGHT_DECAY).build(learner.model)
    if learner.readout is not None:
        rates = {"lr": lr, "peak_lr": lr, "weight_decay": WEIGHT_DECAY}
        optimizer.add_param_group({"params": list(learner.readout.parameters()), **rates})
    return optimizer


def compute_loss(learner: Learner, examples: Examples) -> tuple[Tensor, list[Tensor]]:
    """Compute the loss (mean over answers, in nats, plus the model's auxiliary losses) and the experts' loads. The head
    runs on positions with an answer only."""
    if learner.readout is not None:
        out = learner.model(torch.from_numpy(examples.tokens), logits_to_keep=0)
        logits = read_out(learner.readout, out.hidden, examples)
        answers = torch.from_numpy(examples.labels[examples.labels != IGNORED])
        return sum(out.losses.values(), F.cross_entropy(logits, answers)), out.loads
    count = int((examples.labels != IGNORED).sum())
    batch = Batch(torch.from_numpy(examples.tokens), torch.from_numpy(examples.labels))
    found = NextToken().loss(learner.model, batch, weight=1 / count, count=count)
    return found.total, found.loads


def score(
    learner: Learner | None, probe: Probe, seed: int, stream: str, level: int | None = None, most: int = HELD_OUT
) -> ProbeScore:
    """Score a learner on at most `most` held-out examples of a level (None: as in training). A diverged learner (None)
    gets the chance accuracy and a loss of ln V."""
    examples = draw_held_out(probe, seed, stream, level, most)
    if learner is None:
        levels = [each for each in probe.levels if probe.trains(each)] if level is None else [level]
        return ProbeScore(sum(map(probe.chance, levels)) / len(levels), math.log(probe.vocab_size))
    right, nll = [], 0.0
    with torch.inference_mode():
        for part in split(examples, max(1, AT_ONCE // examples.tokens.shape[1])):
            labels = torch.from_numpy(part.labels)
            logits = answer(learner, part)
            nll += float(F.cross_entropy(logits.float(), labels[labels != IGNORED], reduction="sum"))
            hit = np.ones(part.labels.shape, bool)
            hit[part.labels != IGNORED] = (logits.argmax(-1) == labels[labels != IGNORED]).numpy()
            right.append(hit)
    asked, hits = examples.labels != IGNORED, np.concatenate(right)
    accuracy = hits.all(1).mean() if probe.exact else hits[asked].mean()
    return ProbeScore(float(accuracy), nll / int(asked.sum()))


def draw_held_out(probe: Probe, seed: int, stream: str, level: int | None = None, most: int = HELD_OUT) -> Examples:
    """Draw the held-out examples of `score`: fewer if the sequences are longer than in training."""
    length = probe.seq_len if level is None else probe.length(level)
    rows = max(LEAST_HELD_OUT, min(most, most * probe.seq_len // length))
    return probe.examples(seed, stream, 0, rows, level)


@functools.lru_cache(64)
def count_answers(probe: Probe, level: int) -> int:
    """Count the items that are scored at a level: answers, or sequences if the probe is `exact`."""
    labels = draw_held_out(probe, 0, "report", level).labels
    return len(labels) if probe.exact else int((labels != IGNORED).sum())


def answer(learner: Learner, examples: Examples) -> Tensor:
    """Compute the logits [N, V] of all N positions with an answer, sequence by sequence."""
    hidden = learner.model(torch.from_numpy(examples.tokens), logits_to_keep=0).hidden
    if learner.readout is not None:
        return read_out(learner.readout, hidden, examples)
    return learner.model.head_logits(hidden[torch.from_numpy(examples.labels != IGNORED)])


def read_out(readout: Readout, hidden: Tensor, examples: Examples) -> Tensor:
    """Compute the logits [N, V] of all N positions with an answer from `hidden`, the model's outputs [B, T, D]. The
    readout uses only the output at the last token of each sequence."""
    logits = readout(hidden[:, -1], hidden.shape[1])
    return logits[torch.from_numpy(examples.labels != IGNORED)]


def split(examples: Examples, rows: int) -> Iterator[Examples]:
    """Split examples into batches of `rows` sequences."""
    for start in range(0, len(examples.tokens), rows):
        yield Examples(examples.tokens[start : start + rows], examples.labels[start : start + rows])
