"""Check `zoo train` from end to end on a device: its defaults, five architectures, every precision, and resuming from a
checkpoint."""

from __future__ import annotations

import math
import tempfile
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.bench.kernels.processes import Measurement, ReportRow, Settings
from zoo.errors import ZooError
from zoo.lazy import torch

if TYPE_CHECKING:
    from zoo.training.result import TrainingResult

NEAR = 0.2
"""Allowed excess of a run's last loss over that of float32, in nats."""

SAME = 0.02
"""Allowed difference between the losses of a resumed run and of an uninterrupted one, in nats. On CUDA, atomic sums are
rounded differently each time."""

ACCOUNTING = (
    "runs: packaged tiny models on Python's standard library. A run passes if its loss falls by 0.1 nats, and if it "
    f"has evaluated, sampled and saved; changed, if its last loss is at most {NEAR} nats above float32's; resumed, if "
    f"its losses are those of an uninterrupted run within {SAME}. priced is the peak of a step's memory by zoo.costs, "
    "allocated is torch's peak of the whole run"
)

MODELS = {
    "dense": "llama-tiny",
    "experts": "mixtral-tiny",
    "MLA": "deepseek-tiny",
    "hybrid": "qwen3-next-tiny",
    "encoder-decoder": "t5-tiny",
}
"""A packaged model of each architecture, by its name in the report."""

CHANGES = (
    *("precision=bf16_master", "precision=bf16_pure", "precision=fp8_tensorwise", "precision=fp8_rowwise"),
    *("offload=states", "recompute=full", "compile=true"),
)
"""Overrides that each change one setting of the default run. They should hardly change its losses."""

SIZES = (
    "batch_size=8",
    "seq_len=128",
    "data.max_bytes=2000000",
    "schedule=constant",
    "schedule.warmup=5",
    "optim.lr=2e-3",
)


def list_jobs(settings: Settings) -> list[Measurement]:
    """List the runs. The first uses the defaults; the others change it."""
    jobs = [(f"train {name}", partial(train_model, settings, model)) for name, model in MODELS.items()]
    jobs += [(f"train dense, {change}", partial(train_changed, settings, change)) for change in CHANGES]
    jobs += [("save, and go on", partial(resume_half, settings))]
    return [Measurement(name, run) for name, run in jobs]


def count_steps(settings: Settings) -> int:
    """Return the number of steps of a run."""
    return 12 if settings.quick else 60


def train_model(settings: Settings, model: str, *overrides: str) -> ReportRow:
    """Train a model, and check that its loss falls and that it has a validation loss, a sample and a checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        result = train(settings, model, Path(folder), *overrides)
        losses = list_losses(result)
        first, last = losses[0], sum(losses[-3:]) / 3
        faults = {
            f"its loss goes from {first:.3f} to {last:.3f}": not last < first - 0.1,
            "it has no validation loss": not math.isfinite(result["val_loss"] or math.nan),
            "it has no sample": model != MODELS["encoder-decoder"] and not (result.folder / "samples.txt").is_file(),
            "it has no checkpoint": not Path(result["checkpoint"]).is_dir(),
        }
        row = {"model": model, "first": first, "last": last, "tokens_per_second": result["tokens_per_second"]}
        return judge({**row, **compare_memory(settings, result)}, [fault for fault, found in faults.items() if found])


def train_changed(settings: Settings, change: str) -> ReportRow:
    """Train the dense model with one setting changed, and compare its last loss with that of float32."""
    plain = train_plain(settings.device, settings.quick, settings.seed)
    try:
        row = train_model(settings, MODELS["dense"], change)
    except ZooError as error:  # a device or a package lacks it
        return {"refused": str(error)}
    worse = row["last"] - plain["last"]
    faults = [row["fault"]] if "fault" in row else []
    return judge({**row, "above_fp32": worse}, [*faults, *([f"is {worse:.3f} above float32"] if worse > NEAR else [])])


@cache
def train_plain(device: str, quick: bool, seed: int) -> ReportRow:
    """Train the dense model in float32. The cached result serves all comparisons."""
    return train_model(Settings(device, quick, seed), MODELS["dense"], "precision=fp32")


def resume_half(settings: Settings) -> ReportRow:
    """Train half of the steps, resume from the checkpoint, and compare the losses with an uninterrupted run's."""
    import zoo

    steps = count_steps(settings)
    with tempfile.TemporaryDirectory() as folder:
        whole = list_losses(train(settings, MODELS["dense"], Path(folder, "whole")))
        first = train(settings, MODELS["dense"], Path(folder, "parts"), f"steps={steps // 2}")
        second = zoo.train(resume=first.folder, overrides=[f"steps={steps}"])
        apart = max(abs(a - b) for a, b in zip(whole, list_losses(second), strict=True))
    return judge({"apart": apart}, [f"losses part by {apart:.1e}"] if not apart <= SAME else [])


def train(settings: Settings, model: str, folder: Path, *overrides: str) -> TrainingResult:
    """Train a model in a folder, with this device's defaults and the `overrides`."""
    import zoo

    steps = count_steps(settings)
    own = [f"device={settings.device}", f"seed={settings.seed}", f"steps={steps}", f"eval_every={steps // 2}"]
    if settings.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    return zoo.train(model, [*SIZES, *own, "eval_batches=4", f"hydra.run.dir={folder / 'run'}", *overrides])


def list_losses(result: TrainingResult) -> list[float]:
    """List the training losses of a run's steps."""
    return [float(loss) for loss in result.history["loss"] if math.isfinite(loss)]


def compare_memory(settings: Settings, result: TrainingResult) -> dict[str, Any]:
    """Return the predicted and the allocated peak of a step's memory, in bytes; {} on a CPU."""
    if settings.device != "cuda":
        return {}
    from zoo.training.memory_fit import price_training
    from zoo.training.planning import plan_resumption

    planned = plan_resumption(result.folder, ())
    rows = planned.settings.batch_size // planned.settings.accumulate
    priced = price_training(planned.settings, planned.spec, rows)["peak"]
    return {"priced": priced, "allocated": torch.cuda.max_memory_allocated()}


def judge(row: ReportRow, faults: list[str]) -> ReportRow:
    """Add `passed` and the faults to a row."""
    return {**row, "passed": not faults, **({"fault": "; ".join(faults)} if faults else {})}
