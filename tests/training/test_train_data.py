"""Training on data: the position of a run, mixes, and the bits per byte of what was scored."""

import json
import math

import pytest
import torch
from torch.nn import functional as F

from support.corpora import POEM
from zoo.checkpoint import store
from zoo.data import Batches, DataSettings, hold_out, prepare
from zoo.errors import ConfigError
from zoo.jobs.plan import plan_launch, task_config
from zoo.jobs.train import resume_run, start_run
from zoo.training.planning import plan_training

TINY = [
    *("model.n_layers=1", "model.d_model=32", "model.n_heads=4", "model.n_kv_heads=2", "model.head_dim=8"),
    *("model.d_ff=48", "model.vocab_size=257", "model.max_seq_len=32", "data.tokenizer.kind=byte", "sample=null"),
    *("steps=4", "batch_size=4", "seq_len=16", "eval_every=null", "eval_batches=2", "save_every=2"),
]


@pytest.fixture
def config(tmp_path):
    """Composes the packaged training config with TINY and a test's own overrides laid over it."""
    for number in range(20):
        (tmp_path / "text").mkdir(exist_ok=True)
        (tmp_path / "text" / f"{number}.txt").write_text("".join(POEM[number * 9 : number * 9 + 9]), "utf-8")
    with open(tmp_path / "a.jsonl", "w") as file:
        file.writelines(json.dumps({"text": line * 3, "q": "a", "a": line}) + "\n" for line in POEM[200:260])

    def compose(*overrides):
        data = (
            () if any(each.startswith("data=") for each in overrides) else ("data=text", f"data.path={tmp_path}/text")
        )
        with plan_launch([*TINY, *data, *overrides], check=False) as plan:
            return task_config(plan.jobs[0])

    return compose


def lines_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def consumed(run, step) -> int:
    return json.loads((run / f"checkpoints/step-{step:06}/training.json").read_text())["data"]["consumed"]


def nats_of(model, row: torch.Tensor) -> float:
    return float(F.cross_entropy(model(row[None, :-1]).logits[0], row[1:], reduction="sum").detach())


def test_a_run_goes_on_with_another_batch_size_and_reads_each_row_once(config, tmp_path, monkeypatch):
    seen, read = [], Batches.read
    monkeypatch.setattr(Batches, "read", lambda *args: (batch := read(*args), seen.extend(batch.input_ids.tolist()))[0])
    start_run(config("steps=12"), tmp_path / "whole")
    whole = seen[:]
    seen.clear()
    start_run(config("keep=9"), tmp_path / "parts")
    resume_run(tmp_path / "parts", ["steps=7", "batch_size=8", "accumulate=2"])
    assert (consumed(tmp_path / "parts", 4), consumed(tmp_path / "parts", 7)) == (16, 40)
    resume_run(tmp_path / "parts", ["steps=9", "batch_size=4", "accumulate=4"])
    assert seen == whole


def test_runs_of_one_data_seed_read_the_same_rows_from_other_initial_weights(config, tmp_path, monkeypatch):
    seen, read = [], Batches.read
    monkeypatch.setattr(Batches, "read", lambda *args: (batch := read(*args), seen.extend(batch.input_ids.tolist()))[0])
    rows, losses = [], []
    for name, seeds in {"a": ("seed=0",), "b": ("seed=1", "data_seed=0"), "c": ("seed=1",)}.items():
        start_run(config("steps=2", *seeds), tmp_path / name)
        rows.append(seen[:])
        losses.append(lines_of(tmp_path / name)[0]["loss"])
        seen.clear()
    assert rows[0] == rows[1] != rows[2] and len(set(losses)) == 3


def test_the_halves_of_a_validation_split_have_no_row_in_common_and_together_are_the_whole(config):
    (source,) = prepare(plan_training(config("eval_batches=null")).data).held_out
    rows = {
        part: [
            row.tolist()
            for batch in hold_out([source], 4, 16, wanted=None, documents=False, part=part)[0].batches
            for row in batch.input_ids
        ]
        for part in ("all", "tuning", "reporting")
    }
    halves = rows["tuning"] + rows["reporting"]
    assert abs(len(rows["tuning"]) - len(rows["reporting"])) <= 1
    assert (
        halves == rows["all"][: len(halves)] and len(rows["all"]) - len(halves) <= 1
    )  # the whole has the last ids too
    few = hold_out([source], 2, 16, wanted=2, documents=False, part="reporting")[0].batches[0].input_ids.tolist()
    assert all(row in rows["reporting"] for row in few)


def test_a_checkpoint_of_an_earlier_version_is_refused_in_one_line(config, tmp_path):
    start_run(config(), tmp_path / "run")
    file = tmp_path / "run/checkpoints/step-000004/training.json"
    state = json.loads(file.read_text())
    del state["xxh3"]  # it had no checksum, nor a manifest
    (file.parent / "manifest.json").unlink()
    state["data"] = {"step": 4, "seed": 0, "batch_size": 4, "seq_len": 16, "n_tokens": 99, "key": "old"}
    file.write_text(json.dumps(state))
    with pytest.raises(ConfigError, match="position is of another version's order of rows, found a count of steps"):
        resume_run(tmp_path / "run", ["steps=6"])


def test_bits_per_byte_of_a_sample_are_over_the_bytes_of_its_targets(config, tmp_path):
    cfg = config("eval_batches=1", "batch_size=2", "seq_len=13")
    result = start_run(cfg, tmp_path / "run")
    ready = prepare(DataSettings.read({"kind": "text", "path": cfg.data.path, "tokenizer": {"kind": "byte"}}))
    (held,) = hold_out(ready.held_out, 2, 13, wanted=2, documents=False)
    (batch,) = held.batches
    model = store.load(tmp_path / "run")
    rows = torch.cat([batch.input_ids, batch.targets[:, -1:]], 1)
    nats = sum(nats_of(model, row) for row in rows)
    scored = int((batch.targets != ready.tokenizer.eos_id).sum())  # a token is a byte, but for the end of text
    assert result["bits_per_byte"] == pytest.approx(nats / math.log(2) / scored, rel=1e-5)
    assert result["val_loss"] == pytest.approx(nats / batch.targets.numel(), rel=1e-5)


def test_a_mix_is_evaluated_by_source_and_as_a_whole(config, tmp_path):
    records = f"records: {{kind: jsonl, path: {tmp_path}/a.jsonl, weight: 1}}"
    sources = f"{{{records}, prose: {{kind: text, path: {tmp_path}/text, weight: 3}}}}"
    start_run(config("data=mix", f"data.of={sources}", "eval_batches=null", "eval_every=2"), tmp_path / "run")
    lines = [line for line in lines_of(tmp_path / "run") if "val_loss" in line]
    assert len(lines) == 2
    planned = plan_training(config("data=mix", f"data.of={sources}"))
    held = hold_out(prepare(planned.data).held_out, 4, 16, wanted=None, documents=False)
    model = store.load(tmp_path / "run")
    total = {}
    for each in held:
        rows = [
            torch.cat([one, other[-1:]])
            for b in each.batches
            for one, other in zip(b.input_ids, b.targets, strict=True)
        ]
        total[each.name] = (sum(nats_of(model, row) for row in rows), sum(len(row) - 1 for row in rows), each.n_bytes)
        nats, targets, n_bytes = total[each.name]
        assert lines[-1][f"val_loss/{each.name}"] == pytest.approx(nats / targets, rel=1e-5)
        assert lines[-1][f"bits_per_byte/{each.name}"] == pytest.approx(nats / math.log(2) / n_bytes, rel=1e-5)
    nats, targets, n_bytes = (sum(column) for column in zip(*total.values(), strict=True))
    assert lines[-1]["val_loss"] == pytest.approx(nats / targets, rel=1e-5)
    assert lines[-1]["bits_per_byte"] == pytest.approx(nats / math.log(2) / n_bytes, rel=1e-5)
    again = start_run(config("data=mix", f"data.of={sources}"), tmp_path / "other")
    assert again["steps"] == 4


def test_pairs_are_refused_by_an_objective_that_learns_from_text(config, tmp_path):
    pairs = ("data=jsonl", f"data.path={tmp_path}/a.jsonl", "data.source=q", "data.target=a")
    with pytest.raises(ConfigError, match=r"next_token reads text, found pairs in data=jsonl"):
        plan_training(config(*pairs))


def test_pairs_of_a_file_train_a_decoder(config, tmp_path):
    pairs = ("data=jsonl", f"data.path={tmp_path}/a.jsonl", "data.source=q", "data.target=a", "objective=seq2seq")
    result = start_run(config(*pairs, "steps=12", "optim.lr=0.01"), tmp_path / "run")
    losses = [line["loss"] for line in lines_of(tmp_path / "run") if "loss" in line]
    assert losses[-1] < losses[0] and result["val_loss"] < losses[0] and result["bits_per_byte"] is None
