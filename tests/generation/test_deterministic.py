"""The engine's deterministic mode: log-probabilities are the same to the bit, whatever runs beside a request."""

import random
from contextlib import nullcontext

import pytest

import zoo
from support.packaged_specs import load, one_in
from zoo.errors import ConfigError
from zoo.generation.engine import Engine, serving
from zoo.generation.request import Request
from zoo.sampling.options import Sampling

KINDS = {
    "rope": ["llama-tiny"],
    "learned": ["gpt-tiny"],
    "window": ["llama-tiny", "attention=sliding", "window=7"],
    "mla": ["llama-tiny", "attention=mla"],
    "alibi": ["llama-tiny", "position=alibi"],
    "t5": ["llama-tiny", "position=t5"],
    "mamba": ["llama-tiny", "attention=mamba", "position=none"],
    "sinks": ["llama-tiny", "+attention.sinks=true"],
    "softcap": ["llama-tiny", "+attention.softcap=20"],
}
SETTINGS = [{"rows": 9, "budget": 64}, {"rows": 4, "budget": 512, "overcommit": 3.0}, {"rows": 9, "budget": 7}]


def serve(model, requests, **options):
    """Tokens and log-probabilities of each request, all queued at once."""
    engine, found = Engine(model, tokens=200, deterministic=True, **options), {}
    with serving(model):
        numbers = [engine.add(request) for request in requests]
        while engine.busy:
            for event in engine.step():
                found.setdefault(event.request, []).append((event.token, event.logprob))
    return [found[number] for number in numbers], engine


def draw_requests(vocab, seed, lengths):
    """Requests of which every other begins with the same tokens, greedy or drawn."""
    rnd = random.Random(seed)
    shared = [rnd.randrange(vocab) for _ in range(200)]
    return [
        Request(
            ids=shared[:length] if length % 2 else [rnd.randrange(vocab) for _ in range(length)],
            max_new_tokens=rnd.randrange(3, 12),
            sampling=Sampling(temperature=rnd.choice([0, 1.0]), seed=3),
            logprobs=3,
        )
        for length in lengths
    ]


@pytest.mark.parametrize("stable", [False, True], ids=["one by one", "made ready"])
@pytest.mark.parametrize("kind", one_in(12, KINDS))
def test_a_request_gets_the_bits_that_it_gets_alone(kind, stable):
    name, *overrides = KINDS[kind]
    model = zoo.build(load(name, overrides), device="cpu").eval()
    requests = draw_requests(model.spec.vocab_size, 2, (1, 5, 31, 64, 65, 129, 131, 131))
    with zoo.prepare(model, stable=True) if stable else nullcontext():
        alone = [serve(model, [request], rows=1, reuse=False)[0][0] for request in requests]
        reused = 0
        for options in SETTINGS:
            together, engine = serve(model, requests, **options)
            assert together == alone
            reused += engine.prefixes.hits
    assert reused > 0


def test_without_it_rows_that_run_together_differ_in_bits():
    model = zoo.build(load("llama-tiny", ["d_model=256", "d_ff=700"]), device="cpu").eval()
    requests = draw_requests(model.spec.vocab_size, 5, range(20, 44, 2))

    def serve_plainly(requests):
        engine, found = Engine(model, tokens=200, rows=12, reuse=False), {}
        numbers = [engine.add(request) for request in requests]
        for event in engine.run():
            found.setdefault(event.request, []).append((event.token, event.logprob))
        return [found[number] for number in numbers]

    alone = [serve_plainly([request])[0] for request in requests]
    together = serve_plainly(requests)
    assert [[token for token, _ in row] for row in together] == [[token for token, _ in row] for row in alone]
    assert together != alone


@pytest.mark.parametrize(
    ("overrides", "options", "line"),
    [
        ([], {"speculate": 2}, "speculate: a draft's tokens are computed together, and would differ in bits (0)"),
        (
            ["ffn=moe"],
            {},
            "deterministic: an expert's products differ in bits with the rows that it gets (false)",
        ),
    ],
)
def test_what_cannot_be_the_same_to_the_bit_is_refused(overrides, options, line):
    model = zoo.build(load("llama-tiny", overrides), device="cpu")
    with pytest.raises(ConfigError) as refused:
        Engine(model, deterministic=True, rows=1, tokens=32, **options)
    assert str(refused.value) == line
