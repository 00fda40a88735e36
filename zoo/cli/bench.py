"""`zoo bench`: races this implementation against others, on the same shape, weights and threads; or checks what kernels
the device at hand has, how right and how fast they are."""

import json
import sys
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

import typer


class Workload(StrEnum):
    """What is timed."""

    train = "train"
    decode = "decode"
    prefill = "prefill"
    kernels = "kernels"


class CheckDevice(StrEnum):
    """Where kernels are checked."""

    cuda = "cuda"
    cpu = "cpu"


class RaceDtype(StrEnum):
    """Of the weights and arithmetic; bf16 training means autocast over float32 weights."""

    fp32 = "fp32"
    bf16 = "bf16"


def run(
    workload: Annotated[
        Workload, typer.Argument(help="train, decode or prefill (time to the first token); or kernels.")
    ],
    against: Annotated[str, typer.Option(help="Peers to race, comma-separated: hf, litgpt. None: zoo alone.")] = "",
    peer_python: Annotated[
        list[str] | None, typer.Option(help="Interpreter that has a peer: NAME=PATH, or one PATH for all peers.")
    ] = None,
    dtype: Annotated[RaceDtype, typer.Option(help="bf16 training is autocast over float32 weights.")] = RaceDtype.fp32,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; each runs every contender once, in a fresh process.")] = 5,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of each contender; as many as compute fastest now.")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Rows; 4 for train, else 1.")] = None,
    length: Annotated[int | None, typer.Option(min=1, help="Tokens of a row or prompt; 512, 32 or 1024.")] = None,
    new_tokens: Annotated[int | None, typer.Option(min=2, help="Tokens that decode generates; 128.")] = None,
    shape: Annotated[str, typer.Option(help="Changes to the shape, comma-separated: d_model=64,n_layers=2")] = "",
    device: Annotated[CheckDevice, typer.Option(help="Of kernels: a GPU, or with --quick a CPU.")] = CheckDevice.cuda,
    quick: Annotated[bool, typer.Option("--quick", help="Of kernels: tiny sizes, whose speed says nothing.")] = False,
    fetched: Annotated[bool, typer.Option("--hub", help="Of kernels: those too that the hub has to send.")] = False,
    out: Annotated[str, typer.Option(help="Of kernels: a JSON file, or a folder for one named by date and card.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="The whole report, every round's figures included.")] = False,
) -> None:
    """Measure zoo beside transformers and LitGPT, and beside what this machine can do at best (CPU). `kernels` holds
    each attention kernel against eager instead, then times kernels, training and decoding, in ten minutes at most."""
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
    """Raises ConfigError for options that were given to a workload which has no such thing."""
    from zoo.errors import ConfigError

    if faults := [f"--{name}: {why}" for name, value in options.items() if value]:
        raise ConfigError(*faults)


def _check(device: str, quick: bool, fetched: bool, out: str, as_json: bool) -> None:
    """Checks the kernels; raises ZooError when something is against the rules, once all is shown and written."""
    from zoo.bench.kernels import checking, report
    from zoo.errors import ZooError

    place = report.check_place(out or None, device, quick)
    found = checking.check_kernels(device, quick=quick, fetched=fetched, tell=lambda line: print(line, file=sys.stderr))
    print(report.format_report(found) if as_json else report.format_table(found))
    if place is not None:
        print(report.write_report(found, place), file=sys.stderr)
    if failures := checking.list_failures(found):
        raise ZooError(f"kernels: {len(failures)} failures, the first: {failures[0]}")
