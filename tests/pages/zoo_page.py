"""Writes docs/zoo.md from conf/: every family with what it is made of and its measured distance from the reference, and
every packaged model; and zoo/gallery/measured.yaml, the distances as data. `make docs` runs it; test_zoo_page.py holds
the page against conf/. With `--new` the families that are measured keep their figures."""

from __future__ import annotations

import copy
import json
import platform
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml

from support import rwkv7_equations
from support.packaged_specs import load
from support.reference_models import Case, both, pair
from zoo.checkpoint import hf
from zoo.checkpoint.tensor_files import read_json
from zoo.compose.catalogue import read_models
from zoo.costs import price
from zoo.families import family as families
from zoo.gallery.family_facts import MEASURED
from zoo.spec import components

PAGE = Path(__file__).parents[2] / "docs" / "zoo.md"
HEAD_OF_MEASURED = (
    "# The largest difference of each family from its reference, measured as docs/zoo.md says; written with it."
)
AXES = ("attention", "position", "norm", "block", "ffn", "router")

HEAD = """\
# What is in the zoo

Written by `make docs` from `conf/`; a test holds this page against it.

## Families

A family is one file in `conf/family/`: what its config.json means and where its tensors are, read forwards to import
and backwards to export. "Difference" is the largest one between a logit (a hidden state, without a head) of a tiny
model with every parameter random and the same model in transformers, over the cases of `tests/support/cases`, in
float32{measured}; of RWKV-7, which transformers has not, and its paper's equations (`tests/families/test_rwkv7.py`).

{read}
"""

TEXT_TYPES = json.loads((Path(__file__).parents[1] / "support/text_types.json").read_text(encoding="utf-8"))
"""The model types of transformers 5.24 whose input is text, text models of multimodal ones included, by kind: those of
its mappings for causal, masked and sequence-to-sequence language models and of its base classes."""

READ = """Of the {total} text model types of transformers 5.24, {count} are read:

"""


def cases() -> list[Case]:
    from support import family_cases

    return family_cases.CASES


def config_of(case: Case) -> dict[str, Any]:
    """Return the config.json of a case's reference model."""
    config = getattr(transformers, case.config)(**copy.deepcopy(dict(case.sizes)))  # it changes what it is given
    with tempfile.TemporaryDirectory() as place:
        config.save_pretrained(place)
        return {**read_json(Path(place) / "config.json"), "architectures": [case.model]}


def by_family() -> dict[str, list[Case]]:
    """Group the cases by family."""
    found: dict[str, list[Case]] = {}
    for case in cases():
        found.setdefault(families.family_of_config(config_of(case), case.name).name, []).append(case)
    return found


OUTSIDE = {"rwkv7": rwkv7_equations}
"""Families that transformers has not, and what measures them."""

SHOWN = 4
"""Cases of a family that are looked at for what it is made of."""


def difference(case: Case) -> float:
    """Measure the largest difference from the reference, over logits and the last hidden states."""
    two = pair(case)
    ours, theirs = both(two, two.ids())
    if ours.logits is not None:
        given = theirs["prediction_logits" if "prediction_logits" in theirs else "logits"]  # of a class with two heads
        return float((ours.logits - given).abs().max())
    if case.streams:
        return float((ours.hidden - theirs.last_hidden_state).abs().max())
    last = theirs.decoder_hidden_states if "decoder_hidden_states" in theirs else theirs.hidden_states
    return float((ours.hidden - last[-1]).abs().max())


def made_of(specs: list[Any]) -> str:
    """List the kinds of each axis that a family's cases have, in words."""
    parts = []
    for axis in AXES:
        kinds: dict[str, None] = {}
        for spec in specs:
            for tower in spec.towers().values():
                kinds |= {
                    each.kind: None
                    for path, each, _ in components(tower, tower.d_model)
                    if each.axis == axis and not (axis == "norm" and ".attention" in path) and each.kind != "none"
                }
                kinds |= {tower.position.kind: None} if axis == "position" and tower.position.kind != "none" else {}
                for block in tower.blocks.values() if axis == "position" else ():
                    inside = block.attention.positioning
                    kinds |= {inside.kind: None} if inside is not None and inside.kind != "none" else {}
        if kinds:
            parts.append(" ".join(sorted(kinds)))
    return ", ".join(parts)


def family_rows(measured: dict[str, str]) -> list[tuple[str, ...]]:
    rows = []
    configs = {name: [config_of(case) for case in those[:SHOWN]] for name, those in by_family().items()}
    configs |= {name: [module.CONFIG] for name, module in OUTSIDE.items()}
    for name, those in sorted(configs.items()):
        family = families.read_family(name)
        specs = [hf.compose_spec(family.body(config, name)) for config in those]
        topology = " ".join(sorted({spec.kind for spec in specs}))
        types = ", ".join(f"`{each}`" for each in family.model_types)
        title = family.about.get("title", name)
        rows.append((str(title), types, topology, made_of(specs), str(family.about.get("source", "")), measured[name]))
    return rows


def model_rows() -> list[tuple[str, ...]]:
    """List every packaged model, from its own file and its counts."""
    rows = []
    for model in read_models():
        params = price(load(model["name"]), parts=["params"])["params"]
        active = "" if params["active"] == params["total"] else f"{params['active']:,}"
        rows.append((f"`{model['name']}`", model["kind"], f"{params['total']:,}", active, model["note"]))
    return rows


def count_read() -> str:
    """Count the text model types of transformers that are read, by kind, and name the others."""
    known = {
        each.replace("-", "_") for name in families.family_names() for each in families.read_family(name).model_types
    }
    rows, count = [], 0
    for kind, types in TEXT_TYPES.items():
        others = [each for each in types if each.replace("-", "_") not in known]
        count += len(types) - len(others)
        rows.append((kind, str(len(types) - len(others)), str(len(types)), ", ".join(f"`{each}`" for each in others)))
    total = sum(map(len, TEXT_TYPES.values()))
    return READ.format(total=total, count=count) + table(("kind", "read", "of", "not read"), rows)


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def page(difference: dict[str, str], by: str) -> str:
    """Write the whole page, with the differences given, and how they were measured."""
    families_head = ("family", "model_type", "topology", "made of", "source", "difference")
    models_head = ("model", "topology", "parameters", "active", "what is special")
    return (
        HEAD.format(measured=f" ({by})", read=count_read())
        + table(families_head, family_rows(difference))
        + f"\n## Packaged models\n\n{COUNTS}\n\n"
        + table(models_head, model_rows())
    )


COUNTS = (
    "Counts are exact, a shared table counted once; `zoo stats NAME` breaks them down. What is saved and never\n"
    'trained are no parameters. "Active" is what one token meets, where that is less.\n\n'
    "Claude, GPT-4 and GPT-5, o1, Gemini and Grok are not here: their makers never published the architectures, and\n"
    "`zoo stats claude` says so, with the published model that stands nearest (`conf/unpublished.yaml`)."
)


def measure(known: dict[str, str]) -> dict[str, str]:
    """Measure the largest difference of each family that is not known, to one digit."""
    found = {name: known.get(name) or f"{max(map(difference, those)):.0e}" for name, those in by_family().items()}
    return found | {name: known.get(name) or f"{module.difference():.0e}" for name, module in OUTSIDE.items()}


def read_measured() -> dict[str, Any]:
    """Read the differences that measured.yaml has, by family, and how they were measured."""
    return yaml.load(MEASURED.read_text(encoding="utf-8"), yaml.BaseLoader)


def write_measured(by: str, found: dict[str, str]) -> None:
    lines = [f'by: "{by}"', "difference:", *(f"  {name}: {each}" for name, each in sorted(found.items()))]
    MEASURED.write_text("".join(f"{line}\n" for line in (HEAD_OF_MEASURED, *lines)), encoding="utf-8")


def main() -> None:
    torch.set_num_threads(1)
    measured = measure(read_measured()["difference"] if "--new" in sys.argv else {})
    versions = f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}"
    machine = f"{platform.machine()}, one thread, {versions}"
    write_measured(f"{date.today():%d %B %Y}, {machine}", measured)
    PAGE.write_text(page(**read_measured()), encoding="utf-8")
    print(
        f"written: {PAGE.name}, {len(families.family_names())} families, {len(read_models())} models", file=sys.stderr
    )


if __name__ == "__main__":
    main()
