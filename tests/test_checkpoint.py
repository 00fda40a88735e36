"""Checkpoints: what is read is what was written, faults are named, and no write leaves half of one."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import every_choice, model_of, name

from zoo import runs
from zoo.checkpoint import store
from zoo.data.tokenizer import Tokenizer, byte_tokenizer
from zoo.errors import CheckpointError
from zoo.grammar import to_dict
from zoo.grammar.saved import read_spec
from zoo.training.optim import AdamW


def ids() -> torch.Tensor:
    return torch.randint(0, 67, (2, 11))


def trained(steps: int = 2):
    """A model and an optimizer with a state."""
    model = model_of().train()
    optimizer = AdamW().build(model)
    for _ in range(steps):
        model(ids()).logits.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def save(run, step, model, optimizer, keep=2):
    return store.save_run(run, step, store.Resumable(model, optimizer, {"step": step}), byte_tokenizer(), keep)


# ---------------------------------------------------------------- a model


@pytest.mark.parametrize("overrides", list(every_choice()), ids=name)
def test_what_is_loaded_is_the_architecture_and_the_weights_that_were_saved(overrides, tmp_path):
    model = model_of(overrides)
    store.save_model(model, tmp_path / "saved")
    loaded = store.load(tmp_path / "saved")
    assert loaded.spec == model.spec and not loaded.training
    batch = ids()
    assert torch.equal(loaded(batch).logits, model(batch).logits)


def test_a_checkpoint_is_read_in_the_dtype_of_its_file_or_in_the_one_asked_for(tmp_path):
    model = model_of(dtype="bf16")
    store.save_model(model, tmp_path)
    assert {each.dtype for each in store.load(tmp_path).parameters()} == {torch.bfloat16}
    loaded = store.load(tmp_path, dtype="fp32").state_dict()
    assert all(torch.equal(loaded[key], each.float()) for key, each in model.state_dict().items())


def test_the_weights_file_has_the_names_and_the_values_of_the_state_dict(tmp_path):
    model = model_of()
    store.save_model(model, tmp_path)
    tensors, state = load_file(tmp_path / "model.safetensors"), model.state_dict()
    assert tensors.keys() == state.keys()
    assert all(torch.equal(tensors[key], state[key]) for key in state)


def test_the_tokenizer_is_saved_beside_the_model(tmp_path):
    store.save_model(model_of(), tmp_path, byte_tokenizer())
    assert Tokenizer.load(tmp_path).encode("héllo") == list("héllo".encode())


def test_every_difference_between_weights_and_architecture_is_a_line_of_its_own(tmp_path):
    store.save_model(model_of(), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["blocks.0.ffn.upp.weight"] = tensors.pop("blocks.0.ffn.up.weight")
    tensors["norm.weight"] = tensors["norm.weight"][:5].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as refused:
        store.load(tmp_path)
    missing, unexpected, shape = refused.value.faults
    assert "blocks.0.ffn.up.weight is missing, of shape [48, 32] (did you mean 'blocks.0.ffn.upp.weight'?)" in missing
    assert "blocks.0.ffn.upp.weight belongs to no part" in unexpected
    assert "norm.weight has shape [5], the model's is [32]" in shape


BROKEN = {
    "zoo.yaml": [
        (None, "no checkpoint in it"),
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ("format: 2\nmodel: {}\n", "is of format 2, this zoo reads 1"),
        ("format: 1\nmodel: {kind: decoder}\n", "model.vocab_size: is missing"),
    ],
    "model.safetensors": [(None, "no such file"), ("torn", "cannot be read"), ("", "cannot be read")],
}


@pytest.mark.parametrize("file, text, said", [(file, *case) for file, cases in BROKEN.items() for case in cases])
def test_a_broken_checkpoint_is_refused_by_the_file_that_is_at_fault(file, text, said, tmp_path):
    store.save_model(model_of(), tmp_path / "saved")
    if text is None:
        (tmp_path / "saved" / file).unlink()
    else:
        (tmp_path / "saved" / file).write_text(text)
    with pytest.raises(CheckpointError) as refused:
        store.load(tmp_path / "saved")
    assert any(said in fault for fault in refused.value.faults)
    assert all(fault.startswith(str(tmp_path / "saved")) and "\n" not in fault for fault in refused.value.faults)


def test_a_torn_weights_file_is_refused(tmp_path):
    store.save_model(model_of(), tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match="cannot be read"):
        store.load(tmp_path)


def test_saving_replaces_a_checkpoint_and_nothing_else(tmp_path):
    first, second = model_of(seed=1), model_of(seed=2)
    store.save_model(first, tmp_path / "saved")
    store.save_model(second, tmp_path / "saved")
    batch = ids()
    assert torch.equal(store.load(tmp_path / "saved")(batch).logits, second(batch).logits)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep")
    for place in ("mine", "mine/notes.txt"):
        with pytest.raises(CheckpointError, match="no checkpoint of ours"):
            store.save_model(first, tmp_path / place)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["mine", "saved"]


# ---------------------------------------------------------------- a run


def test_a_path_may_be_a_run_its_checkpoints_or_one_of_them(tmp_path):
    model, optimizer = trained()
    save(tmp_path, 5, model, optimizer)
    newest = save(tmp_path, 10, model, optimizer)
    assert runs.find(tmp_path) == runs.find(tmp_path / "checkpoints") == runs.find(newest) == newest
    for path, said in ((tmp_path / "nowhere", "no such folder"), (tmp_path.parent, "no checkpoint in it")):
        with pytest.raises(CheckpointError, match=said):
            runs.find(path)
    (tmp_path / "checkpoints/latest").write_text("step-000007\n")
    with pytest.raises(CheckpointError, match=r"step-000007, which is not there \(there are: step-000005, step-000010"):
        runs.find(tmp_path)


def test_the_newest_checkpoints_stay(tmp_path):
    model, optimizer = trained()
    for step in (5, 50, 500, 5_000_000):
        save(tmp_path, step, model, optimizer, keep=2)
    assert [each.name for each in runs.steps(tmp_path / "checkpoints")] == ["step-000500", "step-5000000"]


def test_optimizer_weights_and_random_numbers_come_back_as_they_were(tmp_path):
    model, optimizer = trained()
    folder = save(tmp_path, 2, model, optimizer)
    drawn = torch.rand(3)
    other, fresh = model_of(seed=9), None
    fresh = AdamW().build(other)
    assert store.load_run(folder, other, fresh) == {"format": 1, "step": 2}
    assert torch.equal(torch.rand(3), drawn)
    for (key, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs), key
        before, after = optimizer.state[ours], fresh.state[theirs]
        assert before.keys() == after.keys()
        assert all(torch.equal(before[each], after[each]) for each in before)


def test_training_does_not_go_on_from_a_model_alone(tmp_path):
    store.save_model(model_of(), tmp_path)
    with pytest.raises(CheckpointError, match="a model alone"):
        store.read_counters(tmp_path)


def test_a_checkpoint_holds_nothing_that_is_run_on_loading(tmp_path):
    model, optimizer = trained()
    folder = save(tmp_path, 2, model, optimizer)
    kinds = {each.suffix for each in folder.iterdir()}
    assert kinds == {".json", ".safetensors", ".yaml"}
    assert json.loads((folder / "training.json").read_text())["step"] == 2


# ---------------------------------------------------------------- all or nothing


def test_a_write_that_fails_leaves_the_older_checkpoint_and_no_trace(tmp_path, monkeypatch):
    model, optimizer = trained()
    older = save(tmp_path, 2, model, optimizer)

    def full(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(store, "write_state", full)
    with pytest.raises(OSError, match="no space"):
        save(tmp_path, 4, model, optimizer)
    assert runs.find(tmp_path) == older
    assert sorted(each.name for each in (tmp_path / "checkpoints").iterdir()) == ["latest", "step-000002"]
    store.load(tmp_path)


DIE = """
import os, pathlib, sys
sys.path.insert(0, "tests")
import test_checkpoint as here
from zoo import runs
from zoo.checkpoint import store
model, optimizer = here.trained()
for moment in sys.argv[2:]:
    run = pathlib.Path(sys.argv[1], moment)
    here.save(run, 2, model, optimizer)
    if os.fork():
        os.wait()
        continue
    name, number = moment.split("-")
    calls, real = iter(range(int(number) + 1)), getattr(os, name)
    setattr(os, name, lambda *args: real(*args) if next(calls) < int(number) else os._exit(9))
    here.save(run, 4, model, optimizer)
    os._exit(0)
"""
MOMENTS = {"fsync-1": 2, "rename-0": 2, "fsync-8": 2, "replace-0": 2, "fsync-9": 4}
"""At which call of which function a process dies, and which checkpoint is then the newest."""


def test_a_process_killed_at_any_moment_leaves_a_whole_checkpoint(tmp_path, pytestconfig):
    command = [sys.executable, "-c", DIE, str(tmp_path), *MOMENTS]
    subprocess.run(command, cwd=pytestconfig.rootpath, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    for moment, newest in MOMENTS.items():
        run = tmp_path / moment
        assert runs.find(run).name == f"step-{newest:06}", moment
        store.load(run)
        model, optimizer = trained()
        assert store.load_run(runs.find(run), model, optimizer)["step"] == newest
        save(run, 4, model, optimizer)
        assert sorted(each.name for each in (run / "checkpoints").iterdir()) == ["latest", "step-000002", "step-000004"]


def test_architectures_are_written_so_that_they_read_back_equal(tmp_path):
    model = model_of(["position=rope_yarn"])
    store.save_model(model, tmp_path)
    assert to_dict(read_spec(tmp_path)) == to_dict(model.spec)
