"""Tensor parallelism: the parts that ranks compute give together what the whole model gives, for every architecture."""

import copy
import json
import re
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support import tiny_generators
from support.forked_processes import read_found, run_ranks
from zoo.checkpoint.parallel_checkpoint import locate
from zoo.compose import load
from zoo.costs.rank_model import shard_model
from zoo.distributed.sharded_tensors import Division, Shares
from zoo.errors import ConfigError
from zoo.grammar import to_dict
from zoo.model.spread_loss import SpreadLoss
from zoo.spec import table
from zoo.spec.cuts import Cut, CutSegment, find_cuts

TINY = ["llama", "gpt", "bert", "t5", "bart", "deepseek", "mixtral", "qwen3-next"]

AROUND = [
    "block=sandwich",
    "block.around_attention={in_norm: null, residual_scale: 0.4}",
    "block.around_ffn={stream_norm: {kind: rmsnorm, eps: 1e-5}, stream_scale: 2}",
]
"""A layer that states norms and factors of each sub-layer, as ModernBERT, HRM-Text and Gemma 4 do."""


def compare(processes, folder, *models, dtype="float32", timeout=500):
    """Compare models in so many processes; returns what each found, by model."""
    run_ranks(processes, "support.tensor_parallel_ranks", folder, dtype, *models, timeout=timeout)
    return read_found(processes, folder)


def check(found):
    """Hold losses, gradients, their norm and logits to float32's rounding; returns why models were refused."""
    for rank in found:
        for name, each in rank.items():
            if "refused" not in each:
                assert each["loss"] < 1e-4, (name, each)  # of a sum over tokens
                assert each["logits"] < 5e-5, (name, each)
                assert each["gradient"] < 2e-5 and each["norm"] < 1e-5, (name, each)
    return [each["refused"] for each in found[0].values() if "refused" in each]


def test_two_ranks_give_together_what_the_whole_model_gives(tmp_path):
    """In float64, of which only norms and states of a recurrence are float32, whose roundings are all that is left."""
    models = {name: f"{name}-tiny" for name in TINY[1::2]} | {"around": to_dict(load("llama-tiny", AROUND))}
    (tmp_path / "models.json").write_text(json.dumps(models))
    for rank in compare(2, tmp_path, tmp_path / "models.json", dtype="float64"):
        for name, each in rank.items():
            assert each["loss"] < 1e-5 and each["logits"] < 1e-5, (name, each)
            assert each["gradient"] < 5e-6 and each["norm"] < 1e-6, (name, each)


@pytest.mark.slow
def test_two_ranks_give_in_float32_what_the_whole_model_gives_to_its_rounding(tmp_path):
    assert not check(compare(2, tmp_path, *(f"{name}-tiny" for name in TINY)))


def list_kinds():
    return {kind: to_dict(tiny_generators.make(kind).spec) for kind in tiny_generators.KINDS}


def list_families():
    import transformers

    from support import family_cases

    for case in family_cases.CASES:
        config = getattr(transformers, case.config)(**copy.deepcopy(dict(case.sizes)))
        config.architectures = [case.model]
        yield case.name, config


UNSPLIT = {"fourier", "grouped_linear", "span_conv", "transient_global"}
"""Components that do not say how ranks divide them."""

CHOICES = [each for each in tiny_generators.PLAIN if each.startswith(("attention=", "ffn="))]
"""The kinds that swap one component which ranks divide, each a test of its own: whoever adds a choice runs its own."""


def check_many(models, processes, folder):
    """Hold models to what the whole ones give, in float64, where what is left is the rounding of norms, routers and
    states; each that is refused says what does not divide, or what would do. Returns how many were."""
    (folder / "models.json").write_text(json.dumps(models))
    told = check(compare(processes, folder, folder / "models.json", dtype="float64", timeout=1500))
    assert all("divide" in each or "(tp=1, or " in each for each in told)
    unsplit = {kind for each in told for kind in re.findall(r"'(\w+)' does not say how it splits", each)}
    assert unsplit <= UNSPLIT
    return len(told)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_ranks_give_what_the_whole_model_gives_for_every_kind_of_the_grammar(processes, tmp_path):
    models = list_kinds()
    assert check_many(models, processes, tmp_path) < len(models) / 4


@pytest.mark.slow
@pytest.mark.parametrize("choice", CHOICES)
def test_two_ranks_give_what_the_whole_model_of_a_choice_gives_or_refuse_it(choice, tmp_path):
    check_many({choice: to_dict(tiny_generators.make(choice).spec)}, 2, tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*its text towers alone")
@pytest.mark.parametrize("processes", [2, 4])
def test_ranks_give_what_the_whole_model_gives_for_every_family(processes, tmp_path):
    models = {}
    for name, config in list_families():
        config.save_pretrained(tmp_path / name)
        models[name] = to_dict(load(str(tmp_path / name / "config.json")))
    assert check_many(models, processes, tmp_path) < len(models) / 4


@pytest.mark.parametrize("name", ["llama-tiny", "qwen3-next-tiny", "t5-tiny"])
def test_a_part_has_the_tensors_that_are_priced_and_cut(name):
    spec = load(name)
    part = shard_model(spec, 2)
    cuts, held, whole = find_cuts(spec, part, 2), table(part, spec.d_model), table(spec, spec.d_model)
    for rank in range(2):
        for tensor, shape in whole.items():
            assert cuts[tensor].take(torch.empty(shape), rank).shape == held[tensor]


# ---------------------------------------------------------------- cuts


@st.composite
def draw_cuts(draw):
    ranks = draw(st.sampled_from([2, 3, 4, 8]))

    def draw_segment():
        if draw(st.booleans()):  # on several ranks each
            divisors = [each for each in range(1, ranks) if ranks % each == 0]
            width, count = draw(st.integers(1, 4)), draw(st.sampled_from(divisors))  # fewer heads than ranks
            return CutSegment(width * count, width)
        whole = draw(st.integers(ranks, 40))
        return CutSegment(whole, -(-whole // ranks))

    return Cut(draw(st.integers(0, 2)), tuple(draw_segment() for _ in range(draw(st.integers(1, 3)))), ranks)


@settings(deadline=None)
@given(draw_cuts())
def test_the_parts_of_all_ranks_join_to_the_whole(cut):
    shape = [3, 4, 5]
    shape[cut.dim] = sum(each.whole for each in cut.segments)
    whole = torch.randn(shape)
    parts = [cut.take(whole, rank) for rank in range(cut.ranks)]
    assert {tuple(each.shape) for each in parts} == {tuple(parts[0].shape)}
    assert parts[0].shape[cut.dim] == sum(each.part for each in cut.segments)
    joined = torch.full_like(whole, torch.nan)
    for rank, part in enumerate(parts):
        division = Division({"x": cut}, SimpleNamespace(rank=rank))
        for (offset, sizes), piece in (
            (each.place, each.tensor) for each in locate(Shares(tensor=division), "x", part).pieces
        ):
            joined[tuple(slice(at, at + size) for at, size in zip(offset, sizes, strict=True))] = piece
    assert torch.equal(joined, whole)
    marks = cut.mark_common(parts[0])
    for rank in range(cut.copies):  # what is marked is the same on the ranks that have it in common
        assert torch.equal(parts[rank] * marks, parts[0] * marks)
    assert cut.is_mixed == (0 < marks.mean() < 1)


def test_a_vocabulary_that_ranks_do_not_divide_is_filled_up_with_zeros():
    cut = Cut(0, (CutSegment(7, 4),), 2)
    assert cut.take(torch.arange(1, 8), 1).tolist() == [5, 6, 7, 0]


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (["n_heads=6", "n_kv_heads=3"], "does not divide n_heads=6"),
        (
            ["attention=mamba2", "position=none", "attention.n_heads=8", "attention.norm_groups=2"],
            "does not divide the 2 groups of the norm",
        ),
    ],
)
def test_a_model_that_ranks_do_not_divide_is_refused_with_what_would_do(overrides, fault):
    with pytest.raises(ConfigError, match=fault):
        shard_model(load("llama-tiny", ["d_model=96", *overrides]), 4)


def test_the_loss_of_a_divided_vocabulary_does_not_wait_for_the_device():
    """On the meta device, where an operation whose result's shape depends on values is refused."""
    seam = SimpleNamespace(rank=1, measure=lambda values, targets: (values[:, :1], values[:, 1:2]))
    logits, targets = torch.empty(6, 8, device="meta"), torch.empty(6, dtype=torch.long, device="meta")
    loss = SpreadLoss(count=6, weight=1.0, seam=seam, width=13)
    assert loss.overwrite(logits, targets, slice(None)).shape == (2,)
