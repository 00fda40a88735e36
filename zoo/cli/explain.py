"""`zoo explain`: explain a name of the YAML grammar, of training, of a probe, or a word of verdicts and ladders."""

from __future__ import annotations

from typing import Any

from zoo import report
from zoo.cli.completing import complete_name
from zoo.cli.options import argument, flag
from zoo.errors import ConfigError
from zoo.report.grammar_pages import format_page


def run(
    name: list[str] = argument(
        "A key of the model or training config, an axis or a choice; a probe; a term used in reports.",
        default=...,
        metavar="NAME",
        autocompletion=complete_name,
    ),
    as_json: bool = flag("Print JSON, with every model and family named.", "--json"),
) -> None:
    """Explain a name: its meaning, its values and an example; for a model key also its cost and the models that set it.

    \b
    Examples:
      zoo explain attention                  the choices of an axis
      zoo explain attention.gqa              a choice and its fields
      zoo explain attention.gqa.qk_norm      a field: type, default, paper, users, an example and its cost
      zoo explain n_kv_heads                 a key of the model
      zoo explain data.form                  a field of training: objective, data, lora, steps, …
      zoo explain mqar                       a probe and its sizes; probe: all of them, and how to read a card
      zoo explain verdict                    also power, looks, speedup, ladder, experiment and its keys: margin, …
    """
    page = explain_name(" ".join(name))
    print(report.format_json(page) if as_json else format_page(page))


def explain_name(name: str) -> dict[str, Any]:
    """Describe a name of training, of a model's YAML or of a probe, or a word of verdicts and ladders, as plain data.
    Raises ConfigError for an unknown name."""
    from zoo.analysis.grammar_names import explain

    if (page := _explain_setting(name)) is not None:
        return page
    try:
        return explain(name)
    except ConfigError:
        from zoo.experiments.verdict_pages import explain_word
        from zoo.probes.probe_pages import explain_probe

        if (page := explain_word(name) or explain_probe(name)) is None:
            raise
        return page


def _explain_setting(name: str) -> dict[str, Any] | None:
    """Describe a setting of training; None for any other name, without importing zoo.training. If the grammar has the
    name too (`parallel`), `also` lists its places there."""
    from zoo.analysis.grammar_names import find_places
    from zoo.grammar.vocabulary import list_axes
    from zoo.paths import read_conf

    first, _, rest = name.partition(".")
    config = read_conf("config")
    chosen = {key for each in config.pop("defaults") if isinstance(each, dict) for key in each}
    if first in list_axes() or first not in {*config, *chosen}:
        return None
    from zoo.training.setting_pages import explain_setting

    page = explain_setting(name)
    also = [] if rest else [*find_places(first)]
    return {**page, "also": also} if page and also else page
