"""Random command lines: verbs, options and their types as Typer has them; values valid and odd; overrides of models."""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from types import UnionType
from typing import Any

from .kinds import Case, copy_seeds, kind
from .values import NUMBERS, TEXTS, Place, Raw, list_paths

LONG = {
    "train": ["--cfg", "job"],
    "ladder": ["--smallest", "x"],
    "bench": ["--shape", "=", "--rounds", "1"],
    "family new": ["--out", "f.yaml", "=x"],
    "probe": ["--lrs", "x"],
    "check": [],
}
"""Verbs that take minutes, and what ends them early. (`train` composes and shows; the others refuse.)"""
LOADING = ("generate", "chat", "fill", "embed", "score", "eval", "convert", "inspect", "build", "doctor")
"""Verbs that load torch's part of a model: fewer of their lines are made."""
SELDOM = ("family", "bench", "probe", "ladder")
"""Verbs of which each line is ended early: few of them tell anything."""
OFTEN = ("stats", "stats", "diff", "train", "train", "fit")
NEVER = ("trust", "verify")
"""Options that let a file run code, or that build whole models."""
NEEDED = {
    "solve batch": [["--gpu", "h100"], ["--memory", "24GB"]],
    "solve context": [["--gpu", "h100"], ["--memory", "24GB"]],
    "solve cache": [["--bytes", "2GB"]],
    "solve shape": [["--params", "1.5B"], ["--memory", "1GB"], ["--kv-bytes-per-token", "64KB"]],
    "solve mesh": [["--count", "8", "--gpu", "h100"]],
    "predict": [["--flops", "1e20"], ["--params", "1M", "--tokens", "1B"], ["--params", "1M", "--loss", "3"]],
    "fit": [["--bootstrap", "3"]],
}
"""What a line needs to come further than its options: most lines have it."""
MODELS = (
    "llama3-8b",
    "gpt2",
    "llama-tiny",
    "mixtral-8x7b",
    "deepseek-v3",
    "mamba2-130m",
    "bert-base",
    "t5-small",
    "gemma3-1b",
)
AMOUNTS = (
    "1B",
    "300B",
    "1e12",
    "7e9",
    "0",
    "-1",
    "1e309",
    "1e400",
    "nan",
    "inf",
    "1e-300",
    "9" * 80,
    "15T",
    "K",
    "",
    "1_0",
)
SIZES = ("24GB", "0", "1e305GB", "-1GB", "512MiB", "9" * 80 + "GB", "GB", "nan", "1e-9KB", "infGB")
VALUES = (
    *(
        "0",
        "1",
        "2",
        "-1",
        "4",
        "16",
        "null",
        "true",
        "1e400",
        "nan",
        "inf",
        ".5",
        "9" * 80,
        "9" * 5000,
        "[]",
        "{}",
        "[1,2]",
        "''",
    ),
    *(
        "{kind: rope}",
        "{kind: 1}",
        "{_target_: os.system}",
        "${up:d_model}",
        "${or:a,b}",
        "${d_model}",
        "'${a'",
        "${n_layers}",
    ),
    *(
        "a b",
        "'a",
        '"',
        "1,2",
        "range(1,3)",
        "choice(a,b)",
        "é",
        "\ud800",
        "a\0b",
        "\x1b]0;x\x07",
        "$\\frac$",
        "x" * 3000,
        "[" * 200,
    ),
)
KEYS = (
    "d_model n_layers n_heads n_kv_heads head_dim d_ff vocab_size max_seq_len window n_experts top_k bias rope_theta "
    "norm_eps pattern attention.softcap attention.window attention.qk_norm head.tied position.theta about.title "
    "loop.passes layers.a.attention.window"
)
TRAINING = (
    "steps batch_size seq_len seed clip precision optim.lr optim.betas schedule.warmup data.path lora ema freeze "
    "eval_every log_every"
)


@functools.cache
def list_verbs() -> dict[str, Any]:
    """List all verbs, those of groups too (`solve batch`), with their parameters."""
    from zoo.cli.app import make_command

    def walk(command: Any, name: str) -> Iterator[tuple[str, Any]]:
        if hasattr(command, "list_commands"):
            for each in command.list_commands(None):
                yield from walk(command.get_command(None, each), f"{name} {each}".strip())
        else:
            yield name, command

    return dict(walk(make_command(), ""))


@kind(quick=120)
def command_line(rng: Random, place: Place) -> Case:
    """A line of a verb that prices, lists or refuses; seldom one that loads a model."""
    verbs = list_verbs()
    light = [name for name in verbs if name.split()[0] not in (*LOADING, *SELDOM)]
    few = SELDOM if rng.random() < 0.02 else SELDOM[1:]  # the first imports transformers
    seldom = [name for name in verbs if name.split()[0] in few]
    return make_line(rng, place, rng.choice(seldom if rng.random() < 0.06 else [*light, *OFTEN]))


@kind(quick=12)
def command_line_loading(rng: Random, place: Place) -> Case:
    """A line of a verb that loads a model."""
    return make_line(rng, place, rng.choice([name for name in list_verbs() if name.split()[0] in LOADING]))


def make_line(rng: Random, place: Place, name: str) -> Case:
    """Make a line of a verb: its arguments, some of its options, and what ends it early."""
    command = list_verbs()[name]
    words, needs = name.split(), []
    options = [each for each in command.params if each.param_type_name == "option" and "--help" not in each.opts]
    for param in command.params:
        if param.param_type_name == "argument":
            needs += choose_arguments(rng, place, name, param)
    chosen = [each for each in options if each.required and rng.random() < 0.9]
    chosen += rng.sample(options, min(len(options), rng.choice([0, 1, 1, 1, 2, 2, 4])))
    chosen = [
        each for each in chosen if each.name not in NEVER and (name, each.name) != ("recipes", "check")
    ]  # minutes
    given = [word for param in chosen for word in choose_option(rng, place, param)]
    if name in NEEDED and rng.random() < 0.85:
        given = [*rng.choice(NEEDED[name]), *given]
    mixed = [needs, given] if rng.random() < 0.8 else [given, needs]
    words += [*mixed[0], *mixed[1], *LONG.get(name, [])]
    if name == "check" and "--coordinates" in words:
        words = ["check", *needs]  # it trains
    if rng.random() < 0.03:
        words.insert(
            rng.randrange(1, len(words) + 1), rng.choice(["--", "--debug", "--nosuch", "-x", "", "\0", "--help"])
        )
    text = rng.choice(["", "the cat\n", "/exit\n", "/save x\n/nosuch\n", "\x1b[A\n", "a" * 5000 + "\n"])
    return Case(words, "a command line", text.encode())


def choose_arguments(rng: Random, place: Place, verb: str, param: Any) -> list[str]:
    """Choose the words of an argument: none, one, or several where it takes several."""
    if param.required is False and rng.random() < 0.3 and param.nargs == 1:
        return []
    if rng.random() < 0.02:
        return []
    name = param.name
    if name in ("overrides", "changes") or (
        param.nargs == -1 and verb.split()[0] in ("stats", "train", "build", "ladder")
    ):
        head = ["model=llama-tiny"] if verb == "train" else []
        return head + [choose_override(rng, verb == "train") for _ in range(rng.choice([0, 0, 1, 1, 2]))]
    count = rng.choice([1, 1, 2, 3]) if param.nargs == -1 else 1
    return [choose_target(rng, place, verb, name, param) for _ in range(count)]


def choose_target(rng: Random, place: Place, verb: str, name: str, param: Any) -> str:
    """Choose a model, a folder or a file for an argument."""
    kinds = list_enum(param)
    if kinds and rng.random() < 0.9:
        return rng.choice(kinds)
    roll = rng.random()
    if roll < 0.12 and verb != "new":
        return rng.choice([*TEXTS, *list_paths(place)])
    if verb == "new":  # it writes what it names
        return rng.choice(["mine.yaml", "a/b.yaml", "data", ".", ""])
    if verb.split()[0] in ("predict",):
        return seed(place, "fit.json")
    if verb.split()[0] in ("fit",):
        return rng.choice([seed(place, "run"), seed(place, "data") + "/points.csv"])
    if verb.split()[0] in ("runs", "report", "plot"):
        return seed(place, rng.choice(["run", "sweep"]))
    if verb.split()[0] in LOADING or verb.split()[0] == "check":
        if name == "out":
            return rng.choice(["out", "data", ".", "run"])
        return seed(place, rng.choice(["hf", "run", "labels", "masked", "gguf"]))
    return rng.choice([*MODELS, *MODELS, seed(place, "hf") if roll > 0.9 else "gpt2"])


def seed(place: Place, name: str) -> str:
    """Copy a seed into the case's folder, once, and name it."""
    if not (place.folder / name).exists():
        copy_seeds(place, name)
    return name


def list_enum(param: Any) -> list[str]:
    """List the values of an option that takes one of several words."""
    inner = find_type(param)
    return [str(each) for each in typing.get_args(inner)] if typing.get_origin(inner) is typing.Literal else []


def find_type(param: Any) -> Any:
    """Find the type of a parameter, without `None` and `list`."""
    held = getattr(param, "type_descriptor", None)
    found = getattr(held, "annotation", str)
    while typing.get_origin(found) in (list, tuple, typing.Union, UnionType, typing.Annotated):
        found = next(each for each in typing.get_args(found) if each is not type(None))
    return found


def choose_option(rng: Random, place: Place, param: Any) -> list[str]:
    """Choose an option's name and value, by its type; now and then one of another type."""
    opts = [*param.opts, *param.secondary_opts]
    option = rng.choice(opts)
    if getattr(param, "is_flag", False):
        return [option]
    if rng.random() < 0.03:
        return [option]
    value = choose_value(rng, place, param)
    return [f"{option}={value}"] if option.startswith("--") and rng.random() < 0.3 else [option, value]


def choose_value(rng: Random, place: Place, param: Any) -> str:
    """Choose a value for an option."""
    kind, name = find_type(param), param.name
    written = ("out", "plot", "html", "tour")
    if name in written:  # never a path of the system's
        return rng.choice(
            [
                "o.svg",
                "o.png",
                "o",
                "o.json",
                "data",
                ".",
                "a/b/c.png",
                "",
                "x" * 300 + ".png",
                "$\\frac$.svg",
                "o.npy",
                "loop",
            ]
        )
    if words := list_enum(param):
        return rng.choice([*words, *words, *words, rng.choice(TEXTS)])
    if kind is Path:
        return (
            rng.choice(list_paths(place))
            if rng.random() < 0.6
            else seed(place, "data") + rng.choice(["", "/text.txt", "/prompts.jsonl"])
        )
    if kind is int:
        most = (
            1000
            if name
            in ("bootstrap", "rows", "noise_rows", "n", "n_beams", "max_new_tokens", "batch_size", "draft_tokens")
            else None
        )
        found = rng.choice([1, 2, 3, 8, 64, 1, 2, rng.choice(NUMBERS)])
        return spell(min(found, most) if most and isinstance(found, int) and rng.random() < 0.9 else found)
    if kind is float:
        return spell(rng.choice([0.1, 0.5, 1, 0.9, rng.choice(NUMBERS)]))
    texts: list[Callable[[], str]] = [
        *(
            lambda: rng.choice(AMOUNTS),
            lambda: rng.choice(SIZES),
            lambda: rng.choice(TEXTS),
            lambda: rng.choice(MODELS),
        ),
        *(lambda: rng.choice(["h100", "a100-80g", "auto", "cpu", "meta", "fp32", "bf16"]), lambda: "params,kv,flops"),
        *(
            lambda: rng.choice(["val_loss", "loss", "when", "16:128", "1:1", "a:b", "params", "flops"]),
            lambda: "n_layers=2",
        ),
    ]
    return rng.choice(texts)()


def spell(value: Any) -> str:
    """Write a number as it would be typed."""
    return value.text if isinstance(value, Raw) else str(value)


@functools.cache
def list_keys() -> tuple[list[str], dict[str, list[str]]]:
    """List the keys of packaged models, and the choices of each axis."""
    from zoo.grammar import AXES
    from zoo.paths import conf_dir

    axes = {axis: sorted(file.stem for file in (conf_dir() / axis).glob("*.yaml")) for axis in AXES}
    return KEYS.split(), axes


def choose_override(rng: Random, training: bool) -> str:
    """Choose an override: an axis and one of its choices, a key and a value, or what is neither."""
    keys, axes = list_keys()
    before = "model." if training and rng.random() < 0.6 else ""
    sign = rng.choice(["", "", "", "", "+", "++", "~"])
    if rng.random() < 0.45:
        axis = rng.choice(sorted(axes))
        return f"{sign}{axis}={rng.choice([*axes[axis], rng.choice(TEXTS)])}"
    if training and rng.random() < 0.5:
        return f"{sign}{rng.choice(TRAINING.split())}={rng.choice(VALUES)}"
    if rng.random() < 0.1:
        return rng.choice(
            [*TEXTS, *VALUES, "=", "a", "a.b.c", "@", "a@b=c", "attention@=x", "model=", "+=1", "~", "~n_layers"]
        )
    return f"{sign}{before}{rng.choice(keys)}={rng.choice(VALUES)}"
