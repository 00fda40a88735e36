"""Pure bfloat16: stochastic rounding is unbiased, decay decays, and every optimizer's update is float32's, rounded."""

import copy
import math
import random
import shutil

import pytest
import torch

from support.tiny_models import spec_of
from support.tiny_runs import compose_run, read_folder, read_metrics
from zoo import runs
from zoo.checkpoint.tensor_files import read_header
from zoo.errors import ConfigError
from zoo.jobs.train import resume_run, start_run
from zoo.run.builder import build
from zoo.training.optim import Optim, piecewise
from zoo.training.optim.piecewise import Piecewise, copy_rounded
from zoo.training.planning import plan_training
from zoo.training.precision import lower_weights

KINDS = ("adafactor", "adamw", "lion", "muon", "normuon", "schedule_free", "sgd")


def rounded(value):
    made = torch.empty_like(value, dtype=torch.bfloat16)
    copy_rounded(made, value.clone())
    return made


def neighbours(value):
    """The bfloat16 numbers below and above float32 values in size; both are the value where bfloat16 has it."""
    bits = value.contiguous().view(torch.int32)
    low = (bits & -65536).view(torch.float32)
    high = torch.where(low == value, low, ((bits & -65536) + 65536).view(torch.float32))
    return low, high


# ---------------------------------------------------------------- rounding


def test_the_mean_of_many_roundings_is_the_value():
    """The roundings up are binomial: within 5 standard deviations, for 60 values of any size and sign."""
    rng, count = random.Random(3), 20_000
    torch.manual_seed(5)
    for _ in range(60):
        value = torch.tensor(rng.choice((-1, 1)) * rng.random() * 10 ** rng.randint(-30, 30))
        low, high = neighbours(value)
        share = float((value - low) / (high - low)) if low != high else 0.0
        found = rounded(value.expand(count).clone()).float()
        assert set(found.tolist()) <= {float(low), float(high)}
        ups = int((found == high).sum()) if low != high else 0
        assert abs(ups - count * share) <= 5 * math.sqrt(count * share * (1 - share)) + 1e-9, value


def test_each_of_the_four_numbers_that_are_drawn_at_once_is_fair_and_independent():
    """Chances of a quarter, by the place of an element modulo 4, alone and in pairs."""
    torch.manual_seed(1)
    value = torch.full((4096, 4), 1 + 2**-9)
    ups = (rounded(value).float() > 1).double()
    sigma = math.sqrt(0.25 * 0.75 / 4096)
    assert (ups.mean(0) - 0.25).abs().max() < 5 * sigma
    for one, other in ((0, 1), (1, 2), (2, 3), (0, 3)):
        assert abs(float((ups[:, one] * ups[:, other]).mean()) - 1 / 16) < 5 * math.sqrt(15 / 256 / 4096)


def test_what_bfloat16_has_and_what_is_no_number_stays_what_it_is():
    exact = torch.randn(999).bfloat16()
    assert torch.equal(rounded(exact.float()), exact)
    odd = torch.tensor([math.inf, -math.inf, 0.0, -0.0])
    assert torch.equal(rounded(odd).view(torch.int16), odd.bfloat16().view(torch.int16))
    payloads = torch.tensor([0x7FFFFFFF, -1, 0x7F800001, 0x7FC00000], dtype=torch.int32).view(torch.float32)
    assert rounded(payloads).isnan().all()


# ---------------------------------------------------------------- optimizers


def made(kind, model, **options):
    optim = Optim.parse({"kind": kind, **({"dtype": "fp32"} if "muon" in kind else {}), **options})
    return optim, optim.build(model)


def draw_gradients(*models, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for group in zip(*(model.parameters() for model in models), strict=True):
        drawn = torch.randn(group[0].shape, generator=generator).bfloat16()
        for each in group:
            each.grad = drawn.to(each.dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_an_update_is_float32s_rounded_to_a_neighbour_in_pieces_and_whole(kind, monkeypatch):
    """Of three updates in a row, each from the rounded weights and states of the one before it."""
    monkeypatch.setattr(piecewise, "CPU_PIECE", 100)
    low = build(spec_of(["ffn=moe", "n_layers=1"]), device="cpu", seed=1)
    lower_weights(low)
    optim, rule = made(kind, low)
    ours = Piecewise(rule, rounds=True, by_element=optim.by_element)
    torch.manual_seed(3)
    for step in range(3):
        wide = copy.deepcopy(low).float()
        plain = made(kind, wide)[1]
        for mine, theirs in zip(low.parameters(), wide.parameters(), strict=True):
            for name, value in ours.state.get(mine, {}).items():
                plain.state[theirs][name] = value.float().clone() if torch.is_tensor(value) else value
        draw_gradients(low, wide, seed=step)
        ours.step(), plain.step()
        for (name, mine), theirs in zip(low.named_parameters(), wide.parameters(), strict=True):
            assert mine.dtype is torch.bfloat16
            assert_neighbour(mine, theirs, name)
            assert ours.state[mine].keys() == plain.state[theirs].keys()
            for key, value in ours.state[mine].items():
                if torch.is_tensor(value) and value.ndim:
                    assert value.dtype is torch.bfloat16
                    assert_neighbour(value, plain.state[theirs][key], f"{name} {key}")
                else:
                    assert float(value) == float(plain.state[theirs][key])


def assert_neighbour(found, value, name):
    """One of the two neighbours, or within rounding of one: products of other shapes may differ in a last bit."""
    low, high = neighbours(value.detach())
    least, most = torch.minimum(low, high), torch.maximum(low, high)
    slack = 1e-5 * value.detach().abs() + 1e-8
    assert (found.float() >= least - slack).all() and (found.float() <= most + slack).all(), name


@pytest.mark.parametrize("kind", KINDS)
def test_weight_decay_far_below_the_last_place_shrinks_weights_on_average(kind):
    """lr·λ is 1e-5, an update 400 times below half of the last place. After 100 updates without gradient the mean is
    that of the rule in float64; rounding to nearest leaves every weight where it was."""
    before = (1 + torch.rand(32, 1024, generator=torch.Generator().manual_seed(1))).bfloat16()
    low, near = (torch.nn.Parameter(before.clone()) for _ in range(2))
    exact, steps = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.float64)), 100
    how = {"lr": 1e-4, "weight_decay": 0.1, **({"momentum": 0.0} if kind == "sgd" else {})}
    (optim, rule), (_, nearest), (_, plain) = (made(kind, Alone(each), **how) for each in (low, near, exact))
    ours = Piecewise(rule, rounds=True, by_element=optim.by_element)
    torch.manual_seed(2)
    for _ in range(steps):
        for weight, optimizer in ((low, ours), (near, nearest), (exact, plain)):
            weight.grad = torch.zeros_like(weight)
            optimizer.step()
    expected = float(exact.detach().mean())
    assert 1 - 1e-5 * steps < expected < 1 - 1e-6 * steps
    assert torch.equal(near.detach(), before)
    found = float(low.detach().double().sum() / before.double().sum())
    place = 2.0**-7  # the last place of a weight between 1 and 2
    variance = place * 2 * (1 - expected)  # of a weight: so many steps down of one place each, by chance
    sigma = math.sqrt(2 * variance * low.numel()) / float(before.double().sum())
    assert abs(found - expected) < 5 * sigma < (1 - expected) / 5


class Alone(torch.nn.Module):
    """A model of one matrix, which no Spec lists."""

    class Nothing:
        d_model = 1

        def towers(self):
            return {}

    def __init__(self, weight):
        super().__init__()
        self.weight, self.spec = weight, Alone.Nothing()


def test_what_keeps_its_states_in_eight_bits_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"precision: is bf16_pure, and adamw8bit packs its states in 8 bits.*adamw"):
        plan_training(compose_run(tmp_path, "precision=bf16_pure", "optim=adamw8bit"))


# ---------------------------------------------------------------- runs


ALL = ["ema=0.9", "optim=muon", "ffn=moe", "dropout={ffn:0.1}"]


@pytest.mark.parametrize(
    "extra", [["optim=schedule_free", "schedule=constant"], pytest.param(ALL, marks=pytest.mark.slow)], ids=" ".join
)
def test_a_pure_run_resumes_to_the_last_bit_and_saves_bfloat16(tmp_path, corpus, extra):
    options = ["precision=bf16_pure", "steps=4", "save_every=2", "eval_every=null"]
    start_run(compose_run(corpus, *options, *extra), tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    (tmp_path / "parts/checkpoints/latest").write_text("step-000002\n")
    resume_run(tmp_path / "parts")
    found, whole = (read_folder(runs.find(tmp_path / name)) for name in ("parts", "whole"))
    assert found == whole
    assert read_metrics(tmp_path / "parts") == read_metrics(tmp_path / "whole")
    saved = runs.find(tmp_path / "whole")
    assert {each.dtype for each in read_header(saved / "model.safetensors").values()} == {"BF16"}
    if "ema=0.9" in extra:
        assert {each.dtype for each in read_header(saved / "ema/model.safetensors").values()} == {"F32"}


@pytest.mark.slow
def test_pure_runs_learn_what_masters_learn(tmp_path, corpus):
    """Of a tiny model, 60 updates: within 5 % of the loss with float32 masters, by the mean of three seeds."""
    options = ["steps=60", "eval_every=null", "save_every=null", "optim.lr=0.01"]
    losses = {}
    for precision in ("bf16_master", "bf16_pure"):
        found = [
            start_run(
                compose_run(corpus, *options, f"precision={precision}", f"seed={seed}"), tmp_path / f"{precision}{seed}"
            )
            for seed in range(3)
        ]
        losses[precision] = sum(each["val_loss"] for each in found) / 3
    assert losses["bf16_pure"] == pytest.approx(losses["bf16_master"], rel=0.05)
    assert losses["bf16_pure"] != losses["bf16_master"]
