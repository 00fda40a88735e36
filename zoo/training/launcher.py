"""Settings that choose how a run's processes start: outside Zoo, by torchrun on this machine, or as a SLURM job."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveInt, field_validator

from zoo.spec import Spec
from zoo.training.packaged import make_count_check


class Launcher(Spec, axis="launcher", default="none"):
    """The way in which a run's processes start."""


class NoLauncher(Launcher, kind="none"):
    """Starts nothing: torchrun has started the processes, or there is only one."""


class TorchrunLauncher(Launcher, kind="torchrun"):
    """Start `nproc` processes on this machine."""


def _check_time(value: object) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):  # YAML reads 12:00:00 as the integer 43200
        raise ValueError(f"is the number {value} (a text, with its seconds: \"launcher.time='00:30:00'\")")
    if isinstance(value, str) and not re.fullmatch(r"\d+(:\d\d){1,2}|\d+-\d+(:\d\d){0,2}", value):
        raise ValueError(f"is {value!r}, which is no time of SLURM's ('00:30:00', '12:00:00' or '2-00:00:00')")
    return value


PATIENCE_OF_TORCHRUN = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
"""The environment variable for the seconds between SIGTERM and SIGKILL to torchrun's processes. The default of 30 is
too short to save a large model. torch before 2.13 ignores the variable."""


class SlurmLauncher(Launcher, kind="slurm"):
    """Write a job for SLURM and submit it: torchrun on `nodes` nodes, with `nproc` processes on each."""

    partition: str | None = None
    account: str | None = None
    time: Annotated[str | None, BeforeValidator(_check_time)] = None
    gpus: Annotated[int | Literal["auto"], BeforeValidator(make_count_check(0))] = "auto"
    cpus: Annotated[int | Literal["auto"], BeforeValidator(make_count_check(1))] | None = "auto"
    port: Annotated[int, Field(ge=1024, le=65535)] = 29500
    warning: PositiveInt = 300  # seconds before the job's limit at which processes get SIGTERM, to save a checkpoint
    lines: tuple[str, ...] = ()
    submit: bool = True

    @field_validator("partition", "account")
    @classmethod
    def is_one_word(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[\w.,@+-]+", value):
            raise ValueError(f"is {value!r}, which is no name of SLURM's (letters, digits and . , @ + -)")
        return value

    @field_validator("lines")
    @classmethod
    def are_single_lines(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if broken := next((each for each in value if not each.replace("\t", " ").isprintable()), None):
            raise ValueError(f"has {broken!r} as one line (an entry for each)")
        return value


def find_count_fault(name: str, value: int | None, kind: str) -> str | None:
    """Return why the number of processes, nodes or restarts does not suit a launcher; None if it does."""
    if name == "nproc" and value is None:
        return None if kind == "none" else f"is null, and launcher={kind} starts processes (nproc=2, say)"
    if kind == "none" and value != (usual := {"nproc": None, "nodes": 1, "restarts": 0}[name]):
        does, would = {"nproc": ("starts", "torchrun"), "nodes": ("starts", "slurm")}.get(
            name, ("restarts", "torchrun")
        )
        return f"is {value}, and nothing {does} them (launcher={would}, or {name}={'null' if usual is None else usual})"
    if kind == "torchrun" and name == "nproc" and value == 1:
        return "is 1, and one process needs no launcher (launcher=none nproc=null, or nproc=2)"
    if kind == "torchrun" and name == "nodes" and value != 1:
        return f"is {value}, and launcher=torchrun starts processes on this machine (nodes=1, or launcher=slurm)"
    return None
