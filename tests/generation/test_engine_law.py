"""Speculation in the engine keeps the distribution: pairs of tokens against the probabilities of full forwards."""

from collections import Counter

import pytest
import torch
from test_speculate import chi_squared

from support.packaged_specs import load, make_loud, one_in
from support.tiny_decoders import TINY
from zoo.generation.engine import Engine
from zoo.generation.request import Request
from zoo.run.builder import build
from zoo.sampling.options import Sampling

VOCAB = 8
KINDS = {
    "attention": [],
    "recurrent": ["attention=mamba", "position=none"],
    "window": ["attention=sliding", "window=5"],
}
SAMPLING = {"temperature": 3.0, "top_p": 0.9}


def make(kind: str, noise: float = 0.0):
    """A model of a few tokens; with noise on its weights, one that guesses what it writes."""
    model = build(load(TINY, [f"vocab_size={VOCAB}", "max_seq_len=128", *KINDS[kind]]), device="cpu", dtype="fp32")
    make_loud(model.eval(), (VOCAB,))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += noise * parameter.abs().mean() * torch.randn(parameter.shape, generator=generator)
    return model


def list_pairs() -> list[int]:
    """A prompt that has every pair of tokens, so that what follows any two was seen before (de Bruijn, 1946)."""
    ids, seen = [0], set()
    while len(seen) < VOCAB**2:
        after = max(token for token in range(VOCAB) if (ids[-1], token) not in seen)
        seen.add((ids[-1], after))
        ids.append(after)
    return ids


def weigh(logits: torch.Tensor) -> torch.Tensor:
    """The probabilities [B, V] of the next token under SAMPLING, straight from its definition."""
    shares = (logits.double() / SAMPLING["temperature"]).softmax(-1)
    ordered, places = shares.sort(-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    kept = torch.zeros_like(shares).scatter_(-1, places, torch.where(before < SAMPLING["top_p"], ordered, 0.0))
    return kept / kept.sum(-1, keepdim=True)


@torch.no_grad()
def find_law(model, prompt: list[int]) -> dict[tuple[int, int], float]:
    """The probability of each pair of the second and third new token."""

    def after(*columns: torch.Tensor) -> torch.Tensor:
        return weigh(model(torch.cat([torch.tensor(prompt).expand(len(columns[0]), -1), *columns], 1)).logits[:, -1])

    token = torch.arange(VOCAB)[:, None]
    first = weigh(model(torch.tensor([prompt])).logits[:, -1])[0]
    second = after(token)  # of each first token
    third = after(token.repeat_interleave(VOCAB, 0), token.repeat(VOCAB, 1)).view(VOCAB, VOCAB, VOCAB)
    law = torch.einsum("a, ab, abc -> bc", first, second, third)
    return {(b, c): float(law[b, c]) for b in range(VOCAB) for c in range(VOCAB) if law[b, c] > 0}


def check_law(kind: str, guesser: str, draws: int) -> None:
    model, prompt = make(kind), list_pairs()
    draft = make("attention", 0.3) if guesser == "draft" else None
    engine = Engine(model, rows=32, tokens=len(prompt) + 4, draft=draft, speculate=3)
    proposed, accepted = [], []
    report = engine.proposer.report

    def watched(sequence, count, held):
        proposed.append(count)
        accepted.append(held)
        report(sequence, count, held)

    engine.proposer.report = watched
    options = {"ids": prompt, "max_new_tokens": 4, "n": 100}
    requests = [Request(sampling=Sampling(**SAMPLING, seed=seed), **options) for seed in range(draws // 100)]
    texts: dict[tuple[int, int], list[int]] = {}
    for event in engine.run(requests):
        texts.setdefault((event.request, event.sample), []).append(event.token)
    counts = Counter((tokens[1], tokens[2]) for tokens in texts.values())
    law = find_law(model, prompt)
    assert len(texts) == draws and sum(law.values()) == pytest.approx(1)
    assert len(proposed) > 0.4 * draws and 0.02 < sum(accepted) / sum(proposed) < 0.95
    assert set(counts) <= set(law)
    assert chi_squared(counts, law, draws) < 3.09  # p > 1e-3
    shuffled = dict(zip(law, [*list(law.values())[1:], *list(law.values())[:1]], strict=True))
    assert chi_squared(counts, shuffled, draws) > 5  # the test can tell


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "guesser"), [*((kind, "ngrams") for kind in KINDS), ("attention", "draft"), ("recurrent", "draft")]
)
def test_twenty_thousand_pairs_that_an_engine_draws_have_the_models_distribution(kind, guesser):
    check_law(kind, guesser, 20_000)


@pytest.mark.parametrize("guesser", one_in(2, ["ngrams", "draft"]))
def test_pairs_that_an_engine_draws_have_the_models_distribution(guesser):
    check_law("recurrent", guesser, 1_000)
