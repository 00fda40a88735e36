"""YAML files: models, training configs, recipes, tasks."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from random import Random

import yaml

from ..kinds import Case, choose_words, copy_seeds, kind, write_evil
from ..mutate import mutate_file, mutate_lines, mutate_tree, write_yaml
from ..values import Place, list_attacks

TREE = Path(__file__).parents[3]
KEYS = (
    *(
        "defaults",
        "layers",
        "pattern",
        "attention",
        "ffn",
        "block",
        "norm",
        "position",
        "router",
        "loop",
        "encoder",
        "head",
    ),
    *(
        "d_model",
        "n_layers",
        "vocab_size",
        "n_experts",
        "window",
        "about",
        "kind",
        "_target_",
        "hydra",
        "model",
        "launcher",
    ),
)
TINY = (
    "steps=1 batch_size=1 seq_len=8 eval_every=null save_every=null sample=null device=cpu data=text "
    "data.path=data/text.txt"
)


@functools.cache
def read_models() -> dict[str, str]:
    """Read the YAMLs of the packaged models, as a person's own would say them: `/model/NAME@_here_` for one they are
    like."""
    files = sorted((TREE / "conf" / "model").glob("*.yaml"))
    return {
        file.stem: re.sub(r"(?m)^  - (?!_self_)([\w.-]+)$", r"  - /model/\1@_here_", file.read_text()) for file in files
    }


@kind(quick=40)
def model_yaml(rng: Random, place: Place) -> Case:
    """A model's YAML, priced."""
    name = rng.choice(sorted(read_models()))
    text, roll = read_models()[name], rng.random()
    if roll < 0.25:
        made, what = mutate_lines(rng, text, place)
    elif roll < 0.4:
        made, what = attack_yaml(rng, yaml.safe_load(text), place)
    else:
        tree, what = mutate_tree(rng, yaml.safe_load(text), place, KEYS)
        made = write_yaml(tree)
    place.folder.joinpath("m.yaml").write_bytes(made)
    lines = [
        "stats m.yaml",
        "stats m.yaml",
        "stats m.yaml --json",
        "stats m.yaml --cfg job",
        "stats m.yaml --cfg job --resolve",
    ]
    more = [
        "diff m.yaml llama-tiny",
        "build m.yaml --device meta",
        "stats m.yaml n_layers=4",
        "train model=./m.yaml --cfg job",
    ]
    words = choose_words(
        rng, [*lines, *more, "stats m.yaml --gpu h100 --explain", "stats m.yaml --context 1000000 --batch 64"]
    )
    return Case(words, f"model of {name}: {what}")


ENTRIES = (
    *(
        "/evil@_global_.hydra.callbacks.e",
        "evil@_global_",
        "/hydra/callbacks: evil",
        "override /launcher: evil",
        "evil",
    ),
    *("/evil@_here_", "override hydra/launcher: evil", "../outside/secret", "optional /evil"),
)


def attack_yaml(rng: Random, tree: dict, place: Place) -> tuple[bytes, str]:
    """Put an attack on code where a model's or a training's YAML would carry it."""
    write_evil(place, ".", "model", "data", "attention", "hydra/callbacks", "hydra/launcher", "launcher")
    value = rng.choice(list_attacks(place))
    where = rng.choice(
        ["defaults", "hydra", "callbacks", "launcher", "attention", "data", "model", "about", "logger", "top"]
    )
    if where == "defaults":
        entry = rng.choice(ENTRIES)
        own = tree.get("defaults", [])
        value = [entry, *(own if isinstance(own, list) else [])]
    if where == "top" and isinstance(value, dict):
        tree |= value
    else:
        tree[where] = value
    return write_yaml(tree), f"{where}: {ascii(value)[:150]}"


@kind(quick=20)
def train_yaml(rng: Random, place: Place) -> Case:
    """A training config of the person's own (`-c`), shown."""
    tree = read_training(rng)
    made, what = mutate_training(rng, tree, place)
    place.folder.joinpath("c.yaml").write_bytes(made)
    lines = [
        "train -c c.yaml --cfg job",
        "train -c c.yaml --cfg all",
        "train -c c.yaml --cfg job --resolve",
        "train -c c.yaml --info defaults",
    ]
    return Case(choose_words(rng, [*lines, "train -c c.yaml --info searchpath"]), what)


@kind(quick=8)
def train_yaml_run(rng: Random, place: Place) -> Case:
    """A training config, or a model's YAML, with which a run of one step is made or planned."""
    copy_seeds(place, "data")
    small = {"n_layers": 1, "d_model": 16, "n_heads": 2, "d_ff": 16, "head_dim": 8, "n_kv_heads": 1, "vocab_size": 258}
    name = rng.choice(["c.yaml", "m.yaml"])
    own = {"defaults": ["/model/llama-tiny@_here_", "_self_"], **small}
    made, what = mutate_training(rng, own if name == "m.yaml" else {**read_training(rng), "model": small}, place)
    place.folder.joinpath(name).write_bytes(made)
    words = [
        "train",
        *(["-c", "c.yaml"] if name == "c.yaml" else ["model=./m.yaml", "data.tokenizer.kind=byte"]),
        *TINY.split(),
    ]
    more = rng.choice([[], [], ["-m", "seed=1,2", "--plan", "--no-measure"], ["-m", "seed=1"], ["hydra.run.dir=r"]])
    return Case([*words, *more], what)


def read_training(rng: Random) -> dict:
    """Give a small training config."""
    return {
        "defaults": ["/config", {"override /optim": rng.choice(["adamw", "muon"])}, "_self_"],
        "steps": 1,
        "optim": {"lr": 1e-3},
        "data": {"tokenizer": {"kind": "byte"}},
        "seed": 1,
    }


def mutate_training(rng: Random, tree: dict, place: Place) -> tuple[bytes, str]:
    """Mutate a training config; in a third of the cases with an attack on code."""
    if rng.random() < 0.35:
        return attack_yaml(rng, tree, place)
    if rng.random() < 0.2:
        return mutate_lines(rng, write_yaml(tree).decode(), place)
    names = ("defaults", "model", "data", "launcher", "logger", "hydra", "callbacks", "_target_", "optim", "objective")
    made, what = mutate_tree(rng, tree, place, names)
    return write_yaml(made), what


@kind(quick=520)
def recipe(rng: Random, place: Place) -> Case:
    """A recipe, shown."""
    file = rng.choice(sorted(TREE.joinpath("recipes").glob("*.yaml")))
    place.folder.joinpath("r.yaml").write_bytes(file.read_bytes())
    what = mutate_file(
        rng, place.folder / "r.yaml", place, ("arms", "shared", "short", "seeds", "expect", "matched", "config")
    )
    return Case(choose_words(rng, ["recipes r.yaml", "recipes r.yaml --json"]), f"{file.stem}: {what}")


@kind(quick=2)
def recipe_run(rng: Random, place: Place) -> Case:
    """A recipe with an attack on code, run."""
    copy_seeds(place, "data")
    write_evil(place, ".", "hydra/callbacks", "model")
    touch, file = f"touch {place.canary}", f"{{_target_: pathlib.Path, _args_: ['{place.canary}']}}"
    attack = rng.choice(
        [
            f"+hydra.callbacks.e={{_target_: zoo.disk.write_text, text: x, file: {file}}}",
            f"+hydra.callbacks.e={{_target_: os.system, command: '{touch}'}}",
            f"+launcher={{kind: slurm, lines: ['{touch}']}}",
            *("launcher=slurm", "hydra/launcher=joblib", "+evil@hydra.callbacks.e=evil", "hydra.searchpath=[file://.]"),
            *(
                "model=./m.yaml",
                "hydra.run.dir=../outside",
                "data.path=../outside/secret",
                "-m",
                "--config=evil",
                "hydra.mode=RUN",
            ),
        ]
    )
    small = (
        "model.n_layers=1 model.d_model=16 model.n_heads=2 model.head_dim=8 model.d_ff=16 model.max_seq_len=16 "
        "data.tokenizer.kind=byte"
    )
    shared, arms = [*TINY.split(), *small.split()], {"a": ["seed=0"], "b": ["optim.lr=1e-3"]}
    where = rng.choice(["shared", "arm", "short"])
    short: list[str] = []
    {"shared": shared, "arm": arms["b"], "short": short}[where].append(attack)
    expect = [{"arm": "b", "against": "a", "at_most": 100.0}]
    tree = {"claim": "c", "source": "s", "minutes": 1, "config": "tiny", "arms": arms, "shared": shared, "seeds": 2}
    tree |= {"expect": expect, "short": {"overrides": short, "expect": expect}}
    place.folder.joinpath("r.yaml").write_bytes(write_yaml(tree))
    return Case(["recipes", "r.yaml", "--check" if where == "short" else "--run"], f"{where}: {attack}")


@kind(quick=60)
def task_yaml(rng: Random, place: Place) -> Case:
    """A task of lm-evaluation-harness."""
    copy_seeds(place, "hf", "data")
    what = mutate_file(rng, place.folder / "data" / "task.yaml", place, ("include", "dataset_path", "process_docs"))
    return Case(["eval", "hf", "--tasks", "data/task.yaml", "--device", "cpu", "--limit", "1"], what)
