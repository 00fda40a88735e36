"""States in the host's memory: they come piece by piece, the update is the same, and the price is what is left."""

import shutil
from contextlib import contextmanager

import pytest
import torch

from support.memory_tracker import StorageTracker
from support.tiny_models import spec_of
from support.tiny_runs import compose_run, read_folder, write_corpus
from zoo import runs
from zoo.costs import Setup, price
from zoo.costs.states import states
from zoo.errors import ConfigError
from zoo.jobs.train import resume_run, start_run
from zoo.run.builder import build
from zoo.training.optim import Optim, piecewise
from zoo.training.optim.piecewise import Beside, HostMemory, Piecewise
from zoo.training.planning import plan_training
from zoo.training.precision import lower_weights

KINDS = ("adafactor", "adamw", "lion", "muon", "normuon", "schedule_free", "sgd")
SIZE = ["d_model=48", "d_ff=96", "vocab_size=97", "n_layers=1"]


class Elsewhere(Beside):
    """Another memory on the same machine: what the update has of a state is always a copy. Notes what moved."""

    def __init__(self):
        self.rooms, self.moves = [], []

    def make_room(self, shape, dtype, device):
        self.rooms.append(super().make_room(shape, dtype, device))
        return self.rooms[-1]

    def fetch(self, kept, device):
        self.moves.append(("fetch", kept.numel()))
        return kept.clone()

    def give_back(self, value, kept):
        assert value.data_ptr() != kept.data_ptr()
        self.moves.append(("give back", kept.numel()))
        super().give_back(value, kept)

    def finish(self):
        self.moves.append(("finish", 0))


def made(kind, model, place=None, rounds=False):
    optim = Optim.parse({"kind": kind, **({"dtype": "bf16"} if "muon" in kind else {})})
    rule = optim.build(model)
    return rule if place is None else Piecewise(rule, rounds=rounds, by_element=optim.by_element, place=place)


def draw_gradients(model, seed):
    torch.manual_seed(seed)
    for each in model.parameters():
        each.grad = torch.randn_like(each)


@pytest.mark.parametrize("kind", KINDS)
def test_an_update_with_states_elsewhere_is_the_same_update(kind, monkeypatch):
    monkeypatch.setattr(piecewise, "CPU_PIECE", 1000)
    models = [build(spec_of(SIZE), device="cpu", seed=1) for _ in range(2)]
    place = Elsewhere()
    plain, ours = made(kind, models[0]), made(kind, models[1], place)
    for step in range(3):
        for model in models:
            draw_gradients(model, step)
        plain.step(), ours.step()
    for (name, mine), theirs in zip(models[1].named_parameters(), models[0].parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5 if "muon" in kind else 1e-7, msg=name)
    kept = {room.data_ptr() for room in place.rooms}
    found = [each for state in ours.state.values() for each in state.values() if torch.is_tensor(each) and each.ndim]
    assert found and {each.data_ptr() for each in found} == kept
    if kind not in ("adafactor", "muon", "normuon"):
        assert max(size for _, size in place.moves) <= 1000


def test_the_states_of_a_piece_go_back_before_those_of_the_next_come(monkeypatch):
    monkeypatch.setattr(piecewise, "CPU_PIECE", 1000)
    model, place = build(spec_of(SIZE), device="cpu"), Elsewhere()
    ours = made("adamw", model, place)
    for step in range(2):
        draw_gradients(model, step)
        place.moves.clear()
        ours.step()
    pieces = sum(-(-each.numel() // 1000) for each in model.parameters())
    names = [what for what, _ in place.moves]
    assert names == [*(["fetch", "fetch", "give back", "give back"] * pieces), "finish"]
    assert sum(size for what, size in place.moves if what == "fetch") == 2 * sum(x.numel() for x in model.parameters())


@pytest.mark.parametrize("rounds", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_an_update_takes_of_the_device_is_priced(kind, rounds):
    spec = spec_of(SIZE)
    model, place = build(spec, device="cpu"), Elsewhere()
    if rounds:
        lower_weights(model)
    ours = made(kind, model, place, rounds)
    for step in range(2):
        draw_gradients(model, step)
        with StorageTracker() as tracker:
            tracker.know([*model.parameters(), *(each.grad for each in model.parameters()), *place.rooms])
            ours.step()
    how = {"precision": "bf16_pure" if rounds else "fp32", "dtype": "bf16" if rounds else "fp32", "optimizer": kind}
    held = states(spec, Setup(**how, offload="states", fused_optimizer=True))
    assert held["step"] == pytest.approx(tracker.most, rel=0.03, abs=600)
    assert held["offloaded"] == sum(room.nbytes for room in place.rooms) and held["optimizer"] == 0


class FakeStreams:
    """Stands in for torch.cuda on a CPU, where copies are made at once: notes what each stream is told, in order."""

    def __init__(self):
        self.told, self.now = [], [self.Stream(self, "computing")]

    class Stream:
        def __init__(self, cuda, name):
            self.cuda, self.name = cuda, name

        def wait_stream(self, other):
            self.cuda.told.append((self.name, "waits for", other.name))

        def record_event(self):
            return self

        def synchronize(self):
            self.cuda.told.append(("host", "waits for", self.name))

    def make(self):
        made = sum(isinstance(each, str) for each in self.told)
        self.told.append(name := ("reading", "writing")[made])
        return self.Stream(self, name)

    @contextmanager
    def stream(self, stream):
        self.now.append(stream)
        yield
        self.now.pop()


@pytest.fixture
def streams(monkeypatch):
    fake, copy_, to = FakeStreams(), torch.Tensor.copy_, torch.Tensor.to
    monkeypatch.setattr(torch.cuda, "Stream", fake.make)
    monkeypatch.setattr(torch.cuda, "stream", fake.stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: fake.now[-1])
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda value, stream: None)
    monkeypatch.setattr(piecewise, "pin", lambda size: torch.empty(size, dtype=torch.uint8))

    def note_to(value, *args, **how):
        if how.get("non_blocking"):
            fake.told.append((fake.now[-1].name, "reads", value.numel()))
            return value.clone()
        return to(value, *args, **how)

    def note_copy(target, value, non_blocking=False):
        if non_blocking:
            fake.told.append((fake.now[-1].name, "writes", value.numel()))
        return copy_(target, value)

    monkeypatch.setattr(torch.Tensor, "to", note_to)
    monkeypatch.setattr(torch.Tensor, "copy_", note_copy)
    return fake


def test_states_of_the_host_are_read_and_written_beside_the_computing_of_other_pieces(streams, monkeypatch):
    monkeypatch.setattr(piecewise, "CPU_PIECE", 10)
    weights = [torch.nn.Parameter(torch.arange(25.0)) for _ in range(2)]
    plain = torch.optim.AdamW([weights[0]], lr=0.1, fused=True)
    ours = Piecewise(torch.optim.AdamW([weights[1]], lr=0.1, fused=True), rounds=False, place=HostMemory())
    for step in range(3):
        for each in weights:
            each.grad = torch.linspace(-1, 1, 25) * (step + 1)
        streams.told.clear()
        plain.step(), ours.step()
    torch.testing.assert_close(*weights, rtol=0, atol=0)
    piece = [
        *[("reading", "reads", 0), ("computing", "waits for", "reading")] * 2,  # before the update
        *[("writing", "waits for", "computing"), ("writing", "writes", 0)] * 2,
    ]
    throttle = ("host", "waits for", "writing")
    told = [(who, does, 0 if isinstance(what, int) else what) for who, does, what in streams.told]
    assert told == [*piece, *piece, throttle, *piece, throttle, throttle]  # the last one ends the step


def test_pinned_memory_is_given_out_of_blocks_that_are_not_rounded_up(monkeypatch):
    sizes = []
    monkeypatch.setattr(piecewise, "pin", lambda size: sizes.append(size) or torch.empty(size, dtype=torch.uint8))
    monkeypatch.setattr(piecewise, "ARENA", 4096)
    arena = piecewise.PinnedArena()
    rooms = [arena.take(shape, torch.float32) for shape in ((3, 7), (100,), (2, 1500), (5,))]
    for number, room in enumerate(rooms):
        room.fill_(number)
    assert [each.shape for each in rooms] == [(3, 7), (100,), (2, 1500), (5,)]
    assert all((room == number).all() for number, room in enumerate(rooms))  # none overlaps another
    assert sizes == [4096, 12000, 4096]


def test_the_price_moves_the_states_to_the_host():
    spec = spec_of([])
    plain, away = (price(spec, context=16, precision="fp32", offload=each)["memory"] for each in ("none", "states"))
    assert away["offloaded"] == plain["optimizer"] and away["optimizer"] == 0
    assert away["train_peak"] < plain["train_peak"]
    mixed = price(spec, context=16, offload="states")["memory"]
    assert mixed["optimizer"] == mixed["master"] > 0  # the master copy stays where the weights are


def test_on_a_cpu_it_would_change_nothing_and_is_refused(tmp_path):
    (tmp_path / "corpus").mkdir()
    config = compose_run(write_corpus(tmp_path / "corpus"), "offload=states", "device=cpu")
    with pytest.raises(
        ConfigError, match=r"^offload: is states, and a run on cpu has them in the host's memory anyway"
    ):
        start_run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match=r"offload: is states, and adamw8bit packs its states in 8 bits by itself"):
        plan_training(compose_run(tmp_path, "offload=states", "optim=adamw8bit"))


@pytest.mark.slow
def test_a_run_with_states_elsewhere_resumes_to_the_last_bit(tmp_path, monkeypatch):
    """On this machine, with another place of the same memory; the check for a device is passed by."""
    (tmp_path / "corpus").mkdir()
    config = compose_run(write_corpus(tmp_path / "corpus"), "precision=bf16_pure", "steps=2", "save_every=1")
    monkeypatch.setattr("zoo.training.optim.piecewise.Beside", Elsewhere)
    start_run(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    (tmp_path / "parts/checkpoints/latest").write_text("step-000001\n")
    resume_run(tmp_path / "parts")
    assert read_folder(runs.find(tmp_path / "parts")) == read_folder(runs.find(tmp_path / "whole"))


@pytest.mark.gpu
@pytest.mark.parametrize("rounds", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_states_live_in_pinned_memory_and_the_update_is_the_same(kind, rounds):
    models = [build(spec_of(SIZE), device="cuda", seed=1) for _ in range(2)]
    for model in models if rounds else ():
        lower_weights(model)
    optimizers = [
        made(kind, model, place, rounds) for model, place in zip(models, (Beside(), HostMemory()), strict=True)
    ]
    for step in range(3):
        for model, optimizer in zip(models, optimizers, strict=True):
            draw_gradients(model, step)
            torch.manual_seed(step)
            optimizer.step()
    for mine, theirs in zip(models[1].parameters(), models[0].parameters(), strict=True):
        assert torch.equal(mine, theirs)
        for key, value in optimizers[1].state[mine].items():
            if torch.is_tensor(value) and value.ndim:
                assert value.device.type == "cpu" and value.is_pinned()
                assert torch.equal(value, optimizers[0].state[theirs][key].cpu())
