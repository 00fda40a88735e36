"""Training states, against the states that real optimizers hold and the copies that autocast really makes."""

import random
import weakref
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from support.packaged_specs import load, one_in
from support.tiny_models import model_of, needs, spec_of
from zoo.checkpoint.resume_states import take_apart
from zoo.costs import Setup, params
from zoo.costs.rank_tensors import fullest
from zoo.costs.setup import OPTIMIZERS
from zoo.costs.states import state_bytes, states
from zoo.errors import ConfigError
from zoo.run.builder import build
from zoo.spec import placed_tensors
from zoo.training.optim import Optim
from zoo.training.optim.piecewise import Piecewise

LLAMA = {"untied": ["head.tied=false"], "tied": ["head.tied=true"]}
MIXTURE = ["ffn=moe", "n_experts=5"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def specs(rng):
    """Tiny models of every family in the table, of random sizes."""
    size = [f"d_model={8 * rng.randint(2, 9)}", f"d_ff={rng.randint(9, 99)}", f"vocab_size={rng.randint(40, 999)}"]
    layers = f"n_layers={rng.randint(1, 4)}"
    for tied in LLAMA.values():
        yield spec_of([*size, layers, *tied])
    yield load("gpt-tiny", [*size, layers, "n_heads=2"])
    yield spec_of([*size, layers, *MIXTURE])
    yield spec_of([*size, layers, "attention=mla", "position=rope"])
    yield spec_of([*size, "attention=mamba", "position=none", "block=pre"])
    yield load("t5-small", [size[2], "d_model=24", "d_ff=31", "n_heads=3", "head_dim=8", "n_layers=2"])


def trained(spec, dtype, optim):
    """The bytes of an optimizer's states after one step, its counters left out."""
    model = build(spec, device="cpu", dtype=dtype)
    optimizer = optim.build(model)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * 0.01
    optimizer.step()
    values = [value for state in optimizer.state.values() for value in state.values()]
    kept = [part for value in values for part in take_apart(value).values() if part.ndim]
    return sum(part.nbytes for part in kept)


def made(kind):
    """The optimizer of a kind as it is packaged; Muon in the dtype that is priced."""
    return Optim.parse({"kind": kind, **({"dtype": "bf16"} if "muon" in kind else {})})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", one_in(2, sorted({*OPTIMIZERS} - {"adamw8bit"})))
def test_states_are_those_that_the_optimizer_holds_after_a_step(optimizer, dtype):
    rng = random.Random(f"{optimizer} {dtype}")
    for spec in specs(rng):
        counted = states(spec, Setup(optimizer=optimizer, precision="bf16_pure", dtype=dtype))
        assert counted["optimizer"] == trained(spec, dtype, made(optimizer))
        assert counted["master"] == 0


@pytest.mark.slow  # torchao compiles an update for each shape
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_eight_bit_states_are_those_that_torchao_holds_after_a_step():
    pytest.importorskip("torchao")
    spec = spec_of(["d_model=64", "d_ff=100", "vocab_size=67", "n_layers=1"])  # shapes with and without 8 bits
    counted = states(spec, Setup(optimizer="adamw8bit", precision="fp32", dtype="fp32"))
    assert counted["optimizer"] == trained(spec, "fp32", made("adamw8bit"))


def test_eight_bits_are_for_tensors_of_4096_elements_and_more_by_256():
    eight = {(64, 64): 2 * 4096 + 2 * 4 * 16 + 2048, (8, 1024): 2 * 8192 + 2 * 4 * 32 + 2048}
    plain = {(63, 65): 8 * 63 * 65, (70, 70): 8 * 70 * 70}
    for shape, size in (eight | plain).items():
        assert state_bytes("adamw8bit", shape, True, 4) == state_bytes("adamw8bit", shape, False, 4) == size


@pytest.mark.parametrize(
    ("precision", "expected"),
    {
        "mixed": (2, 2, 12, 4),  # the ZeRO paper's 2 + 2 + 12
        "bf16_master": (2, 4, 12, 4),
        "fp32": (4, 4, 8, 0),
        "bf16": (4, 4, 8, 0),
        "bf16_pure": (2, 2, 4, 0),
    }.items(),
)
def test_bytes_of_a_parameter_are_those_of_the_scheme(precision, expected):
    spec = load("gpt2")
    kept = states(spec, Setup(precision=precision))["bytes_per_param"]
    assert tuple(kept[name] for name in ("weights", "gradients", "optimizer", "master")) == expected
    assert kept["total"] == sum(expected[:3])


def test_weights_in_fp32_have_no_master_copy():
    kept = states(load("gpt2"), Setup(dtype="fp32"))["bytes_per_param"]
    assert kept == {"weights": 4, "gradients": 4, "optimizer": 8, "master": 0, "total": 16}


def test_parameters_are_those_of_the_model():
    for spec in specs(random.Random(1)):
        assert states(spec, Setup())["parameters"] == params.count_parameters(spec)["total"]


def test_pure_states_in_eight_bits_are_refused():
    with pytest.raises(ConfigError, match=r"precision: bf16_pure keeps states in fp8.*mixed would do"):
        states(load("gpt2"), Setup(precision="bf16_pure", dtype="fp8"))


class Casts(TorchDispatchMode):
    """Adds up the copies in another dtype that are made of some tensors."""

    def __init__(self, parameters):
        super().__init__()
        self.of = {parameter.untyped_storage().data_ptr() for parameter in parameters}
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and args[0].untyped_storage().data_ptr() in self.of:
            self.bytes += out.nbytes
        return out


@pytest.mark.parametrize(
    "overrides", [["head.tied=false"], ["head.tied=true"], ["bias=true", "ffn.bias=true"], MIXTURE]
)
def test_autocast_copies_what_enters_matrix_products(overrides):
    spec = spec_of(["n_layers=2", *overrides])
    model = build(spec, device="cpu", dtype="fp32").train()
    casts = Casts(model.parameters())
    with torch.autocast("cpu", torch.bfloat16), casts:
        model(torch.arange(12)[None] % 60)
    assert states(spec, Setup(precision="bf16"))["cast"] == casts.bytes > 0


class Peak(TorchDispatchMode):
    """Bytes of the tensors that are made and live at once, at most."""

    def __init__(self):
        super().__init__()
        self.live = self.most = 0
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        inputs = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is not None and storage._cdata not in inputs | self.seen:
                self.live += storage.nbytes()
                self.most = max(self.most, self.live)
                self.seen.add(storage._cdata)
                weakref.finalize(storage, self.freed, storage._cdata, storage.nbytes())
        return out

    def freed(self, key, size):
        self.live -= size
        self.seen.discard(key)


def foreach(model):
    return torch.optim.AdamW(model.parameters(), foreach=True)


@pytest.mark.parametrize("optimizer", sorted({*OPTIMIZERS} - {"adamw8bit"}))
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_optimizers_step_takes_what_is_said(optimizer, dtype):
    spec = spec_of(["d_model=128", "d_ff=256", "vocab_size=97", "n_layers=2"])
    model = build(spec, device="cpu", dtype=dtype)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * 0.01
    opt = foreach(model) if optimizer == "adamw" else made(optimizer).build(model)
    if (dtype, optimizer) == ("bf16", "soap"):
        pytest.skip("is not stepped by pieces")
    if dtype == "bf16":  # 16 bits are rounded, by pieces
        rule = made(optimizer)
        opt = Piecewise(rule.build(model), rounds=True, by_element=rule.by_element)
    for group in opt.param_groups:
        group["precondition_frequency"] = 1  # SOAP's second step is then one that refreshes its bases
    opt.step()
    with Peak() as peak:
        opt.step()
    fused = "muon" in optimizer or dtype == "bf16"
    setup = Setup(optimizer=optimizer, precision="bf16_pure", dtype=dtype, fused_optimizer=fused)
    assert states(spec, setup)["step"] == pytest.approx(peak.most, rel=0.03, abs=300)


@pytest.mark.parametrize("optimizer", ["adamw", "normuon"])
@pytest.mark.parametrize("decay", ["cautious", "hyperball"])
def test_another_decay_takes_a_copy_of_the_weights(optimizer, decay):
    spec = spec_of(["d_model=128", "d_ff=256", "vocab_size=97", "n_layers=2"])
    model = build(spec, device="cpu", dtype="fp32")
    opt = replace(made(optimizer), decay=decay).build(model)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * 0.01
    opt.step()
    with Peak() as peak:
        opt.step()
    setup = Setup(optimizer=optimizer, precision="fp32", dtype="fp32", fused_optimizer=True, decay=decay)
    assert states(spec, setup)["step"] == pytest.approx(peak.most, rel=0.03, abs=300)


def test_a_fused_step_takes_nothing():
    model = build(spec_of(["n_layers=1"]), device="cpu", dtype="fp32")
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    fused = torch.optim.AdamW(model.parameters(), fused=True)
    fused.step()
    with Peak() as peak:
        fused.step()
    assert peak.most < 100


@pytest.mark.parametrize(("zero", "gigabytes"), [(0, 120), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_the_zero_papers_figures_come_out(zero, gigabytes):
    """Rajbhandari et al., 2020, figure 1: 7.5 billion parameters on 64 ranks."""
    per_param = states(load("llama2-7b"), Setup(dp=64, zero=zero))["bytes_per_param"]["total"]
    assert round(7.5 * per_param, 1) == pytest.approx(gigabytes, abs=0.051)


def test_a_step_is_shared_out_with_the_states():
    spec = load("gpt2")
    one, many = (states(spec, Setup(dp=dp, zero=1))["step"] for dp in (1, 8))
    assert many == pytest.approx(one / 8, rel=1e-6)


def test_as_many_tensors_are_looked_at_for_many_layers_as_for_few():
    few, many = (fullest(load("gpt2", [f"n_layers={n}"]), Setup()) for n in (2, 400))
    assert len(few.pieces) == len(many.pieces) and many.params > 30 * few.params


@pytest.mark.parametrize("attention", ["dsa", "csa", "msa", "dsa_pooled"])
def test_weights_of_an_indexer_get_no_gradient_and_have_no_states(attention):
    model = model_of([f"attention={attention}", *needs(f"attention={attention}")]).train()
    torch.nn.functional.cross_entropy(
        model(torch.arange(24).view(2, 12)).logits.flatten(0, 1), torch.arange(24)
    ).backward()
    silent = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert silent == {name for name, row, _ in placed_tensors(model.spec, model.d_model) if not row.learns} != set()
    optimizer = torch.optim.AdamW(model.parameters())
    optimizer.step()
    kept = [value for state in optimizer.state.values() for value in state.values() if value.ndim]
    priced = states(model.spec, Setup(dtype="fp32", precision="fp32"))
    assert priced["gradients"] == sum(each.grad.nbytes for each in model.parameters() if each.grad is not None)
    assert priced["optimizer"] == sum(value.nbytes for value in kept)
    assert priced["step"] == priced["gradients"]  # of one value for each element that is updated
    assert priced["weights"] == sum(each.nbytes for each in model.parameters())
    assert priced["updated"] == 3 * priced["gradients"] + 2 * priced["optimizer"]  # weights are as many as gradients
