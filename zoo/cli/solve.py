"""`zoo solve`: search for the batch, context, GPUs or shape that fits a GPU or a budget, on exact prices."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli.app import SETTINGS
from zoo.cli.common import Overrides, Target, compose_target
from zoo.cli.completing import complete_target
from zoo.cli.options import argument, flag, option, options, read_options
from zoo.cli.setup import SetupOptions, check_amount, hide_options, read_amount
from zoo.cli.showing import Json, is_override, load_specs
from zoo.costs.again import RECOMPUTE
from zoo.costs.cluster import NETWORK, Cluster
from zoo.costs.hardware import RUNTIME, hardware, list_gpus
from zoo.costs.setup import Setup
from zoo.errors import ConfigError, ZooError
from zoo.report import format_json, format_size
from zoo.report import solved as answers
from zoo.untrusted.printable import quote

if TYPE_CHECKING:
    from zoo.analysis.solve import Room
    from zoo.analysis.solve.mesh_search import MeshSearch
    from zoo.costs.rows import Priced

app = typer.Typer(add_completion=False, no_args_is_help=True, **SETTINGS)

BYTES = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "KI": 2.0**10, "MI": 2.0**20, "GI": 2.0**30, "TI": 2.0**40}
SHAPED = "llama"
"""The default model of `zoo solve shape`."""

MESHED = ("dp", "tp", "pp", "ep", "cp", "zero", "replicas", "batch", "accumulate")
"""The fields of a Setup that `zoo solve mesh` solves for."""

SIZES, RATES = "24GB, 22.5GiB or 24e9", "400Gb or 50GB"


def read_number(text: str) -> float:
    """Read `1.5B` or `1.5e9` as a number. Raises ConfigError for other texts."""
    return read_amount(text, "budget", "1e9, 350M or 1.5B")


def read_size(text: str) -> float:
    """Read `24GB`, `22.5GiB` or `24e9` as bytes. Raises ConfigError for other texts."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)\s*((?:[KMGT]i?)?)B?", str(text).strip(), re.IGNORECASE)
    if match is None:
        raise ConfigError(f"memory: cannot read {quote(str(text))} as bytes ({SIZES})")
    return check_amount(float(match[1]) * BYTES[match[2].upper()], text, "memory", SIZES)


def read_pair(text: str) -> tuple[float, float]:
    """Read `16:128` as two numbers. Raises ConfigError for other texts."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?):(\d+(?:\.\d+)?)", text.strip())
    if match is None:
        raise ConfigError(f"aspect: cannot read {quote(text)} (least:most, as 16:128)")
    return float(match[1]), float(match[2])


def read_bandwidth(text: str) -> float:
    """Read `400Gb` (bits) or `50GB` (bytes) as bytes per second. Raises ConfigError for other texts."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT])([bB])(?:/s|ps)?", str(text).strip())
    if match is None:
        raise ConfigError(f"network: cannot read {quote(str(text))} as bits or bytes a second ({RATES})")
    return check_amount(float(match[1]) * BYTES[match[2]] / (8 if match[3] == "b" else 1), text, "network", RATES)


BYTES_OPTION: dict[str, Any] = {"parser": read_size, "metavar": "BYTES"}
NUMBER_OPTION: dict[str, Any] = {"parser": read_number, "metavar": "NUMBER"}

Train = Annotated[bool, typer.Option("--train", help="Fit a training step instead of generation.")]
CacheOnly = Annotated[
    bool,
    typer.Option("--cache-only", help="Count weights and cache only, as if prompts were prefilled in small chunks."),
]


@options()
class Usable:
    """Options for the usable memory of a GPU."""

    usable: float = option("Fraction of the memory that may be used.", default=0.9)
    runtime: float | None = option("Memory taken by CUDA itself. [default: 1.5GB]", **BYTES_OPTION)

    def of(self, gpu: str) -> Room:
        """Compute the usable memory of a GPU. Raises ConfigError for an unknown GPU."""
        found = hardware(gpu)
        return self.of_memory(found.memory, gpu=found.name)

    def of_memory(self, memory: float, **named: str) -> Room:
        """Compute the usable part of `memory` bytes."""
        from zoo.analysis.solve import Room

        runtime = RUNTIME if self.runtime is None else self.runtime
        return Room(memory=int(memory), usable=self.usable, runtime=runtime, **named)


@options()
class Within(Usable):
    """Options for the memory that a model must fit in."""

    memory: float | None = option("Memory of the GPU, in place of --gpu: 24GB, 22.5GiB.", **BYTES_OPTION)

    def choose(self, gpu: str | None) -> Room:
        """Compute the usable memory of --gpu or of --memory. Raises ConfigError unless exactly one is given."""
        if (gpu is None) == (self.memory is None):
            found = "neither" if gpu is None else "both"
            raise ConfigError(
                f"gpu: one of --gpu and --memory says what it must fit on, found {found} (--gpu h100, say)"
            )
        return self.of(gpu) if gpu is not None else self.of_memory(self.memory or 0)


@app.callback()
def solve() -> None:
    """Find what fits, by a search over exact costs. Nothing is built."""


def _most(name: str, short: str, text: str) -> None:
    """Add the command that finds the largest batch or context."""

    @app.command(name, short_help=short, help=text)
    @hide_options(name)
    @read_options
    def solved(
        target: Target,
        overrides: Overrides = None,
        *,
        train: Train = False,
        cache_only: CacheOnly = False,
        within: Within,
        limit: int | None = option("The largest value to try. [default: 16777216]", min=1),
        as_json: Json = False,
        setup: SetupOptions,
    ) -> None:
        from zoo.analysis import solve

        refuse_solved(setup, name)
        room = within.choose(setup.gpu)
        largest = solve.find_largest_batch if name == "batch" else solve.find_largest_context
        more = {} if limit is None else {"most": limit}
        (spec,) = load_specs([target], overrides or ())
        answer = largest(spec, setup, room, train=train, prefill=not cache_only, **more)
        if as_json:
            print(format_json(answer))
        elif answer["fits"]:
            print(answers.format_most(answer, name, " ".join([target, *(overrides or [])])))
        if not answer["fits"]:
            raise ZooError(f"{target}: does not fit at {name} 1, {answers.format_shortage(answer)}")


_most(
    "batch",
    "Find the largest batch.",
    "Find the largest batch that fits on a GPU for generation, or with --train for training.",
)
_most(
    "context",
    "Find the longest context.",
    "Find the longest context that fits on a GPU, with `--batch` sequences.",
)


@app.command(short_help="Find how many GPUs of each type hold the model.")
@read_options
def gpu(
    target: Target,
    overrides: Overrides = None,
    *,
    train: Train = False,
    cache_only: CacheOnly = False,
    usable: Usable,
    as_json: Json = False,
    setup: SetupOptions,
) -> None:
    """Find how many GPUs of each type hold the model: tensor-parallel ranks for generation, ZeRO ranks for training.

    With --gpu, only that GPU is considered.
    """
    from zoo.analysis.solve import find_fewest_gpus

    refuse_solved(setup, *(("dp", "zero") if train else ("tp",)))
    rooms = [usable.of(name) for name in ([setup.gpu] if setup.gpu else list_gpus())]
    (spec,) = load_specs([target], overrides or ())
    rows = find_fewest_gpus(spec, setup, rooms, train=train, prefill=not cache_only)
    print(format_json(rows) if as_json else answers.format_gpus(rows, " ".join([target, *(overrides or [])]), train))
    if not any(row["fits"] for row in rows):
        raise ZooError(f"{target}: fits on none of these, {answers.format_shortage(rows[0])}")


@app.command(short_help="Find changes that bring the KV cache within a budget.")
@read_options
def cache(
    target: Target,
    overrides: Overrides = None,
    *,
    most: float = option("The budget of the KV cache: 2GB, 512MiB.", "--bytes", default=..., **BYTES_OPTION),
    as_json: Json = False,
    setup: SetupOptions,
) -> None:
    """Find a number of KV heads, or a window, with which the KV cache of --batch sequences of --context tokens meets a
    budget."""
    from zoo.analysis.solve import find_smaller_caches

    compose_target(target, overrides)
    found = find_smaller_caches(target, overrides or (), most, setup)
    print(format_json(found) if as_json else answers.format_caches(found, target, most))
    if not any(each["fits"] for each in found):
        raise ZooError(f"{target}: neither fewer key heads nor a window brings its KV cache to {format_size(most)}")


@options()
class Most:
    """Options for the budgets of a shape."""

    params: float | None = option("Parameters: 1.5B.", **NUMBER_OPTION)
    active_params: float | None = option("Active parameters per token.", **NUMBER_OPTION)
    flops_per_token: float | None = option("Forward FLOPs per token, mean over the context.", **NUMBER_OPTION)
    kv_bytes_per_token: float | None = option("KV cache per token: 64KB. Reached by reducing KV heads.", **BYTES_OPTION)
    memory: float | None = option("Peak memory of generation, or of training with --train: 24GB.", **BYTES_OPTION)


@app.command(short_help="Find model shapes that meet a budget.")
@read_options
def shape(
    target: str | None = argument(
        "The model whose shape is solved for. [default: llama]", autocompletion=complete_target
    ),
    overrides: Overrides = None,
    *,
    most: Most,
    usable: Usable,
    aspect: str = option("Minimum and maximum of d_model / n_layers.", default="16:128", metavar="LEAST:MOST"),
    nearest: bool = flag("Take the shape nearest to the budget, even if it is above."),
    count: int = option("Number of shapes to show.", default=6, min=1, max=8),
    train: Train = False,
    as_json: Json = False,
    setup: SetupOptions,
) -> None:
    """Find the width, depth, feed-forward size and heads of models whose exact costs meet a budget, or that fit --gpu.

    An override fixes a dimension (d_model=2048) or changes the model (head.tied=true).
    """
    from zoo.analysis.solve import ShapeBudget, solve_shapes

    model, overrides = target or SHAPED, overrides or []
    if is_override(model):  # the model may be left out
        model, overrides = SHAPED, [model, *overrides]
    budget = dict(vars(most))
    if setup.gpu and most.memory is None:
        budget["memory"] = usable.of(setup.gpu).bytes
    found = solve_shapes(
        model,
        overrides,
        ShapeBudget(**budget),
        setup,
        nearest=nearest,
        train=train,
        aspect=read_pair(aspect),
        count=count,
    )
    print(format_json(found) if as_json else answers.format_shapes(found, model))


@options()
class Searched:
    """Options for the meshes to search."""

    count: int = option("Number of GPUs, of the type that --gpu names.", default=..., min=1)
    global_batch: int | None = option("Sequences per step; replaces --batch-tokens.", min=1)
    batch_tokens: float | None = option(
        "Tokens per step, rounded to a number of sequences that meshes divide: 4M. [default: 4194304]", **NUMBER_OPTION
    )
    node: int = option("GPUs per node, linked by NVLink or the like.", default=8, min=1)
    network: float | None = option(
        "Network bandwidth per GPU to other nodes. [default: 400Gb/s]", parser=read_bandwidth, metavar="RATE"
    )
    fp8: bool = flag("Compute linear layers in float8.")

    def search(self, spec: Priced, setup: Setup, recompute: str | None) -> MeshSearch:
        """Make the search over one kind of recomputation, or over all (None). Raises ConfigError without a GPU, or if
        both --global-batch and --batch-tokens are given."""
        from zoo.analysis.solve.mesh_search import MeshSearch, round_sequences

        if setup.gpu is None:
            raise ConfigError("gpu: is missing (--gpu h100, say)")
        sequences = self.global_batch
        if self.batch_tokens is not None:
            if sequences is not None:
                raise ConfigError("batch-tokens: --global-batch was given too (one of them)")
            sequences = round_sequences(self.batch_tokens / setup.tokens(spec), self.count)
        network = NETWORK if self.network is None else self.network
        return MeshSearch(
            count=self.count,
            cluster=Cluster(device=hardware(setup.gpu), node=self.node, network=network),
            setup=setup,
            sequences=sequences,
            recompute=RECOMPUTE if recompute is None else (recompute,),
            float8=self.fp8,
        )


@app.command(short_help="Find the mesh of GPUs that trains a model fastest.")
@hide_options(*MESHED)
@read_options
def mesh(
    ctx: typer.Context,
    target: str | None = argument("The model, unless --model names it.", autocompletion=complete_target),
    overrides: Overrides = None,
    *,
    model: str | None = option("The model: a packaged name or a file.", autocompletion=complete_target),
    searched: Searched,
    usable: Usable,
    top: int = option("Number of meshes to show.", default=10, min=1),
    as_json: Json = False,
    setup: SetupOptions,
) -> None:
    """Rank the meshes of --count GPUs that fit a training step, by predicted time: every legal mesh, microbatch size
    and kind of recomputation (unless --recompute names one)."""
    from zoo.analysis.solve import find_meshes

    refuse_solved(setup, *MESHED)
    if model is not None:
        target, overrides = model, [*([target] if target else []), *(overrides or [])]
    if target is None:
        raise ConfigError("model: is missing (zoo solve mesh llama3-70b --gpu h100 --count 64, say)")
    (spec,) = load_specs([target], overrides or ())
    named = ctx.get_parameter_source("recompute")
    again = None if named is None or named.name == "DEFAULT" else setup.recompute
    answer = find_meshes(spec, searched.search(spec, setup, again), usable.of(setup.gpu or ""), top=top)
    if as_json:
        print(format_json(answer))
    elif answer["meshes"]:
        print(answers.format_meshes(answer, " ".join([target, *(overrides or [])])))
    if not answer["meshes"]:
        raise ZooError(f"{target}: {answers.format_no_mesh(answer)}")


def refuse_solved(setup: Setup, *names: str) -> None:
    """Raise ConfigError if one of the named options is given, because its value is solved for."""
    for name in names:
        if getattr(setup, name) != getattr(Setup, name):
            raise ConfigError(f"{name}: is what is solved for (leave it out)")
