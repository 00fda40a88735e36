"""Write a page of results: one HTML file with verdicts, tables, plots and runs. It needs no network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from zoo import runs
from zoo.disk import write_text
from zoo.errors import ConfigError, Diverged
from zoo.report.arms import Arm, list_ratios
from zoo.report.price_plot import format_svg
from zoo.report.run_page import render_page
from zoo.report.tables import TextTable
from zoo.report.verdict_plot import make_figure
from zoo.report.verdicts import Report
from zoo.units import format_seconds

PAGE = "report.html"
"""The name of a page in the folder of its results."""


def write_results_page(
    file: Path,
    name: str,
    *,
    about: str = "",
    sentences: Sequence[tuple[str, str, str]] = (),
    notes: Sequence[str] = (),
    pictures: Sequence[str] = (),
    results: Sequence[str | TextTable] = (),
    family: str = "all comparisons of the experiment",
    runs: Sequence[Sequence[str]] = (),
    machines: Sequence[str] = (),
) -> None:
    """Write a page. Raises ConfigError if the file cannot be written.

    Each of `sentences` has an arm, its verdict, and the verdict's text; `family` names the comparisons over which the
    verdicts are corrected. Pictures are SVG elements. Results are tables and lines between them.
    """
    content = {"about": about, "sentences": sentences, "notes": notes, "pictures": pictures, "results": results}
    content |= {"family": family, "runs": runs, "machines": machines}
    try:
        write_text(file, render_page(TEMPLATE, title=f"{name} · results", name=name, **content))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written, found {error.strerror} (another file or folder)") from error


def write_report_page(
    report: Report, title: str, file: Path, notes: Sequence[str] = (), tables: Sequence[TextTable] = ()
) -> None:
    """Write a report's page. `notes` are sentences on the basis of the verdicts; `tables` precede the report's own."""
    better = "higher" if report.higher else "lower"
    write_results_page(
        file,
        title,
        about=f"{report.metric}, compared with {report.baseline.name}; {better} is better",
        sentences=[
            (each.name, report.found[each.name].verdict, describe_verdict(report, each)) for each in report.others
        ],
        notes=[*notes, *report.second_readings()],
        pictures=[format_svg(make_figure(report))],
        results=[*tables, *report.tables()],
        family=report.family,
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
    return f"{said} Not matched: {list_ratios(unmatched)}."


def list_runs(report: Report) -> list[tuple[str, ...]]:
    """List a row per run: arm, seed, metric, seconds, folder and overrides."""
    rows = [("arm", "seed", report.metric, "time", "folder", "overrides")]
    for arm in report.arms:
        values = arm.values(report.metric)
        for seed, run in arm.runs.items():
            value = f"{values[seed]:.4f}" if math.isfinite(values[seed]) else Diverged.status
            took = format_seconds(float(run.outcome["seconds"] or 0))
            words = " ".join(run.result.get("overrides", ()))
            rows.append((arm.name, str(seed), value, took, run.folder.name, words))
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
<p class="folder">{{ about }}</p>
<ul>
{% for name, verdict, said in sentences %}
<li><b>{{ name }}</b>: <span class="{{ verdict.split()[0] }}">{{ said }}</span></li>
{% endfor %}
</ul>
{% for each in notes %}
<p>{{ each }}</p>
{% endfor %}
{% for each in pictures %}
{{ each | safe }}
{% endfor %}
{% for each in results %}
{% if each is string %}
<p>{{ each }}</p>
{% else %}
{% if each.title %}
<h2>{{ each.title }}</h2>
{% endif %}
{{ table(each.rows, each.header, each.right) }}
{% endif %}
{% endfor %}
{% if sentences %}
<h2>How the verdicts are made</h2>
<p>Runs of one seed see the same data in the same order, so differences are taken seed by seed. An arm is better or
worse by Student's t-test at 5 % over {{ family }} together (Holm, 1979), and its interval is that of the test. It is
equivalent if two one-sided tests show its difference to be within the stated margin (Schuirmann, 1987). Otherwise the
comparison is inconclusive: these seeds do not show a difference, and there may be one. The smallest detectable
difference is that detected with a power of 0.8. Arms with diverged runs are compared by an exact rank test, diverged
runs last. Arms that share no seed are compared by Welch's t-test. The intervals include the standard error that a
searched learning rate adds to an arm's loss. An effective speedup is how many times the arm's budget the baseline
would need to reach the arm's loss, by its own scaling law.</p>
{% endif %}
{% if runs %}
<h2>Runs</h2>
<details><summary>{{ runs | length - 1 }} runs</summary>
{{ table(runs) }}</details>
{% endif %}
{% for each in machines %}
<p>{{ each }}</p>
{% endfor %}"""
