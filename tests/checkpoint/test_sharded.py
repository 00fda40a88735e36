"""Checkpoints in shards: each process writes what it holds, and any number reads them."""

import threading
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import zoo
from support.parallel_runs import (  # noqa: F401  (a fixture)
    BASE,
    INTERLEAVED,
    MODELS,
    SCHEDULES,
    SMALL,
    ZERO_BUBBLE,
    compare,
    here,
    settle,
    spread,
)
from zoo.checkpoint.sharded import HeldTensor, Piece, ShardedTensors, save_shards
from zoo.checkpoint.tensor_check import compare_tensors
from zoo.errors import CheckpointError

STEPS = ["steps=6", "eval_every=2", "save_every=2", "batch_size=8", *BASE]


@st.composite
def draw_rectangles(draw):
    """A shape, and rectangles that together are all of it, as a grid."""
    shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    edges = []
    for size in shape:
        inner = draw(st.lists(st.integers(1, size), max_size=2)) if size > 1 else []
        edges.append(sorted({0, size, *inner}))
    found = [()]
    for each in edges:
        found = [(*rest, run) for rest in found for run in pairwise(each)]
    return shape, found


@settings(max_examples=25, deadline=None)
@given(draw_rectangles(), draw_rectangles())
def test_a_tensor_is_read_in_other_parts_than_it_was_written_in(tmp_path_factory, one, other):
    folder = tmp_path_factory.mktemp("shards")
    (shape, rectangles), (_, theirs) = one, other
    whole = torch.randn(shape)
    pieces = [cut(whole, each) for each in rectangles]
    for number, piece in enumerate(pieces):  # a file of each, as of so many processes
        save_shards({"x": HeldTensor(tuple(shape), whole.dtype, (piece,))}, folder / str(number))
        (file,) = (folder / str(number)).glob("*.safetensors")
        file.rename(folder / f"shard-{number}.safetensors")
    assert torch.equal(ShardedTensors(folder)["x"], whole)
    if len(theirs[0]) == len(shape):
        wanted = [each for each in theirs if all(stop <= size for (_, stop), size in zip(each, shape, strict=True))]
        blank = [cut(torch.zeros(shape), each) for each in wanted]
        ShardedTensors(folder).fill({"x": HeldTensor(tuple(shape), whole.dtype, tuple(blank))})
        for piece, each in zip(blank, wanted, strict=True):
            assert torch.equal(piece.tensor, cut(whole, each).tensor)


def cut(whole, rectangle):
    part = whole[tuple(slice(*run) for run in rectangle)].clone()
    return Piece(tuple(start for start, _ in rectangle), part)


@pytest.fixture
def run(here):  # noqa: F811
    zoo.train("llama-tiny", [*STEPS, *SMALL, "hydra.run.dir=whole"])
    zoo.train("llama-tiny", [*STEPS, *SMALL, "checkpoint=sharded", "hydra.run.dir=run"])
    return here / "run"


def test_what_is_read_of_shards_is_what_was_written_whole(run):
    newest = max(run.glob("checkpoints/step-*"))
    assert not (newest / "model.safetensors").exists() and (newest / "model.shards").is_dir()
    one, other = zoo.load("whole"), zoo.load("run")
    for name, each in one.state_dict().items():
        assert torch.equal(each, other.state_dict()[name])
    assert compare_tensors(run).faults == ()
    result = zoo.train(resume="run", overrides=["steps=8", "checkpoint=whole"])
    zoo.train(resume="whole", overrides=["steps=8"])
    assert result["status"] == "done"
    compare("whole", "run", near=1e-12)


def test_shards_that_are_missing_or_broken_are_told(run):
    folder = max(run.glob("checkpoints/step-*")) / "model.shards"
    (file,) = folder.iterdir()
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match=r"model.shards: cannot be read, found"):
        zoo.load("run")
    file.unlink()
    with pytest.raises(CheckpointError, match=r"model.shards: has no shards"):
        zoo.load("run")


def test_a_checkpoint_is_written_while_training_goes_on(here, monkeypatch):  # noqa: F811
    from zoo.checkpoint import store
    from zoo.training import loop

    later, save, update = threading.Event(), store.CheckpointWriter.save, loop.update

    def save_later(self, *args):
        assert later.wait(60)  # until the next step is done
        return save(self, *args)

    def update_and_tell(run):
        found = update(run)
        if run.step == 3:
            later.set()
        return found

    monkeypatch.setattr(store.CheckpointWriter, "save", save_later)
    monkeypatch.setattr(loop, "update", update_and_tell)
    own = ["eval_every=null", "save_every=2", "steps=4", "batch_size=8", "sample=null", *BASE[:-1], *SMALL]
    result = zoo.train("llama-tiny", [*own, "checkpoint=async", "hydra.run.dir=run"])
    assert result["status"] == "done"
    assert sorted(each.name for each in Path("run/checkpoints").glob("step-*")) == ["step-000002", "step-000004"]
    zoo.train("llama-tiny", [*own, "hydra.run.dir=whole"])
    for name, each in zoo.load("whole").state_dict().items():  # what was copied at step 4, not what came later
        assert torch.equal(each, zoo.load("run").state_dict()[name])


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param([(2, "tp", "sharded")], id="2"),
        pytest.param(
            [(2, "fsdp_tp", "async"), (4, "{shard: 2, tp: 2}", "sharded"), (2, "pp", "async")],
            marks=pytest.mark.slow,
            id="2-4-2",
        ),
        pytest.param([(4, "{pp: 2, shard: 2}", "async"), (4, "hsdp", "sharded")], marks=pytest.mark.slow, id="4-4"),
        pytest.param(
            [
                (2, f"{{pp: 2, {INTERLEAVED}}}", "whole"),
                (4, f"{{pp: 4, {ZERO_BUBBLE}, chunks: 1}}", "sharded"),
                (4, f"{{pp: 2, tp: 2, {SCHEDULES[-1]}}}", "async"),
            ],
            marks=pytest.mark.slow,
            id="schedules",
        ),
    ],
)
def test_a_run_goes_on_in_other_shards(changes, here):  # noqa: F811
    model, own = MODELS["chunked" if any("schedule" in way for _, way, _ in changes) else "dense"]
    common = [*BASE[:-1], *own, "sample=null", "batch_size=8", "eval_every=2", "save_every=2"]
    zoo.train(model, [*common, f"steps={2 * len(changes) + 4}", "accumulate=4", "hydra.run.dir=whole"])
    zoo.train(model, [*common, "steps=2", "accumulate=4", "checkpoint=async", "hydra.run.dir=run"])
    for number, (processes, way, how) in enumerate(changes, 2):
        accumulate = f"accumulate={4 // settle(way, processes).rows}"
        change = [f"steps={2 * number}", accumulate, f"parallel={way}", f"checkpoint={how}"]
        spread(processes, [(None, change, "run")])
    last = [f"steps={2 * len(changes) + 4}", "accumulate=4", "parallel=none", "checkpoint=whole"]
    zoo.train(resume="run", overrides=last)
    for folder in ("whole", "run"):
        Path(folder, "samples.txt").touch()
    compare("whole", "run")
