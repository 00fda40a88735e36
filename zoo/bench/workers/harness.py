# B batch, T positions, V vocabulary
"""What the workers of all contenders share: the job read from argv, the clock, and the line of JSON printed last.

These files run by path, each in a fresh process and possibly under an interpreter where zoo is not installed, so they
import only torch, safetensors and the contender's own package. Everything that is timed is written once, here: a
contender only says how it loads, scores, generates, computes its loss and makes its optimizer.
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

    `load` gets the job and the dtype of the weights. `backward` gets ids, the targets [B, T] and a context manager for
    its forward pass; it leaves the gradient of the mean loss on the parameters and gives that loss.
    """

    version: str
    load: Callable[[dict[str, Any], torch.dtype], Any]
    logits: Callable[[Any, torch.Tensor], torch.Tensor]
    generate: Callable[[Any, torch.Tensor, int], torch.Tensor]
    backward: Callable[[Any, torch.Tensor, torch.Tensor, Autocast], float]
    optimizer: Callable[[Any], torch.optim.Optimizer]


def token_ids(batch: int, length: int, vocab_size: int) -> torch.Tensor:
    """The same tokens for everyone, by arithmetic: random generators may differ between torch versions."""
    return (torch.arange(batch * length) * 7919 % vocab_size).view(batch, length)


def stored(path: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors of a safetensors file one by one; reopened for each, since mapped pages count as resident memory."""
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
    for name in names:
        with safe_open(path, framework="pt") as file:
            yield name, file.get_tensor(name)


def fill(model: torch.nn.Module, path: str, rename: Callable[[str], tuple[str, int]]) -> torch.nn.Module:
    """Copies a weights file into `model`; `rename(name)` says the target's name there and the row to start writing at.

    Raises KeyError for a weight the model lacks and ValueError when a weight of the model stays unwritten.
    """
    targets = model.state_dict()
    unwritten = {name: tensor.numel() for name, tensor in targets.items()}
    with torch.no_grad():
        for name, tensor in stored(path):
            target, row = rename(name)
            targets[target][row : row + len(tensor)].copy_(tensor)
            unwritten[target] -= tensor.numel()
    if left := [name for name, count in unwritten.items() if count]:
        raise ValueError(f"the weights file does not fill {', '.join(left)}")
    return model


def built_as(dtype: torch.dtype, build: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    """`build()` with `dtype` as torch's default: how transformers and Fabric themselves make a bf16 model."""
    torch.set_default_dtype(dtype)
    try:
        return build()
    finally:
        torch.set_default_dtype(torch.float32)


def backward_of(loss: Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]) -> Callable[..., float]:
    """`Contender.backward` from a loss that autograd can go back through."""

    def backward(model: Any, ids: torch.Tensor, targets: torch.Tensor, autocast: Autocast) -> float:
        with autocast():
            value = loss(model, ids, targets)
        value.backward()
        return value.item()

    return backward


def adamw(model: torch.nn.Module) -> torch.optim.Optimizer:
    """Fused AdamW: what a careful user of any contender would choose on a CPU (the default loop is 4x slower)."""
    return torch.optim.AdamW(model.parameters(), **ADAMW, fused=True)


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def repeat(run: Callable[[], object], most: int, spend: float = SPEND) -> list[float]:
    """Seconds of each of `most` calls, or of as many as begin within `spend` seconds: one at least."""
    times = [seconds(run)]
    while len(times) < most and sum(times) < spend:
        times.append(seconds(run))
    return times


class Busy:
    """The share of a stretch of time in which this thread had a core; well below 1, something else was running."""

    def __enter__(self) -> "Busy":
        self.wall, self.cpu = time.perf_counter(), time.thread_time()
        return self

    def __exit__(self, *error: object) -> None:
        self.share = (time.thread_time() - self.cpu) / (time.perf_counter() - self.wall)


def probe(contender: Contender, model: Any, job: dict[str, Any]) -> list[float]:
    """A spread of the logits that follow a fixed prompt: equal for contenders that compute the same function."""
    with torch.inference_mode():
        last = contender.logits(model, token_ids(1, 32, job["shape"]["vocab_size"]))[0, -1].float()
    return last[:: max(1, len(last) // PROBED_LOGITS)].tolist()


def time_train(contender: Contender, job: dict[str, Any]) -> dict[str, Any]:
    """Forward, backward and optimizer on float32 weights; bf16 means autocast. Seconds of each step after the first."""
    model = contender.load(job, torch.float32).train()
    optimizer = contender.optimizer(model)
    tokens = token_ids(job["batch"], job["length"] + 1, job["shape"]["vocab_size"])
    ids, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    losses: list[float] = []

    autocast = partial(torch.autocast, "cpu", torch.bfloat16, enabled=job["dtype"] == "bf16")

    def step() -> None:
        losses.append(contender.backward(model, ids, targets, autocast))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    with Busy() as busy:
        times = repeat(step, job["repeats"])
    return {"seconds": times, "losses": losses, "rate": ids.numel() / statistics.median(times), "busy": busy.share}


def time_generate(contender: Contender, job: dict[str, Any]) -> dict[str, Any]:
    """Greedy generation: `first` = seconds to one new token (the prefill), `full` = seconds to all of them.

    The rate is that of the tokens after the first, or of the prompt's tokens when only one new token is asked for.
    """
    model = contender.load(job, DTYPES[job["dtype"]]).eval()
    ids, new = token_ids(job["batch"], job["length"], job["shape"]["vocab_size"]), job["new_tokens"]
    logits = probe(contender, model, job)

    def generate(count: int) -> None:
        made = contender.generate(model, ids, count).shape[-1]
        if made != count:
            raise ValueError(f"{made} new tokens came back, {count} were asked for")

    generate(min(new, 8))
    with Busy() as busy:
        first = repeat(lambda: generate(1), job["repeats"])
        full = repeat(lambda: generate(new), job["repeats"]) if new > 1 else []
    if full:
        rate = job["batch"] * (new - 1) / (statistics.median(full) - statistics.median(first))
    else:
        rate = ids.numel() / statistics.median(first)
    return {"first": first, "full": full, "rate": rate, "logits": logits, "busy": busy.share}


def check(contender: Contender, job: dict[str, Any]) -> dict[str, Any]:
    """Float32 logits, in a process of its own: this is what decides that the contenders compute the same function."""
    return {"logits": probe(contender, contender.load(job, torch.float32).eval(), job)}


def peak_bytes() -> int | None:
    """The most memory that this process has held, in bytes; None where the system does not say (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def report(contender: Contender) -> None:
    """Runs the job given on the command line and prints its answer as the last line of standard output."""
    job = json.loads(sys.argv[1])
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    workloads = {"check": check, "train": time_train, "decode": time_generate, "prefill": time_generate}
    answer = workloads[job["workload"]](contender, job)
    answer |= {"peak_bytes": peak_bytes(), "torch": torch.__version__, "version": contender.version}
    print(json.dumps(answer))
