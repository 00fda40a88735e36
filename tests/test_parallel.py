"""What ranks hold, against models that torch.distributed really sharded, and against the whole model that they add up
to."""

import random
from math import prod

import pytest
import torch
import torch.distributed as dist
from loaded import load
from tiny import every_choice, name, spec_of
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.testing._internal.distributed.fake_pg import FakeStore

from zoo.costs import Setup, params, price
from zoo.costs.cache import kv_cache
from zoo.costs.parallel import activation_bytes, fullest, stages
from zoo.costs.shards import dim0_share
from zoo.costs.states import states
from zoo.costs.traffic import traffic
from zoo.errors import ConfigError
from zoo.run.builder import build
from zoo.run.layer import Layer
from zoo.spec import Experts, Linear, tensors


@pytest.fixture
def ranks(request):
    """A mesh of so many ranks of which this process is the first; nothing is sent."""
    dist.init_process_group("fake", rank=0, world_size=request.param, store=FakeStore())
    yield init_device_mesh("cpu", (request.param,))
    dist.destroy_process_group()


def local(tensor):
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def sharded(model, mesh):
    """The model under FSDP2, layers by themselves, stacks of fewer experts than ranks by their second dimension."""

    def place(parameter):
        return Shard(1) if parameter.dim() == 3 and parameter.shape[0] < mesh.size() else None

    for layer in model.blocks:
        fully_shard(layer, mesh=mesh, shard_placement_fn=place)
    fully_shard(model, mesh=mesh)
    return model


FSDP = [["head.tied=false"], ["head.tied=true", "d_model=40"], ["attention=mla"]]
FSDP += [["ffn=moe", "n_experts=3", "d_model=48"]]


@pytest.mark.parametrize("overrides", FSDP, ids=name)
@pytest.mark.parametrize("ranks", [2, 4, 6], indirect=True)
def test_fsdp_leaves_a_rank_the_shards_that_torch_does(overrides, ranks):
    spec = spec_of(overrides)
    setup = Setup(dp=ranks.size(), zero=3, precision="fp32")
    model = sharded(build(spec, device="cpu", dtype="fp32"), ranks)
    kept = states(spec, setup)
    assert kept["weights"] == sum(local(parameter).nbytes for parameter in model.parameters())
    assert kept["optimizer"] == 2 * kept["gradients"] == 2 * kept["weights"]


@pytest.mark.parametrize("ranks", [3, 4], indirect=True)
def test_optimizer_states_of_shards_are_those_that_torch_holds(ranks):
    spec = spec_of(["n_layers=2"])
    model = sharded(build(spec, device="cpu", dtype="bf16"), ranks)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    optimizer.step()
    held = sum(local(state[key]).nbytes for state in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq"))
    assert states(spec, Setup(dp=ranks.size(), zero=3, precision="pure"))["optimizer"] == held


COLUMNS = ["attention.q", "attention.k", "attention.v", "attention.q_b", "attention.k_b", "attention.v_b"]
PLAN = {f"blocks.*.{part}": ColwiseParallel for part in (*COLUMNS, "ffn.gate", "ffn.up")}
PLAN |= {f"blocks.*.{part}": RowwiseParallel for part in ("attention.o", "ffn.down")}
PLAN |= {"embedding.tokens": RowwiseParallel, "head.out": ColwiseParallel}
DENSE = [[], ["bias=true", "ffn.bias=true"], ["attention=mla"], ["block=parallel"], ["attention=mha", "ffn=mlp"]]


@pytest.mark.parametrize("overrides", DENSE, ids=name)
@pytest.mark.parametrize("ranks", [2, 4], indirect=True)
def test_tensor_parallelism_leaves_a_rank_the_shards_that_torch_does(overrides, ranks):
    many = [] if {"attention=mla", "attention=mha"} & {*overrides} else ["n_kv_heads=4"]
    spec = spec_of(["head.tied=false", *many, *overrides])
    model = build(spec, device="cpu", dtype="fp32")
    modules = dict(model.named_modules())
    plan = {path: how() for path, how in PLAN.items() if path.replace("*", "0") in modules}
    parallelize_module(model, ranks, plan)
    assert fullest(spec, Setup(tp=ranks.size())).params == sum(local(p).numel() for p in model.parameters())


SPREAD = list(every_choice())


@pytest.mark.parametrize("overrides", SPREAD, ids=name)
def test_a_rank_of_tensor_parallelism_holds_its_part_and_what_all_hold(overrides):
    """What differs between the shapes of a whole tensor and of a rank's is one dimension, by the number of ranks; and
    the rank's part is itself a model that builds."""
    spec = spec_of(overrides)
    stage = fullest(spec, Setup(tp=2))
    (tower,) = stage.held.values()
    built = {key: tuple(tensor.shape) for key, tensor in Layer(tower, tower.d_model).named_parameters()}
    assert stage.params == sum(map(prod, built.values()))
    packed = ("attention.in_proj", "attention.conv")  # of several widths at once, some of them everyone's
    for key, part, leaf in tensors(spec, spec.d_model):
        whole = part.shapes()[leaf]
        if key not in built or any(each in key for each in packed):
            continue
        changed = [pair for pair in zip(whole, built[key], strict=True) if pair[0] != pair[1]]
        assert len(changed) <= 1 and all(part == -(-all_ // 2) for all_, part in changed)
        layer = "blocks" in key and "conv." not in key and leaf == "weight" and isinstance(part, Linear | Experts)
        one_head = key.endswith(("attention.k.weight", "attention.v.weight")) and whole[0] == tower.d_model // 4
        everyones = any(each in key for each in ("q_a.", "kv_a.", "router.gate", "shared_gate"))
        assert bool(changed) or not layer or everyones or one_head


def test_fewer_key_heads_than_ranks_are_on_several():
    spec = spec_of(["n_heads=8", "n_kv_heads=2"])
    by_rank = {tp: fullest(spec, Setup(tp=tp)) for tp in (1, 2, 4, 8)}
    keys = {tp: next(p.shape for p in s.pieces if p.path.endswith("attention.k.weight")) for tp, s in by_rank.items()}
    assert keys == {1: (16, 32), 2: (8, 32), 4: (8, 32), 8: (8, 32)}


def test_a_published_layout_of_mamba_2_repeats_its_one_group():
    """Mamba-2 has B and C once for all heads: with 8 ranks each holds both, and an eighth of z, x and Δ."""
    spec = load("mamba2-130m")
    mixer = spec.blocks[spec.pattern[0]].attention
    shapes = {p.path.split(".")[-2]: p.shape for p in fullest(spec, Setup(tp=8)).pieces if p.path.endswith(".weight")}
    assert shapes["in_proj"] == ((2 * 1536 + 24) // 8 + 2 * mixer.d_state, 768)
    assert shapes["conv"] == (1536 // 8 + 2 * mixer.d_state, 1, 4)


MODELS = ["gpt2", "llama3-8b", "mixtral-8x7b", "deepseek-v3", "gemma2-9b", "mamba-130m", "opt-350m"]
MODELS += ["qwen3-next-80b-a3b", "bert-base"]


@pytest.mark.parametrize("model", MODELS)
def test_stages_add_up_to_the_model_and_a_second_copy_of_a_tied_table(model):
    spec = load(model)
    rng = random.Random(model)
    total = params.count_parameters(spec)["total"]
    tied = getattr(spec.head, "tied", False)
    for pp in (1, *rng.sample(range(2, spec.n_layers + 1), 3)):
        each = stages(spec, Setup(pp=pp))
        again = spec.vocab_size * (spec.embedding.width or spec.d_model) if tied and pp > 1 else 0
        assert sum(stage.params for stage in each) == total + again
        assert sum(count for stage in each for *_, count in stage.layers()) == spec.n_layers
        counts = [sum(count for *_, count in stage.layers()) for stage in each]
        assert counts == sorted(counts, reverse=True) and max(counts) - min(counts) <= 1
        assert [stage.in_flight for stage in each] == list(range(pp, 0, -1))


def test_a_table_that_all_layers_read_is_on_every_stage():
    held = [{piece.path for piece in stage.pieces} for stage in stages(load("deberta-v3-base"), Setup(pp=4))]
    assert ["position.table.weight" in paths for paths in held] == [True] * 4
    assert ["embedding.tokens.weight" in paths for paths in held] == [True, False, False, True]  # the head is tied


@pytest.mark.parametrize("model", ["t5-small", "bart-base"])
def test_stages_of_two_stacks_add_up_to_the_model_and_copies_of_tables(model):
    spec = load(model)
    total = params.count_parameters(spec)["total"]
    assert stages(spec, Setup())[0].params == total
    tables = {prod(p.shape) for p in stages(spec, Setup())[0].pieces if "table" in p.path or "tokens" in p.path}
    for pp in (2, 3, 5):
        extra = sum(stage.params for stage in stages(spec, Setup(pp=pp))) - total
        assert extra >= spec.vocab_size * spec.d_model
        for table in sorted(tables, reverse=True):
            extra %= table
        assert extra == 0


@pytest.mark.parametrize("model", ["mixtral-8x7b", "deepseek-v3", "gpt-oss-20b", "qwen3-30b-a3b"])
def test_expert_parallelism_divides_experts_and_nothing_else(model):
    spec = load(model)
    for ep in (2, 4, 8):
        whole, part = (fullest(spec, Setup(dp=8, ep=each)) for each in (1, ep))
        experts = sum(piece.params for piece in whole.pieces if piece.expert)
        assert experts == params.count_parameters(spec)["by_component"]["experts"]
        assert part.params == whole.params - experts + experts // ep


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_zero_over_random_layouts_leaves_each_rank_its_part(zero):
    """All ranks together hold each sharded thing once, as far as the pieces come out even."""
    rng = random.Random(zero)
    spec = load("mixtral-8x7b", ["n_layers=4"])
    for _ in range(12):
        tp, ep, cp, dp = rng.choice((1, 2, 4)), rng.choice((1, 2, 4)), rng.choice((1, 2)), rng.choice((4, 8))
        setup = Setup(dp=dp, tp=tp, cp=cp, ep=ep, zero=zero)
        stage, kept = fullest(spec, setup), states(spec, setup)
        dense = sum(piece.params for piece in stage.pieces if not piece.expert)
        share = dense / (dp * cp) + (stage.params - dense) / (dp * cp / ep)
        odd = {"rel": 1e-3 if zero == 3 else 1e-9}  # eight rows of a router among sixteen ranks
        assert kept["master"] == pytest.approx(4 * share, **odd) and kept["optimizer"] == 3 * kept["master"]
        assert kept["gradients"] == pytest.approx(2 * (share if zero >= 2 else stage.params), **odd)
        assert kept["weights"] == pytest.approx(2 * (share if zero == 3 else stage.params), **odd)


@pytest.mark.parametrize("ranks", [8], indirect=True)
def test_what_fsdp_makes_whole_is_what_torchs_tracker_sees_at_the_peak(ranks):
    spec = spec_of(["d_model=64", "d_ff=96", "n_layers=4", "head.tied=false"])
    model = build(spec, device="cpu", dtype="fp32").train()
    for unit in (*model.blocks, model.embedding.tokens, [model.norm, model.head.out], model):
        fully_shard(unit, mesh=ranks)
    with FSDPMemTracker(model) as tracker:
        model(torch.zeros(1, 2, dtype=torch.long)).logits.sum().backward()
    (seen,) = ({str(kind).split(".")[-1]: size for kind, size in each.items()} for each in _peak(tracker))
    kept = states(spec, Setup(dp=8, zero=3, precision="fp32"))
    assert kept["weights"] == seen["SHARDED_PARAM"]
    assert kept["gathered"] == seen["UNSHARDED_PARAM"] + seen["ALL_GATHER"]
    assert kept["reducing"] == 2 * seen["REDUCE_SCATTER"]
    rest = seen["Total"] - sum(seen[kind] for kind in ("SHARDED_PARAM", "SHARDED_GRAD", "ACT", "INP"))
    assert kept["gathered"] + kept["reducing"] == pytest.approx(rest, rel=0.02)  # a few tokens' gradients more


def _peak(tracker):
    return [each for each in tracker.get_tracker_snapshot("peak").values() if each["Total"]]


def test_fsdp_makes_two_neighbouring_layers_whole():
    spec = load("llama3-8b")
    layer, table = 218_112_000, 128_256 * 4096
    kept = states(spec, Setup(dp=8, zero=3))
    assert kept["gathered"] == 2 * (layer + table + 4096)  # the last layer, then the final norm and the head
    assert kept["reducing"] == 2 * 2 * (table + 4096)
    assert states(load("llama3-8b", ["vocab_size=1000"]), Setup(dp=8, zero=3))["gathered"] == 2 * 2 * layer
    assert states(spec, Setup(dp=8, zero=2))["gathered"] == 0


REFUSED = [
    ({"tp": 3}, r"tp: 3 does not divide n_heads=32 \(1, 2, 4, 8, 16, 32 would do\)"),
    ({"tp": 3}, r"tp: 3 does not divide d_ff=14336"),
    ({"tp": 3}, r"tp: 3 neither divides n_kv_heads=8 nor is a multiple of it"),
    ({"ep": 3, "dp": 3}, r"ep: 3 does not divide n_experts=8 \(1, 2, 4, 8 would do\)"),
    ({"pp": 64}, r"pp: 64 stages for 32 layers \(at most 32 would do\)"),
]


@pytest.mark.parametrize(("setup", "says"), REFUSED)
def test_what_does_not_divide_is_refused_with_what_would_do(setup, says):
    with pytest.raises(ConfigError, match=says):
        fullest(load("mixtral-8x7b"), Setup(**setup))


def test_experts_of_a_dense_model_are_refused():
    with pytest.raises(ConfigError, match=r"ep: 2 ranks for experts, of which this model has none \(ep=1\)"):
        fullest(load("gpt2"), Setup(ep=2, dp=2))


CACHES = {"llama3-8b": [1, 2, 8, 16], "deepseek-v3": [1, 4], "mamba-130m": [1, 8], "gemma2-9b": [1, 2, 8]}


@pytest.mark.parametrize("model", CACHES)
def test_a_ranks_cache_is_that_of_its_heads_and_layers(model):
    spec = load(model)
    for tp in CACHES[model]:
        for pp, cp in ((1, 1), (2, 1), (2, 4)):
            setup = Setup(tp=tp, pp=pp, cp=cp, context=4096)
            mine = price(spec, setup)["memory"]["kv_cache"]
            whole = kv_cache(spec, Setup(context=4096 // cp))["bytes"]
            heads = {"llama3-8b": min(tp, 8), "gemma2-9b": min(tp, 8), "mamba-130m": tp, "deepseek-v3": 1}[model]
            layers = -(-spec.n_layers // pp) / spec.n_layers
            assert mine == pytest.approx(whole * layers / heads, rel=1e-9 if spec.n_layers % pp == 0 else 0.05)


def test_the_first_stage_keeps_activations_of_as_many_micro_batches_as_stages():
    """Korthikanti et al., 2022, §4.2.3: L layers' worth whatever the stages, all divided by t."""
    spec = load("llama3-8b")
    for tp, pp, cp in ((1, 1, 1), (8, 1, 1), (8, 4, 1), (8, 8, 2)):
        kept = activation_bytes(spec, Setup(tp=tp, pp=pp, cp=cp), {("", "layer"): 1000.0})
        assert kept == 1000 * 32 / tp / cp
    assert activation_bytes(spec, Setup(), {("", "layer"): 1.0}, first=10, last=100) == 142


def test_traffic_is_that_of_the_papers():
    spec, stream = load("llama3-8b", ["vocab_size=1000"]), 2 * 512 * 4096 * 2  # b s d in bf16
    held = params.count_parameters(spec)["total"]
    sent = traffic(spec, Setup(tp=8, batch=2, context=512))
    assert sent == {"tp": {"bytes": round((4 * 32 + 2) * 2 * 7 / 8 * stream), "collective": "all-reduce"}}
    by_zero = {zero: traffic(spec, Setup(dp=64, zero=zero))["dp"]["bytes"] / (2 * held) for zero in range(4)}
    assert by_zero == pytest.approx({0: 2 * 63 / 64, 1: 2 * 63 / 64, 2: 2 * 63 / 64, 3: 3 * 63 / 64}, rel=1e-6)
    assert traffic(spec, Setup()) == {} and "traffic" not in price(spec, Setup(context=512))
    assert price(spec, Setup(tp=8, batch=2, context=512))["traffic"] == sent


def test_traffic_of_experts_is_two_exchanges_a_pass():
    spec = load("mixtral-8x7b")
    sent = traffic(spec, Setup(dp=8, ep=8, batch=1, context=1024))["ep"]["bytes"]
    assert sent == round(4 * 7 / 8 * 32 * 2 * 1024 * 4096 * 2)  # layers, top_k, tokens, width, bf16


def test_traffic_of_a_pipeline_and_of_a_ring():
    spec = load("llama3-8b")
    sent = traffic(spec, Setup(pp=2, cp=4, context=8192))
    assert sent["pp"]["bytes"] == 2048 * 4096 * 2
    assert sent["cp"]["bytes"] == 3 * 3 * 16 * 2048 * 2 * 8 * 128 * 2  # three neighbours, 16 layers, k and v


def test_a_shard_is_cut_where_fsdp_cuts_it():
    assert dim0_share((10, 4), 4, expert=False) == (3, 4)
    assert dim0_share((2, 12, 5), 4, expert=True) == (2, 3, 5)
    assert dim0_share((8, 12, 5), 4, expert=True) == (2, 12, 5)
    assert dim0_share((1,), 4, expert=False) == (1,)
