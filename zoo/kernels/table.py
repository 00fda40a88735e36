"""Make the table of `zoo doctor`: which features each attention kernel has, on this machine and on others.

Each cell is computed: it is the kernel's own answer (`Kernel.refuses`) to an AttentionQuery.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from zoo.kernels import KERNELS, machine_of, order
from zoo.kernels.base import AttentionQuery, Kernel, Machine
from zoo.kernels.found import EVERYTHING, PACKAGES, explain_missing
from zoo.lazy import torch

HERE, ELSEWHERE, NEVER = "here", "elsewhere", "never"

CAPABILITIES = ((8, 0), (8, 9), (9, 0), (10, 0), (12, 0))
"""Compute capabilities of the other CUDA devices in the table: Ampere, Ada, Hopper and two of Blackwell."""

MACHINES = (Machine("cpu", None, EVERYTHING), *(Machine("cuda", each, EVERYTHING) for each in CAPABILITIES))
"""The other machines of the table, with all packages."""

GRADIENT = "gradient with "

PLAIN = AttentionQuery("bfloat16", 128, 128, n_heads=8, n_kv_heads=8, causal=False)
"""Attention where every query sees every key. Every kernel that runs at all supports it."""


class Feature(NamedTuple):
    """A feature of attention, as an AttentionQuery that uses it without a gradient. `trains` is whether training may
    use it."""

    name: str
    ask: AttentionQuery
    trains: bool = True


FEATURES = (
    Feature("plain", PLAIN),
    Feature("causal", replace(PLAIN, causal=True)),
    Feature("grouped heads", replace(PLAIN, n_kv_heads=2, causal=True)),
    Feature("window", replace(PLAIN, causal=True, window=1024)),
    Feature("softcap", replace(PLAIN, causal=True, softcap=50.0)),
    Feature("sinks", replace(PLAIN, causal=True, sinks=True)),
    Feature("ALiBi", replace(PLAIN, causal=True, bias="alibi")),
    Feature("learned bias", replace(PLAIN, causal=True, bias="learned")),
    Feature("documents", replace(PLAIN, causal=True, documents=True)),
    Feature("padding", replace(PLAIN, causal=True, padding=True)),
    Feature("prefix", replace(PLAIN, causal=True, pairs=True)),
    Feature("cached decode", replace(PLAIN, short_q=True), trains=False),
    Feature("padded cache", replace(PLAIN, causal=True, padding=True, short_q=True), trains=False),
    Feature("cached window", replace(PLAIN, causal=True, window=1024, short_q=True), trains=False),
    Feature("lengths by row", replace(PLAIN, causal=True, short_q=True, lengths=True), trains=False),
    Feature("paged by 256", replace(PLAIN, causal=True, short_q=True, lengths=True, page=256), trains=False),
    Feature("MLA 192/128", replace(PLAIN, head_dim=192, causal=True)),
    Feature("absorbed 576/512", replace(PLAIN, head_dim=576, v_head_dim=512, n_kv_heads=1, short_q=True), trains=False),
    Feature("float32", replace(PLAIN, dtype="float32", causal=True)),
)


@dataclass(frozen=True)
class Cell:
    """A kernel's support of a feature. `forward` and `backward` are HERE, ELSEWHERE (another machine, or a missing
    package) or NEVER; `backward` is None if training never uses the feature. `reason` explains the worse one."""

    forward: str
    backward: str | None
    reason: str | None = None

    @property
    def worse(self) -> str:
        """The state that `reason` explains."""
        states = (self.forward, self.backward)
        return next((state for state in (NEVER, ELSEWHERE) if state in states), HERE)

    def __str__(self) -> str:
        """Write `f` for the forward pass and `b` for the backward pass. A pass that is only possible elsewhere is in
        brackets, as in `f (b)`; an impossible pass is left out, and `-` means neither."""
        marks = [("f", self.forward), ("b", self.backward)]
        able = [(mark, state) for mark, state in marks if state in (HERE, ELSEWHERE)]
        if not able:
            return "-"
        if all(state == ELSEWHERE for _, state in able):
            return f"({' '.join(mark for mark, _ in able)})"
        return " ".join(mark if state == HERE else f"({mark})" for mark, state in able)


@dataclass(frozen=True)
class KernelRow:
    """A kernel on this machine: the packages that it `needs`, the missing ones, the reason `against` it (None if it
    runs), and a Cell for each feature."""

    kernel: Kernel
    needs: tuple[str, ...]
    missing: tuple[str, ...]
    against: str | None
    cells: dict[str, Cell]


def tabulate(machine: Machine) -> list[KernelRow]:
    """Make a row for each kernel, in the order in which `auto` tries them on the machine. Kernels that run only when
    named come last."""
    tried = list(order(PLAIN, machine))
    return [_row(kernel, machine) for kernel in (*tried, *(each for each in KERNELS.values() if each not in tried))]


def order_with_mask(machine: Machine) -> list[str] | None:
    """List the kernels' names in the order in which `auto` tries them if a mask tensor is needed; None if this is also
    the order without one."""
    masked = replace(PLAIN, causal=True, padding=True)
    names = [kernel.name for kernel in order(masked, machine)]
    return None if names == [kernel.name for kernel in order(PLAIN, machine)] else names


def _row(kernel: Kernel, machine: Machine) -> KernelRow:
    needs = _needs(kernel)
    missing = tuple(package for package in needs if package not in machine.packages)
    cells = {feature.name: _cell(kernel, feature, machine) for feature in FEATURES}
    return KernelRow(kernel, needs, missing, _against(kernel, machine, missing), cells)


def _cell(kernel: Kernel, feature: Feature, machine: Machine) -> Cell:
    forward, reason = _state(kernel, feature.ask, machine)
    if not feature.trains:
        return Cell(forward, None, reason)
    backward, against = _state(kernel, replace(feature.ask, needs_grad=True), machine)
    return Cell(forward, backward, reason if against is None or (forward, backward) == (NEVER, ELSEWHERE) else against)


def _state(kernel: Kernel, ask: AttentionQuery, machine: Machine) -> tuple[str, str | None]:
    """Return where the kernel can compute the query (HERE, ELSEWHERE or NEVER) and, unless HERE, why not here. For
    NEVER the reason is given for a machine on which the kernel runs."""
    reason = kernel.refuses(ask, machine)
    if reason is None:
        return HERE, None
    if any(kernel.refuses(ask, other) is None for other in MACHINES):
        return ELSEWHERE, reason
    return NEVER, kernel.refuses(ask, machine if kernel.refuses(PLAIN, machine) is None else _home(kernel))


def _home(kernel: Kernel) -> Machine:
    """Return the machine on which the kernel has most features; among equals, the oldest."""

    def able(machine: Machine) -> int:
        asks = (ask for feature in FEATURES for ask in (feature.ask, replace(feature.ask, needs_grad=True)))
        return sum(kernel.refuses(ask, machine) is None for ask in asks)

    return max(MACHINES, key=able)


def _needs(kernel: Kernel) -> tuple[str, ...]:
    """List the packages without which the kernel does not run on its best machine."""
    home = _home(kernel)
    if kernel.refuses(PLAIN, home) is not None:
        return ()
    without = {package: replace(home, packages=EVERYTHING - {package}) for package in PACKAGES}
    return tuple(package for package, machine in without.items() if kernel.refuses(PLAIN, machine) is not None)


def _against(kernel: Kernel, machine: Machine, missing: Iterable[str]) -> str | None:
    """Return why the kernel does not run on a machine, or None. The machine's own fault comes first, then each missing
    or old package and where to get it."""
    if kernel.refuses(PLAIN, machine) is None:
        return None
    itself = kernel.refuses(PLAIN, replace(machine, packages=EVERYTHING))
    old = dict(machine.outdated)
    packages = (
        str(explain_missing(package, machine)) if package in old else f"needs {package}: {PACKAGES[package]}"
        for package in missing
    )
    return "; ".join((*((itself,) if itself else ()), *packages))


def collect_reasons(rows: Iterable[KernelRow], state: str) -> dict[str, list[str]]:
    """Collect why kernels do not support the features in a given `state` (NEVER or ELSEWHERE). Return the lines
    `features: reason` by kernel; kernels with the same line are one key, such as "flash2, flash3"."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for reason, names in _by_reason(row, state).items():
            found.setdefault((names, reason), []).append(row.kernel.name)
    told_by: dict[str, list[str]] = {}
    for (names, reason), kernels in found.items():
        told_by.setdefault(", ".join(kernels), []).append(f"{names}: {reason}")
    return told_by


def _by_reason(row: KernelRow, state: str) -> dict[str, str]:
    """Map each reason for this state to the features that it explains, joined to one text. If only the gradient of a
    feature is in the state, the name is "gradient with …". If the reason explains every gradient, the text is "any
    gradient"."""
    grouped: dict[str, list[str]] = {}
    for name, cell in row.cells.items():
        if cell.reason is not None and cell.worse == state:
            told = name if cell.forward == state else f"{GRADIENT}{name}"
            grouped.setdefault(cell.reason, []).append(told)
    every = [f"{GRADIENT}{feature.name}" for feature in FEATURES if feature.trains]
    return {reason: "any gradient" if names == every else ", ".join(names) for reason, names in grouped.items()}


def describe_here() -> Machine:
    """Describe this machine: CUDA if there is a CUDA device, else the CPU."""
    return machine_of(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def row_as_data(row: KernelRow) -> dict[str, Any]:
    """Return a row as plain data, for JSON."""
    return {
        "about": row.kernel.about,
        "fused": row.kernel.fused,
        "on_request": row.kernel.on_request,
        "runs_here": row.against is None,
        "why_not": row.against,
        "needs": list(row.needs),
        "missing": list(row.missing),
        "features": {
            name: {"forward": cell.forward, "backward": cell.backward, "reason": cell.reason}
            for name, cell in row.cells.items()
        },
    }
