"""Async TP: in the form that ranks exchange tokens, Inductor's pass finds every product of a layer to overlap with."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch import distributed
from torch._dynamo.backends.common import aot_autograd
from torch._inductor import config
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.fx_passes.micro_pipeline_tp import micro_pipeline_tp_pass
from torch._inductor.fx_passes.post_grad import view_to_reshape
from torch.testing._internal.distributed.fake_pg import FakeStore

from support.forked_processes import read_found, run_ranks
from support.tiny_models import spec_of
from support.tiny_runs import compose_run
from zoo.costs.rank_model import shard_model
from zoo.distributed.world import World
from zoo.errors import ConfigError
from zoo.run.builder import build
from zoo.run.tensor_parallel import TensorSeam, divide_layers
from zoo.training.building import check_run_device
from zoo.training.planning import plan_training

RANKS = 2
GATHER, SCATTER, WAITED = "fused_all_gather_matmul", "fused_matmul_reduce_scatter", "wait_tensor"
LOOKED_AT = (
    *(getattr(torch.ops.symm_mem, name).default for name in (GATHER, SCATTER)),
    torch.ops._c10d_functional.wait_tensor.default,
)


@pytest.fixture
def group(monkeypatch):
    """One of two ranks whose collectives do nothing, and a torch that has NCCL."""
    monkeypatch.setattr(config, "_micro_pipeline_tp", False)
    monkeypatch.setattr(distributed, "is_nccl_available", lambda: True)
    distributed.init_process_group("fake", rank=0, world_size=RANKS, store=FakeStore())
    yield distributed.group.WORLD
    distributed.destroy_process_group()
    torch.compiler.reset()


def make_part(group, overlaps):
    """Build a rank's part of a model of one layer."""
    spec = spec_of(["n_layers=1"])
    part = build(shard_model(spec, RANKS), device="cpu", seed=0).train()
    seam = TensorSeam(group)
    if overlaps:
        seam.group.overlap_products()
    divide_layers(part, seam)
    return part


def count_fused(graph):
    """Count by name the products that the pass fuses in a copy of a graph, and the collectives that it leaves."""
    copied = torch.fx.Graph()
    copied.output(copied.graph_copy(graph.graph, {}))
    found = torch.fx.GraphModule(graph, copied)
    view_to_reshape(found)
    micro_pipeline_tp_pass(found.graph)
    return Counter(str(node.target).split(".")[1] for node in found.graph.nodes if node.target in LOOKED_AT)


def train_once(part, look, rows):
    """Compile the layer, and run it forward and backward on random ids."""

    def compile_graph(graph, inputs):
        look(graph)
        return make_boxed_func(graph.forward)

    how = {"partition_fn": min_cut_rematerialization_partition, "decompositions": select_decomp_table()}
    part.blocks[0].compile(backend=aot_autograd(fw_compiler=compile_graph, bw_compiler=compile_graph, **how))
    ids = torch.randint(0, 50, (rows, 8), generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        hidden = part(ids, logits_to_keep=0).hidden
    hidden.float().square().mean().backward()
    return hidden


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("rows", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_exchanges_of_a_layer_are_fused_with_its_products(group, rows):
    """Forward all four: of what q, k and v read, of what o gives, of what gate and up read, and of what down gives.
    Backward the two that a product reads. The two others sum what several products give (as of q, k and v)."""
    found = []
    train_once(make_part(group, True), lambda graph: found.append(count_fused(graph)), rows)
    assert found == [{GATHER: 2, SCATTER: 2}, {GATHER: 2, WAITED: 2}]


def test_a_processor_and_layers_that_are_not_compiled_are_refused(tmp_path):
    launched = ["launcher=torchrun", "nproc=2", "parallel={tp: 2, async_tp: true}"]
    for stated, found in (("true", "true"), ("auto", "auto")):
        planned = plan_training(compose_run(tmp_path, *launched, f"compile={stated}"))
        with pytest.raises(ConfigError, match=f"parallel.async_tp: is true, .*, found cpu and compile={found}"):
            check_run_device(planned, torch.device("cpu"), World(size=2), print)


@pytest.mark.slow
def test_the_form_that_is_fused_gives_the_same_bits(tmp_path):
    run_ranks(RANKS, "distributed.test_async_tp", tmp_path)
    assert read_found(RANKS, tmp_path) == [True] * RANKS


def main(folder):
    """Compare both forms as one rank of several: hidden states and the gradient of each weight."""
    distributed.init_process_group("gloo")
    found = []
    for overlaps in (True, False):
        part = make_part(distributed.group.WORLD, overlaps)
        hidden = train_once(part, lambda graph: None, 2)
        found.append([hidden, *(each.grad for each in part.parameters() if each.grad is not None)])
    same = len(found[0]) > 5 and all(torch.equal(*both) for both in zip(*found, strict=True))
    Path(folder, f"{distributed.get_rank()}.json").write_text(json.dumps(same))
    distributed.destroy_process_group()
