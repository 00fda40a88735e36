"""Checkpoints: what is read is what was written, faults are named, and no write leaves half of one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from support.packaged_specs import one_in
from support.tiny_models import every_choice, model_of, name
from zoo import disk, runs
from zoo.checkpoint import store
from zoo.checkpoint.tensor_files import TensorReader, read_header, read_headers, stream_tensors, write_tensors
from zoo.data.tokenizer import Tokenizer, make_byte_tokenizer
from zoo.errors import CheckpointError, ConfigError
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
    return store.save_run(run, step, store.Resumable(model, optimizer, {"step": step}), make_byte_tokenizer(), keep)


# ---------------------------------------------------------------- a model


@pytest.mark.parametrize("overrides", one_in(3, every_choice()), ids=name)
def test_what_is_loaded_is_the_architecture_and_the_weights_that_were_saved(overrides, tmp_path):
    model = model_of(overrides)
    store.save_model(model, tmp_path / "saved")
    loaded = store.load(tmp_path / "saved")
    assert loaded.spec == model.spec and not loaded.training
    saved, read, batch = model.state_dict(), loaded.state_dict(), ids()
    assert list(saved) == list(read) and all(torch.equal(saved[name], read[name]) for name in saved)
    # A product's last bit may depend on where its weights lie in memory, and those of a file lie otherwise.
    torch.testing.assert_close(loaded(batch).logits, model(batch).logits, rtol=1e-5, atol=1e-5)


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
    store.save_model(model_of(), tmp_path, make_byte_tokenizer())
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
        ("{", ": not YAML"),
        ("[]", "zoo.yaml: is a list of 0 (a mapping)"),
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


def safetensors_file(path, entries, size: int, length: int | None = None):
    """A file with any header, before `size` bytes of zeros."""
    text = json.dumps(entries).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + bytes(size))
    return path


def entry(start: int, end: int, shape=(2,), dtype="F32") -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


HEADERS = {
    "an overlap": ({"a": entry(0, 8), "b": entry(4, 12)}, 12, None),
    "a gap": ({"a": entry(0, 8), "b": entry(12, 20)}, 20, None),
    "bytes that no tensor has": ({"a": entry(0, 8)}, 12, None),
    "an end behind the file's": ({"a": entry(0, 8), "b": entry(8, 16)}, 12, None),
    "a start below 0": ({"a": entry(-8, 0)}, 0, None),
    "fewer bytes than its shape": ({"a": entry(0, 8, (3,))}, 8, None),
    "another size of its dtype": ({"a": entry(0, 8, dtype="F64")}, 8, None),
    "a negative size": ({"a": entry(0, 8, (-1, -2))}, 8, None),
    "a length behind the file's end": ({"a": entry(0, 8)}, 8, 10_000),
    "a length beyond the format's": ({"a": entry(0, 8)}, 8, 1 << 60),
    "no object": ([], 0, None),
    "no offsets": ({"a": {"dtype": "F32", "shape": [2]}}, 8, None),
}


@pytest.mark.parametrize("case", HEADERS.values(), ids=HEADERS)
def test_a_header_that_does_not_fit_its_file_is_refused_as_safetensors_refuses_it(case, tmp_path):
    file = safetensors_file(tmp_path / "a.safetensors", *case)
    with pytest.raises(SafetensorError):
        load_file(file)
    said = r"a.safetensors: (cannot be read, found .* \(a safetensors file\)|header: is)"
    with pytest.raises(CheckpointError, match=said):
        read_header(file)


def test_a_header_is_read_as_safetensors_wrote_it(tmp_path):
    dtypes = (torch.bool, torch.uint8, torch.bfloat16, torch.float32, torch.int64, torch.float8_e4m3fn)
    tensors = {str(dtype): torch.zeros(3, 2).to(dtype) for dtype in dtypes}
    tensors |= {"scalar": torch.tensor(1.0), "empty": torch.zeros(0, 4)}
    save_file(tensors, tmp_path / "a.safetensors", {"format": "pt"})
    found = read_header(tmp_path / "a.safetensors")
    assert {name: header.shape for name, header in found.items()} == {k: tuple(v.shape) for k, v in tensors.items()}


def test_tensors_of_any_dtype_are_written_one_by_one_in_any_order_as_safetensors_reads_them(tmp_path):
    names = ("bool", "uint8", "float16", "bfloat16", "float32", "float64", "int64", "complex64", "float8_e4m3fn")
    dtypes = [getattr(torch, each) for each in names]
    tensors = {str(dtype): torch.arange(15).view(3, 5).to(dtype) for dtype in dtypes}  # widths that do not align
    tensors |= {"scalar": torch.tensor(1.5), "empty": torch.zeros(0, 4), "turned": torch.rand(4, 3).T}
    forms = {name: each.to("meta") for name, each in tensors.items()}
    file = tmp_path / "model.safetensors"
    stream_tensors(forms, ((name, tensors[name]) for name in sorted(tensors)), file)
    reader = TensorReader(tmp_path, read_headers(tmp_path), mapped=False)
    found = load_file(file)
    assert found.keys() == tensors.keys()
    for key, each in tensors.items():
        for read in (found[key], reader[key]):
            assert read.dtype is each.dtype and read.shape == each.shape
            assert torch.equal(read.reshape(-1).view(torch.uint8), each.reshape(-1).view(torch.uint8))


def test_a_file_that_is_cut_off_while_it_is_read_is_told(tmp_path):
    file = tmp_path / "model.safetensors"
    write_tensors({"a": torch.zeros(1000)}, file)
    reader = TensorReader(tmp_path, read_headers(tmp_path), mapped=False)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(
        CheckpointError,
        match=r"model\.safetensors: cannot be read, found an end in the middle of a tensor \(a whole file\)",
    ):
        reader["a"]


def test_another_dtype_is_that_of_parameters_alone(tmp_path):
    """A router's selection bias (DeepSeek-V3) chooses experts by small differences."""
    model = model_of(["ffn=moe", "selection_bias=true"])
    model.blocks[0].ffn.router.selection_bias.fill_(1.0001)
    store.save_model(model, tmp_path)
    loaded = store.load(tmp_path, dtype="bf16")
    assert {each.dtype for each in loaded.parameters()} == {torch.bfloat16}
    assert torch.equal(loaded.blocks[0].ffn.router.selection_bias, model.blocks[0].ffn.router.selection_bias)


def test_saving_replaces_a_checkpoint_and_nothing_else(tmp_path):
    first, second = model_of(seed=1), model_of(seed=2)
    store.save_model(first, tmp_path / "saved")
    store.save_model(second, tmp_path / "saved")
    batch = ids()
    assert torch.equal(store.load(tmp_path / "saved")(batch).logits, second(batch).logits)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep")
    for place, said in (("mine", "found notes.txt, which is no part of"), ("mine/notes.txt", "is no folder")):
        with pytest.raises(CheckpointError, match=said):
            store.save_model(first, tmp_path / place)
    (tmp_path / "saved/notes.txt").write_text("keep")  # beside a model, too
    with pytest.raises(CheckpointError, match=r"notes\.txt"):
        store.save_model(first, tmp_path / "saved")
    with pytest.raises(CheckpointError, match=r"found training\.json"):  # a run resumes from these
        store.save_model(first, save(tmp_path / "run", 2, *trained()))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["mine", "run", "saved"]
    assert (tmp_path / "saved/notes.txt").read_text() == "keep"


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


@pytest.mark.parametrize("keep", [0, 1])
def test_the_checkpoint_just_written_stays_where_the_run_was_set_back_to_an_earlier_one(tmp_path, keep):
    model, optimizer = trained()
    for step in (3, 6, 9):
        save(tmp_path, step, model, optimizer, keep=3)
    assert save(tmp_path, 4, model, optimizer, keep=keep).is_dir()
    assert runs.find(tmp_path).name == "step-000004"
    names = [each.name for each in runs.steps(tmp_path / "checkpoints")]
    assert names == ["step-000004", "step-000006", "step-000009"], "nothing later is lost before the run is past it"
    save(tmp_path, 10, model, optimizer, keep=keep)
    assert [each.name for each in runs.steps(tmp_path / "checkpoints")] == ["step-000010"]


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

    monkeypatch.setattr(store, "write_counters", full)
    with pytest.raises(OSError, match="no space"):
        save(tmp_path, 4, model, optimizer)
    assert runs.find(tmp_path) == older
    assert sorted(each.name for each in (tmp_path / "checkpoints").iterdir()) == ["latest", "step-000002"]
    store.load(tmp_path)


DIE = """
import os, pathlib, shutil, sys
sys.path[:0] = ["tests", "tests/checkpoint"]
import test_checkpoint as here
for scenario in sys.argv[2:]:
    here.kill_at_every_moment(pathlib.Path(sys.argv[1], scenario), scenario)
"""
CALLS = [(os, "fsync"), (os, "rename"), (os, "replace"), (shutil, "rmtree"), (disk, "exchange")]
"""What changes the disk for good: a process is killed before each call of each of them."""


def die_before(call: int, work) -> int:
    """Does the work in a process that dies before a call of CALLS, counted from 0; the number of calls it came to."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        seen = iter(range(1, call + 1))

        def counted(real):
            def call_or_die(*args, **kwargs):
                if next(seen, None) is None:
                    os._exit(9)
                os.write(writing, b".")
                return real(*args, **kwargs)

            return call_or_die

        for module, name in CALLS:
            setattr(module, name, counted(getattr(module, name)))
        work()
        os._exit(0)
    os.wait()
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        return len(stream.read())


def kill_at_every_moment(folder, scenario: str) -> None:
    """Writes a checkpoint after an older one, or over it, and kills the process before each of its calls in turn."""
    os.fsync = lambda handle: None  # a killed process loses nothing that it wrote: only a power cut does
    exchange = disk.exchange
    if scenario == "over-it-by-renames":
        disk.exchange = lambda one, other: False
    old, new = trained(1), trained(3)
    step = 4 if scenario == "after-it" else 2
    save(folder / "before", 2, *old, keep=1)
    total = die_before(10_000, lambda: save(shutil.copytree(folder / "before", folder / "all"), step, *new, keep=1))
    assert total > 10
    seen = set()
    for call in range(total + 1):
        run = shutil.copytree(folder / "before", folder / str(call))
        die_before(call, lambda run=run: save(run, step, *new, keep=1))
        if scenario == "over-it":  # a reader finds it at every moment
            assert (run / "checkpoints/step-000002").is_dir(), call
        tensors = load_file(runs.find(run) / "model.safetensors")
        states = load_file(runs.find(run) / "training.safetensors")
        wrote = new if torch.equal(tensors["norm.weight"], new[0].norm.weight) else old
        assert all(torch.equal(tensors[key], each) for key, each in wrote[0].state_dict().items()), call
        moment = wrote[1].state[wrote[0].norm.weight]["exp_avg"]
        assert torch.equal(states["optimizer.norm.weight/exp_avg"], moment), call
        seen.add(wrote is new)
        save(run, 4, *new, keep=1)
        assert sorted(each.name for each in (run / "checkpoints").iterdir()) == ["latest", "step-000004"], call
    assert seen == {False, True}
    disk.exchange = exchange


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forks of itself")
def test_a_process_killed_at_any_moment_leaves_a_whole_checkpoint(tmp_path, pytestconfig):
    for each in ("one", "other"):
        (tmp_path / each).mkdir()
    scenarios = ["after-it", "over-it-by-renames"]
    if disk.exchange(tmp_path / "one", tmp_path / "other"):  # not on every file system
        scenarios.append("over-it")
    command = [sys.executable, "-c", DIE, str(tmp_path), *scenarios]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=pytestconfig.rootpath, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_working_folder_is_read_by_its_dot_but_not_replaced(tmp_path, monkeypatch):
    save(tmp_path / "run", 2, *trained())
    monkeypatch.chdir(tmp_path / "run")
    assert runs.find(".") == runs.find(tmp_path / "run").relative_to(tmp_path / "run")
    monkeypatch.chdir("checkpoints/step-000002")
    assert runs.find(".").samefile(runs.find(tmp_path / "run"))
    for folder in (".", "..", tmp_path):
        with pytest.raises(ConfigError, match="the folder you are in"), disk.replace_folder(Path(folder)):
            pass
    assert (tmp_path / "run/checkpoints/step-000002/zoo.yaml").is_file()
    with pytest.raises(CheckpointError, match="no checkpoint in it"):
        runs.find("/")


@pytest.mark.parametrize("content", [b"\xff\x00", b"", b"../..", b"step-000009"])
def test_a_pointer_to_no_checkpoint_of_the_run_is_refused(content, tmp_path):
    save(tmp_path, 2, *trained())
    (tmp_path / "checkpoints/latest").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"which is not there \(there are: step-000002\)"):
        runs.find(tmp_path)


def test_a_folder_that_the_user_put_beside_the_checkpoints_is_left_alone(tmp_path):
    model, optimizer = trained()
    save(tmp_path, 2, model, optimizer)
    shutil.copytree(tmp_path / "checkpoints/step-000002", tmp_path / "checkpoints/step-000002-best")
    for step in (4, 6, 8):
        save(tmp_path, step, model, optimizer)
    assert [each.name for each in runs.steps(tmp_path / "checkpoints")] == ["step-000006", "step-000008"]
    assert (tmp_path / "checkpoints/step-000002-best/zoo.yaml").is_file()


def test_architectures_are_written_so_that_they_read_back_equal(tmp_path):
    model = model_of(["position=rope_yarn"])
    store.save_model(model, tmp_path)
    assert to_dict(read_spec(tmp_path)) == to_dict(model.spec)
