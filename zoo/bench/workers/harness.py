# B batch, T positions, V vocabulary
"""Run a contender's job: read it from argv, time it, and print the answer as the last line, in JSON.

Workers run by path, each in a fresh process, possibly under a Python without zoo, so they import only torch,
safetensors and the contender's own package. All timing is in this file. A contender only tells how it loads a model,
computes logits, generates, computes its loss and makes its optimizer.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from safetensors import safe_open

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Autocast = Callable[[], AbstractContextManager[Any]]
ADAMW = {"lr": 1e-4, "betas": (0.9, 0.95), "weight_decay": 0.1}
SPEND = 30.0  # seconds after which a measurement is not repeated: an explicit bf16 may be very slow
PROBED_LOGITS = 256  # values of the last position's logits that go into the comparison


@dataclass(frozen=True)
class Contender:
    """One implementation, as five functions.

    `load` gets the job and the dtype of the weights. `backward` gets ids, targets [B, T] and a context manager for its
    forward pass. It adds the gradient of the mean loss to the parameters' `.grad` and returns that loss.
    """

    version: str
    load: Callable[[dict[str, Any], torch.dtype], Any]
    logits: Callable[[Any, torch.Tensor], torch.Tensor]
    generate: Callable[[Any, torch.Tensor, int], torch.Tensor]
    backward: Callable[[Any, torch.Tensor, torch.Tensor, Autocast], float]
    optimizer: Callable[[Any], torch.optim.Optimizer]


def make_token_ids(batch: int, length: int, vocab_size: int) -> torch.Tensor:
    """Make the same token ids for every contender, by arithmetic: random generators differ between torch versions."""
    return (torch.arange(batch * length) * 7919 % vocab_size).view(batch, length)


def read_tensors(path: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Read the tensors of a safetensors file one by one. The file is reopened for each, as mapped pages would count as
    resident memory."""
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
    for name in names:
        with safe_open(path, framework="pt") as file:
            yield name, file.get_tensor(name)


def fill_model(model: torch.nn.Module, path: str, rename: Callable[[str], tuple[str, int]]) -> torch.nn.Module:
    """Copy a weights file into `model`. `rename(name)` gives the name in the model, and the row to start writing at.

    Raises KeyError for a weight that the model lacks, and ValueError if a weight of the model stays unwritten.
    """
    targets = model.state_dict()
    unwritten = {name: tensor.numel() for name, tensor in targets.items()}
    with torch.no_grad():
        for name, tensor in read_tensors(path):
            target, row = rename(name)
            targets[target][row : row + len(tensor)].copy_(tensor)
            unwritten[target] -= tensor.numel()
    if left := [name for name, count in unwritten.items() if count]:
        raise ValueError(f"the weights file does not fill {', '.join(left)}")
    return model


def build_as(dtype: torch.dtype, build: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    """Build a model with `dtype` as torch's default dtype, as transformers and Fabric do for a bf16 model."""
    torch.set_default_dtype(dtype)
    try:
        return build()
    finally:
        torch.set_default_dtype(torch.float32)


def make_backward(loss: Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]) -> Callable[..., float]:
    """Make `Contender.backward` from a differentiable loss."""

    def backward(model: Any, ids: torch.Tensor, targets: torch.Tensor, autocast: Autocast) -> float:
        with autocast():
            value = loss(model, ids, targets)
        value.backward()
        return value.item()

    return backward


def make_peer(
    *,
    version: str,
    build: Callable[[dict[str, Any]], torch.nn.Module],
    rename: Callable[[str, dict[str, Any]], tuple[str, int]],
    logits: Callable[[Any, torch.Tensor], torch.Tensor],
    generate: Callable[[Any, torch.Tensor, int], torch.Tensor],
    loss: Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor],
) -> Contender:
    """Make a peer's Contender. `build` gets the shape. `rename` gets a tensor's name in the weights file and the shape;
    it gives the name in the model and the first row. Training uses autograd and fused AdamW."""

    def load(job: dict[str, Any], dtype: torch.dtype) -> torch.nn.Module:
        model = build_as(dtype, lambda: build(job["shape"]))
        return fill_model(model, job["weights"], lambda name: rename(name, job["shape"]))

    return Contender(version, load, logits, generate, make_backward(loss), make_adamw)


def make_adamw(model: torch.nn.Module) -> torch.optim.Optimizer:
    """Make fused AdamW, the best choice on a CPU for every contender (the default loop is 4 times slower)."""
    return torch.optim.AdamW(model.parameters(), **ADAMW, fused=True)


def time_call(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def time_calls(run: Callable[[], object], most: int, spend: float = SPEND) -> list[float]:
    """Time up to `most` calls, as many as begin within `spend` seconds, at least one; give the seconds of each."""
    times = [time_call(run)]
    while len(times) < most and sum(times) < spend:
        times.append(time_call(run))
    return times


class Busy:
    """Measure this thread's CPU time ÷ wall time. Well below 1, something else was running."""

    def __enter__(self) -> "Busy":
        self.wall, self.cpu = time.perf_counter(), time.thread_time()
        return self

    def __exit__(self, *error: object) -> None:
        self.share = (time.thread_time() - self.cpu) / (time.perf_counter() - self.wall)


def sample_logits(contender: Contender, model: Any, job: dict[str, Any]) -> list[float]:
    """Sample the logits after a fixed prompt. They are equal for contenders that compute the same function."""
    with torch.inference_mode():
        last = contender.logits(model, make_token_ids(1, 32, job["shape"]["vocab_size"]))[0, -1].float()
    return last[:: max(1, len(last) // PROBED_LOGITS)].tolist()


def time_train(contender: Contender, job: dict[str, Any]) -> dict[str, Any]:
    """Time training steps after the first: forward, backward and optimizer on float32 weights; bf16 means autocast."""
    model = contender.load(job, torch.float32).train()
    optimizer = contender.optimizer(model)
    tokens = make_token_ids(job["batch"], job["length"] + 1, job["shape"]["vocab_size"])
    ids, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    losses: list[float] = []

    autocast = partial(torch.autocast, "cpu", torch.bfloat16, enabled=job["dtype"] == "bf16")

    def step() -> None:
        losses.append(contender.backward(model, ids, targets, autocast))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    with Busy() as busy:
        times = time_calls(step, job["repeats"])
    return {"seconds": times, "losses": losses, "rate": ids.numel() / statistics.median(times), "busy": busy.share}


def time_generate(contender: Contender, job: dict[str, Any]) -> dict[str, Any]:
    """Time greedy generation: `first` is the seconds to one new token (the prefill), `full` to all new tokens.

    The rate is of the tokens after the first, or of the prompt's tokens if only one new token is made.
    """
    model = contender.load(job, DTYPES[job["dtype"]]).eval()
    ids, new = make_token_ids(job["batch"], job["length"], job["shape"]["vocab_size"]), job["new_tokens"]
    logits = sample_logits(contender, model, job)

    def generate(count: int) -> None:
        made = contender.generate(model, ids, count).shape[-1]
        if made != count:
            raise ValueError(f"{made} new tokens came back, {count} were asked for")

    generate(min(new, 8))
    with Busy() as busy:
        first = time_calls(lambda: generate(1), job["repeats"])
        full = time_calls(lambda: generate(new), job["repeats"]) if new > 1 else []
    if full:
        rate = job["batch"] * (new - 1) / (statistics.median(full) - statistics.median(first))
    else:
        rate = ids.numel() / statistics.median(first)
    return {"first": first, "full": full, "rate": rate, "logits": logits, "busy": busy.share}


def compute_logits(contender: Contender, job: dict[str, Any]) -> dict[str, Any]:
    """Compute float32 logits, by which the contenders are compared before any of them is timed."""
    return {"logits": sample_logits(contender, contender.load(job, torch.float32).eval(), job)}


def measure_peak() -> int | None:
    """Give this process's peak resident memory in bytes; None where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def run_job(contender: Contender) -> None:
    """Run the job given on the command line, and print its answer as the last line of standard output."""
    job = json.loads(sys.argv[1])
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    workloads = {"check": compute_logits, "train": time_train, "decode": time_generate, "prefill": time_generate}
    answer = workloads[job["workload"]](contender, job)
    answer |= {"peak_bytes": measure_peak(), "torch": torch.__version__, "version": contender.version}
    print(json.dumps(answer))
