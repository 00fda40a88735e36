"""What a run does not change is written as it was read: tokenizers of each manner, through a run, its checkpoints and
exports, and what transformers alone reads of them in a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import zoo
import zoo.cli
from support import published_folders
from support.reference_folders import run
from zoo.checkpoint.beside import list_beside
from zoo.data.tokenizer import Tokenizer, train_bpe

TEXTS = ["the cat", "a dog ran in the park, and then it slept in the sun in the park " * 3, "42"]
SMALL = ("data=text", "data.path=text.txt", "steps=2", "batch_size=2", "seq_len=16", "eval_batches=1", "sample=null")

READ = """
import json, sys, transformers
folders, texts, task = json.loads(sys.argv[1])
for folder in folders:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    found = {"ids": tokenizer(texts, padding=True, truncation=True)["input_ids"], "limit": tokenizer.model_max_length}
    if tokenizer.chat_template:
        found["chat"] = tokenizer.apply_chat_template([{"role": "user", "content": texts[0]}], tokenize=False)
    cut = {"tokenizer_kwargs": {"truncation": True}} if task == "fill-mask" else {"truncation": True}
    given = [f"{tokenizer.mask_token} {each}" for each in texts] if task == "fill-mask" else texts
    options = {"max_new_tokens": 1} if task == "text-generation" else {}
    found["pipeline"] = len(transformers.pipeline(task, folder)(given, batch_size=3, **cut, **options))
    print(json.dumps(found))
"""


def read_alone(task: str, *folders: Path) -> list[dict]:
    """What transformers reads of each folder in a process without zoo."""
    command = [sys.executable, "-c", READ, json.dumps([[str(each) for each in folders], TEXTS, task])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folders[0])
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()[-len(folders) :]]


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in list_beside(folder)}


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        ("bert", "fill-mask"),
        pytest.param("llama", "text-generation", marks=pytest.mark.slow),
        pytest.param("roberta", "fill-mask", marks=pytest.mark.slow),
    ],
)
def test_what_a_run_does_not_change_comes_out_as_it_went_in(kind, task, here, capsys):
    made = getattr(published_folders, kind)(here / "made")
    for name in ("1_Pooling/config.json", "modules.json", "preprocessor_config.json", "added_tokens.json"):
        (made / name).parent.mkdir(exist_ok=True)
        (made / name).write_text("{ }\r\n")  # with the bytes that no writer here would give it
    kinds = {"": "Transformer", "1_Pooling": "Pooling"}
    (made / "modules.json").write_text(
        json.dumps([{"path": path, "type": f"a.{kind}"} for path, kind in kinds.items()])
    )
    before = contents(made)
    assert len(before) >= 6
    assert (
        zoo.cli.run(["train", *SMALL, f"weights={made}", "save_every=1", "keep=3", "ema=0.9", "hydra.run.dir=ours"])
        == 0
    )
    assert zoo.cli.run(["train", "--resume", "ours", "steps=3"]) == 0
    assert zoo.cli.run(["train", *SMALL, "weights=ours", "hydra.run.dir=second"]) == 0
    for source, out in (("ours@1", "first"), ("ours", "out"), ("ours/ema", "ema"), ("second", "third")):
        assert run(capsys, "convert", source, here / out, "--no-verify")[0] == 0
        assert contents(here / out) == before, source
    assert run(capsys, "convert", made, here / "own", "--to", "zoo")[0] == 0
    assert contents(here / "own") == before
    ours, theirs = read_alone(task, here / "out", made)
    assert ours == theirs
    theirs, ours = (json.loads((each / "config.json").read_text()) for each in (made, here / "out"))
    for name in ("eos_token_id", "bos_token_id", "pad_token_id"):
        assert ours.get(name) == theirs.get(name), name


def test_a_tokenizer_that_was_trained_here_pads_and_cuts_in_transformers(here, capsys):
    own = ["model.n_layers=1", "model.max_seq_len=20", "data.tokenizer.vocab_size=300", "model.vocab_size=300"]
    assert zoo.cli.run(["train", *SMALL, *own, "hydra.run.dir=ours"]) == 0
    assert run(capsys, "convert", "ours", here / "out", "--no-verify")[0] == 0
    found, tokenizer = (
        read_alone("text-generation", here / "out")[0],
        Tokenizer.load(here / "ours/checkpoints/step-000002"),
    )
    assert found["limit"] == 20
    assert found["ids"] == [
        [*ids, *[tokenizer.eos_id] * (20 - len(ids))] for ids in (tokenizer.encode(each)[:20] for each in TEXTS)
    ]


def test_tokens_that_an_objective_adds_are_the_only_change(here):
    made = published_folders.llama(here / "made")
    bare = published_folders.bert(here / "bert", "BertForSequenceClassification")
    tokenizer = Tokenizer.load(made)
    tokenizer.files = made
    tokenizer.add_special(["</s>"])  # is there
    tokenizer.save(here / "same")
    assert contents(here / "same") == contents(made)
    tokenizer.add_special(["[MASK]"])
    tokenizer.save(here / "grown")
    changed = {name for name, text in contents(here / "grown").items() if contents(made)[name] != text}
    assert changed == {"tokenizer.json"}
    assert Tokenizer.load(here / "grown").encode("a[MASK]")[-1] == tokenizer.ids_of(["[MASK]"])[0]
    other = Tokenizer.load(made, "<|end|>")
    other.files = made
    other.save(here / "other")
    stated = json.loads((here / "other/tokenizer_config.json").read_text())
    assert stated == {**json.loads((made / "tokenizer_config.json").read_text()), "eos_token": "<|end|>"}
    assert Tokenizer.load(here / "other").eos == "<|end|>"
    assert Tokenizer.load(bare).eos == "[SEP]"


def test_embeddings_are_kept_under_another_tokenizer_only_if_that_is_asked_for(here, refused, capsys):
    made = published_folders.llama(here / "made")
    train_bpe(["the cat sat on the mat"] * 4, 290).save(here / "words")
    other = ["data.tokenizer.kind=file", "data.tokenizer.path=words"]
    capsys.readouterr()
    (line,) = refused("train", *SMALL, f"weights={made}", *other, "hydra.run.dir=ours")
    assert line.startswith(f"data.tokenizer: is not that of {made}, ")
    assert line.endswith("(the weights' own tokenizer, or other_tokenizer=true)")
    assert " ids of other tokens, 0 of '<|endoftext|>', not '<pad>' " in line
    (line,) = refused("train", *SMALL, f"weights={made}", "data.tokenizer.vocab_size=290", "hydra.run.dir=ours")
    assert "found a BPE that is trained on this data" in line
    assert zoo.cli.run(["train", *SMALL, f"weights={made}", *other, "other_tokenizer=true", "hydra.run.dir=ours"]) == 0
    assert "weights: their embeddings are kept under another tokenizer: found " in capsys.readouterr().err
    kept = contents(here / "ours/tokenizer")
    assert kept == contents(here / "words")  # neither the template nor the ids of the weights' own tokenizer
    (line,) = refused("train", *SMALL, "other_tokenizer=true", "hydra.run.dir=none")
    assert line == "other_tokenizer: is true, and no weights are read (weights=FOLDER)"
    assert not (here / "none").exists()
