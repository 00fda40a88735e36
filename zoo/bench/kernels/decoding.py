"""Measure the fraction of memory bandwidth that decoding one row achieves, with the engine of `zoo generate`."""

from __future__ import annotations

import itertools
import time
from functools import partial
from typing import Any, NamedTuple

from zoo.bench.kernels.parts import Job, ReportRow, Settings
from zoo.bench.kernels.timing import synchronize
from zoo.bench.kernels.training import TINY, name_kernel
from zoo.compose import load
from zoo.costs.operators import Widths, operators
from zoo.generation.generate import stream
from zoo.lazy import torch
from zoo.run.builder import build

ACCOUNTING = (
    "decoding: one row, random weights in bf16; bytes per token are all weights in a product and the cached keys and "
    "values (zoo.costs); share = bytes per token × tokens/s ÷ copy bandwidth, which counts bytes read and written"
)
WIDTH = 2  # bytes of a bfloat16


class DecodedModel(NamedTuple):
    """A model by its packaged name, and the share of copy bandwidth that is its goal."""

    name: str
    of: str
    goal: float | None
    overrides: tuple[str, ...] = ()


MODELS = (DecodedModel("Llama 3.2 1B", "llama3.2-1b", 0.5), DecodedModel("Llama 3 8B", "llama3-8b", 0.7))


def list_jobs(settings: Settings) -> list[Job]:
    """List one job per model."""
    models = (DecodedModel(TINY.name, TINY.of, None, TINY.overrides),) if settings.quick else MODELS
    return [Job(f"decode {model.name}", partial(time_decoding, model, settings)) for model in models]


def time_decoding(model: DecodedModel, settings: Settings) -> ReportRow:
    """Measure greedy decoding of one row: tokens/s, and the achieved fraction of memory bandwidth (bytes read per token
    × tokens/s ÷ measured copy bandwidth)."""
    prompt, warm, timed = (4, 2, 8) if settings.quick else (128, 16, 128)
    spec = load(model.of, model.overrides)
    built = build(spec, device=settings.device, dtype="bf16", seed=settings.seed)
    ids = torch.randint(spec.vocab_size, (1, prompt), generator=torch.Generator().manual_seed(settings.seed))
    tokens = stream(built, ids, warm + timed)
    _draw_tokens(tokens, warm)
    synchronize(settings.device)
    start = time.perf_counter()
    _draw_tokens(tokens, timed)
    synchronize(settings.device)
    taken = (time.perf_counter() - start) / timed
    context = prompt + warm + timed // 2
    read = sum(each.bytes(1) for each in operators(spec, context, Widths(WIDTH, WIDTH), decode=True).values())
    return {
        "model": model.name,
        "prompt": prompt,
        "context": context,
        "kernel": name_kernel(spec, context, torch.device(settings.device), grad=False, short_q=True),
        "tokens_per_second": 1 / taken,
        "bytes_per_token": round(read),
        "bytes_per_second": read / taken,
        "share_of_copy": None if settings.limits is None else read / taken / settings.limits.copy,
        "goal": model.goal,
    }


def _draw_tokens(tokens: Any, count: int) -> None:
    for _ in itertools.islice(tokens, count):
        pass
