"""`zoo train`: start a run, resume a run, or sweep over many, on Hydra's own engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from zoo.cli.common import ended_by_sigterm, print_note, say
from zoo.cli.completing import complete_training
from zoo.cli.multirun import SweepOptions, run_sweep
from zoo.cli.options import argument, flag, option
from zoo.distributed.world import read_world
from zoo.errors import ConfigError, FinishedRun

if TYPE_CHECKING:
    from zoo.jobs.plan import LaunchPlan
    from zoo.training.settings import Training

ConfigPart = Literal["job", "hydra", "all"]
"""The part of the composed config that --cfg prints."""

Info = Literal["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"]
"""Hydra's reports about the config or about Hydra."""


def run(
    overrides: list[str] | None = argument(
        "A packaged model or a YAML file, then overrides: n_layers=4 steps=100.",
        metavar="MODEL OVERRIDES",
        autocompletion=complete_training,
    ),
    multirun: bool = flag("Run one job for each combination of key=a,b,c.", "--multirun", "-m"),
    config: Path | None = option("A training config (YAML) to start from.", "--config", "-c"),
    trust: bool = flag("Trust the file of -c: it may set Hydra's own keys, which can run any program."),
    resume: Path | None = option(
        "Resume the run in this folder; RUN@STEP resumes from an earlier checkpoint.", metavar="RUN"
    ),
    cfg: ConfigPart | None = option("Print the composed YAML instead."),
    resolve: bool = flag("Print the composed YAML with its interpolations resolved."),
    info: Info | None = option("Print Hydra's own report instead."),
    show_data: bool = flag("Print the first three training sequences instead, with the tokens in the loss coloured."),
    *,
    options: SweepOptions,
) -> None:
    """Train a model, resume a run, or sweep over many (-m).

    The usual overrides: attention=mqa (an axis), n_layers=4 (a model key, short for model.n_layers=4), data=text
    data.path=FOLDER, steps=1000, batch_size=16, seq_len=256, optim.lr=1e-3, schedule=wsd, precision=bf16, device=cuda,
    hydra/launcher=joblib (with -m).

    Each run gets a folder below runs/. Each sweep gets one below sweeps/, with a folder for each of its jobs.
    Jobs that differ in nothing but the seed are one arm.
    """
    from zoo.jobs import plan as jobs

    overrides = _name_model(overrides or [])
    if resume is not None:
        if multirun or config or trust or cfg or info or resolve or show_data or options != SweepOptions():
            raise ConfigError("resume: takes overrides of what may change, and no other option (leave them out)")
        with ended_by_sigterm():
            return _resume(resume, overrides)
    if trust and config is None:
        raise ConfigError("trust: needs a file (-c FILE)")
    if cfg or resolve or info:
        with jobs.plan_launch(overrides, config=config, sweeps=multirun, check=False, trust=trust) as launch:
            _tell_left_out(launch)
            return _show(launch, cfg, resolve, info)
    if show_data:
        with jobs.plan_launch(overrides, config=config, sweeps=multirun, trust=trust) as launch:
            _tell_left_out(launch)
            return _show_rows(launch)
    asked = jobs.plan_launch(overrides, config=config, sweeps=multirun, keep_faulty=options.plan, trust=trust)
    with ended_by_sigterm(), asked as launch:
        _tell_left_out(launch)
        if launch.sweeps:
            _refuse_processes()
            run_sweep(launch, options)
        else:
            options.refuse_any()
            _run(launch, ["-c", str(config), *(["--trust"] if trust else [])] if config else [], overrides)


def _tell_left_out(launch: LaunchPlan) -> None:
    """Print which fields were dropped because their axis was swapped, each line once."""
    for note in dict.fromkeys(note for job in launch.jobs for note in job.left_out):
        print_note(note)


ROWS = 3
"""Rows that --show-data prints."""


def _show_rows(launch: LaunchPlan) -> None:
    """Print the first rows of a run (of a sweep, of its first job). Tokens that the loss is on are green; without
    colours they stand in ⟦ ⟧. A ┃ stands between packed documents."""
    from rich.text import Text

    from zoo.jobs.plan import task_config
    from zoo.jobs.train import decode_first_rows
    from zoo.report.console import make_console

    console = make_console()
    around = ("", "") if console.color_system else ("⟦", "⟧")
    for number, row in enumerate(decode_first_rows(task_config(launch.jobs[0]), ROWS), 1):
        console.print(f"row {number}", style="bold")
        looks = {True: ("green", *around), False: ("dim", "", ""), None: ("bold", "", "")}
        parts = [(each.text, looks[each.learned]) for each in row]
        console.print(Text.assemble(*((f"{left}{text}{right}", style) for text, (style, left, right) in parts)))


def _name_model(overrides: list[str]) -> list[str]:
    """Write a first argument without a key as the override `model=…`."""
    if overrides and "=" not in overrides[0] and not overrides[0].startswith("~"):
        return [f"model='{overrides[0]}'", *overrides[1:]]
    return overrides


def _run(plan: LaunchPlan, options: list[str], overrides: list[str]) -> None:
    """Run one job, in processes of its launcher if it has one."""
    from zoo.jobs.plan import task_config
    from zoo.training.planning import plan_training

    _start_processes(plan_training(task_config(plan.jobs[0])).settings, options, overrides, plan.make_folder)
    try:
        plan.run()
    except FinishedRun as error:  # restarted at its end
        if read_world().main:
            say(f"zoo: {error}")


def _refuse_processes() -> None:
    """Raise ConfigError if torchrun has started several processes, because each would run the whole sweep."""
    if (size := read_world().size) > 1:
        raise ConfigError(
            f"multirun: torchrun has started {size} processes, and each would run the sweep (one run of it)"
        )


def _start_processes(
    settings: Training, options: list[str], overrides: list[str], make_folder: Callable[[], Path]
) -> None:
    """If the run's config has a launcher, start its processes and exit with their code."""
    from zoo.jobs.launch import Command, start_processes

    code = start_processes(settings, Command(options, overrides), make_folder)
    if code is not None:
        raise typer.Exit(code)


def _resume(folder: Path, overrides: list[str]) -> None:
    from zoo.jobs import train as jobs
    from zoo.runs import remember, split_choice
    from zoo.training.planning import plan_resumption

    run, _ = split_choice(folder)
    settings = plan_resumption(run, overrides).settings
    _start_processes(settings, ["--resume", str(folder)], overrides, lambda: run)
    try:
        jobs.resume_run(folder, overrides)
    finally:
        remember(run)


def _show(plan: LaunchPlan, cfg: ConfigPart | None, resolve: bool, info: Info | None) -> None:
    """Print the composed config (of a sweep, that of the first job), or with `info` Hydra's own report on it. Raises
    ConfigError for interpolations that cannot be resolved."""
    from omegaconf.errors import OmegaConfBaseException

    from zoo.compose.fault_lines import shorten_error

    if info is not None:
        plan.hydra.show_info(info, plan.config_name, plan.jobs[0].overrides)
    else:
        plan.loader.resolves = resolve
        try:
            plan.hydra.show_cfg(plan.config_name, plan.jobs[0].overrides, cfg or "job", None, resolve)
        except OmegaConfBaseException as error:
            raise ConfigError(shorten_error(error)) from error
