# B batch, T positions, V vocabulary
"""Run the job of a contender built on torch: read it from argv, time it, and print the answer in JSON.

Workers run by path, each in a fresh process, possibly under a Python without zoo, so they import only torch,
safetensors and the contender's own package. All timing is here and in timing.py. A contender only tells how it loads a
model, computes logits, generates, computes its loss and makes its optimizer.
"""

import statistics
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timing
import torch
from safetensors import safe_open

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Autocast = Callable[[], AbstractContextManager[Any]]
ADAMW = {"lr": 1e-4, "betas": (0.9, 0.95), "weight_decay": 0.1}
PROBED_LOGITS = 256  # values of the last position's logits that go into the comparison


@dataclass(frozen=True)
class Contender:
    """One implementation, as functions. A function that it does not support is None."""

    version: str
    load: Callable[[dict[str, Any], torch.dtype], Any]
    logits: Callable[[Any, torch.Tensor], torch.Tensor]
    generate: Callable[[Any, torch.Tensor, int, dict[str, Any]], torch.Tensor]
    backward: Callable[[Any, torch.Tensor, torch.Tensor, Autocast], float] | None = None
    optimizer: Callable[[Any], torch.optim.Optimizer] | None = None
    serve: Callable[[Any, list[timing.Request], dict[str, Any]], timing.Rows] | None = None
    threaded: bool = False
    """Whether the work is done in another thread than the calling one."""
    describe: Callable[[], str] | None = None
    """Say how the products are computed, once the model is loaded."""
    compile: Callable[[Any], object] = torch.nn.Module.compile
    """Compile a model for training; by default as `torch.compile(model)` does, in Trainer and in LitGPT's scripts."""


def make_token_ids(batch: int, length: int, vocab_size: int) -> torch.Tensor:
    """Make the same token ids for every contender."""
    return torch.tensor(timing.make_rows(batch, length, vocab_size))


def read_tensors(folder: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Read the tensors of a folder's safetensors files one by one. A file is reopened for each tensor, because mapped
    pages would count as resident memory."""
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
        for name in names:
            with safe_open(path, framework="pt") as file:
                yield name, file.get_tensor(name)


def fill_model(model: torch.nn.Module, folder: str, rename: Callable[[str], tuple[str, int]]) -> torch.nn.Module:
    """Copy a folder's weights into `model`. `rename(name)` returns the name in the model, and the first row to write.

    Raises KeyError for a weight that the model lacks, and ValueError if a weight of the model stays unwritten.
    """
    targets = model.state_dict()
    unwritten = {name: tensor.numel() for name, tensor in targets.items()}
    with torch.no_grad():
        for name, tensor in read_tensors(folder):
            target, row = rename(name)
            targets[target][row : row + len(tensor)].copy_(tensor)
            unwritten[target] -= tensor.numel()
    if left := [name for name, count in unwritten.items() if count]:
        raise ValueError(f"the weights do not fill {', '.join(left)}")
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
    generate: Callable[[Any, torch.Tensor, int, dict[str, Any]], torch.Tensor],
    loss: Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor],
    **more: Any,
) -> Contender:
    """Make a peer's Contender. `build` gets the shape. `rename` gets a tensor's name in the weights file and the shape,
    and returns the name in the model and the first row. Training uses autograd and fused AdamW."""

    def load(job: dict[str, Any], dtype: torch.dtype) -> torch.nn.Module:
        model = build_as(dtype, lambda: build(job["shape"]))
        return fill_model(model, job["folder"], lambda name: rename(name, job["shape"]))

    return Contender(version, load, logits, generate, make_backward(loss), make_adamw, **more)


def make_adamw(model: torch.nn.Module) -> torch.optim.Optimizer:
    """Make fused AdamW, the best choice on a CPU for every contender (the default loop is 4 times slower)."""
    return torch.optim.AdamW(model.parameters(), **ADAMW, fused=True)


def make_targets(job: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Make ids and targets [B, T]. For `train` the targets are the next tokens. For `mlm` 15% of the ids are masked,
    and the targets of all others are -100."""
    vocab_size = job["shape"]["vocab_size"]
    tokens = make_token_ids(job["batch"], job["length"] + 1, vocab_size)
    if job["workload"] == "train":
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    ids = tokens[:, 1:].contiguous()
    hidden = torch.rand(ids.shape, generator=torch.Generator().manual_seed(job["seed"])) < 0.15
    return ids.masked_fill(hidden, vocab_size - 1), ids.masked_fill(~hidden, -100)


def sample_logits(contender: Contender, model: Any, job: dict[str, Any]) -> list[float]:
    """Sample the logits after a fixed prompt. They are equal up to rounding for contenders that compute the same
    function."""
    with torch.inference_mode():
        last = contender.logits(model, make_token_ids(1, 32, job["shape"]["vocab_size"]))[0, -1].float()
    return last[:: max(1, len(last) // PROBED_LOGITS)].tolist()


def time_train(contender: Contender, job: dict[str, Any]) -> dict[str, Any]:
    """Time training steps: forward, backward and optimizer on float32 weights; bf16 means autocast. `startup` is the
    seconds of the untimed first steps, which include compilation."""
    if contender.backward is None or contender.optimizer is None:
        raise timing.Absent("it does not train")
    model, backward = contender.load(job, torch.float32).train(), contender.backward
    optimizer = contender.optimizer(model)
    ids, targets = make_targets(job)
    losses: list[float] = []

    autocast = partial(torch.autocast, "cpu", torch.bfloat16, enabled=job["dtype"] == "bf16")

    def step() -> None:
        losses.append(backward(model, ids, targets, autocast))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    if job["compile"]:
        contender.compile(model)
    startup = timing.time_call(lambda: [step() for _ in range(2 if job["compile"] else 1)])
    with timing.Busy() as busy:
        times = timing.time_calls(step, job["spend"])
    found = {"full": times, "losses": losses, "rate": ids.numel() / statistics.median(times), "busy": busy.share}
    return found | {"startup": startup}


def time_generate(contender: Contender, job: dict[str, Any]) -> dict[str, Any]:
    """Time greedy generation; see `timing.time_generation`."""
    model = contender.load(job, DTYPES[job["dtype"]]).eval()
    ids = make_token_ids(job["batch"], job["length"], job["shape"]["vocab_size"])
    logits = sample_logits(contender, model, job)
    found = timing.time_generation(lambda count: contender.generate(model, ids, count, job).tolist(), job)
    return _complete(contender, found) | {"logits": logits}


def time_batch(contender: Contender, job: dict[str, Any]) -> dict[str, Any]:
    """Time ragged requests; see `timing.time_requests`."""
    if contender.serve is None:
        raise timing.Absent("it serves no ragged requests")
    model, serve = contender.load(job, DTYPES[job["dtype"]]).eval(), contender.serve
    logits = sample_logits(contender, model, job)
    found = timing.time_requests(lambda requests: serve(model, requests, job), job)
    return _complete(contender, found) | {"logits": logits}


def _complete(contender: Contender, found: dict[str, Any]) -> dict[str, Any]:
    """Add `ways`, which says how the products were computed, if the contender can say it. Set `busy` to None if the
    work is done in another thread, which the measurement does not see."""
    told = {} if contender.describe is None else {"ways": contender.describe()}
    return found | told | ({"busy": None} if contender.threaded else {})


def compute_logits(contender: Contender, job: dict[str, Any]) -> dict[str, Any]:
    """Compute float32 logits, which are compared between contenders before any is timed."""
    return {"logits": sample_logits(contender, contender.load(job, torch.float32).eval(), job)}


WORKLOADS: dict[str, Callable[[Contender, dict[str, Any]], dict[str, Any]]] = {
    "check": compute_logits,
    "train": time_train,
    "mlm": time_train,
    "decode": time_generate,
    "prefill": time_generate,
    "batch": time_batch,
}


def run_job(contender: Contender, load: Callable[[dict[str, Any]], dict[str, Any]] | None = None) -> None:
    """Run the job given on the command line, and print its answer. `load` opens a folder and writes one token."""

    def run(job: dict[str, Any]) -> dict[str, Any]:
        if job["threads"]:
            torch.set_num_threads(job["threads"])
        if job["workload"] == "load":
            if load is None:
                raise timing.Absent("it reads no Hugging Face folder")
            return load(job)
        return WORKLOADS[job["workload"]](contender, job)

    timing.answer_job(run, {"torch": torch.__version__, "version": contender.version})
