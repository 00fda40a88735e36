"""Dropout and stochastic depth: off in eval mode, at the rates that they say, the same after a resumption, and refused
where they would do nothing."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

import zoo
from support.tiny_models import model_of
from zoo.cli import run
from zoo.distributed.seam import WHOLE, WHOLE_ROWS
from zoo.errors import KernelError
from zoo.kernels import KERNELS, Machine, attend, pick
from zoo.kernels.base import AttentionQuery
from zoo.kernels.drop import GOLDEN, AttentionDropout, draw_uniform, drop_values, mix
from zoo.kernels.mask import Mask
from zoo.model.step import Inputs
from zoo.training.dropout import Dropout

IDS = torch.randint(67, (64, 12), generator=torch.Generator().manual_seed(5))
COLUMNS = mix(torch.arange(512) * GOLDEN)
FIELDS = ("attention", "residual", "embedding", "ffn", "layers")


@pytest.mark.parametrize("field", FIELDS)
def test_a_rate_bites_in_training_and_not_in_eval(field):
    plain, model = model_of(), model_of()
    Dropout(**{field: 0.3}).apply(model)
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, plain(IDS).logits)
        model.train()
        first, second = model(IDS).logits, model(IDS).logits
    assert not torch.allclose(first, second)
    assert not torch.allclose(first, plain(IDS).logits)


def seen(model, path: str, inputs: bool = False) -> torch.Tensor:
    """What a module gives, or gets, in one pass in training mode."""
    found = []
    module = model.get_submodule(path)
    if inputs:
        module.register_forward_pre_hook(lambda module, args: found.append(args[0]))
    else:
        module.register_forward_hook(lambda module, args, output: found.append(output))
    with torch.no_grad():
        model.train()(IDS)
    return found[0]


@pytest.mark.parametrize(
    ("field", "path", "inputs"),
    [
        ("residual", "blocks.1.attention", False),
        ("residual", "blocks.0.ffn", False),
        ("ffn", "blocks.2.ffn.down", True),
        ("embedding", "blocks.0", True),
    ],
)
def test_the_share_dropped_is_the_rate_and_the_rest_is_scaled_up(field, path, inputs):
    plain = seen(model_of(), path, inputs) if field == "embedding" else None
    model = model_of()
    Dropout(**{field: 0.3}).apply(model)
    values = seen(model, path, inputs)
    assert float((values == 0).float().mean()) == pytest.approx(0.3, abs=0.02)
    if plain is not None:
        assert_close(values, torch.where(values == 0, 0, plain / 0.7))


def test_hidden_units_of_experts_are_dropped_as_well():
    model = model_of(["ffn=moe"])
    Dropout(ffn=0.4).apply(model)
    hidden = seen(model, "blocks.0.ffn.experts.down", inputs=True)
    assert float((hidden == 0).float().mean()) == pytest.approx(0.4, abs=0.02)


def test_stochastic_depth_leaves_whole_rows_out_more_often_the_deeper():
    shares = []
    for layer in range(3):
        torch.manual_seed(layer)
        model = model_of()
        Dropout(layers=0.6).apply(model)
        rows = torch.cat([seen(model, f"blocks.{layer}.{part}") for part in ("attention", "ffn")])
        gone = (rows == 0).flatten(1).float().mean(1)
        assert set(gone.tolist()) == {0.0, 1.0}
        shares.append(float(gone.mean()))
    assert shares == pytest.approx([0.2, 0.4, 0.6], abs=0.12)


@pytest.mark.parametrize("shared", [1, 4])
def test_a_kernel_drops_probabilities_at_the_rate_and_keeps_their_mean(shared):
    torch.manual_seed(0)
    q, k = torch.randn(2, 40, 4, 8), torch.randn(2, 40, shared, 8)
    v = torch.eye(40).expand(2, shared, 40, 40).transpose(1, 2).contiguous()  # so that outputs are probabilities
    exact = attend(q, k, v, Mask(40, 40), scale=0.3, kernel="eager")
    total = torch.zeros_like(exact)
    for _ in range(300):
        keys = torch.randint(1 << 62, (2, 40))
        how = {"kernel": "eager", "dropout": AttentionDropout(0.25, keys, COLUMNS[:4], COLUMNS)}
        chances = attend(q, k, v, Mask(40, 40), scale=0.3, **how)
        total += chances
    kept = exact > 0
    assert float((chances[kept] == 0).float().mean()) == pytest.approx(0.25, abs=0.02)
    assert_close(torch.where(chances == 0, exact, chances * 0.75), exact, rtol=1e-4, atol=1e-6)
    assert float((total / 300 - exact).abs().mean()) < 0.02 * float(exact.max())


# ---------------------------------------------------------------- which values


def test_keys_are_mixed_as_splitmix64_does():
    with np.errstate(over="ignore"):  # the finaliser of Steele et al., 2014, on unsigned numbers
        z = np.arange(7, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        expected = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        expected = (expected ^ (expected >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        expected ^= expected >> np.uint64(31)
    assert mix(torch.from_numpy(z.view(np.int64))).numpy().view(np.uint64).tolist() == expected.tolist()


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_no_token_nor_channel_is_dropped_more_often_and_no_two_go_together(rate):
    rows = mix(torch.arange(2000) * 977)[:, None]
    dropped = (drop_values(torch.ones(2000, 512), rows, COLUMNS[:512], rate) == 0).float()
    score = (dropped - rate) / (rate * (1 - rate)) ** 0.5  # of mean 0 and variance 1, each by itself
    for side in (score, score.T):
        size = side.shape[1] ** 0.5
        means, pairs = side.mean(1) * size, side @ side.T / size
        assert float(means.std()) == pytest.approx(1, abs=0.1) and float(means.abs().max()) < 5
        pairs.fill_diagonal_(0)
        assert float(pairs.std()) == pytest.approx(1, abs=0.02) and float(pairs.abs().max()) < 8


def test_a_row_drops_the_same_whatever_stands_beside_it_and_in_another_layer_other_values():
    model = model_of()
    Dropout(attention=0.3, residual=0.3, embedding=0.2, ffn=0.2, layers=0.3).apply(model.train(), seed=4)
    numbers = torch.arange(64)
    with torch.no_grad():
        together = model(IDS, row_numbers=numbers).logits
        assert_close(model(IDS[7:9], row_numbers=numbers[7:9]).logits, together[7:9])
        assert not torch.allclose(model(IDS[7:9], row_numbers=numbers[8:10]).logits, together[7:9])
    drops = model.dropping.begin(Inputs(IDS, row_numbers=numbers), WHOLE, WHOLE_ROWS)
    first, second = (each.drop_branch(torch.ones(64, 12, 8), "ffn", True) for each in drops.for_layers(2))
    assert float(((first == 0) == (second == 0)).float().mean()) < 0.9


def test_a_router_draws_the_same_experts_of_a_row_whatever_stands_beside_it():
    model = model_of(["ffn=moe", "router=sparsemixer", "router.jitter=0.5"]).train()
    Dropout().apply(model, seed=4)
    numbers = torch.arange(64)
    with torch.no_grad():
        together = model(IDS, row_numbers=numbers).logits
        assert_close(model(IDS[7:9], row_numbers=numbers[7:9]).logits, together[7:9])
        assert not torch.allclose(model(IDS[7:9], row_numbers=numbers[8:10]).logits, together[7:9])


def test_numbers_are_drawn_evenly_between_0_and_1_and_neither_comes_up():
    drawn = draw_uniform(mix(torch.arange(4000) * 977)[:, None], COLUMNS).flatten()
    assert 0 < float(drawn.min()) < 1e-6 and 1 - 1e-6 < float(drawn.max()) < 1
    counts = drawn.histc(100, 0, 1) / drawn.numel()
    assert float((counts - 0.01).abs().max()) < 5 * (0.01 / drawn.numel()) ** 0.5


def test_kernels_that_cannot_drop_refuse_and_auto_takes_one_that_can():
    ask = AttentionQuery("bfloat16", 64, 64, needs_grad=True, dropout=True)
    machine = Machine("cuda", (9, 0), frozenset({"flash_attn", "flash_attn_3", "compiler"}))
    choice = pick(ask, machine)
    assert choice.kernel.name in ("sdpa", "eager")
    for name, kernel in KERNELS.items():
        able = kernel.refuses(ask, machine) is None
        assert able == (name in ("sdpa", "eager")), name
    with pytest.raises(KernelError, match="flex_attention has no dropout"):
        pick(ask, machine, "flex")
    assert pick(replace(ask, dropout=False), machine).kernel.name != "eager"


# ---------------------------------------------------------------- whole runs


SMALL = (
    *("data=text", "data.path=text.txt", "batch_size=2", "seq_len=16", "eval_batches=1", "eval_every=null"),
    *("model.n_layers=2", "model.vocab_size=300", "data.tokenizer.kind=byte", "sample=null", "schedule=constant"),
)
ALL = "dropout={attention:0.2,residual:0.1,embedding:0.1,ffn:0.1,layers:0.2}"


def test_a_run_with_dropout_goes_on_to_the_last_bit(here):
    assert run(["train", *SMALL, ALL, "steps=6", "hydra.run.dir=whole"]) == 0
    assert run(["train", *SMALL, ALL, "steps=3", "hydra.run.dir=parts"]) == 0
    assert run(["train", "--resume", "parts", "steps=6"]) == 0
    assert run(["train", *SMALL, "steps=6", "hydra.run.dir=none"]) == 0
    whole, parts, none = (load_file(zoo.runs.find(here / n) / "model.safetensors") for n in ("whole", "parts", "none"))
    assert all(torch.equal(each, parts[name]) for name, each in whole.items())
    assert not torch.equal(whole["norm.weight"], none["norm.weight"])


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (["dropout={residual:0.0}"], "dropout: drops nothing, all its rates are 0 (null)"),
        (["dropout={residual:1.0}"], "dropout.residual: must be less than 1, found 1.0"),
        (["dropout={resid:0.1}"], "dropout.resid: "),
        (
            ["dropout={attention:0.1}", "attention=mamba", "position=none"],
            "dropout.attention: is 0.1, and no layer has probabilities to drop (0)",
        ),
        (["dropout={attention:0.1}", "kernel=flex"], "kernel: flex was asked for, but flex_attention has no dropout"),
    ],
)
def test_what_would_do_nothing_or_cannot_be_is_refused(here, capsys, overrides, fault):
    assert run(["train", *SMALL, "steps=1", *overrides]) == 2
    assert f"error: {fault}" in capsys.readouterr().err


@pytest.mark.slow
def test_dropout_and_adapters_compile(here):
    assert run(["train", *SMALL, "dropout={attention:0.2,residual:0.1,ffn:0.1}", "steps=3", "hydra.run.dir=first"]) == 0
    own = [each for each in SMALL if not each.startswith(("model.", "data.tokenizer"))]
    for number, rates in enumerate(("null", "{attention:0.2,residual:0.1,embedding:0.1,ffn:0.1,layers:0.2}")):
        more = ["weights=first", "lora={rank:2,on:[attention,ffn]}", f"dropout={rates}", "optim.lr=0.01"]
        losses = []
        for compiled in ("true", "false"):
            folder = f"{number}-{compiled}"
            assert run(["train", *own, *more, f"compile={compiled}", "steps=3", f"hydra.run.dir={folder}"]) == 0
            losses.append(json.loads((here / folder / "result.json").read_text())["val_loss"])
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
