"""Format figures for people: tables that fit 80 columns, with units. `--json` has the same figures exactly."""

from zoo.report.figures import cost_rows, cost_table, exact_rows
from zoo.report.tables import as_csv, as_markdown, rich_table, show
from zoo.report.text import as_json, bold, columns, wrapped
from zoo.report.tree import module_rows
from zoo.report.units import change, params, readable, share, si, size

__all__ = [
    "as_csv",
    "as_json",
    "as_markdown",
    "bold",
    "change",
    "columns",
    "cost_rows",
    "cost_table",
    "exact_rows",
    "module_rows",
    "params",
    "readable",
    "rich_table",
    "share",
    "show",
    "si",
    "size",
    "wrapped",
]
