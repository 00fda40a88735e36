"""Format figures for people: with units, rounded, in tables that fit 80 columns. `--json` has the same figures
unrounded."""

from zoo.report.evaluation import format_evaluation
from zoo.report.figures import format_cost_table, list_cost_rows, list_exact_rows
from zoo.report.tables import drop_empty, fit_columns, format_csv, format_markdown, make_table, print_tables
from zoo.report.wrapping import align_columns, format_json, make_bold, wrap_text
from zoo.units import format_change, format_count, format_figure, format_share, format_si, format_size

__all__ = [
    "align_columns",
    "drop_empty",
    "fit_columns",
    "format_change",
    "format_cost_table",
    "format_count",
    "format_csv",
    "format_evaluation",
    "format_figure",
    "format_json",
    "format_markdown",
    "format_share",
    "format_si",
    "format_size",
    "list_cost_rows",
    "list_exact_rows",
    "make_bold",
    "make_table",
    "print_tables",
    "wrap_text",
]
