"""Measure the engine against itself: what batching, constraining, speculating and determinism cost or bring.

Each scenario times two ways of serving the same model, in turn, in the same process. Ratios are of the same round.
"""

from __future__ import annotations

import datetime
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from zoo.bench.shape import Shape
from zoo.lazy import torch

Tell = Callable[[str], object]
NEW = 64
"""Tokens that follow each prompt."""
LONG = 8192
"""Tokens of the prompt that comes while others wait for their next token."""
SCHEMA = {"type": "array", "items": {"type": "object", "properties": {"id": {"type": "integer"}}}, "minItems": 1000}


@dataclass(frozen=True)
class Scenario:
    """Two ways of serving: `base` and `own` each give a figure in `unit`. The ratio is theirs, so that `goal`, a bound
    on it, reads as the issue has it: `least` says on which side."""

    name: str
    unit: str
    against: str
    goal: float
    least: bool
    base: Callable[[], float]
    own: Callable[[], float]

    def met(self, ratio: float) -> bool:
        """Whether a ratio keeps the goal."""
        return ratio >= self.goal if self.least else ratio <= self.goal


def measure(shape: Shape, seconds: float, tell: Tell) -> list[dict[str, Any]]:
    """Measure every scenario with a random model of this shape, about `seconds` in all, one round of each at least."""
    found = []
    scenarios = list(_list_scenarios(shape))
    for make in scenarios:
        scenario = make()
        ratios, bases, owns = [], [], []
        begun = time.perf_counter()
        scenario.own()  # what is made once is made
        while not ratios or time.perf_counter() - begun < seconds / len(scenarios):
            bases.append(scenario.base())
            owns.append(scenario.own())
            ratios.append(owns[-1] / bases[-1])
        row = {"name": scenario.name, "unit": scenario.unit, "against": scenario.against, "goal": scenario.goal}
        row |= {"least": scenario.least, "base": statistics.median(bases), "own": statistics.median(owns)}
        row |= {"ratio": statistics.median(ratios), "ratios": ratios}
        found.append(row | {"met": scenario.met(row["ratio"])})
        tell(f"{scenario.name}: {describe(found[-1])}")
    return found


def describe(row: dict[str, Any]) -> str:
    """Describe a row: `0.94x of free text (goal: at least 0.90)`."""
    bound = "at least" if row["least"] else "at most"
    kept = "" if row["met"] else ", not met"
    return f"{row['ratio']:.2f}x {row['against']} (goal: {bound} {row['goal']:.2f}{kept})"


def _list_scenarios(shape: Shape) -> Iterator[Callable[[], Scenario]]:
    yield from (lambda make=make: make(shape) for make in (_batch, _guided, _copying, _novel, _waiting, _stable, _shared))


# ---------------------------------------------------------------- models and requests


def _build(shape: Shape, **changes: Any) -> Any:
    from zoo.run.builder import build, load_spec

    overrides = [*shape.overrides(), *(f"{name}={value}" for name, value in changes.items())]
    return build(load_spec("llama3-8b", overrides), device="cpu", dtype="fp32", seed=0).eval()


def _make_ready(model: Any, **options: Any) -> Any:
    from zoo.run.linear import prepare

    prepare(model, keep=False, **options)
    return model


def _ids(count: int, vocab: int, first: int = 0) -> list[int]:
    return [(first + index) * 7919 % vocab for index in range(count)]


def _serve(model: Any, requests: Sequence[Any], **options: Any) -> float:
    """Serve requests together; the seconds from the first token of the last one that starts to the end, a token."""
    from zoo.generation.engine import Engine

    rows = options.pop("rows", len(requests))
    engine = Engine(model, rows=rows, **options)
    begun, tokens, waiting = 0.0, 0, set(range(len(requests)))
    start = time.perf_counter()
    for event in engine.run(requests):
        if waiting:
            waiting.discard(event.request)
            begun = time.perf_counter() if not waiting else begun
        else:
            tokens += event.token is not None
    return (time.perf_counter() - (begun or start)) / max(tokens, 1)


def _requests(count: int, vocab: int, *, length: int = 32, new: int = NEW, **options: Any) -> list[Any]:
    from zoo.generation.request import Request

    return [
        Request(ids=_ids(length, vocab, 31 * row), max_new_tokens=new, **options) for row in range(count)
    ]


# ---------------------------------------------------------------- scenarios


def _batch(shape: Shape) -> Scenario:
    """32 ragged requests together, and one after the other."""
    from zoo.generation.engine import Engine
    from zoo.generation.request import Request

    model = _make_ready(_build(shape))
    lengths = [(32 * (1 + 5 * row % 8), 8 * (1 + 3 * row % 8)) for row in range(32)]
    requests = [Request(ids=_ids(p, shape.vocab_size, p), max_new_tokens=n) for p, n in lengths]
    total = sum(new for _, new in lengths)

    def together(rows: int) -> float:
        start = time.perf_counter()
        for _ in Engine(model, rows=rows, tokens=512, reuse=False).run(requests):
            pass
        return total / (time.perf_counter() - start)

    return Scenario("32 ragged requests together", "tok/s", "one after the other", 3.0, True, lambda: together(1), lambda: together(32))


def _guided(shape: Shape) -> Scenario:
    """Eight texts held to a JSON schema, and eight free ones."""
    from zoo.sampling.guide import GuideCompiler

    model = _make_ready(_build(shape))
    guide = GuideCompiler(_make_tokenizer(), shape.vocab_size).compile("json_schema", SCHEMA)

    def run(guide: Any) -> float:
        return 1 / _serve(model, _requests(8, shape.vocab_size, guide=guide), tokens=256)

    return Scenario("JSON by a schema, 8 requests", "tok/s", "free text", 0.90, True, lambda: run(None), lambda: run(guide))


def _make_tokenizer() -> Any:
    """A tokenizer of English and code, from text that comes with Python."""
    from pydoc_data.topics import topics

    from zoo.data.tokenizer import train_bpe

    return train_bpe(topics.values(), 8000)


def _chained(shape: Shape) -> tuple[Any, list[int]]:
    """A model whose next token depends on the last one alone, and a chain of its tokens that has none twice: sub-layers
    add nothing to the stream, and cost what they cost."""
    model = _build(shape)
    for name, weight in model.named_parameters():
        if name.endswith(("attention.o.weight", "ffn.down.weight")):
            weight.data.zero_()
    _make_ready(model)
    best: list[int] = []
    for start in range(1, 40):
        chain = [start]
        with torch.inference_mode():
            while len(chain) < 4 * NEW:
                token = int(model(torch.tensor([chain[-1:]])).logits[0, -1].argmax())
                if token in chain:
                    break
                chain.append(token)
        best = max(best, chain, key=len)
        if len(best) >= 2 * NEW:
            break
    return model, best


def _speculating(shape: Shape, name: str, goal: float, prompt: Callable[[list[int]], list[int]]) -> Scenario:
    from zoo.generation.request import Request

    model, chain = _chained(shape)
    ids = prompt(chain)
    new = min(NEW, len(chain) - 1)

    def run(tokens: int) -> float:
        return 1 / _serve(model, [Request(ids=ids, max_new_tokens=new)], tokens=1024, speculate=tokens)

    return Scenario(name, "tok/s", "without", goal, True, lambda: run(0), lambda: run(8))


def _copying(shape: Shape) -> Scenario:
    """N-gram speculation on text that stands in the prompt."""
    return _speculating(shape, "n-grams, text of the prompt", 1.5, lambda chain: [*chain, chain[0]])


def _novel(shape: Shape) -> Scenario:
    """N-gram speculation on text that has no token twice."""
    return _speculating(shape, "n-grams, new text", 0.97, lambda chain: chain[:1])


def _waiting(shape: Shape) -> Scenario:
    """Seconds between the tokens of four texts: at worst (of a hundred) while a long prompt comes in, and at rest."""
    from zoo.generation.engine import Engine
    from zoo.generation.request import Request

    model = _make_ready(_build(shape, max_seq_len=2 * LONG))
    gaps: dict[str, list[float]] = {"rest": [], "long": []}

    def run() -> None:
        gaps.update(rest=[], long=[])
        engine = Engine(model, rows=5, tokens=LONG + 64, beside=32)
        for request in _requests(4, shape.vocab_size, new=2 * LONG // 32):
            engine.add(request)
        last: dict[int, float] = {}
        long = None
        from zoo.generation.passes import serving

        with serving(model):
            for step in range(4 + 20 + LONG // 32):
                if step == 24:
                    long = engine.add(Request(ids=_ids(LONG, shape.vocab_size), max_new_tokens=1))
                events, now = engine.step(), time.perf_counter()
                for event in events:
                    if event.request == long:
                        return
                    if event.request in last and step > 4:
                        gaps["rest" if long is None else "long"].append(now - last[event.request])
                    last[event.request] = now

    def worst() -> float:
        run()
        return statistics.quantiles(gaps["long"], n=100)[98] * 1e3

    return Scenario(
        f"wait for a token beside a prompt of {LONG:,}", "ms", "at rest", 3.0, False,
        lambda: statistics.median(gaps["rest"]) * 1e3, worst,
    )


def _stable(shape: Shape) -> Scenario:
    """Eight requests whose results are the same to the bit whatever runs beside them, and eight ordinary ones."""
    plain, stable = _make_ready(_build(shape)), _make_ready(_build(shape), stable=True)

    def run(model: Any, deterministic: bool) -> float:
        return 1e3 * 8 * _serve(model, _requests(8, shape.vocab_size), tokens=256, deterministic=deterministic)

    return Scenario(
        "a deterministic step, 8 requests", "ms", "an ordinary one", 1.2, False,
        lambda: run(plain, False), lambda: run(stable, True),
    )


def _shared(shape: Shape) -> Scenario:
    """Sixteen requests after one prefix: its keys read once for all, and by each by itself."""
    from zoo.generation.request import Request
    from zoo.kernels.rows import PoolRows

    model = _make_ready(_build(shape))
    prefix = _ids(shape.max_seq_len - 2 * NEW, shape.vocab_size)
    requests = [Request(ids=[*prefix, row + 1], max_new_tokens=NEW // 2) for row in range(16)]
    plan = PoolRows.plan

    def run(splits: bool) -> float:
        PoolRows.plan = plan if splits else (lambda self, *given: None)  # type: ignore[method-assign]
        try:
            return 1 / _serve(model, requests, tokens=shape.max_seq_len)
        finally:
            PoolRows.plan = plan  # type: ignore[method-assign]

    return Scenario(
        f"a prefix of {len(prefix):,} tokens read once, 16 requests", "tok/s", "read by each", 1.5, True,
        lambda: run(False), lambda: run(True),
    )
