"""`zoo explain`: explain a name of the YAML grammar: its meaning, values, users and cost."""

from __future__ import annotations

from zoo import report
from zoo.cli.completing import complete_name
from zoo.cli.options import argument, flag
from zoo.report.grammar_pages import format_page


def run(
    name: str = argument("An axis, a choice, a field or a key of a model.", default=..., autocompletion=complete_name),
    as_json: bool = flag("Print JSON, with every model and family named.", "--json"),
) -> None:
    """Explain a name of a model's YAML: what it is, which values it takes, which models set it, what it costs.

    \b
    Examples:
      zoo explain attention                  the choices of an axis
      zoo explain attention.gqa              a choice and its fields
      zoo explain attention.gqa.qk_norm      a field: type, default, paper, users, an example and its price
      zoo explain n_kv_heads                 a key of the model
    """
    from zoo.analysis.grammar_names import explain

    page = explain(name)
    print(report.format_json(page) if as_json else format_page(page))
