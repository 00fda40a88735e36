"""`zoo stats --explain` and `--verify`: print the formulas of the figures, and compare them with the built model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from zoo import report
from zoo.cli.showing import Shown, shorten_labels

if TYPE_CHECKING:
    from zoo.costs.setup import Setup
    from zoo.model.encoder_decoder import EncoderDecoder
    from zoo.model.tower import Tower

EXPLAINED = ("name", "formula", "values", "result", "unit", "source")
VERIFIED = ("name", "counted", "found", "equal", "note")


def prove(
    targets: Sequence[str],
    specs: Sequence[Tower | EncoderDecoder],
    priced: Sequence[Mapping[str, Any]],
    setups: Sequence[Setup],
    shown: Shown,
    *,
    explain: bool,
    verify: bool,
) -> None:
    """Print explanations or verifications of all models. Exits with 1 if a built model differs from its count."""
    found = [_proved(*each, explain, verify) for each in zip(specs, priced, setups, strict=True)]
    labels = shorten_labels(targets)
    if shown is Shown.json:
        many = [{"model": label, **each} for label, each in zip(labels, found, strict=True)]
        print(report.format_json(found[0] if len(found) == 1 else many))
    else:
        for label, each in zip(labels, found, strict=True):
            _print(label, each, shown)
    lines = [line for each in found for line in each.get("verify", ())]
    if any(line["equal"] is False for line in lines):
        raise typer.Exit(1)


def _proved(
    spec: Tower | EncoderDecoder, figures: Mapping[str, Any], setup: Setup, explain: bool, verify: bool
) -> dict[str, Any]:
    proved: dict[str, Any] = dict(figures)
    if explain:
        from zoo.analysis.explain import explain as explained

        proved["explain"] = explained(spec, setup, figures)
    if verify:
        from zoo.verify import verify as verified

        proved["verify"] = verified(spec, setup)
    return proved


def _print(label: str, proved: Mapping[str, Any], shown: Shown) -> None:
    from zoo.analysis.explain import format_explanation

    for part, names in (("explain", EXPLAINED), ("verify", VERIFIED)):
        if part not in proved:
            continue
        lines = proved[part]
        header = [name for name in names if any(name in line for line in lines)]
        rows = [["" if line.get(name) is None else line[name] for name in header] for line in lines]
        if shown is Shown.csv:
            print(report.format_csv(header, rows))
        elif shown is Shown.md:
            print(report.format_markdown(header, rows))
        elif part == "explain":
            print(report.make_bold(label))
            print(format_explanation(lines))
            print(_rules(proved["rules_of_thumb"]))
        else:
            print(report.make_bold(label))
            for line in lines:
                print(_verified(line))


def _rules(rules: Mapping[str, Mapping[str, Any]]) -> str:
    """List the textbook approximations: the value of each, its error from the exact figure, and when it holds."""
    lines = ["", report.make_bold("Rules of thumb")]
    for name, rule in rules.items():
        unit = {"parameters": "params", "bytes": "B"}.get(str(rule["unit"]), str(rule["unit"]))
        if rule["value"] is None:
            told = f"does not apply, {rule['reason']}"
        else:
            told = report.format_figure(rule["value"], unit)
            if rule["exact"] is not None:
                told += (
                    f", {report.format_change(rule['error'])} of the exact {report.format_figure(rule['exact'], unit)}"
                )
        lines.append(report.wrap_text(f"{name.replace('_', ' ')}: {rule['rule']} = {told}", 2, 6))
        lines.append(report.wrap_text(f"holds: {rule['holds']}", 6, 6))
    return "\n".join(lines)


def _verified(line: Mapping[str, Any]) -> str:
    mark = {True: "equal", False: "DIFFERS", None: "not held"}[line["equal"]]
    told = [f"{name} {_number(line.get(name))}" for name in ("counted", "found") if line.get(name) is not None]
    note = [str(line["note"])] if line.get("note") else []
    return report.wrap_text(f"{mark}: {line['name']}: {'; '.join([', '.join(told), *note])}", 2, 6)


def _number(value: object) -> str:
    return f"{value:,}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
