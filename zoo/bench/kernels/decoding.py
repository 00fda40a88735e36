# B rows
"""Measure the fraction of memory bandwidth that decoding achieves with the engine of `zoo generate`: batches of 1 and
of many, with CUDA graphs and without. Also compare the generated tokens with the engine's on a CPU."""

from __future__ import annotations

import random
import time
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.bench.kernels.device_timing import synchronize
from zoo.bench.kernels.processes import Measurement, ReportRow, Settings
from zoo.bench.kernels.training_mfu import TINY, BenchModel
from zoo.compose import load
from zoo.costs import Setup, price
from zoo.costs.operators import operators
from zoo.generation.engine import Engine, serving
from zoo.generation.request import Request
from zoo.kernels import machine_of, select
from zoo.lazy import torch
from zoo.run.builder import build
from zoo.run.linear.ready import make_ready
from zoo.run.machine_memory import read_free_memory

if TYPE_CHECKING:
    from zoo.costs.rows import Priced
    from zoo.model.tower import Tower
    from zoo.run.layer import Model

ACCOUNTING = (
    "decoding: random weights in bf16, greedy; a step is the engine's, from tokens to tokens; bytes per step are all "
    "weights in a product once and every row's cached keys and values (zoo.costs); share = bytes per step ÷ seconds of "
    "a step ÷ copy bandwidth, which counts bytes read and written; plain is without CUDA graphs. Equal tokens: a small "
    "model in float32, rows of other lengths, beside the engine on a CPU. vLLM has the same shape, weights of its own "
    "making, prompts and lengths; its step is the difference of two runs that differ in new tokens alone"
)
SLACK = 1.1  # memory in use, including activations, as a multiple of weights and cache


class DecodingLengths(NamedTuple):
    """Number of tokens of a prompt, of untimed decoding steps and of timed ones."""

    prompt: int
    warm: int
    timed: int


MODELS = (BenchModel("Llama 3.2 1B", "llama3.2-1b"), BenchModel("Llama 3 8B", "llama3-8b"))
GOAL = 0.8
"""Goal for MODELS at batch 1, a fraction of copy bandwidth."""

ROWS = (1, 64)
WHOLE, QUICK = DecodingLengths(128, 16, 128), DecodingLengths(4, 2, 8)


def list_jobs(settings: Settings) -> list[Measurement]:
    """List the job that checks tokens, and one for each model and batch size."""
    timed = [
        Measurement(f"decode {model.name}, {count_rows(rows)}", partial(time_decoding, model, rows, settings))
        for model in ((TINY,) if settings.quick else MODELS)
        for rows in ROWS
    ]
    return [Measurement("decode equal tokens", partial(check_tokens, settings)), *timed]


def count_rows(rows: int) -> str:
    """Format a batch size: `1 row`, `32 rows`."""
    return f"{rows} row" + "s" * (rows > 1)


def time_decoding(model: BenchModel, rows: int, settings: Settings) -> ReportRow:
    """Measure greedy decoding: tokens/s, and the achieved fraction of memory bandwidth (bytes read per step ÷ seconds
    of a step ÷ measured copy bandwidth). On CUDA, `plain` has the figures without graphs."""
    spec, lengths = load(model.of, model.overrides), QUICK if settings.quick else WHOLE
    if not settings.quick and (reason := refuse_size(spec, rows, lengths, settings.device)):
        return {"left_out": reason}
    built = _build(model, settings.device, settings.seed)
    context = lengths.prompt + lengths.warm + lengths.timed // 2
    read = sum(each.bytes(rows) for each in operators(spec, Setup(dtype="bf16", context=context), decode=True).values())
    ways: dict[str, bool | None] = {"graphs": True, "plain": False} if settings.device == "cuda" else {"plain": None}
    figures, engine = {}, None
    for way, graphs in ways.items():
        engine = make_engine(built, rows, lengths, graphs)
        seconds = time_steps(engine, rows, lengths, settings)
        figures[way] = {
            "tokens_per_second": rows / seconds,
            "bytes_per_second": read / seconds,
            "share_of_copy": settings.share_of_copy(read / seconds),
            "graphs": describe_graphs(engine),
        }
    assert engine is not None
    best, *rest = figures
    return {
        "model": model.name,
        "rows": rows,
        "prompt": lengths.prompt,
        "context": context,
        "kernel": name_kernel(spec, engine),
        "page": engine.store.page,
        "bytes_per_step": round(read),
        **figures[best],
        **{way: figures[way] for way in rest},
        "goal": GOAL if rows == 1 and not settings.quick else None,
    }


def refuse_size(spec: Priced, rows: int, lengths: DecodingLengths, device: str) -> str | None:
    """Return the reason why a model and its cache do not fit the free memory; None if they fit."""
    setup = Setup(dtype="bf16", context=sum(lengths), batch=rows, engine="zoo")
    priced = price(spec, setup)
    needed = SLACK * (priced["memory"]["weights"] + priced["kv_cache"]["bytes"])
    free = read_free_memory(torch.device(device)) or 0
    free += torch.cuda.memory_reserved() if device == "cuda" else 0  # a model that is built already holds this
    return f"it needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free" if needed > free else None


@lru_cache(maxsize=1)
def _build(model: BenchModel, device: str, seed: int) -> Model:
    """Build a model with random weights, prepared as `zoo generate` does. One model is kept for all batch sizes."""
    built = build(load(model.of, model.overrides), device=device, dtype="bf16", seed=seed)
    make_ready(built, None, lambda line: None)
    return built


def make_engine(model: Model, rows: int, lengths: DecodingLengths, graphs: bool | None) -> Engine:
    """Make an engine that prefills all prompts in its first step."""
    sizes: dict[str, Any] = {"rows": rows, "tokens": sum(lengths) + 2, "budget": rows * (lengths.prompt + 1)}
    return Engine(model, **sizes, reuse=False, graphs=graphs, note=lambda line: None)


def time_steps(engine: Engine, rows: int, lengths: DecodingLengths, settings: Settings) -> float:
    """Time one decoding step of a batch of equally long prompts, in seconds."""
    for ids in draw_prompts(engine.writer.vocab_size, [lengths.prompt] * rows, settings.seed):
        engine.add(Request(ids=ids, max_new_tokens=sum(lengths[1:]) + 2))
    with serving(engine.model):
        for _ in range(1 + lengths.warm):
            engine.step()
        synchronize(settings.device)
        start = time.perf_counter()
        for _ in range(lengths.timed):
            engine.step()
        synchronize(settings.device)
    return (time.perf_counter() - start) / lengths.timed


def draw_prompts(vocab: int, lengths: list[int], seed: int) -> list[list[int]]:
    """Draw random prompts of these lengths."""
    rng = random.Random(seed)
    return [[rng.randrange(vocab) for _ in range(length)] for length in lengths]


def describe_graphs(engine: Engine) -> dict[str, Any]:
    """Count the CUDA graphs that an engine recorded and their bytes. If it records none, give the reason."""
    graphs = engine.passes.graphs
    if graphs is None:
        return {"steps": 0, "bytes": 0, "refusal": None}
    return {"steps": len(graphs.steps), "bytes": getattr(graphs.record, "nbytes", 0), "refusal": graphs.refusal}


def name_kernel(spec: Tower, engine: Engine) -> str:
    """Return the name of the attention kernel in an engine's decoding steps, for the first kind of layer."""
    by_page = {"lengths": True, "page": engine.store.page} if engine.store.paged else {}
    attention = next(iter(spec.blocks.values())).attention
    ask = attention.decode_ask("bfloat16", 1, short_q=True, causal=engine.store.paged, **by_page)
    return "none" if ask is None else select(ask, machine_of(engine.device)).name


# ---------------------------------------------------------------- equal tokens


CHECKED = ("n_layers=4", "d_model=128", "n_heads=8", "n_kv_heads=2", "head_dim=16", "d_ff=256", "vocab_size=512")
PROMPTS, NEW = (3, 1, 40, 17, 300), 48
LOUD = 2.0  # standard deviation of weights, as a multiple of 1/√d_in


def check_tokens(settings: Settings) -> ReportRow:
    """Compare the engine's float32 tokens on this device with its tokens on a CPU, for prompts of different lengths: on
    CUDA with and without graphs, on a CPU with a paged cache."""
    spec = load("llama-tiny", (*CHECKED, "max_seq_len=512"))
    prompts = draw_prompts(spec.vocab_size, list(PROMPTS), settings.seed)
    model = build_loud(spec, settings.seed)
    wanted = generate_tokens(model, prompts)
    model = model.to(settings.device)
    on_cuda = {"graphs": {"graphs": True}, "plain": {"graphs": False}}
    ways = on_cuda if settings.device == "cuda" else {"plain": {"paged": True}}
    found = {way: generate_tokens(model, prompts, **options) for way, options in ways.items()}
    wrong = [
        f"{way}: row {row} parts from the CPU's at token {_first_difference(tokens, wanted[row])}"
        for way, each in found.items()
        for row, tokens in enumerate(each)
        if tokens != wanted[row]
    ]
    row: ReportRow = {"prompts": list(PROMPTS), "new": NEW, "ways": list(ways), "passed": not wrong}
    return row | ({"fault": "; ".join(wrong)} if wrong else {})


def build_loud(spec: Tower, seed: int) -> Model:
    """Build a model on the CPU with weights so large that one key too many or too few changes the chosen tokens."""
    model, generator = build(spec, device="cpu", dtype="fp32", seed=seed), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for each in model.parameters():
            if each.ndim > 1:
                each.copy_(torch.randn(each.shape, generator=generator) * LOUD / each.shape[-1] ** 0.5)
    return model


def generate_tokens(model: Model, prompts: list[list[int]], **options: Any) -> list[list[int]]:
    """Generate NEW greedy tokens for each prompt, all in one batch of the engine."""
    engine = Engine(model.eval(), rows=len(prompts), tokens=max(PROMPTS) + NEW, reuse=False, **options)
    return run_prompts(engine, prompts, NEW)


def run_prompts(engine: Engine, prompts: list[list[int]], new: int) -> list[list[int]]:
    """Generate `new` greedy tokens for each prompt with an engine."""
    tokens: dict[int, list[int]] = {engine.add(Request(ids=ids, max_new_tokens=new)): [] for ids in prompts}
    for event in engine.run():
        if event.token is not None:
            tokens[event.request].append(event.token)
    return list(tokens.values())


def _first_difference(found: list[int], wanted: list[int]) -> int:
    return next((at for at, pair in enumerate(zip(found, wanted, strict=False)) if pair[0] != pair[1]), len(found))
