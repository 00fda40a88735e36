"""A new component's activations: equal to what autograd saves, to the byte, or unknown by the operation's name."""

import copy
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor, float32, relu
from torch.nn.functional import elu, silu

from support.saved_activations import passes, saved_by, told
from support.tiny_models import spec_of
from zoo.costs import price
from zoo.costs.activations import PassShape, list_sections
from zoo.costs.shadow.tape import UnknownOperation
from zoo.model.activation import Activation
from zoo.run.builder import build

EXACT = {
    "abs(x)": lambda x: abs(x) * x,
    "sum with a keyword": lambda x: x * torch.sum(x, dim=-1).unsqueeze(-1),
    "sum that keeps the dimension": lambda x: x * x.sum(dim=-1, keepdim=True),
    "mean with a keyword": lambda x: x * torch.mean(input=x, dim=-1, keepdim=True),
    "relu by keyword": lambda x: F.relu(input=x),
    "relu not in place": lambda x: F.relu(x, inplace=False),
    "gelu, approximate": lambda x: F.gelu(x, approximate="tanh"),
    "softplus with a slope": lambda x: F.softplus(x, beta=2.0),
    "leaky_relu with a slope": lambda x: F.leaky_relu(x, negative_slope=0.2),
    "where, two numbers": lambda x: x * torch.where(x > 0, 1.0, 0.5),
    "where, a number": lambda x: torch.where(x > 0, x, 0.1),
    "a constant": lambda x: x * torch.tensor(0.5),
    "iteration": lambda x: torch.stack([row.exp() for row in x]),
    "unpacking": lambda x: unpacked(x),
    "len": lambda x: x * len(x),
    "is None": lambda x: x if x is None else x.exp(),
    "shape": lambda x: x / x.shape[-1] ** 0.5,
    "size()": lambda x: x / x.size()[-1],
    "mT": lambda x: x.mT.exp().mT,
    "2 ** x": lambda x: 2**x,
    "x ** y": lambda x: x.abs() ** x.sigmoid(),
    "1 / x": lambda x: 1 / (1 + x.exp()),
    "a positive sign": lambda x: +x.exp(),
    "finfo": lambda x: x.clamp(min=torch.finfo(x.dtype).min) if torch.finfo(x.dtype).eps < 1 else x,
    "no gradients": lambda x: no_gradients(x),
    "full of a whole number": lambda x: x * torch.full((), 2),
    "integers divided": lambda x: x * (torch.arange(x.shape[-1]) / 2),
    "matmul": lambda x: x + (x @ x.mT) @ x,
    "detached": lambda x: x * x.detach().sigmoid(),
    "to a dtype and back": lambda x: x.to(torch.bfloat16).exp().to(x.dtype),
    "functions by their own names": lambda x: relu(x) * silu(x),
    "a dtype by its own name": lambda x: x.exp() if x.dtype == float32 else x,
    "nn.functional by nn": lambda x: nn.functional.silu(x),
    "a slice": lambda x: torch.cat((x[..., ::2].exp(), x[..., 1::2]), -1),
    "dropout": lambda x: F.dropout(x, 0.3),
    "dropout of nothing": lambda x: F.dropout(x.exp(), 0.0),
    "attention with dropout": lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None], dropout_p=0.2)[0],
}
"""Forwards that a shadow follows."""


def unpacked(x):
    a, b = x.chunk(2, -1)
    return torch.cat((a * b, b), dim=-1)


def no_gradients(x):
    with torch.no_grad():
        scale = x.exp()
    return x * scale


def written(x):
    y = x.exp()
    y[..., 0] = 0
    return y


def added_in_place(x):
    y = x.exp()
    y += x
    return y


def multiplied_in_place(x):
    y = x + 1
    y *= 2
    return y


def branched(x):
    return x.exp() if (x > 1).sum() > 0 else x


def caught(x):
    try:
        return x * float(x.sum())
    except Exception:  # as a component might: the pass is unknown all the same
        return x


def imported(x):
    import torch as real

    return real.exp(x)


def counted(x):
    return x * sum(1 for _ in range(int(x.sum() > 0)))


UNKNOWN = {
    "setitem": (written, "__setitem__"),
    "in place +=": (added_in_place, "__iadd__"),
    "in place *=": (multiplied_in_place, "__imul__"),
    "a branch on values": (branched, "__bool__"),
    "a swallowed error": (caught, "__float__"),
    "an import inside": (imported, "imported"),
    "int": (counted, "__int__"),
    "relu in place": (lambda x: F.relu(x + 1, inplace=True), "relu"),
    "relu in place by position": (lambda x: F.relu(x + 1, True), "relu"),
    "float": (lambda x: x * float(x.sum()), "__float__"),
    "item": (lambda x: x * x.sum().item(), "item"),
    "bool": (lambda x: x if bool(x.sum() > 1e9) else x.exp(), "__bool__"),
    "not": (lambda x: x.exp() if not x.sum() > 1e9 else x, "__bool__"),
    "and": (lambda x: x.exp() if x.sum() > -1e9 and x.shape else x, "__bool__"),
    "in": (lambda x: x.exp() if 0.5 not in x else x, "__contains__"),
    "math": (lambda x: x * math.sqrt(abs(x.sum())), "__float__"),
    "math.floor": (lambda x: x * math.floor(x.sum()), "__floor__"),
    "format": (lambda x: x.exp() if f"{x.sum():.1f}" else x, "__format__"),
    "numpy": (lambda x: x * float(numpy.asarray(x.detach()).sum()), "__array__"),
    "tolist": (lambda x: x * sum(x.detach().flatten().tolist()), "tolist"),
    "an index": (lambda x: x * (1, 2)[(x.sum() > 1e9).long()], "__index__"),
    "a range": (lambda x: x * len(range((x.sum() > 1e9).long() + 1)), "__index__"),
    "a mask as an index": (lambda x: x * x[x > 0].sum(), "tensor[mask]"),
    "a list as an index": (lambda x: x * x[:, [0, 1]].sum(), "tensor[list]"),
    "indices apart": (lambda x: x * x[torch.arange(2), :, torch.arange(2)].sum(), "tensor[index, :, index]"),
    "fft": (lambda x: torch.fft.irfft(torch.fft.rfft(x), n=x.shape[-1]), "fft"),
    "linalg": (lambda x: x / torch.linalg.norm(x), "norm"),
    "nn.init": (lambda x: x + nn.init.zeros_(torch.empty_like(x)), "init"),
    "a function by its own name": (lambda x: elu(x), "elu"),
    "a type by its own name": (lambda x: x.exp() if isinstance(x, Tensor) else x, "Tensor"),
    "nn.functional": (lambda x: nn.functional.elu(x), "elu"),
    "out=": (lambda x: x + torch.exp(x.detach(), out=torch.empty_like(x)), "exp"),
    "dropout of channels": (lambda x: F.dropout1d(x, 0.5), "dropout1d"),
    "T": (lambda x: (x[0].T @ x[0]).sum() * x, "'T'"),
    "data": (lambda x: x * x.data, "data"),
    "grad": (lambda x: x.exp() if x.grad is None else x, "grad"),
    "is_tensor": (lambda x: x.exp() if torch.is_tensor(x) else x, "is_tensor"),
    "isinstance": (lambda x: x.exp() if isinstance(x, torch.Tensor) else x, "Tensor"),
    "hasattr": (lambda x: x.exp() if hasattr(x, "abs_") else x, "abs_"),
    "a memory format": (lambda x: x.exp() if x.is_contiguous(memory_format=torch.contiguous_format) else x, "format"),
    "pad by reflection": (lambda x: F.pad(x, (1, 0), "reflect")[..., 1:], "pad"),
    "a remainder": (lambda x: x % 2, "%"),
    "einsum of one": (lambda x: x * torch.einsum("btd->b", x)[:, None, None], "einsum"),
    "std": (lambda x: x / x.std(-1, keepdim=True), "std"),
    "max of all": (lambda x: x / x.max(), "max"),
    "norm": (lambda x: F.normalize(x, dim=-1), "normalize"),
    "a deep copy": (lambda x: x + copy.deepcopy(x.detach()), "__deepcopy__"),
}
"""Forwards that it does not, and what the message names."""

WRONG = {
    "shapes that do not broadcast": lambda x: x + torch.zeros(x.shape[-1] + 1),
    "a product that does not fit": lambda x: x @ x,
    "a view of another size": lambda x: x.view(3, -1, 7, 11, 13),
    "an index out of range": lambda x: x[:, :, 10_000],
    "a dimension out of range": lambda x: x.sum(7),
    "an argument that there is not": lambda x: x.softmax(dimension=-1),
}
"""Forwards that torch refuses."""

FORWARDS = EXACT | {name: run for name, (run, _) in UNKNOWN.items()} | WRONG


class Probe(Activation, kind="probe"):
    """The forward of that name."""

    name: str

    def apply(self, x):
        return FORWARDS[self.name](x)


def spec_with(name):
    spec = spec_of()
    block = spec.blocks["layer"]
    return replace(spec, blocks={"layer": replace(block, ffn=replace(block.ffn, activation=Probe(name=name)))})


@pytest.mark.parametrize("name", EXACT)
def test_what_a_new_component_keeps_is_what_autograd_saves(name):
    spec = spec_with(name)
    model = build(spec, device="cpu").train()
    assert told(spec, list_sections(spec, PassShape(batch=2, context=6, dtype="fp32", fused=False))) == saved_by(
        model, passes(model, spec, 2, 6)
    )


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_a_shadow_cannot_follow_is_unknown_by_its_name(name):
    spec, said = spec_with(name), UNKNOWN[name][1]
    memory = price(spec, context=6)["memory"]
    assert said in memory["activations_unknown"]
    assert not {"activations", "train_peak"} & set(memory) and memory["weights"] > 0


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True to a scalar")  # which is the point
@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_unknown_runs_in_torch(name):
    """So that each of them is a component that somebody might write."""
    model = build(spec_with(name), device="cpu")
    assert model(torch.zeros(2, 6, dtype=torch.long)).logits.shape[:2] == (2, 6)


@pytest.mark.parametrize("name", WRONG)
def test_what_torch_refuses_has_no_figure(name):
    spec = spec_with(name)
    with pytest.raises((RuntimeError, IndexError, TypeError)):
        build(spec, device="cpu")(torch.zeros(2, 6, dtype=torch.long))
    with pytest.raises(UnknownOperation):
        list_sections(spec, PassShape(batch=2, context=6))


ODD_NORM = '''


class Odd(Norm, kind="odd"):
    """A norm that writes into a tensor."""

    def parts(self, d_model: int) -> dict[str, Any]:
        return {"weight": Weight((d_model,), init=1.0)}

    def forward(self, m: Any, x: Any) -> Any:
        y = m.weight * x
        y[..., 0] = 0
        return y
'''


def test_stats_of_a_component_that_cannot_be_followed_say_so_and_end_with_0(tmp_path):
    """The component is added as docs/extend.md says, in a copy of the tree."""
    root = Path(__file__).parents[3]
    shutil.copy(root / "cli.py", tmp_path)
    for folder in ("zoo", "conf"):
        shutil.copytree(root / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "zoo" / "model" / "norm.py").open("a", encoding="utf-8") as norms:
        norms.write(ODD_NORM)
    (tmp_path / "conf" / "norm" / "odd.yaml").write_text("kind: odd\n", encoding="utf-8")
    command = [sys.executable, "cli.py", "stats", "llama-tiny", "norm=odd"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stderr
    assert "'__setitem__'" in " ".join(done.stdout.split())
