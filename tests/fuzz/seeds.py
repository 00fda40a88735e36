"""Make the files that the cases mutate: tiny models, runs, a sweep and data, by Zoo itself, once for all cases."""

from __future__ import annotations

import csv
import fcntl
import gzip
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from .files.gguf import write_model

ZOO = Path(__file__).parents[2] / "zoo"
MODEL = [
    *("model.n_layers=2", "model.d_model=32", "model.n_heads=4", "model.d_ff=48", "model.max_seq_len=32"),
    *("steps=2", "batch_size=2", "seq_len=16", "eval_every=1", "eval_batches=1", "save_every=1", "keep_best=1"),
    *("sample=null", "device=cpu", "compile=false"),
]
LLAMA = ["model=llama-tiny", "model.n_kv_heads=2", "model.head_dim=8", *MODEL]
BPE = ["model.vocab_size=300", "data.tokenizer.vocab_size=300"]
BYTES = ["data.tokenizer.kind=byte", "model.vocab_size=258"]
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{{ bos_token }}"
SETTINGS = {"temperature": 0.5, "top_k": 5, "top_p": 0.9, "max_new_tokens": 4, "eos_token_id": [1], "do_sample": True}


def find_seeds(root: Path | None = None) -> Path:
    """Give the folder of the seeds, made first where there is none for Zoo as it is now."""
    stamp = [f"{each}{each.stat().st_mtime_ns}" for each in (*sorted(ZOO.rglob("*.py")), Path(__file__))]
    name = f"zoo-fuzz-{os.getuid()}-{hashlib.sha256(''.join(stamp).encode()).hexdigest()[:12]}"
    folder = (root or Path(tempfile.gettempdir())) / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "whole").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            _in_child(lambda: make_seeds(folder))
            (folder / "whole").touch()
    return folder


def _in_child(work: Callable[[], None]) -> None:
    """Do some work in a forked process, so that threads and caches of torch stay out of this one."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    if os.waitpid(child, 0)[1]:
        raise RuntimeError("the fuzzers' seeds could not be made")


def run_zoo(*words: str) -> None:
    """Run a command that has to succeed, quietly."""
    from contextlib import redirect_stderr, redirect_stdout
    from io import StringIO

    from zoo.cli import run

    said = StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        code = run(words)
    if code:
        raise RuntimeError(f"zoo {' '.join(words)}: ended with {code}\n{said.getvalue()[-3000:]}")


def make_seeds(folder: Path) -> None:
    """Make all seeds in a folder."""
    from zoo.disk import write_text
    from zoo.jobs import train
    from zoo.training import speed

    speed.MEASURED_FOR = 0.01  # nobody looks at their speed, nor at their pictures
    train.draw_losses = lambda lines, title, file: write_text(file, title)
    os.chdir(folder)
    os.environ["ZOO_CACHE"] = str(folder / "cache")
    write_data(folder / "data")
    write_program(folder / "bin" / "sbatch", 'for last; do :; done\nsh "$last"\necho 1\n')
    text = ["data=text", "data.path=data/text.txt"]
    run_zoo("train", *LLAMA, *BPE, *text, "hydra.run.dir=run")
    run_zoo("convert", "run", "hf", "--no-verify")
    run_zoo("convert", "run", "sentence", "--no-verify", "--pooling", "mean")
    add_settings(folder / "hf")
    split_weights(folder / "hf", folder / "sharded")
    run_zoo("train", *MODEL[5:], *text, "weights=hf", "lora={rank: 2}", "hydra.run.dir=adapted")
    run_zoo("convert", "adapted", "peft", "--to", "peft")
    run_zoo("train", "model=bert-tiny", "model.head_dim=8", *MODEL, *BYTES, *text, "hydra.run.dir=masked-run")
    run_zoo("convert", "masked-run", "masked", "--no-verify")
    rows = ["data=jsonl", "data.path=data/labels.jsonl", "objective=classify", "objective.label=label"]
    run_zoo("train", "model=bert-tiny", "model.head_dim=8", *MODEL, *BYTES, *rows, "hydra.run.dir=labels-run")
    run_zoo("convert", "labels-run", "labels", "--no-verify")
    run_zoo(
        "train", "-m", *LLAMA, *BYTES, *text, "seed=1,2", "optim.lr=1e-3,2e-3", "--no-measure", "hydra.sweep.dir=sweep"
    )
    run_zoo("fit", "data/points.csv", "--bootstrap", "10", "--out", "fit.json")
    (folder / "gguf").mkdir()
    write_model(folder / "hf", folder / "gguf" / "model.gguf")


def add_settings(folder: Path) -> None:
    """Add the files and keys that Zoo reads of a Hugging Face folder and does not always write."""
    (folder / "generation_config.json").write_text(json.dumps(SETTINGS, indent=1))
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": TEMPLATE}, indent=1))


def write_program(file: Path, lines: str) -> None:
    """Write a program: here Slurm's, which runs what it is given at once."""
    file.parent.mkdir()
    file.write_text(f"#!/bin/sh\n{lines}")
    file.chmod(0o755)


def split_weights(source: Path, folder: Path) -> None:
    """Copy a folder with its weights in two files and an index."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = {name: f"model-0000{1 + at % 2}-of-00002.safetensors" for at, name in enumerate(sorted(tensors))}
    for file in sorted(set(names.values())):
        save_file({name: tensors[name] for name in names if names[name] == file}, folder / file, {"format": "pt"})
    total = sum(each.numel() * each.element_size() for each in tensors.values())
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": names})
    )


def write_data(folder: Path) -> None:
    """Write a few rows of every kind of data."""
    folder.mkdir()
    texts = [f"the {noun} {n} is {n * 3} and says hello" for n in range(20) for noun in ("cat", "dog", "cow", "hen")]
    (folder / "text.txt").write_text("\n".join(texts) + "\n")
    _write_rows(folder / "rows.jsonl", [{"text": each} for each in texts])
    _write_rows(folder / "labels.jsonl", [{"text": each, "label": "ab"[n % 2]} for n, each in enumerate(texts)])
    said = [{"role": "user", "content": "who"}, {"role": "assistant", "content": "the cat"}]
    _write_rows(folder / "chat.jsonl", [{"messages": said}] * 20)
    _write_rows(folder / "prompts.jsonl", [{"prompt": "the cat", "max_new_tokens": 2, "seed": 1}, {"ids": [1, 2, 3]},
                                           {"messages": said, "temperature": 0}])  # fmt: skip
    (folder / "prompts.txt").write_text("the cat\nthe dog\n")
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress((folder / "rows.jsonl").read_bytes(), mtime=0))
    _write_table(folder / "pairs.csv", ["sentence1", "sentence2", "score"], [(a, a, 0.5) for a in texts[:6]])
    _write_table(folder / "queries.csv", ["query", "positive"], [(a, a[::-1]) for a in texts[:6]])
    law = [(n, d, 1.7 + 400 / n**0.34 + 400 / d**0.28) for n in (1e5, 1e6, 1e7) for d in (1e7, 1e8, 1e9)]
    _write_table(folder / "points.csv", ["params", "tokens", "loss"], law)
    _write_rows(folder / "points.jsonl", [dict(zip(("params", "tokens", "loss"), each, strict=True)) for each in law])
    (folder / "task.yaml").write_text(TASK)
    (folder / "schema.json").write_text(json.dumps({"type": "object", "properties": {"a": {"type": "integer"}}}))
    (folder / "grammar.lark").write_text('start: "a" | "b" start\n')
    try:
        import pyarrow.parquet
    except ImportError:
        return
    table = pyarrow.table({"text": texts, "label": ["ab"[n % 2] for n in range(len(texts))]})
    pyarrow.parquet.write_table(table, folder / "rows.parquet")


TASK = """task: own
dataset_path: json
dataset_kwargs: {data_files: rows.jsonl}
output_type: loglikelihood
doc_to_text: "{{text}}"
doc_to_target: " yes"
metric_list: [{metric: acc}]
metadata: {version: 1}
"""


def _write_rows(file: Path, rows: Sequence[object]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _write_table(file: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
