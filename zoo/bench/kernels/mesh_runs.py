"""Check `zoo train` on several GPUs: ten steps of every mesh compared with one GPU's losses, each form of checkpoint, a
killed process, and the MFU of an 8B model.

Each run is its own command, as a user starts it (launcher=torchrun): one that hangs costs one row of the report.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path

from zoo.bench.kernels.decoding import build_loud
from zoo.bench.kernels.generated_tokens import TIMES, measure_gap
from zoo.bench.kernels.processes import Measurement, ReportRow, Settings
from zoo.bench.kernels.whole_runs import MODELS, judge
from zoo.checkpoint.newest_checkpoint import choose_checkpoint
from zoo.checkpoint.store import save_model
from zoo.compose import load
from zoo.data.tokenizer import make_byte_tokenizer
from zoo.errors import CheckpointError
from zoo.runs import METRICS, read_lines

STEPS = 10

NEAR = 1e-3
"""Allowed difference between the float32 losses of a mesh and of one GPU, in nats."""

SOON = 30.0 + 15.0
"""Seconds within which all processes must end after one was killed. A process that waits in CUDA for a dead one does
not see SIGTERM; torchrun then waits 30 seconds, whatever its shutdown timeout, before SIGKILL (torch 2.13)."""

PATIENCE = 120.0
"""Time limit of one run, in seconds."""

FORMS = ("whole", "sharded", "async")

TENSOR = 2
"""Processes of tensor-parallel generation. The number divides the tiny model's heads."""

TEXTS = ("a", "the quick brown fox", "def main(argument, other): return argument + other")

SIZES = (
    *("batch_size=16", "seq_len=128", "data.max_bytes=1000000", "schedule=constant", "schedule.warmup=0"),
    *("optim.lr=1e-3", "eval_every=null", "sample=null", "precision=fp32", "compile=false"),
)

LARGE = (
    *("model=llama3-8b", "data.tokenizer.kind=byte", "seq_len=4096", "data.max_bytes=20000000", "parallel=fsdp"),
    *("eval_every=null", "save_every=null", "sample=null", "steps=1000"),
)
"""Options of the large run. The run is ended before it saves, because its checkpoint would take 96 GB."""

LARGE_SECONDS, LARGE_GPUS = 400.0, 8
"""Seconds within which the large run must finish its timed steps, and the least number of GPUs that can hold it."""

WARM, TIMED = 10, 30
"""Untimed and timed steps of the large run."""

GOAL = 0.42
"""Goal for the MFU of the large run, over eight H100."""


ACCOUNTING = (
    f"meshes: {STEPS} steps of a packaged tiny model in float32 by `zoo train launcher=torchrun`; a mesh passes if its "
    f"losses are those of one process within {NEAR}; a checkpoint, if a run that goes on from it has the losses of one "
    f"that was not interrupted; a killed process, if all others end within {SOON:.0f} s with an exit code above 0 and "
    "whole checkpoints, and the run goes on to the same losses; generation, by the rule of `tokens`. "
    f"8 B: Llama 3's shape with `zoo train`'s defaults over all GPUs, mean MFU of {TIMED} steps"
)


def list_jobs(settings: Settings, *, gpus: int) -> list[Measurement]:
    """List the jobs: each mesh of `gpus` processes, each form of checkpoint, a killed process, generation over two."""
    names = [name for name in list_meshes(gpus) if settings.device != "cpu" or "async" not in name]
    jobs = [(name, partial(train_mesh, settings, gpus, name)) for name in names]
    jobs += [(f"save {form}, and go on", partial(resume_half, settings, gpus, form)) for form in FORMS]
    jobs += [("a killed process, and go on", partial(kill_one, settings, gpus))]
    jobs += [(f"generate --tp {TENSOR}", partial(generate_apart, settings))]
    return [Measurement(f"{name} over {gpus}", run) for name, run in jobs]


def list_large_jobs(settings: Settings, *, gpus: int) -> list[Measurement]:
    """List the run of an 8B model. It is a part of its own, so that a mesh that hangs takes no time from it."""
    return [Measurement(f"train Llama 3 8B over {gpus}", partial(time_large, gpus))]


def list_meshes(gpus: int) -> dict[str, str]:
    """Return meshes of this many processes as name → value of `parallel`. On two processes each kind of parallelism is
    alone; on more it is combined with sharding. Multiples of four add hybrid sharding and combinations of two kinds."""
    rest = gpus // 2
    found = {"ddp": "ddp", "fsdp": "fsdp", "tp": f"{{shard: {rest}, tp: 2}}", "ep": "ep"}
    found |= {"cp": f"{{shard: {rest}, cp: 2}}", "cp ring": f"{{shard: {rest}, cp: 2, cp_comm: ring}}"}
    found |= {"tp async": f"{{shard: {rest}, tp: 2, async_tp: true}}", "pp": f"{{shard: {rest}, pp: 2}}"}
    if gpus % 4 == 0:
        quarter = gpus // 4
        found |= {"hsdp": "hsdp", "cp × tp": f"{{shard: {quarter}, cp: 2, tp: 2}}"}
        found |= {"pp × tp": f"{{shard: {quarter}, pp: 2, tp: 2}}"}
    return found


# ---------------------------------------------------------------- jobs


def train_mesh(settings: Settings, gpus: int, name: str) -> ReportRow:
    """Train on a mesh, and compare its losses with those of one process."""
    model = MODELS["experts" if name == "ep" else "dense"]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        options = [f"model={model}", f"parallel={list_meshes(gpus)[name]}"]
        options += ["accumulate=2"] if "pp" in name else []  # as many microbatches as stages, at least
        options += ["compile=true"] if "async" in name else []
        fault = run_zoo(settings, gpus, Path(folder, "run"), *options)
        seconds = time.perf_counter() - start
        return {
            "seconds": seconds,
            **compare(read_losses(Path(folder, "run")), train_alone(settings, gpus, model), fault),
        }


@cache
def train_alone(settings: Settings, gpus: int, model: str) -> tuple[float, ...]:
    """Train on one process, once for all meshes; return the losses. A microbatch has `gpus` sequences, as many as the
    mesh trains at once, because experts are balanced within a microbatch."""
    with tempfile.TemporaryDirectory() as folder:
        fault = run_zoo(settings, 1, Path(folder, "run"), f"model={model}", f"accumulate={gpus}")
        if fault is not None:
            raise RuntimeError(f"one process: {fault}")
        return read_losses(Path(folder, "run"))


def resume_half(settings: Settings, gpus: int, form: str) -> ReportRow:
    """Save half-way in this form of checkpoint, resume, and compare the losses with those of one process."""
    model, half = MODELS["dense"], STEPS // 2
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        options = (f"model={model}", "parallel=fsdp", f"checkpoint={form}", f"steps={half}")
        fault = run_zoo(settings, gpus, run, *options)
        if fault is None:
            fault = call_zoo(gpus, "--resume", str(run), f"steps={STEPS}")
        return compare(read_losses(run), train_alone(settings, gpus, model), fault)


def kill_one(settings: Settings, gpus: int) -> ReportRow:
    """Kill a process of a run that saves at every other step, check how the others end, and resume the run."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        options = (f"model={MODELS['dense']}", "parallel=fsdp", "steps=100000", "save_every=2")
        with started(gpus, *list_options(settings, run), *options) as launched:
            wait_until(launched, lambda: len(read_losses(run)) > 5)
            os.kill(find_workers(launched.pid)[-1], signal.SIGKILL)
            killed = time.perf_counter()
            with suppress(subprocess.TimeoutExpired):
                launched.wait(2 * SOON)
            seconds, code = time.perf_counter() - killed, launched.poll()
        faults = [] if seconds < SOON else [f"the others ended after {seconds:.0f} s"]
        faults += [] if code else [f"the exit code is {code}"]
        faults += list_leftovers(run)
        before = read_losses(run)
        fault = call_zoo(gpus, "--resume", str(run), f"steps={len(before) + 1}")
        again = compare(read_losses(run)[:-1], before, fault)  # of the steps after the checkpoint, a second time
        faults += [f"resumed, {again['fault']}"] if "fault" in again else []
    return judge({"seconds": seconds, "exit_code": code, "apart": again.get("apart")}, faults)


def list_leftovers(run: Path) -> list[str]:
    """List the faults of the checkpoints of a run that was killed: none was written, or one is incomplete."""
    try:
        chosen = choose_checkpoint(run, "", lambda folder, counters: None)
    except CheckpointError as error:
        return list(error.faults)
    return ["it has no checkpoint"] if chosen is None else list(chosen.passed)


def generate_apart(settings: Settings) -> ReportRow:
    """Generate with `zoo generate --tp` (on GPUs with CUDA graphs that hold NCCL's collectives). Compare each token
    with the logits of a full forward pass of the whole model, as `zoo.bench.kernels.generated_tokens` does."""
    spec, tokenizer = load(MODELS["dense"], ("vocab_size=257",)), make_byte_tokenizer()
    exact = build_loud(spec, settings.seed).to(settings.device).eval()
    model = build_loud(spec, settings.seed).to(settings.device).bfloat16().eval()
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, Path(folder, "model"), tokenizer)
        Path(folder, "prompts.txt").write_text("\n".join(TEXTS))
        asked = [*("--checkpoint", f"{folder}/model", "--prompt-file", f"{folder}/prompts.txt", "--temperature", "0")]
        asked += ["--max-new-tokens", "32", "--tp", f"{TENSOR}", "--out", f"{folder}/texts.jsonl", "--dtype", "bf16"]
        asked += ["--device", settings.device, *(["--graphs"] if settings.device == "cuda" else [])]
        if (fault := call([sys.executable, "-m", "zoo", "generate", *asked])) is not None:
            return judge({}, [fault])
        lines = [json.loads(line) for line in Path(folder, "texts.jsonl").read_text().splitlines()]
    written = {line["index"]: line["tokens"] for line in lines}
    gaps = [measure_gap(exact, model, tokenizer.encode(text), written[at]) for at, text in enumerate(TEXTS)]
    return judge({"worst": max(gaps)}, [] if max(gaps) <= TIMES else [f"a token lies {max(gaps):.1f} errors too low"])


def time_large(gpus: int) -> ReportRow:
    """Measure the MFU of an 8B model with the default settings, and end the run before it saves."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        options = (*LARGE, f"batch_size={2 * gpus}", f"hydra.run.dir={run}", "device=cuda")
        with started(gpus, *options) as launched:
            wait_until(launched, lambda: len(read_losses(run)) >= WARM + TIMED, LARGE_SECONDS)
        lines = [line for line in read_lines(run / METRICS) if "mfu" in line][WARM:]
        mfu = sum(line["mfu"] or 0.0 for line in lines) / len(lines)
        rate = sum(line["tokens_per_second"] for line in lines) / len(lines)
    return {"model": "Llama 3 8B", "mfu": mfu, "tokens_per_second": rate, "goal": GOAL}


def compare(losses: Sequence[float], wanted: Sequence[float], fault: str | None) -> ReportRow:
    """Compare a run's losses with `wanted`. The row passes if they differ by at most NEAR and `fault` is None."""
    if fault is not None or len(losses) != len(wanted):
        return judge({}, [fault or f"has {len(losses)} losses of {len(wanted)}"])
    gaps = [abs(a - b) for a, b in zip(losses, wanted, strict=True)]
    near = all(gap <= NEAR for gap in gaps)  # false for NaN
    return judge({"apart": max(gaps), "last": losses[-1]}, [] if near else [f"losses part by {max(gaps):.1e}"])


# ---------------------------------------------------------------- commands


def list_options(settings: Settings, folder: Path) -> tuple[str, ...]:
    """List the options that all small runs share."""
    small = ("seq_len=32",) if settings.quick else ()
    own = (f"device={settings.device}", f"seed={settings.seed}", f"steps={STEPS}", f"hydra.run.dir={folder}")
    return (*SIZES, *small, *own)


def run_zoo(settings: Settings, gpus: int, folder: Path, *options: str) -> str | None:
    """Run a small `zoo train` over `gpus` processes. Return the last line of its error output; None on success."""
    return call_zoo(gpus, *list_options(settings, folder), *options)


def call_zoo(gpus: int, *options: str) -> str | None:
    """Run `zoo train` to its end. Return the last line of its error output, or None if it succeeded."""
    return call(make_command(gpus, *options))


def call(command: list[str]) -> str | None:
    """Run a command to its end. Return the last line of its error output, or None if it succeeded."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return f"did not end in {PATIENCE:.0f} s"
    return (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1] if done.returncode else None


def make_command(gpus: int, *options: str) -> list[str]:
    """Make the command of a training run over `gpus` processes on this machine."""
    launcher = [] if gpus == 1 else ["launcher=torchrun", f"nproc={gpus}"]
    return [sys.executable, "-m", "zoo", "train", *options, *launcher]


@contextmanager
def started(gpus: int, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a training run in the background. On exit, kill all of its processes."""
    from torch.multiprocessing import _prctl_pr_set_pdeathsig as end_with_parent  # type: ignore[attr-defined]

    command = make_command(gpus, *options)
    launched = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=partial(end_with_parent, signal.SIGTERM),  # if this check is stopped
    )
    try:
        yield launched
    finally:
        for each in [*find_workers(launched.pid), launched.pid]:
            with suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        launched.wait()


def find_workers(parent: int) -> list[int]:
    """List the process ids of a process's children; for a launcher, its ranks in order of their start. Linux only."""
    with suppress(FileNotFoundError):
        return [int(each) for each in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    return []


def wait_until(launched: subprocess.Popen[bytes], happened: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Wait until `happened()` is true. Raises RuntimeError if the run ends first or `seconds` pass."""
    until = time.monotonic() + seconds
    while not happened():
        if launched.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"the run ended with {launched.poll()}, or took longer than {seconds:.0f} s")
        time.sleep(0.1)


def read_losses(run: Path) -> tuple[float, ...]:
    """Read the losses that a run has written so far."""
    if not (run / METRICS).is_file():
        return ()
    found = []
    for line in (run / METRICS).read_text().splitlines():
        with suppress(json.JSONDecodeError):  # a line that is being written
            found.append(json.loads(line).get("loss"))
    return tuple(loss for loss in found if loss is not None and math.isfinite(loss))
