"""Measure the costs and gains of the engine's features: batching, guided decoding, speculation, determinism.

Each scenario times two ways of serving the same model, alternately, in one process. A ratio compares the two ways in
the same round.
"""

from __future__ import annotations

import dataclasses
import datetime
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zoo.bench.race_model import RaceShape
from zoo.lazy import torch

if TYPE_CHECKING:
    from zoo.data.tokenizer import Tokenizer
    from zoo.generation.request import Request
    from zoo.run.layer import Model

Tell = Callable[[str], object]
NEW = 64
"""New tokens per prompt."""
LONG = 8192
"""Tokens of the prompt that is prefilled while other requests decode."""
BESIDE = 32
"""Tokens of the LONG prompt that are prefilled per step (chunked prefill)."""
SCHEMA = {"type": "array", "items": {"type": "object", "properties": {"id": {"type": "integer"}}}, "minItems": 1000}
"""A JSON schema whose shortest text is longer than NEW tokens."""

Pair = tuple[float, float]


@dataclass(frozen=True)
class Scenario:
    """Two ways of serving one model. `measure` returns a pair of figures in `unit`: the baseline's (named `against`),
    then the feature's. The ratio feature ÷ baseline should be at least `goal` if `least`, else at most."""

    name: str
    unit: str
    against: str
    goal: float
    least: bool
    measure: Callable[[], Pair]


def run_scenarios(shape: RaceShape, seconds: float, tell: Tell) -> list[dict[str, Any]]:
    """Run every scenario with a random model of this shape, at least one round each, for about `seconds` in total."""
    found = []
    for make in SCENARIOS:
        scenario = make(shape)
        rounds: list[Pair] = []
        begun = time.perf_counter()
        while not rounds or time.perf_counter() - begun < seconds / len(SCENARIOS):
            rounds.append(scenario.measure())
        ratios = [own / base for base, own in rounds]
        row = {name: getattr(scenario, name) for name in ("name", "unit", "against", "goal", "least")}
        base, own = (statistics.median(each) for each in zip(*rounds, strict=True))
        row |= {"base": base, "own": own, "ratio": statistics.median(ratios), "ratios": ratios}
        row["met"] = row["ratio"] >= scenario.goal if scenario.least else row["ratio"] <= scenario.goal
        found.append(row)
        tell(f"{scenario.name}: {describe_row(row)}")
    return found


def describe_row(row: Mapping[str, Any]) -> str:
    """Describe a row: `0.94x free text (at least 0.90 wanted)`."""
    bound, missed = "at least" if row["least"] else "at most", "" if row["met"] else ": missed"
    return f"{row['ratio']:.2f}x {row['against']} ({bound} {row['goal']:.2f} wanted{missed})"


def make_report(
    rows: Sequence[Mapping[str, Any]], processor: Mapping[str, Any], threads: int, shape: RaceShape
) -> dict[str, Any]:
    """Make the report as plain data, for `--json` and `--out`."""
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    race = {"workload": "engine", "dtype": "fp32", "batch": 32, "weights": "", "compile": False, "threads": threads}
    race |= {"shape": dataclasses.asdict(shape), "isa": "", "rounds": max(len(row["ratios"]) for row in rows)}
    return {
        "date": date,
        "race": race,
        "processor": dict(processor),
        "torch": torch.__version__,
        "scenarios": list(rows),
    }


# ---------------------------------------------------------------- models and requests


def _build(shape: RaceShape, **changes: object) -> Model:
    from zoo.run.builder import build, load_spec

    overrides = [*shape.overrides(), *(f"{name}={value}" for name, value in changes.items())]
    return build(load_spec("llama3-8b", overrides), device="cpu", dtype="fp32", seed=0).eval()


def _make_ready(model: Model, **options: Any) -> Model:
    from zoo.run.linear import prepare

    prepare(model, keep=False, **options)
    return model


def _ids(count: int, vocab: int, first: int = 0) -> list[int]:
    return [(first + index) * 7919 % vocab for index in range(count)]


def _serve(model: Model, requests: Sequence[Request], **options: Any) -> float:
    """Serve requests together and return seconds per token, measured from when all requests have their first token."""
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


def _requests(count: int, vocab: int, *, new: int = NEW, **options: Any) -> list[Request]:
    from zoo.generation.request import Request

    return [Request(ids=_ids(32, vocab, 31 * row), max_new_tokens=new, **options) for row in range(count)]


# ---------------------------------------------------------------- scenarios


def _batch(shape: RaceShape) -> Scenario:
    """Compare serving 32 ragged requests in a batch with serving them one after the other."""
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

    return Scenario(
        "32 ragged requests together", "tok/s", "one after the other", 3.0, True, lambda: (together(1), together(32))
    )


def _guided(shape: RaceShape) -> Scenario:
    """Compare eight texts guided by a JSON schema with eight unguided texts."""
    from zoo.sampling.guide import GuideCompiler

    model = _make_ready(_build(shape))
    guide = GuideCompiler(_make_tokenizer(), shape.vocab_size).compile("json_schema", SCHEMA)

    def run(guide: Any) -> float:
        return 1 / _serve(model, _requests(8, shape.vocab_size, guide=guide), tokens=256)

    return Scenario("JSON by a schema, 8 requests", "tok/s", "free text", 0.90, True, lambda: (run(None), run(guide)))


def _make_tokenizer() -> Tokenizer:
    """Train a tokenizer of English and code on text that comes with Python."""
    from pydoc_data.topics import topics

    from zoo.data.tokenizer import train_bpe

    return train_bpe(topics.values(), 8000)


def _chained(shape: RaceShape) -> tuple[Model, list[int]]:
    """Make a model whose next token depends only on the last one, and a chain of its greedy tokens without repetition.
    The model's sub-layers are computed in full but add zeros to the residual stream."""
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


def _speculating(shape: RaceShape, name: str, goal: float, prompt: Callable[[list[int]], list[int]]) -> Scenario:
    from zoo.generation.request import Request

    model, chain = _chained(shape)
    ids = prompt(chain)
    new = min(NEW, len(chain) - 1)

    def run(tokens: int) -> float:
        return 1 / _serve(model, [Request(ids=ids, max_new_tokens=new)], tokens=1024, speculate=tokens)

    return Scenario(name, "tok/s", "without", goal, True, lambda: (run(0), run(8)))


def _copying(shape: RaceShape) -> Scenario:
    """Measure n-gram speculation on text that occurs in the prompt."""
    return _speculating(shape, "n-grams, text of the prompt", 1.5, lambda chain: [*chain, chain[0]])


def _novel(shape: RaceShape) -> Scenario:
    """Measure n-gram speculation on text without any repetition."""
    return _speculating(shape, "n-grams, new text", 0.97, lambda chain: chain[:1])


def _waiting(shape: RaceShape) -> Scenario:
    """Compare the milliseconds between tokens of four requests: the 99th percentile during a long prefill, and the
    median without one."""
    model = _make_ready(_build(shape, max_seq_len=2 * LONG))

    def run() -> Pair:
        rest, beside = _wait(model, shape.vocab_size)
        return statistics.median(rest) * 1e3, statistics.quantiles(beside, n=100)[98] * 1e3

    return Scenario(f"a token's wait (p99) while {LONG:,} tokens come in", "ms", "the wait at rest", 3.0, False, run)


def _wait(model: Model, vocab: int) -> tuple[list[float], list[float]]:
    """Measure the seconds between tokens: those before a long prompt is added, and those during its prefill."""
    from zoo.generation.engine import Engine
    from zoo.generation.passes import serving
    from zoo.generation.request import Request

    engine = Engine(model, rows=5, tokens=LONG + NEW, max_prefill_tokens=BESIDE)
    for request in _requests(4, vocab, new=LONG):
        engine.add(request)
    gaps: tuple[list[float], list[float]] = [], []
    last, long = 0.0, None
    with serving(model):
        for step in range(LONG):
            if step == 30:
                long = engine.add(Request(ids=_ids(LONG, vocab, 5000), max_new_tokens=1))
            events, now = engine.step(), time.perf_counter()
            if any(event.request == long for event in events):
                break
            if step > 5:  # all four are past their prompts
                gaps[long is not None].append(now - last)
            last = now
    return gaps


def _stable(shape: RaceShape) -> Scenario:
    """Compare eight batch-invariant requests (bit-identical results) with eight ordinary ones."""
    plain, stable = _make_ready(_build(shape)), _make_ready(_build(shape), stable=True)

    def run(model: Model, deterministic: bool) -> float:
        return 1e3 * 8 * _serve(model, _requests(8, shape.vocab_size), tokens=256, deterministic=deterministic)

    return Scenario(
        "a deterministic step, 8 requests",
        "ms",
        "an ordinary one",
        1.2,
        False,
        lambda: (run(plain, False), run(stable, True)),
    )


def _shared(shape: RaceShape) -> Scenario:
    """Compare reading the keys of a prefix that sixteen requests share: once for all, or once per request."""
    from zoo.generation.request import Request
    from zoo.kernels.view import PooledView

    model = _make_ready(_build(shape))
    prefix = _ids(shape.max_seq_len - 2 * NEW, shape.vocab_size)
    requests = [Request(ids=[*prefix, row + 1], max_new_tokens=NEW // 2) for row in range(16)]
    plan = PooledView.plan

    def run(splits: bool) -> float:
        PooledView.plan = plan if splits else (lambda self, *given: None)  # type: ignore[method-assign]
        try:
            return 1 / _serve(model, requests, tokens=shape.max_seq_len)
        finally:
            PooledView.plan = plan  # type: ignore[method-assign]

    return Scenario(
        f"a prefix of {len(prefix):,} tokens read once, 16 requests",
        "tok/s",
        "read by each",
        1.5,
        True,
        lambda: (run(False), run(True)),
    )


SCENARIOS = (_batch, _shared, _guided, _copying, _novel, _waiting, _stable)
