"""Run transformers' continuous batching: one manager, all requests added at once, as its `generate_batch` does.

The cache has as many blocks as the requests can fill; by default transformers would take most of the free memory.
"""

import dataclasses
import sys
from typing import Any

import run_hf

try:
    from transformers import ContinuousBatchingConfig, GenerationConfig
except ImportError as error:
    sys.exit(f"missing: {error}")
import harness
import timing
import torch

PAGE = 64  # tokens of a block
WAIT = 60.0  # seconds without an answer after which the manager counts as stuck
MANAGERS: list[Any] = []
"""Running managers, to be stopped at the end: their threads would keep the process alive."""


def load(job: dict[str, Any], dtype: torch.dtype) -> torch.nn.Module:
    model = run_hf.CONTENDER.load(job, dtype).eval()
    if job["compile"]:
        raise timing.Absent("it is not raced compiled")
    return model


def start_manager(model: Any, job: dict[str, Any]) -> Any:
    """Start the manager of a model, or return the running one."""
    if not hasattr(model, "bench_manager"):
        blocks = job["batch"] * (-(-(job["length"] + job["new_tokens"]) // PAGE) + 1)
        settings = ContinuousBatchingConfig(page_size=PAGE, num_blocks=blocks, max_requests_per_batch=job["batch"])
        greedy = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=job["new_tokens"])
        manager = model.init_continuous_batching(generation_config=greedy, continuous_batching_config=settings)
        manager.warmup()
        manager.start()
        MANAGERS.append(manager)
        model.bench_manager = manager
    return model.bench_manager


def serve(model: Any, requests: list[timing.Request], job: dict[str, Any]) -> timing.Rows:
    """Add all requests and wait for their answers."""
    manager = start_manager(model, job)
    names = [manager.add_request(ids, max_new_tokens=new) for ids, new in requests]
    made: dict[str, list[int]] = {}
    while len(made) < len(names):
        found = manager.get_result(timeout=WAIT)
        if found is None:
            raise RuntimeError(f"continuous batching answered {len(made)} of {len(names)} requests, then nothing")
        if found.is_finished():
            if found.error is not None:
                raise RuntimeError(f"continuous batching: {found.error}")
            made[found.request_id] = list(found.generated_tokens)
    return [made[name] for name in names]


def generate(model: Any, ids: torch.Tensor, new: int, job: dict[str, Any]) -> torch.Tensor:
    return torch.tensor(serve(model, [(row, new) for row in ids.tolist()], job))


# The logits come from transformers' own forward, since the manager returns none.
CONTENDER = dataclasses.replace(run_hf.CONTENDER, load=load, generate=generate, serve=serve, threaded=True)

if __name__ == "__main__":
    try:
        harness.run_job(CONTENDER)
    finally:
        for manager in MANAGERS:
            manager.stop(block=True, timeout=5)
