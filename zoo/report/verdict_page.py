"""Write the page of an experiment: one HTML file with its verdicts, costs, plots and runs. It needs no network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from zoo import runs
from zoo.disk import write_text
from zoo.errors import ConfigError, Diverged
from zoo.report.arms import Arm
from zoo.report.price_plot import format_svg
from zoo.report.run_page import render_page
from zoo.report.verdict_plot import make_figure
from zoo.report.verdicts import NAMES, Report
from zoo.units import format_seconds

PageTable = tuple[str, Sequence[str], list[list[str]], Sequence[int]]
"""A table: title, header, rows, and the columns to align right (`Report.tables`)."""


def write_report_page(
    report: Report, title: str, file: Path, notes: Sequence[str] = (), tables: Sequence[PageTable] = ()
) -> None:
    """Write a report's page. Raises ConfigError if the file cannot be written."""
    try:
        write_text(file, make_report_page(report, title, notes, tables))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written, found {error.strerror} (--html FILE names another)") from error


def make_report_page(report: Report, title: str, notes: Sequence[str] = (), tables: Sequence[PageTable] = ()) -> str:
    """Make the page's HTML. `notes` are sentences on the basis of the verdicts; `tables` come before the report's."""
    return render_page(
        TEMPLATE,
        title=f"{title} · verdicts",
        name=title,
        metric=report.metric,
        baseline=report.baseline.name,
        sentences=[
            (each.name, report.found[each.name].verdict, describe_verdict(report, each)) for each in report.others
        ],
        tables=[*tables, *report.tables()],
        family=report.family,
        notes=[*notes, *report.second_readings()],
        picture=format_svg(make_figure(report)),
        runs=list_runs(report),
        machines=list_machines(report),
    )


def describe_verdict(report: Report, arm: Arm) -> str:
    """Write a verdict with its figures, and the costs in which the arm differs from the baseline by more than 1 %."""
    each, unmatched = report.found[arm.name], report.unmatched(arm)
    between = "" if each.interval is None else " ({:+.4f} to {:+.4f})".format(*each.interval)
    apart = "" if each.difference is None else f": {each.difference:+.4f} {report.metric}{between}"
    said = f"{report.sentence(arm)}{apart}."
    if not unmatched:
        return f"{said} All costs match within 1 %."
    apart = (f"{NAMES.get(name, name)} ×{ratio:.2f}" for name, ratio in unmatched.items())
    return f"{said} Not matched: {', '.join(apart)}."


def list_runs(report: Report) -> list[tuple[str, ...]]:
    """List a row per run: arm, seed, metric, seconds, folder and overrides."""
    rows = [("arm", "seed", report.metric, "time", "folder", "overrides")]
    for arm in report.arms:
        values = arm.values(report.metric)
        for seed, run in arm.runs.items():
            words = " ".join(run.result.get("overrides", ()))
            took = format_seconds(float(run.outcome["seconds"] or 0))
            rows.append(
                (
                    arm.name,
                    str(seed),
                    f"{values[seed]:.4f}" if math.isfinite(values[seed]) else Diverged.status,
                    took,
                    run.folder.name,
                    words,
                )
            )
    return rows


def list_machines(report: Report) -> list[str]:
    """Describe the machines of the runs, each once."""
    found: dict[str, None] = {}
    for arm in report.arms:
        for run in arm.runs.values():
            for each in runs.read_environments(run.folder):
                found[", ".join(f"{name} {each[name]}" for name in MACHINE if each.get(name))] = None
    return list(found)


MACHINE: tuple[str, ...] = ("zoo", "torch", "python", "device", "processor", "cores", "threads", "gpu")
"""The keys of a run's environment by which machines are distinguished."""

TEMPLATE = """<h1>{{ name }}</h1>
<p class="folder">{{ metric }}, compared with {{ baseline }}; lower is better</p>
<ul>
{% for name, verdict, said in sentences %}
<li><b>{{ name }}</b>: <span class="{{ verdict.split()[0] }}">{{ said }}</span></li>
{% endfor %}
</ul>
{% for each in notes %}
<p>{{ each }}</p>
{% endfor %}
{{ picture | safe }}
{% for heading, header, rows, _ in tables %}
<h2>{{ heading }}</h2>
{{ table(rows, header) }}
{% endfor %}
<h2>How the verdicts are made</h2>
<p>Runs of one seed see the same data in the same order, so differences are taken seed by seed. An arm is better or
worse by Student's t-test at 5 % over {{ family }} together (Holm, 1979), and its interval is that of the test. It is
equivalent if two one-sided tests show its difference to be within the stated margin (Schuirmann, 1987). Otherwise the
comparison is inconclusive: these seeds do not show a difference, and there may be one. The smallest difference that a
design shows has a power of 0.8. Runs that diverged count: arms with some are compared by exact ranks, in which they
come last. Arms that share no seed are compared by Welch's t. Learning rates that were searched have errors, which are
part of the intervals. An effective speedup is how many times the arm's budget the baseline would need to reach the
arm's loss, by its own scaling law.</p>
<h2>Runs</h2>
<details><summary>{{ runs | length - 1 }} runs</summary>
{{ table(runs) }}</details>
{% for each in machines %}
<p>{{ each }}</p>
{% endfor %}"""
