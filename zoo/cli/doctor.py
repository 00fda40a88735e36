"""`zoo doctor`: show this machine's versions and devices, and the kernels that it can run."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from zoo import report
from zoo.cli.options import flag
from zoo.cli.showing import Json

if TYPE_CHECKING:
    from types import ModuleType

    from zoo.kernels.base import Machine
    from zoo.kernels.table import KernelRow

PACKAGES = (
    *("torch", "hydra-core", "omegaconf", "pydantic", "tokenizers", "safetensors", "numpy", "matplotlib"),
    *("triton", "flash-attn", "flash-attn-4", "kernels", "torchao"),
    *("transformers", "datasets", "pyarrow", "hydra-joblib-launcher", "hydra-submitit-launcher"),
)

WIDTH = 120

ABSENT = "not installed"

TORCHAO = "torchao is not installed (pip install 'transformer-zoo[fp8]')"

LEGEND = "f forward, b backward; (f b) not here, but on another machine or with a missing package; - nowhere"


def run(as_json: Json = False, *, gpu: bool = flag("Try and measure this machine's GPUs, in about a minute.")) -> None:
    """Show versions and devices, and which features each kernel has on this machine, or why it cannot run."""
    if gpu:
        from zoo.bench.kernels.first_contact import format_findings, look

        found = look()
        print(report.format_json(found) if as_json else format_findings(found))
        return
    import zoo
    from zoo.kernels.table import describe_here, row_as_data, tabulate
    from zoo.run.environment import find_version

    machine = describe_here()
    versions = [
        ("zoo", zoo.__version__),
        ("python", platform.python_version()),
        *((n, find_version(n) or ABSENT) for n in PACKAGES),
    ]
    devices, rows, others, products = _devices(), tabulate(machine), list(_others(machine)), list(_products())
    if as_json:
        kernels = {row.kernel.name: row_as_data(row) for row in rows}
        here = {"device": machine.device, "capability": machine.capability, "packages": sorted(machine.packages)}
        data = {"versions": dict(versions), "devices": dict(devices), "machine": here}
        print(
            report.format_json({**data, "kernels": kernels, "others": _as_data(others), "products": _as_data(products)})
        )
        return
    parts = [
        report.align_columns([("Versions", ""), *_indented(versions)]),
        report.align_columns([("Devices", ""), *_indented(devices)]),
        "\n".join(_kernels(rows, machine)),
        _answers("Other kernels", others),
        _answers("Products on a CPU, float32", products),
    ]
    print("\n\n".join(parts))


def _kernels(rows: Sequence[KernelRow], machine: Machine) -> list[str]:
    """Write the table of kernels, what each lacks on this machine, and the reasons for each `-`."""
    from zoo.kernels.table import ELSEWHERE, NEVER, PLAIN, collect_reasons, order_with_mask

    names = [row.kernel.name for row in rows]
    features = [(name, *(str(row.cells[name]) for row in rows)) for name in rows[0].cells]
    capability = "" if machine.capability is None else " of compute capability {}.{}".format(*machine.capability)
    lines = [f"Attention kernels on {machine.device}{capability}, in bfloat16"]
    lines += [report.align_columns(_indented([("", *names), *features])), "", report.wrap_text(LEGEND, 2, width=WIDTH)]
    named, masked = [row.kernel.name for row in rows if row.kernel.on_request], order_with_mask(machine)
    order = "auto takes the first that can, from the left"
    order += "" if masked is None else f"; where a mask must be read: {', '.join(masked)}"
    order += f"; {' and '.join(named)} only when named (kernel=…)" if named else ""
    lines.append(report.wrap_text(order, 2, width=WIDTH))
    against = [f"{row.kernel.name}: {row.against}" for row in rows if row.against is not None]
    running = collect_reasons([row for row in rows if row.against is None], ELSEWHERE)
    against += [f"{kernels}: {each}" for kernels, told in running.items() for each in told]
    if against:
        lines += ["", "Not here", *(report.wrap_text(each, 2, 6, WIDTH) for each in against)]
    lines += ["", f"On no machine (heads are {PLAIN.head_dim} wide where nothing else is said)"]
    for kernels, told in collect_reasons(rows, NEVER).items():
        lines += [f"  {kernels}", *(report.wrap_text(each, 4, 8, WIDTH) for each in told)]
    return lines


def _others(machine: Machine) -> Iterator[tuple[str, bool, str]]:
    """Yield the kernels that are not attention: name, whether it can run here, and a remark."""
    from zoo.kernels.found import PACKAGES as SOURCES
    from zoo.kernels.grouped_products import refuses
    from zoo.run import fp8
    from zoo.run.environment import find_version

    dtypes = ("bfloat16", "float16", "float32")
    taken = [dtype for dtype in dtypes if refuses(machine.device, dtype, 64, 64) is None]
    about = f"the experts' products in one call, in {', '.join(taken)}" if taken else f"takes none on {machine.device}"
    yield "grouped_mm", bool(taken), about
    torchao = find_version("torchao")
    for recipe in (*fp8.RECIPES, fp8.WEIGHT_ONLY):
        lacks = [fp8.refuses(recipe, machine), *([] if torchao else [TORCHAO])]
        reason = "; ".join(filter(None, lacks))
        yield f"fp8 {recipe}", not reason, reason or f"by torchao {torchao}"
    compiles = "compiler" in machine.packages
    yield "compiler", compiles, "for torch.compile" if compiles else f"torch.compile needs it: {SOURCES['compiler']}"


def _products() -> Iterator[tuple[str, bool, str]]:
    """Yield the kernels of matrix products on this CPU: name, whether it can run here, and its description or the
    reason."""
    from zoo.run.linear.base import EXACT, describe_processor
    from zoo.run.linear.ways import survey_ways

    for way, reason, stable in survey_ways(describe_processor()):
        asked = "" if way.precision == EXACT else f"; with --weights {way.precision}"
        moved = "; a row has the same bits among any number" if stable else ""
        yield way.name, reason is None, reason or f"{way.about}{asked}{moved}"


def _answers(title: str, rows: Sequence[tuple[str, bool, str]]) -> str:
    told = (f"{name:16} {'yes' if usable else 'no':4} {about}" for name, usable, about in rows)
    return "\n".join([title, *(report.wrap_text(each, 2, 24, WIDTH) for each in told)])


def _as_data(rows: Sequence[tuple[str, bool, str]]) -> dict[str, Any]:
    return {name: {"runs_here": usable, "about": about} for name, usable, about in rows}


def _indented(rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    return [(f"  {first}", *rest) for first, *rest in rows]


def _devices() -> list[tuple[str, str]]:
    import torch

    cpu = f"{platform.machine()}, {torch.get_num_threads()} threads of {os.cpu_count()} CPUs, {_memory()}"
    rows = [("cpu", cpu)]
    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = f"no device; torch is built for CUDA {built}" if built else "this torch is built without CUDA"
        return [*rows, ("cuda", why)]
    return rows + [(f"cuda:{index}", _cuda(torch, index)) for index in range(torch.cuda.device_count())]


def _cuda(torch: ModuleType, index: int) -> str:
    device = torch.cuda.get_device_properties(index)
    capability = f"compute capability {device.major}.{device.minor}"
    return f"{device.name}, {report.format_size(device.total_memory)}, {capability}, CUDA {torch.version.cuda}"


def _memory() -> str:
    from zoo.lazy import torch
    from zoo.run.machine_memory import read_free_memory

    free = read_free_memory(torch.device("cpu"))
    return "free memory unknown" if free is None else f"{report.format_size(free)} free"
