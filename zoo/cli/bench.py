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
    decode = "decode"
    prefill = "prefill"
    kernels = "kernels"


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
        Workload, typer.Argument(help="train, decode or prefill (time to the first token); or kernels.")
    ],
    against: Annotated[
        str, typer.Option(help="Peers to race, comma-separated: hf, litgpt. Without it zoo runs alone.")
    ] = "",
    peer_python: Annotated[
        list[str] | None, typer.Option(help="Python that has a peer installed: NAME=PATH, or one PATH for all peers.")
    ] = None,
    dtype: Annotated[RaceDtype, typer.Option(help="bf16 training is autocast over float32 weights.")] = RaceDtype.fp32,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; each runs every contender once, in a fresh process.")] = 5,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of each contender. [default: the number that is fastest now]")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Rows. [default: 4 for train, else 1]")] = None,
    length: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a row or prompt. [default: train 512, decode 32, prefill 1024]")
    ] = None,
    new_tokens: Annotated[int | None, typer.Option(min=2, help="Tokens that decode generates. [default: 128]")] = None,
    shape: Annotated[str, typer.Option(help="Changes to the shape, comma-separated: d_model=64,n_layers=2")] = "",
    device: Annotated[CheckDevice, typer.Option(help="kernels only: a GPU, or with --quick a CPU.")] = CheckDevice.cuda,
    quick: Annotated[bool, typer.Option("--quick", help="kernels only: tiny sizes, whose speed says nothing.")] = False,
    fetched: Annotated[
        bool, typer.Option("--hub", help="kernels only: also those that are downloaded from the hub.")
    ] = False,
    out: Annotated[
        str, typer.Option(help="kernels only: write a JSON file, or one named by date and card in a folder.")
    ] = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the whole report, with the figures of every round.")
    ] = False,
) -> None:
    """Measure zoo beside transformers and LitGPT, and beside the best that this machine can do (CPU).

    `kernels` compares each attention kernel with the eager one, then times kernels, training and decoding on a GPU, in
    ten minutes at most.
    """
    races = {"against": against, "peer-python": peer_python, "batch": batch, "length": length}
    races |= {"new-tokens": new_tokens, "shape": shape}
    checks = {"device": device is not CheckDevice.cuda, "quick": quick, "hub": fetched, "out": out}
    if workload is Workload.kernels:
        _refuse(races, "races have it (train, decode or prefill)")
        _check(device.value, quick, fetched, out, as_json)
        return
    _refuse(checks, f"{workload.value} has none (kernels has)")

    from rich.console import Console

    from zoo.bench import compare, plan, show

    given = {"batch": batch, "length": length, "new_tokens": new_tokens}
    changes = shape.split(",") if shape else []
    race = plan.plan_race(workload.value, given, changes, dtype=dtype.value, rounds=rounds, threads=threads)
    pythons = plan.choose_interpreters(plan.parse_peers(against), peer_python or [])
    report = compare.run_race(race, pythons, tell=Console(stderr=True, highlight=False).print)
    if as_json:
        print(json.dumps(report, indent=2))
        return
    screen = Console()
    screen.print(show.make_table(report))
    for line in show.list_notes(report):
        screen.print(line, style="dim", highlight=False)


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
