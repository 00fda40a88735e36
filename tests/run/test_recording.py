"""Decoding replays the torch calls of a layer: the same bits as running it, or it is run."""

import ast
import gc
import re
import weakref

import pytest
import torch
from torch import nn

import zoo
from support.packaged_specs import one_in
from support.recorded_engines import Running, serve
from support.tiny_generators import KINDS, make
from zoo.kernels.mask import Mask
from zoo.kernels.view import KeyView
from zoo.model.step import Step
from zoo.run.recording_plan import Recordings

REREADS = {"position=rope_dynamic original_max_seq_len=8"}
"""Kinds whose positions end the cache before a layer is replayed."""


@pytest.mark.parametrize("kind", one_in(8, KINDS))
def test_what_is_replayed_has_the_bits_of_what_is_run(kind):
    model = make(kind)
    replayed, recordings = serve(model)
    assert replayed == serve(model, Running())[0]
    assert recordings.replayed or kind in REREADS, recordings.refused


WRITTEN = {
    *("Module", "FunctionDef", "arguments", "arg", "Assign", "Expr", "Return", "Call", "keyword", "Name", "Load"),
    *("Store", "Attribute", "Subscript", "Tuple", "List", "Dict", "Constant"),
}
"""The syntax of a recorded step."""


@pytest.mark.parametrize("kind", ["attention=gqa", "attention=mla", "attention=csa", "ffn=moe", "block=hyper"])
def test_a_recording_is_written_of_numbered_names_alone(kind):
    """It is compiled, so nothing that a file states may stand in it but as a text: names are k0, v0, x and step, and
    attributes are those of the step."""
    _, recordings = serve(make(next(each for each in KINDS if each.startswith(kind))))
    for course in recordings._courses.values():
        for node in ast.walk(ast.parse(course.recording.source)) if course.recording else ():
            assert type(node).__name__ in WRITTEN, ast.dump(node)
            if isinstance(node, ast.Name):
                assert re.fullmatch(r"x|step|[kv]\d+", node.id)
            if isinstance(node, ast.Attribute):
                assert ast.unparse(node.value) in ("step", "step.cross", "step.keys")


@pytest.mark.parametrize("way", ["plain", "transposed", "onednn"])
def test_products_that_were_made_ready_are_replayed(way):
    overrides = ["n_layers=2", "d_model=64", "n_heads=4", "n_kv_heads=2", "d_ff=96", "vocab_size=98"]
    model = zoo.build("llama-tiny", overrides, device="cpu", seed=3).eval()
    with zoo.prepare(model, way=way):
        replayed, recordings = serve(model)
        assert replayed == serve(model, Running())[0]
    assert recordings.replayed and not recordings.refused


class Layer(nn.Module):
    """A layer made of one function of its input, its weight and how often it was called."""

    def __init__(self, function):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.5, -2.0]))
        self.function, self.calls = function, 0

    def forward(self, x, step):
        self.calls += 1
        return self.function(x, self.weight, self.calls)


def take(function, passes=5, rows=3):
    """Outputs of a layer in some passes, what they should be, and the recordings."""
    layer, twin, recordings = Layer(function), Layer(function), Recordings()
    with torch.inference_mode():
        inputs = [torch.randn(rows, 1, 2) for _ in range(passes)]
        step = Step(KeyView(Mask(1, 1)), first=False)
        found = [recordings.run(0, layer, x, step) for x in inputs]
        wanted = [twin(x, step) for x in inputs]
    assert all(map(torch.equal, found, wanted))
    return layer, recordings


def test_a_layer_runs_three_times_and_is_replayed_from_then_on():
    layer, recordings = take(lambda x, weight, _: (x * weight).reshape(3, 1, 2).relu() + 1)
    assert layer.calls == 3 and recordings.replayed == 1


@pytest.mark.parametrize(("rows", "runs"), [(1, 1), (2, 1), (8, 4), (32, 16)])
def test_a_layer_of_many_rows_runs_half_as_often_as_it_has_rows_before_it_is_recorded(rows, runs):
    layer, recordings = take(lambda x, weight, _: x * weight, passes=40, rows=rows)
    assert layer.calls == runs + 2 and recordings.replayed == 1


def test_what_comes_of_weights_alone_is_computed_once():
    _, recordings = take(lambda x, weight, _: x * (weight.exp() * 2))
    (course,) = recordings._courses.values()
    assert course.recording.source == "def replay(x, step):\n v0 = k1(x, k0)\n return v0\n"


def test_a_large_copy_of_a_weight_is_made_anew_rather_than_kept(monkeypatch):
    monkeypatch.setattr("zoo.run.recording.SMALL", 1)
    _, recordings = take(lambda x, weight, _: x * (weight.view(1, 2).exp() * 2))
    (course,) = recordings._courses.values()
    names = [each.__name__ for each in course.recording._constants if callable(each)]
    assert names == ["exp", "mul", "mul"]  # the view takes no memory


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x, weight, _: x * float(x.sum()), "__float__ reads a tensor's values"),
        (lambda x, weight, _: x if x.sum() > 0 else -x, "__bool__ reads a tensor's values"),
        (lambda x, weight, _: x * x.flatten().tolist()[0], "tolist reads a tensor's values"),
        (lambda x, weight, _: x + x[x.abs() > 0].sum(), "__getitem__ takes as many as values say"),
        (lambda x, weight, _: x * x.abs().nonzero().shape[0], "nonzero takes as many as values say"),
        (lambda x, weight, calls: x * calls, "its calls differ from pass to pass"),
        (lambda x, weight, calls: x + 1 if calls % 2 else x - 1, "its calls differ from pass to pass"),
        (lambda x, weight, calls: x + torch.full((2,), float(calls)), "its calls differ from pass to pass"),
        (lambda x, weight, _: torch.zeros(3, 1, 2).add_(x), "add_ changes what a layer keeps"),
        (lambda x, weight, _: _fill(torch.zeros(3, 1, 2), x), "__setitem__ changes what a layer keeps"),
    ],
)
def test_a_layer_that_cannot_be_replayed_runs_and_says_why(function, reason):
    layer, recordings = take(function)
    assert layer.calls == 5 and recordings.replayed == 0
    assert list(recordings.refused) == [reason]


def _fill(buffer, x):
    buffer[:2] = x[:2]
    return buffer


def test_hooks_are_called_in_every_step():
    model = make("attention=gqa")
    seen = []
    handle = model.blocks[0].register_forward_hook(lambda *_: seen.append(1))
    _, recordings = serve(model)
    handle.remove()
    assert len(seen) >= 12 and "it has hooks" in recordings.refused


def test_layers_that_were_compiled_to_train_decode_as_they_are_written():
    model = zoo.build("llama-tiny", ["n_layers=1", "d_model=32", "vocab_size=98"], device="cpu", seed=3).eval()
    written, _ = serve(model)
    model.blocks[0].compile(backend=_refuse_one_token, dynamic=False)
    found, recordings = serve(model)
    assert found == written and recordings.replayed


def _refuse_one_token(graph, examples):
    assert all(each.shape[1] != 1 for each in examples if each.ndim == 3 and each.shape[-1] == 32)
    return graph.forward


def test_more_layers_than_are_kept_are_recorded_anew(monkeypatch):
    monkeypatch.setattr("zoo.run.recording_plan.MOST", 3)
    model = make("attention=gqa")
    replayed, recordings = serve(model)
    assert replayed == serve(model, Running())[0] and len(recordings._courses) <= 3


def test_what_a_recorded_layer_computed_is_freed_at_once():
    """Without Python's collector of cycles, which may come by after many steps."""
    seen = []

    def function(x, weight, _):
        y = x * weight
        seen.append(weakref.ref(y))
        return y.relu()

    gc.disable()
    try:
        take(function)
        assert len(seen) == 8 and not any(each() is not None for each in seen)  # three passes, and five of the twin
    finally:
        gc.enable()
