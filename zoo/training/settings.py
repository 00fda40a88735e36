"""Validate the training config, except its model and its data."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
)

from zoo.costs.again import explain_unknown
from zoo.data.held_out_rows import EvalPart
from zoo.errors import ConfigError
from zoo.run.fp8 import MULTIPLE
from zoo.sampling.options import Sampling
from zoo.spec import Spec
from zoo.training.averages import Average
from zoo.training.dropout import Dropout
from zoo.training.launcher import Launcher, NoLauncher, find_count_fault
from zoo.training.loggers import Logger, NoLogger
from zoo.training.mesh_settings import ParallelSettings
from zoo.training.objective import Objective
from zoo.training.optim import Optim
from zoo.training.packaged import read_packaged
from zoo.training.parametrisation import Parametrisation, Standard
from zoo.training.schedule import Schedule
from zoo.training.start.lora import Lora

if TYPE_CHECKING:
    from pydantic import ValidationInfo

    from zoo.model.tower import Topology

FP8 = "fp8_"  # the prefix of a float8 recipe


def _named(axis: str) -> BeforeValidator:
    """Make a validator by which a field can be given as the name of a packaged choice."""
    return BeforeValidator(partial(read_packaged, axis))


class SampleSettings(Spec, axis="sample", default="text"):
    """A sample of the model's output, taken at each evaluation."""


class TextSample(SampleSettings, kind="text"):
    """Continue a prompt."""

    prompt: str | None = None
    """The text to continue (in a run on conversations, a user's turn); null: the objective's own prompt."""
    tokens: PositiveInt = 64
    """The largest number of new tokens."""
    temperature: float = 0.8
    """The temperature of the draws; 0: greedy decoding."""

    @field_validator("temperature")
    @classmethod
    def can_be_drawn_at(cls, value: float) -> float:
        try:
            Sampling.checked(temperature=value)
        except ConfigError as error:
            raise ValueError(error.faults[0].removeprefix("temperature: ")) from None
        return value


class Training(Spec, axis="command", kind="train", default="train"):
    """The settings of a run. `…_every` counts steps; null means only at the end. `auto` is replaced for the device and
    the mesh before a run is built (`zoo.training.device_defaults`)."""

    steps: PositiveInt
    batch_size: PositiveInt  # rows of one optimizer step
    accumulate: PositiveInt = 1  # number of microbatches in a batch
    seq_len: PositiveInt
    seed: NonNegativeInt = 0
    data_seed: NonNegativeInt | None = None  # of the order and the corruption of rows; null: seed
    clip: PositiveFloat | None = 1.0  # maximum norm of the gradient; null: no clipping
    precision: Literal["auto", "fp32", "bf16", "bf16_master", "bf16_pure", "fp8_tensorwise", "fp8_rowwise"] = (
        "auto"  # dtype of matrix products (`zoo.training.precision`); trained weights are float32, except in bf16_pure
    )
    compile: Literal["auto", True, False] = "auto"  # whether to compile layers (`zoo.training.compiling`)
    offload: Literal["none", "states"] = "none"  # optimizer states kept in host memory between updates; CUDA only
    recompute: str = "none"  # activations to recompute: none, selective, full or every_n (`zoo.run.recompute`)
    device: str = "auto"
    kernel: str = "auto"
    log_every: PositiveInt | None = 1
    eval_every: PositiveInt | None = None
    eval_batches: PositiveInt | None = None  # of batch_size rows, spread over the validation split; null: all of it
    eval_part: EvalPart = (
        "all"  # rows of the validation split that are read: a search has one half, its verdict the other
    )
    save_every: PositiveInt | None = None
    checkpoint: Literal["auto", "whole", "sharded", "async"] = "auto"  # how checkpoints are written
    keep: PositiveInt = 2  # number of newest checkpoints kept
    keep_best: NonNegativeInt = 0  # number of best checkpoints kept in addition
    skip_nonfinite: NonNegativeInt = 10  # consecutive non-finite updates that end the run; 0: the first does
    ema: Average | None = None  # exponential moving average of the weights, or its decay
    lawa: Annotated[int, Field(ge=2)] | None = None  # number of newest checkpoints averaged
    eval_weights: Literal["model", "ema", "lawa"] = "model"  # weights to evaluate and sample from
    sample: SampleSettings | None = None
    router_bias_rate: NonNegativeFloat | None = None  # step of selection biases; null: 0.001
    weights: str | None = None  # folder of the initial weights; null: drawn from the seed
    other_tokenizer: bool = False  # embeddings of the weights are kept under a tokenizer that numbers other tokens
    deepen: Literal["stack", "identity"] = "stack"  # how added layers are initialised from these weights
    freeze: tuple[str, ...] = ()  # patterns of the names of weights that do not train
    train: tuple[str, ...] = ()  # patterns of the names of weights that train; empty: all
    lora: Lora | None = None
    dropout: Dropout | None = None
    objective: Objective
    optim: Optim
    schedule: Schedule
    parametrisation: Parametrisation = Standard()
    parallel: Annotated[ParallelSettings, _named("parallel")] = ParallelSettings()  # how processes share the run
    launcher: Annotated[Launcher, _named("launcher")] = NoLauncher()  # how the processes start
    nproc: PositiveInt | None = None  # processes that the launcher starts on each node
    nodes: PositiveInt = 1
    restarts: NonNegativeInt = 0  # restarts by the launcher after a process is lost
    logger: Logger = NoLogger()  # an experiment tracker that also gets the metrics

    @field_validator("accumulate")
    @classmethod
    def splits_the_batch(cls, value: int, info: ValidationInfo) -> int:
        rows = info.data.get("batch_size", value)
        if rows % value:
            even = ", ".join(str(n) for n in range(1, rows + 1) if rows % n == 0)
            raise ValueError(f"is {value}, which does not divide batch_size={rows} (one of: {even})")
        return value

    @field_validator("precision")
    @classmethod
    def has_the_tokens_for_it(cls, value: str, info: ValidationInfo) -> str:
        batch, parts, length = (info.data.get(name) for name in ("batch_size", "accumulate", "seq_len"))
        if value.startswith(FP8) and batch and parts and length and batch // parts * length % MULTIPLE:
            found = f"found {batch // parts} rows of {length} at a time"
            raise ValueError(
                f"is {value}, which takes tokens by multiples of {MULTIPLE}, {found} (precision=bf16 would do)"
            )
        return value

    @field_validator("recompute")
    @classmethod
    def can_be_recomputed(cls, value: str, info: ValidationInfo) -> str:
        if reason := explain_unknown(value):
            raise ValueError(reason)
        if value == "selective" and info.data.get("compile") is True:
            raise ValueError(
                "is selective, inside of layers that are compiled whole (recompute=full, or compile=false)"
            )
        return value

    @field_validator("device")
    @classmethod
    def can_be_trained_on(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu(:0)?|cuda(:\d+)?", value):
            raise ValueError(f"is {value!r}, which trains nothing (one of: auto, cpu, cuda, cuda:N)")
        return value

    @field_validator("nproc", "nodes", "restarts")
    @classmethod
    def is_of_a_launcher(cls, value: int | None, info: Any) -> int | None:
        launcher = info.data.get("launcher")
        if launcher is not None and (fault := find_count_fault(info.field_name, value, launcher.kind)):
            raise ValueError(fault)
        return value

    @field_validator("lawa")
    @classmethod
    def has_its_checkpoints(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("save_every", 1) is None:
            raise ValueError(f"is {value}, and one checkpoint is saved, at the end (save_every=100, say)")
        if value is not None and info.data.get("keep", value) < value:
            raise ValueError(f"is {value}, more than are kept, keep={info.data['keep']} (keep={value})")
        return value

    @field_validator("eval_weights")
    @classmethod
    def are_there_to_evaluate(cls, value: str, info: ValidationInfo) -> str:
        if value != "model" and info.data.get(value, 0) is None:
            would = {"ema": "ema=0.999", "lawa": "lawa=5"}[value]
            raise ValueError(f"is {value}, which the run does not keep ({would}, or eval_weights=model)")
        saves, evaluates = info.data.get("save_every"), info.data.get("eval_every")
        if value == "lawa" and saves and (evaluates or saves) % saves:
            raise ValueError(f"is lawa, which changes with a checkpoint alone (eval_every a multiple of {saves})")
        return value

    @field_validator("schedule")
    @classmethod
    def fits_the_run(cls, value: Schedule, info: ValidationInfo) -> Schedule:
        fault = value.fault(info.data["steps"]) if "steps" in info.data else None
        if fault is not None:
            raise ValueError(fault)
        return value

    @property
    def row_seed(self) -> int:
        """The seed of the order of the rows, and of random draws within rows."""
        return self.seed if self.data_seed is None else self.data_seed

    @property
    def recipe(self) -> str | None:
        """The float8 recipe (`zoo.run.fp8.RECIPES`), or None."""
        return self.precision.removeprefix(FP8) if self.precision.startswith(FP8) else None

    @property
    def pure(self) -> bool:
        """Whether trained weights are bfloat16 (`zoo.training.precision`)."""
        return self.precision == "bf16_pure"

    @property
    def arithmetic(self) -> str:
        """The precision, fp32 or bf16, of products other than float8 ones; MFU refers to this precision's peak. fp32
        until `auto` is settled."""
        return "fp32" if self.precision in ("auto", "fp32") else "bf16"

    @property
    def autocast(self) -> str:
        """The precision that forward passes are autocast to; fp32 means no autocast. In bf16_pure the weights are
        bfloat16 already."""
        return "fp32" if self.pure else self.arithmetic


def find_optimizer_mismatches(settings: Training, spec: Topology) -> list[str]:
    """List settings that conflict with the optimizer, and parts that the parametrisation has no rule for."""
    faults = [f"optim.{fault}" for fault in settings.optim.refuses(spec)]
    if reason := settings.optim.whole_step:
        kind = settings.optim.kind
        if settings.pure:
            faults.append(f"precision: is bf16_pure, and {kind} {reason} (bf16_master, or optim=adamw)")
        if settings.offload != "none":
            faults.append(f"offload: is {settings.offload}, and {kind} {reason} (none, or optim=adamw)")
    if settings.optim.decay == "hyperball" and settings.pure:
        faults.append(
            "precision: is bf16_pure, whose rounding lengthens what hyperball keeps (bf16, bf16_master, fp32)"
        )
    faults += [f"parametrisation: {fault}" for fault in settings.parametrisation.refuses(spec, settings.optim)]
    if settings.optim.averages:
        kind = settings.optim.kind
        if settings.schedule.kind != "constant":
            found = f"is {settings.schedule.kind}, and {kind} averages weights where others decay the rate"
            faults.append(f"schedule: {found} (schedule=constant would do)")
        for name in ("ema", "lawa"):
            if getattr(settings, name) is not None:
                faults.append(f"{name}: averages what {kind} averages itself (leave it out)")
    return faults
