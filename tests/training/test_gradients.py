"""The loss on chunks of logits and the optimizer, against autograd through full logits and the published formula."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import distributed
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F

from support.tiny_models import model_of, spec_of
from zoo.data import Batch
from zoo.distributed.gradients import measure_norm
from zoo.errors import ConfigError
from zoo.model import loss as losses
from zoo.model.loss import IGNORED, TokenLoss
from zoo.run.builder import build
from zoo.training.compiling import compile_model
from zoo.training.gradient import accumulate_gradient, choose_autocast, clip_gradient
from zoo.training.objective import NextToken
from zoo.training.optim import AdamW


def batch_of(rows: int, length: int, vocab_size: int, ignored: int = 0) -> Batch:
    ids = torch.randint(0, vocab_size, (rows, length + 1))
    targets = ids[:, 1:].clone()
    targets.view(-1)[torch.randperm(rows * length)[:ignored]] = IGNORED
    return Batch(ids[:, :-1].contiguous(), targets)


def gradients(model) -> dict[str, torch.Tensor]:
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    return found


def by_autograd(model, batch, z_loss=0.0) -> tuple[float, dict[str, torch.Tensor]]:
    """The mean loss and its gradient as torch computes them from full logits."""
    out = model(batch.input_ids, documents=batch.documents)
    logits, targets = out.logits.flatten(0, 1), batch.targets.flatten()
    logits = logits.to(losses.accumulating(logits))
    loss = F.cross_entropy(logits, targets, ignore_index=IGNORED)
    z = z_loss * (logits.logsumexp(-1).square() * (targets != IGNORED)).sum() / (targets != IGNORED).sum()
    (loss + z + sum(out.losses.values())).backward()
    return float(loss.detach()), gradients(model)


def assert_equal_gradients(found, expected, tolerance=1e-5):
    for name, gradient in expected.items():
        scale = float(gradient.abs().max())
        difference = float((found[name] - gradient).abs().max())
        assert difference <= tolerance * scale + 1e-9, name


HEADS = {
    "tied": [],
    "untied": ["head={kind:lm,tied:false,bias:true}"],
    "softcap": ["head={kind:lm,tied:true,softcap:2.0,scale:0.5}"],
    "scaled by the width": ["head={kind:lm,tied:true,scale:rsqrt_d_model,offset:true}"],
    "narrow": ["out_width=24", "head={kind:lm,tied:false}"],
    "masked": ["kind=encoder", "head={kind:mlm,activation:{kind:gelu},norm:{kind:layernorm}}"],
    "mixture": ["ffn=moe"],
}

CHUNK = 17 * 67 * 8
"""Bytes of logits: 17 tokens at a time in float64."""


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setitem(losses.BLOCK, "cpu", 5 * 67 * 4)


@pytest.mark.parametrize("overrides", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_the_chunked_loss_has_the_gradient_that_autograd_finds_through_full_logits(overrides, z_loss, small_blocks):
    model = model_of(overrides).double().train()
    batch = batch_of(4, 12, 67, ignored=9)
    expected_loss, expected = by_autograd(model, batch, z_loss)
    out = model(batch.input_ids, targets=batch.targets, loss=TokenLoss(1 / 39, z_loss, CHUNK))
    assert out.logits is None and out.loss.dtype is torch.float64
    (out.loss + sum(out.losses.values())).backward()
    assert float(out.terms["loss"]) == pytest.approx(expected_loss, rel=1e-7)
    assert_equal_gradients(gradients(model), expected, 1e-6)  # norms and routers compute in float32


def test_the_backward_pass_scales_by_what_comes_in_and_runs_once(small_blocks):
    model, batch = model_of(), batch_of(4, 12, 67, ignored=9)
    model(batch.input_ids, targets=batch.targets, loss=TokenLoss(chunk=CHUNK)).loss.backward()
    whole = gradients(model)
    total = model(batch.input_ids, targets=batch.targets, loss=TokenLoss(chunk=CHUNK)).loss
    (3 * total.square() / total.detach()).backward(retain_graph=True)  # a factor of 6
    assert_equal_gradients(gradients(model), {name: 6 * each for name, each in whole.items()})
    with pytest.raises(RuntimeError, match="went back once already"):
        total.backward()


def test_the_head_runs_on_labelled_rows_alone_and_a_frozen_one_gets_no_gradient(monkeypatch):
    model, batch, met = model_of(["head={kind:lm,tied:false}"]), batch_of(4, 12, 67, ignored=40), []
    model.head.requires_grad_(False)
    model.head.out.register_forward_hook(lambda module, given, made: met.append(len(made)))
    for count in (None, 8):
        model(batch.input_ids, targets=batch.targets, loss=TokenLoss(count=count)).loss.backward()
    assert met == [8, 8]
    assert model.head.out.weight.grad is None and model.embedding.tokens.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("overrides", [[], ["head={kind:lm,tied:false}"]], ids=["tied", "untied"])
def test_a_sharded_model_computes_its_loss_in_its_own_forward(overrides, tmp_path):
    model, batch = model_of(overrides).train(), batch_of(4, 12, 67, ignored=9)
    sharded, how = model_of(overrides).train(), TokenLoss(1 / 39, chunk=CHUNK)
    model(batch.input_ids, targets=batch.targets, loss=how).loss.backward()
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        for block in sharded.blocks:
            fully_shard(block)
        fully_shard(sharded)
        sharded(batch.input_ids, targets=batch.targets, loss=how).loss.backward()
        for name, parameter in sharded.named_parameters():
            torch.testing.assert_close(parameter.grad.full_tensor(), model.get_parameter(name).grad)
    finally:
        distributed.destroy_process_group()


def test_targets_without_a_head_and_a_loss_without_targets_are_refused():
    model, ids = model_of(["head.kind=none", "~head.tied"]), torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(ConfigError, match="targets: the model has no head"):
        model(ids, targets=ids)
    with pytest.raises(ConfigError, match="loss: weighs targets, and none were given"):
        model_of()(ids, loss=TokenLoss())


def test_under_autocast_the_gradient_is_that_of_autograd_under_autocast():
    model = model_of()
    batch = batch_of(4, 12, 67)
    with torch.autocast("cpu", torch.bfloat16):
        expected_loss, expected = by_autograd(model, batch)
    with choose_autocast(torch.device("cpu"), "bf16")():
        found = NextToken().loss(model, batch, weight=1 / 48)
    found.total.backward()
    assert float(found.terms["loss"]) == pytest.approx(expected_loss, rel=1e-3)
    assert_equal_gradients(gradients(model), expected, tolerance=0.02)


def test_what_is_measured_is_the_sum_over_targets_alone():
    model, batch = model_of(), batch_of(3, 10, 67, ignored=7)
    logits = model(batch.input_ids).logits.flatten(0, 1)
    expected = F.cross_entropy(logits, batch.targets.flatten(), ignore_index=IGNORED, reduction="sum")
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            found = NextToken().loss(model, batch)
        torch.testing.assert_close(found.terms["loss"], expected.detach())
        assert found.targets == 23


def test_microbatches_give_the_gradient_of_the_whole_batch_however_their_targets_are_spread():
    model = model_of()
    batch = batch_of(8, 12, 67)
    batch.targets[:2] = IGNORED  # a part without any target
    batch.targets[3, :7] = IGNORED
    whole = accumulate_gradient(model, NextToken(), batch, 1, nullcontext).terms
    expected = gradients(model)
    parts = accumulate_gradient(model, NextToken(), batch, 4, nullcontext).terms
    assert float(parts["loss"]) == pytest.approx(float(whole["loss"]), rel=1e-6)
    assert_equal_gradients(gradients(model), expected)


def test_packed_documents_weigh_as_if_each_stood_alone():
    model, batch = model_of(), batch_of(1, 12, 67)
    packed = batch._replace(documents=torch.tensor([[0] * 5 + [1] * 7]))
    accumulate_gradient(model, NextToken(), packed, 1, nullcontext)
    found = gradients(model)
    for part in (slice(0, 5), slice(5, 12)):
        alone = Batch(batch.input_ids[:, part], batch.targets[:, part])
        NextToken().loss(model, alone, weight=1 / 12).total.backward()
    assert_equal_gradients(found, gradients(model))


def test_clipping_scales_the_gradient_to_the_norm_and_leaves_a_smaller_one():
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([3.0, 4.0])
    norm = measure_norm([weight.grad])
    assert float(norm) == pytest.approx(5.0)
    clip_gradient([weight], 10.0, norm), clip_gradient([weight], None, norm)
    assert weight.grad.tolist() == [3.0, 4.0]
    clip_gradient([weight], 1.0, norm)
    assert weight.grad.tolist() == pytest.approx([0.6, 0.8], rel=1e-4)


@pytest.mark.parametrize("overrides", [[], ["norm=layernorm", "bias=true", "ffn=moe"]], ids=["llama", "biases"])
def test_matrices_decay_and_vectors_do_not(overrides):
    model = build(spec_of(overrides), device="cpu")
    optimizer = AdamW(weight_decay=0.3).build(model)
    groups = {id(each): group["weight_decay"] for group in optimizer.param_groups for each in group["params"]}
    assert len(groups) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        vector = parameter.ndim == 1 or name.endswith(".bias")
        assert groups[id(parameter)] == (0.0 if vector else 0.3), name


def test_an_update_is_the_published_formula_of_adamw():
    model = build(spec_of(), device="cpu")
    optimizer = AdamW(lr=0.01, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.5).build(model)
    weight = model.head.out.weight
    before, mean, square = weight.detach().clone(), 0.0, 0.0
    for step in (1, 2):
        gradient = torch.randn_like(weight)
        mean, square = 0.8 * mean + 0.2 * gradient, 0.9 * square + 0.1 * gradient**2
        direction = (mean / (1 - 0.8**step)) / ((square / (1 - 0.9**step)).sqrt() + 1e-6)
        before = before - 0.01 * (direction + 0.5 * before)
        for parameter in model.parameters():
            parameter.grad = gradient if parameter is weight else torch.zeros_like(parameter)
        optimizer.step()
    torch.testing.assert_close(weight.detach(), before)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_the_compiled_loss_is_the_plain_one_whatever_the_number_of_targets(dtype, z_loss):
    for count in (40, 37, 11):
        logits = (torch.randn(count, 300) * 3).to(dtype)
        targets, plain, compiled = torch.randint(0, 300, (count,)), logits.clone(), logits.clone()
        loss = TokenLoss(weight=1 / count, z_loss=z_loss)
        sums = loss.overwrite(plain, targets, slice(None))
        torch.testing.assert_close(replace(loss, compiled=True).overwrite(compiled, targets, slice(None)), sums)
        torch.testing.assert_close(compiled, plain)


@pytest.mark.slow
def test_a_compiled_model_has_the_gradients_of_the_plain_one():
    model, batch = model_of().train(), batch_of(2, 16, 67)

    def step():
        model(batch.input_ids, targets=batch.targets).loss.backward()
        return gradients(model)

    plain = step()
    compile_model(model)
    for name, found in step().items():
        torch.testing.assert_close(found, plain[name], rtol=1e-4, atol=1e-5 * float(plain[name].abs().max()))
