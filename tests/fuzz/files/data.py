"""What models read: texts, rows, tables, prompts; and figures of other runs."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from random import Random

from ..kinds import Case, choose_words, copy_seeds, kind
from ..mutate import mutate_bytes, mutate_file, write_json
from ..values import Place, Raw, choose_odd
from .yamls import TREE

SMALL = [
    "model=llama-tiny",
    "model.n_layers=1",
    "model.d_model=16",
    "model.n_heads=2",
    "model.n_kv_heads=1",
    "model.head_dim=8",
    "model.d_ff=16",
    "model.max_seq_len=16",
    "model.vocab_size=258",
    "data.tokenizer.kind=byte",
    "steps=1",
    "batch_size=1",
    "seq_len=8",
    "eval_every=null",
    "save_every=null",
    "sample=null",
    "device=cpu",
]


@kind(quick=3)
def data_trained(rng: Random, place: Place) -> Case:
    """Data that a run of one step reads."""
    copy_seeds(place, "data")
    name = rng.choice(["text.txt", "rows.jsonl", "rows.jsonl.gz", "labels.jsonl", "chat.jsonl", "rows.parquet"])
    file = place.folder / "data" / name
    if not file.exists():  # no pyarrow
        name, file = "text.txt", place.folder / "data" / "text.txt"
    what = mutate_data(rng, file, place)
    source = {"text.txt": "text", "rows.parquet": "parquet"}.get(name, "jsonl")
    return Case(["train", *SMALL, f"data={source}", f"data.path=data/{name}"], f"{name}: {what}")


def mutate_data(rng: Random, file: Path, place: Place) -> str:
    """Mutate data: rows as trees, what a .gz holds, or bytes; sometimes by what is far too large."""
    roll = rng.random()
    if roll < 0.12:
        return write_large(rng, file)
    if file.suffix == ".gz" and roll < 0.7:
        inner = file.with_name("rows.jsonl")
        what = mutate_file(rng, inner, place, ("text",))
        if inner.is_file() and not inner.is_symlink():
            file.write_bytes(gzip.compress(inner.read_bytes(), mtime=0))
        return what
    return mutate_file(rng, file, place, ("text", "label", "messages", "role", "content"))


def write_large(rng: Random, file: Path) -> str:
    """Write a file that is small on the disk and large when it is read, or whose one line is."""
    if file.suffix == ".gz":
        member, times = gzip.compress(b"x" * (64 << 20), 1, mtime=0), rng.choice([2, 96])
        file.write_bytes(gzip.compress(b'{"text": "', mtime=0) + member * times + gzip.compress(b'"}\n', mtime=0))
        return f"a line of {times * 64} MB"
    size = rng.choice([1, 20]) << 20
    file.write_bytes(
        rng.choice([b"x" * size, bytes(size), b"\n" * size, b"[" * size, b'{"text": "' + b"a" * size + b'"}\n'])
    )
    return f"{size >> 20} MB of one sort"


@kind(quick=6)
def data_evaluated(rng: Random, place: Place) -> Case:
    """Texts, pairs and queries that a model is evaluated on."""
    copy_seeds(place, "hf", "data")
    name = rng.choice(["text.txt", "pairs.csv", "queries.csv", "rows.jsonl", "task.yaml"])
    what = mutate_file(rng, place.folder / "data" / name, place, ("sentence1", "score", "query"))
    words = {
        "text.txt": "--file data/text.txt --context 16 --weights int8"
        if rng.random() < 0.3
        else "--file data/text.txt --context 16",
        "pairs.csv": "--similarity data/pairs.csv",
        "queries.csv": "--retrieval data/queries.csv",
        "rows.jsonl": "data=jsonl data.path=data/rows.jsonl",
        "task.yaml": "--tasks data/task.yaml",
    }[name]
    return Case(["eval", "hf", "--device", "cpu", *words.split()], f"{name}: {what}")


@kind(quick=10)
def prompts(rng: Random, place: Place) -> Case:
    """Prompts: files of lines and of requests, standard input, schemas, grammars and patterns."""
    copy_seeds(place, "hf", "data")
    words = ["generate", "--checkpoint", "hf", "--device", "cpu", "--max-new-tokens", "2"]
    roll = rng.random()
    if roll < 0.55:
        name = rng.choice(["prompts.jsonl", "prompts.jsonl", "prompts.txt"])
        what = mutate_file(rng, place.folder / "data" / name, place, REQUEST)
        out = rng.choice([[], ["--out", "o.jsonl"], ["--out", "o.jsonl", "--logprobs", "2"]])
        return Case([*words, "--prompt-file", f"data/{name}", *out], f"{name}: {what}")
    if roll < 0.75:
        data, what = mutate_bytes(rng, b"the cat\nthe \xff\xfe dog\n")
        return Case([*words, *rng.choice([["--prompt", "-"], ["--prompt-file", "-"]])], f"standard input: {what}", data)
    name, option = rng.choice([("schema.json", "--json-schema"), ("grammar.lark", "--grammar")])
    what = mutate_file(
        rng, place.folder / "data" / name, place, ("pattern", "$ref", "items", "enum", "anyOf", "maxLength")
    )
    return Case([*words, "--prompt", "cat", option, f"data/{name}"], f"{name}: {what}")


REQUEST = (
    "stop",
    "stop_ids",
    "bad_words",
    "logit_bias",
    "n",
    "seed",
    "json_schema",
    "regex",
    "top_k",
    "min_tokens",
    "messages",
)


@kind(quick=620)
def fit_json(rng: Random, place: Place) -> Case:
    """What `zoo fit --out` writes, and what is predicted by it."""
    copy_seeds(place, "fit.json")
    what = mutate_file(rng, place.folder / "fit.json", place, ("E", "A", "B", "alpha", "beta", "draws", "points"))
    numbers = [f"{each}" for each in ("1M", "0", "1e309", "1e-300", "1e30", "7B", "-1", "nan", "9" * 80)]
    ask = [
        ["--params", rng.choice(numbers), "--tokens", "1B"],
        ["--flops", rng.choice(numbers)],
        ["--params", "1M", "--loss", rng.choice(["3", *numbers])],
    ]
    return Case(["predict", "fit.json", *rng.choice(ask), *rng.choice([[], ["--json"]])], what)


@kind(quick=40)
def points(rng: Random, place: Place) -> Case:
    """The points that a scaling law is fitted to."""
    copy_seeds(place, "data")
    file = place.folder / "data" / rng.choice(["points.csv", "points.jsonl"])
    if file.suffix == ".csv" and rng.random() < 0.6:
        lines = file.read_text().splitlines()
        at = rng.randrange(len(lines))
        cells = lines[at].split(",")
        odd = choose_odd(rng, place, 1.5)
        cells[rng.randrange(3)] = odd.text if isinstance(odd, Raw) else str(odd)
        lines[at], what = ",".join(cells), f"line {at + 1}: {ascii(cells)[:120]}"
        file.write_text("\n".join(lines) + "\n", errors="surrogatepass")
    else:
        what = mutate_file(rng, file, place, ("params", "tokens", "loss"))
    more = rng.choice(
        [[], ["--approach", "2"], ["--hold-out", "1"], ["--out", "f.json"], ["--drop-highest", "1"], ["--json"]]
    )
    return Case(["fit", f"data/{file.name}", "--bootstrap", rng.choice(["0", "3"]), *more], f"{file.name}: {what}")


@kind(quick=440)
def verdict(rng: Random, place: Place) -> Case:
    """Verdicts, cards and other figures, given where runs, fits and recipes are expected."""
    file = rng.choice(sorted([*TREE.glob("recipes/verdicts/*.json"), *TREE.glob("recipes/cards/*.json")]))
    place.folder.joinpath("own").mkdir()
    own = (
        place.folder
        / "own"
        / rng.choice(["sweep.json", "result.json", "verdict.json", "fit.json", "config.json", "training.json"])
    )
    own.write_bytes(file.read_bytes())
    if rng.random() < 0.7:
        what = mutate_file(rng, own, place)
    else:
        own.write_bytes(write_json(choose_odd(rng, place, json.loads(file.read_text()))))
        what = "replaced"
    lines = [
        "report own",
        "runs own",
        "stats own",
        "check own",
        f"predict own/{own.name} --flops 1e20",
        f"recipes own/{own.name}",
    ]
    return Case(
        choose_words(rng, [*lines, f"stats own/{own.name}", "plot own", "diff own llama-tiny"]),
        f"{own.name} of {file.stem}: {what}",
    )
