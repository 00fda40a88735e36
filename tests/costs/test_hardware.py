"""The table of accelerators: every figure has its source, no rate is a sparse one, and a user may add a file."""

import os
import subprocess
import sys

import pytest
import yaml

from zoo.costs.hardware import RATES, Hardware, hardware, list_gpus
from zoo.costs.setup import DTYPES
from zoo.errors import ConfigError
from zoo.paths import conf_dir, read_conf

EVERY = pytest.mark.parametrize("name", list_gpus())

ADVERTISED = {  # with sparsity, and without, as the makers' sheets have both
    ("h100", "bf16"): (1979, 989),
    ("h100", "fp8"): (3958, 1979),
    ("h200", "fp8"): (3958, 1979),
    ("a100-80g", "bf16"): (624, 312),
    ("b200", "bf16"): (4500, 2250),
    ("b200", "fp8"): (9000, 4500),
    ("b200", "fp4"): (18000, 9000),
    ("b300", "fp4"): (18000, 13125),
    ("l40s", "fp8"): (1466, 733),
    ("l4", "fp8"): (485, 242.5),
    ("mi300x", "fp8"): (5229.8, 2614.9),
    ("mi355x", "fp4"): (10066, 10066),
}
"""TFLOP/s."""


def file_of(name):
    return yaml.safe_load((conf_dir() / "hardware" / f"{name}.yaml").read_text(encoding="utf-8"))


@EVERY
def test_every_figure_names_a_source_that_the_file_lists_and_no_source_is_idle(name):
    body = file_of(name)
    figures = [
        *body["tflops"].values(),
        *(body[key] for key in body if isinstance(body[key], dict) and "value" in body[key]),
    ]
    shared, cited = read_conf("sources"), {figure["source"] for figure in figures}
    assert set(body["sources"]) <= cited <= {*body["sources"], *shared} and not set(body["sources"]) & set(shared)
    assert all(isinstance(figure["checked"], bool) for figure in figures)
    held = hardware(name)
    known = {*body["sources"].values(), *shared.values()}
    assert all(figure.source in known for figure in (*held.tflops.values(), *held.sizes.values()))


@EVERY
def test_narrower_products_are_never_slower(name):
    device = hardware(name)
    halves = [device.flops(dtype) for dtype in ("fp32", "tf32", "fp16", "fp8", "fp4") if dtype in device.tflops]
    assert halves == sorted(halves)
    if "bf16" in device.tflops and "fp16" in device.tflops:
        assert device.flops("bf16") == device.flops("fp16")


@EVERY
def test_no_more_memory_is_visible_than_is_sold(name):
    device = hardware(name)
    sold = device.sizes["memory_gb"].value
    assert device.sold_memory == sold * 1e9
    assert device.memory <= sold * 2**30
    assert device.memory >= 0.9 * device.sold_memory


@EVERY
def test_units_are_plausible(name):
    device = hardware(name)
    assert 1e12 < max(device.flops(dtype) for dtype in device.tflops) < 2e16
    assert 1e11 < device.bandwidth < 1e13
    assert 1e10 < device.memory < 1e12
    assert device.link is None or 1e10 < device.link < device.bandwidth
    assert all(5 < device.ridge(dtype) < 2000 for dtype in device.tflops)


@pytest.mark.parametrize(("place", "both"), ADVERTISED.items())
def test_rates_are_the_dense_ones_and_the_sparse_factor_gives_the_advertised(place, both):
    name, dtype = place
    sparse, dense = both
    device = hardware(name)
    factor = device.tflops[dtype].sparse_factor or device.sparse_factor
    assert device.flops(dtype) == pytest.approx(dense * 1e12)
    assert factor * device.flops(dtype) == pytest.approx(sparse * 1e12, rel=1e-3)


def test_rates_of_a_geforce_are_with_float32_accumulation():
    assert hardware("rtx-4090").flops("bf16") == 165.2e12  # 330.3 with float16
    assert hardware("rtx-5090").flops("bf16") == 209.5e12  # 419


def test_a_consumer_card_and_a_server_card_ship_with_what_the_driver_shows():
    assert hardware("h100").memory == 81559 * 2**20
    assert hardware("rtx-5090").memory == 32607 * 2**20
    assert hardware("mi300x").memory == 192_000_000_000  # not known: what is sold


def test_rates_cover_every_dtype_of_a_set_up_that_hardware_multiplies():
    assert {"fp32", "bf16", "fp16", "fp8"} <= set(RATES) & set(DTYPES)


@pytest.mark.parametrize(("asked", "meant"), [("h100-sxm", "h100"), ("H200", "h200"), ("rtx4090", "rtx-4090")])
def test_an_unknown_name_is_refused_with_the_nearest(asked, meant):
    with pytest.raises(ConfigError, match=rf"gpu: unknown '{asked}' \(did you mean '{meant}"):
        hardware(asked)


@pytest.mark.parametrize("name", ["v100", "t4"])
def test_a_gpu_without_bfloat16_says_what_would_do(name):
    with pytest.raises(ConfigError, match=r"dtype: .* does not multiply bf16 \(fp32, fp16 would do\)"):
        hardware(name).flops("bf16")


def test_a_users_own_file_is_read_and_read_again_when_it_changes(tmp_path):
    path = tmp_path / "mine.yaml"
    body = file_of("h100")
    path.write_text(yaml.safe_dump(body), encoding="utf-8")
    assert isinstance(hardware(str(path)), Hardware)
    assert hardware(str(path)).name == "mine"
    assert hardware(str(path)).bandwidth == hardware("h100").bandwidth
    body["bandwidth_gb_s"]["value"] = 1000
    del body["link"], body["visible_mib"], body["tdp_w"]
    path.write_text(yaml.safe_dump(body), encoding="utf-8")
    os.utime(path, ns=(1, 1))
    changed = hardware(str(path))
    assert (changed.bandwidth, changed.link, changed.memory) == (1e12, None, 80_000_000_000)


def spoiled(tmp_path, **changes):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(file_of("l40s") | changes), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"bandwith": 1}, r"bandwith: there is no such key \(did you mean 'bandwidth_gb_s'\?\)"),
        ({"memory_gb": 48}, "memory_gb: must have value, source and checked, and may have name, found 48"),
        (
            {"memory_gb": {"value": -1, "source": "mullet", "checked": True}},
            r"memory_gb.value: must be a number above 0",
        ),
        (
            {"memory_gb": {"value": 1, "source": "me", "checked": True}},
            r"memory_gb.source: 'me' is not among the sources",
        ),
        (
            {"memory_gb": {"value": 1, "source": "smi", "checked": "so"}},
            "memory_gb.checked: must be yes or no, found 'so'",
        ),
        ({"memory_gb": None}, "memory_gb: must have value"),
        ({"tflops": {}}, "tflops: must give a figure for each dtype"),
        ({"tflops": {"bf15": {"value": 1, "source": "smi", "checked": True}}}, r"tflops.bf15: unknown dtype \(did you"),
        ({"sparse_factor": "two"}, "sparse_factor: must be a number above 0, found 'two'"),
        ({"sources": "me"}, "sources: must name each source"),
        ({"title": 7}, "title: must be text, found 7"),
    ],
)
def test_a_faulty_file_is_refused_by_its_key(tmp_path, changes, fault):
    with pytest.raises(ConfigError, match=fault):
        hardware(spoiled(tmp_path, **changes))


@pytest.mark.parametrize(
    ("text", "fault"), [("[1, 2", "is no YAML"), ("- 1", "not a mapping"), ("title: x", "is without sources, tflops")]
)
def test_a_file_that_is_no_such_thing_is_refused(tmp_path, text, fault):
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=fault):
        hardware(str(path))


def test_a_file_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match=r"gpu: no such file: nowhere/mine\.yaml"):
        hardware("nowhere/mine.yaml")


def test_the_table_is_no_choice_of_a_model():
    done = subprocess.run(
        [sys.executable, "-m", "zoo", "stats", "llama-tiny", "hardware=h100"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1)
