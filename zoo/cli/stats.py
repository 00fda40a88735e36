"""`zoo stats`: what a model costs, from its Spec alone."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from zoo.cli.common import Cfg, Overrides, Resolve, Target, composed, show_config


class Dtype(StrEnum):
    """Of weights and cache."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"
    fp8 = "fp8"


def run(
    target: Target,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Every figure, exactly.")] = False,
    context: Annotated[int | None, typer.Option(min=1, help="Tokens of a sequence; the model's max_seq_len.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Sequences at once.")] = 1,
    dtype: Annotated[Dtype, typer.Option(help="Of weights and KV cache.")] = Dtype.bf16,
    cfg: Cfg = None,
    resolve: Resolve = False,
) -> None:
    """What a model costs: parameters, FLOPs, KV cache and memory, without building it.

    Overrides are Hydra's: an axis by name (attention=mqa), a key (n_layers=4), a field (attention.softcap=50).
    """
    from zoo import costs, report
    from zoo.config.model import to_spec

    config = composed(target, overrides)
    if cfg or resolve:
        return show_config(config, resolve)
    figures = costs.price(to_spec(config), context=context, batch=batch, dtype=dtype.value)
    if as_json:
        print(report.as_json(figures))
    else:
        print(report.cost_table(figures, " ".join([target, *(overrides or [])])))
