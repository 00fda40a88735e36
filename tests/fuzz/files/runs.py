"""What training leaves behind: runs, their checkpoints, sweeps."""

from __future__ import annotations

import json
from random import Random

from ..kinds import Case, choose_words, copy_seeds, kind, write_evil
from ..mutate import mutate_bytes, mutate_file, write_json, write_yaml
from ..values import Place, list_attacks, list_paths

KEYS = (
    *(
        "lengths",
        "step",
        "data",
        "best",
        "last",
        "launcher",
        "lines",
        "hydra",
        "_target_",
        "callbacks",
        "model",
        "overrides",
    ),
    *("jobs", "launches", "val_loss", "params", "status", "arm", "seed", "kind", "path", "logger", "format"),
)
READ = (
    *("runs .", "runs . --json", "report run", "stats run", "stats run --cfg job --resolve", "plot run", "check run"),
    *(
        "diff run llama-tiny",
        "runs . --sort val_loss",
        "fit run --bootstrap 5",
        "report run --html p.html",
        "plot run --out p.svg",
    ),
)
RESUME = "train --resume run steps=3 device=cpu"


@kind(quick=40)
def run_folder(rng: Random, place: Place) -> Case:
    """Any file of a run, read by the verbs that list, compare and price."""
    copy_seeds(place, "run")
    files = [
        each
        for each in sorted(place.folder.glob("run/**/*"))
        if each.is_file() and each.suffix not in (".html", ".png")
    ]
    small = [
        each for each in files if each.suffix in (".json", ".jsonl", ".yaml", ".csv") or each.name in ("latest", "best")
    ]
    what = mutate_file(rng, rng.choice([*files, *small * 3]), place, KEYS)
    return Case(choose_words(rng, READ), what)


@kind(quick=15)
def sweep_folder(rng: Random, place: Place) -> Case:
    """Any file of a sweep."""
    copy_seeds(place, "sweep")
    files = [each for each in sorted(place.folder.glob("sweep/**/*.*")) if each.suffix in (".json", ".jsonl", ".yaml")]
    own = [each for each in files if each.name in ("sweep.json", "result.json", "metrics.jsonl", "config.yaml")]
    what = mutate_file(rng, rng.choice([*files, *own, *own]), place, KEYS)
    lines = [
        "report sweep",
        "report sweep --json",
        "report sweep --md",
        "runs sweep",
        "report sweep --html p.html",
        "plot sweep",
    ]
    return Case(
        choose_words(
            rng, [*lines, "report sweep --metric loss", "report sweep --plot p.svg", "fit sweep --bootstrap 5"]
        ),
        what,
    )


@kind(quick=8)
def run_resumed(rng: Random, place: Place) -> Case:
    """Any file of a run that goes on, or whose newest checkpoint is loaded."""
    copy_seeds(place, "run", "data")
    roll = rng.random()
    if roll < 0.25:
        what = attack_run(rng, place)
    else:
        files = [each for each in sorted(place.folder.glob("run/**/*")) if each.is_file()]
        newest = [
            each
            for each in files
            if "step-000002" in str(each) or each.name in ("latest", "config.yaml", "training.json")
        ]
        file = rng.choice([*files, *newest, *newest])
        what = f"{file.relative_to(place.folder)}: {mutate_file(rng, file, place, KEYS)}"
    write = "generate --checkpoint run --prompt cat --max-new-tokens 2 --device cpu"
    more = [
        write,
        "generate --checkpoint run@1 --prompt cat --max-new-tokens 2",
        "eval run --device cpu",
        "convert run out --no-verify",
    ]
    return Case(choose_words(rng, [RESUME, RESUME, RESUME, *more, "inspect run --rows 1 --noise-rows 0"]), what)


SLURM = {
    "kind": "slurm",
    "partition": None,
    "account": None,
    "time": None,
    "gpus": "auto",
    "port": 29500,
    "submit": True,
}


def attack_run(rng: Random, place: Place) -> str:
    """Put an attack on code or on other files into a run's folder."""
    run, touch = place.folder / "run", f"touch {place.canary}"
    write_evil(place, ".", "run", "run/.hydra")
    how = rng.choice(["launcher", "hydra", "lengths", "latest", "data", "pickle", "git", "logger", "top"])
    if how == "lengths":
        file = run / "checkpoints" / "step-000002" / "training.json"
        tree = json.loads(file.read_text())
        tree["lengths"][rng.choice(list_paths(place))] = rng.choice([0, 5, -1, 10**30])
        file.write_bytes(write_json(tree))
    elif how == "latest":
        run.joinpath("checkpoints", rng.choice(["latest", "best"])).write_text(rng.choice(list_paths(place)))
    elif how == "pickle":
        for name in ("training.pt", "training.safetensors", "model.safetensors", "pytorch_model.bin"):
            (run / "checkpoints" / "step-000002" / name).write_bytes(f"cos\nsystem\n(S'{touch}'\ntR.".encode())
    elif how == "git":
        write_git(place)
    else:
        import yaml

        file = rng.choice(
            [run / "config.yaml", run / ".hydra" / "hydra.yaml", run / ".hydra" / "config.yaml", run / "model.yaml"]
        )
        tree = yaml.safe_load(file.read_text())
        value = rng.choice(list_attacks(place))
        if how == "launcher":
            tree |= {
                "launcher": rng.choice([SLURM | {"lines": [touch]}, {"kind": "local"}, value]),
                "nproc": 1,
            }
        else:
            tree[{"top": "_target_", "data": "data", "logger": "logger"}.get(how, "hydra")] = value
        file.write_bytes(write_yaml(tree))
        how = f"{file.name}: {how}: {ascii(value)[:120]}"
    return how


def write_git(place: Place) -> None:
    """Make the working folder a repository whose config names programs."""
    git = place.folder / ".git"
    for each in ("objects", "refs/heads"):
        (git / each).mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    touch = f"touch {place.canary}"
    (git / "config").write_text(
        f'[core]\n repositoryformatversion = 0\n fsmonitor = "{touch}; false"\n hooksPath = hooks\n'
        f' sshCommand = "{touch}"\n pager = "{touch}"\n[diff]\n external = "{touch}"\n'
        f'[filter "x"]\n clean = "{touch}"\n[alias]\n status = "!{touch}"\n'
    )


@kind(quick=12)
def metrics_cut(rng: Random, place: Place) -> Case:
    """Metrics that were cut off, or hold what no figure may be."""
    copy_seeds(place, "run")
    file = (
        place.folder
        / "run"
        / rng.choice(["metrics.jsonl", "result.json", "environment.json", "metrics.csv", "samples.txt"])
    )
    made, what = mutate_bytes(rng, file.read_bytes())
    file.write_bytes(made)
    return Case(
        choose_words(rng, ["plot run", "runs .", "report run --html p.html", "plot run --y lr --x seconds --log"]),
        f"{file.name}: {what}",
    )
