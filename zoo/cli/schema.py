"""`zoo schema`: write the JSON Schema of a model's YAML, for completion, checks and explanations in editors."""

from __future__ import annotations

from pathlib import Path

from zoo.cli.options import option
from zoo.disk import write_text


def run(out: Path | None = option("Write to a file instead of standard output.", "--out", metavar="FILE")) -> None:
    """Write the JSON Schema (2020-12) of a model's YAML. With it an editor completes keys and choices, marks errors,
    and describes each field.

    \b
    Examples:
      zoo schema --out model.schema.json
    and as the first line of a model's file, for editors with the YAML language server:
      # yaml-language-server: $schema=model.schema.json
    """
    import json

    from zoo.grammar.schema import make_schema

    text = json.dumps(make_schema(), indent=1, ensure_ascii=False)
    if out is None:
        return print(text)
    write_text(out, f"{text}\n")
    print(f"written: {out}")
