"""`zoo bench`: races this implementation against others, on the same shape, weights and threads."""

import json
from enum import StrEnum
from typing import Annotated

import typer


class Workload(StrEnum):
    """What is timed."""

    train = "train"
    decode = "decode"
    prefill = "prefill"


class Dtype(StrEnum):
    """Of the weights and arithmetic; bf16 training means autocast over float32 weights."""

    fp32 = "fp32"
    bf16 = "bf16"


def run(
    workload: Annotated[Workload, typer.Argument(help="train, decode or prefill (time to the first token)")],
    against: Annotated[str, typer.Option(help="Peers to race, comma-separated: hf, litgpt. None: zoo alone.")] = "",
    peer_python: Annotated[
        list[str] | None, typer.Option(help="Interpreter that has a peer: NAME=PATH, or one PATH for all peers.")
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="bf16 training is autocast over float32 weights.")] = Dtype.fp32,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; each runs every contender once, in a fresh process.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each contender.")] = 2,
    batch: Annotated[int | None, typer.Option(min=1, help="Rows; 4 for train, else 1.")] = None,
    length: Annotated[int | None, typer.Option(min=1, help="Tokens of a row or prompt; 512, 32 or 1024.")] = None,
    new_tokens: Annotated[int | None, typer.Option(min=2, help="Tokens that decode generates; 128.")] = None,
    shape: Annotated[str, typer.Option(help="Changes to the shape, comma-separated: d_model=64,n_layers=2")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="The whole report, every round's figures included.")] = False,
) -> None:
    """Measure zoo beside transformers and LitGPT, and beside what this machine can do at best (CPU)."""
    from rich.console import Console

    from zoo.bench import compare, plan, show

    given = {"batch": batch, "length": length, "new_tokens": new_tokens}
    changes = shape.split(",") if shape else []
    race = plan.plan_race(workload.value, given, changes, dtype=dtype.value, rounds=rounds, threads=threads)
    pythons = plan.interpreters(plan.peers_named(against), peer_python or [])
    report = compare.race(race, pythons, tell=Console(stderr=True, highlight=False).print)
    if as_json:
        print(json.dumps(report, indent=2))
        return
    screen = Console()
    screen.print(show.table(report))
    for line in show.notes(report):
        screen.print(line, style="dim", highlight=False)
