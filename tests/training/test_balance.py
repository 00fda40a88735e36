"""The load of experts: counted, reported, and evened out by a bias that no gradient moves."""

from contextlib import nullcontext

import pytest
import torch
from torch.nn import functional as F

import zoo
from support.tiny_models import model_of
from zoo.data import Batch
from zoo.training.compiling import compile_model
from zoo.training.gradient import accumulate_gradient
from zoo.training.objective import NextToken
from zoo.training.routing import balance_routers, describe_loads, list_routers

SIGMOID = ["ffn=moe", "router=sigmoid_topk"]


def batch_of(rows=4, length=12) -> Batch:
    ids = torch.randint(0, 67, (rows, length + 1))
    return Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())


def counted(model, ids, **more):
    """The experts that each router chose, counted by a hook on its scores."""
    found, hooks = [], []
    for router in list_routers(model):

        def count(module, given, logits, router=router):
            scores = logits.float().sigmoid() + router.selection_bias
            found.append(torch.bincount(scores.topk(router.spec.top_k, -1).indices.flatten(), minlength=4))

        hooks.append(router.gate.register_forward_hook(count))
    with torch.no_grad():
        model(ids, **more)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("parts", [1, 4])
def test_loads_are_the_choices_of_the_whole_step_however_it_is_split(parts):
    model, batch = model_of(SIGMOID).train(), batch_of()
    loads = accumulate_gradient(model, NextToken(), batch, parts, nullcontext).loads
    assert len(loads) == len(list_routers(model)) == 3
    for load, expected in zip(loads, counted(model, batch.input_ids), strict=True):
        assert load.tolist() == expected.tolist() and int(load.sum()) == 4 * 12 * 2


def test_padding_is_no_load():
    model, batch = model_of(SIGMOID).train(), batch_of()
    mask = torch.ones_like(batch.input_ids)
    mask[1, 5:] = 0
    loads = model(batch.input_ids, mask).loads
    alone = [model(batch.input_ids[row : row + 1, : 5 if row == 1 else 12]).loads for row in range(4)]
    for load, each in zip(loads, zip(*alone, strict=True), strict=True):
        assert load.tolist() == sum(each).tolist()


def test_a_bias_moves_by_its_rate_towards_the_mean_load():
    model = model_of(SIGMOID)
    before = [router.selection_bias.clone() for router in list_routers(model)]
    loads = [torch.tensor([8, 4, 4, 0]), torch.tensor([5, 5, 5, 5]), torch.tensor([0, 0, 1, 9])]
    balance_routers(model, loads, 0.01)
    signs = [[-1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, -1]]
    for router, old, sign in zip(list_routers(model), before, signs, strict=True):
        torch.testing.assert_close(router.selection_bias, old + 0.01 * torch.tensor(sign))


def test_layers_that_share_a_router_move_its_bias_once():
    model = model_of([*SIGMOID, "shared_layers=true"])
    assert len({id(router) for router in list_routers(model)}) == 1
    old = list_routers(model)[0].selection_bias.clone()
    balance_routers(model, [torch.tensor([4, 0, 0, 0]), torch.tensor([0, 4, 0, 0]), torch.tensor([0, 0, 4, 0])], 1.0)
    torch.testing.assert_close(list_routers(model)[0].selection_bias, old + torch.tensor([-1.0, -1.0, -1.0, 1.0]))


def test_biases_even_out_a_load_that_is_not_even():
    model, batch = model_of(SIGMOID).train(), batch_of(8, 32)
    for router in list_routers(model):
        router.selection_bias.copy_(torch.tensor([2.0, 0.0, 0.0, -2.0]))
    spread = []
    for _ in range(250):
        loads = model(batch.input_ids).loads
        spread.append(float(describe_loads(loads)["load_max"]))
        balance_routers(model, loads, 0.02)
    assert spread[0] == 2.0 and max(spread[-10:]) < 1.3


@pytest.mark.slow
def test_loads_come_out_of_compiled_layers_and_of_both_towers():
    model, batch = model_of(SIGMOID).train(), batch_of()
    plain = model(batch.input_ids).loads
    compile_model(model)
    assert [each.tolist() for each in model(batch.input_ids).loads] == [each.tolist() for each in plain]
    both = zoo.build("t5-tiny", ["ffn=moe", "d_ff=32", "d_model=32", "n_heads=4", "head_dim=8"], device="cpu").train()
    ids = torch.randint(0, 67, (2, 9))
    out = both(ids, decoder_input_ids=ids[:, :5])
    assert [int(each.sum()) for each in out.loads] == [2 * 9 * 2] * 2 + [2 * 5 * 2] * 2
    assert set(out.losses) == {"balance"}
    assert len(list_routers(both)) == 4


def test_a_load_is_described_by_its_busiest_and_its_idlest_expert():
    loads = [torch.tensor([2, 2, 2, 2]), torch.tensor([6, 1, 1, 0])]
    assert {name: float(each) for name, each in describe_loads(loads).items()} == {"load_max": 3.0, "load_min": 0.0}
    assert describe_loads([]) == {}


def test_an_encoders_own_losses_are_the_models():
    model = zoo.build("t5-tiny", ["ffn=moe", "d_ff=32", "d_model=32", "n_heads=4", "head_dim=8"], device="cpu").train()
    ids = torch.randint(0, 67, (2, 9))
    read = model.encoder(ids)
    out = model(ids, decoder_input_ids=ids)
    wrote = model.decoder(ids, memory=read.hidden)
    torch.testing.assert_close(out.losses["balance"], read.losses["balance"] + wrote.losses["balance"])
    assert F.relu(read.losses["balance"]) > 0
