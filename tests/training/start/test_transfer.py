"""Weights of one architecture made into those of another: the same function where a recipe promises it, else the
published formula, and a refusal for the rest."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from support.tiny_models import model_of, spec_of
from zoo.errors import ConfigError
from zoo.model.init import initialise
from zoo.run.builder import build
from zoo.training.start.transfer import transfer

IDS = torch.randint(67, (2, 12), generator=torch.Generator().manual_seed(5))
UNTIED = "head={kind: lm, tied: false}"


def grown(source, *overrides: str, added: str = "stack", seed: int = 1):
    """The model of these overrides started from the source's weights, and the lines that were said."""
    target = build(spec_of(overrides), device="cpu")
    initialise(target, torch.Generator().manual_seed(99))
    made = transfer(source.spec, target.spec, source.state_dict(), added, seed)
    target.load_state_dict({name: each for name, each in made.held.items() if name not in made.fresh}, strict=False)
    return target.eval(), made.lines


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


PRESERVING = {
    "the same": ([], []),
    "hidden units": ([], ["d_ff=83"]),
    "heads and their keys": ([], ["n_heads=8", "n_kv_heads=4"]),
    "heads alone": ([], ["n_heads=8"]),
    "keys for more heads": ([], ["n_kv_heads=4"]),
    "channels": ([UNTIED], [UNTIED, "d_model=64"]),
    "channels of a head that was tied": ([], [UNTIED, "d_model=96"]),
    "all widths": ([UNTIED], [UNTIED, "d_model=64", "n_heads=8", "n_kv_heads=4", "d_ff=131"]),
    "LayerNorm and biases": (
        [UNTIED, "norm=layernorm", "bias=true", "ffn=mlp"],
        [UNTIED, "norm=layernorm", "bias=true", "ffn=mlp", "d_model=64", "n_heads=8", "n_kv_heads=4", "d_ff=70"],
    ),
    "experts": ([], ["ffn=moe"]),
    "wider experts": (["ffn=moe"], ["ffn=moe", "d_ff=60"]),
    "parallel blocks": (["block=parallel", UNTIED], ["block=parallel", UNTIED, "d_model=64"]),
}


@pytest.mark.parametrize(("before", "after"), PRESERVING.values(), ids=PRESERVING.keys())
def test_a_recipe_that_keeps_the_function_gives_the_same_logits(before, after):
    source = model_of(before)
    wide, _ = grown(source, *after)
    assert_close(logits(wide), logits(source), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("block", ["pre", "parallel"])
def test_added_layers_that_are_identities_keep_the_function(block):
    source = model_of([f"block={block}", "bias=true"])
    deep, lines = grown(source, f"block={block}", "bias=true", "n_layers=7", added="identity")
    assert_close(logits(deep), logits(source), rtol=1e-4, atol=1e-4)
    assert lines == ["n_layers: 3 layers became 7 (identity: Wu et al., 2024; the added ones change nothing)"]


def test_copies_get_different_gradients_and_so_learn_different_things():
    wide, _ = grown(model_of(), "d_ff=96")
    wide(IDS).logits.square().sum().backward()
    up = wide.blocks[0].ffn.up
    twins = [(i, j) for i in range(48) for j in range(48, 96) if torch.equal(up.weight[i], up.weight[j])]
    assert twins
    assert all(not torch.allclose(up.weight.grad[i], up.weight.grad[j]) for i, j in twins)


def test_key_value_heads_become_the_means_of_their_groups():
    source = model_of(["attention=mha"])
    model, lines = grown(source, "attention=gqa", "n_kv_heads=2")
    for name in ("k", "v"):
        old = source.blocks[1].attention.get_submodule(name).weight.numpy(force=True)
        new = model.blocks[1].attention.get_submodule(name).weight.numpy(force=True)
        for head in range(2):
            first, second = old[16 * head : 16 * head + 8], old[16 * head + 8 : 16 * head + 16]
            assert_close(torch.tensor(new[8 * head : 8 * head + 8]), torch.tensor((first + second) / 2))
    assert lines == ["attention: 4 key-value heads became 2, each the mean of its group's (Ainslie et al., 2023)"]


def test_a_stack_is_repeated_whole():
    source = model_of()
    deep, _ = grown(source, "n_layers=7")
    for layer in range(7):
        assert_close(deep.blocks[layer].state_dict(), source.blocks[layer % 3].state_dict())


def test_new_tokens_get_the_mean_row_of_the_table_and_of_the_head():
    source = model_of([UNTIED])
    more, _ = grown(source, UNTIED, "vocab_size=70")
    for path in ("embedding.tokens", "head.out"):
        old, new = source.get_submodule(path).weight, more.get_submodule(path).weight
        assert_close(new[:67], old)
        assert_close(new[67:], old.mean(0).expand(3, -1))
    assert_close(logits(more)[..., :67], logits(source))


def test_another_window_or_position_scheme_takes_the_weights_as_they_are_and_says_so():
    source = model_of()
    near, lines = grown(source, "attention=sliding", "window=4")
    assert_close(near.state_dict(), source.state_dict())
    assert lines == ["taken as they are under other settings: attention.window null → 4"]
    learned, lines = grown(source, "position=learned")
    assert_close(learned.blocks.state_dict(), source.blocks.state_dict())
    assert lines == [
        "position: rope became learned, the other weights are taken as they are, the new one's are drawn",
    ]
    back, lines = grown(learned, "position=rope")
    assert_close(back.state_dict(), source.state_dict())
    assert lines[0].endswith("its weights are left out")


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (["n_layers=2"], "n_layers: 3 layers to 2 is not possible (at least 3)"),
        (["attention=mla"], "weights: have no blocks.#.attention.kv_a.weight"),
        (["ffn=mlp"], "weights: blocks.#.ffn.gate.weight belongs to no part of the model"),
        (["d_ff=40"], "weights: blocks.#.ffn.gate.weight has shape [48, 32], the model's is [40, 32]"),
        (["d_model=48"], "weights: embedding.tokens.weight has shape [67, 32], the model's is [67, 48]"),
        (["vocab_size=60"], "weights: embedding.tokens.weight has shape [67, 32], the model's is [60, 32]"),
        (["head={kind: lm, tied: true}", "d_model=64"], "weights: embedding.tokens.weight has shape"),
    ],
)
def test_what_no_recipe_makes_is_refused_by_kind_of_tensor(overrides, fault):
    source = model_of()
    with pytest.raises(ConfigError) as refusal:
        transfer(source.spec, spec_of(overrides), source.state_dict())
    assert refusal.value.faults[0].startswith(fault) or any(each.startswith(fault) for each in refusal.value.faults)


def test_identities_are_refused_where_a_norm_stands_behind_the_branch():
    source = model_of(["block=post"])
    with pytest.raises(ConfigError, match="deepen: identity needs blocks that add to the stream, found post"):
        transfer(source.spec, spec_of(["block=post", "n_layers=5"]), source.state_dict(), "identity")
