"""What each attention kernel can do, feature by feature, here and on the machine that suits it best.

Nothing of it is written down: every cell is what the kernel says when it is asked.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from zoo.kernels import KERNELS, order
from zoo.kernels.base import Ask, Kernel, Machine
from zoo.kernels.found import EVERYTHING, PACKAGES
from zoo.lazy import torch

HERE, ELSEWHERE, NEVER = "here", "elsewhere", "never"

CAPABILITIES = ((8, 0), (8, 9), (9, 0), (10, 0), (12, 0))
"""Of the CUDA devices that a kernel is asked about besides this machine: Ampere, Ada, Hopper, Blackwell's two."""

MACHINES = (Machine("cpu", None, EVERYTHING), *(Machine("cuda", each, EVERYTHING) for each in CAPABILITIES))
"""Machines that have all packages."""

GRADIENT = "gradient with "

PLAIN = Ask("bfloat16", 128, 128, n_heads=8, n_kv_heads=8, causal=False)
"""Every query sees every key: what a kernel that runs at all can do."""


class Feature(NamedTuple):
    """Something that attention may want. `ask` is without gradient; `trains` says whether one is ever wanted."""

    name: str
    ask: Ask
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
    Feature("cached decode", replace(PLAIN, fewer=True), trains=False),
    Feature("padded cache", replace(PLAIN, causal=True, padding=True, fewer=True), trains=False),
    Feature("ring of a window", replace(PLAIN, causal=True, window=1024, scattered=True, fewer=True), trains=False),
    Feature("lengths by row", replace(PLAIN, causal=True, fewer=True, lengths=True), trains=False),
    Feature("paged by 256", replace(PLAIN, causal=True, fewer=True, lengths=True, page=256), trains=False),
    Feature("MLA 192/128", replace(PLAIN, head_dim=192, causal=True)),
    Feature("absorbed 576/512", replace(PLAIN, head_dim=576, v_head_dim=512, n_kv_heads=1, fewer=True), trains=False),
    Feature("float32", replace(PLAIN, dtype="float32", causal=True)),
)


@dataclass(frozen=True)
class Cell:
    """A kernel's word on a feature: `forward` and `backward` are HERE, ELSEWHERE (on another machine, or with a package
    that is missing) or NEVER; `backward` is None where no gradient is ever wanted. `reason` is against the worse of the
    two: here, or at all."""

    forward: str
    backward: str | None
    reason: str | None = None

    @property
    def worse(self) -> str:
        """What `reason` is about."""
        states = (self.forward, self.backward)
        return next((state for state in (NEVER, ELSEWHERE) if state in states), HERE)

    def __str__(self) -> str:
        """`f b` for both here, in brackets what could be elsewhere, `-` for neither."""
        marks = [("f", self.forward), ("b", self.backward)]
        able = [(mark, state) for mark, state in marks if state in (HERE, ELSEWHERE)]
        if not able:
            return "-"
        if all(state == ELSEWHERE for _, state in able):
            return f"({' '.join(mark for mark, _ in able)})"
        return " ".join(mark if state == HERE else f"({mark})" for mark, state in able)


@dataclass(frozen=True)
class Row:
    """A kernel here: what it needs besides torch, which of that is missing, why it does not run (None where it does),
    and a Cell for each feature."""

    kernel: Kernel
    needs: tuple[str, ...]
    missing: tuple[str, ...]
    against: str | None
    cells: dict[str, Cell]


def table(machine: Machine) -> list[Row]:
    """A Row for each kernel, in the order that `auto` tries them there; those that must be named come last."""
    tried = list(order(PLAIN, machine))
    return [_row(kernel, machine) for kernel in (*tried, *(each for each in KERNELS.values() if each not in tried))]


def by_mask(machine: Machine) -> list[str] | None:
    """The order of names where a mask must be read, if `auto` has another one then."""
    masked = replace(PLAIN, causal=True, padding=True)
    names = [kernel.name for kernel in order(masked, machine)]
    return None if names == [kernel.name for kernel in order(PLAIN, machine)] else names


def _row(kernel: Kernel, machine: Machine) -> Row:
    needs = _needs(kernel)
    return Row(
        kernel,
        needs,
        missing=tuple(package for package in needs if package not in machine.packages),
        against=_against(kernel, machine, needs),
        cells={feature.name: _cell(kernel, feature, machine) for feature in FEATURES},
    )


def _cell(kernel: Kernel, feature: Feature, machine: Machine) -> Cell:
    forward, reason = _state(kernel, feature.ask, machine)
    if not feature.trains:
        return Cell(forward, None, reason)
    backward, against = _state(kernel, replace(feature.ask, needs_grad=True), machine)
    return Cell(forward, backward, reason if against is None or (forward, backward) == (NEVER, ELSEWHERE) else against)


def _state(kernel: Kernel, ask: Ask, machine: Machine) -> tuple[str, str | None]:
    """Where it can do what is asked, and the reason if not here: of this machine, or if it never runs here of the one
    that suits it best."""
    reason = kernel.refuses(ask, machine)
    if reason is None:
        return HERE, None
    if any(kernel.refuses(ask, other) is None for other in MACHINES):
        return ELSEWHERE, reason
    return NEVER, kernel.refuses(ask, machine if kernel.refuses(PLAIN, machine) is None else _home(kernel))


def _home(kernel: Kernel) -> Machine:
    """The machine on which it can do most; of equals, the oldest."""

    def able(machine: Machine) -> int:
        asks = (ask for feature in FEATURES for ask in (feature.ask, replace(feature.ask, needs_grad=True)))
        return sum(kernel.refuses(ask, machine) is None for ask in asks)

    return max(MACHINES, key=able)


def _needs(kernel: Kernel) -> tuple[str, ...]:
    """The packages without which it does not run on its best machine."""
    home = _home(kernel)
    if kernel.refuses(PLAIN, home) is not None:
        return ()
    without = {package: replace(home, packages=EVERYTHING - {package}) for package in PACKAGES}
    return tuple(package for package, machine in without.items() if kernel.refuses(PLAIN, machine) is not None)


def _against(kernel: Kernel, machine: Machine, needs: Iterable[str]) -> str | None:
    """Why it does not run there: what the machine itself is not, and the packages that are missing with their
    source."""
    if kernel.refuses(PLAIN, machine) is None:
        return None
    missing = [package for package in needs if package not in machine.packages]
    itself = kernel.refuses(PLAIN, replace(machine, packages=EVERYTHING))
    packages = (f"needs {package}: {PACKAGES[package]}" for package in missing)
    return "; ".join((*((itself,) if itself else ()), *packages))


def reasons(rows: Iterable[Row], state: str) -> dict[str, list[str]]:
    """Why some features are in that state (NEVER or ELSEWHERE): `features: reason`, by the names of the kernels that
    share it."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for reason, names in _by_reason(row, state).items():
            found.setdefault((names, reason), []).append(row.kernel.name)
    told_by: dict[str, list[str]] = {}
    for (names, reason), kernels in found.items():
        told_by.setdefault(", ".join(kernels), []).append(f"{names}: {reason}")
    return told_by


def _by_reason(row: Row, state: str) -> dict[str, str]:
    """The names of the features that a reason of this state is against."""
    grouped: dict[str, list[str]] = {}
    for name, cell in row.cells.items():
        if cell.reason is not None and cell.worse == state:
            told = name if cell.forward == state else f"{GRADIENT}{name}"
            grouped.setdefault(cell.reason, []).append(told)
    every = [f"{GRADIENT}{feature.name}" for feature in FEATURES if feature.trains]
    return {reason: "any gradient" if names == every else ", ".join(names) for reason, names in grouped.items()}


def here() -> Machine:
    """This machine as its fastest device has it."""
    from zoo.kernels import machine_of

    return machine_of(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def as_data(row: Row) -> dict[str, Any]:
    """The same as plain data."""
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
