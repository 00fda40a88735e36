"""`zoo generate`: write text with the last run, or with a checkpoint."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Fp8(StrEnum):
    """What float8 is scaled by (`zoo.run.fp8`)."""

    tensorwise = "tensorwise"
    rowwise = "rowwise"
    weight_only = "weight_only"


def run(
    prompt: Annotated[str, typer.Option(help="What the text goes on from; - reads standard input.")] = "",
    checkpoint: Annotated[Path | None, typer.Option(help="A checkpoint or run folder; the last run's.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to write at most.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token each time.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Draw from the k likeliest.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw from the fewest that hold this probability.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Draw from those this likely beside the likeliest.")] = None,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 makes tokens already there less likely.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="The same seed draws the same text.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this string; may be given again.")] = None,
    kernel: Annotated[str | None, typer.Option(help="The attention kernel (`zoo doctor`); the first that can.")] = None,
    device: Annotated[str, typer.Option(help="auto, cuda or cpu.")] = "auto",
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16; as in the checkpoint.")] = None,
    fp8: Annotated[Fp8 | None, typer.Option(help="Products in float8 (CUDA); weight_only saves memory.")] = None,
) -> None:
    """Write text with the last run, or with a checkpoint, as it comes.

    Standard output gets what the model writes, without the prompt.
    """
    from zoo.generation import text
    from zoo.generation.sample import Sampling

    sampling = Sampling.checked(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    pieces = text.stream(
        checkpoint,
        sys.stdin.read() if prompt == "-" else prompt,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        stop=stop or [],
        device=device,
        dtype=dtype,
        kernel=kernel,
        fp8=fp8,
        note=lambda line: print("zoo: note:", line, file=sys.stderr),
    )
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
