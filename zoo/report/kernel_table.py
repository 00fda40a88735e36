"""Format `zoo stats --kernels`: the kernel call for each kind of layer and use, then why other kernels refuse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zoo.kernels.base import Call
from zoo.report.wrapping import make_bold, wrap_text

Line = Mapping[str, Any]

UNBROKEN = "\u00a0"  # a no-break space

INSTALLED = {"torch": "With torch alone", "everything": "With flash-attn 2, 3 and 4"}


def format_kernels(found: Mapping[str, Any], title: str) -> str:
    """Format the result of `zoo.costs.kernels.kernels`."""
    capability = found["capability"]
    where = found["title"] + (f", compute capability {capability[0]}.{capability[1]}" if capability else "")
    lines = [make_bold(f"{title}: attention kernels on {where}")]
    lines += [wrap_text(f"{found['dtype']}, {found['context']:,} tokens, without {' or '.join(found['without'])}", 0)]
    asking = [line for line in found["layers"] if line["use"] is not None]
    same = all(line["torch"] == line["everything"] for line in asking)
    for installed, heading in INSTALLED.items():
        if asking and not (same and installed == "torch"):
            lines += ["", *([] if same else [make_bold(heading)]), *_layers(asking, installed)]
    lines += [""] if len(asking) < len(found["layers"]) else []
    lines += [f"  {_place(line)}: {line['mixer']}, no attention kernel" for line in found["layers"] if not line["use"]]
    refused = _refused(asking)
    return "\n".join([*lines, *(["", make_bold("Refused, even with all packages"), *refused] if refused else [])])


def _layers(lines: Sequence[Line], installed: str) -> list[str]:
    """List each kind of layer with its uses. Uses with equal calls share a line; kinds with equal lines share a
    title."""
    served: dict[str, dict[str, list[str]]] = {}
    for line in lines:
        chosen = line[installed]
        uses = served.setdefault(_place(line), {})
        whole = {name: str(value).replace(" ", UNBROKEN) for name, value in chosen["arguments"].items()}
        way = f"{chosen['kernel']}: {Call(chosen['call'], whole)}"
        uses.setdefault(way, []).append(line["use"])
    alike: dict[str, list[str]] = {}
    for place, uses in served.items():
        told = "\n".join(wrap_text(f"{', '.join(names)}: {way}", 4, 8) for way, names in uses.items())
        alike.setdefault(told.replace(UNBROKEN, " "), []).append(place)
    return [each for told, places in alike.items() for each in (wrap_text(", ".join(places), 2, 4), told)]


def _place(line: Line) -> str:
    """Name a kind of layer, with its number of layers, and with `(cross-attention)` for a line on that part."""
    tower = f"{line['tower']} " if line["tower"] else ""
    cross = " (cross-attention)" if line["part"] == "cross" else ""
    return f"{tower}{line['kind']} × {line['layers']}{cross}"


def _refused(lines: Sequence[Line]) -> list[str]:
    """List each reason of a refusal once, with the kernels that refuse, and with the layers and uses if not all are
    refused."""
    held: dict[str, dict[str, list[Line]]] = {}
    for line in lines:
        for kernel, reason in line["refusals"].items():
            held.setdefault(reason, {}).setdefault(kernel, []).append(line)
    told = []
    for reason, kernels in held.items():
        by_scope: dict[str, list[str]] = {}
        for kernel, where in kernels.items():
            by_scope.setdefault(_scope(where, lines), []).append(kernel)
        told += [wrap_text(f"{', '.join(names)}{scope}: {reason}", 2, 6) for scope, names in by_scope.items()]
    return told


def _scope(where: Sequence[Line], lines: Sequence[Line]) -> str:
    """Describe to which uses or kinds of layer a reason is limited; "" if it holds for all lines."""
    if len(where) == len(lines):
        return ""
    common = dict.fromkeys(line["use"] for line in where)
    if len(where) == sum(line["use"] in common for line in lines):
        return f", for {', '.join(common)}"
    uses: dict[str, list[str]] = {}
    for line in where:
        uses.setdefault(_place(line), []).append(line["use"])
    every = {place: sum(_place(line) == place for line in lines) for place in uses}
    told = [place if len(names) == every[place] else f"{place} {', '.join(names)}" for place, names in uses.items()]
    return f", for {'; '.join(told)}"
