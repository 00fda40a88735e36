"""Tiny training runs for the tests: a corpus of few words, and the packaged config made small."""

import json
from pathlib import Path

from zoo.jobs.plan import plan_launch, task_config

SMALL = [
    *("model.n_layers=2", "model.d_model=32", "model.n_heads=4", "model.n_kv_heads=2", "model.head_dim=8"),
    *("model.d_ff=48", "model.vocab_size=257", "model.max_seq_len=32", "data=text", "data.tokenizer.kind=byte"),
    *("steps=6", "batch_size=4", "seq_len=16", "eval_every=3", "eval_batches=2", "save_every=3", "sample=null"),
]
MEASURED = ("tokens_per_second", "mfu", "memory")


def write_corpus(folder: Path) -> Path:
    """Write many short texts of few words: what a tiny model learns in a few steps."""
    for number in range(40):
        lines = [f"the {noun} {number} is {number * step}\n" for step, noun in enumerate(("cat", "dog", "cow", "hen"))]
        (folder / f"{number}.txt").write_text("".join(lines * 2))
    return folder


def compose_run(corpus: Path, *overrides: str):
    """Compose the packaged training config with SMALL and these overrides laid over it. A run writes samples if one of
    them says of how many tokens (`sample.tokens=4`)."""
    small = SMALL[:-1] if any(each.startswith("sample.") for each in overrides) else SMALL
    with plan_launch([*small, f"data.path={corpus}", *overrides], check=False) as plan:
        return task_config(plan.jobs[0])


def read_metrics(run: Path) -> list[dict]:
    """The metrics of a run without those that a clock gave."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in MEASURED} for line in lines]


def read_folder(folder: Path) -> dict[str, bytes]:
    """The content of every file below a folder, counters left out: a clock's seconds are in them."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != "training.json")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}
