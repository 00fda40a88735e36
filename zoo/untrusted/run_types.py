"""Declare the types of keys in the files of runs and sweeps. Pricing does not import this module, because it reads none
of these files."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field

from zoo.untrusted.json_file import COUNTED, JsonShape

Count = Annotated[int, Field(ge=0, lt=COUNTED)]
Number = Annotated[int, Field(ge=-COUNTED, lt=COUNTED)] | float
Work = Annotated[int, Field(ge=0, lt=COUNTED)] | Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""A figure that is added up in reports, such as FLOPs. It must be finite, unlike a loss."""
Words = list[str]

# ---------------------------------------------------------------- a run


class ByClass(JsonShape):
    """The metrics of one class in the last evaluation of a classifier."""

    precision: Number
    recall: Number
    f1: Number
    count: Count


class Result(JsonShape):
    """The outcome of a run (result.json), or later measurements of it (measured.json)."""

    status: str | None = None
    error: str | None = None
    model: str | None = None
    overrides: Words = Field(default_factory=list)
    params: Count | None = None
    steps: Count | None = None
    tokens: Count | None = None
    flops: Work | None = None
    train_loss: Number | None = None
    val_loss: Number | None = None
    bits_per_byte: Number | None = None
    val_accuracy: Number | None = None
    val_f1: Number | None = None
    val_mrr: Number | None = None
    val_pearson: Number | None = None
    val_spearman: Number | None = None
    val_reward_accuracy: Number | None = None
    val_reward_margin: Number | None = None
    val_reward_chosen: Number | None = None
    val_reward_rejected: Number | None = None
    seconds: Number | None = None
    tokens_per_second: Number | None = None
    mfu: Number | None = None
    peak_memory: Number | None = None
    by_class: dict[str, ByClass] = Field(default_factory=dict)
    val_pieces: list[Annotated[list[Number], Field(min_length=2, max_length=2)]] = Field(default_factory=list)


class MetricsLine(JsonShape):
    """A line of metrics.jsonl. Unknown metrics may be numbers, texts or null."""

    __pydantic_extra__: dict[str, Number | str | None]  # type: ignore[override]  # the type by which pydantic checks

    step: Count
    tokens: Count | None = None
    flops: Work | None = None
    loss: Number | None = None
    val_loss: Number | None = None
    bits_per_byte: Number | None = None
    tokens_per_second: Number | None = None
    trained_tokens: Number | None = None


class RunConfig(JsonShape):
    """The keys of a run's config.yaml that reports read."""

    seed: Count | None = None
    seq_len: Annotated[int, Field(gt=0, lt=2**40)] | None = None
    model: dict[str, Any] | None = None
    objective: dict[str, Any] | str | None = None


class LoggerNote(JsonShape):
    """The keys of a logger.json, which names the run of an experiment tracker."""

    kind: str
    key: str | None = None


# ---------------------------------------------------------------- a sweep


class TrialRecord(JsonShape):
    """A job's trial in a search by optuna: the study, the trial's number, and the number of steps of a full-length
    run."""

    model_config = ConfigDict(extra="forbid")

    study: str
    number: Count
    steps: Count


class SweepJob(JsonShape):
    """A job of a sweep."""

    overrides: Words
    arm: str = ""
    label: str = ""
    seed: Count | None = None
    predicted: dict[str, Number | None] = Field(default_factory=dict)
    trial: TrialRecord | None = None


class SearchRecord(JsonShape):
    """The search of an arm's learning rate."""

    best: Number
    val_loss: Number
    window: Number
    losses: dict[str, Number | None]
    open: bool
    edge: bool
    extended: bool
    pruned: Count | None = None
    width: Count | None = None


class MatchRecord(JsonShape):
    """How the costs of a sweep's arms were made equal: the cost, the dimension that was solved for, the arms."""

    budget: str
    by: str
    arms: list[dict[str, Any]]


class SweepRecord(JsonShape):
    """The content of a sweep.json (`zoo.jobs.sweep`)."""

    launches: list[dict[str, Any]] = Field(default_factory=list)
    jobs: dict[str, SweepJob] = Field(default_factory=dict)
    search: dict[str, SearchRecord] = Field(default_factory=dict)
    match: MatchRecord | None = None
