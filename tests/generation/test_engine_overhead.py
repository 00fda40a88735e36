"""What a step costs beside the model: scheduler, laying out of the cache and sampler, timed with a model that does none
of the work. The figure is printed (`pytest -s -m slow tests/generation/test_engine_overhead.py`); no time is
asserted."""

import math
import random
import statistics
import time
from itertools import pairwise

import pytest
import torch
from torch import nn

from support.packaged_specs import load
from zoo.generation.engine import Engine
from zoo.generation.request import Request
from zoo.model.step import Output
from zoo.sampling.draws import DrawState
from zoo.sampling.options import Sampling
from zoo.sampling.sampler import Sampler, join_rows

ROWS, NEW = 32, 60
SHAPE = ["d_model=64", "n_layers=12", "n_heads=12", "n_kv_heads=4", "head_dim=8", "d_ff=64", "vocab_size=32000"]


class NullModel(nn.Module):
    """Lays out the cache as a real model does, writes nothing there, and gives the same logits for every token."""

    def __init__(self, spec):
        super().__init__()
        self.spec, self.kernel = spec, "auto"
        self.weight = nn.Parameter(3 * torch.randn(1, 1, spec.vocab_size))  # as peaked as a trained model's
        self.seconds = 0.0

    def forward(self, ids, *, cache, logits_to_keep, counts=None):
        cache.begin(counts, ids.shape[1])
        for kind in self.spec.blocks:
            cache.lay_out(kind, ids.shape[1])
        cache.end(ids.shape[1])
        start = time.perf_counter()
        logits = self.weight.expand(len(cache.rows), logits_to_keep, -1).clone()
        self.seconds += time.perf_counter() - start
        return Output(logits, logits)


def time_steps(overrides, sampling) -> list[float]:
    """Milliseconds of each step in which 32 sequences get a token, the logits' own copy left out."""
    model = NullModel(load("llama-tiny", [*SHAPE, "max_seq_len=256", *overrides])).eval()
    engine = Engine(model, rows=ROWS, tokens=128)
    for number in range(ROWS):
        engine.add(Request(ids=list(range(1, 30 + number)), max_new_tokens=NEW, sampling=sampling))
    found = []
    while engine.busy:
        model.seconds, start = 0.0, time.perf_counter()
        events = engine.step()
        took = time.perf_counter() - start - model.seconds
        if len(events) == ROWS and not any(event.finished for event in events):
            found.append(1000 * took)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [[], ["attention=sliding", "window=16"]], ids=["full", "window"])
@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=0.8, top_p=0.9, seed=0)], ids=["greedy", "drawn"]
)
def test_a_step_at_32_requests_is_timed(overrides, sampling, capsys):
    found = time_steps(overrides, sampling)
    assert len(found) >= NEW // 2
    with capsys.disabled():
        print(f"\n{statistics.median(found):.2f} ms a step of {ROWS} requests ({min(found):.2f} at best)")


def test_logits_of_one_pass_are_joined_without_a_copy_and_others_with_one():
    rng = random.Random(0)
    for _ in range(50):
        whole = torch.randn(rng.randint(1, 6), rng.randint(1, 4), 11)
        keep = rng.randint(1, whole.shape[1])
        parts = [row[len(row) - keep :] for row in whole]
        change = rng.randrange(3)
        if change == 1:
            rng.shuffle(parts)
        elif change == 2:
            parts.append(torch.randn(2, 11))
        joined = join_rows(parts)
        assert torch.equal(joined, torch.cat(parts))
        follow = change < 2 and all(b.data_ptr() - a.data_ptr() == 4 * a.numel() for a, b in pairwise(parts))
        assert (joined.data_ptr() == parts[0].data_ptr()) is follow


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "top_p": 0.8}, {"temperature": 0.5, "min_p": 0.1}])
def test_a_sampler_leaves_the_logits_as_they_are(options):
    """They are the pass's own, of which log-probabilities are told afterwards."""
    logits = torch.randn(5, 700)
    logits[2, 3] = math.inf
    before = logits.clone()
    Sampler().choose(logits, [DrawState(Sampling(seed=1, **options), (row,)) for row in range(5)])
    assert torch.equal(logits, before)
