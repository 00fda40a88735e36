"""`zoo bench`: race this implementation against others on the same shape, weights and threads; or check the errors and
the speed of the kernels on this device."""

import json
import sys
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

import typer


class Workload(StrEnum):
    """The thing that is timed."""

    train = "train"
    mlm = "mlm"
    decode = "decode"
    prefill = "prefill"
    batch = "batch"
    load = "load"
    engine = "engine"
    kernels = "kernels"


class Weights(StrEnum):
    """The precision of weights that are not the race's own."""

    fp16 = "fp16"
    bf16 = "bf16"
    int8 = "int8"
    int4 = "int4"


class HeldIsa(StrEnum):
    """The instruction set that every contender is held to."""

    avx2 = "avx2"
    avx512 = "avx512"


class CheckDevice(StrEnum):
    """The device whose kernels are checked."""

    cuda = "cuda"
    cpu = "cpu"


class RaceDtype(StrEnum):
    """The dtype of weights and arithmetic; bf16 training means autocast over float32 weights."""

    fp32 = "fp32"
    bf16 = "bf16"


def run(
    workload: Annotated[
        Workload,
        typer.Argument(
            help="train; mlm (BERT base trains); decode; prefill (time to the first token); batch (ragged requests "
            "together); load (from the shell to the first token of a folder); engine (zoo beside itself: what "
            "batching, schemas, speculation and determinism bring or cost); or kernels."
        ),
    ],
    against: Annotated[
        str,
        typer.Option(
            help="Peers to race, comma-separated: hf, hf_cb, litgpt, ctranslate2, onnx. Without it zoo runs alone."
        ),
    ] = "",
    peer_python: Annotated[
        list[str] | None, typer.Option(help="Python that has a peer installed: NAME=PATH, or one PATH for all peers.")
    ] = None,
    dtype: Annotated[
        RaceDtype | None,
        typer.Option(help="bf16 training is autocast over float32 weights. [default: fp32; load bf16]"),
    ] = None,
    weights: Annotated[
        Weights | None, typer.Option(help="Also race weights of this precision: zoo's, and those of peers that can.")
    ] = None,
    compiled: Annotated[
        bool,
        typer.Option("--compile", help="train, mlm, decode, prefill: every contender compiled; start-up is stated."),
    ] = False,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Rounds; each runs every contender once. [default: as --seconds allows]")
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0, help="No round begins that would end later; one at least is run.")
    ] = 300,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of each contender. [default: the number that is fastest now]")
    ] = None,
    isa: Annotated[HeldIsa | None, typer.Option(help="Hold every contender to an older instruction set.")] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Rows, or requests. [default: train 4, batch 32, else 1]")
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(
            min=1, help="Tokens of a row or prompt. [default: train 512, decode 32, prefill 1024, batch up to 256]"
        ),
    ] = None,
    new_tokens: Annotated[
        int | None, typer.Option(min=2, help="Tokens that follow. [default: decode 128, batch up to 64]")
    ] = None,
    shape: Annotated[str, typer.Option(help="Changes to the shape, comma-separated: d_model=64,n_layers=2")] = "",
    device: Annotated[CheckDevice, typer.Option(help="kernels only: a GPU, or with --quick a CPU.")] = CheckDevice.cuda,
    quick: Annotated[bool, typer.Option("--quick", help="kernels only: tiny sizes, whose speed says nothing.")] = False,
    fetched: Annotated[
        bool, typer.Option("--hub", help="kernels only: also those that are downloaded from the hub.")
    ] = False,
    out: Annotated[
        str,
        typer.Option(
            help="Write a JSON file; in a folder it is named by the instruction set and race, or date and card."
        ),
    ] = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the whole report, with the figures of every round.")
    ] = False,
) -> None:
    """Measure zoo beside transformers, LitGPT, CTranslate2 and onnxruntime-genai, and the machine's limits (CPU).

    Every contender has the same random weights and runs in turn, in fresh processes; ratios are of the same round.
    `kernels` compares each attention kernel with the eager one, then times kernels, training and decoding on a GPU, in
    ten minutes at most.
    """
    given = {"batch": batch, "length": length, "new_tokens": new_tokens, "dtype": dtype and dtype.value}
    races = {"against": against, "peer-python": peer_python, "shape": shape, "weights": weights, "compile": compiled}
    races |= {name.replace("_", "-"): value for name, value in given.items()} | {"isa": isa}
    checks = {"device": device is not CheckDevice.cuda, "quick": quick, "hub": fetched}
    if workload is Workload.kernels:
        _refuse(races, "races have it (train, decode, prefill, batch or load)")
        _check(device.value, quick, fetched, out, as_json)
        return
    _refuse(checks, f"{workload.value} has none (kernels has)")
    if workload is Workload.engine:
        _refuse({**races, "rounds": rounds, "shape": None}, "races have it (train, decode, prefill, batch or load)")
        _measure_engine(shape, seconds, threads, out, as_json)
        return
    options = {"rounds": rounds, "seconds": seconds, "threads": threads, "compile": compiled}
    options |= {"weights": weights.value if weights else "", "isa": isa.value if isa else ""}
    _race(workload.value, given | options, shape, against, peer_python or [], out, as_json)


def _race(
    workload: str, given: Mapping[str, Any], shape: str, against: str, peer_python: list[str], out: str, as_json: bool
) -> None:
    """Run a race, show its table, and write its report where --out says."""
    from zoo.bench import compare, plan, report, show
    from zoo.report.console import make_console

    place = report.check_place(out) if out else None
    race = plan.plan_race(workload, given, shape.split(",") if shape else [])
    pythons = plan.choose_interpreters(plan.parse_peers(against), peer_python)
    found = compare.run_race(race, pythons, tell=make_console(stderr=True).print)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        screen = make_console()
        screen.print(show.make_table(found))
        for line in show.list_notes(found):
            screen.print(line, style="dim")
    if place is not None:
        print(report.write_report(found, place), file=sys.stderr)


def _measure_engine(shape: str, seconds: float, threads: int | None, out: str, as_json: bool) -> None:
    """Run the engine's scenarios, show their table, and write the report where --out says."""
    from zoo.bench import compare, engine, plan, report, show
    from zoo.bench.shape import parse_shape
    from zoo.lazy import torch
    from zoo.report.console import make_console

    place = report.check_place(out) if out else None
    tell = make_console(stderr=True).print
    chosen = parse_shape(shape.split(",") if shape else [])
    race = plan.plan_race("decode", {}, [], threads=threads)
    race, processor = compare.settle_machine(race, sys.executable, tell)
    torch.set_num_threads(race.threads or 1)
    rows = engine.run_scenarios(chosen, seconds, tell)
    found = engine.make_report(rows, processor, race.threads or 1, chosen)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        make_console().print(show.make_scenario_table(found))
    if place is not None:
        print(report.write_report(found, place), file=sys.stderr)


def _refuse(options: Mapping[str, Any], why: str) -> None:
    """Raise ConfigError for options that the workload does not have."""
    from zoo.errors import ConfigError

    if faults := [f"--{name}: {why}" for name, value in options.items() if value]:
        raise ConfigError(*faults)


def _check(device: str, quick: bool, fetched: bool, out: str, as_json: bool) -> None:
    """Check the kernels, and show and write the report. Raises ZooError when a kernel failed its check."""
    from zoo.bench.kernels import checking, report
    from zoo.errors import ZooError

    place = report.check_place(out or None, device, quick)
    found = checking.check_kernels(device, quick=quick, fetched=fetched, tell=lambda line: print(line, file=sys.stderr))
    print(report.format_report(found) if as_json else report.format_table(found))
    if place is not None:
        print(report.write_report(found, place), file=sys.stderr)
    if failures := checking.list_failures(found):
        raise ZooError(f"kernels: {len(failures)} failures, the first: {failures[0]}")
