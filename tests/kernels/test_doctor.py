"""`zoo doctor`: what its table says of a kernel is what the kernel does, and is told so that it can be read."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from zoo.cli import run
from zoo.errors import KernelError
from zoo.kernels import KERNELS, attend, dispatch, found, order, pick
from zoo.kernels.base import Machine
from zoo.kernels.found import EVERYTHING, MACHINES, PACKAGES
from zoo.kernels.mask import Mask
from zoo.kernels.table import (
    ELSEWHERE,
    FEATURES,
    HERE,
    NEVER,
    PLAIN,
    Cell,
    collect_reasons,
    describe_here,
    order_with_mask,
    tabulate,
)
from zoo.model.position.bias import Sloped

BARE = Machine("cpu", None, frozenset())
CPU = Machine("cpu", None, frozenset({"compiler", "avx2"}))
H100 = Machine("cuda", (9, 0), EVERYTHING)

H, C, T = 8, 128, 6  # as the table's asks have them, but for the tokens


def case(feature: str) -> tuple[Mask, dict]:
    """A mask of six keys that has the feature, and what else it takes."""
    ids = torch.tensor([[0, 0, 0, 1, 1, 1]] * 2)
    columns = torch.arange(T)
    lengths = torch.tensor([3, 6])
    padded = torch.tensor([[False, True, True, True, True, True], [True] * T])
    cases = {
        "plain": (Mask(T, T, causal=False), {}),
        "grouped heads": (Mask(T, T), {"heads": 2}),
        "window": (Mask(T, T, window=3), {}),
        "softcap": (Mask(T, T), {"softcap": 50.0}),
        "sinks": (Mask(T, T), {"sinks": torch.randn(H)}),
        "ALiBi": (Mask(T, T), {"bias": Sloped(columns, columns, torch.rand(H))}),
        "learned bias": (Mask(T, T), {"bias": torch.randn(H, T, T, requires_grad=True)}),
        "documents": (Mask(T, T, documents=(ids, ids)), {}),
        "padding": (Mask(T, T, padding=padded), {}),
        "prefix": (Mask(T, T, prefix=torch.tensor([2, 4])), {}),
        "cached decode": (Mask(1, T), {}),
        "padded cache": (Mask(1, T, padding=padded), {}),
        "cached window": (Mask(1, T, window=3), {}),
        "lengths by row": (Mask(2, T, lengths=lengths), {}),
        "paged by 256": (Mask(1, 512, lengths=lengths * 80), {"pages": torch.tensor([[2, 0], [1, 3]]).int()}),
        "MLA 192/128": (Mask(T, T), {"widths": (192, 128)}),
        "absorbed 576/512": (Mask(1, T), {"heads": 1, "widths": (576, 512)}),
        "float32": (Mask(T, T), {"dtype": torch.float32}),
    }
    return cases.get(feature, (Mask(T, T), {}))


def run_kernel(feature: str, kernel: str, needs_grad: bool) -> torch.Tensor:
    """Attention with the feature, forward or both ways."""
    mask, options = case(feature)
    heads, (width, v_width) = options.pop("heads", H), options.pop("widths", (C, C))
    dtype = options.pop("dtype", torch.bfloat16)
    keys = (4, 256) if "pages" in options else (2, T)
    sizes = [(2, mask.n_queries, H, width), (*keys, heads, width), (*keys, heads, v_width)]
    q, k, v = (torch.randn(size, dtype=dtype, requires_grad=needs_grad) for size in sizes)
    with torch.set_grad_enabled(needs_grad):
        y = attend(q, k, v, mask, scale=width**-0.5, kernel=kernel, **options)
        if needs_grad:
            y.float().sum().backward()
            assert all(each.grad is not None and bool(each.grad.isfinite().all()) for each in (q, k, v))
    return y


ASKED = [(feature, grad) for feature in FEATURES for grad in ((False, True) if feature.trains else (False,))]


# ---------------------------------------------------------------- the cells


@pytest.mark.parametrize(("feature", "grad"), ASKED, ids=lambda each: getattr(each, "name", str(each)))
def test_the_table_asks_of_each_feature_what_attention_with_it_asks(feature, grad, monkeypatch):
    asked, true_ask = [], dispatch._ask
    monkeypatch.setattr(dispatch, "_ask", lambda *args: asked.append(true_ask(*args)) or asked[-1])
    run_kernel(feature.name, "eager", grad)
    (found,) = asked
    shown = replace(feature.ask, needs_grad=grad)
    assert replace(found, window=shown.window) == shown
    assert (found.window is None) == (shown.window is None)


@pytest.mark.parametrize("kernel", ["sdpa", pytest.param("eager", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("feature", "grad"), ASKED, ids=lambda each: getattr(each, "name", str(each)))
def test_a_cell_says_whether_the_kernel_runs_here(feature, grad, kernel, monkeypatch):
    monkeypatch.setitem(MACHINES, "cpu", CPU)
    (row,) = (row for row in tabulate(CPU) if row.kernel.name == kernel)
    cell = row.cells[feature.name]
    if (cell.backward if grad else cell.forward) == HERE:
        assert run_kernel(feature.name, kernel, grad).isfinite().all()
    else:
        with pytest.raises(KernelError):
            run_kernel(feature.name, kernel, grad)


@pytest.mark.parametrize("name", [name for name in KERNELS if name not in ("sdpa", "eager")])
def test_a_kernel_that_a_cell_denies_here_refuses_when_it_is_called(name):
    (row,) = (row for row in tabulate(BARE) if row.kernel.name == name)
    for feature, grad in ASKED:
        cell = row.cells[feature.name]
        assert (cell.backward if grad else cell.forward) != HERE
        with pytest.raises(KernelError):
            run_kernel(feature.name, name, grad) if name != "flex" else refuse_flex(feature, grad)


def refuse_flex(feature, grad):
    """What it would be on a CPU without a compiler, which this machine may have."""
    pick(replace(feature.ask, needs_grad=grad), BARE, "flex")


def test_a_cell_tells_here_from_elsewhere_from_nowhere():
    told = {
        "f b": (HERE, HERE),
        "(f b)": (ELSEWHERE, ELSEWHERE),
        "f (b)": (HERE, ELSEWHERE),
        "f": (HERE, NEVER),
        "(f)": (ELSEWHERE, NEVER),
        "-": (NEVER, NEVER),
    }
    assert {text: str(Cell(*states)) for text, states in told.items()} == {text: text for text in told}
    assert [str(Cell(state, None)) for state in (HERE, ELSEWHERE, NEVER)] == ["f", "(f)", "-"]


def test_what_is_elsewhere_is_not_refused_on_some_machine_and_what_is_nowhere_is_on_all():
    capabilities = [(major, minor) for major in range(7, 14) for minor in range(10)]
    machines = [CPU, *(Machine("cuda", each, EVERYTHING) for each in capabilities)]
    for row in tabulate(BARE):
        for feature, grad in ASKED:
            ask, cell = replace(feature.ask, needs_grad=grad), row.cells[feature.name]
            able = any(row.kernel.refuses(ask, machine) is None for machine in machines)
            state = cell.backward if grad else cell.forward
            assert able == (state != NEVER), (row.kernel.name, feature.name, grad)
            assert (state == HERE) == (row.kernel.refuses(ask, BARE) is None)


def test_eager_does_everything_everywhere():
    for machine in (BARE, CPU, H100, Machine("cuda", (7, 0)), Machine("NVIDIA nothing")):
        (row,) = (row for row in tabulate(machine) if row.kernel.name == "eager")
        assert {str(cell) for cell in row.cells.values()} == {"f b", "f"}


# ---------------------------------------------------------------- what is missing


def test_rows_come_in_the_order_of_auto_and_those_on_request_last():
    names = [row.kernel.name for row in tabulate(H100)]
    assert set(names) == set(KERNELS)
    assert names[:8] == [kernel.name for kernel in order(PLAIN, H100)]
    assert all(KERNELS[name].on_request for name in names[8:])
    assert order_with_mask(CPU) is None
    assert order_with_mask(H100) == ["flash3", "flash4", "flash2", "flash_torch", "sdpa", "flex", "triton", "eager"]


def test_a_kernel_needs_the_packages_without_which_it_refuses_and_names_their_source():
    needs = {row.kernel.name: row.needs for row in tabulate(H100)}
    assert needs == {
        "flash3": ("flash-attn-3",),
        "flash4": ("flash-attn-4",),
        "flash2": ("flash-attn",),
        "flash_torch": (),
        "sdpa": (),
        "flex": ("compiler",),
        "triton": ("compiler",),
        "eager": (),
        "flash3_hub": ("kernels",),
        "flash2_hub": ("kernels",),
    }
    assert all(row.against is None and row.missing == () for row in tabulate(H100))
    for row in tabulate(Machine("cuda", (9, 0))):
        assert row.missing == row.needs
        assert (row.against is None) == (not row.needs)
        assert all(f"needs {package}: {PACKAGES[package]}" in (row.against or "") for package in row.needs)
    against = {row.kernel.name: row.against for row in tabulate(Machine("cuda", (8, 0), EVERYTHING))}
    assert [name for name, reason in against.items() if reason] == ["flash3", "flash4", "flash3_hub"]


def test_each_reason_stands_once_with_the_kernels_that_share_it():
    told = collect_reasons(tabulate(H100), NEVER)
    assert "softcap: scaled_dot_product_attention has no softcap" in told["sdpa"]
    lines = [line for each in told.values() for line in each]
    assert len(lines) == len(set(lines))
    for row in tabulate(H100):
        denied = {name for name, cell in row.cells.items() if NEVER in (cell.forward, cell.backward)}
        mine = " ".join(line for names, each in told.items() if row.kernel.name in names.split(", ") for line in each)
        assert all(name in mine for name in denied)


def test_a_kernel_without_gradients_here_says_so_once():
    assert list(collect_reasons([row for row in tabulate(CPU) if row.kernel.name == "flex"], ELSEWHERE)) == ["flex"]
    (line,) = collect_reasons([row for row in tabulate(CPU) if row.kernel.name == "flex"], ELSEWHERE)["flex"]
    assert line.startswith("any gradient: ")


# ---------------------------------------------------------------- as it is shown


def test_the_table_fits_120_columns_and_every_cell_stands_in_it(capsys, monkeypatch):
    for machine in (CPU, H100):
        monkeypatch.setattr("zoo.kernels.table.describe_here", lambda machine=machine: machine)
        assert run(["doctor"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= 120
        at = next(i for i, line in enumerate(lines) if line.startswith("Attention kernels on "))
        rows = tabulate(machine)
        assert lines[at + 1].split() == [row.kernel.name for row in rows]
        for line, feature in zip(lines[at + 2 :], FEATURES, strict=False):
            cells = [str(row.cells[feature.name]) for row in rows]
            assert " ".join(line.split()) == " ".join([feature.name, *cells])


@pytest.mark.slow
def test_doctor_says_what_is_missing_and_where_it_comes_from(capsys, monkeypatch):
    monkeypatch.setattr("zoo.kernels.table.describe_here", lambda: Machine("cuda", (9, 0), frozenset({"compiler"})))
    assert run(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "Attention kernels on cuda of compute capability 9.0" in out
    assert f"  flash2: needs flash-attn: {PACKAGES['flash-attn']}\n" in out
    assert "where a mask must be read: flash3, flash4, flash2, flash_torch, sdpa, flex, triton, eager;" in " ".join(
        out.split()
    )
    assert "grouped_mm       yes  the experts' products in one call, in bfloat16\n" in out


INSTALLED = {  # what metadata says is installed: whether it is used, or the words of the refusal
    ("flash-attn", "2.5.9.post1"): "flash-attn 2.5.9.post1 is older than 2.6: versions before that lack a softcap",
    ("flash-attn", "2.6.0"): None,
    ("flash-attn", "2.8.3.post2+cu13torch2.11"): None,
    ("flash-attn-3", "3.0.0b1"): None,
    ("flashattn-hopper", "3.0.0b1"): "flash-attn-3 named flashattn-hopper is older than 3.0.0b1: versions before that",
    ("flash-attn-4", "4.0.0b3"): "flash-attn-4 4.0.0b3 is older than 4.0.0b26: versions before that drop the gradient",
    ("flash-attn-4", "4.0.0b25"): "flash-attn-4 4.0.0b25 is older than 4.0.0b26",
    ("flash-attn-4", "4.0.0b26"): None,
    ("flash-attn-4", "4.0.0b100"): None,
    ("flash-attn-4", "4.1.0"): None,
}
KERNEL_OF = {"flash-attn": "flash2", "flash-attn-3": "flash3", "flashattn-hopper": "flash3", "flash-attn-4": "flash4"}


@pytest.mark.parametrize(
    ("package", "version"),
    [pytest.param(*each, marks=pytest.mark.slow if at % 4 else ()) for at, each in enumerate(INSTALLED)],
)
def test_a_package_older_than_zoo_can_use_is_refused_with_its_version_and_what_it_gets_wrong(
    package, version, capsys, monkeypatch
):
    def find(name):
        if name != package:
            raise found.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(found.metadata, "version", find)
    monkeypatch.setattr(found, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    machine = replace(found.find_machine("cuda"), capability=(9, 0))
    kernel, words = KERNEL_OF[package], INSTALLED[package, version]
    if words is None:
        assert KERNELS[kernel].refuses(PLAIN, machine) is None
        return
    with pytest.raises(KernelError) as refused:
        pick(PLAIN, machine, kernel)
    assert f"{kernel} was asked for, but {words}" in str(refused.value)
    assert pick(PLAIN, machine).kernel.name != kernel
    monkeypatch.setattr("zoo.kernels.table.describe_here", lambda: machine)
    assert run(["doctor"]) == 0
    assert f"{kernel}: {words}" in " ".join(capsys.readouterr().out.split())


def test_json_has_every_cell_and_reason(capsys):
    assert run(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"versions", "devices", "machine", "kernels", "others", "products"} == set(found)
    assert found["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]  # +cu130: what it is built for
    machine = describe_here()
    assert found["machine"] == {
        "device": machine.device,
        "capability": None if machine.capability is None else list(machine.capability),
        "packages": sorted(machine.packages),
    }
    for row in tabulate(machine):
        told = found["kernels"][row.kernel.name]
        assert (told["why_not"], told["runs_here"]) == (row.against, row.against is None)
        cells = {
            name: Cell(each["forward"], each["backward"], each["reason"]) for name, each in told["features"].items()
        }
        assert cells == row.cells
    assert set(found["others"]) == {"grouped_mm", "fp8 tensorwise", "fp8 rowwise", "fp8 weight_only", "compiler"}
