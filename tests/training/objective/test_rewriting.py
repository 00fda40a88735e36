"""Objectives that restore a corrupted text, learned by a decoder alone: it reads and writes in one row."""

import json

import numpy as np
import pytest
import torch
from test_objectives import KEYS, objective_of, rows_of

import zoo
from support.packaged_specs import one_in
from support.tiny_models import model_of, spec_of
from zoo.data.collate import Continued, make_generator, split_documents
from zoo.data.corrupt import Corrupted
from zoo.data.tokenizer import make_byte_tokenizer
from zoo.errors import ConfigError
from zoo.model.loss import IGNORED
from zoo.training.objective import Context

NAMES = ["span_corruption", "denoising", "ul2"]
SIZE = ["vocab_size=300", "max_seq_len=512"]
EVERY = pytest.mark.parametrize("name", NAMES)
DOCUMENTS = pytest.mark.parametrize("documents", [False, True])


def made(name, *, documents=False, prefixed=False, seq_len=64):
    """An objective, and what it makes batches for: a decoder, which may see a prefix whole."""
    objective, tokenizer = objective_of(name), make_byte_tokenizer()
    objective.extend(tokenizer, seq_len)
    spec = spec_of([*SIZE, *(["prefix_lm=true"] if prefixed else [])])
    return objective, Context(spec, tokenizer, seq_len, 0, documents)


@EVERY
@DOCUMENTS
def test_a_row_is_what_is_read_and_behind_it_what_is_written(name, documents):
    objective, context = made(name, documents=documents)
    rows = rows_of()
    batch = objective.collator(context)(rows, KEYS)
    length, width = objective.lay_out(context.spec, 64, documents)
    assert batch.input_ids.shape == batch.targets.shape == (6, width)
    corrupt = objective.corrupter(context)
    for at, (row, key) in enumerate(zip(rows[:, :length], KEYS, strict=True)):
        generator, ids, targets = make_generator(0, key), [], []
        for run in split_documents(row, 256) if documents else [row]:
            if len(run) == 1:
                continue
            part = corrupt(run, generator)
            whole = [*part.inputs, *part.targets]
            if len(ids) + len(whole) - 1 <= width:
                ids += whole[:-1]
                targets += [IGNORED] * (len(part.inputs) - 1) + [*part.targets]
        assert batch.input_ids[at, : len(ids)].tolist() == ids
        assert batch.targets[at].tolist() == targets + [IGNORED] * (width - len(targets))


def test_the_example_of_t5_in_one_row():
    def corrupt(ids, rng):
        return Corrupted(np.array([1, 90, 4, 91, 0]), np.array([90, 2, 3, 91, 5, 0]))

    made = Continued(corrupt, 0, 0, 5, False, width=11, prefixed=True)(np.array([[1, 2, 3, 4, 5, 6]]), [(0, 0)])
    assert made.input_ids.tolist() == [[1, 90, 4, 91, 0, 90, 2, 3, 91, 5, 0]]
    assert made.targets.tolist() == [[IGNORED] * 4 + [90, 2, 3, 91, 5, 0, IGNORED]]
    assert made.prefix.tolist() == [5]


@EVERY
@DOCUMENTS
def test_a_row_has_as_much_text_as_fits(name, documents):
    objective, context = made(name, documents=documents)
    for seq_len in (24, 64, 100, 512):
        length, width = objective.lay_out(context.spec, seq_len, documents)
        room = max(seq_len // 16, 1) if documents else 0
        assert width <= seq_len < objective.measure_row(length + 1) + room
        assert objective.widths(context.spec, seq_len, documents) == {"": width}


@EVERY
@torch.no_grad()
def test_documents_are_restored_apart(name):
    objective, context = made(name, documents=True)
    model = model_of(SIZE)
    batch = objective.collator(context)(rows_of(), KEYS)
    row = next(row for row in range(6) if batch.documents[row].max() >= 2)
    packed = model(batch.input_ids[row : row + 1], documents=batch.documents[row : row + 1]).logits[0]
    own = batch.documents[row] == 1
    alone = model(batch.input_ids[row][own][None]).logits[0]
    torch.testing.assert_close(packed[own], alone, atol=1e-4, rtol=1e-4)


@EVERY
@torch.no_grad()
def test_a_prefix_lm_sees_all_that_it_reads_and_writes_one_token_after_another(name):
    objective, context = made(name, prefixed=True)
    model = model_of([*SIZE, "prefix_lm=true"])
    batch = objective.collator(context)(rows_of(), KEYS)
    for row, prefix in enumerate(batch.prefix.tolist()):
        read, real = batch.input_ids[row : row + 1], batch.targets[row] != IGNORED
        assert (batch.targets[row, : prefix - 1] == IGNORED).all() and batch.targets[row, prefix - 1] != IGNORED
        logits = model(read, prefix=batch.prefix[row : row + 1]).logits[0]
        last_read, written = read.clone(), read.clone()
        last_read[0, prefix - 1] = 7
        written[0, prefix] = 7
        moved = model(last_read, prefix=batch.prefix[row : row + 1]).logits[0] - logits
        later = model(written, prefix=batch.prefix[row : row + 1]).logits[0] - logits
        assert moved[0].abs().max() > 1e-4
        assert later[:prefix].abs().max() < 1e-4 and later[prefix:][real[prefix:]].abs().max() > 1e-4


@pytest.mark.parametrize("name", one_in(3, NAMES))
def test_a_decoder_trains_on_it_and_goes_on(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 400)
    own = ["model.n_layers=2", "model.vocab_size=300", "data=text", "data.path=text.txt", "data.tokenizer.kind=byte"]
    own += ["batch_size=8", "seq_len=48", "optim.lr=3e-3", "schedule=constant", "schedule.warmup=0", "eval_batches=1"]
    own += [f"objective={name}", "steps=30", "sample.tokens=2", "hydra.run.dir=run"]
    result = zoo.train("llama-tiny", own)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert result["val_loss"] < lines[0]["loss"] - 0.5
    found = zoo.evaluate("run")
    assert found["results"][0]["loss"] > 0 and found["objective"] == name


@EVERY
def test_documents_apart_and_one_prefix_do_not_go_together(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    overrides = [f"objective={name}", "model.prefix_lm=true", "data.documents=true", "steps=1"]
    with pytest.raises(ConfigError, match=rf"data.documents: is true, and a row has one prefix, which {name} needs"):
        zoo.train("llama-tiny", overrides)
