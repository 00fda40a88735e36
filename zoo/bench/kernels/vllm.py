"""Time vLLM's decoding for comparison, if installed: same shape, prompts and lengths, but random weights."""

from __future__ import annotations

import json
import os
import tempfile
import time
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from zoo.bench.kernels.decoding import MODELS, ROWS, WHOLE, count_rows, draw_prompts
from zoo.bench.kernels.processes import Measurement, ReportRow, Settings
from zoo.bench.kernels.training_mfu import TINY, BenchModel
from zoo.checkpoint.inverse import find_config
from zoo.compose import load
from zoo.run.environment import find_version

MISSING = "vllm is not installed (pip install vllm)"

LEAST = 1.0
"""Goal for zoo's tokens/s ÷ vLLM's, at the same batch size."""

TIMES = 2
"""Runs of each length. The fastest counts."""


def list_jobs(settings: Settings) -> list[Measurement]:
    """List one job per batch size, for the largest model."""
    model = TINY if settings.quick else MODELS[-1]
    return [
        Measurement(f"decode {model.name}, {count_rows(rows)}, vLLM", partial(time_vllm, model, rows, settings))
        for rows in ROWS
    ]


def time_vllm(model: BenchModel, rows: int, settings: Settings) -> ReportRow:
    """Measure vLLM's tokens/s from two runs; the second generates `WHOLE.timed` more tokens per prompt."""
    if (version := find_version("vllm")) is None:
        return {"left_out": MISSING}
    if settings.device != "cuda" or settings.quick:
        return {"left_out": "vllm is timed on a GPU, in a whole run"}
    vocab = load(model.of, model.overrides).vocab_size
    prompts = draw_prompts(vocab, [WHOLE.prompt] * rows, settings.seed)
    llm = _start(model, settings.seed)
    _run(llm, prompts, WHOLE.warm)
    short, long = (min(_run(llm, prompts, new) for _ in range(TIMES)) for new in (WHOLE.warm, WHOLE.warm + WHOLE.timed))
    figures = {"tokens_per_second": rows * WHOLE.timed / (long - short), "prompt": WHOLE.prompt}
    return {"model": model.name, "rows": rows, "peer": f"vLLM {version}", **figures}


@lru_cache(maxsize=1)
def _start(model: BenchModel, seed: int) -> Any:
    """Start vLLM in this process, with a model of this shape and random weights, from a config.json alone."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1"}
    from vllm import LLM  # type: ignore[import-not-found]

    config, _ = find_config(load(model.of, model.overrides))
    sizes: dict[str, Any] = {"max_model_len": 2 * sum(WHOLE), "max_num_seqs": max(ROWS)}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(config | {"torch_dtype": "bfloat16"}), encoding="utf-8")
        return LLM(model=folder, load_format="dummy", skip_tokenizer_init=True, dtype="bfloat16", seed=seed, **sizes)


def _run(llm: Any, prompts: list[list[int]], new: int) -> float:
    """Time vLLM generating `new` tokens for each prompt, in seconds."""
    from vllm import SamplingParams  # type: ignore[import-not-found]

    asked = SamplingParams(temperature=0.0, max_tokens=new, ignore_eos=True, detokenize=False)
    start = time.perf_counter()
    found = llm.generate([{"prompt_token_ids": ids} for ids in prompts], asked, use_tqdm=False)
    seconds = time.perf_counter() - start
    assert all(len(each.outputs[0].token_ids) == new for each in found)
    return seconds
