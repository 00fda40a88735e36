"""Pipelines: layers are cut by their time, stages compute in torch's order, and wait as long as the formula says."""

import itertools
import json
from collections import defaultdict
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.forked_processes import read_found, run_ranks
from support.packaged_specs import load
from support.pipeline_parallel_ranks import UNIT
from zoo.compose import load as compose
from zoo.costs import Setup, price
from zoo.costs.flops import count_flops
from zoo.costs.layer_cut import cut_evenly, cut_layers, time_layers
from zoo.costs.rank_tensors import stages
from zoo.costs.step_time import PassTime, bubble_seconds, measure_work
from zoo.distributed.pipeline_schedule import PipelineSchedule
from zoo.distributed.world import World
from zoo.errors import ConfigError
from zoo.model.stage import take_chunks
from zoo.run.builder import build
from zoo.training.mesh_settings import ParallelSettings
from zoo.training.pipeline import find_schedule_class

INTERLEAVED = {"schedule": "interleaved", "chunks": 2}
ZERO_BUBBLE = {"schedule": "zero_bubble"}
BOTH = {"schedule": "zero_bubble", "chunks": 2}
V = {"schedule": "zero_bubble_v", "chunks": 2}
WAYS = [{}, INTERLEAVED, ZERO_BUBBLE, BOTH, V]


def list_schedules():
    """Schedules of 2 to 8 stages, each with legal numbers of microbatches."""
    for kind, stages_, chunks in itertools.product(
        ("interleaved", "zero_bubble", "zero_bubble_v"), (2, 3, 4, 8), (1, 2, 3)
    ):
        schedule = PipelineSchedule(kind, stages_, chunks)
        if schedule.find_chunk_fault() is None:
            counts = range(1, 4 * stages_ + 1)
            yield schedule, [each for each in counts if schedule.find_microbatch_fault(each) is None]


def torch_order(schedule, microbatches):
    """The passes of each stage by torch's own class: what, chunk (by its number in the model) and microbatch."""
    about = {"num_stages": schedule.n_chunks, "group_size": schedule.stages, "group_rank": 0, "submod": None}
    own = [SimpleNamespace(**about, stage_index_to_group_rank=None) for _ in range(schedule.chunks)]
    made = find_schedule_class(schedule.kind)(own, microbatches, loss_fn=lambda total, _: total)
    names = {"FORWARD": "F", "FULL_BACKWARD": "B", "BACKWARD_INPUT": "I", "BACKWARD_WEIGHT": "W"}
    return {
        stage: [(names[each.computation_type.name], each.stage_index, each.microbatch_index) for each in order if each]
        for stage, order in made.pipeline_order.items()
    }


# ---------------------------------------------------------------- the order


@pytest.mark.parametrize(("schedule", "counts"), list(list_schedules()), ids=str)
def test_stages_compute_in_torchs_order(schedule, counts):
    for count in counts:
        for stage, theirs in torch_order(schedule, count).items():
            chunks = schedule.list_chunks(stage)
            assert [(what, chunks[own], each) for what, own, each in schedule.order(stage, count)] == theirs


def test_what_no_schedule_takes_is_what_torch_refuses():
    for kind, stages_ in itertools.product(("interleaved", "zero_bubble"), (2, 3, 4, 8)):
        schedule = PipelineSchedule(kind, stages_, 2)
        for count in range(stages_, 4 * stages_ + 1):
            if schedule.find_microbatch_fault(count) is not None:
                with pytest.raises(ValueError, match="multiple of the number of rounds"):
                    torch_order(schedule, count)


def run_order(schedule, microbatches, passes):
    """When all stages are done, each pass taking its time once what it reads is there. torch makes both halves of the
    first chunk's backward pass in the second one."""
    done, now, at = {}, dict.fromkeys(range(schedule.stages), 0.0), dict.fromkeys(range(schedule.stages), 0)
    order = {0: []}
    if schedule.kind == "1f1b":
        for stage in range(schedule.stages):
            early = min(schedule.stages - 1 - stage, microbatches)
            forward, back = ([(what, stage, each) for each in range(microbatches)] for what in "FB")
            turns = [each for both in zip(forward[early:], back, strict=False) for each in both]
            order[stage] = [*forward[:early], *turns, *back[microbatches - early :]]
    else:
        order = torch_order(schedule, microbatches)
    last = schedule.n_chunks - 1
    while any(at[stage] < len(order[stage]) for stage in order):
        for stage, own in order.items():
            while at[stage] < len(own):
                what, chunk, each = own[at[stage]]
                needs = {"F": [("F", chunk - 1)] if chunk else [], "W": [("B", chunk)]}.get(
                    what, [("F", chunk), *([("B", chunk + 1)] if chunk < last else [])]
                )
                if any((*need, each) not in done for need in needs):
                    break
                takes = {"F": passes.forward, "B": passes.backward, "I": passes.inputs, "W": passes.weights}[what]
                if chunk == 0 and what in "IW":
                    takes = passes.backward if what == "W" else 0.0
                now[stage] = max([now[stage], *(done[*need, each] for need in needs)]) + takes
                done["B" if what in "BI" else what, chunk, each] = now[stage]
                at[stage] += 1
    return max(now.values())


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("passes", [(1, 1, 1), (10, 11, 9), (10, 12, 8), (10, 14, 6), (4, 5, 4)], ids=str)
def test_the_order_waits_as_long_as_the_formula_says(way, passes):
    """Passes are those of a chunk: of weights at most, of inputs at least as long as forward."""
    for stages_, rounds in itertools.product((2, 4, 8), (2, 3)):
        schedule = PipelineSchedule(way.get("schedule", "1f1b"), stages_, way.get("chunks", 1))
        count = rounds * stages_
        busy = count * schedule.chunks * sum(passes)
        whole = PassTime(*(schedule.chunks * each for each in passes))  # of a stage
        took = run_order(schedule, count, PassTime(*passes))
        assert took - busy == pytest.approx(bubble_seconds(schedule, whole))


@pytest.mark.parametrize(("schedule", "counts"), list(list_schedules()), ids=str)
def test_memory_of_many_microbatches_is_that_of_few(schedule, counts):
    """What stages keep is counted in a step of few rounds; here it is in all of them, in torch's order."""
    sizes = [3.0, 2.0, 5.0][: schedule.chunks]
    for count in counts[-2:]:
        for stage, order in torch_order(schedule, count).items():
            chunks, kept, most = schedule.list_chunks(stage), [0] * schedule.chunks, 0.0
            for what, chunk, _ in order:
                kept[chunks.index(chunk)] += {"F": 1, "I": 0}.get(what, -1)
                most = max(most, sum(a * b for a, b in zip(kept, sizes, strict=True)))
            found = schedule.count_kept(stage, count, sizes)
            assert sum(a * b for a, b in zip(found, sizes, strict=True)) == most


# ---------------------------------------------------------------- the cut


def find_best(times, count):
    """The least largest sum, by trying every cut."""
    cuts = itertools.combinations(range(1, len(times)), count - 1)
    edges = ([0, *inner, len(times)] for inner in cuts)
    return min(max(sum(times[a:b]) for a, b in itertools.pairwise(each)) for each in edges)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=9), st.integers(1, 9))
def test_no_other_cut_has_a_faster_slowest_chunk(times, count):
    count = min(count, len(times))
    cut = cut_evenly(times, count)
    assert [each for run in cut for each in range(*run)] == list(range(len(times)))
    assert len(cut) == count and all(start < end for start, end in cut)
    assert max(sum(times[start:end]) for start, end in cut) == find_best(times, count)


def count_chunks(spec, context, count):
    return [end - start for start, end in cut_layers(spec, context, count)]


def test_layers_are_cut_by_their_time_and_the_head_counts():
    assert count_chunks(load("llama3.1-405b"), 8192, 16) == [7, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 7]
    assert count_chunks(load("llama3.1-405b"), 8192, 8) == [15, 16, 16, 16, 16, 16, 16, 15]  # as Meta cut it
    assert count_chunks(load("llama3-8b"), 8192, 4)[-1] < 8  # its head is as much as two layers
    assert cut_evenly([1] * 10, 4) == ((0, 2), (2, 4), (4, 7), (7, 10))


@pytest.mark.parametrize("name", ["llama3-8b", "qwen3-next-tiny", "deepseek-tiny", "deepseek-v3.2", "t5-tiny"])
def test_the_times_of_layers_add_up_to_the_models_flops(name):
    spec, context = load(name), 64
    expected = count_flops(spec, context)["train"] * context
    if name != "t5-tiny":  # whose decoder reads an encoder's output of its own length
        assert sum(time_layers(spec, context)) == pytest.approx(expected, rel=1e-6)
    assert len(time_layers(spec, context)) == sum(len(each.pattern) for each in spec.towers().values())


@pytest.mark.parametrize("name", ["qwen3-next-tiny", "deepseek-v3.2"])
def test_what_a_stage_computes_forward_and_backward_is_the_models_training(name):
    spec, context = load(name), 64
    (stage,) = stages(spec, Setup(context=context))
    work = measure_work(stage, context, defaultdict(float), 1)
    both = sum(
        sum((each.layers, each.beside, each.attention)) * times for each, times in ((work, 1), (work.learning, 2))
    )
    assert both == pytest.approx(count_flops(spec, context)["train"] * context, rel=1e-6)
    assert (work == work.learning) == (name == "qwen3-next-tiny")  # the other has indexers


@pytest.mark.parametrize("name", ["llama-tiny", "mixtral-tiny", "qwen3-next-tiny", "mistral-tiny", "gpt-tiny"])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_stage_that_is_priced_has_the_parameters_of_the_one_that_is_built(name, way):
    layers = 8 if name == "qwen3-next-tiny" else 5
    spec, setup = compose(name, [f"n_layers={layers}"]), Setup(pp=2, context=64, **way)
    cut = cut_layers(spec, 64, setup.pipeline.n_chunks)
    for stage in stages(spec, setup):
        own = take_chunks(spec, [cut[each] for each in setup.pipeline.list_chunks(stage.index)])
        built = build(own, device="meta")
        assert sum(each.numel() for each in built.parameters()) == stage.params
        whole = {name for name, _ in build(spec, device="meta").named_parameters()}
        assert {name for name, _ in built.named_parameters()} < whole


def test_interleaving_keeps_more_and_zero_bubble_as_much_as_the_first_stage():
    spec = load("llama3-8b")
    found = [price(spec, Setup(pp=4, context=2048, accumulate=16, **way))["memory"]["activations"] for way in WAYS]
    plain, interleaved, zero_bubble, _, v = found
    assert interleaved > 1.2 * plain
    assert zero_bubble > plain  # the last stage keeps as many microbatches, and the loss' own beside
    assert v < 1.3 * plain


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"chunks": 2}, r"chunks: is 2, and schedule=1f1b does not take it \(chunks=1, or schedule=interleaved\)"),
        ({"schedule": "interleaved"}, r"chunks: is 1, and schedule=interleaved .* \(chunks=2 or more\)"),
        ({"schedule": "zero_bubble_v", "chunks": 3}, r"chunks: is 3, .* \(chunks=2\)"),
        (
            {**INTERLEAVED, "accumulate": 7, "pp": 3},
            r"accumulate: is 7, which the 2 rounds of pp=3 .* \(accumulate=6\)",
        ),
        ({**ZERO_BUBBLE, "recompute": "full"}, r"recompute: is full, and schedule=zero_bubble goes back in two halves"),
        ({**V, "zero": 3, "dp": 2}, r"zero: is 3, and schedule=zero_bubble_v does not allow sharded weights"),
        ({"schedule": "gpipe"}, r"schedule: unknown 'gpipe' \(one of: 1f1b, interleaved"),
    ],
)
def test_a_set_up_that_no_pipeline_runs_is_refused(fields, fault):
    with pytest.raises(ConfigError, match=fault):
        Setup(**{"pp": 2, **fields})


def test_a_schedule_of_one_stage_is_refused():
    with pytest.raises(ConfigError, match=r"schedule: is zero_bubble, and pp=1 leaves no stages to order"):
        ParallelSettings.parse({"dp": 2, **ZERO_BUBBLE}).settle(World(size=2))


# ---------------------------------------------------------------- in processes


def run_cases(processes, folder, cases, timeout=900):
    """Run cases in so many processes; returns what each found, by case."""
    (folder / "cases.json").write_text(json.dumps(cases))
    run_ranks(processes, "support.pipeline_parallel_ranks", folder, folder / "cases.json", timeout=timeout)
    return read_found(processes, folder)


def check_gradients(processes, folder, cases):
    """Hold loss, gradients and what is evaluated against one process, and parameters against their price."""
    for rank, found in enumerate(run_cases(processes, folder, cases)):
        for (_, model, overrides, fields, _), each in zip(cases, found, strict=True):
            assert each["loss"] < 1e-5 and each["judged"] < 1e-5, (model, fields, each)
            assert each["gradient"] < 1e-5 and each["norm"] < 1e-4 and each["loads"], (model, fields, each)
            ways = {name: value for name, value in fields.items() if name not in ("dp", "shard")}
            stage = stages(compose(model, overrides), Setup(context=16, **ways))[rank * fields["pp"] // processes]
            assert each["parameters"] == stage.params


MODELS = [
    ("llama-tiny", ["n_layers=4"]),
    ("llama-tiny", ["n_layers=4", "head.tied=false"]),
    ("mixtral-tiny", ["n_layers=4"]),
    ("gpt-tiny", ["n_layers=4"]),
    ("mistral-tiny", ["n_layers=4"]),
    ("deepseek-tiny", ["n_layers=4"]),
    ("qwen3-next-tiny", ["n_layers=8"]),
]


def test_schedules_have_the_gradients_of_one_process(tmp_path):
    check_gradients(2, tmp_path, [["gradients", *MODELS[0], {"pp": 2, **way}, 4] for way in (INTERLEAVED, V)])


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS, ids=str)
def test_every_schedule_has_the_gradients_of_one_process(model, tmp_path):
    check_gradients(2, tmp_path, [["gradients", *model, {"pp": 2, **way}, 4] for way in WAYS])


@pytest.mark.slow
def test_four_stages_have_the_gradients_of_one_process(tmp_path):
    models = [("llama-tiny", ["n_layers=9"]), ("mixtral-tiny", ["n_layers=8"])]
    check_gradients(4, tmp_path, [["gradients", *model, {"pp": 4, **way}, 8] for model in models for way in WAYS])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_processes_wait_within_a_tenth_of_the_formula(tmp_path):
    """Layers sleep in place of computing, so that processes need no processor of their own."""
    model = ("llama-tiny", ["n_layers=8", "vocab_size=16"])
    cases = [["idle", *model, {"pp": 4, **way}, 7 if way is V else 4] for way in WAYS]
    for found in run_cases(4, tmp_path, cases):
        for way, (*_, count), each in zip(WAYS, cases, found, strict=True):
            schedule = PipelineSchedule(way.get("schedule", "1f1b"), 4, way.get("chunks", 1))
            assert each["busy"] == pytest.approx(count * 2 * 3 * UNIT, rel=0.1)  # F, I and W of two layers
            waits = bubble_seconds(schedule, PassTime(1, 1, 1))
            assert each["idle"] == pytest.approx(waits / (3 * count + waits), rel=0.1), (way, each)


def test_the_sleeping_layers_are_cut_into_equal_chunks():
    spec = compose("llama-tiny", ["n_layers=8", "vocab_size=16"])
    assert count_chunks(spec, 16, 4) == [2] * 4 and count_chunks(spec, 16, 8) == [1] * 8
