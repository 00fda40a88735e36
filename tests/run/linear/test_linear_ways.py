"""Ways to multiply on a CPU: each against the product in float64, the choice against all choices, the kept timings
against a file that is missing, damaged or another processor's."""

import json
import math
import random
import time
from contextlib import contextmanager

import pytest
import torch

from zoo.run.linear import lower, probe
from zoo.run.linear.base import EXACT, LOWER, Processor, Way, describe_processor
from zoo.run.linear.exact import TorchLinear
from zoo.run.linear.probe import BUCKETS, LinearShape, choose_way, time_shapes, times_file
from zoo.run.linear.ways import WAYS, is_count_stable, list_able, refuse, survey_ways, try_way

EVERY = pytest.mark.parametrize("name", list(WAYS))

ERROR = {EXACT: 2e-6, "fp16": 6e-4, "bf16": 6e-3, "int8": 2e-2, "int4": 0.15}
"""The root of the mean squared error of a product of normal numbers over that of the product itself."""


def able(name: str, shape: tuple[int, int], dtype: str = "float32") -> Way:
    """The way of this name, or a skip with its reason."""
    if reason := refuse(WAYS[name], shape, dtype, describe_processor()):
        pytest.skip(f"{name} {reason}")
    return WAYS[name]


def draw(*size: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def off(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.double() - expected).square().mean().sqrt() / expected.square().mean().sqrt())


@contextmanager
def torch_threads(count: int):
    """Set torch's threads for a block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# The products


@EVERY
@pytest.mark.parametrize("bias", [False, True])
def test_a_way_gives_the_product_of_any_shape_and_number_of_rows(name, bias):
    dice = random.Random(name)
    for trial in range(8):
        n, k, rows = dice.choice([16, 48, 208, 512]), dice.choice([32, 96, 320]), dice.randint(1, 32)
        way = able(name, (n, k))
        weight, b, x = draw(n, k, seed=trial), draw(n, seed=trial + 50), draw(rows, k, seed=trial + 99)
        expected = x.double() @ weight.double().T + (b.double() if bias else 0)
        with torch.inference_mode():
            y = way.run(x, way.prepare(weight, b if bias else None))
        assert y.dtype == torch.float32 and y.shape == (rows, n)
        assert off(y, expected) <= ERROR[way.precision], (n, k, rows)


@EVERY
def test_a_way_packed_for_few_rows_gives_the_product_of_many(name):
    way = able(name, (96, 64))
    weight, x = draw(96, 64), draw(150, 64, seed=1)
    with torch.inference_mode():
        y = way.run(x, way.prepare(weight, None))
    assert off(y, x.double() @ weight.double().T) <= ERROR[way.precision]


@EVERY
def test_a_way_multiplies_rows_of_very_different_size(name):
    """A scale shared by all rows would leave nothing of the small ones."""
    way = able(name, (64, 128))
    weight, x = draw(64, 128), draw(6, 128, seed=1) * 10.0 ** torch.arange(-3, 3)[:, None]
    with torch.inference_mode():
        y = way.run(x, way.prepare(weight, None))
    for got, row in zip(y, x, strict=True):
        assert off(got, row.double() @ weight.double().T) <= 2 * ERROR[way.precision]


@EVERY
def test_rows_of_zeros_give_the_bias(name):
    way = able(name, (32, 32))
    weight, bias = draw(32, 32), draw(32, seed=1)
    weight[5] = 0
    with torch.inference_mode():
        y = way.run(torch.zeros(3, 32), way.prepare(weight, bias))
    torch.testing.assert_close(y, bias.expand(3, -1), rtol=0.01, atol=0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@EVERY
def test_a_way_takes_a_model_in_16_bits_and_answers_in_them(name, dtype):
    way, kind = able(name, (64, 96), dtype), getattr(torch, dtype)
    weight, bias, x = draw(64, 96, dtype=kind), draw(64, seed=1, dtype=kind), draw(5, 96, seed=2, dtype=kind)
    with torch.inference_mode():
        y = way.run(x, way.prepare(weight, bias))
    assert y.dtype == kind
    assert off(y, x.double() @ weight.double().T + bias.double()) <= max(ERROR[way.precision], 6e-3)


@pytest.mark.parametrize("name", ["transposed", "int8_weights", "int4_weights", "bf16_plain"])
def test_the_bytes_said_are_those_of_the_tensors_packed(name):
    way = able(name, (96, 128))
    tensors = [each for each in way.prepare(draw(96, 128), None) if isinstance(each, torch.Tensor)]
    assert way.count_bytes((96, 128), 4) == sum(each.numel() * each.element_size() for each in tensors)


# What cannot run


def machine(**given) -> Processor:
    libraries = frozenset({"onednn", "fbgemm"})
    return Processor(**{"architecture": "x86_64", "libraries": libraries, **given})


NOT_ON = {
    "AVX2 alone": (machine(), {"bf16_onednn", "int8_both"}),
    "AMX": (machine(features=frozenset({"avx512_bf16", "amx", "vnni"})), set()),
    "an Arm processor": (
        machine(architecture="aarch64", libraries=frozenset({"onednn"})),
        {"fp16_fbgemm"},
    ),
    "a torch without libraries": (
        machine(libraries=frozenset()),
        {"onednn", "onednn_pairs", "fp16_fbgemm", "bf16_onednn", "int8_both"},
    ),
}


@pytest.mark.parametrize("where", NOT_ON)
def test_a_processor_that_is_only_described_is_refused_what_it_lacks(where):
    processor, lacking = NOT_ON[where]
    refused = {name for name, way in WAYS.items() if way.refuses((512, 512), "float32", processor)}
    assert refused == lacking


class _Broken(TorchLinear):
    name = "broken"

    def run(self, x, packed):
        raise RuntimeError("no kernel for this processor\nand more")


class _Wrong(TorchLinear):
    name = "wrong"

    def run(self, x, packed):
        return super().run(x, packed) * 1.1


class _WholeBatch(Way):
    """torch's dynamic int8, whose scale is that of all rows together: what must be found unstable."""

    name, precision = "whole_batch", "int8"

    def prepare(self, weight, bias, rows=1):
        scales = weight.abs().amax(1) / 127
        zeros = torch.zeros(len(weight), dtype=torch.long)
        whole = torch.quantize_per_channel(weight, scales.double(), zeros, 0, torch.qint8)
        return torch.ops.quantized.linear_prepack(whole, bias)

    def run(self, x, packed):
        return torch.ops.quantized.linear_dynamic(x, packed)


def test_a_way_that_fails_or_is_wrong_in_this_torch_is_refused_in_one_line(monkeypatch):
    for way in (_Broken(), _Wrong()):
        monkeypatch.setitem(WAYS, way.name, way)
    broken, wrong = (try_way(name, "float32", describe_processor()) for name in ("broken", "wrong"))
    assert broken == f"fails in torch {torch.__version__}: no kernel for this processor"
    assert wrong is not None and wrong.startswith("is wrong by 0.1")


def test_every_way_is_surveyed_and_one_of_each_precision_runs():
    found = {each.way.name: each for each in survey_ways(describe_processor())}
    assert set(found) == set(WAYS)
    for precision in {EXACT, *LOWER} - ({"fp16"} if found["fp16_fbgemm"].reason else set()):
        assert any(each.reason is None for each in found.values() if each.way.precision == precision)
    assert all((each.stable is None) == (each.reason is not None) for each in found.values())


# Whether a row's bits are its own


@pytest.mark.skipif("fbgemm" not in describe_processor().libraries, reason="needs FBGEMM, whose int8 it is")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_product_with_one_scale_for_the_batch_is_found_unstable(monkeypatch):
    monkeypatch.setitem(WAYS, "whole_batch", _WholeBatch())
    assert not is_count_stable("whole_batch", (64, 96), "float32")


@pytest.mark.parametrize("rows", [1, 2, 8, 32])
@EVERY
def test_a_row_found_stable_has_the_same_bits_beside_other_neighbours(name, rows):
    way = able(name, (160, 224))
    if not is_count_stable(name, (160, 224), "float32"):
        pytest.skip(f"{name} is not")
    weight, row = draw(160, 224, seed=5), draw(224, seed=6)
    with torch.inference_mode():
        packed, seen = way.prepare(weight, None), []
        for place in range(rows):
            x = draw(rows, 224, seed=place + 7) * 5
            x[place] = row
            seen.append(way.run(x, packed)[place])
    assert all(torch.equal(each, seen[0]) for each in seen)


# The choice


def test_the_way_chosen_takes_the_least_time_for_the_rows_expected_and_a_prompt():
    dice = random.Random(0)
    names = [name for name, way in WAYS.items() if way.precision == EXACT]
    for _ in range(60):
        times = {name: {rows: dice.uniform(1, 2) * rows**0.5 for rows in BUCKETS} for name in names}
        rows = dice.choice([(1,), (8,), (1, 2, 4, 8, 16, 32)])

        def cost(name, times=times, rows=rows):
            mean = math.prod(times[name][each] for each in rows) ** (1 / len(rows))
            return mean * times[name][128] ** probe.PROMPT * (probe.GAIN if WAYS[name].packs else 1)

        chosen = choose_way(times, rows)
        assert all(cost(chosen) <= cost(name) * (1 + 1e-9) for name in names)


def test_a_packed_copy_is_made_only_where_it_gains_more_than_timing_errs():
    flat = dict.fromkeys(BUCKETS, 1.0)
    slight, clear = dict.fromkeys(BUCKETS, 0.97), dict.fromkeys(BUCKETS, 0.5)
    assert choose_way({"plain": flat, "onednn": slight}) == "plain"
    assert choose_way({"plain": flat, "onednn": clear}) == "onednn"


def test_gaps_take_the_nearest_timing():
    assert choose_way({"plain": {1: 1.0, 128: 1.0}, "onednn": {1: 2.0, 128: 0.1}}, rows=(32,)) == "onednn"
    assert choose_way({"plain": {1: 1.0, 128: 1.0}, "onednn": {1: 2.0}}, rows=(32,)) == "plain"


# The timings kept


SHAPE = LinearShape(64, 64, "float32")


@pytest.fixture
def counted(monkeypatch, tmp_path):
    """Timings that cost nothing: a list of the calls that were made for them."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    monkeypatch.delenv(probe.IGNORE, raising=False)
    monkeypatch.setattr(probe, "is_crowded", lambda: False)
    calls = []

    def fake(shapes, processor, spend):
        calls.append(list(shapes))
        return {shape: {"plain": dict.fromkeys(BUCKETS, 1.5)} for shape in shapes}

    monkeypatch.setattr(probe, "_time_together", fake)
    return calls


def test_a_shape_is_timed_once_for_each_processor(counted):
    here, there = machine(name="one", threads=2), machine(name="one", threads=1)
    first = time_shapes([SHAPE], here)
    assert time_shapes([SHAPE], here) == first == {SHAPE: {"plain": dict.fromkeys(BUCKETS, 1.5)}}
    assert counted == [[SHAPE]]
    time_shapes([SHAPE], there)
    time_shapes([SHAPE, SHAPE._replace(n=32)], here)
    assert counted == [[SHAPE], [SHAPE], [SHAPE._replace(n=32)]]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"version": 0, "times": {}}', '{"version": 1, "times": 3}', "null"],
)
def test_a_damaged_file_of_timings_is_made_anew(counted, text):
    times_file().write_text(text)
    time_shapes([SHAPE], machine())
    assert len(counted) == 1 and json.loads(times_file().read_text())["version"] == probe.VERSION
    kept = json.loads(times_file().read_text())
    kept["times"][machine().key][SHAPE.key] = {"plain": {"one": "x"}}
    times_file().write_text(json.dumps(kept))
    time_shapes([SHAPE], machine())
    assert len(counted) == 2


def test_timings_are_neither_read_nor_kept_when_told_to_ignore_them(counted, monkeypatch):
    time_shapes([SHAPE], machine())
    before = times_file().read_text()
    monkeypatch.setenv(probe.IGNORE, "ignore")
    time_shapes([SHAPE, SHAPE._replace(n=32)], machine())
    assert len(counted) == 2 and times_file().read_text() == before


def test_timings_beside_another_program_are_not_kept(counted, monkeypatch):
    monkeypatch.setattr(probe, "is_crowded", lambda: True)
    with torch_threads(2):
        time_shapes([SHAPE], machine())
    assert not times_file().exists()


def test_a_cache_that_cannot_be_written_is_no_error(counted, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "file"))
    assert SHAPE in time_shapes([SHAPE], machine())


def test_timing_ends_when_its_time_is_over_and_times_every_way_of_a_small_shape(monkeypatch):
    monkeypatch.setenv(probe.IGNORE, "ignore")
    monkeypatch.setattr(probe, "SPAN", 1e5)
    monkeypatch.setattr(probe, "TOGETHER", 1e5)
    (times,) = time_shapes([LinearShape(64, 64, "float32")], describe_processor(), spend=0.3).values()
    assert set(times) == set(list_able(EXACT, SHAPE[:2], SHAPE.dtype, describe_processor()))
    assert all(seconds > 0 for of in times.values() for seconds in of.values())
    assert times["plain"].keys() == times["transposed"].keys() == set(BUCKETS)


def test_int8_inputs_give_the_same_product_signed_and_unsigned(monkeypatch):
    way, weight, x = able("int8_both", (64, 128)), draw(64, 128), draw(5, 128, seed=1)
    found = {}
    for features in ({"vnni"}, {"vnni", "amx"}):
        here = machine(features=frozenset(features))
        monkeypatch.setattr(lower, "describe_processor", lambda here=here: here)
        packed = way.prepare(weight, None)
        found[packed[3][2]] = way.run(x, packed)
    torch.testing.assert_close(found[torch.uint8], found[torch.int8], rtol=0, atol=1e-5)


def test_a_way_without_fast_code_here_uses_up_no_time_of_the_others_and_is_never_taken(monkeypatch):
    class Slow(TorchLinear):
        name = "slow"

        def run(self, x, packed):
            end = time.thread_time() + 0.02 * x.shape[0]
            while time.thread_time() < end:
                pass
            return super().run(x, packed)

    monkeypatch.setenv(probe.IGNORE, "ignore")
    monkeypatch.setattr(probe, "SPAN", 1e5)
    monkeypatch.setattr(probe, "TOGETHER", 1e5)
    monkeypatch.setitem(WAYS, "slow", Slow())
    began = time.perf_counter()
    (times,) = time_shapes([LinearShape(512, 512, "float32")], describe_processor(), spend=0.1).values()
    assert time.perf_counter() - began < 1.5, "128 rows alone would have taken 2.6 seconds"
    assert times["slow"].keys() == {1}
    assert all(choose_way(times, (rows,)) != "slow" for rows in BUCKETS)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 6, 8])
def test_a_way_that_is_found_stable_is_so_for_each_single_row_of_few_outputs(n):
    weight, x = draw(n, 96, seed=1), draw(200, 96, seed=2)
    for name in ("plain", "onednn", "onednn_pairs"):
        if refuse(WAYS[name], (n, 96), "float32", describe_processor()) or not is_count_stable(
            name, (n, 96), "float32"
        ):
            continue
        with torch.inference_mode():
            packed = WAYS[name].prepare(weight, None)
            whole = WAYS[name].run(x, packed)
            assert all(torch.equal(WAYS[name].run(x[i : i + 1].clone(), packed), whole[i : i + 1]) for i in range(200))
