"""`zoo generate`: write text with the last run, or with a checkpoint."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Fp8(StrEnum):
    """How values are scaled into float8's range (`zoo.run.fp8`)."""

    tensorwise = "tensorwise"
    rowwise = "rowwise"
    weight_only = "weight_only"


class Weights(StrEnum):
    """What the weights of products are stored in while generating (`zoo.run.linear`)."""

    fp16 = "fp16"
    bf16 = "bf16"
    int8 = "int8"
    int4 = "int4"


def run(
    prompt: Annotated[str, typer.Option(help="The text to continue; - reads standard input.")] = "",
    checkpoint: Annotated[Path | None, typer.Option(help="A checkpoint or run folder. [default: the last run]")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="The most tokens to write.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Draw from the k likeliest tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Draw from the likeliest tokens that together have this probability.")
    ] = None,
    min_p: Annotated[
        float | None, typer.Option(help="Draw from tokens at least this likely, relative to the likeliest.")
    ] = None,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1 makes tokens that are already in the text less likely.")
    ] = 1.0,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same text.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Stop before this string. May be given several times.")] = None,
    kernel: Annotated[
        str | None, typer.Option(help="The attention kernel (`zoo doctor`). [default: the first that can run]")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cuda or cpu.")] = "auto",
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16. [default: as in the checkpoint]")] = None,
    fp8: Annotated[
        Fp8 | None, typer.Option(help="Compute matrix products in float8 (CUDA); weight_only only saves memory.")
    ] = None,
    weights: Annotated[
        Weights | None,
        typer.Option(help="Keep the weights of products in fewer bits, on a CPU. [default: as they are]"),
    ] = None,
) -> None:
    """Write text with the last run, or with a checkpoint, token by token.

    Standard output gets the new text alone, without the prompt.
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
        weights=weights,
        note=lambda line: print("zoo: note:", line, file=sys.stderr),
    )
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
