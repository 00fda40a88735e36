"""`zoo bench`: time this implementation against others on the same shape, weights and threads; or check the errors and
the speed of the kernels on this device."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from zoo.cli.common import WeightStorage, say
from zoo.cli.options import argument, flag, option, options
from zoo.errors import ZooError, refuse

if TYPE_CHECKING:
    from zoo.bench.racing import Tell

Workload = Literal["train", "mlm", "decode", "prefill", "batch", "load", "engine", "kernels"]
RACED = "races have it (train, decode, prefill, batch or load)"


@options()
class RaceOptions:
    """Options for the contenders, the shape and the length of a race."""

    against: str = option(
        "Implementations to compare with: hf,hf_cb,litgpt,ctranslate2,onnx. Without it zoo runs alone.",
        default="",
    )
    peer_python: list[str] | None = option(
        "Python interpreter that has an implementation of --against: NAME=PATH, or one PATH for all."
    )
    dtype: Literal["fp32", "bf16"] | None = option(
        "Dtype of the weights; training in bf16 is autocast over float32 weights. [default: fp32; load: bf16]"
    )
    weights: WeightStorage | None = option(
        "Also benchmark weights of this precision, where an implementation supports it."
    )
    compile: bool = flag("train, mlm, decode, prefill: torch.compile every implementation; start-up is timed apart.")
    rounds: int | None = option(
        "Number of rounds; in each, every implementation runs once. [default: as many as --seconds allows]", min=1
    )
    seconds: float = option(
        "Time budget: no new round starts if it would exceed it; at least one runs.", default=300, min=0
    )
    threads: int | None = option("Threads per implementation. [default: the fastest number, by a timed probe]", min=1)
    isa: Literal["avx2", "avx512"] | None = option("Restrict every implementation to an older instruction set.")
    batch: int | None = option("Sequences, or requests. [default: train 4, batch 32, else 1]", min=1)
    length: int | None = option(
        "Tokens per sequence or prompt. [default: train 512, decode 32, prefill 1024, batch up to 256]", min=1
    )
    new_tokens: int | None = option("Generated tokens. [default: decode 128, batch up to 64]", min=2)
    shape: str = option("Changes to model dimensions: d_model=64,n_layers=2.", default="")

    @property
    def given(self) -> dict[str, Any]:
        """The settings of a race, keyed as `zoo.bench.race_plan.plan_race` reads them."""
        rest = {name: value for name, value in vars(self).items() if name not in ("against", "peer_python", "shape")}
        return rest | {"weights": self.weights or "", "isa": self.isa or ""}

    def refuse(self, *names: str, why: str) -> None:
        """Raise ConfigError if one of these options is given."""
        refuse(f"--{name.replace('_', '-')}: {why}" for name in names if getattr(self, name))


@options()
class Checked:
    """Options for checking kernels."""

    device: Literal["cuda", "cpu"] = option("kernels only: cuda, or with --quick cpu.", default="cuda")
    quick: bool = flag("kernels only: use tiny sizes, whose timings are meaningless.")
    hub: bool = flag("kernels only: also check kernels downloaded from the hub.")
    gpus: int = option("kernels only: also check `zoo train` on this many GPUs, in every mesh.", default=1, min=1)
    minutes: float | None = option(
        "kernels only: time limit for everything. [default: 27; 42 with --gpus, 49 with --gpus 8]", metavar="MINUTES"
    )

    def refuse_any(self, why: str) -> None:
        """Raise ConfigError if one of the options is given."""
        given = {"device": self.device != "cuda", "quick": self.quick, "hub": self.hub, "minutes": self.minutes}
        given["gpus"] = self.gpus > 1
        refuse(f"--{name}: {why}" for name, value in given.items() if value)


def run(
    workload: Workload = argument(
        "train; mlm (BERT base trains); decode; prefill (time to the first token); batch (requests of different "
        "lengths); load (process launch to first token); engine (zoo with and without batching, schemas, speculation "
        "and determinism); or kernels.",
        default=...,
    ),
    *,
    race: RaceOptions,
    checked: Checked,
    out: str = option(
        "JSON file, or a folder (the name is then made from ISA and workload, or date and GPU).", default=""
    ),
    as_json: bool = flag("Print the whole report, with the measurements of every round.", "--json"),
) -> None:
    """Benchmark zoo on a CPU against transformers, LitGPT, CTranslate2, onnxruntime-genai and hardware limits.

    Every implementation has the same random weights and runs in turn, in fresh processes; ratios compare measurements
    of the same round. `kernels` compares each attention kernel with the eager one, then times kernels, training and
    decoding on a GPU (`make gpu-check`).
    """
    raced = ("against", "peer_python", "shape", "weights", "compile", "batch", "length", "new_tokens", "dtype", "isa")
    if workload == "kernels":
        race.refuse(*raced, why=RACED)
        _check(checked, out, as_json)
        return
    checked.refuse_any(f"{workload} has none (kernels has)")
    if workload == "engine":
        race.refuse(*(name for name in raced if name != "shape"), "rounds", why=RACED)
        _finish(_measure_engine, race, out, as_json)
    else:
        _finish(lambda race, tell: _race(workload, race, tell), race, out, as_json)


def _finish(
    measure: Callable[[RaceOptions, Tell], tuple[Any, Any, list[str]]], race: RaceOptions, out: str, as_json: bool
) -> None:
    """Measure; print the report, or its table and notes; and write the report to --out."""
    from zoo.bench import race_report
    from zoo.report import format_json
    from zoo.report.console import make_console

    place = race_report.check_place(out) if out else None
    found, table, notes = measure(race, make_console(stderr=True).print)
    if as_json:
        print(format_json(found))
    else:
        screen = make_console()
        screen.print(table)
        for line in notes:
            screen.print(line, style="dim")
    if place is not None:
        say(race_report.write_report(found, place))


def _race(workload: str, race: RaceOptions, tell: Tell) -> tuple[Any, Any, list[str]]:
    from zoo.bench import race_plan, racing, show

    planned = race_plan.plan_race(workload, race.given, race.shape.split(",") if race.shape else [])
    pythons = race_plan.choose_interpreters(race_plan.parse_peers(race.against), race.peer_python or [])
    found = racing.run_race(planned, pythons, tell=tell)
    return found, show.make_table(found), list(show.list_notes(found))


def _measure_engine(race: RaceOptions, tell: Tell) -> tuple[Any, Any, list[str]]:
    """Run the engine's scenarios; return the report, its table, and no notes."""
    from zoo.bench import engine_gains, race_plan, racing, show
    from zoo.bench.race_model import parse_shape
    from zoo.lazy import torch

    chosen = parse_shape(race.shape.split(",") if race.shape else [])
    planned = race_plan.plan_race("decode", {}, [], threads=race.threads)
    planned, processor = racing.settle_machine(planned, sys.executable, tell)
    torch.set_num_threads(planned.threads or 1)
    rows = engine_gains.run_scenarios(chosen, race.seconds, tell)
    found = engine_gains.make_report(rows, processor, planned.threads or 1, chosen)
    return found, show.make_scenario_table(found), []


def _check(asked: Checked, out: str, as_json: bool) -> None:
    """Check the kernels, and print and write the report. Raises ZooError if a kernel fails its check."""
    from zoo.bench.kernels import checking, kernel_report

    place = kernel_report.check_place(out or None, asked.device, asked.quick)
    keep = None if place is None else partial(kernel_report.write_report, path=place)
    given = {"fetched": asked.hub, "gpus": asked.gpus, "minutes": asked.minutes}
    found = checking.check_kernels(asked.device, quick=asked.quick, **given, tell=say, keep=keep)
    print(kernel_report.format_report(found) if as_json else kernel_report.format_table(found))
    if place is not None:
        say(kernel_report.write_report(found, place))
    if failures := checking.list_failures(found):
        raise ZooError(f"kernels: {len(failures)} failures, the first: {failures[0]}")
