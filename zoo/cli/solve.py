"""`zoo solve`: search for what fits a GPU or a budget, on the exact price."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from zoo.cli.app import SETTINGS
from zoo.cli.common import Overrides, Target, compose_target
from zoo.cli.completing import complete_target
from zoo.cli.setup import check_amount, read_amount, setup_options
from zoo.cli.showing import is_override
from zoo.errors import ConfigError, ZooError
from zoo.untrusted.text import quote

app = typer.Typer(add_completion=False, no_args_is_help=True, **SETTINGS)

BYTES = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "KI": 2.0**10, "MI": 2.0**20, "GI": 2.0**30, "TI": 2.0**40}
SHAPED = "llama"
"""The model that `zoo solve shape` takes where none is named."""

SIZES, RATES = "24GB, 22.5GiB or 24e9", "400Gb or 50GB"


def read_number(text: str) -> float:
    """Read `1.5B` or `1.5e9` as a number. Raises ConfigError."""
    return read_amount(text, "budget", "1e9, 350M or 1.5B")


def read_size(text: str) -> float:
    """Read `24GB`, `22.5GiB` or `24e9` as bytes. Raises ConfigError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)\s*((?:[KMGT]i?)?)B?", str(text).strip(), re.IGNORECASE)
    if match is None:
        raise ConfigError(f"memory: cannot read {quote(str(text))} as bytes ({SIZES})")
    return check_amount(float(match[1]) * BYTES[match[2].upper()], text, "memory", SIZES)


def read_pair(text: str) -> tuple[float, float]:
    """Read `16:128` as two numbers. Raises ConfigError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?):(\d+(?:\.\d+)?)", text.strip())
    if match is None:
        raise ConfigError(f"aspect: cannot read {quote(text)} (least:most, as 16:128)")
    return float(match[1]), float(match[2])


def read_bandwidth(text: str) -> float:
    """Read `400Gb` (bits) or `50GB` (bytes) as bytes a second. Raises ConfigError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT])([bB])(?:/s|ps)?", str(text).strip())
    if match is None:
        raise ConfigError(f"network: cannot read {quote(str(text))} as bits or bytes a second ({RATES})")
    return check_amount(float(match[1]) * BYTES[match[2]] / (8 if match[3] == "b" else 1), text, "network", RATES)


Train = Annotated[bool, typer.Option("--train", help="Fit a training step instead of generating.")]
CacheOnly = Annotated[
    bool, typer.Option("--cache-only", help="Count weights and cache alone, as if prompts were read in small chunks.")
]
Memory = Annotated[
    float | None,
    typer.Option(parser=read_size, metavar="BYTES", help="A GPU's memory, in place of --gpu: 24GB, 22.5GiB."),
]
Usable = Annotated[float, typer.Option(help="The share of the memory that may be used.")]
Runtime = Annotated[
    float | None,
    typer.Option(parser=read_size, metavar="BYTES", help="Memory that CUDA itself takes. [default: 1.5GB]"),
]
Limit = Annotated[int | None, typer.Option(min=1, help="The largest value to try. [default: 16777216]")]
AsJson = Annotated[bool, typer.Option("--json", help="Print every figure, exactly, as JSON.")]


@app.callback()
def solve() -> None:
    """Find what fits: searched for on the exact price, without building anything."""


def _most(name: str, short: str, text: str) -> None:
    """Add the command that finds the largest batch or context."""

    @app.command(name, short_help=short, help=text)
    @setup_options
    def solved(
        target: Target,
        overrides: Overrides = None,
        *,
        setup: Any = None,
        train: Train = False,
        cache_only: CacheOnly = False,
        memory: Memory = None,
        usable: Usable = 0.9,
        runtime: Runtime = None,
        limit: Limit = None,
        as_json: AsJson = False,
    ) -> None:
        from zoo.analysis import solve
        from zoo.compose.targets import spec_of_composed
        from zoo.report import format_json
        from zoo.report import solved as answers

        refuse_solved(setup, name)
        room = choose_room(setup, memory, usable, runtime)
        largest = solve.find_largest_batch if name == "batch" else solve.find_largest_context
        more = {} if limit is None else {"most": limit}
        spec = spec_of_composed(compose_target(target, overrides))
        answer = largest(spec, setup, room, train=train, prefill=not cache_only, **more)
        if as_json:
            print(format_json(answer))
        elif answer["fits"]:
            print(answers.format_most(answer, name, " ".join([target, *(overrides or [])])))
        if not answer["fits"]:
            raise ZooError(f"{target}: does not fit at {name} 1, {answers.format_shortage(answer)}")


_most(
    "batch",
    "Find the most sequences at once.",
    "Find the most sequences at once that fit on a GPU when generating, or with --train when training.",
)
_most(
    "context",
    "Find the longest sequences.",
    "Find the longest sequences that fit on a GPU, `--batch` of them at once.",
)


@app.command(short_help="Find how many of each GPU hold the model.")
@setup_options
def gpu(
    target: Target,
    overrides: Overrides = None,
    *,
    setup: Any = None,
    train: Train = False,
    cache_only: CacheOnly = False,
    usable: Usable = 0.9,
    runtime: Runtime = None,
    as_json: AsJson = False,
) -> None:
    """Find the fewest of each GPU that hold the model: --tp of them for generating, ZeRO ranks for training.

    With --gpu, of that GPU alone.
    """
    from zoo.analysis.solve import find_fewest_gpus
    from zoo.compose.targets import spec_of_composed
    from zoo.costs.hardware import list_gpus
    from zoo.report import format_json
    from zoo.report import solved as answers

    refuse_solved(setup, *(("dp", "zero") if train else ("tp",)))
    rooms = [_room(name, usable, runtime) for name in ([setup.gpu] if setup.gpu else list_gpus())]
    rows = find_fewest_gpus(
        spec_of_composed(compose_target(target, overrides)), setup, rooms, train=train, prefill=not cache_only
    )
    print(format_json(rows) if as_json else answers.format_gpus(rows, " ".join([target, *(overrides or [])]), train))
    if not any(row["fits"] for row in rows):
        raise ZooError(f"{target}: fits on none of these, {answers.format_shortage(rows[0])}")


@app.command(short_help="Find changes that bring the KV cache to a budget.")
@setup_options
def cache(
    target: Target,
    overrides: Overrides = None,
    *,
    setup: Any = None,
    most: Annotated[float, typer.Option("--bytes", parser=read_size, metavar="BYTES", help="The budget: 2GB, 512MiB.")],
    as_json: AsJson = False,
) -> None:
    """Find fewer key heads, or a window, that bring the KV cache of --batch sequences of --context tokens to a
    budget."""
    from zoo import report
    from zoo.analysis.solve import find_smaller_caches
    from zoo.report import solved as answers

    compose_target(target, overrides)
    found = find_smaller_caches(target, overrides or (), most, setup)
    print(report.format_json(found) if as_json else answers.format_caches(found, target, most))
    if not any(each["fits"] for each in found):
        raise ZooError(
            f"{target}: neither fewer key heads nor a window brings its KV cache to {report.format_size(most)}"
        )


@app.command(short_help="Find shapes that cost a budget.")
@setup_options
def shape(
    target: Annotated[
        str | None,
        typer.Argument(help="The model whose shape is solved for. [default: llama]", autocompletion=complete_target),
    ] = None,
    overrides: Overrides = None,
    *,
    setup: Any = None,
    params: Annotated[
        float | None, typer.Option(parser=read_number, metavar="NUMBER", help="Parameters: 1.5B.")
    ] = None,
    active_params: Annotated[
        float | None, typer.Option(parser=read_number, metavar="NUMBER", help="Parameters that one token uses.")
    ] = None,
    flops_per_token: Annotated[
        float | None, typer.Option(parser=read_number, metavar="NUMBER", help="Forward FLOPs, mean over the context.")
    ] = None,
    kv_bytes_per_token: Annotated[
        float | None,
        typer.Option(parser=read_size, metavar="BYTES", help="KV cache per token: 64KB. Reached by fewer key heads."),
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(
            parser=read_size,
            metavar="BYTES",
            help="Memory at the peak of generating, or of training with --train: 24GB.",
        ),
    ] = None,
    usable: Usable = 0.9,
    runtime: Runtime = None,
    aspect: Annotated[str, typer.Option(metavar="LEAST:MOST", help="d_model / n_layers, least and most.")] = "16:128",
    nearest: Annotated[bool, typer.Option("--nearest", help="Take the nearest to the budget, even above it.")] = False,
    count: Annotated[int, typer.Option(min=1, max=8, help="Shapes to show.")] = 6,
    train: Train = False,
    as_json: AsJson = False,
) -> None:
    """Find width, depth, feed-forward and heads that cost a budget exactly; with --gpu, that fit on it.

    An override fixes a dimension (d_model=2048) or changes the model (head.tied=true).
    """
    from zoo.analysis.solve import Budget, solve_shapes
    from zoo.report import format_json
    from zoo.report import solved as answers

    model, overrides = target or SHAPED, overrides or []
    if is_override(model):  # the model may be left out
        model, overrides = SHAPED, [model, *overrides]
    if setup.gpu and memory is None:
        memory = _room(setup.gpu, usable, runtime).bytes
    budget = Budget(
        params=params,
        active_params=active_params,
        flops_per_token=flops_per_token,
        kv_bytes_per_token=kv_bytes_per_token,
        memory=memory,
    )
    found = solve_shapes(
        model, overrides, budget, setup, nearest=nearest, train=train, aspect=read_pair(aspect), count=count
    )
    print(format_json(found) if as_json else answers.format_shapes(found, model))


@app.command(short_help="Find the mesh of GPUs that trains a model fastest.")
@setup_options
def mesh(
    ctx: typer.Context,
    target: Annotated[
        str | None, typer.Argument(help="The model, unless --model names it.", autocompletion=complete_target)
    ] = None,
    overrides: Overrides = None,
    *,
    setup: Any = None,
    model: Annotated[
        str | None, typer.Option(help="The model: a packaged name or a file.", autocompletion=complete_target)
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="GPUs, of the kind that --gpu names.")],
    global_batch: Annotated[int | None, typer.Option(min=1, help="Sequences of a step.")] = None,
    batch_tokens: Annotated[
        float | None,
        typer.Option(parser=read_number, metavar="NUMBER", help="The same in tokens, rounded: 4M. [default: 4194304]"),
    ] = None,
    node: Annotated[int, typer.Option(min=1, help="GPUs of a node, which the GPU's own link joins.")] = 8,
    network: Annotated[
        float | None,
        typer.Option(
            parser=read_bandwidth, metavar="RATE", help="Network rate of each GPU to other nodes. [default: 400Gb]"
        ),
    ] = None,
    fp8: Annotated[bool, typer.Option("--fp8", help="Compute linear layers in float8.")] = False,
    usable: Usable = 0.9,
    runtime: Runtime = None,
    top: Annotated[int, typer.Option(min=1, help="Meshes to show.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Rank the meshes of --count GPUs that hold a training step, by predicted time: every legal mesh, size of a
    microbatch, and recomputation (unless --recompute names one)."""
    from zoo.analysis.solve import find_meshes
    from zoo.compose.targets import spec_of_composed
    from zoo.report import format_json
    from zoo.report import meshes as answers

    refuse_solved(setup, "dp", "tp", "pp", "ep", "cp", "zero", "replicas", "batch", "accumulate")
    if model is not None:
        target, overrides = model, [*([target] if target else []), *(overrides or [])]
    if target is None:
        raise ConfigError("model: is missing (zoo solve mesh llama3-70b --gpu h100 --count 64, say)")
    spec = spec_of_composed(compose_target(target, overrides))
    named = ctx.get_parameter_source("recompute")
    again = None if named is None or named.name == "DEFAULT" else setup.recompute
    search = _mesh_search(spec, setup, count, global_batch, batch_tokens, node, network, again, fp8)
    answer = find_meshes(spec, search, _room(setup.gpu, usable, runtime), top=top)
    if as_json:
        print(format_json(answer))
    elif answer["meshes"]:
        print(answers.format_meshes(answer, " ".join([target, *(overrides or [])])))
    if not answer["meshes"]:
        raise ZooError(f"{target}: {answers.format_no_mesh(answer)}")


def _mesh_search(
    spec: Any,
    setup: Any,
    count: int,
    sequences: int | None,
    tokens: float | None,
    node: int,
    network: float | None,
    recompute: str | None,
    fp8: bool,
) -> Any:
    """Read what is searched from the options. Raises ConfigError."""
    from zoo.analysis.solve.mesh import MeshSearch, round_sequences
    from zoo.costs.again import RECOMPUTE
    from zoo.costs.cluster import NETWORK, Cluster
    from zoo.costs.hardware import hardware

    if setup.gpu is None:
        raise ConfigError("gpu: is missing (--gpu h100, say)")
    if tokens is not None:
        if sequences is not None:
            raise ConfigError("batch-tokens: --global-batch was given too (one of them)")
        sequences = round_sequences(tokens / setup.tokens(spec), count)
    return MeshSearch(
        count=count,
        cluster=Cluster(device=hardware(setup.gpu), node=node, network=NETWORK if network is None else network),
        setup=setup,
        sequences=sequences,
        recompute=RECOMPUTE if recompute is None else (recompute,),
        float8=fp8,
    )


def refuse_solved(setup: Any, *names: str) -> None:
    """Refuse options of what is solved for. Raises ConfigError."""
    from zoo.costs.setup import Setup

    for name in names:
        if getattr(setup, name) != getattr(Setup, name):
            raise ConfigError(f"{name}: is what is solved for (leave it out)")


def choose_room(setup: Any, memory: float | None, usable: float, runtime: float | None) -> Any:
    """Work out the usable memory of --gpu or of --memory. Raises ConfigError unless exactly one is given."""
    from zoo.analysis.solve import Room
    from zoo.costs.hardware import RUNTIME

    if (setup.gpu is None) == (memory is None):
        found = "neither" if memory is None else "both"
        raise ConfigError(f"gpu: one of --gpu and --memory says what it must fit on, found {found} (--gpu h100, say)")
    if memory is not None:
        return Room(memory=int(memory), usable=usable, runtime=RUNTIME if runtime is None else runtime)
    return _room(setup.gpu, usable, runtime)


def _room(name: str, usable: float, runtime: float | None) -> Any:
    from zoo.analysis.solve import Room
    from zoo.costs.hardware import RUNTIME, hardware

    found = hardware(name)
    return Room(memory=found.memory, usable=usable, runtime=RUNTIME if runtime is None else runtime, gpu=found.name)
